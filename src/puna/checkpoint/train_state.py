"""What a run needs beside its tensors to go on bit by bit: where it stands, in JSON, and the random generators.

JSON keeps every float exactly. Nothing is pickled, so reading a checkpoint runs no code.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from puna.core.errors import CorruptError


@dataclass
class TrainState:
    """The state of a run between two steps.

    Attributes:
        step: Finished optimizer steps.
        tokens: Tokens seen by them.
        batches: Where the batches stand, as their `state()` gave it.
        window: Sums of the steps since the last log line, so that lines do not depend on restarts.
        best: Lowest evaluation loss so far and its step.
    """

    step: int = 0
    tokens: int = 0
    batches: dict[str, Any] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainState":
        """What `values` gave.

        Raises:
            CorruptError: It is something else.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise CorruptError(f"these are not the values of a training state: {error}") from error


def random_states() -> dict[str, Tensor]:
    """The states of PyTorch's random generators, the only global ones that training may draw from."""
    states = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"rng/cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Set the generators of the devices that are here to what `random_states` gave."""
    for name, state in states.items():
        device = name.removeprefix("rng/")
        if device == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(device.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)
