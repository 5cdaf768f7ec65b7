"""A recipe's steps cut into passes over the text, and the names under which their work is kept.

A pass runs over every task: read, apply what barriers decided, filter and edit, write what the next barriers need. It
ends where a barrier must see all documents. Its folder is called after a hash of everything that decides its content,
so work that still fits is found again after the recipe changed, and work that does not is never taken for it:

    work/pass-0-KEY/TASK/       documents.parquet ledger.parquet index.arrow features-STEP.arrow task.json
    work/pass-0-KEY/STEP-KEY/   what that barrier decided: TASK.arrow, report/, done.json

A second hash leaves out thresholds: where it fits an earlier pass, stored scores are judged anew and no text is read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.core.config import as_dict
from puna.data.sources.task import SourceConfig, Task
from puna.data.steps.registry import STEPS, kind_of
from puna.data.steps.step import Barrier, Filter, StepConfig

FORMAT = "puna-curation/1"


@dataclass(frozen=True)
class NamedStep:
    """A step of the recipe.

    Attributes:
        number: Its place in the recipe, from 1.
        name: `02-minhash`.
        label: Its kind, with the number only where the recipe has the kind twice: prefix of its scores.
        config: Its config.
    """

    number: int
    name: str
    label: str
    config: StepConfig

    @property
    def kind(self) -> str:
        """Key in the table of steps."""
        return kind_of(self.config)


@dataclass(frozen=True)
class Pass:
    """One pass over the text.

    Attributes:
        index: From 0.
        steps: Filters and edits, in order.
        barriers: What decides after it; none in the last pass, which writes the corpus.
        key: Hash of everything that decides what its tasks write.
        scores_key: The same without thresholds; empty where nothing can be judged anew.
        decision_keys: For each barrier, hash of everything that decides its answer.
    """

    index: int
    steps: tuple[NamedStep, ...]
    barriers: tuple[NamedStep, ...]
    key: str
    scores_key: str
    decision_keys: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of its folder in `work/`."""
        return f"pass-{self.index}-{self.key}"

    def decision_folder(self, place: int) -> str:
        """Name of a barrier's folder in the pass's folder."""
        return f"{self.barriers[place].name}-{self.decision_keys[place]}"


def name_steps(configs: Sequence[StepConfig]) -> list[NamedStep]:
    """The steps with their names."""
    often = Counter(kind_of(config) for config in configs)
    return [
        NamedStep(number, f"{number:02d}-{kind}", kind if often[kind] == 1 else f"{number:02d}-{kind}", config)
        for number, config in enumerate(configs, start=1)
        for kind in [kind_of(config)]
    ]


def cut(
    configs: Sequence[StepConfig],
    *,
    source_key: str,
    keep_all: bool,
    samples: int,
    counted: Mapping[str, Any] | None = None,
) -> list[Pass]:
    """Cut a recipe into passes.

    Args:
        configs: The recipe's steps.
        source_key: Hash of what is read.
        keep_all: Whether texts of dropped documents stay.
        samples: How many of them stay for each reason otherwise.
        counted: How tokens are counted, None where they are not.
    """
    groups: list[tuple[list[NamedStep], list[NamedStep]]] = [([], [])]
    for step in name_steps(configs):
        steps, barriers = groups[-1]
        implementation = STEPS[step.kind]
        if isinstance(implementation, Barrier):
            if barriers and STEPS[barriers[-1].kind].cuts:  # type: ignore[union-attr]
                groups.append(([], [step]))
            else:
                barriers.append(step)
        elif barriers:
            groups.append(([step], []))
        else:
            steps.append(step)
    if groups[-1][1]:
        groups.append(([], []))
    passes: list[Pass] = []
    before: Any = [FORMAT, source_key, keep_all or samples, *([dict(counted)] if counted else [])]
    for index, (steps, barriers) in enumerate(groups):
        features = [[b.name, _without(b, "judged_by")] for b in barriers]
        key = digest([before, [[s.name, as_dict(s.config)] for s in steps], features])
        scores = [before, [[s.name, _without(s, "thresholds")] for s in steps], features]
        decided, keys = key, []
        for barrier in barriers:
            decided = digest([decided, barrier.name, as_dict(barrier.config)])
            keys.append(decided)
        # only the first pass: what a later one is given depends on what was kept before it
        reusable = digest(scores) if keep_all and barriers and index == 0 else ""
        passes.append(Pass(index, tuple(steps), tuple(barriers), key, reusable, tuple(keys)))
        before = decided
    return passes


def _without(step: NamedStep, which: str) -> dict[str, Any]:
    """The step's config without what can change while stored work stays valid."""
    values = as_dict(step.config)
    implementation = STEPS[step.kind]
    if which == "thresholds":
        free = implementation.thresholds if isinstance(implementation, Filter) else ()
    else:
        free = implementation.judged_by if isinstance(implementation, Barrier) else ()
    changed = {
        language: {key: value for key, value in overrides.items() if key not in free}
        for language, overrides in values.pop("by_language").items()
    }
    return {key: value for key, value in values.items() if key not in free} | {
        "by_language": {language: overrides for language, overrides in changed.items() if overrides}
    }


def source_key(sources: Sequence[SourceConfig], tasks: Mapping[str, Sequence[Task]]) -> str:
    """Hash of what is read: settings and lists of files with sizes, but not where they lie."""
    values = [as_dict(source) for source in sources]
    for value in values:
        value.pop("path", None)
    return digest([values, {name: [(t.parts, t.n_bytes) for t in mine] for name, mine in tasks.items()}])


def digest(value: Any) -> str:
    """Twelve hexadecimal digits over JSON values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
