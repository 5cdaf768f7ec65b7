"""What post-training asks of the other processes of a run when it deals out batches without the training loop.

With shards, a forward pass gathers parameters, so all processes make the same number of them: at each turn everybody
runs a batch, and one that has none left runs the last again and drops what it gives. Results are added up.
"""

from typing import Any, Protocol

from torch import Tensor


class DataRanks(Protocol):
    """What is asked of the other processes of a run."""

    config: Any

    @property
    def data_rank(self) -> int:
        """Which share this process has, of `config.data_ranks`."""
        ...

    @property
    def processes(self) -> int:
        """How many there are."""
        ...

    @property
    def speaks(self) -> bool:
        """Whether this process writes the run folder."""
        ...

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        ...
