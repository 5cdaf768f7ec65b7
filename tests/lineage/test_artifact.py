"""Records beside artifacts, and the walk up from one."""

import shutil

import pytest

from puna.core import files
from puna.core.errors import CorruptError, MissingError
from puna.lineage import artifact, runner
from puna.lineage.step import Step


def write(folder, text):
    (folder.path / "content.txt").write_text(text)


def step(output, inputs=None, text="made"):
    return Step("train", "tiny", 1, {"text": text}, inputs or {}, output, lambda folder: write(folder, text), "puna x")


@pytest.fixture
def chain(tmp_path):
    """source.txt -> a -> b, and source.txt -> b."""
    source = tmp_path / "source.txt"
    source.write_text("raw")
    runner.execute(step(tmp_path / "a", {"source": source}))
    runner.execute(step(tmp_path / "b", {"a": tmp_path / "a", "source": source}))
    return tmp_path


def test_ancestry_leads_from_an_artifact_up_to_what_no_step_made(chain):
    found = artifact.ancestry(chain / "b")
    assert [(a.path, a.depth) for a in found] == [(chain / "b", 0), (chain / "a", 1), (chain / "source.txt", 1)]
    assert [a.record is None for a in found] == [False, False, True]
    assert not any(a.changed for a in found)


def test_ancestry_of_a_model_begins_at_its_run(tmp_path):
    def run(folder):
        folder.model.mkdir()
        (folder.model / "weights").write_text("w")
        files.seal(folder.model, kind="checkpoint")

    outcome = runner.execute(Step("train", "t", 1, {}, {}, tmp_path / "base", run))
    assert artifact.ancestry(tmp_path / "base" / "model")[0].path == tmp_path / "base"
    assert outcome.fingerprint == files.fingerprint(tmp_path / "base" / "model")


def test_ancestry_survives_a_move_of_the_whole_tree(chain, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "tree"
    shutil.move(chain, moved)
    assert [a.path.name for a in artifact.ancestry(moved / "b")] == ["b", "a", "source.txt"]


def test_ancestry_tells_a_parent_that_changed_and_one_that_is_gone(chain):
    (chain / "source.txt").write_text("other")
    shutil.rmtree(chain / "a")
    by_name = {a.path.name: a for a in artifact.ancestry(chain / "b")}
    assert by_name["source.txt"].changed
    assert by_name["a"].changed
    assert by_name["a"].fingerprint is None


def test_a_record_comes_back_as_it_was_written(chain):
    record = artifact.read_record(chain / "b")
    assert record is not None
    artifact.write_record(chain / "b", record)
    assert artifact.read_record(chain / "b") == record
    assert record.inputs["a"].path == "../a"


def test_a_folder_without_a_record_has_none(tmp_path):
    assert artifact.read_record(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"inputs": {}, "colour": 1}'])
def test_a_damaged_record_is_corrupt_not_a_crash(tmp_path, text):
    (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(CorruptError, match=r"lineage\.json"):
        artifact.read_record(tmp_path)


def test_check_names_the_file_that_changed(chain):
    (chain / "a" / "content.txt").write_text("mode")
    with pytest.raises(CorruptError, match=r"content\.txt"):
        artifact.check(chain / "a")


def test_check_of_a_large_artifact_compares_sizes_without_hashing(chain, monkeypatch):
    monkeypatch.setattr(artifact, "FULL_CHECK_BYTES", 0)
    (chain / "a" / "content.txt").write_text("mode")
    artifact.check(chain / "a")
    (chain / "a" / "content.txt").write_text("longer")
    with pytest.raises(CorruptError, match=r"content\.txt"):
        artifact.check(chain / "a")


def test_check_of_something_unsealed_says_that_the_seal_is_missing(tmp_path):
    with pytest.raises(MissingError, match="checksums"):
        artifact.check(tmp_path)
