"""The documentation of the installed packages: read-me texts, shipped documents and docstrings.

One part is one installed distribution. Its licence comes from its own metadata (expression, then classifier, then
field). Addresses lead to the release's page. Puna itself is left out, and no package may give more than
`max_package_bytes`, so that one giant does not drown the others.
"""

import re
from collections.abc import Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal, cast

from pydantic import Field

from puna.core.errors import MissingError
from puna.data.document import Document
from puna.data.sources.docstrings import decode_python, docstring_page
from puna.data.sources.files import decode_utf8, read_bytes
from puna.data.sources.python_stdlib import module_name
from puna.data.sources.task import Name, Report, SourceConfig, Task, group

_DOCUMENTS = (".md", ".rst", ".txt")
# word lists, pinned requirements and licence texts are no prose about the package
_NOT_PROSE = re.compile(r"licen[cs]e|copying|notice|authors|requirements|top_level|entry_points|words", re.IGNORECASE)
_TESTS = frozenset({"test", "tests", "testing", "_tests", "__pycache__"})


class PythonPackagesConfig(SourceConfig):
    """Documentation of the distributions installed beside Puna."""

    kind: Literal["python_packages"] = "python_packages"
    """Which kind of source this is."""
    domain: Name = "prose"
    """`code` gives the packages' Python modules, any other domain their documentation."""
    packages: tuple[str, ...] = ()
    """Names of the distributions to read; none means all."""
    exclude: tuple[str, ...] = ()
    """Names of the distributions to leave out, beside Puna itself."""
    parts: tuple[Literal["readme", "documents", "docstrings"], ...] = ("readme", "documents", "docstrings")
    """What to take of a package's documentation."""
    max_package_bytes: int = Field(default=2 << 20, ge=1)
    """No more text than this from one package."""


def tasks(config: PythonPackagesConfig) -> list[Task]:
    """The distributions, grouped.

    Raises:
        MissingError: None is installed that the recipe allows.
    """
    excluded = {"puna", *map(normalised, config.exclude)}
    wanted = set(map(normalised, config.packages))
    found: dict[str, int] = {}
    for distribution in metadata.distributions():
        name = normalised(distribution.metadata["Name"] or "")
        if name and name not in excluded and name not in found and (not wanted or name in wanted):
            size = sum(file.size or 0 for file in distribution.files or [] if file.suffix in (*_DOCUMENTS, ".py"))
            # about a tenth of a package's Python is docstrings
            share = 1.0 if config.domain == "code" else 0.1
            found[name] = min(int(share * size) + 1, config.max_package_bytes)
    if missing := sorted(wanted - excluded - set(found)):
        raise MissingError(f"source {config.name!r}: not installed: {', '.join(missing)}. Change packages=...")
    if not found:
        raise MissingError(f"source {config.name!r}: no installed package is left to read. Change packages or exclude.")
    versions = {name: metadata.version(name) for name in found}
    return group(config, [(f"{name}=={versions[name]}", found[name]) for name in sorted(found)])


def read(config: PythonPackagesConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's packages as documents."""
    for part in task.parts:
        distribution = metadata.distribution(part.partition("==")[0])
        left = config.max_package_bytes
        for document in _read_package(config, distribution, report):
            left -= document.n_bytes
            if left < 0:
                break
            yield document


def normalised(name: str) -> str:
    """A distribution's name by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(fields: Message) -> str:
    """A distribution's licence: SPDX expression, else classifiers, else a short licence field, else nothing."""
    if expression := fields.get("License-Expression"):
        return expression.strip()
    prefix = "License :: "
    classifiers = [c for c in fields.get_all("Classifier") or [] if c.startswith(prefix)]
    if classifiers:
        return " AND ".join(sorted(c.rpartition(" :: ")[2] for c in classifiers))
    free = (fields.get("License") or "").strip()
    return free if len(free) <= 80 and "\n" not in free else ""


def _read_package(
    config: PythonPackagesConfig, distribution: metadata.Distribution, report: Report
) -> Iterator[Document]:
    fields = cast("Message", distribution.metadata)
    name = normalised(fields["Name"])
    licence = licence_of(fields) or config.licence
    address = f"https://pypi.org/project/{name}/{distribution.version}/"
    language = config.language or "en"
    prose = config.domain != "code"
    if prose and "readme" in config.parts:
        text = _description(fields)
        if text.strip():
            yield config.document(text, address, licence=licence, language=language)
    # prose before docstrings, so that a package at its limit gives what people wrote to be read
    for file in sorted(distribution.files or [], key=lambda f: (f.suffix == ".py", str(f))):
        path = PurePosixPath(file)
        if ".." in path.parts or path.parts[0].endswith((".dist-info", ".egg-info")) or _TESTS & set(path.parts):
            continue
        is_document = prose and "documents" in config.parts and path.suffix in _DOCUMENTS
        is_module = path.suffix == ".py" and (not prose or "docstrings" in config.parts)
        if not is_module and (not is_document or _NOT_PROSE.search(path.name)):
            continue
        part = f"{name}/{path}"
        data = read_bytes(Path(str(distribution.locate_file(file))), part, report)
        if data is None:
            continue
        url = f"{address}#{path}"
        if is_document:
            if text := decode_utf8(data, part, report):
                yield config.document(text, url, licence=licence, language=language)
            continue
        source = decode_python(data, part, report)
        if source and not prose:
            yield config.document(source, url, licence=licence, language="python")
        elif source and (page := docstring_page(source, module_name(str(path)), part, report)):
            yield config.document(page, url, licence=licence, language=language)


def _description(fields: Message) -> str:
    body = fields.get_payload()
    text = body if isinstance(body, str) and body.strip() else fields.get("Description") or ""
    return text.encode("utf-8", "replace").decode("utf-8")
