"""Metrics are mirrored once, into the same tracked run, whatever happened in between."""

import importlib.util
import json
import sys

import pytest

from puna.core.errors import MissingError
from puna.core.run_folder import RunFolder
from puna.train.tracking import Mirror, TrackingConfig, read_state, tracked


class Kept:
    def __init__(self):
        self.sent = []

    def send(self, figures, step):
        self.sent.append((step, dict(figures)))

    def close(self):
        pass


def record(step, kind="train", **figures):
    return {"kind": kind, "step": step, "loss": 1.0 / step, **figures}


def test_numbers_are_sent_under_the_kind_of_their_record(tmp_path):
    kept = Kept()
    Mirror(RunFolder(tmp_path), [kept])(record(2, mfu=None, note="x", done=True))
    assert kept.sent == [(2, {"train/loss": 0.5})]


def test_a_run_that_goes_on_sends_no_step_twice_and_misses_none(tmp_path):
    run, kept = RunFolder(tmp_path), Kept()
    first = Mirror(run, [kept])
    for step in (1, 2, 3):
        run.metrics(record(step))
        if step < 3:  # killed after the file was written and before step 3 was sent
            first(record(step))
    run.keep_metrics(lambda r: True)
    again = Mirror(run, [kept])
    again.catch_up()
    for step in (2, 3, 4):  # made again from the checkpoint of step 1
        again(record(step))
    assert [step for step, _ in kept.sent] == [1, 2, 3, 4]


def test_kinds_are_counted_apart(tmp_path):
    kept = Kept()
    mirror = Mirror(RunFolder(tmp_path), [kept])
    mirror(record(4))
    mirror(record(4, kind="evaluation"))
    assert len(kept.sent) == 2


def test_nothing_is_imported_or_written_where_nothing_is_tracked(tmp_path):
    run = RunFolder(tmp_path)
    with tracked(run, TrackingConfig(), speaks=True):
        run.metrics(record(1))
    assert not (tmp_path / "tracking.json").exists()
    with tracked(run, TrackingConfig(to=("tensorboard",)), speaks=False):
        run.metrics(record(2))
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, service):
    monkeypatch.setitem(sys.modules, service, None)
    with (
        pytest.raises(MissingError, match=r"puna\[tracking\]"),
        tracked(RunFolder(tmp_path), TrackingConfig(to=(service,)), speaks=True),
    ):
        pass


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_holds_each_step_once_after_a_restart(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(to=("tensorboard",))
    for steps in ((1, 2), (2, 3)):
        run = RunFolder(tmp_path)
        run.keep_metrics(lambda r, first=steps[0]: r["step"] < first)
        with tracked(run, config, speaks=True):
            for step in steps:
                run.metrics(record(step))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    config = TrackingConfig(to=("wandb",), mode="offline")
    for step in (1, 2):
        run = RunFolder(tmp_path)
        with tracked(run, config, speaks=True):
            run.metrics(record(step))
    identity = read_state(RunFolder(tmp_path))["id"]
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert folders and all(folder.name.endswith(identity) for folder in folders)
    assert json.loads((tmp_path / "tracking.json").read_text())["sent"] == {"train": 2}
