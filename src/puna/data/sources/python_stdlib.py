"""The standard library of the interpreter that runs us: real code and real prose on every machine, with no download.

As `code` every module is a document; as `prose` its docstrings are, rendered as a page. The licence is the PSF's.
Addresses are those of the same file in CPython's repository, so that a trace leads to something that can be opened.
"""

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from puna.data.document import Document
from puna.data.sources.docstrings import decode_python, docstring_page
from puna.data.sources.files import find_files, read_bytes
from puna.data.sources.task import Name, Report, SourceConfig, Task, group

_NOT_THE_LIBRARY = ("site-packages", "dist-packages", "__pycache__", "config-*")
_TESTS = ("test", "tests", "idle_test")


class PythonStdlibConfig(SourceConfig):
    """The interpreter's own standard library."""

    kind: Literal["python_stdlib"] = "python_stdlib"
    """Which kind of source this is."""
    domain: Name = "code"
    """`code` gives modules, any other domain (`prose`) gives their docstrings."""
    licence: str = "PSF-2.0"
    """Licence of the documents."""
    tests: Literal["leave out", "include"] = "leave out"
    """Whether the library's own tests belong to it."""


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def tasks(config: PythonStdlibConfig) -> list[Task]:
    """The library's modules, grouped."""
    exclude = _NOT_THE_LIBRARY + (_TESTS if config.tests == "leave out" else ())
    return group(config, find_files(_root(), include=("*.py",), exclude=exclude, source=config.name))


def read(config: PythonStdlibConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's modules as code, or their docstrings as prose."""
    version = platform.python_version()
    for part in task.parts:
        data = read_bytes(_root() / part, part, report)
        text = decode_python(data, part, report) if data is not None else None
        if text is None:
            continue
        url = f"https://github.com/python/cpython/blob/v{version}/Lib/{part}"
        if config.domain == "code":
            yield config.document(text, url, language="python", file=part)
        elif page := docstring_page(text, module_name(part), part, report):
            yield config.document(page, url, language=config.language or "en", file=part)


def module_name(part: str) -> str:
    """`json/decoder.py -> json.decoder`, `json/__init__.py -> json`."""
    return part.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
