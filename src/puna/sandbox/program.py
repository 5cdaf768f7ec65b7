"""What is run, what it is held against, and what came of it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from puna.core.config import Config

Outcome = Literal["passed", "failed", "timeout", "memory", "crashed", "refused"]
"""`failed`: a test does not hold, or the program raised. `crashed`: its process ended before the tests did. `refused`:
there is no verdict on the program, for a reason that is not the program's."""


class SandboxConfig(Config):
    """What a program may use, and how much protection there must be."""

    workers: int = Field(default=0, ge=0)
    """Programs run at once; 0 takes one a usable core."""
    cpu_seconds: int = Field(default=5, ge=1)
    """Processor time of a program with all its tests; it does not depend on how busy the machine is."""
    wall_seconds: float = Field(default=20.0, gt=0)
    """Time by the clock, for programs that wait."""
    memory_mib: int = Field(default=256, ge=64)
    """Address space of a program, Python itself (about 40 MiB) included."""
    file_mib: int = Field(default=16, ge=1)
    """Largest file, and all files together where the scratch folder lies in memory."""
    output_kib: int = Field(default=64, ge=0)
    """Output that is kept; the rest is read and thrown away."""
    processes: int = Field(default=0, ge=0)
    """Processes that a program may start; each has its own limits of time and memory. Threads are free up to 64."""
    protection: Literal["full", "available"] = "full"
    """`full` refuses to run programs where files, network, processes or the user are not protected; `available` runs
    them with what there is, and says what is lacking."""


@dataclass(frozen=True, slots=True)
class FunctionTests:
    """Tests in Python, as in HumanEval and MBPP.

    Attributes:
        source: Code that asserts. It sees the program's public names.
        entry_point: A name of the program; when `source` defines `check`, it is called with it.
    """

    source: str
    entry_point: str = ""


@dataclass(frozen=True, slots=True)
class ScriptTest:
    """One case of a program that reads standard input and prints.

    Attributes:
        stdin: What it reads.
        stdout: What it must print; white space at the ends of lines and empty lines at the end do not count.
    """

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Program:
    """A program and what it is held against.

    Attributes:
        source: Python.
        tests: Functions that are called, or one run of a script.
    """

    source: str
    tests: FunctionTests | ScriptTest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a program.

    Attributes:
        outcome: In one word.
        reason: More of it; empty when it passed.
        output: The first that it printed.
        seconds: From its start to its verdict.
    """

    outcome: Outcome
    reason: str = ""
    output: str = ""
    seconds: float = 0.0

    @property
    def correct(self) -> bool:
        """Whether it passed."""
        return self.outcome == "passed"
