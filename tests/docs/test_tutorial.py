"""The tutorial, typed: every command of it, in an empty folder, in order. Takes as long as the tutorial says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, console_lines

SCRIPTS = Path(sys.executable).parent
SKIPPED = ("make ", "puna serve ")  # set-up is the reader's; a server does not end by itself, tests/serve has it


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_of_the_tutorial_ends_well(tmp_path):
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    for _, line in console_lines(ROOT / "docs/tutorial.md"):
        if line.startswith(SKIPPED):
            continue
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, input="", capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs/demo/report/report.html").is_file()
