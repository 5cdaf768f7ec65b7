"""Many ranks write one checkpoint, and any layout reads it: torch DCP's planning over safetensors files and a JSON map.

PyTorch's Distributed Checkpoint (DCP) says which rank writes which box (of equal ones, one rank does) and which
stored boxes a box to be loaded overlaps. Its own files hold pickles: the metadata always, and every shard that is not
safetensors. Its safetensors storage has no metadata to reshard by, no checksums, and reads a file whole. So the
storage is ours: each rank writes one file of weights and one of training state, hashed on the way, and rank 0 writes
`layout.json`.

    save:  Pieces --Planner--> plans of all ranks, duplicates removed --Writer--> files and a Layout
    load:  Pieces + Layout --> boxes that overlap --> read straight into the model's memory; no collective, no order

`Reader` lets other DCP programs load such a checkpoint: `dcp.load(state, storage_reader=Reader(folder))`.
"""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from puna.checkpoint.layout import STATE, Layout, Place, Stored
from puna.checkpoint.pieces import Pieces
from puna.checkpoint.safetensors_file import Entry, SafetensorsFile, Written, write_file
from puna.checkpoint.tensors import BLOCK_BYTES, WEIGHTS
from puna.core.errors import CorruptError


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a save wrote.

    Attributes:
        layout: Where every box lies.
        files: Checksums of the files of all ranks, by relative path.
        own: The files that this rank wrote.
    """

    layout: Layout
    files: Mapping[str, Written]
    own: tuple[str, ...]


def save_pieces(folder: Path, tensors: Mapping[str, Pieces], *, group: dist.ProcessGroup | None) -> Saved:
    """Write the tensors of all ranks into a folder. Collective; an error on one rank is raised on all.

    Args:
        folder: Exists on every rank.
        tensors: In host memory; names of training state begin with `train_state/`.
        group: All ranks; None when this process is alone.

    Raises:
        PunaError: A disk is full (alone), or `dcp.CheckpointException` of all errors (with others).
    """
    planner, writer = Planner(), Writer(folder)
    state: dict[str, Any] = dict(tensors)
    if group is not None:
        save(state, storage_writer=writer, planner=planner, process_group=group)
        shared = [writer.saved]
        dist.broadcast_object_list(shared, src=dist.get_global_rank(group, 0), group=group)
        assert shared[0] is not None, "rank 0 has finished"
        layout, files = shared[0]
    else:
        planner.set_up_planner(state, is_coordinator=True)
        plans, metadata = planner.create_global_plan([planner.create_local_plan()])
        [plan] = writer.prepare_global_plan(plans)
        writer.finish(metadata, [writer.write_data(planner.finish_plan(plan), planner).value()])
        assert writer.saved is not None, "it has finished"
        layout, files = writer.saved
    return Saved(layout, files, tuple(writer.own))


class Planner(DefaultSavePlanner):
    """DCP's planner over `Pieces`: there is nothing to flatten and nothing to pickle."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The view of one box."""
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class Writer(StorageWriter):
    """Writes this rank's share of a plan as safetensors.

    Args:
        folder: Where.

    Attributes:
        saved: On the coordinator, once finished: the layout, and the checksums of all files.
        own: The files that this rank wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.saved: tuple[Layout, dict[str, Written]] | None = None
        self.own: list[str] = []

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from save to save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is there already."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP's name for a place; ours is given to the constructor."""
        return False

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name every rank's files. Whole weights get the names that Hugging Face folders have."""
        weights = [any(not i.index.fqn.startswith(STATE) for i in plan.items) for plan in plans]
        states = [any(i.index.fqn.startswith(STATE) for i in plan.items) for plan in plans]
        boxes = [i.tensor_data for plan in plans for i in plan.items if not i.index.fqn.startswith(STATE)]
        whole = all(data is not None and data.chunk.sizes == data.size for data in boxes)
        stem = WEIGHTS.removesuffix(".safetensors") if whole else "weights"
        return [
            dataclasses.replace(
                plan,
                storage_data={"": _numbered(stem, weights, rank), STATE: _numbered(f"{STATE}tensors", states, rank)},
            )
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the boxes, and give for each its `Place`, and the checksum of the file with its first one."""
        rooms: dict[str, list[tuple[MetadataIndex, Entry, Tensor]]] = defaultdict(list)
        for item in plan.items:
            data, tensor = item.tensor_data, planner.resolve_data(item)
            assert data is not None and isinstance(tensor, Tensor), f"{item.index.fqn} is no tensor"
            key = _key(item.index.fqn, tuple(data.chunk.offsets), tuple(data.chunk.sizes), tuple(data.size))
            room = STATE if item.index.fqn.startswith(STATE) else ""
            rooms[room].append((item.index, Entry(key, data.properties.dtype, tuple(data.chunk.sizes)), tensor))
        results = []
        for room, boxes in rooms.items():
            boxes.sort(key=lambda box: -box[1].dtype.itemsize)  # stable; wide types first keeps all aligned
            file = plan.storage_data[room]
            written = write_file(self._folder / file, [e for _, e, _ in boxes], (t for _, _, t in boxes))
            self.own.append(file)
            for number, (index, entry, _) in enumerate(boxes):
                place = Place(tuple(index.offset or ()), entry.shape, file, entry.key)
                results.append(WriteResult(index, entry.nbytes, (place, None if number else written)))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Put the places of all ranks together (on the coordinator)."""
        places: dict[str, list[Place]] = defaultdict(list)
        files: dict[str, Written] = {}
        for result in (r for of_rank in results for r in of_rank):
            place, written = result.storage_data
            places[result.index.fqn].append(place)
            if written is not None:
                files[place.file] = written
        tensors = {}
        for name in sorted(places):
            about: Any = metadata.state_dict_metadata[name]
            boxes = tuple(sorted(places[name], key=lambda p: p.offsets))
            tensors[name] = Stored(about.properties.dtype, tuple(about.size), boxes)
        self.saved = Layout(tensors), files


def _numbered(stem: str, present: Sequence[bool], rank: int) -> str:
    if sum(present) <= 1:
        return f"{stem}.safetensors"
    return f"{stem}-{sum(present[: rank + 1]):05d}-of-{sum(present):05d}.safetensors"


def _key(name: str, offsets: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...]) -> str:
    name = name.removeprefix(STATE)
    if sizes == shape:
        return name
    return f"{name}[{','.join(f'{o}:{o + n}' for o, n in zip(offsets, sizes, strict=True))}]"


