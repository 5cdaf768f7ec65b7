"""A run that is refused before it made anything does not keep its folder from the corrected command."""

import os
from pathlib import Path

import pytest

from puna.core.errors import CorruptError, UsageError
from puna.lineage.artifact import read_record
from puna.lineage.runner import execute
from puna.lineage.step import Step


def step(folder, run, **config):
    return Step(stage="train", name="a", version=1, config=config, inputs={}, output=folder, run=run)


def refuse(folder):
    raise UsageError("the mix cannot be used")


def write(folder):
    (folder.path / "product.txt").write_text("made")


def test_a_refused_run_leaves_its_folder_free(tmp_path):
    with pytest.raises(UsageError, match="mix"):
        execute(step(tmp_path / "out", refuse, weight=1))
    assert execute(step(tmp_path / "out", write, weight=2)).action == "run"


def test_a_run_that_made_something_keeps_its_record(tmp_path):
    def half(folder):
        write(folder)
        refuse(folder)

    with pytest.raises(UsageError, match="mix"):
        execute(step(tmp_path / "out", half, weight=1))
    with pytest.raises(UsageError, match="weight"):
        execute(step(tmp_path / "out", write, weight=2))


def test_a_run_that_failed_before_any_work_does_not_block_the_corrected_command(tmp_path):
    def fail(folder):
        (folder.path / "work").mkdir()
        (folder.path / "work" / "recipe.json").write_text('"a"')
        raise CorruptError("labels.jsonl:2 is not JSON")

    with pytest.raises(CorruptError):
        execute(step(tmp_path / "out", fail, weight=1))
    record = read_record(tmp_path / "out")
    assert record and record.status == "failed"
    assert execute(step(tmp_path / "out", write, weight=2)).action == "run"


def test_an_input_whose_path_is_no_text_is_refused(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.write_text("x")
    asked = Step("train", "a", 1, {}, {"data": odd}, tmp_path / "out", write)
    with pytest.raises(UsageError, match=r"caf.* is not UTF-8"):
        execute(asked)
