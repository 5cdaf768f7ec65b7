"""Ranks of the checkpoint tests: one spawn, many checks. Runs as `python -m tests.checkpoint.ranks RANK SIZE FOLDER`."""

import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from puna.checkpoint.card import Card
from puna.checkpoint.format import load_model, write_side
from puna.checkpoint.logical import logical, segments_of
from puna.checkpoint.pieces import Segment, pieces_of, split_rows
from puna.checkpoint.sharded import Reader
from puna.checkpoint.store import CheckpointStore, Snapshot
from puna.core.errors import PunaError

from .conftest import tiny_model

Q, K, WIDTH = 8, 4, 6


def whole(name):
    """The logical tensors that every layout holds pieces of."""
    shapes = {"model.q": (Q, WIDTH), "model.k": (K, WIDTH), "model.v": (K, WIDTH), "model.down": (WIDTH, 10)}
    seed = sum(map(ord, name))
    return torch.randn(shapes[name], generator=torch.Generator().manual_seed(seed))


def fused():
    return torch.cat([whole("model.q"), whole("model.k"), whole("model.v")])


PLAIN = [Segment("model.q", Q, 0, Q), Segment("model.k", K, 0, K), Segment("model.v", K, 0, K)]


def tp_rows(tp):
    """Segments of a fused matrix that is permuted so that each of `tp` ranks has its own query, key and value rows."""
    sizes = (("model.q", Q), ("model.k", K), ("model.v", K))
    return [Segment(name, n, r * n // tp, n // tp) for r in range(tp) for name, n in sizes]


def permuted(tp):
    parts = {name: whole(name) for name in ("model.q", "model.k", "model.v")}
    return torch.cat([parts[s.name][s.start : s.start + s.rows] for s in tp_rows(tp)])


def layouts(size):
    """Snapshots of the same model under several layouts, by name; `fill` makes other values."""
    flat = init_device_mesh("cpu", (size,))
    grid = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))

    def fsdp(fill):
        q = distribute_tensor(fill(fused()), flat, [Shard(0)])
        down = distribute_tensor(fill(whole("model.down")), flat, [Shard(0)])  # uneven: 6 rows over 4 ranks
        return {**split_rows(pieces_of(q), PLAIN), "model.down": pieces_of(down)}

    def tp(fill):
        q = distribute_tensor(fill(permuted(size // 2)), grid, [Replicate(), Shard(0)])
        down = distribute_tensor(fill(whole("model.down")), grid, [Replicate(), Shard(1)])
        return {**split_rows(pieces_of(q), tp_rows(size // 2)), "model.down": pieces_of(down)}

    def both(fill):
        q = distribute_tensor(fill(permuted(size // 2)), grid["tp"], [Shard(0)])
        half = q.to_local().chunk(2)[grid.get_coordinate()[0]].contiguous()  # FSDP on top of tensor parallelism
        rows = permuted(size // 2).shape[0] // size
        begin = grid.get_coordinate()[1] * 2 * rows + grid.get_coordinate()[0] * rows
        from puna.checkpoint.pieces import Chunk, Pieces

        pieces = Pieces((rows * size, WIDTH), half.dtype, (Chunk((begin, 0), half),))
        down = distribute_tensor(fill(whole("model.down")), grid, [Shard(0), Shard(1)])
        return {**split_rows(pieces, tp_rows(size // 2)), "model.down": pieces_of(down)}

    def replicas(fill):
        return logical({"model.down": fill(whole("model.down"))}, {}) | split_rows(pieces_of(fill(fused())), PLAIN)

    return {"fsdp": fsdp, "tp": tp, "both": both, "replicas": replicas}


def check(snapshot):
    for name, pieces in snapshot.weights.items():
        for chunk in pieces.chunks:
            box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            assert torch.equal(chunk.tensor, whole(name)[box]), (name, chunk)


def side(folder):
    (folder / "config.json").write_text("{}")


def every_layout_loads_every_other(rank, size, folder):
    made = layouts(size)
    for saved, make in made.items():
        store = CheckpointStore(folder / saved)
        store.save(1, Snapshot(make(lambda t: t), {}, {"rank": 0}), side=side, wait=saved == "tp")
        store.wait()
        path = store.latest()
        assert path == store.path(1), path
        for load in made.values():
            target = Snapshot(load(torch.zeros_like))
            assert store.load(path, target) == {"rank": 0}
            check(target)


def other_programs_read_it_with_dcp(rank, size, folder):
    flat = init_device_mesh("cpu", (size,))
    state = {"model.down": distribute_tensor(torch.zeros(WIDTH, 10), flat, [Shard(1)])}
    dcp.load(state, storage_reader=Reader(folder / "both" / "step-00000001"))
    assert isinstance(state["model.down"], DTensor)
    assert torch.equal(state["model.down"].full_tensor(), whole("model.down"))


def an_error_on_one_rank_is_an_error_on_all(rank, size, folder):
    store = CheckpointStore(folder / "errors")
    bad = Snapshot(layouts(size)["fsdp"](lambda t: t))

    def fails(path):
        raise OSError(28, "No space left on device")

    store.save(1, bad, side=side, wait=True)
    try:
        store.save(2, bad, side=fails, wait=True)
    except PunaError as error:
        assert "No space left" in str(error), error
    else:
        raise AssertionError("nobody said a word")
    assert store.latest() == store.path(1)


def a_lost_machine_is_made_good_by_its_peer(rank, size, folder):
    """Ranks 0 and 1 are one machine, 2 and 3 another: each pair sees a folder of its own."""
    node = 2 * rank // size
    own = folder / f"node{node}"
    store = CheckpointStore(own, node_local=True, replicas=1)
    make = layouts(size)["fsdp"]
    for step in (1, 2):
        store.save(step, Snapshot(make(lambda t: t), {}, {}), side=side)
    store.close()
    dist.barrier()
    if rank == size // 2:  # the second machine's disk is lost
        import shutil

        shutil.rmtree(own)
    if rank == 0:  # and a bit flips on the first one
        victim = next((own / "step-00000002").glob("weights-00001*"))
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
    dist.barrier()
    store = CheckpointStore(own, node_local=True, replicas=1)
    path = store.latest()
    assert path == store.path(1), path
    target = Snapshot(make(torch.zeros_like))
    store.load(path, target)
    check(target)


def they_stream_the_finished_model_together(rank, size, folder):
    """Many small files, each written by one rank out of the pieces of all; two machines, of which one has half."""
    model = tiny_model()
    mesh, config = init_device_mesh("cpu", (size,)), model.config
    shards = {name: distribute_tensor(p.detach(), mesh, [Shard(p.dim() - 1)]) for name, p in model.named_parameters()}
    snapshot = Snapshot(logical(shards, segments_of(config)), {}, {})
    for node_local in (False, True):
        own = folder / f"export{2 * rank // size if node_local else ''}"
        store = CheckpointStore(own, node_local=node_local)
        store.save(1, snapshot, side=lambda f: write_side(f, config, tokenizer=None, card=None, dtype=torch.float32))
        store.wait()
        out = folder / f"model-{node_local}"
        store.export(1, out, card=Card("streamed"), max_shard_bytes=8_000)
        dist.barrier()
        assert len(list(out.glob("model-*.safetensors"))) > size, list(out.iterdir())
        assert "# streamed" in (out / "README.md").read_text()
        loaded, _ = load_model(out)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def main():
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    for work in (
        every_layout_loads_every_other,
        other_programs_read_it_with_dcp,
        an_error_on_one_rank_is_an_error_on_all,
        a_lost_machine_is_made_good_by_its_peer,
        they_stream_the_finished_model_together,
    ):
        work(rank, size, folder)
        dist.barrier()
    if rank == 0:
        print(f"{socket.gethostname()}: all checks passed")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
