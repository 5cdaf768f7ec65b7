"""Four processes save and load together; what one layout saved loads into every other."""

import subprocess
import sys
from pathlib import Path

import torch

from puna.checkpoint.logical import logical
from puna.checkpoint.ranks import Transfer, replica_transfers
from puna.checkpoint.store import CheckpointStore, Snapshot

from .ranks import whole

ROOT = Path(__file__).parents[2]


def test_four_ranks_save_and_load_under_every_layout(tmp_path):
    command = [sys.executable, "-m", "tests.checkpoint.ranks"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "4", str(tmp_path)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(4)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(said)
    for layout in ("fsdp", "tp", "both", "replicas"):  # and this process alone reads what four wrote
        store = CheckpointStore(tmp_path / layout)
        target = {name: torch.zeros_like(whole(name)) for name in ("model.q", "model.k", "model.v", "model.down")}
        store.load(store.latest(), Snapshot(logical(target, {})))
        assert all(torch.equal(tensor, whole(name)) for name, tensor in target.items()), layout
    assert {p.name for p in (tmp_path / "replicas" / "step-00000001").glob("*.safetensors*")} == {
        *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
        "model.safetensors.index.json",
    }  # whole tensors, shared out among equal ranks: a Hugging Face folder


def test_copies_go_to_another_machine():
    nodes, files = [[0, 1], [2, 3], [4, 5]], [[(f"f{rank}", 1, "x")] for rank in range(6)]
    found = replica_transfers(nodes, files, copies=1)
    assert {(t.source, t.target) for t in found} == {(0, 2), (1, 3), (2, 4), (3, 5), (4, 0), (5, 1)}
    assert replica_transfers([[0, 1]], files[:2], copies=1) == []
    assert Transfer(0, 2, "f0", 1, "x") in found
