"""The tensors of a model folder by their logical names, wherever they lie: one file, shards with an index, or pieces.

A folder has `model.safetensors`, or `model-00001-of-00003.safetensors` ... beside `model.safetensors.index.json`, or
a `layout.json` that says which box of which tensor lies where (`layout.py`). Tensors are read one by one or rows at a
time, never all at once, so loading a model needs its own size and no more. Nothing is unpickled.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from puna.checkpoint import layout
from puna.checkpoint.layout import Layout, Place, Stored
from puna.checkpoint.safetensors_file import Entry, SafetensorsFile, Written, write_file
from puna.core.errors import CorruptError, MissingError
from puna.core.files import read_json, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BLOCK_BYTES = 32 << 20  # of the rows that are in memory at once when a tensor is streamed
OPEN_FILES = 256  # a checkpoint of thousands of ranks has more than a process may have open


class TensorReader:
    """The tensors of a folder, by name; a context manager that holds the files open.

    Args:
        folder: The model or checkpoint.
        tensors: Where its tensors lie.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Stored]) -> None:
        self.folder, self._tensors = folder, tensors
        self._files: dict[str, SafetensorsFile] = {}

    @classmethod
    def of_folder(cls, folder: Path, *, below: str = "", only: Container[str] | None = None) -> "TensorReader":
        """The tensors of a folder.

        Args:
            folder: A Hugging Face folder or a checkpoint with a layout.
            below: Of a checkpoint, read those whose names begin so, under the rest of their names; empty: the weights.
            only: Of a checkpoint, look at these tensors alone; None: all.

        Raises:
            MissingError: A file is not there.
            CorruptError: A file is cut short or not safetensors, or lacks a tensor that the index names.
        """
        if (folder / layout.FILE).is_file():
            tensors = Layout.read(folder).tensors
            if below:
                chosen = {n.removeprefix(below): t for n, t in tensors.items() if n.startswith(below)}
            else:
                chosen = {n: t for n, t in tensors.items() if not n.startswith(layout.STATE)}
            if only is not None:
                chosen = {name: stored for name, stored in chosen.items() if name in only}
            return cls(folder, chosen)._opened()
        reader = cls(folder, {})
        try:
            reader._tensors = dict(reader._indexed())
        except BaseException:
            reader.close()
            raise
        return reader

    def _indexed(self) -> Iterator[tuple[str, Stored]]:
        """Tensors of a folder without a layout, from its index and its headers."""
        if (self.folder / INDEX).is_file():
            weight_map = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CorruptError(f"{self.folder / INDEX} has no weight_map")
            for name, file in weight_map.items():
                if Path(file).name != file:
                    where = self.folder / INDEX
                    raise CorruptError(f"{where} names the file {file!r}; allowed are files of its own folder")
                if name not in self._open(file).entries:
                    path = self.folder / file
                    raise CorruptError(f"{path} lacks the tensor {name}, though the index says it is there")
        elif (self.folder / WEIGHTS).is_file():
            weight_map = dict.fromkeys(self._open(WEIGHTS).entries, WEIGHTS)
        else:
            pickled = sorted(p.name for p in self.folder.glob("pytorch_model*.bin"))
            hint = (
                f" It has {pickled[0]}: pickled weights are not read, convert them to safetensors." if pickled else ""
            )
            raise MissingError(f"{self.folder} has neither {WEIGHTS} nor {INDEX}.{hint}")
        for name, file in weight_map.items():
            entry = self._open(file).entries[name]
            yield name, Stored(entry.dtype, entry.shape, (Place((0,) * len(entry.shape), entry.shape, file, name),))

    def _opened(self) -> "TensorReader":
        """Compare every file with the layout."""
        by_file = sorted(
            ((place, name, stored) for name, stored in self._tensors.items() for place in stored.places),
            key=lambda item: item[0].file,
        )
        try:
            for place, name, stored in by_file:
                entry = self._open(place.file).entries.get(place.key)
                if entry is None or entry.shape != place.sizes or entry.dtype != stored.dtype:
                    path = self.folder / place.file
                    raise CorruptError(f"{path} does not hold {place.key} as {layout.FILE} says ({name})")
        except BaseException:
            self.close()
            raise
        return self

    def _open(self, file: str) -> SafetensorsFile:
        """The file, open; of very many the one that was used longest ago is closed for it."""
        found = self._files.pop(file, None) or SafetensorsFile(self.folder / file)
        if len(self._files) >= OPEN_FILES:
            self._files.pop(next(iter(self._files))).close()
        self._files[file] = found
        return found

    @property
    def layout(self) -> Layout:
        """Where every tensor lies."""
        return Layout(self._tensors)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def path(self, name: str) -> Path:
        """The file that holds a tensor, or its first piece."""
        return self.folder / self._tensors[name].places[0].file

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of its values."""
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        """A whole tensor, in memory of its own."""
        stored = self._tensors[name]
        if not stored.shape or not prod(stored.shape):
            return self._open(stored.places[0].file).read(stored.places[0].key)
        return self.rows(name, 0, stored.shape[0])

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of a tensor (values of a vector), put together from its pieces."""
        stored = self._tensors[name]
        out = torch.empty((last - first, *stored.shape[1:]), dtype=stored.dtype)
        for place in stored.places:
            self._fill(out, place, first)
        return out

    def blocks(self, name: str) -> Iterator[Tensor]:
        """A tensor in blocks of rows, each of `BLOCK_BYTES` at most (or one row)."""
        shape = self.shape(name)
        step = max(1, BLOCK_BYTES // max(1, prod(shape[1:]) * self.dtype(name).itemsize))
        for first in range(0, shape[0], step):
            yield self.rows(name, first, min(first + step, shape[0]))

    def forget(self) -> None:
        """Let the kernel drop what it kept of the files."""
        for file in self._files.values():
            file.forget()

    def _fill(self, out: Tensor, place: Place, first: int) -> None:
        """Copy what a piece has of the rows from `first` on."""
        begin = max(first, place.offsets[0])
        end = min(first + out.shape[0], place.offsets[0] + place.sizes[0])
        if begin >= end:
            return
        width, file = prod(place.sizes[1:]), self._open(place.file)
        target = out[begin - first : end - first]
        for dim, (offset, size) in enumerate(zip(place.offsets[1:], place.sizes[1:], strict=True), start=1):
            target = target.narrow(dim, offset, size)
        start = (begin - place.offsets[0]) * width
        if target.is_contiguous():
            file.read_into(place.key, target, start=start)
        else:
            rows = torch.empty(tuple(target.shape), dtype=target.dtype)
            file.read_into(place.key, rows, start=start)
            target.copy_(rows)


def write_sharded(
    folder: Path, entries: Sequence[Entry], blocks: Callable[[str], Iterable[Tensor]], *, max_shard_bytes: int
) -> dict[str, Written]:
    """Write tensors as `model.safetensors`, or as shards with an index when one file would be larger than the limit.

    Args:
        folder: Where; it exists.
        entries: The tensors in order.
        blocks: The values of one by name, in CPU tensors one after the other; not all have to be in memory at once.
        max_shard_bytes: Limit of one file; a single larger tensor gets a file of its own.

    Returns:
        The checksums of the files.

    Raises:
        PunaError: The disk is full.
    """
    files = deal_out(entries, max_shard_bytes=max_shard_bytes)
    written = {
        name: write_file(folder / name, shard, (block for entry in shard for block in blocks(entry.key)))
        for name, shard in files.items()
    }
    if len(files) > 1:
        write_index(folder, {e.key: name for name, shard in files.items() for e in shard}, entries)
    return written


def deal_out(entries: Sequence[Entry], *, max_shard_bytes: int) -> dict[str, list[Entry]]:
    """Which tensors lie in which weights file of a Hugging Face folder, in order.

    Args:
        entries: The tensors in order.
        max_shard_bytes: Limit of one file; a single larger tensor gets a file of its own.
    """
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return dict(zip(names, shards, strict=True))


def write_index(folder: Path, weight_map: Mapping[str, str], entries: Iterable[Entry]) -> None:
    """Write the index of shards, as every reader of Hugging Face folders expects it."""
    entries = list(entries)
    metadata = {
        "total_parameters": sum(prod(entry.shape) for entry in entries),
        "total_size": sum(entry.nbytes for entry in entries),
    }
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(weight_map)})


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
