"""`puna train --dry-run --world-size N`: what it counts is what a real run of that layout has, and what it refuses."""

import json

import pytest
import torch

from puna.cli import main
from puna.model.config import ModelConfig
from puna.train.machine import choose_machine
from puna.train.parallel import Ranks
from puna.train.parallel_config import ParallelConfig, Work
from puna.train.rehearsal import rehearse
from tests.train.ranks import run_ranks

SHAPE = ModelConfig(dim=64, n_layers=6, n_heads=8, n_kv_heads=4, ffn_dim=96, vocab_size=128, max_seq_len=64)
WORK = Work(rows=4, sequence_length=64, accumulation=4)


def _held(rank, layouts):
    """Numbers that a real process holds, layout by layout."""
    told = []
    for layout in layouts:
        ranks = Ranks(layout, choose_machine("cpu"))
        ranks.build(SHAPE)
        told.append(sum(weight.numel() for weight in ranks.weights.named.values()))
    return told


def test_the_first_rank_has_the_parameters_of_a_real_one(tmp_path):
    layouts = [
        ParallelConfig(dp_shard=2, tp=2),
        ParallelConfig(dp_shard=2, cp=2),
        ParallelConfig(pp=2, dp_shard=2, schedule="interleaved", stages_per_rank=2),
    ]
    rehearsed = [rehearse(layout, SHAPE, WORK).parameters for layout in layouts]
    assert rehearsed == run_ranks(4, _held, layouts, folder=tmp_path)[0]


def test_recomputation_tensor_and_context_parallelism_keep_less():
    def kept(**changes):
        return rehearse(ParallelConfig(**changes), SHAPE, WORK).activation_bytes

    plain = kept()
    assert kept(recompute="full") < kept(recompute="selective") < plain
    assert kept(tp=2) < 0.75 * plain and kept(cp=2) < 0.75 * plain


def test_tensor_parallel_inputs_are_kept_as_shares():
    """Per block of tp 4 beside its quarter of tokens and heads nothing whole is kept (2205.05198, section 4.2.2)."""
    deep = SHAPE.model_copy(update={"n_layers": 10})
    tokens, layout = 4 * 64, ParallelConfig(tp=4)
    block = (rehearse(layout, deep, WORK).activation_bytes - rehearse(layout, SHAPE, WORK).activation_bytes) / 4
    whole = tokens * SHAPE.dim * 2  # bf16
    assert block < 8 * tokens * (5 * SHAPE.dim + 4 * SHAPE.dim + 4 * SHAPE.ffn_dim) / 4
    one = (
        rehearse(ParallelConfig(), deep, WORK).activation_bytes
        - rehearse(ParallelConfig(), SHAPE, WORK).activation_bytes
    ) / 4
    assert block == pytest.approx(one / 4, abs=whole / 2)


def test_a_pipeline_keeps_as_many_micro_batches_as_it_has_ranks_and_never_more_than_there_are():
    def flight(**changes):
        work = Work(rows=4, sequence_length=64, accumulation=changes.pop("accumulation", 8))
        return rehearse(ParallelConfig(**changes), SHAPE, work)

    assert flight(pp=2).in_flight == 2
    assert flight(pp=2, schedule="gpipe").in_flight == 8
    woven = flight(pp=2, schedule="interleaved", stages_per_rank=3)
    assert 2 < woven.in_flight <= 4 and woven.bubble < flight(pp=2).bubble
    assert flight(pp=4, schedule="interleaved", accumulation=2).in_flight <= 2


def test_traffic_is_that_of_a_ring():
    found = rehearse(ParallelConfig(dp_shard=4), SHAPE, Work(rows=4, sequence_length=64, accumulation=3))
    n = found.parameters * 4  # all shards together
    # three micro-batches, each: two gathers of bf16 and one reduction of fp32, 3/4 of it sent
    assert found.traffic["fsdp"] == pytest.approx(3 * (2 + 2 + 4) * n * 3 / 4)
    assert not torch.distributed.is_initialized()


@pytest.fixture
def told(capfd):
    def run(*words):
        code = main.run(["train", *words])
        lines = capfd.readouterr().out.strip().splitlines()
        return code, json.loads(lines[-1]) if lines else None

    return run


def test_the_8b_on_8_gpus_fits_with_what_its_parts_add_up_to(told):
    code, found = told(
        "llama3-8b", "--dry-run", "--world-size", "8", "--json",
        "parallel.dp_shard=8", "parallel.dp_replicate=1", "data.rows=8", "parallel.recompute=selective",
    )  # fmt: skip
    assert code == 0 and found["fits"]
    memory = found["memory_bytes"]
    assert memory["total"] == pytest.approx(sum(v for k, v in memory.items() if k != "total"))
    assert memory["weights"] + memory["gradients"] + memory["optimizer"] == pytest.approx(16 * 8.03e9 / 8, rel=0.01)
    assert 250 < found["tflops_gpu"]["causal"] < 550 and found["tflops_gpu"]["full"] > found["tflops_gpu"]["causal"]


def test_what_cannot_fit_is_refused_with_the_nearest_that_does(told, capfd):
    code = main.run(["train", "llama3-70b", "--dry-run", "--world-size", "64", "parallel.dp_shard=64", "parallel.tp=1",
                     "parallel.pp=1", "parallel.stages_per_rank=0", "parallel.schedule=1f1b", "data.rows=512"])  # fmt: skip
    assert code == 2
    assert "The nearest that fits" in capfd.readouterr().err


def test_options_of_a_large_run_without_one_are_refused(capfd):
    for words in (["--gpu", "A100"], ["--failures", "1e-5", "--json"]):
        assert main.run(["train", "demo/pretrain", "--dry-run", *words]) == 2
        assert "--world-size" in capfd.readouterr().err


def test_a_plan_of_many_processes_says_nothing_of_this_machine(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main.run(["train", "llama3-405b", "--dry-run"])
    text = capsys.readouterr().out
    assert "add --world-size 16384" in text
    assert "time, about" not in text and "GFLOP/s" not in text


def test_a_degree_that_cannot_be_is_explained_by_the_model_and_by_the_number_of_processes(capsys):
    assert main.run(["train", "llama3-8b", "parallel.tp=3", "--dry-run", "--world-size", "8"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "parallel.tp=3 does not divide the 8 kv heads" in text and "nearest that does: 2" in text
    assert "8 processes cannot be divided" in text and "or start 24 processes" in text
