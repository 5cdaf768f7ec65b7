"""A step runs once, resumes, and refuses to be something else than it says."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from puna.core.errors import CorruptError, MissingError, PunaError, Stopped, UsageError
from puna.lineage import runner
from puna.lineage.artifact import read_record
from puna.lineage.step import DriftError, Step


class Work:
    """A step's body that counts its calls and can be told to fail."""

    def __init__(self, error=None):
        self.calls, self.error = 0, error

    def __call__(self, folder):
        self.calls += 1
        if self.error:
            (folder.path / "half.txt").write_text("half")
            raise self.error
        (folder.path / "whole.txt").write_text("whole")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.txt"
    path.write_text("raw")
    return path


def make(tmp_path, work, *, config=None, inputs=None, stage="train", **rest):
    out = tmp_path / "runs" / "out"
    return Step(stage, "tiny", 1, config or {"steps": 1}, inputs or {}, out, work, "puna train tiny.toml", **rest)


def test_a_finished_step_is_not_run_again(tmp_path, source):
    work = Work()
    first = runner.execute(make(tmp_path, work, inputs={"source": source}))
    second = runner.execute(make(tmp_path, work, inputs={"source": source}))
    assert (first.action, second.action, work.calls) == ("run", "skip", 1)
    assert first.fingerprint == second.fingerprint


def test_the_record_says_who_made_it_from_what(tmp_path, source):
    runner.execute(make(tmp_path, Work(), inputs={"source": source}))
    raw = json.loads((tmp_path / "runs/out/lineage.json").read_text())
    assert raw["status"] == "finished"
    assert raw["stage"] == "train"
    assert raw["inputs"]["source"]["path"] == "../../source.txt"
    assert raw["command"] == "puna train tiny.toml"
    assert str(tmp_path) not in json.dumps(raw)


def test_tuples_in_a_config_do_not_drift_against_their_record(tmp_path):
    work = Work()
    for _ in range(2):
        runner.execute(make(tmp_path, work, config={"betas": (0.9, 0.95)}))
    assert work.calls == 1


def test_changed_settings_are_refused_with_a_diff_and_nothing_is_lost(tmp_path):
    runner.execute(make(tmp_path, Work()))
    work = Work()
    with pytest.raises(DriftError, match="steps: 1 -> 2"):
        runner.execute(make(tmp_path, work, config={"steps": 2}))
    assert work.calls == 0
    assert (tmp_path / "runs/out/whole.txt").read_text() == "whole"


def test_a_changed_input_is_refused(tmp_path, source):
    runner.execute(make(tmp_path, Work(), inputs={"source": source}))
    source.write_text("other")
    with pytest.raises(DriftError, match="input source"):
        runner.execute(make(tmp_path, Work(), inputs={"source": source}))


def test_accepted_drift_keeps_the_output_and_is_remembered(tmp_path):
    made = runner.execute(make(tmp_path, Work()))
    work = Work()
    kept = runner.execute(make(tmp_path, work, config={"steps": 2}), accept_drift=True)
    again = runner.execute(make(tmp_path, work, config={"steps": 2}))
    assert (kept.fingerprint, kept.action, again.action, work.calls) == (made.fingerprint, "skip", "skip", 0)
    with pytest.raises(DriftError):
        runner.execute(make(tmp_path, work, config={"steps": 3}))


def test_fresh_moves_the_old_output_aside_and_runs(tmp_path):
    runner.execute(make(tmp_path, Work()))
    for number in (1, 2):
        work = Work()
        assert runner.execute(make(tmp_path, work, config={"steps": 2}), fresh=True).action == "run"
        assert work.calls == 1
        assert (tmp_path / f"runs/out.old-{number}/whole.txt").exists()


def test_both_ways_at_once_are_refused(tmp_path):
    with pytest.raises(UsageError, match="one of them"):
        runner.execute(make(tmp_path, Work()), accept_drift=True, fresh=True)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Stopped("saved"), "stopped"), (KeyboardInterrupt(), "stopped"), (ValueError("bad"), "failed")],
)
def test_an_unfinished_step_keeps_its_state_and_resumes(tmp_path, error, status):
    with pytest.raises(type(error)):
        runner.execute(make(tmp_path, Work(error)))
    record = read_record(tmp_path / "runs/out")
    assert record is not None
    assert record.status == status
    seen = []
    outcome = runner.execute(make(tmp_path, lambda folder: seen.append((folder.path / "half.txt").exists())))
    assert (outcome.action, seen) == ("resume", [True])


