"""Copies of a training state in host memory that is used again and again: all that a save makes training wait for.

First touch of new memory runs at a tenth of the speed of a copy, and pinning it is slower still, so the buffers are
made once (`prepare`, beside the first steps) and kept. From a GPU, all copies are in flight together and are waited
for once. In main memory some threads share the bytes and copy them by C's memcpy, which for large runs writes past the
caches: half as fast again as PyTorch's own copy.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from puna.checkpoint.pieces import Chunk, Pieces

_STRETCH = 32 << 20  # bytes that a thread copies at a time
_COPIERS = 4  # threads: a few reach the memory's bandwidth

_Key = tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype]


class HostBuffers:
    """Reused host memory for the pieces of one state."""

    def __init__(self) -> None:
        self._buffers: dict[_Key, Tensor] = {}

    def fits(self, tensors: Mapping[str, Pieces]) -> bool:
        """Whether the buffers that are still missing fit into free memory and leave a tenth of all of it."""
        missing = sum(
            chunk.tensor.nbytes
            for name, pieces in tensors.items()
            for chunk in pieces.chunks
            if _key(name, pieces, chunk) not in self._buffers
        )
        free, total = _memory()
        return not missing or missing + total // 10 <= free

    def prepare(self, tensors: Mapping[str, Pieces]) -> None:
        """Make the buffers and touch their memory; values are not copied. Other buffers are dropped."""
        wanted = {_key(n, p, c): c.tensor for n, p in tensors.items() for c in p.chunks}
        for key in self._buffers.keys() - wanted.keys():
            del self._buffers[key]
        for key, tensor in wanted.items():
            if key not in self._buffers:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[key] = buffer.zero_() if tensor.numel() else buffer

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Pieces]) -> dict[str, Pieces]:
        """The same pieces with the values that they have now; the copies hold until the next call."""
        wanted = {_key(n, p, c) for n, p in tensors.items() for c in p.chunks}
        if not wanted <= self._buffers.keys():
            self.prepare(tensors)
        copies, on_gpu = {}, False
        in_memory: list[tuple[Tensor, Tensor]] = []
        for name, pieces in tensors.items():
            chunks = []
            for chunk in pieces.chunks:
                buffer = self._buffers[_key(name, pieces, chunk)]
                if chunk.tensor.is_cpu and chunk.tensor.is_contiguous():
                    in_memory.append((buffer, chunk.tensor))
                else:
                    buffer.copy_(chunk.tensor, non_blocking=chunk.tensor.is_cuda)
                on_gpu |= chunk.tensor.is_cuda
                chunks.append(Chunk(chunk.offsets, buffer))
            copies[name] = replace(pieces, chunks=tuple(chunks))
        _copy_bytes(in_memory)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return copies

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers.clear()


def _copy_bytes(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy contiguous tensors in main memory, in stretches that a few threads take in turn."""

    def stretches(tensor: Tensor) -> Sequence[Tensor]:
        return tensor.detach().view(-1).view(torch.uint8).split(_STRETCH) if tensor.numel() else ()

    work = [pair for buffer, tensor in pairs for pair in zip(stretches(buffer), stretches(tensor), strict=True)]
    with ThreadPoolExecutor(max(1, min(_COPIERS, torch.get_num_threads()))) as threads:
        for _ in threads.map(lambda pair: np.copyto(pair[0].numpy(), pair[1].numpy()), work):
            pass


def on_host(tensors: Mapping[str, Pieces]) -> dict[str, Pieces]:
    """The same pieces, those of a GPU copied to new host memory, the others as they are."""
    return {
        name: replace(pieces, chunks=tuple(Chunk(c.offsets, c.tensor.cpu()) for c in pieces.chunks))
        for name, pieces in tensors.items()
    }


def _key(name: str, pieces: Pieces, chunk: Chunk) -> _Key:
    return name, chunk.offsets, chunk.sizes, pieces.dtype


def _memory() -> tuple[int, int]:
    """Free and total bytes of main memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - a kernel table
            free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free, total
