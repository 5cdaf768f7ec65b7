"""Rounds killed with SIGKILL in the middle of either round and started again end with the same bytes as undisturbed ones."""

import json
import shutil

import pytest

from puna.core.files import fingerprint
from tests.stages.test_killed import begin, finish, kill_once_there
from tests.stages.test_rounds import RECIPE, make_start

STEPS = ("items", "labels", "preferences", "reward", "samples", "sft", "dpo", "ppo", "average")
COMMAND = ("round", "rounds.toml", "rounds=2")


def figures(folder):
    found = json.loads((folder / "runs/rounds/summary.json").read_text())
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.mark.slow  # eight processes
@pytest.mark.timeout(600)
def test_kills_in_both_rounds_change_nothing(tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    make_start(tmp_path / "made")
    for folder in (calm, rough):
        shutil.copytree(tmp_path / "made", folder / "start")
        (folder / "rounds.toml").write_text(RECIPE)
    finish(begin(calm, *COMMAND))
    home = rough / "runs/rounds"
    for place in (
        "round-1/labels",
        "round-1/reward/checkpoints",
        "round-1/samples/samples.jsonl",
        "round-2/items",
        "round-2/dpo/checkpoints",
        "round-2/ppo/work",
    ):
        assert kill_once_there(begin(rough, *COMMAND), home / place), place
    assert "is finished" in finish(begin(rough, *COMMAND))
    for number in (1, 2):
        for name in STEPS:
            step = f"runs/rounds/round-{number}/{name}"
            assert fingerprint(rough / step) == fingerprint(calm / step), step
    assert figures(rough) == figures(calm)
