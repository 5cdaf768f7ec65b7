"""Names of checkpoints, and which of them are kept."""

import re
from collections.abc import Collection
from dataclasses import dataclass

_NAME = re.compile(r"step-(\d{8,})")


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None if it is not one."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def name_of(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Retention:
    """What a tier keeps.

    Attributes:
        last: Newest checkpoints, at least 1.
        every: Also each whose step is a multiple of this; 0 keeps none for that.
    """

    last: int = 2
    every: int = 0

    def __post_init__(self) -> None:
        assert self.last >= 1, f"last is {self.last}"

    def kept(self, steps: Collection[int]) -> set[int]:
        """Those of the steps that are kept."""
        ordered = sorted(steps)
        return set(ordered[-self.last :]) | {s for s in ordered if self.every and s % self.every == 0}