def test_an_unforeseen_error_leaves_its_traceback_in_the_log_and_says_where(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        runner.execute(make(tmp_path, lambda folder: 1 / 0))
    log = tmp_path / "runs/out/log.txt"
    assert f"log: {log}" in caught.value.__notes__
    assert "ZeroDivisionError" in log.read_text()


def test_drift_on_an_unfinished_step_is_told_and_can_be_accepted(tmp_path):
    with pytest.raises(Stopped):
        runner.execute(make(tmp_path, Work(Stopped("saved"))))
    with pytest.raises(DriftError, match="unfinished"):
        runner.execute(make(tmp_path, Work(), config={"steps": 2}))
    assert runner.execute(make(tmp_path, Work(), config={"steps": 2}), accept_drift=True).action == "resume"
    record = read_record(tmp_path / "runs/out")
    assert record is not None
    assert record.config == {"steps": 2}
    assert record.accepted[0]["differences"] == ["steps: 1 -> 2"]


def test_a_missing_input_names_the_command_that_makes_it_and_leaves_no_folder(tmp_path):
    step = make(tmp_path, Work(), inputs={"shards": tmp_path / "shards"}, makers={"shards": "puna tokenize pack x"})
    with pytest.raises(MissingError, match="Make it first: puna tokenize pack x"):
        runner.execute(step)
    assert not (tmp_path / "runs").exists()


def test_an_unfinished_input_names_the_command_that_finishes_it(tmp_path):
    with pytest.raises(Stopped):
        runner.execute(make(tmp_path, Work(Stopped("saved"))))
    step = Step("sft", "s", 1, {}, {"base": tmp_path / "runs/out"}, tmp_path / "sft", Work())
    with pytest.raises(MissingError, match=r"not finished.*puna train tiny\.toml"):
        runner.execute(step)


def test_an_empty_folder_as_input_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="empty folder"):
        runner.execute(make(tmp_path, Work(), inputs={"text": tmp_path / "empty"}))


def test_a_tampered_output_is_corrupt_not_finished(tmp_path):
    runner.execute(make(tmp_path, Work()))
    (tmp_path / "runs/out/whole.txt").write_text("whale")
    with pytest.raises(CorruptError, match=r"whole\.txt.*--fresh"):
        runner.execute(make(tmp_path, Work()))


def test_an_output_sealed_anew_after_tampering_is_still_found_out(tmp_path):
    from puna.core import files

    runner.execute(make(tmp_path, Work()))
    (tmp_path / "runs/out/whole.txt").write_text("whale")
    files.seal(tmp_path / "runs/out", kind="train")
    with pytest.raises(CorruptError, match="changed after it was finished"):
        runner.execute(make(tmp_path, Work()))


def test_a_tampered_input_is_corrupt(tmp_path):
    runner.execute(make(tmp_path, Work()))
    (tmp_path / "runs/out/whole.txt").write_text("whale")
    with pytest.raises(CorruptError, match=r"whole\.txt"):
        runner.execute(Step("sft", "s", 1, {}, {"base": tmp_path / "runs/out"}, tmp_path / "sft", Work()))


def test_a_folder_that_no_run_made_is_left_alone_even_by_fresh(tmp_path):
    out = tmp_path / "runs/out"
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"thesis\.tex"):
            runner.execute(make(tmp_path, Work()), fresh=fresh)
    assert (out / "thesis.tex").exists()


def test_a_step_killed_while_it_wrote_its_first_record_starts_again(tmp_path):
    step, left = make(tmp_path, Work()), ".tmp-abc-lineage.json"
    step.output.mkdir(parents=True)
    (step.output / left).write_text("{")
    assert runner.execute(step).action == "run"
    assert not (step.output / left).exists()


def test_a_folder_of_another_stage_is_refused(tmp_path):
    runner.execute(make(tmp_path, Work()))
    with pytest.raises(UsageError, match="puna train"):
        runner.execute(make(tmp_path, Work(), stage="sft"))


def test_an_input_inside_the_output_is_refused(tmp_path):
    out = tmp_path / "runs/out"
    with pytest.raises(UsageError, match="lies in the output"):
        runner.execute(make(tmp_path, Work(), inputs={"text": out / "raw"}))


def _hold(path, ready, release):
    from puna.core.run_folder import RunFolder

    with RunFolder(path).lock():
        ready.set()
        release.wait(30)


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "runs/out", ready, release))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
            runner.execute(make(tmp_path, Work()))
    finally:
        release.set()
        holder.join()


KILLED = """
    import sys, time
    from pathlib import Path
    from puna.lineage import runner
    from puna.lineage.step import Step

    def work(folder):
        if not (folder.path / "half.txt").exists():
            (folder.path / "half.txt").write_text("half")
            time.sleep(60)
        (folder.path / "whole.txt").write_text("whole")

    runner.execute(Step("train", "tiny", 1, {}, {}, Path(sys.argv[1]), work))
"""


def test_a_killed_step_is_unfinished_and_keeps_the_seconds_that_it_worked(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(out)])
    deadline = time.monotonic() + 30
    while not (out / "half.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.6)
    (out / "work.log").write_text("alive")  # the last sign of life
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    record = read_record(out)
    assert record is not None
    assert record.status == "running"
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(out)], check=True)
    record = read_record(out)
    assert record is not None
    assert record.status == "finished"
    assert 0.5 < record.seconds < 30


@pytest.mark.parametrize("error", [PunaError("the disk is full"), Stopped("saved"), UsageError("no such row")])
def test_an_end_that_cannot_be_recorded_does_not_hide_why_the_work_ended(tmp_path, monkeypatch, error):
    write = runner.write_record

    def full(folder, record):
        if record.status != "running":
            raise PunaError("cannot write lineage.json: No space left on device")
        write(folder, record)

    monkeypatch.setattr(runner, "write_record", full)
    with pytest.raises(type(error), match=str(error)):
        runner.execute(make(tmp_path, Work(error)))
