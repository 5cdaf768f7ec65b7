"""One safetensors file, read and written in a stream: bounded memory, checksummed on the way.

    8 bytes: length of the header | header: JSON of names, types, shapes, offsets | the values, one after the other

The `safetensors` package maps a file into memory, where every page that was read counts as used until the kernel
needs it, and writes without a checksum, so a seal has to read everything again. Here values go straight from the file
into the memory that wants them, and the SHA-256 is made beside the writing. What is written opens in every other
reader; what others wrote is checked before it is believed.

Source: the format's description in huggingface/safetensors.
"""

import hashlib
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.core.errors import CorruptError, MissingError, PunaError

assert sys.byteorder == "little", "safetensors are little-endian, and values are copied as they are"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # bytes; the same as the package's
_SLICE = 8 << 20  # bytes of one write and of one step of the checksum
_FLUSH = 64 << 20  # bytes after which the kernel is asked to begin with the disk, so that the end need not wait for all


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        key: Its name.
        dtype: Of its values.
        shape: Its shape.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """What a finished file is.

    Attributes:
        sha256: Hexadecimal.
        bytes: Its size.
    """

    sha256: str
    bytes: int


def write_file(path: Path, entries: Sequence[Entry], values: Iterable[Tensor]) -> Written:
    """Write a file and flush it to disk. The caller makes it appear atomically.

    Args:
        path: Where.
        entries: The tensors, in the order of their values. Wide types first keep every tensor aligned.
        values: CPU tensors whose bytes, one after the other, are the values; an entry may come in several. A tensor
            must not be changed before the next but two is taken.

    Raises:
        PunaError: The disk is full or the folder cannot be written.
    """
    header = _header(entries)
    expected = len(header) + sum(entry.nbytes for entry in entries)
    with ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as flusher:  # one each: a checksum needs its order
        try:
            with path.open("wb", buffering=0) as file:
                digest = _pour(file, header, values, hasher, flusher)
                os.fsync(file.fileno())
        except OSError as error:
            raise PunaError(
                f"cannot write {path}: {error.strerror or error}. Free space or choose another folder."
            ) from error
    size = path.stat().st_size
    assert size == expected, f"{path} has {size} bytes, its entries need {expected}"
    return Written(digest, size)


def _header(entries: Sequence[Entry]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        end = begin + entry.nbytes
        table[entry.key] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pour(
    file: Any, header: bytes, values: Iterable[Tensor], hasher: ThreadPoolExecutor, flusher: ThreadPoolExecutor
) -> str:
    """Write all bytes while one thread makes the checksum and another asks for the disk."""
    digest, pending = hashlib.sha256(), deque[Future[None]]()
    flush: Future[None] | None = None
    since_flush = 0
    file.write(header)
    digest.update(header)
    for tensor in values:
        data = byte_view(tensor)
        for start in range(0, len(data), _SLICE):
            piece = data[start : start + _SLICE]
            pending.append(hasher.submit(digest.update, piece))
            while len(pending) > 2:
                pending.popleft().result()
            done = 0
            while done < len(piece):
                done += file.write(piece[done:])
            since_flush += len(piece)
            if since_flush >= _FLUSH and (flush is None or flush.done()):
                if flush is not None:
                    flush.result()
                flush, since_flush = flusher.submit(os.fdatasync, file.fileno()), 0
    for future in (*pending, *([flush] if flush else [])):
        future.result()
    return digest.hexdigest()


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    assert tensor.device.type == "cpu", f"on {tensor.device}"
    values: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(values)


class SafetensorsFile:
    """A file open for reading: its table, and its values on demand.

    Args:
        path: The file.

    Raises:
        MissingError: It is not there.
        CorruptError: It is cut short, or its header does not describe it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise MissingError(f"{path} is not there. Restore it, or fetch the folder again.") from error
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        size = os.fstat(self._handle).st_size
        length = int.from_bytes(os.pread(self._handle, 8, 0), "little") if size >= 8 else 0
        try:
            if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise ValueError(f"{size} bytes, a header of {length}")
            table = json.loads(os.pread(self._handle, length, 8))
            table.pop("__metadata__", None)
            self.entries = {
                key: Entry(key, DTYPES[value["dtype"]], tuple(map(int, value["shape"]))) for key, value in table.items()
            }
            self._begin = {key: 8 + length + int(value["data_offsets"][0]) for key, value in table.items()}
            for key, value in table.items():
                begin, end = value["data_offsets"]
                if begin < 0 or end - begin != self.entries[key].nbytes or 8 + length + end > size:
                    raise ValueError(f"the values of {key} lie at {begin} to {end} of {size - 8 - length}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise CorruptError(
                f"{self.path} is not a whole safetensors file: {error}. Restore it or make it again."
            ) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def read_into(self, key: str, target: Tensor, *, start: int = 0) -> None:
        """Read consecutive values of a tensor into memory.

        Args:
            key: The tensor.
            target: Contiguous on the CPU, of the tensor's type: gets as many values as it has.
            start: Index of the first value, counted over the flat tensor.

        Raises:
            CorruptError: The file ends early.
        """
        entry = self.entries[key]
        assert target.dtype == entry.dtype and target.is_contiguous(), f"{key}: {target.dtype} for {entry.dtype}"
        view = byte_view(target)
        assert start * entry.dtype.itemsize + len(view) <= entry.nbytes, f"{key}: beyond its end"
        at, done = self._begin[key] + start * entry.dtype.itemsize, 0
        while done < len(view):
            n = os.preadv(self._handle, [view[done : done + (1 << 30)]], at + done)
            if not n:
                raise CorruptError(f"{self.path} ends within {key}. Restore it or make it again.")
            done += n

    def read(self, key: str) -> Tensor:
        """A whole tensor, in memory of its own."""
        entry = self.entries[key]
        out = torch.empty(entry.shape, dtype=entry.dtype)
        if out.numel():
            self.read_into(key, out)
        return out

    def forget(self) -> None:
        """Let the kernel drop what it kept of the file: a stream does not come back."""
        os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)
