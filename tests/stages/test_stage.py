"""What decides the output of a stage, and how one is executed."""

from dataclasses import replace

import pytest

from puna.core import config
from puna.core.errors import MissingError, UsageError
from puna.lineage.artifact import read_record
from puna.lineage.step import DriftError
from puna.stages import stage as stage_module
from puna.stages.stage import execute, find_stage, identity


def load(made, *overrides):
    return config.load(made.recipe, None, overrides)


def test_identity_leaves_out_paths_names_and_neutral_fields(toys):
    assert identity(toys.write, load(toys.write, "out=x", "text=a", "name=n").config) == {"text": "a", "times": 1}
    assert identity(toys.copy, load(toys.copy, "out=x", "source=y").config) == {"fail": False}


def test_an_unknown_stage_is_answered_with_the_nearest(toys):
    with pytest.raises(UsageError, match="Did you mean 'write'"):
        find_stage("wirte")


def test_a_stage_runs_once_whatever_its_neutral_fields_say(toys, workplace):
    execute(toys.write, load(toys.write, "out=o", "text=a"))
    outcome = execute(toys.write, load(toys.write, "out=o", "text=a", "threads=7"))
    assert outcome is not None
    assert (outcome.action, toys.calls) == ("skip", ["write"])


def test_the_run_folder_holds_a_recipe_that_gives_the_same_config_back(toys, workplace):
    resolved = load(toys.write, "out=o", "text=a", "times=3")
    execute(toys.write, resolved)
    assert config.load(toys.write.recipe, workplace / "o/config.toml").config == resolved.config


def test_the_same_content_at_another_place_is_the_same_input(toys, workplace):
    for folder in ("p", "q"):
        execute(toys.write, load(toys.write, f"out={folder}", "text=a"))
    execute(toys.copy, load(toys.copy, "out=o", "source=p"))
    outcome = execute(toys.copy, load(toys.copy, "out=o", "source=q"))
    assert outcome is not None
    assert outcome.action == "skip"


def test_a_dry_run_makes_nothing_and_says_what_it_would_do(toys, workplace, capsys):
    assert execute(toys.write, load(toys.write, "out=o", "text=abc"), dry_run=True) is None
    told = capsys.readouterr().out
    assert "would run" in told
    assert "bytes" in told
    assert not (workplace / "o").exists()
    assert toys.calls == []


def test_a_dry_run_tells_a_missing_input_and_its_maker(toys, workplace):
    resolved = load(toys.copy, "out=o", "source=p")
    with pytest.raises(MissingError, match="Make it first: puna write p"):
        execute(toys.copy, resolved, dry_run=True, makers={workplace / "p": "puna write p.toml"})


def test_a_dry_run_whose_estimate_misses_something_that_no_step_will_make_fails(toys, workplace, capsys):
    def plan(recipe):
        raise MissingError("nothing to read")

    stage = replace(toys.copy, plan=plan)
    execute(toys.write, load(toys.write, "out=p", "text=a"))
    with pytest.raises(MissingError, match="nothing to read"):
        execute(stage, load(stage, "out=o", "source=p"), dry_run=True)
    assert "would run" not in capsys.readouterr().out
    execute(stage, load(stage, "out=o", "source=p"), dry_run=True, promised=[workplace / "p"])


def test_a_note_on_the_run_stands_in_its_log_alone(toys, workplace, capsys):
    execute(toys.write, load(toys.write, "out=o", "text=a"), opening="threads sleep")
    assert "threads sleep" not in capsys.readouterr().out
    assert "threads sleep" in (workplace / "o/log.txt").read_text()


def test_a_dry_run_tells_drift(toys, workplace):
    execute(toys.write, load(toys.write, "out=o", "text=a"))
    with pytest.raises(DriftError, match="text: a -> b"):
        execute(toys.write, load(toys.write, "out=o", "text=b"), dry_run=True)
    record = read_record("o")
    assert record is not None
    assert record.config["text"] == "a"


def test_every_stage_in_the_table_keeps_the_contract():
    for verb in stage_module.STAGES:
        made = find_stage(verb)
        assert made.verb == verb
        assert issubclass(made.recipe, stage_module.StageRecipe)
        for key in made.neutral:
            assert key.split(".")[0] in made.recipe.model_fields
        for name, field in made.recipe.model_fields.items():
            assert field.description, f"{verb}: field {name} has no docstring"
