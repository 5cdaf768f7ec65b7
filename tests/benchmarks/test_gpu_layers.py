"""The GPU benchmark runs as a toy on the CPU, and says clearly when there is no GPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "layers.py"


@pytest.fixture(scope="module")
def layers():
    spec = importlib.util.spec_from_file_location("gpu_layers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_layers"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_as_missing(layers, capsys):
    assert layers.main([]) == 3
    assert "no GPU" in capsys.readouterr().out


def test_every_side_runs_as_a_toy(layers, capsys):
    assert layers.main(["--device", "cpu", "--quick", "--mode", "plain", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert row["ours_tokens_per_s"] > 0
    assert row["ratio_transformers"] > 0
    assert "torchtitan" in row["torchtitan_skipped"]  # not installed, or no GPU: it says so and the others run


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_changes_no_gradient(layers, mode):
    toy = layers.case("1B", device="cpu", tokens=128, rows=1, mean_document=32)
    batch = layers.make_batch(toy)
    gradients = []
    for chosen in ("plain", mode):
        model = layers.init_weights(layers.Transformer(toy.config), seed=0)
        layers.prepare(model.layers, chosen)
        layers.next_token_loss(model, batch).sum.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_refused(layers, capsys):
    with pytest.raises(SystemExit):
        layers.main(["--shape", "9B"])
    assert "invalid choice" in capsys.readouterr().err
