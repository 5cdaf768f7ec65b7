"""Tensors in safetensors files: one file, or shards with an index; read one by one, never all at once.

A folder has `model.safetensors`, or `model-00001-of-00003.safetensors` ... beside `model.safetensors.index.json`. Files
are mapped into memory: reading a tensor copies only that tensor, so loading a model needs its own size and no more.
Nothing is unpickled.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.core.errors import CorruptError, MissingError, PunaError
from puna.core.files import read_json, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorReader:
    """The tensors of a folder, by name; a context manager that holds the files open.

    Args:
        files: For each safetensors file the tensors to expect in it, or None for all that are there.

    Raises:
        MissingError: A file is not there.
        CorruptError: A file is cut short or not safetensors, or lacks a tensor that the index names.
    """

    def __init__(self, files: Mapping[Path, Iterable[str] | None]) -> None:
        self._stack = ExitStack()
        self._where: dict[str, tuple[Path, Any]] = {}
        try:
            for path, expected in files.items():
                self._open(path, expected)
        except BaseException:
            self._stack.close()
            raise

    @classmethod
    def of_folder(cls, folder: Path) -> "TensorReader":
        """The model tensors of a Hugging Face folder."""
        if (folder / INDEX).is_file():
            weight_map = read_json(folder / INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CorruptError(f"{folder / INDEX} has no weight_map")
            files: dict[Path, list[str]] = {}
            for name, file in weight_map.items():
                if Path(file).name != file:
                    raise CorruptError(f"{folder / INDEX} names the file {file!r}; allowed are files of its own folder")
                files.setdefault(folder / file, []).append(name)
            return cls(files)
        if (folder / WEIGHTS).is_file():
            return cls({folder / WEIGHTS: None})
        pickled = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
        hint = f" It has {pickled[0]}: pickled weights are not read, convert them to safetensors." if pickled else ""
        raise MissingError(f"{folder} has neither {WEIGHTS} nor {INDEX}.{hint}")

    def _open(self, path: Path, expected: Iterable[str] | None) -> None:
        if not path.is_file():
            raise MissingError(
                f"{path} is not there, though the index names it. Restore it, or fetch the folder again."
            )
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CorruptError(
                f"{path} is not a whole safetensors file: {error}. Restore it or make it again."
            ) from error
        present = set(file.keys())
        for name in present if expected is None else expected:
            if name not in present:
                raise CorruptError(f"{path} lacks the tensor {name}, though the index says it is there")
            self._where[name] = (path, file)

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._where[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header."""
        return tuple(self._where[name][1].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """The tensor, backed by the mapped file: copy it before the reader closes."""
        path, file = self._where[name]
        try:
            return file.get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise CorruptError(f"{path}: tensor {name} cannot be read: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file and flush it to disk. The caller makes it appear atomically.

    Raises:
        PunaError: The disk is full or the folder cannot be written.
    """
    try:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (SafetensorError, OSError) as error:
        raise PunaError(f"cannot write {path}: {error}. Free space or choose another folder.") from error


def write_sharded(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int) -> None:
    """Write tensors as `model.safetensors`, or as shards with an index when one file would be larger than the limit.

    Args:
        folder: Where; it exists.
        tensors: Names and tensors in order. At most one shard of them is held.
        max_shard_bytes: Limit of one file; a single larger tensor gets a file of its own.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total_bytes = total_parameters = 0

    def flush() -> None:
        nonlocal held, held_bytes
        write_tensors(folder / f"shard-{len(shards)}", held)
        shards.append(list(held))
        held, held_bytes = {}, 0

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_shard_bytes:
            flush()
        held[name] = tensor
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
        total_parameters += tensor.numel()
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    metadata = {"total_parameters": total_parameters, "total_size": total_bytes}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
