"""The recipes for clusters, and those that `puna plan` writes, are layouts that the trainer accepts."""

import pytest

from puna.cli import main
from puna.model.config import SIZES
from puna.stages import recipes, showing
from puna.stages.pretrain import ramp_of
from puna.train.parallel_config import Work, problems

RECIPES = {"llama3-8b": 1024, "llama3-70b": 2048, "llama3-405b": 16_384, "continue-llama": 8, "long-context": 16}


def found_problems(path, world):
    recipe = showing.resolve(path).resolved.config
    shape = recipe.context.apply(SIZES["8B"]) if recipe.start_from else recipe.model.resolve(vocab_size=128_256)
    layout = recipe.parallel.resolve(world)
    works = [Work(recipe.data.rows, recipe.data.sequence_length, n, "cuda") for n in ramp_of(recipe).batches]
    return [problem for work in works for problem in problems(layout, shape, work)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_for_clusters_can_be_laid_out(name):
    assert found_problems(recipes.find_recipe(name), RECIPES[name]) == []


@pytest.mark.parametrize(
    "words",
    [
        ["70b", "512xH100", "8192", "4M"],
        ["8b", "8xH200", "8192", "1M"],
        ["8b", "64xH100", "128k", "4M"],
        ["405b", "16384xH100", "8192", "16M"],
        ["8b", "16xB200", "8192", "2M"],
    ],
)
def test_a_written_plan_is_a_recipe_that_can_be_laid_out(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, gpus, seq, batch = words
    question = ["--model", model, "--gpus", gpus, "--seq", seq, "--batch-tokens", batch]
    assert main.run(["plan", *question, "--write", "plan.toml"]) == 0
    assert found_problems(tmp_path / "plan.toml", int(gpus.partition("x")[0])) == []
