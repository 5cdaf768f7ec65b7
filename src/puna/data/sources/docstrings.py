"""Docstrings as something to read: a module's documentation on one page, in the order of its source.

Each documented module becomes a page: its name and docstring, then every class and function with its signature and its
docstring, cleaned of indentation. The code is parsed, never imported or run.
"""

import ast
import inspect
import io
import tokenize
import warnings
from collections.abc import Iterator

from puna.data.sources.task import Problem, Report

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
MIN_DOCSTRING_CHARACTERS = 40  # one-liners such as "Return self." say nothing without their code


def decode_python(data: bytes, part: str, report: Report) -> str | None:
    """Source text by PEP 263 (coding line or UTF-8), or None with a problem."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        report(Problem(part, "not UTF-8" if error.encoding == "utf-8" else "wrong encoding", error.reason, error.start))
    except (SyntaxError, LookupError) as error:
        report(Problem(part, "wrong encoding", str(error)))
    return None


def docstring_page(source: str, module: str, part: str, report: Report) -> str | None:
    """A module's documentation as one text.

    Args:
        source: Python source.
        module: Dotted name of the module.
        part: Address, for a problem.
        report: Where a file that does not parse is reported.

    Returns:
        The page, or None when nothing in the module is documented.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not our news
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        report(Problem(part, "not parsable", str(error), line=getattr(error, "lineno", None)))
        return None
    sections = list(_sections(tree.body, module))
    head = _docstring(tree)
    if not head and not sections:
        return None
    page = "\n\n".join([f"# {module}", *([head] if head else []), *sections]) + "\n"
    # a docstring may spell half a surrogate pair as an escape; no UTF-8 file can hold it
    return page.encode("utf-8", "replace").decode("utf-8")


def _docstring(node: ast.Module | _Definition) -> str:
    text = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(text).strip() if text else ""


def _sections(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, _Definition):
            continue
        name = f"{prefix}.{node.name}"
        text = _docstring(node)
        if len(text) >= MIN_DOCSTRING_CHARACTERS:
            yield f"## {_signature(node, name)}\n\n{text}"
        if isinstance(node, ast.ClassDef):
            yield from _sections(node.body, name)


def _signature(node: _Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}"
