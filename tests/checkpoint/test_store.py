"""Checkpoints are whole or absent, damaged ones are stepped over, and training waits for a copy only."""

import itertools
import json
import os
import signal
import time

import fsspec
import pytest
import torch

from puna.checkpoint import safetensors_file, train_state
from puna.checkpoint import store as stores
from puna.checkpoint.durable import DurableTier
from puna.checkpoint.logical import logical
from puna.checkpoint.retention import Retention
from puna.checkpoint.store import CheckpointStore, Snapshot
from puna.checkpoint.train_state import TrainState
from puna.core import files
from puna.core.errors import CorruptError, MissingError, PunaError


def tensors(value, *, n=3):
    return {f"model.w{i}": torch.full((4, 5), float(value + i)) for i in range(n)}


def snapshot(value, **values):
    weights = tensors(value)
    state = {"optimizer/model.w0/step": torch.tensor(float(value)), "rng/cpu": torch.arange(7, dtype=torch.uint8)}
    return Snapshot(logical(weights, {}), logical(state, {}), {"step": value, **values})


def save(store, step, *, wait=True):
    return store.save(step, snapshot(step), side=lambda folder: (folder / "config.json").write_text("{}"), wait=wait)


def value_of(store, path):
    """The value that a checkpoint was made with, read back into other memory."""
    target = snapshot(-9)
    values = store.load(path, target)
    weights = [p.chunks[0].tensor for p in target.weights.values()]
    found = {float(w.flatten()[0]) - i for i, w in enumerate(weights)}
    assert all(len(w.unique()) == 1 for w in weights) and found == {float(values["step"])}
    assert float(target.state["optimizer/model.w0/step"].chunks[0].tensor) == values["step"]
    return values["step"]


def flip(path, where=-1):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


def test_what_was_saved_comes_back(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.latest() is None
    save(store, 3)
    path = save(store, 4)
    assert store.latest() == path == store.path(4) and value_of(store, path) == 4
    assert "train_state/rng/cpu" in store.names(path)
    assert not any(b"PROTO" in p.read_bytes() or p.suffix in (".pt", ".distcp", ".metadata") for p in path.rglob("*.*"))


def test_a_save_behind_training_holds_the_state_of_its_moment(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    real = stores.save_pieces
    monkeypatch.setattr(stores, "save_pieces", lambda *a, **k: time.sleep(0.3) or real(*a, **k))
    weights = tensors(1)
    for step in (1, 2):
        at = Snapshot(logical(weights, {}), {}, {"step": step})
        start = time.perf_counter()
        path = store.save(step, at, side=lambda folder: None)
        assert step == 2 or time.perf_counter() - start < 0.25
        assert not path.exists()
        for tensor in weights.values():
            tensor.add_(1)  # training goes on
    store.wait()
    target = {name: torch.zeros(4, 5) for name in weights}
    for step in (1, 2):
        store.load(store.path(step), Snapshot(logical(target, {})))
        assert [float(t[0, 0]) for t in target.values()] == [step, step + 1, step + 2]


@pytest.mark.parametrize("asynchronous", ["always", "never"])
def test_both_ways_of_saving_write_the_same_bytes(asynchronous, tmp_path):
    store = CheckpointStore(tmp_path, asynchronous=asynchronous)
    path = save(store, 5, wait=False)
    store.close()
    other = save(CheckpointStore(tmp_path / "other"), 5)
    assert files.verify(path) == files.verify(other)


def test_a_flipped_bit_in_any_file_is_found_and_the_older_one_used(tmp_path, capsys):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    names = [p.relative_to(store.path(1)) for p in store.path(1).rglob("*") if p.is_file() and p.name != files.SEAL]
    assert len(names) >= 5
    for name in names:
        path = save(store, 2)
        flip(path / name)
        assert store.latest() == store.path(1), name
        assert name.name in capsys.readouterr().err.replace("\n", "")
    assert value_of(store, store.path(1)) == 1


@pytest.mark.parametrize("damage", ["missing file", "missing seal", "cut seal", "cut file"])
def test_other_damage_is_stepped_over_too(damage, tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    path = save(store, 2)
    if damage.startswith("missing"):
        (path / (files.SEAL if "seal" in damage else "layout.json")).unlink()
    else:
        victim = path / (files.SEAL if "seal" in damage else "model.safetensors")
        victim.write_bytes(victim.read_bytes()[:-7])
    assert store.latest() == store.path(1)


def test_when_every_checkpoint_is_damaged_the_run_does_not_silently_begin_again(tmp_path):
    store = CheckpointStore(tmp_path)
    flip(save(store, 7) / "config.json")
    with pytest.raises(CorruptError, match=r"step-00000007.*--fresh"):
        store.latest()


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    store = CheckpointStore(tmp_path)
    flip(save(store, 7) / "config.json")
    save(store, 7)
    assert value_of(store, store.latest()) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]


def test_retention_keeps_the_last_and_the_multiples(tmp_path):
    store = CheckpointStore(tmp_path, retention=Retention(last=2, every=10))
    for step in range(1, 27):
        save(store, step)
    assert store.steps() == [10, 20, 25, 26]


def test_a_disk_that_is_too_small_is_found_first_and_nothing_is_lost(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, retention=Retention(last=1))
    save(store, 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 << 20})())
    with pytest.raises(PunaError, match="16 MiB of them in reserve, and the disk has 5 MiB free"):
        save(store, 2)
    assert store.latest() == store.path(1) and store.steps() == [1]


