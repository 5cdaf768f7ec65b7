"""Trees of source code: what git would track, with the language of each file and the licence of the tree.

`.gitignore` files are respected at every level, as git does; so are the usual folders of dependencies and build
products where there is no `.gitignore`. A file's licence is what its first lines say (`SPDX-License-Identifier: MIT`),
or that of the nearest LICENSE, COPYING or UNLICENSE file above it, within the source's folder, by its text.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from puna.core.errors import MissingError, need
from puna.data.document import Document
from puna.data.places import writable
from puna.data.sources.files import decode_utf8, locate, read_bytes
from puna.data.sources.folder import LANGUAGES
from puna.data.sources.task import Name, Problem, Report, SourceConfig, Task, group

_NEVER = {
    "node_modules", "vendor", "third_party", "dist", "build", "target", "__pycache__", "site-packages",
}  # fmt: skip
_BY_NAME = {"Makefile": "makefile", "Dockerfile": "dockerfile", "CMakeLists.txt": "cmake", "Rakefile": "ruby"}
_LICENCES = (
    ("Apache-2.0", re.compile(r"Apache License,? Version 2\.0")),
    ("AGPL-3.0", re.compile(r"GNU AFFERO GENERAL PUBLIC LICENSE")),
    ("LGPL", re.compile(r"GNU LESSER GENERAL PUBLIC LICENSE")),
    ("GPL-3.0", re.compile(r"GNU GENERAL PUBLIC LICENSE Version 3")),
    ("GPL-2.0", re.compile(r"GNU GENERAL PUBLIC LICENSE Version 2")),
    ("MPL-2.0", re.compile(r"Mozilla Public License Version 2\.0", re.IGNORECASE)),
    ("BSD-3-Clause", re.compile(r"Redistribution and use in source and binary.*Neither the name", re.DOTALL)),
    ("BSD-2-Clause", re.compile(r"Redistribution and use in source and binary")),
    ("ISC", re.compile(r"Permission to use, copy, modify, and(/or)? distribute this software")),
    ("MIT", re.compile(r"Permission is hereby granted, free of charge, to any person obtaining a copy")),
    ("CC0-1.0", re.compile(r"CC0 1\.0 Universal")),
    ("Unlicense", re.compile(r"free and unencumbered software released into the public domain")),
)
_LICENCE_FILE = re.compile(r"^(un)?licen[cs]e|[-_.]licen[cs]e([-_.]|$)|^copying", re.IGNORECASE)
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+() -]+)")
_HEAD_CHARACTERS = 2000


class CodeTreeConfig(SourceConfig):
    """A tree of source code: a repository, or a folder of repositories."""

    kind: Literal["code_tree"] = "code_tree"
    """Which kind of source this is."""
    path: Path
    """The folder."""
    domain: Name = "code"
    """Domain of the documents."""
    languages: tuple[str, ...] = ()
    """Languages to take; none means all that are known by their file names."""
    base_url: str = ""
    """Address of the tree; a file's address is this and its path."""
    max_file_bytes: int = Field(default=1 << 20, ge=1)
    """Larger files are reported and left out."""


def tasks(config: CodeTreeConfig) -> list[Task]:
    """The tree's files, grouped.

    Raises:
        MissingError: There is no such folder, or nothing in it is code.
    """
    root = config.path
    if not root.is_dir():
        raise MissingError(f"source {config.name!r}: {root} is not there. Set its path to a folder that exists.")
    found = sorted(_walk(config, root, root, []))
    if not found:
        raise MissingError(f"source {config.name!r}: no file under {root} is code that is known. Change languages=...")
    return group(config, found)


def _walk(config: CodeTreeConfig, root: Path, folder: Path, rules: list[tuple[Path, Any]]) -> Iterator[tuple[str, int]]:
    pathspec = need("pathspec", extra="data")
    ignore = folder / ".gitignore"
    if ignore.is_file():
        lines = ignore.read_text(encoding="utf-8", errors="replace").splitlines()
        rules = [*rules, (folder, pathspec.GitIgnoreSpec.from_lines(lines))]
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            is_folder = entry.is_dir()
            if _ignored(path, rules, is_folder=is_folder):
                continue
            if is_folder:
                if rules or entry.name not in _NEVER:
                    yield from _walk(config, root, path, rules)
                continue
            language = language_of(path.name)
            if language and (not config.languages or language in config.languages):
                yield writable(path.relative_to(root).as_posix()), entry.stat().st_size


def _ignored(path: Path, rules: list[tuple[Path, Any]], *, is_folder: bool) -> bool:
    for base, spec in reversed(rules):  # the nearest file that says anything decides
        name = path.relative_to(base).as_posix() + ("/" if is_folder else "")
        result = spec.check_file(name)
        if result.include is not None:
            return bool(result.include)
    return False


def language_of(name: str) -> str:
    """The programming language of a file by its name; empty when unknown."""
    return _BY_NAME.get(name) or LANGUAGES.get(PurePosixPath(name).suffix.lower(), "")


def known_languages() -> frozenset[str]:
    """Every programming language that a file name can tell."""
    return frozenset(_BY_NAME.values()) | frozenset(LANGUAGES.values())


def licence_of_text(text: str) -> str:
    """SPDX identifier of a licence by its text, however its lines are broken; empty when unknown."""
    if declared := _declared(text):
        return declared
    text = " ".join(text.split())
    return next((name for name, pattern in _LICENCES if pattern.search(text)), "")


def _declared(text: str) -> str:
    """What an SPDX tag in the first lines says."""
    match = _SPDX.search(text[:_HEAD_CHARACTERS])
    return " ".join(match[1].split()) if match else ""


def read(config: CodeTreeConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's files as documents."""
    licences: dict[Path, str] = {}
    for part in task.parts:
        path = Path(locate(config.path, part))
        data = read_bytes(path, part, report)
        if data is None:
            continue
        if len(data) > config.max_file_bytes:
            report(Problem(part, "file too large", f"{len(data)} bytes, max_file_bytes is {config.max_file_bytes}"))
            continue
        text = decode_utf8(data, part, report)
        if text is not None:
            licence = _declared(text) or _licence_above(path.parent, config.path, licences)
            language = config.language or language_of(path.name)
            yield config.document(text, f"{config.base_url}{part}", licence=licence, language=language, file=part)


def _licence_above(folder: Path, root: Path, known: dict[Path, str]) -> str:
    if folder not in known:
        files = sorted(p for p in folder.iterdir() if _LICENCE_FILE.search(p.name))
        texts = [p.read_text(encoding="utf-8", errors="replace") for p in files if p.is_file()]
        own = next(filter(None, map(licence_of_text, texts)), "")
        known[folder] = own or ("" if folder == root else _licence_above(folder.parent, root, known))
    return known[folder]
