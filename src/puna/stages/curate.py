"""`puna curate`: sources -> filters, edits, barriers -> a sealed corpus, with its funnel printed at the end."""

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from puna.core import console
from puna.core.files import atomic_open
from puna.core.run_folder import RunFolder
from puna.data import curate as data
from puna.data.corpus import Corpus
from puna.data.places import is_remote, join
from puna.stages.stage import PlanRow, Stage, StageRecipe

_SHOWN_PROBLEMS = 5


class CurateRecipe(data.CurateConfig, StageRecipe):
    """What goes into a corpus, and where it goes."""

    workers: int | None = None
    """Tasks at a time; none means two, or one on a single core. The result does not depend on it."""
    engine: Literal["local", "ray"] = "local"
    """Where tasks run: processes of this machine, or a Ray cluster. The result does not depend on it."""
    reuse: Path | None = None
    """Folder of an earlier corpus made with keep = "all": where only thresholds of filters before the first barrier
    changed, sources are not read, extracted and measured again; barriers and what follows work on the stored texts."""


def settings(recipe: CurateRecipe) -> data.CurateConfig:
    """The part of the recipe that decides the corpus."""
    values: dict[str, Any] = {name: getattr(recipe, name) for name in data.CurateConfig.model_fields}
    values["steps"] = tuple(map(_with_opener, recipe.steps))
    return data.CurateConfig(**values)


_OPENERS = {"semantic": "puna.stages.embedder:open_checkpoint", "quality": "puna.stages.quality_network:open_network"}
"""Who opens models for steps of `data`, which knows no torch."""


def _with_opener(step: Any) -> Any:
    opener = _OPENERS.get(getattr(step, "kind", ""))
    return step.model_copy(update={"opener": opener}) if opener and not step.opener else step


def inputs(recipe: CurateRecipe) -> Mapping[str, Path]:
    """The files and folders that sources and steps name, and the tokenizer; remote ones are not looked at."""
    found = {"tokenizer": recipe.tokenizer} if recipe.tokenizer else {}
    for group, entries in (("sources", recipe.sources), ("steps", recipe.steps)):
        for i, entry in enumerate(entries):
            for name in type(entry).model_fields:
                value: Any = getattr(entry, name)
                if name == "path" and isinstance(value, str) and not is_remote(value):
                    value = Path(value)
                if isinstance(value, Path):
                    found[f"{group}.{i}.{name}"] = value
    return found


def plan(recipe: CurateRecipe) -> Sequence[PlanRow]:
    """Tasks and sizes by source, the passes over the text, and the disk that is needed."""
    planned = data.plan(settings(recipe))
    rows = [
        (f"source {name}", f"{_count(tasks, 'task')}, {_count(parts, 'part')}, {size}")
        for name, tasks, parts, size in planned.rows()
    ]
    for this in planned.passes:
        barriers = ", ".join(b.kind for b in this.barriers)
        then = f"; then {barriers}" if barriers else "; then the corpus"
        rows.append((f"pass {this.index}", (", ".join(step.kind for step in this.steps) or "apply") + then))
    return [*rows, ("disk", console.short_bytes(planned.disk_bytes))]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def write_pages(title: str, corpus: Corpus) -> None:
    """Write the data card and the page into a corpus that is about to be sealed."""
    from puna.data.card import card
    from puna.stages.page import curation

    for name, text in (
        ("README.md", card(corpus.manifest, title=title)),
        ("report.html", curation.page(corpus, title=title)),
    ):
        with atomic_open(corpus.path / name) as file:
            file.write(text)


def run(recipe: CurateRecipe, folder: RunFolder) -> None:
    """Make the corpus and show its funnel."""
    from puna.data.funnel import columns, funnel

    corpus = data.curate(
        settings(recipe),
        folder.path,
        workers=recipe.workers,
        engine=recipe.engine,
        reuse=recipe.reuse,
        finishing=partial(write_pages, recipe.name or "Corpus"),
    )
    console.table(f"corpus {folder.path}", columns(corpus), funnel(corpus))
    console.say(f"page: {folder.path / 'report.html'}")
    quarantine = folder.path / "quarantine.jsonl"
    problems = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
    for problem in problems[:_SHOWN_PROBLEMS]:
        console.warn(f"could not be read: {_told(problem, recipe)}")
    if len(problems) > _SHOWN_PROBLEMS:
        console.warn(f"{len(problems) - _SHOWN_PROBLEMS} more could not be read; all are in {quarantine}")


def _told(problem: Mapping[str, Any], recipe: CurateRecipe) -> str:
    """A problem with its source and the path (line and column behind it) that an editor opens."""
    root = next((getattr(source, "path", None) for source in recipe.sources if source.name == problem["source"]), None)
    place = str(join(root, problem["where"])) if root is not None else problem["where"]
    place += "".join(f":{problem[key]}" for key in ("line", "column") if key in problem)
    return f"source {problem['source']!r}: {place}: {problem['reason']}: {problem['detail']}"


def slurm_script(recipe: Path, overrides: Sequence[str], *, n_passes: int, parts: int) -> str:
    """A shell script that submits a curation to Slurm: an array job for each pass, each after the one before it.

    Args:
        recipe: The recipe's file.
        overrides: `key=value` of the command line.
        n_passes: Passes of the recipe.
        parts: Jobs of each array.
    """
    words = shlex.join([str(recipe), *overrides])
    lines = [
        "#!/bin/bash",
        "# Submits the curation of a corpus; any job can be killed and submitted again.",
        "set -e",
    ]
    before = ""
    for index in range(n_passes):
        work = f"puna data part {words} --index {index} --part $SLURM_ARRAY_TASK_ID --parts {parts}"
        options = f"--parsable --array=0-{parts - 1} --cpus-per-task=1{before}"
        lines.append(f"job{index}=$(sbatch {options} --wrap={shlex.quote(work)})")
        before = f" --dependency=afterok:$job{index}"
    lines.append(f"sbatch{before} --wrap={shlex.quote(f'puna curate {words}')}")
    return "\n".join(lines) + "\n"


STAGE = Stage(
    verb="curate", recipe=CurateRecipe, inputs=inputs, plan=plan, run=run, neutral=("workers", "engine", "reuse")
)
