"""Every kind of source by name. `[[sources]] kind = "folder"` in a recipe picks one.

A kind is a config class and two functions: `tasks(config)` lists the work, `read(config, task, report)` yields
documents. To add one, write such a module and name it here, in the table and in the union.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from puna.data.document import Document
from puna.data.sources import (
    code_tree,
    crawl_list,
    exercises,
    folder,
    html,
    huggingface,
    jsonl,
    parquet,
    python_packages,
    python_stdlib,
    warc,
)
from puna.data.sources.task import Report, SourceConfig, Task

SourceEntry = Annotated[
    folder.FolderConfig
    | jsonl.JsonlConfig
    | parquet.ParquetConfig
    | warc.WarcConfig
    | crawl_list.CrawlListConfig
    | html.HtmlConfig
    | code_tree.CodeTreeConfig
    | huggingface.HuggingFaceConfig
    | python_stdlib.PythonStdlibConfig
    | python_packages.PythonPackagesConfig
    | exercises.ExercisesConfig,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True)
class SourceKind:
    """The two functions of a kind of source."""

    tasks: Callable[[Any], list[Task]]
    read: Callable[[Any, Task, Report], Iterator[Document]]


SOURCES: dict[str, SourceKind] = {
    "folder": SourceKind(folder.tasks, folder.read),
    "jsonl": SourceKind(jsonl.tasks, jsonl.read),
    "parquet": SourceKind(parquet.tasks, parquet.read),
    "warc": SourceKind(warc.tasks, warc.read),
    "crawl_list": SourceKind(crawl_list.tasks, crawl_list.read),
    "html": SourceKind(html.tasks, html.read),
    "code_tree": SourceKind(code_tree.tasks, code_tree.read),
    "huggingface": SourceKind(huggingface.tasks, huggingface.read),
    "python_stdlib": SourceKind(python_stdlib.tasks, python_stdlib.read),
    "python_packages": SourceKind(python_packages.tasks, python_packages.read),
    "exercises": SourceKind(exercises.tasks, exercises.read),
}


def tasks_of(config: SourceConfig) -> list[Task]:
    """The tasks of a source, in their order.

    Raises:
        MissingError: There is nothing to read.
    """
    return SOURCES[_kind(config)].tasks(config)


def read_task(config: SourceConfig, task: Task, report: Report) -> Iterator[Document]:
    """The documents of a task; what cannot be read goes to `report`."""
    return SOURCES[_kind(config)].read(config, task, report)


def _kind(config: SourceConfig) -> str:
    kind = getattr(config, "kind", None)
    assert kind in SOURCES, f"{type(config).__name__} has no kind that is registered"
    return kind
