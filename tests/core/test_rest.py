"""Errors, run folder, batch, console and interrupts."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from puna.core import console
from puna.core.batch import IGNORE, PackedBatch
from puna.core.dialog import Dialog
from puna.core.errors import ConfigError, MissingError, PunaError, Stopped, UsageError, need
from puna.core.interrupt import StopRequest, stoppable
from puna.core.run_folder import RunFolder


def test_exit_codes_follow_the_style_guide():
    codes = {PunaError: 1, UsageError: 2, ConfigError: 2, MissingError: 3, Stopped: 75}
    assert {kind: kind.exit_code for kind in codes} == codes


def test_a_missing_extra_names_the_pip_line():
    with pytest.raises(MissingError, match=r"pip install 'puna\[serve\]'"):
        need("not_a_module_at_all", extra="serve")
    assert need("json", extra="serve").__name__ == "json"


def test_two_processes_cannot_hold_one_run_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    program = (
        "from puna.core.run_folder import RunFolder\n"
        f"import sys\ntry:\n    with RunFolder({str(run.path)!r}).lock(): pass\nexcept Exception as e:\n    print(e); sys.exit(e.exit_code)\n"
    )
    with run.lock():
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"in use by process {os.getpid()}" in done.stdout
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_cut_metrics_line_is_left_out_and_later_records_can_be_dropped(tmp_path):
    run = RunFolder(tmp_path)
    for step in range(4):
        run.metrics({"step": step})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "lo')
    run.keep_metrics(lambda r: r["step"] <= 2)
    run.metrics({"step": 3, "again": True})
    assert [r["step"] for r in run.read_metrics()] == [0, 1, 2, 3]


def test_the_first_signal_is_a_request_and_the_second_an_order():
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_rows_of_a_batch_keep_their_pieces():
    tokens = np.arange(12).reshape(3, 4)
    targets = tokens + 1
    targets[1, 3] = IGNORE
    batch = PackedBatch(tokens, targets, np.zeros((3, 4), np.int32), np.array([1, 3, 4, 2, 2]), 11)
    part = batch.rows(1, 3)
    assert part.lengths.tolist() == [4, 2, 2]
    assert part.n_targets == 7
    assert batch.rows(0, 1).lengths.tolist() == [1, 3]


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_SECONDS", 0.0)
    with console.progress("reading", total=4, unit="docs") as bar:
        bar.note("a.txt")
        bar.advance(2)
    line = capsys.readouterr().out
    assert "reading: 2/4 docs" in line
    assert "eta" in line
    assert "a.txt" in line


def test_text_with_brackets_is_printed_as_it_is(capsys):
    console.say("[red]not markup[/red] [1, 2]")
    console.table("a [b]", ["x", "n"], [["[y]", 3]])
    out = capsys.readouterr().out
    assert "[red]not markup[/red] [1, 2]" in out
    assert "[y]" in out


def test_a_row_of_a_table_is_one_line_in_a_pipe(capsys):
    console.table("", ["step", "why"], [["02-gopher_repetition", "many words " * 30]])
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["step", "02-gopher_repetition"]


def test_numbers_are_short():
    assert [console.short_number(x) for x in (0, 7, 1234, 1_234_567)] == ["0", "7", "1.23k", "1.23M"]
    assert [console.short_time(x) for x in (3, 75, 3700)] == ["3s", "1m15s", "1h01m"]
    assert [console.short_bytes(x) for x in (12, 1536, 3 << 30)] == ["12 B", "1.5 KiB", "3.0 GiB"]


def test_a_dialog_grows_without_changing():
    dialog = Dialog.of(("user", "Hi"))
    assert dialog.plus("assistant", "Hello").as_messages()[-1] == {"role": "assistant", "content": "Hello"}
    assert len(dialog.messages) == 1
    with pytest.raises(AssertionError):
        Dialog.of(("robot", "x"))  # type: ignore[arg-type]


def test_a_job_that_is_ended_before_it_can_save_says_that_it_goes_on():
    with pytest.raises(Stopped, match="the same command goes on") as caught, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.exit_code == 75


def test_a_forked_child_of_a_stoppable_job_ends_as_ever():
    ready, tell = os.pipe()
    with stoppable():
        child = os.fork()
        if not child:
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)  # a signal that comes while a child begins is lost
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
