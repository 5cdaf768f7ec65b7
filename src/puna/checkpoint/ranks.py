"""The processes that save together: which of them share a folder, and how they talk without disturbing training.

They talk over a gloo group of their own, so a thread may gather plans while the main thread runs the training step's
collectives. Ranks that see the same folder are a node; its lowest rank, the leader, does what is done once a folder.
A process that is alone needs no group: every function then is a plain call.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from puna.checkpoint.safetensors_file import byte_view
from puna.core.errors import CorruptError, PunaError
from puna.core.files import TEMPORARY_PREFIX

T = TypeVar("T")
_CHUNK = 16 << 20  # bytes of one message between two ranks


@dataclass(frozen=True)
class Transfer:
    """One file from one rank's folder to another's.

    Attributes:
        source: Rank that has it.
        target: Rank that gets it.
        file: Path relative to the store's folder, the same on both sides.
        bytes: Its size.
        sha256: What must arrive.
    """

    source: int
    target: int
    file: str
    bytes: int
    sha256: str


class Ranks:
    """All processes of a run.

    Args:
        folder: The store's folder as this rank sees it.
        node_local: Ranks of other machines see another folder under that name.
        alone: Look at no other process, whether there are some or not.
    """

    def __init__(self, folder: Path, *, node_local: bool = False, alone: bool = False) -> None:
        together = not alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group: dist.ProcessGroup | None = None
        if together:
            group: Any = dist.new_group(backend="gloo", timeout=timedelta(minutes=10))
            self.group = group
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        place = f"{socket.gethostname()}:{folder.absolute()}" if node_local else ""
        places = self.gather(place)
        names = list(dict.fromkeys(places))
        self.nodes = [[rank for rank in range(self.size) if places[rank] == name] for name in names]
        self.node = names.index(place)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_leader(self) -> bool:
        """Whether this is the rank that does what is done once a folder."""
        return self.rank == self.nodes[self.node][0]

    @property
    def local_index(self) -> int:
        """Place of this rank among those of its folder."""
        return self.nodes[self.node].index(self.rank)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank; an error on one of them is raised on all.

        Raises:
            PunaError: What the first rank that failed says.
        """
        if self.group is None:
            return work()
        result, problem, error = None, None, None
        try:
            result = work()
        except Exception as caught:
            problem, error = str(caught), caught
        problems = self.gather(problem)
        for rank, text in enumerate(problems):
            if text is not None:
                raise PunaError(f"[rank {rank}] {text}") from error
        return result  # pyright: ignore[reportReturnType] - no rank failed

    def transfer(self, transfers: Sequence[Transfer], folder: Path) -> None:
        """Carry files between ranks. Collective: every rank has the same list.

        Ranks work through it in order, so the first transfer that is not done always has both its ends waiting for it.
        """
        for item in transfers:
            if self.rank == item.source:
                self._send(item, folder)
            elif self.rank == item.target:
                self._receive(item, folder)

    def _send(self, item: Transfer, folder: Path) -> None:
        buffer = torch.empty(min(_CHUNK, max(1, item.bytes)), dtype=torch.uint8)
        try:
            handle = os.open(folder / item.file, os.O_RDONLY)
        except OSError:
            handle = -1  # the other side waits: it gets zeros, and its checksum says so
        for start in range(0, item.bytes, _CHUNK):
            part = buffer[: min(_CHUNK, item.bytes - start)]
            if handle >= 0:
                os.preadv(handle, [byte_view(part)], start)
            dist.send(part, item.target, group=self.group)
        if handle >= 0:
            os.close(handle)

    def _receive(self, item: Transfer, folder: Path) -> None:
        path = folder / item.file
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
        digest, problem = hashlib.sha256(), None
        buffer = torch.empty(min(_CHUNK, max(1, item.bytes)), dtype=torch.uint8)
        file = temporary.open("wb", buffering=0)
        with file:
            for start in range(0, item.bytes, _CHUNK):
                part = buffer[: min(_CHUNK, item.bytes - start)]
                dist.recv(part, item.source, group=self.group)
                digest.update(byte_view(part))
                try:
                    if problem is None:
                        file.write(byte_view(part))
                except OSError as error:  # the sender goes on sending: take all of it, then say so
                    problem = error
            os.fsync(file.fileno())
        if problem is not None or digest.hexdigest() != item.sha256:
            temporary.unlink(missing_ok=True)
            raise CorruptError(f"{item.file} did not arrive whole from rank {item.source}: {problem or 'other bytes'}")
        temporary.replace(path)


def replica_transfers(nodes: Sequence[Sequence[int]], files: Sequence[Sequence[tuple[str, int, str]]], copies: int):
    """Which files go where so that `copies` other nodes have each.

    Args:
        nodes: Ranks of every node.
        files: For every rank the path, size and SHA-256 of what it wrote.
        copies: Further nodes that get a copy.

    Returns:
        The transfers; first those of every other node, so that neighbours do not wait in a chain.
    """
    found = []
    for node, ranks in enumerate(nodes):
        for distance in range(1, min(copies, len(nodes) - 1) + 1):
            peers = nodes[(node + distance) % len(nodes)]
            for index, rank in enumerate(ranks):
                target = peers[index % len(peers)]
                found += [(distance, node % 2, Transfer(rank, target, *file)) for file in files[rank]]
    return [transfer for _, _, transfer in sorted(found, key=lambda item: item[:2])]