def load_pieces(folder: Path, layout: Layout, targets: Mapping[str, Pieces]) -> None:
    """Fill the pieces from a checkpoint of any layout, in place. Not collective: every rank reads what it needs.

    Raises:
        CorruptError: The checkpoint lacks a tensor, or has it with another shape or type, or a file is damaged.
    """
    for name, pieces in targets.items():
        stored = layout.tensors.get(name)
        if stored is None:
            raise CorruptError(f"{folder} has no tensor {name}, which this run needs")
        if stored.shape != pieces.shape:
            raise CorruptError(f"{folder}: {name} has shape {list(stored.shape)}, this run needs {list(pieces.shape)}")
        if stored.dtype != pieces.dtype and not (stored.dtype.is_floating_point and pieces.dtype.is_floating_point):
            raise CorruptError(f"{folder}: {name} has type {stored.dtype}, this run needs {pieces.dtype}")
    items = read_items(layout, targets)
    reader = Reader(folder, layout)
    reader.read_data(LoadPlan(items), _Targets(targets))


def read_items(layout: Layout, targets: Mapping[str, Pieces]) -> list[ReadItem]:
    """Which stored boxes the pieces overlap, and where: DCP's resharding."""
    about: Any = layout.metadata().state_dict_metadata
    return [
        item
        for name, pieces in targets.items()
        for item in create_read_items_for_chunk_list(name, about[name], pieces.__create_chunk_list__())
    ]


class _Targets(LoadPlanner):
    """The half of a DCP load planner that hands out memory."""

    def __init__(self, targets: Mapping[str, Pieces]) -> None:
        self._targets = targets

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        tensor = self._targets[read_item.dest_index.fqn].__get_tensor_shard__(read_item.dest_index)
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(dim, offset, length)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It was read in place."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise AssertionError("there are tensors only")

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        raise AssertionError("the plan is made already")

    create_local_plan = create_global_plan = finish_plan = set_up_planner  # pyright: ignore


class Reader(StorageReader):
    """Reads checkpoints for DCP's loading, ours and that of other programs.

    Args:
        folder: The checkpoint.
        layout: Its layout; None reads it.
    """

    def __init__(self, folder: Path | str, layout: Layout | None = None) -> None:
        self._folder = Path(folder)
        self._layout = layout or Layout.read(self._folder)
        self._places: Mapping[MetadataIndex, Place] = self._layout.metadata().storage_data

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP's name for a place; ours is given to the constructor."""
        return False

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What there is."""
        return self._layout.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Files are opened when they are read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Every rank reads for itself."""
        return plans

    @torch.no_grad()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read file by file, straight into the target where it is contiguous host memory."""
        by_file: dict[str, list[tuple[Place, ReadItem]]] = defaultdict(list)
        for item in plan.items:
            place = self._places[item.storage_index]
            by_file[place.file].append((place, item))
        for name, items in by_file.items():
            file = SafetensorsFile(self._folder / name)
            try:
                for place, item in items:
                    target = planner.resolve_tensor(item).detach()
                    _read_box(file, place, tuple(item.storage_offsets), target)
                    planner.commit_tensor(item, target)
            finally:
                file.close()
        future: Future[None] = Future()
        future.set_result(None)
        return future


def _read_box(file: SafetensorsFile, place: Place, offsets: Sequence[int], target: Tensor) -> None:
    """Read a box of a stored box."""
    entry = file.entries.get(place.key)
    if entry is None or entry.shape != place.sizes:
        raise CorruptError(f"{file.path} does not hold {place.key} as its layout says")
    first, cut = 0, ()
    if tuple(target.shape) != place.sizes:  # whole rows are consecutive in the file; other dimensions are cut in memory
        first = offsets[0] * prod(place.sizes[1:])
        if tuple(target.shape[1:]) != place.sizes[1:]:
            cut = (slice(None), *(slice(o, o + n) for o, n in zip(offsets[1:], target.shape[1:], strict=True)))
    if not cut and target.is_contiguous() and target.device.type == "cpu" and target.dtype == entry.dtype:
        file.read_into(place.key, target, start=first)
        return
    if not target.dim():
        target.copy_(file.read(place.key))
        return
    width = prod(place.sizes[1:])  # of a row in the file; a block of rows at a time
    step = max(1, BLOCK_BYTES // max(1, width * entry.dtype.itemsize))
    for begin in range(0, target.shape[0], step):
        part = target[begin : begin + step]
        buffer = torch.empty((part.shape[0], *place.sizes[1:]), dtype=entry.dtype)
        file.read_into(place.key, buffer, start=first + begin * width)
        part.copy_(buffer[cut] if cut else buffer)
