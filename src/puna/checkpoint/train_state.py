"""What a run needs beside its weights to go on bit by bit: `train_state/` inside a checkpoint.

    train_state/
        tensors.safetensors    optimizer moments, fp32 master weights if the model is narrower, random states
        state.json             step, tokens, where the batches stand, the open log window, best evaluation

Tensors and JSON only: nothing is pickled, so reading a checkpoint runs no code. JSON keeps every float exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.checkpoint import huggingface
from puna.checkpoint.tensors import TensorReader, write_tensors
from puna.core.errors import CorruptError
from puna.core.files import read_json, write_json
from puna.model.transformer import Transformer

FOLDER = "train_state"
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_VERSION = 1


@dataclass
class TrainState:
    """The state of a run between two steps.

    Attributes:
        step: Finished optimizer steps.
        tokens: Tokens seen by them.
        batches: Where the batches stand, as their `state()` gave it.
        window: Sums of the steps since the last log line, so that lines do not depend on restarts.
        best: Lowest evaluation loss so far and its step.
        tensors: Optimizer moments (`optimizer/NAME/KEY`), masters (`master/NAME`), random states (`rng/DEVICE`),
            weights of modules that the checkpoint folder does not hold (`extra/NAME`).
    """

    step: int = 0
    tokens: int = 0
    batches: dict[str, Any] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, under the rest of their names."""
        start = prefix + "/"
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())


def extras(model: Transformer) -> dict[str, Tensor]:
    """Weights of a model that a checkpoint folder has no place for: those of modules that were added to it."""
    own = {ours for ours, _ in huggingface.tensor_map(model.config)}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in own}


@torch.no_grad()
def restore_extras(model: Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Set what `extras` gave.

    Raises:
        CorruptError: It belongs to another model.
    """
    own = extras(model)
    if own.keys() != tensors.keys():
        raise CorruptError(f"the training state does not fit: {sorted(own.keys() ^ tensors.keys())[0]}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def write(folder: Path, state: TrainState) -> None:
    """Write `train_state/` into a checkpoint folder that is being made."""
    target = folder / FOLDER
    target.mkdir()
    write_tensors(target / _TENSORS, {name: t.cpu() for name, t in state.tensors.items()})
    values = {name: getattr(state, name) for name in ("step", "tokens", "batches", "window", "best")}
    write_json(target / _STATE, {"version": _VERSION, **values})


def read(folder: Path) -> TrainState:
    """Read `train_state/` of a checkpoint.

    Raises:
        MissingError: The folder holds a model only.
        CorruptError: It was written by another version, or is damaged.
    """
    path = folder / FOLDER / _STATE
    values = read_json(path)
    version = values.pop("version", None) if isinstance(values, dict) else None
    if version != _VERSION:
        raise CorruptError(f"{path} has version {version}, this program reads version {_VERSION}")
    try:
        state = TrainState(**values)
    except TypeError as error:
        raise CorruptError(f"{path} is not a training state: {error}") from error
    with TensorReader({folder / FOLDER / _TENSORS: None}) as reader:
        state.tensors = {name: reader.read(name).clone() for name in reader}
    return state


def random_states() -> dict[str, Tensor]:
    """The states of PyTorch's random generators, the only global ones that training may draw from."""
    states = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"rng/cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Set the generators of the devices that are here to what `random_states` gave (names without `rng/`)."""
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(name.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, name)
