"""Shipped recipes: found, copied, printed, checked; and every one of them fits its stage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from puna.cli.main import run
from puna.stages import recipes, showing
from puna.stages.recipes import packaged_recipes


def test_every_shipped_recipe_is_in_order():
    problems, checked = showing.validate([str(path) for path in sorted(packaged_recipes().rglob("*.toml"))])
    assert problems == []
    assert checked > 30


def test_each_method_has_a_recipe_of_each_size_it_can_be_run_in():
    names = recipes.recipe_names()
    sizes = {f"{method}/{size}" for method in ("sft", "rm", "dpo", "ppo") for size in ("1b", "8b", "70b")}
    assert sizes <= set(names)
    assert {"demo/sft", "demo/rm", "demo/dpo", "demo/ppo"} <= set(names)


@pytest.mark.parametrize(
    ("name", "size", "processes"),
    [("sft/8b", "8B", 8), ("sft/70b", "70B", 64), ("rm/8b", "8B", 8), ("rm/70b", "70B", 64), ("dpo/8b", "8B", 8)],
)
def test_the_layout_of_a_large_recipe_is_one_that_can_be(name, size, processes):
    from puna.model.config import SIZES
    from puna.train.parallel_config import Work, check

    recipe = showing.resolve(recipes.find_recipe(name)).resolved.config
    layout = recipe.parallel.resolve(processes)
    work = Work(recipe.data.rows, recipe.data.sequence_length, recipe.train.accumulation, "cuda")
    check(layout, SIZES[size], work)


def test_cp_writes_what_cat_prints_and_does_not_overwrite(tmp_path, capsys):
    assert run(["recipes", "cp", "demo/sft", str(tmp_path / "mine.toml")]) == 0
    capsys.readouterr()
    assert run(["recipes", "cat", "demo/sft"]) == 0
    assert capsys.readouterr().out == (tmp_path / "mine.toml").read_text()
    assert run(["recipes", "cp", "demo/dpo", str(tmp_path / "mine.toml")]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["recipes", "cp", "demo/dpo", str(tmp_path / "mine.toml"), "--force"]) == 0
    assert run(["recipes", "cp", "demo/dpo", str(tmp_path / "folder")]) == 0
    assert (tmp_path / "folder" / "dpo.toml").read_text() == (tmp_path / "mine.toml").read_text()


@pytest.mark.parametrize("name", recipes.recipe_names())
def test_a_copy_of_a_recipe_is_shown_and_checked_wherever_it_lies(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["recipes", "cp", name, "mine.toml"], ["show", "mine.toml"], ["recipes", "validate", "mine.toml"]):
        assert run(words) == 0, capsys.readouterr().err


def test_a_copied_pipeline_names_the_recipes_of_its_steps_in_full(tmp_path, capsys):
    assert run(["recipes", "cp", "demo", str(tmp_path / "mine.toml")]) == 0
    assert run(["recipes", "cp", "round/two", str(tmp_path / "rounds.toml")]) == 0
    assert 'recipe = "demo/pretrain"' in (tmp_path / "mine.toml").read_text()
    assert 'before = "round/start"' in (tmp_path / "rounds.toml").read_text()


def test_a_copied_pipeline_runs_and_what_it_misses_is_told_with_its_step(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", "cp", "demo", "my dir/"]) == 0
    assert "puna show 'my dir/run.toml'" in capsys.readouterr().out
    assert run(["run", "my dir/run.toml", "--dry-run"]) == 0
    path = tmp_path / "my dir/run.toml"
    path.write_text(path.read_text().replace("demo/crawl", "crawl.toml"))
    (tmp_path / "c.toml").write_text("")
    capsys.readouterr()
    assert run(["run", "my dir/run.toml", "--dry-run"]) == 3
    told = capsys.readouterr().err
    assert "my dir/run.toml: steps.0 'crawl': recipe crawl.toml" in told and "c.toml?" not in told


def test_cp_makes_no_folder_of_a_mistyped_one(tmp_path, capsys):
    assert run(["recipes", "cp", "demo/sft", str(tmp_path / "nodir/x.toml")]) == 3
    assert "nodir is not there" in capsys.readouterr().err
    assert not (tmp_path / "nodir").exists()


def test_validate_counts_one_recipe_as_one(tmp_path, capsys):
    (tmp_path / "a.toml").write_text("# puna sft\n")
    assert run(["recipes", "validate", str(tmp_path / "a.toml")]) == 2
    assert "1 recipe checked" in capsys.readouterr().err


def test_validate_tells_every_problem_of_every_file(tmp_path, capsys):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('# puna sft\nout = "x"\nstart_from = "y"\ndialogs = ["d"]\n[train]\nstepz = 3\naccumulation = 0\n')
    second.write_text('# puna dpo\nout = "x"\n')
    assert run(["recipes", "validate", str(first), str(second), "demo/sftt"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for part in (
        "'train.stepz'. Did you mean 'train.steps'?",
        "train.accumulation",
        "'start_from' must be given",
        "Did you mean demo/sft?",
    ):
        assert part in said
    assert run(["recipes", "validate", "demo"]) == 0  # a pipeline with all its steps


def test_ls_lists_by_verb_and_refuses_what_is_not_there(capsys):
    assert run(["recipes", "ls", "sft"]) == 0
    assert "sft/70b" in capsys.readouterr().out
    assert run(["recipes", "ls", "nothing-like-it"]) == 3


def test_show_of_a_stage_prints_its_defaults_and_what_must_be_given(capsys):
    assert run(["show", "--stage", "tokenize train"]) == 0
    out = capsys.readouterr().out
    assert "must be given" in out and "corpus = ?" in out


@pytest.mark.parametrize("words", [["recipes", "cat", "demo/sft"], ["--help"], ["show", "demo/pretrain"]])
def test_a_reader_that_goes_away_is_no_failure(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "puna.cli.main", *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dry_run_refuses_a_device_that_is_not_here(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["dpo", "demo/dpo", "--dry-run", "train.device=cuda", f"out={Path('runs/none')}"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "told"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False)])
def test_serving_to_everybody_without_a_key_is_told(monkeypatch, capsys, host, told):
    from puna.core.errors import UsageError
    from puna.serve import server

    def busy(config):
        raise UsageError("the port is in use")

    monkeypatch.setattr(server, "listen", busy)
    assert run(["serve", "nowhere", "--host", host]) == 2
    assert ("anyone who reaches" in capsys.readouterr().err) is told


@pytest.mark.parametrize("content", [b'{"prompt": "a"\n', b"", b'{"prompt": "caf\xe9", "chosen": "a"}\n'])
def test_a_dry_run_reads_the_rows(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(content)
    Path("ppo.toml").write_text(
        '# puna ppo\nout = "a"\nstart_from = "x"\nreward_model = "z"\nprompts = ["rows.jsonl"]\n'
    )
    for words in (
        ["dpo", "dpo/1b", "start_from=x", "pairs=rows.jsonl"],
        ["sample", "demo/sample", "prompts=rows.jsonl", "reward_model=z"],
        ["ppo", "ppo.toml"],
    ):
        assert run([*words, "--dry-run"]) == 2, words
        assert "rows.jsonl" in capsys.readouterr().err


def test_records_that_cannot_be_read_are_told_where_an_editor_finds_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("art").mkdir()
    Path("art/a.jsonl").write_text('{"text": "some words that stay"}\n{"text": "abc\n')
    Path("c.toml").write_text('out = "corpus"\n[[sources]]\nname = "art"\nkind = "jsonl"\npath = "art"\n')
    assert run(["curate", "c.toml", "--dry-run"]) == 0
    assert "1 task, 1 part, " in capsys.readouterr().out
    assert run(["curate", "c.toml", "workers=1"]) == 0
    assert "source 'art': art/a.jsonl:2:10: malformed line: unterminated string" in capsys.readouterr().err
    Path("other").mkdir()
    assert run(["curate", "c.toml", "sources.0.path=other/nodir", "out=o", "--dry-run"]) == 3
    assert "sources.0.path other/nodir is not there" in capsys.readouterr().err
    Path("other/x.toml").write_text("")
    assert run(["curate", "c.toml", "sources.0.path=other", "out=o", "--dry-run"]) == 3
    assert run(["curate", "c.toml", "sources.0.path=other", "out=o"]) == 3
    assert not Path("o/lineage.json").exists()
