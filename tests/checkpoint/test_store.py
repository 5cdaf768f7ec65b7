"""Checkpoints are whole or absent, and a damaged one is stepped over."""

import subprocess
import sys

import pytest
import torch

from puna.checkpoint import train_state
from puna.checkpoint.store import CheckpointStore
from puna.checkpoint.train_state import TrainState
from puna.core import files
from puna.core.errors import CorruptError, MissingError, PunaError


def _write(text):
    return lambda folder: (folder / "data.txt").write_text(text)


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_left_out(tmp_path, capsys):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=9)
    assert store.latest() is None
    for step in (1, 2, 3, 4):
        store.save(step, _write(f"state {step}"), n_bytes=100)
    assert store.latest() == store.path(4)
    (store.path(4) / "data.txt").write_text("state 5")
    (store.path(3) / "data.txt").unlink()
    (store.path(2) / files.SEAL).unlink()
    assert store.latest() == store.path(1)
    warnings = " ".join(capsys.readouterr().err.split())
    assert all(f"step-{n:08d}" in warnings for n in (2, 3, 4))


def test_when_every_checkpoint_is_damaged_the_run_does_not_silently_begin_again(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(7, _write("x"), n_bytes=1)
    (store.path(7) / "data.txt").write_text("y")
    with pytest.raises(CorruptError, match=r"step-00000007.*--fresh"):
        store.latest()


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(7, _write("x"), n_bytes=1)
    (store.path(7) / "data.txt").write_text("y")
    store.save(7, _write("z"), n_bytes=1)
    assert (store.latest() / "data.txt").read_text() == "z"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]


def test_retention_keeps_the_last_and_the_multiples(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_every=10)
    for step in range(1, 27):
        store.save(step, _write(str(step)), n_bytes=1)
    assert store.steps() == [10, 20, 25, 26]


def test_a_disk_that_is_too_small_is_found_first_and_nothing_is_lost(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(1, _write("old"), n_bytes=1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 50 << 20})())
    with pytest.raises(PunaError, match="needs 116 MiB, 16 MiB of them in reserve, and the disk has 50 MiB free"):
        store.save(2, _write("new"), n_bytes=100 << 20)
    assert store.latest() == store.path(1) and store.steps() == [1]


def test_a_disk_that_fills_up_during_a_save_leaves_the_older_checkpoint_and_no_leftover(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(1, _write("old"), n_bytes=1)

    def write(folder):
        (folder / "data.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(PunaError, match="No space left on device"):
        store.save(2, write, n_bytes=1)
    assert store.latest() == store.path(1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_save_killed_in_the_middle_leaves_the_older_one_latest_and_its_leftover_is_removed_by_the_next(tmp_path):
    program = f"""
import os, signal
from puna.checkpoint.store import CheckpointStore
store = CheckpointStore({str(tmp_path)!r})
store.save(1, lambda f: (f / "data.txt").write_text("whole"), n_bytes=1)
def write(folder):
    (folder / "data.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
store.save(2, write, n_bytes=1)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert any(p.name.startswith(".tmp-") for p in tmp_path.iterdir())
    store = CheckpointStore(tmp_path)
    assert store.latest() == store.path(1)
    store.save(3, _write("next"), n_bytes=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_training_state_comes_back_exactly(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "optimizer/a/exp_avg": torch.randn(3, 4, generator=generator),
        "optimizer/a/step": torch.tensor(7.0),
        "rng/cpu": torch.get_rng_state(),
    }
    state = TrainState(
        step=7,
        tokens=10**13,
        batches={"epoch": 1, "nested": {"credit": 0.1 + 0.2}},
        window={"loss": 1 / 3},
        best={"loss": 2.5, "step": 5},
        tensors=tensors,
    )
    train_state.write(tmp_path, state)
    again = train_state.read(tmp_path)
    assert all(torch.equal(again.tensors[name], tensors[name]) for name in tensors)
    again.tensors, state.tensors = {}, {}
    assert again == state


def test_a_state_of_another_version_or_a_model_without_one_is_refused(tmp_path):
    with pytest.raises(MissingError):
        train_state.read(tmp_path)
    train_state.write(tmp_path, TrainState())
    path = tmp_path / "train_state" / "state.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(CorruptError, match="version 99, this program reads version 1"):
        train_state.read(tmp_path)


def test_the_random_state_goes_on_where_it_was():
    before = torch.get_rng_state()
    try:
        saved = train_state.random_states()
        first = torch.rand(3)
        train_state.restore_random_states({name.removeprefix("rng/"): t for name, t in saved.items()})
        assert torch.equal(torch.rand(3), first)
    finally:
        torch.set_rng_state(before)
