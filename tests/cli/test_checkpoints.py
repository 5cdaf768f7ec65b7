"""`puna checkpoints`: what a run has, and whether it is whole."""

import torch

from puna.checkpoint.logical import logical
from puna.checkpoint.store import CheckpointStore, Snapshot
from puna.cli.main import run


def _save(folder, *steps):
    store = CheckpointStore(folder / "checkpoints")
    for step in steps:
        weights = logical({"model.w": torch.full((3, 4), float(step))}, {})
        store.save(step, Snapshot(weights), side=lambda f: (f / "config.json").write_text("{}"), wait=True)
    return store


def test_checkpoints_are_listed_and_a_damaged_one_is_named(tmp_path, capsys):
    store = _save(tmp_path, 1, 2)
    assert run(["checkpoints", "ls", str(tmp_path)]) == 0
    assert "step-00000001" in (said := capsys.readouterr().out) and "step-00000002" in said
    assert run(["checkpoints", "verify", str(tmp_path)]) == 0
    path = store.path(2) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    capsys.readouterr()
    assert run(["checkpoints", "verify", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "step-00000001  whole" in said.out and "1 of 2 checkpoints are damaged" in " ".join(said.err.split())
    assert run(["checkpoints", "verify", str(store.path(1))]) == 0


def test_a_folder_without_checkpoints_says_what_to_name(tmp_path, capsys):
    assert run(["checkpoints", "ls", str(tmp_path)]) == 3
    assert "Name a run folder" in " ".join(capsys.readouterr().err.split())
