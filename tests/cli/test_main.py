"""The edge of the process: quick help, messages in one form, exit codes, no traceback."""

import os
import re
import signal
import subprocess
import sys
import time

import click
import pytest

from puna.cli import main
from puna.core.errors import GateError, MissingError, Stopped, UsageError

HEAVY = {"torch", "rich", "pydantic", "numpy", "safetensors", "tiktoken", "fastapi", "pyarrow"}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    """Logs of unforeseen errors go to a folder of the test."""
    monkeypatch.setenv("PUNA_HOME", str(tmp_path_factory.mktemp("home")))


def puna(*words, **settings):
    return subprocess.run(
        [sys.executable, "-m", "puna.cli.main", *words], capture_output=True, text=True, timeout=120, **settings
    )


def test_help_loads_nothing_heavy():
    code = "import sys; from puna.cli.main import run; code = run(['--help']); print(code, *sys.modules)"
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY.isdisjoint(words)


def test_the_package_can_be_run_as_a_module():
    done = subprocess.run([sys.executable, "-m", "puna", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("puna ")
    code = "import sys, puna.__main__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("verb", main.VERBS)
def test_help_of_every_verb_loads_no_torch_and_ends_with_examples(verb):
    code = f"import sys; from puna.cli.main import run; code = run(['{verb}', '--help']); print(code, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.rpartition("\n0 ")
    assert {"torch", "pydantic"}.isdisjoint(modules.split())
    *_, examples = text.partition("Examples:")
    assert re.search(rf"^ +puna {verb}", examples, re.MULTILINE)


def test_help_answers_in_a_moment():
    best = min(_seconds_of_help() for _ in range(5))
    assert best < 1.0  # below 0.3 s on a quiet machine: benchmarks/cli_start.py; this machine may be busy


def _seconds_of_help():
    start = time.perf_counter()
    puna("--help")
    return time.perf_counter() - start


@pytest.mark.parametrize(("verb", "line"), main.VERBS.items())
def test_the_table_says_what_the_verb_says(verb, line):
    command = main.cli.get_command(click.Context(main.cli), verb)
    assert command is not None
    assert (command.help or "").strip().splitlines()[0] == line
    assert command.name == verb


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["trian"], 2, ["no verb 'trian'", "Did you mean `puna train`?", "puna --help"]),
        (["xyz"], 2, ["no verb 'xyz'", "Verbs are: run, demo"]),
        (["train"], 2, ["missing argument 'RECIPE'", "puna train --help"]),
        (["train", "x.toml", "--dryrun"], 2, ["no such option", "--dry-run"]),
        (["train", "nowhere.toml"], 3, ["recipe nowhere.toml is not there"]),
        (["tokenize", "pock"], 2, ["pock"]),
        (["chat"], 2, ["missing argument 'PATH'"]),
        (["chat", "x", "--temperature", "hot"], 2, ["hot"]),
        (["chat", "x", "--top-p", "3"], 2, ["0<=x<=1"]),
        (["show", "--stage", "trian"], 2, ["no stage 'trian'", "'train'"]),
        (["serve", "x", "prot=80"], 2, ["unknown key 'prot'", "Did you mean 'port'"]),
        (["serve", "x", "--port", "99999"], 2, ["port is 99999"]),
        (["serve", "x", "--api-key-file", "nowhere"], 3, ["key file nowhere is not there"]),
    ],
)
def test_a_wrong_command_gets_a_message_and_its_exit_code(words, code, parts, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(words) == code
    out, err = capfd.readouterr()
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []
    assert out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no"), 2),
        (MissingError("no"), 3),
        (GateError("no"), 4),
        (Stopped("no"), 75),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file or directory", "lost.txt"), 1),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error, code, monkeypatch, tmp_path, capfd):
    def fail(*_, **__):
        raise error

    monkeypatch.setenv("PUNA_HOME", str(tmp_path))
    monkeypatch.setattr(main.cli, "main", fail)
    assert main.run([]) == code
    told = capfd.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told


def test_an_unforeseen_error_keeps_its_traceback_in_a_file_that_it_names(monkeypatch, tmp_path, capfd):
    def fail(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setenv("PUNA_HOME", str(tmp_path))
    monkeypatch.setattr(main.cli, "main", fail)
    main.run([])
    log = re.search(r"the traceback is in (\S+)", capfd.readouterr().err)
    assert log is not None
    with open(log.group(1)) as file:
        assert "in fail" in file.read()


def test_an_unforeseen_error_in_a_run_names_the_log_of_the_run(monkeypatch, tmp_path, capfd):
    error = ZeroDivisionError("division by zero")
    error.add_note("log: runs/x/log.txt")

    def fail(*_, **__):
        raise error

    monkeypatch.setenv("PUNA_HOME", str(tmp_path))
    monkeypatch.setattr(main.cli, "main", fail)
    main.run([])
    assert "runs/x/log.txt" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_leaves_no_complaint():
    command = f"{sys.executable} -m puna.cli.main serve x --settings | head -n 1; exit ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_a_reader_that_closes_before_the_first_word_leaves_no_complaint():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "puna.cli.main", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_with_130_and_one_line():
    code = (
        "import time, sys; from puna.cli import main\n"
        "def wait(**_): print('ready', flush=True); time.sleep(60)\n"
        "main.cli.callback = wait; main.cli.invoke_without_command = True; main.cli.no_args_is_help = False\n"
        "main.main([])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell without job control starts background jobs, these tests perhaps, with Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "error: interrupted"


def test_no_words_print_the_help_and_fail(capfd):
    assert main.run([]) == 2
    assert "Verbs:" in capfd.readouterr().err


def test_the_version_is_the_package_version(capfd):
    from puna import __version__

    assert main.run(["--version"]) == 0
    assert capfd.readouterr().out == f"puna {__version__}\n"
