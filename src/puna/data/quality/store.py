"""Classifiers on disk. A folder holds `classifier.json` and either the linear weights or our own `model/`."""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from puna.core.errors import CorruptError, MissingError, UsageError
from puna.core.files import atomic_open, read_json, write_json
from puna.data.quality.calibrate import Calibration
from puna.data.quality.linear import LinearClassifier, LinearConfig

CARD = "classifier.json"
_WEIGHTS = "weights.safetensors"
FORMAT = "puna-classifier/1"


class Classifier(Protocol):
    """Texts to probabilities."""

    def log_odds(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Not calibrated."""
        ...

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probability that a text is positive, calibrated."""
        ...


def save_card(
    folder: Path, *, kind: str, head: str, calibration: Calibration, figures: Mapping[str, Any], **more: Any
) -> None:
    """Write `classifier.json`."""
    record = {
        "format": FORMAT,
        "kind": kind,
        "head": head,
        "calibration": {"slope": calibration.slope, "offset": calibration.offset},
        "figures": dict(figures),
        **more,
    }
    write_json(folder / CARD, record)


def read_card(folder: Path) -> dict[str, Any]:
    """Read `classifier.json`.

    Raises:
        MissingError: The folder has none.
        CorruptError: It is something else.
    """
    if not (folder / CARD).is_file():
        raise MissingError(f"{folder} is no classifier: it has no {CARD}. Make one with: puna quality train")
    record = read_json(folder / CARD)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CorruptError(f"{folder / CARD} is not the card of a classifier ({FORMAT})")
    return record


def save_linear(folder: Path, classifier: LinearClassifier, *, head: str, figures: Mapping[str, Any]) -> None:
    """Write a linear classifier; half precision keeps every figure to three digits."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(folder / _WEIGHTS, "wb") as file:
        file.write(save({"weights": classifier.weights.astype(np.float16)}))
    save_card(
        folder,
        kind="linear",
        head=head,
        calibration=classifier.calibration,
        figures=figures,
        bias=classifier.bias,
        config=classifier.config.model_dump(),
    )


@functools.lru_cache(maxsize=8)
def open_classifier(folder: Path, opener: str = "") -> Classifier:
    """The classifier in a folder; opened once a process.

    Args:
        folder: From `puna quality train`.
        opener: `module:function` that opens a transformer, which this room cannot.

    Raises:
        MissingError: There is none.
        UsageError: It is a transformer and nobody can open it here.
    """
    card = read_card(folder)
    if card["kind"] == "linear":
        calibration = Calibration(**card["calibration"])
        weights = load_file(folder / _WEIGHTS)["weights"].astype(np.float32)
        return LinearClassifier(weights, float(card["bias"]), LinearConfig(**card["config"]), calibration)
    if not opener:
        raise UsageError(
            f"{folder} is a {card['kind']} classifier; open it through `puna curate` or `puna quality apply`"
        )
    module, _, function = opener.partition(":")
    return getattr(importlib.import_module(module), function)(folder)
