"""Folders of text or code: one file, one document.

Files are taken as UTF-8. One that is not is reported with its path and the offset of the first bad byte, and left out:
guessing an encoding puts wrong letters into training data without a trace.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.sources.files import decode_utf8, find_files, locate, read_bytes
from puna.data.sources.task import Problem, Report, SourceConfig, Task, group

# Programming languages by file name extension, for `Document.language` in the domain `code`.
LANGUAGES = {
    ".c": "c", ".h": "c", ".cc": "c++", ".cpp": "c++", ".hpp": "c++", ".cs": "c#", ".css": "css", ".go": "go",
    ".hs": "haskell", ".html": "html", ".java": "java", ".jl": "julia", ".js": "javascript", ".json": "json",
    ".kt": "kotlin", ".lua": "lua", ".ml": "ocaml", ".php": "php", ".pl": "perl", ".py": "python", ".pyi": "python",
    ".r": "r", ".rb": "ruby", ".rs": "rust", ".scala": "scala", ".sh": "shell", ".sql": "sql", ".swift": "swift",
    ".tex": "tex", ".toml": "toml", ".ts": "typescript", ".yaml": "yaml", ".yml": "yaml", ".zig": "zig",
}  # fmt: skip


class FolderConfig(SourceConfig):
    """A folder of text or code files, or a single file."""

    kind: Literal["folder"] = "folder"
    """Which kind of source this is."""
    path: Path
    """The folder."""
    include: tuple[str, ...] = ("*.txt", "*.md", "*.rst")
    """Glob patterns of the files to read."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files and names of folders to leave out."""
    max_file_bytes: int = Field(default=64 << 20, ge=1)
    """Larger files are reported and left out."""


def tasks(config: FolderConfig) -> list[Task]:
    """The folder's files, grouped."""
    return group(config, find_files(config.path, include=config.include, exclude=config.exclude, source=config.name))


def read(config: FolderConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's files as documents."""
    for part in task.parts:
        path = Path(locate(config.path, part))
        if path.exists() and path.stat().st_size > config.max_file_bytes:
            detail = f"{path.stat().st_size} bytes, max_file_bytes is {config.max_file_bytes}"
            report(Problem(part, "file too large", detail))
            continue
        data = read_bytes(path, part, report)
        text = decode_utf8(data, part, report) if data is not None else None
        if text is not None:
            language = config.language
            if not language and config.domain == "code":
                language = LANGUAGES.get(PurePosixPath(part).suffix.lower(), "")
            yield config.document(text, part, language=language, file=part)
