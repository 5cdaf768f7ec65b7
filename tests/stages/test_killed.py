"""A pipeline killed with SIGKILL in four stages and started again ends with the same bytes as an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time

from puna.core.files import fingerprint
from tests.tiny import write_tiny_pipeline

PRODUCTS = ("corpus", "tokenizer", "shards", "base", "sft", "rs", "reward", "dpo", "assistant")
COMMAND = ("run", "recipes/run.toml")


def begin(folder, *command):
    """A `puna` command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "puna.cli.main", *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_once_there(process, path, seconds=120.0):
    """SIGKILL as soon as `path` exists; whether that came before the end of the process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if path.exists():
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.005)
    process.kill()
    process.communicate()
    return False


def finish(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


def test_kills_change_nothing(tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, rough):
        write_tiny_pipeline(folder)
    finish(begin(calm, *COMMAND))
    runs = rough / "runs"
    assert kill_once_there(begin(rough, *COMMAND), runs / "corpus" / "work")
    assert kill_once_there(begin(rough, *COMMAND), runs / "base" / "checkpoints" / "step-00000020")
    assert kill_once_there(begin(rough, *COMMAND), runs / "reward" / "checkpoints" / "step-00000004")
    assert kill_once_there(begin(rough, *COMMAND), runs / "assistant" / "checkpoints" / "step-00000003")
    assert "resum" in finish(begin(rough, *COMMAND))
    for name in PRODUCTS:
        assert fingerprint(runs / name) == fingerprint(calm / "runs" / name), name
    scores = [json.loads((folder / "runs" / "summary.json").read_text())["exercises"] for folder in (calm, rough)]
    assert scores[0] == scores[1]
