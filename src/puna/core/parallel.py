"""How a run is spread over processes, as numbers: the five degrees and their product. No torch here.

The training loop builds its device mesh from this, the planner searches over it and writes it into a recipe, the launch
files take their size from it. A rank holds one slice of everything: of the layers (`pp`), of each matrix (`tp`), of the
sequence (`cp`), and of the weights, gradients and optimizer states (`dp_shard`); `dp_replicate` copies of all that read
other batches (HSDP). Data-parallel ranks are dp_replicate x dp_shard; sharding runs over dp_shard x cp.
"""

import math
from dataclasses import dataclass

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.errors import ConfigError

DEGREES = ("dp_replicate", "dp_shard", "cp", "tp", "pp")
"""The degrees, in the order in which they are read."""


@dataclass(frozen=True)
class Degrees:
    """The five degrees with nothing left open.

    Attributes:
        dp_replicate: Copies of the sharded model.
        dp_shard: Ranks that share weights, gradients and optimizer states.
        cp: Ranks that share a sequence.
        tp: Ranks that share a matrix.
        pp: Stages that share the layers.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def data_parallel(self) -> int:
        """Ranks that read different batches."""
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        """Like `dp_shard 8 x tp 2`; `one process` when all are 1."""
        parts = [f"{name} {getattr(self, name)}" for name in DEGREES if getattr(self, name) > 1]
        return " x ".join(parts) or "one process"


class ParallelConfig(Config):
    """How the run is spread over processes. The default is fully sharded data parallel over all there are."""

    dp_shard: int = Field(default=-1, ge=-1)
    """Ranks that share weights, gradients and optimizer states (FSDP); -1 means what is left."""
    dp_replicate: int = Field(default=1, ge=-1)
    """Copies of the sharded model that read other batches (HSDP); -1 means what is left."""
    tp: int = Field(default=1, ge=-1)
    """Ranks that share every matrix, and the sequence between them; keep it inside a node. -1 means what is left."""
    pp: int = Field(default=1, ge=-1)
    """Pipeline stages that share the layers; -1 means what is left."""
    cp: int = Field(default=1, ge=-1)
    """Ranks that share a sequence (context parallel); -1 means what is left."""

    @model_validator(mode="after")
    def _one_is_left_open(self) -> "ParallelConfig":
        if zeros := [name for name in DEGREES if getattr(self, name) == 0]:
            raise ValueError(f"{' and '.join(zeros)} cannot be 0; 1 switches it off, -1 means what is left")
        if len(open_ones := [name for name in DEGREES if getattr(self, name) == -1]) > 1:
            raise ValueError(f"{' and '.join(open_ones)} are both -1; only one of them can be what is left")
        return self

    def resolve(self, world_size: int) -> Degrees:
        """The degrees on so many processes.

        Args:
            world_size: Processes in all, at least 1.

        Raises:
            ConfigError: The degrees do not fill the world.
        """
        given = {name: getattr(self, name) for name in DEGREES}
        fixed = math.prod(value for value in given.values() if value != -1)
        text = " x ".join(f"{name} {value}" for name, value in given.items() if value > 1) or "1"
        if -1 in given.values():
            name = next(name for name, value in given.items() if value == -1)
            if world_size % fixed:
                raise ConfigError([f"parallel: {text} = {fixed} must divide the {world_size} processes of this run"])
            return Degrees(**{**given, name: world_size // fixed})
        if fixed != world_size:
            raise ConfigError(
                [
                    f"parallel: {text} = {fixed}, but this run has {world_size} processes. Start {fixed} of them, or set "
                    "one degree to -1 (what is left)"
                ]
            )
        return Degrees(**given)
