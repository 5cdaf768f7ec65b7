"""Data sets in the Hugging Face form, by the name of a repository or as a local folder.

Most are Parquet or JSON Lines files in a repository; those are read as such, streamed through fsspec (`hf://`), with no
copy on disk and no code of the data set run. A folder that `save_to_disk` wrote is read from its Arrow files.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from puna.core.errors import MissingError, need
from puna.data.document import Document
from puna.data.places import is_remote, join, open_binary
from puna.data.sources import jsonl, parquet
from puna.data.sources.files import find_files
from puna.data.sources.jsonl import RecordFields
from puna.data.sources.task import Place, Problem, Report, Task, group

_FILES = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.json.gz", "*.arrow")


class HuggingFaceConfig(RecordFields):
    """A data set of the Hugging Face Hub, or a local copy of one."""

    kind: Literal["huggingface"] = "huggingface"
    """Which kind of source this is."""
    path: Place
    """A name (`HuggingFaceFW/fineweb`), or a local folder."""
    revision: str = "main"
    """Branch, tag or commit of the repository; a commit makes the corpus repeatable."""
    include: tuple[str, ...] = _FILES
    """Glob patterns of the files to read: `data/CC-MAIN-2024-18/*.parquet`."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files and names of folders to leave out."""
    max_bad_lines: int = 1000
    """More malformed lines than this in one JSON Lines file is an error."""


def root_of(config: HuggingFaceConfig) -> Path | str:
    """Where the files lie.

    Raises:
        MissingError: It is neither a folder nor a repository's name.
    """
    if is_remote(config.path) or Path(config.path).exists():
        return config.path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.path):
        raise MissingError(
            f"source {config.name!r}: {config.path} is neither a folder nor the name of a data set (owner/name)."
        )
    need("huggingface_hub", extra="hub")
    return f"hf://datasets/{config.path}@{config.revision}"


def tasks(config: HuggingFaceConfig) -> list[Task]:
    """The files, grouped."""
    found = find_files(root_of(config), include=config.include, exclude=config.exclude, source=config.name)
    return group(config, found)


def read(config: HuggingFaceConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's rows as documents."""
    root = root_of(config)
    for part in task.parts:
        if part.endswith(".parquet"):
            yield from parquet.read_file(config, join(root, part), part, report)
        elif part.endswith(".arrow"):
            yield from _read_arrow(config, join(root, part), part, report)
        else:
            yield from jsonl.read_file(config, join(root, part), part, config.max_bad_lines, report)


def _read_arrow(config: HuggingFaceConfig, place: Path | str, part: str, report: Report) -> Iterator[Document]:
    arrow: Any = need("pyarrow", extra="data")
    number = 0
    with open_binary(place) as file:
        try:
            for batch in arrow.ipc.open_stream(file):
                for record in batch.to_pylist():
                    number += 1
                    try:
                        yield config.from_record(record, part, number)
                    except ValueError as error:
                        report(Problem(part, "malformed row", str(error), line=number))
        except (arrow.ArrowException, OSError) as error:
            report(Problem(part, "damaged file", (str(error).splitlines() or ["?"])[0], line=number))
