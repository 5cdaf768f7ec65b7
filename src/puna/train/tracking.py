"""Metrics on TensorBoard and Weights & Biases: a mirror of `metrics.jsonl`, which remains the truth.

A run that is killed and goes on writes into the same tracked run. What was sent is kept in `tracking.json`: for each
kind of record the last step. When a run begins, records of `metrics.jsonl` that were never sent are sent first; steps
that are made again after a kill give the same figures and are not sent twice.

TensorBoard's files lie in `tensorboard/` of the run folder, those of Weights & Biases in `wandb/`. Nothing asks at the
terminal: without a key, `mode = "offline"` writes what `wandb sync` uploads later.
"""

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from puna.core.config import Config
from puna.core.errors import MissingError, need
from puna.core.files import write_json
from puna.core.run_folder import RunFolder

STATE = "tracking.json"
Service = Literal["tensorboard", "wandb"]


class TrackingConfig(Config):
    """Where metrics are shown beside `metrics.jsonl`."""

    to: tuple[Service, ...] = ()
    """`tensorboard`, `wandb`, or both; needs `pip install 'puna[tracking]'`."""
    mode: Literal["online", "offline"] = "online"
    """wandb: send, or write files for `wandb sync`."""
    project: str = "puna"
    """wandb: the project."""
    name: str = ""
    """wandb: the run's name; empty takes the run folder's."""


class Sink(Protocol):
    """One service."""

    def send(self, figures: Mapping[str, float], step: int) -> None:
        """Hand over the figures of a step and see them stored."""
        ...

    def close(self) -> None:
        """End."""
        ...


class TensorBoard:
    """Event files in a folder.

    Args:
        folder: Where they go.

    Raises:
        MissingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        need("tensorboard", extra="tracking")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def send(self, figures: Mapping[str, float], step: int) -> None:
        """Write and flush."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """One run of Weights & Biases.

    Args:
        config: The settings.
        folder: The run folder.
        identity: The run's id there; the same one goes on with it.

    Raises:
        MissingError: The package is not installed, or there is no key.
    """

    def __init__(self, config: TrackingConfig, folder: Path, identity: str) -> None:
        wandb: Any = need("wandb", extra="tracking")
        if config.mode == "online" and not wandb.login(prompt=False):
            raise MissingError(
                "Weights & Biases has no key on this machine. Type: wandb login, or set train.tracking.mode=offline"
            )
        self._run = wandb.init(
            project=config.project,
            name=config.name or folder.resolve().name,
            id=identity,
            dir=str(folder),
            mode=config.mode,
            resume="allow" if config.mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def send(self, figures: Mapping[str, float], step: int) -> None:
        """Hand over to its service."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


class Mirror:
    """Sends the records of a run once.

    Args:
        run: Its `metrics.jsonl` is mirrored.
        sinks: Where to.
    """

    def __init__(self, run: RunFolder, sinks: list[Sink]) -> None:
        self._run, self._sinks = run, sinks
        self._sent: dict[str, int] = read_state(run).get("sent", {})

    def catch_up(self) -> None:
        """Send what the file holds and was never sent."""
        for record in self._run.read_metrics():
            self(record)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Send a record, unless its step was sent before."""
        kind, step = str(record.get("kind", "")), record.get("step")
        if not isinstance(step, int) or step <= self._sent.get(kind, -1):
            return
        figures = {
            f"{kind}/{name}": float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for sink in self._sinks:
            sink.send(figures, step)
        self._sent[kind] = step
        write_json(self._run.path / STATE, {**read_state(self._run), "sent": self._sent})


def read_state(run: RunFolder) -> dict[str, Any]:
    """What was sent so far, and the run's id; empty where nothing was."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((run.path / STATE).read_text(encoding="utf-8"))
    return {}


@contextmanager
def tracked(run: RunFolder, config: TrackingConfig, *, speaks: bool) -> Iterator[None]:
    """Mirror the run's metrics while it trains. `metrics.jsonl` is already cut back to where the run goes on.

    Args:
        run: The run.
        config: Where to.
        speaks: Whether this process is the one that writes.

    Raises:
        MissingError: A package or a key is not there.
    """
    if not (config.to and speaks):
        yield
        return
    state = read_state(run)
    if "id" not in state:
        state["id"] = secrets.token_hex(8)
        write_json(run.path / STATE, state)
    sinks: list[Sink] = []
    try:
        for service in dict.fromkeys(config.to):
            if service == "tensorboard":
                sinks.append(TensorBoard(run.path / "tensorboard"))
            else:
                sinks.append(WeightsAndBiases(config, run.path, state["id"]))
        mirror = Mirror(run, sinks)
        mirror.catch_up()
        run.listeners.append(mirror)
        try:
            yield
        finally:
            run.listeners.remove(mirror)
    finally:
        for sink in sinks:
            sink.close()
