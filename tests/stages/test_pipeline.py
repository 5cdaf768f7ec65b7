"""Several stages in a row: checked before any work, resumable, with honest seconds."""

import json

import pytest

from puna.core.errors import ConfigError, MissingError
from puna.lineage.step import DriftError
from puna.stages import recipes
from puna.stages.makers import makers_near
from puna.stages.pipeline import plan_pipeline, run_pipeline, time_left
from puna.stages.showing import resolve, verb_of
from puna.stages.stage import find_stage


def test_a_pipeline_runs_its_steps_and_prints_commands_that_can_be_typed(toys, workplace, capsys):
    run_pipeline(workplace / "recipes/run.toml")
    told = capsys.readouterr().out
    assert "$ puna write recipes/first.toml times=2" in told
    assert "$ puna copy twice recipes/second.toml" in told
    assert told.rstrip().endswith("the text is in runs/second")
    assert (workplace / "runs/second/text.txt").read_text() == "abababab"


def test_a_failed_pipeline_goes_on_where_it_was(toys, workplace):
    with pytest.raises(AssertionError, match="told to fail"):
        run_pipeline(workplace / "recipes/run.toml", ["second.fail=true"])
    run_pipeline(workplace / "recipes/run.toml", accept_drift=True)
    assert toys.calls == ["write", "copy", "copy"]


def test_an_override_reaches_its_step_alone_and_drifts_if_finished(toys, workplace):
    run_pipeline(workplace / "recipes/run.toml")
    with pytest.raises(DriftError, match="times: 2 -> 3"):
        run_pipeline(workplace / "recipes/run.toml", ["first.times=3"])
    assert (workplace / "runs/second/text.txt").read_text() == "abababab"


def test_seconds_of_every_step_are_kept_beside_what_others_wrote(toys, workplace):
    (workplace / "runs").mkdir()
    (workplace / "runs/summary.json").write_text('{"exercises": {"n": 1}}')
    run_pipeline(workplace / "recipes/run.toml")
    summary = json.loads((workplace / "runs/summary.json").read_text())
    assert set(summary["seconds"]) == {"first", "second", "total"}
    assert summary["exercises"] == {"n": 1}


def test_seconds_survive_a_second_run_that_has_nothing_to_do(toys, workplace):
    run_pipeline(workplace / "recipes/run.toml")
    before = (workplace / "runs/summary.json").read_text()
    run_pipeline(workplace / "recipes/run.toml")
    assert (workplace / "runs/summary.json").read_text() == before


def test_a_dry_run_of_a_pipeline_waits_for_nothing_and_makes_nothing(toys, workplace, capsys):
    run_pipeline(workplace / "recipes/run.toml", dry_run=True)
    assert "would run after runs/first" in capsys.readouterr().out
    assert not (workplace / "runs").exists()


def test_problems_of_all_recipes_are_told_together_before_any_work(toys, workplace):
    (workplace / "recipes/first.toml").write_text('out = "runs/first"\ntxt = "ab"\n')
    (workplace / "recipes/second.toml").write_text('out = "runs/second"\nsource = "runs/first"\nfail = 7\n')
    with pytest.raises(ConfigError) as caught:
        run_pipeline(workplace / "recipes/run.toml")
    assert "txt" in str(caught.value)
    assert "fail is 7" in str(caught.value)
    assert toys.calls == []


def test_an_unknown_verb_in_a_pipeline_is_a_problem_of_the_recipe(toys, workplace):
    text = (workplace / "recipes/run.toml").read_text().replace("copy twice", "copy twise")
    (workplace / "recipes/run.toml").write_text(text)
    with pytest.raises(ConfigError, match="Did you mean 'copy twice'"):
        plan_pipeline(workplace / "recipes/run.toml")


def test_two_steps_of_one_name_are_refused(toys, workplace):
    text = (
        (workplace / "recipes/run.toml").read_text().replace("second.toml", "first.toml").replace("copy twice", "write")
    )
    (workplace / "recipes/run.toml").write_text(text)
    with pytest.raises(ConfigError, match="two steps are named 'first'"):
        plan_pipeline(workplace / "recipes/run.toml")


