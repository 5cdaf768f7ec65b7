"""`puna plan` as its user sees it: layouts with reasons, a recipe, scores of predictions, and refusals."""

import json
import tomllib

import pytest

from puna.cli import main
from puna.core.errors import UsageError
from puna.stages.planning import find_shape, read_count, recipe_name
from tests.planner.rows import GOOD, published_file, write_csv

QUESTION = ["plan", "--model", "70b", "--gpus", "512xH100", "--seq", "8192", "--batch-tokens", "4M"]


def last_json(capfd):
    return json.loads(capfd.readouterr().out.strip().splitlines()[-1])


def test_a_plan_prints_layouts_and_reasons_and_writes_a_recipe(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(QUESTION) == 0
    out = capfd.readouterr().out
    assert "512 sequences of 8,192 tokens" in out
    assert "of the peak" in out
    assert "of the time counts" in out
    recipe = tomllib.loads((tmp_path / "70b-512xh100.toml").read_text())
    degrees = recipe["parallel"]
    product = 1
    for name in ("dp_replicate", "dp_shard", "cp", "tp", "pp"):
        product *= degrees[name]
    assert product == 512
    tokens = recipe["data"]["rows"] * recipe["data"]["sequence_length"] * recipe["train"]["accumulation"]
    assert tokens == 4 << 20
    assert recipe["model"]["size"] == "70B"


def test_the_recipe_of_a_published_shape_spells_it_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(["plan", "--model", "llama2-13b", "--gpus", "64xA100", "--seq", "4k", "--write", "p.toml"]) == 0
    model = tomllib.loads((tmp_path / "p.toml").read_text())["model"]
    assert (model["dim"], model["n_layers"], model["n_kv_heads"], model["ffn_dim"]) == (5120, 40, 40, 13_824)


def test_a_plan_never_writes_over_something_else(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(QUESTION) == 0
    assert main.run(QUESTION) == 0
    (tmp_path / "70b-512xh100.toml").write_text("mine")
    assert main.run(QUESTION) == 2
    assert "was not written over" in capfd.readouterr().err
    assert (tmp_path / "70b-512xh100.toml").read_text() == "mine"
    assert main.run([*QUESTION, "--no-write"]) == 0


def test_a_plan_as_json_has_memory_time_and_traffic_by_cause(tmp_path, capfd):
    assert main.run([*QUESTION, "--no-write", "--json", "--top", "1"]) == 0
    (layout,) = last_json(capfd)["layouts"]
    assert sum(layout["seconds_by_cause"].values()) == pytest.approx(layout["step_seconds"])
    assert sum(layout["memory_by_kind_gib"].values()) == pytest.approx(layout["memory_gib"])
    assert layout["reasons"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "70x", "--gpus", "8xH100"], "Sizes are"),
        (["--model", "9b", "--gpus", "8xH100"], "'9b' is not known. Sizes are"),
        (["--model", "mixtral-8x7b", "--gpus", "8xH100"], "not modelled"),
        (["--model", "8b"], "give --gpus"),
        (["--model", "8b", "--gpus", "8xTPU"], "known are"),
        (["--model", "8b", "--gpus", "8xH100", "--seq", "many"], "--seq is 'many'"),
        (["--model", "405b", "--gpus", "8xH100"], "Use more GPUs"),
        (["--evaluate", "a.csv", "--fit", "a.csv"], "one of them"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main.run(["plan", *words]) == 2
    assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "value"), [("8192", 8192), ("128k", 131_072), ("4M", 4 << 20), ("1.5M", 3 << 19)])
def test_counts_of_tokens_are_in_1024s(text, value):
    assert read_count(text, "--seq") == value


def test_counts_that_are_none_are_refused():
    for text in ("0", "-1", "4T", ""):
        with pytest.raises(UsageError):
            read_count(text, "--seq")


def test_models_are_known_by_many_names():
    assert find_shape("Llama-3.1-70B") == find_shape("70b")
    assert find_shape("llama2-13b").vocab_size == 32_000
    assert recipe_name("Llama-3.1-70B", "512 x h100") == "70b-512xh100.toml"


def test_evaluate_scores_a_file_and_counts_what_it_skips(tmp_path, capfd):
    path = write_csv(tmp_path, GOOD, GOOD.replace("llama2-7b", "DeepSeekV3"), "x,llama2-7b", "")
    assert main.run(["plan", "--evaluate", str(path), "--json"]) == 0
    found = last_json(capfd)
    assert found["n"] == 1
    assert found["median_abs_error"] == found["p90_abs_error"] < 0.5
    assert found["skipped"] == {"not a dense transformer": 1, "no number of GPUs": 1}


def test_evaluate_with_no_usable_row_is_null_and_not_nan(tmp_path, capfd):
    assert main.run(["plan", "--evaluate", str(write_csv(tmp_path, "x")), "--json"]) == 0
    assert last_json(capfd) == {"n": 0, "median_abs_error": None, "p90_abs_error": None, "skipped": {"no model": 1}}


def test_evaluate_names_the_worst_rows(capfd):
    assert main.run(["plan", "--evaluate", str(published_file())]) == 0
    out = capfd.readouterr().out
    assert "the ten worst" in out
    assert "median error" in out


def test_fit_prints_the_constants_and_their_error_on_unseen_sources(capfd):
    assert main.run(["plan", "--fit", str(published_file())]) == 0
    out = capfd.readouterr().out
    assert out.startswith("FITTED = Constants(")
    assert "leave one source out" in out


def test_fit_needs_rows(tmp_path, capfd):
    assert main.run(["plan", "--fit", str(write_csv(tmp_path, GOOD))]) == 2
    assert "needs 30" in capfd.readouterr().err
