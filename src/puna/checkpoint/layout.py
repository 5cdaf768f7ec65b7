"""`layout.json` of a checkpoint: which box of which tensor lies in which file. DCP's metadata, but as JSON.

    {"version": 1, "tensors": {NAME: {"dtype": "float32", "shape": [4096, 4096], "chunks": [
        {"offsets": [0, 0], "sizes": [2048, 4096], "file": FILE, "key": NAME_IN_FILE}, ...]}}}

PyTorch's own metadata file is a pickle, which runs code when it is read; this is not. `metadata()` gives the object
that DCP's planners work on, so resharding is theirs. A folder without the file (any Hugging Face model) is read
through its index.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from puna.core.errors import CorruptError
from puna.core.files import atomic_open, read_json

FILE = "layout.json"
STATE = "train_state/"  # names of what is not the model begin so
_VERSION = 1


@dataclass(frozen=True)
class Place:
    """Where a box of a tensor lies.

    Attributes:
        offsets: Where the box begins in the tensor.
        sizes: Its extent.
        file: Relative to the checkpoint.
        key: Its name in that file.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    key: str


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint.

    Attributes:
        dtype: Of its values.
        shape: Of the whole.
        places: Its boxes; together they are the whole.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    places: tuple[Place, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it lies in one piece."""
        return len(self.places) == 1 and self.places[0].sizes == self.shape


@dataclass(frozen=True)
class Layout:
    """All tensors of a checkpoint by name."""

    tensors: Mapping[str, Stored] = field(default_factory=dict)

    def files(self, names: Iterable[str] | None = None) -> list[str]:
        """The files that hold the tensors of these names, or of all."""
        chosen = self.tensors if names is None else names
        return sorted({place.file for name in chosen for place in self.tensors[name].places})

    def metadata(self) -> Metadata:
        """The same for DCP's planners; its `storage_data` leads from a box to its `Place`."""
        tensors, places = {}, {}
        for name, stored in self.tensors.items():
            boxes = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in stored.places]
            tensors[name] = TensorStorageMetadata(TensorProperties(dtype=stored.dtype), torch.Size(stored.shape), boxes)
            places |= {MetadataIndex(name, p.offsets): p for p in stored.places}
        return Metadata(tensors, storage_data=places)

    def write(self, folder: Path) -> None:
        """Write the file, one line a tensor."""
        with atomic_open(folder / FILE) as file:
            file.write(f'{{"version": {_VERSION}, "tensors": {{\n')
            lines = (f"{json.dumps(name)}: {json.dumps(_to_json(stored))}" for name, stored in self.tensors.items())
            file.write(",\n".join(lines))
            file.write("\n}}\n")

    @classmethod
    def read(cls, folder: Path) -> "Layout":
        """Read the file.

        Raises:
            MissingError: The folder has none.
            CorruptError: It is of another version, or no layout.
        """
        path = folder / FILE
        values = read_json(path)
        version = values.get("version") if isinstance(values, dict) else None
        if version != _VERSION:
            raise CorruptError(f"{path} has version {version}, this program reads version {_VERSION}")
        try:
            layout = cls({name: _from_json(entry) for name, entry in values["tensors"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{path} is not a layout of tensors: {error!r}") from error
        for name in layout.files():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise CorruptError(f"{path} names the file {name!r}; allowed are files of its own folder")
        return layout


def _to_json(stored: Stored) -> dict[str, Any]:
    chunks = [{"offsets": list(p.offsets), "sizes": list(p.sizes), "file": p.file, "key": p.key} for p in stored.places]
    return {"dtype": str(stored.dtype).removeprefix("torch."), "shape": list(stored.shape), "chunks": chunks}


def _from_json(entry: Mapping[str, Any]) -> Stored:
    dtype = getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype {entry['dtype']!r}")
    places = tuple(Place(tuple(c["offsets"]), tuple(c["sizes"]), c["file"], c["key"]) for c in entry["chunks"])
    return Stored(dtype, tuple(entry["shape"]), places)