def _full(*arguments, **rest):
    raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_during_a_save_leaves_the_older_checkpoint_and_no_leftover(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, retention=Retention(last=1))
    save(store, 1)
    monkeypatch.setattr(stores, "save_pieces", _full)
    with pytest.raises(PunaError, match="No space left on device"):
        save(store, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"] and store.latest() == store.path(1)


def test_training_outlives_two_saves_that_failed_but_not_three(tmp_path, monkeypatch, capsys):
    store, real = CheckpointStore(tmp_path), stores.save_pieces
    monkeypatch.setattr(stores, "save_pieces", _full)
    save(store, 1, wait=False)
    save(store, 2, wait=False)
    store.wait()
    assert capsys.readouterr().err.count("was not saved") == 2
    monkeypatch.setattr(stores, "save_pieces", real)
    save(store, 3, wait=False)
    store.wait()
    assert store.latest() == store.path(3)
    monkeypatch.setattr(stores, "save_pieces", _full)
    for step in (4, 5, 6):
        save(store, step, wait=False)
    with pytest.raises(PunaError, match="3 saves in a row failed"):
        store.wait()


def _save_for_ever(folder, first, pipe):
    safetensors_file._SLICE = 16  # many small writes, so that a kill falls between them
    store = CheckpointStore(folder)
    for step in itertools.count(first):
        save(store, step, wait=False)
        store.wait()
        os.write(pipe, f"{step}\n".encode())


def kill_while_saving(folder, first, *, wait_for, delay):
    """Save again and again in a forked process, kill it some time after a save ended; returns the last that ended."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            _save_for_ever(folder, first, write)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as lines:
        for _ in range(wait_for):
            last = int(lines.readline())
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rest = lines.read().split()
    return int(rest[-1]) if rest else last


def test_a_save_killed_in_the_middle_leaves_a_readable_latest(tmp_path):
    last = kill_while_saving(tmp_path, 1, wait_for=3, delay=0.004)
    store = CheckpointStore(tmp_path)
    assert value_of(store, store.latest()) >= last
    save(store, 10_000)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp-")]


def test_twenty_kills_during_saves_never_leave_an_unreadable_latest(tmp_path):
    last = 0
    for number in range(20):
        last = kill_while_saving(tmp_path, last + 1, wait_for=1 + number % 3, delay=0.0017 * number)
        store = CheckpointStore(tmp_path)
        found = value_of(store, store.latest())
        assert found >= last
        last = found


def test_a_checkpoint_after_which_the_run_failed_twice_is_put_aside(tmp_path, capsys):
    for step in (1, 2):
        save(CheckpointStore(tmp_path), step)
    for _ in range(2):
        store = CheckpointStore(tmp_path)
        assert value_of(store, store.latest(settings="a")) == 2
        store.failed("step 3: the loss is nan", "a")
    assert CheckpointStore(tmp_path).latest(settings="b") == store.path(2)  # other settings deserve another try
    store = CheckpointStore(tmp_path)
    assert store.latest(settings="a") == store.path(1)
    assert "the loss is nan" in " ".join(capsys.readouterr().err.split()) and (tmp_path / "suspect-00000002").is_dir()
    save(store, 3)
    assert store.steps() == [1, 3]


def test_progress_ends_the_count_of_failures(tmp_path):
    save(CheckpointStore(tmp_path), 1)
    for step in (2, 3, 4):
        store = CheckpointStore(tmp_path)
        value_of(store, store.latest(settings="a"))
        save(store, step)
        store.failed("nan", "a")
    assert CheckpointStore(tmp_path).latest(settings="a") == store.path(4)


def durable(folder, **rest):
    return DurableTier(f"file://{folder}", every_seconds=0, **rest)


def test_durable_storage_gets_checkpoints_and_gives_them_back_when_the_disk_is_lost(tmp_path, capsys):
    store = CheckpointStore(tmp_path / "here", durable=durable(tmp_path / "away", retention=Retention(last=2)))
    for step in (1, 2, 3):
        save(store, step)
        store.close()
    assert sorted(p.name for p in (tmp_path / "away").iterdir()) == ["step-00000002", "step-00000003"]
    assert files.verify(tmp_path / "away" / "step-00000003") == files.verify(store.path(3))
    other = CheckpointStore(tmp_path / "new disk", durable=durable(tmp_path / "away"))
    assert value_of(other, other.latest()) == 3
    flip(store.path(3) / "model.safetensors")
    assert value_of(store, store.latest()) == 3  # one file was brought back
    assert files.verify(store.path(3)) == files.verify(other.path(3))
    assert "were brought from" in " ".join(capsys.readouterr().out.split())


def test_damage_in_durable_storage_too_leads_to_the_older_one(tmp_path):
    store = CheckpointStore(tmp_path / "here", durable=durable(tmp_path / "away"))
    for step in (1, 2):
        save(store, step)
        store.close()
    for folder in ("here", "away"):
        flip(tmp_path / folder / "step-00000002" / "model.safetensors")
    assert value_of(store, store.latest()) == 1


def test_an_upload_that_did_not_end_does_not_count(tmp_path):
    store = CheckpointStore(tmp_path / "here", durable=durable(tmp_path / "away"))
    save(store, 1)
    store.close()
    (tmp_path / "away" / "step-00000001").rename(tmp_path / "away" / "step-00000009")
    (tmp_path / "away" / "step-00000009" / "layout.json").unlink()
    assert durable(tmp_path / "away").steps() == []


class DeadStorage(fsspec.AbstractFileSystem):
    protocol = "dead"

    def _dead(self, *arguments, **rest):
        raise TimeoutError("no answer")

    makedirs = ls = exists = put_file = find = _dead


def test_dead_storage_is_said_and_costs_nothing(tmp_path, capsys):
    fsspec.register_implementation("dead", DeadStorage, clobber=True)
    store = CheckpointStore(tmp_path, durable=DurableTier("dead://bucket/run", every_seconds=0))
    for step in (1, 2):
        save(store, step)
        store.close()
    assert value_of(store, store.latest()) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("did not take checkpoint") == 2 and "cannot be read" in said


def test_a_storage_that_nobody_knows_is_refused_before_training():
    with pytest.raises(MissingError, match="nosuch://bucket"):
        DurableTier("nosuch://bucket")


@pytest.mark.parametrize("change", ["missing", "shape", "type"])
def test_a_checkpoint_of_something_else_is_refused_by_name(change, tmp_path):
    store = CheckpointStore(tmp_path)
    path = save(store, 1)
    wrong = {
        "missing": {"model.other": torch.zeros(2)},
        "shape": {"model.w1": torch.zeros(4, 6)},
        "type": {"model.w1": torch.zeros(4, 5, dtype=torch.int64)},
    }[change]
    with pytest.raises(CorruptError, match=next(iter(wrong))):
        store.load(path, Snapshot(logical(wrong, {})))


def test_a_layout_that_leads_elsewhere_or_is_of_another_version_is_refused(tmp_path):
    path = save(CheckpointStore(tmp_path), 1)
    text = (path / "layout.json").read_text()
    (path / "layout.json").write_text(text.replace('"model.safetensors"', '"../../secret.safetensors"'))
    with pytest.raises(CorruptError, match="allowed are files of its own folder"):
        CheckpointStore(tmp_path).names(path)
    (path / "layout.json").write_text(text.replace('"version": 1', '"version": 99'))
    with pytest.raises(CorruptError, match="version 99, this program reads version 1"):
        CheckpointStore(tmp_path).names(path)


def test_the_values_of_a_training_state_come_back_exactly():
    state = TrainState(
        step=7,
        tokens=10**13,
        batches={"epoch": 1, "nested": {"credit": 0.1 + 0.2}},
        window={"loss": 1 / 3},
        best={"loss": 2.5, "step": 5},
    )
    assert TrainState.of(json.loads(json.dumps(state.values()))) == state
    with pytest.raises(CorruptError):
        TrainState.of({"steps": 1})


def test_the_random_state_goes_on_where_it_was():
    before = torch.get_rng_state()
    try:
        saved = train_state.random_states()
        first = torch.rand(3)
        train_state.restore_random_states(saved)
        assert torch.equal(torch.rand(3), first)
    finally:
        torch.set_rng_state(before)
