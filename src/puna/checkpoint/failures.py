"""When a run fails again after loading the same checkpoint, that may be the reason, though its checksums hold.

Memory that had flipped bits before it was saved gives a sealed checkpoint of a broken model; loading it again and again
ends the same way each time. So failures are counted, by checkpoint and settings; from the second one on an older
checkpoint is used, and the suspect is kept aside. A kill or a polite stop is no failure, other settings begin a new
count, and a newer checkpoint ends it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import CorruptError, MissingError
from puna.core.files import read_json, write_json

FILE = "failures.json"
LIMIT = 2


@dataclass(frozen=True)
class Failures:
    """How often a run failed after loading one checkpoint.

    Attributes:
        step: The checkpoint's.
        settings: What the run was asked to do, as a fingerprint.
        count: Failures.
        reason: Of the last one.
    """

    step: int = -1
    settings: str = ""
    count: int = 0
    reason: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Failures":
        """The count of a `checkpoints/` folder; an unreadable file counts nothing."""
        try:
            values: Any = read_json(folder / FILE)
            return cls(**values)
        except (MissingError, CorruptError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Keep the count."""
        write_json(folder / FILE, asdict(self))

    def plus(self, step: int, settings: str, reason: str) -> "Failures":
        """The count after one more failure."""
        same = (self.step, self.settings) == (step, settings)
        return Failures(step, settings, self.count + 1 if same else 1, reason)

    def are_too_many(self, step: int, settings: str) -> bool:
        """Whether this checkpoint shall not be loaded again with these settings."""
        return (self.step, self.settings) == (step, settings) and self.count >= LIMIT
