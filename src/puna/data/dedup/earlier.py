"""An index of earlier data: what a corpus keeps of its features, so that later data can be compared with it.

A step with `save_index` leaves, for each part, the features and addresses of the documents that stay in
`CORPUS/reports/STEP/index/`. A later step of the same kind reads them through `against`, a corpus or a folder of
several. Nothing is hashed again, and the texts need not be there any more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from puna.core.config import Config
from puna.core.errors import MissingError, UsageError
from puna.core.files import read_json, write_json
from puna.data.dedup.places import Places
from puna.data.dedup.twins import Choice
from puna.data.documents import ArrowWriter, read_arrow
from puna.data.steps.step import Part

_MANIFEST = "index.json"


def parameters(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """The settings that make two sets of features comparable."""
    return {name: getattr(config, name) for name in names}


def save_index(
    folder: Path, parts: Sequence[Part], choice: Choice, places: Places, settings: Mapping[str, Any]
) -> None:
    """Keep the features of what stays.

    Args:
        folder: Where to.
        parts: The parts of the corpus.
        choice: What stays.
        places: Numbers of the documents.
        settings: From `parameters`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts, start=places.n_earlier):
        stays = choice.keep[places.starts[number] : places.starts[number + 1]] & part.alive
        rows = pa.array(np.flatnonzero(stays))
        for kind, path in (("features", part.features), ("index", part.index)):
            with ArrowWriter(folder / f"{part.name}.{kind}.arrow") as out:
                out.add(read_arrow(path).take(rows))
    write_json(folder / _MANIFEST, {"settings": dict(settings), "parts": [part.name for part in parts]})


def open_indexes(path: Path | None, kind: str, settings: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """Feature and index files of all earlier data under a folder.

    Args:
        path: A corpus or a folder of corpora; None for no earlier data.
        kind: Which step's index.
        settings: What the features must have in common.

    Raises:
        MissingError: There is none.
        UsageError: One was made with other settings.
    """
    if path is None:
        return []
    manifests = sorted(path.rglob(_MANIFEST)) if path.is_dir() else []
    found: list[tuple[Path, Path]] = []
    for manifest in manifests:
        record = read_json(manifest)
        theirs = record["settings"]
        if theirs.get("kind") != kind:
            continue
        different = [
            f"{key} is {theirs.get(key)!r}, here {value!r}"
            for key, value in settings.items()
            if theirs.get(key) != value
        ]
        if different:
            raise UsageError(f"{manifest.parent} was made with other settings: {'; '.join(different)}. Use the same.")
        for name in record["parts"]:
            features, index = (manifest.parent / f"{name}.{what}.arrow" for what in ("features", "index"))
            found.append((features, index))
    if not found:
        raise MissingError(f"{path} has no {kind} index. Make that corpus with save_index = true in its {kind} step.")
    return found