def test_a_missing_step_recipe_is_told_with_the_nearest(toys, workplace):
    (workplace / "recipes/second.toml").rename(workplace / "recipes/secund.toml")
    with pytest.raises(MissingError, match=r"recipe second\.toml is neither in .* Did you mean secund"):
        run_pipeline(workplace / "recipes/run.toml")


def test_the_maker_of_a_folder_is_found_in_the_pipeline_beside_a_recipe(toys, workplace):
    makers = {str(path): command for path, command in makers_near(workplace / "recipes/second.toml").items()}
    assert makers["runs/first"] == "puna write recipes/first.toml times=2"
    assert makers["runs/second"] == "puna copy twice recipes/second.toml"


@pytest.mark.parametrize("folder", ["round", "quality"])
def test_every_missing_input_of_a_packaged_recipe_has_a_command_that_makes_it(folder):
    for path in sorted((recipes.packaged_recipes() / folder).glob("*.toml")):
        shown, makers = resolve(path), makers_near(path)
        if shown.verb in ("run", "round"):
            continue
        for key, needed in find_stage(shown.verb).inputs(shown.resolved.config).items():
            made = [made for made in (needed, *needed.parents) if made in makers]
            assert made and makers[made[0]].startswith("puna "), f"{path.name}: {key} {needed}"


@pytest.mark.parametrize(
    ("expected", "spent", "finished", "left"),
    [
        ([10, 20], [0, 0], 0, 30),
        ([10, 20], [20, 0], 1, 40),  # twice as slow as expected so far
        ([10, 20], [10, 5], 1, 15),  # the second one was begun before
        ([0, 0], [3, 0], 1, None),
        ([10, 20], [10, 25], 1, None),
    ],
)
def test_the_time_left_follows_the_pace_so_far(expected, spent, finished, left):
    assert time_left(expected, spent, finished=finished) == left


def test_the_stage_of_a_recipe_is_told_from_its_pipeline_its_header_or_its_run(toys, workplace):
    assert verb_of(workplace / "recipes/run.toml") == "run"
    assert verb_of(workplace / "recipes/second.toml") == "copy twice"
    alone = workplace / "alone.toml"
    alone.write_text((workplace / "recipes/first.toml").read_text())
    assert verb_of(alone) == "write"
    alone.write_text('out = "x"\n')
    assert verb_of(alone) is None
    run_pipeline(workplace / "recipes/run.toml")
    assert resolve(workplace / "runs/second/config.toml").verb == "copy twice"


def test_recipes_are_found_by_path_then_by_name(toys, workplace, monkeypatch):
    monkeypatch.setattr(recipes, "packaged_recipes", lambda: workplace / "package")
    (workplace / "package/demo").mkdir(parents=True)
    for name in ("run", "pretrain"):
        (workplace / f"package/demo/{name}.toml").write_text("")
    assert recipes.find_recipe("demo").name == "run.toml"
    assert recipes.find_recipe("demo/pretrain").name == "pretrain.toml"
    assert recipes.find_recipe("recipes/first").as_posix() == "recipes/first.toml"
    assert recipes.recipe_names() == ["demo", "demo/pretrain", "demo/run"]
    with pytest.raises(MissingError, match="Did you mean demo/pretrain"):
        recipes.find_recipe("demo/pretrian")
    with pytest.raises(MissingError, match=r"Did you mean recipes/first\.toml"):
        recipes.find_recipe("recipes/frist.toml")


def test_packaged_recipes_are_typed_by_name_from_anywhere(toys, workplace, monkeypatch, tmp_path_factory):
    home = tmp_path_factory.mktemp("package")
    (home / "demo").mkdir()
    (home / "demo/sft.toml").write_text("")
    monkeypatch.setattr(recipes, "packaged_recipes", lambda: home)
    assert recipes.as_typed(home / "demo/sft.toml") == "demo/sft"
    assert recipes.as_typed(workplace / "recipes/first.toml") == "recipes/first.toml"
