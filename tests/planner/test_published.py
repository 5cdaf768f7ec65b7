"""Reading published rows: conventions, what is left out, what is skipped and why."""

from pathlib import Path

import pytest

from puna.core.errors import ConfigError, MissingError
from puna.planner.layout import STACKS
from puna.planner.published import read_published
from tests.planner.rows import GOOD, HEADER, write_csv


def read_one(tmp_path, **changes):
    cells = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | changes
    rows, skipped = read_published(
        write_csv(tmp_path, ",".join(f'"{v}"' for v in cells.values()), header=",".join(cells))
    )
    return rows[0] if rows else skipped[0][1]


def test_a_row_becomes_a_workload(tmp_path):
    row = read_one(tmp_path)
    assert row.work.degrees.dp_shard == 8
    assert (row.work.micro_batches, row.work.zero, row.work.recompute) == (4, 3, "full")
    assert row.step_seconds == pytest.approx(64 * 4096 / (9000 * 8))


def test_speed_from_tflops_and_mfu_follows_the_convention_of_the_note(tmp_path):
    shape = read_one(tmp_path).work.shape
    full = read_one(tmp_path, tok_s_gpu="", tflops_per_gpu="400")
    causal = read_one(tmp_path, tok_s_gpu="", tflops_per_gpu="400", note="TFLOPS counts CAUSAL-half attention")
    again = read_one(tmp_path, tok_s_gpu="", tflops_per_gpu="400", note="TFLOPS INCLUDES recompute forward")
    for row, convention in ((full, "full"), (causal, "causal"), (again, "recompute")):
        assert row.tokens_per_second == pytest.approx(400e12 / shape.flops_per_token(4096, convention=convention))
    share = read_one(tmp_path, tok_s_gpu="", mfu="0.4")
    assert read_one(tmp_path, tok_s_gpu="", mfu="40%").tokens_per_second == pytest.approx(share.tokens_per_second)
    assert share.tokens_per_second == pytest.approx(0.4 * 989e12 / shape.flops_per_token(4096, convention="full"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "DeepSeekV3"}, "not a dense transformer"),
        ({"model": ""}, "no model"),
        ({"n_gpus": ""}, "no number of GPUs"),
        ({"gpu": "TPUv5"}, "GPU TPUv5 is not known"),
        ({"seq_len": "?"}, "no sequence length"),
        ({"tok_s_gpu": ""}, "no speed"),
        ({"tp": "16"}, "tp, pp and cp are more than the GPUs"),
        ({"tp": "3"}, "do not multiply"),
        ({"tp": "0.5"}, "tp is no whole number"),
        ({"n_gpus": "1e30"}, "n_gpus is no whole number"),
        ({"gpu": "MI300X"}, "GPU MI300X is not known"),
        ({"gpu": "H100 PCIe"}, "GPU H100 PCIe is not known"),
        ({"global_batch_seqs": "4"}, "less than the data-parallel ranks"),
        ({"tok_s_gpu": "-3"}, "tok_s_gpu is no positive number"),
        ({"tok_s_gpu": "", "step_seconds": "2", "global_batch_seqs": ""}, "says no speed"),
    ],
)
def test_a_row_that_cannot_be_used_is_skipped_with_its_reason(tmp_path, changes, reason):
    assert reason in read_one(tmp_path, **changes)


def test_empty_cells_are_told_from_the_rest(tmp_path):
    row = read_one(tmp_path, tp="", pp="", cp="", dp_shard="", dp_replicate="", micro_batch="", act_ckpt="", vpp="n/a")
    assert row.work.degrees.dp_shard == 8
    assert row.work.micro_batch == 4
    assert read_one(tmp_path, global_batch_seqs="").work.micro_batches == 1


def test_a_file_with_few_columns_is_read(tmp_path):
    header = "model,n_gpus,gpu,seq_len,tok_s_gpu"
    rows, skipped = read_published(write_csv(tmp_path, "llama2-7b,8,A100,4096,4000", "llama2-7b,8,A100", header=header))
    assert len(rows) == 1
    assert skipped == [(3, "no sequence length")]


def test_a_file_that_is_none_says_so(tmp_path):
    with pytest.raises(MissingError, match="is not there"):
        read_published(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="no column 'model'"):
        read_published(write_csv(tmp_path, "1,2", header="a,n_gpus"))
    (tmp_path / "rows.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a CSV"):
        read_published(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("source", "note", "family"),
    [
        ("mosaicml/llm-foundry README", "", "llm-foundry"),
        ("Megatron-Bridge docs", "", "nvidia"),
        ("arXiv:2205.05198 Table 5", "", "megatron-2021"),
        ("torchtitan benchmarks", "compile", "torch-compile"),
        ("pytorch.org/blog", "FSDP, no compile", "torch-eager"),
        ("someone's cluster", "", "unseen"),
        ("someone's cluster", "Megatron, distributed optimizer", "nvidia"),
        ("arXiv:2201.11990", "", "megatron-2021"),
        ("BLOOM training README", "Megatron-DeepSpeed", "megatron-2021"),
        ("torchao README", "compared with Megatron", "torch-compile"),
    ],
)
def test_the_software_is_told_from_source_and_note(tmp_path, source, note, family):
    stack = read_one(tmp_path, source=source, note=note).work.stack
    assert stack.family == STACKS[family].family


def test_network_of_a_node_and_slow_cards_are_read_from_the_note(tmp_path):
    assert read_one(tmp_path, note="FSDP; 800Gbps").work.cluster.gpu.network_bandwidth == 800e9 / 8 / 8
    assert read_one(tmp_path, note="H100 with 96 GB HBM2e").work.cluster.gpu.name == "H100-96GB"


def test_interleaving_that_is_not_told_keeps_the_bubble_small(tmp_path):
    layout = {"tp": "2", "pp": "4", "dp_shard": "1", "micro_batch": "1", "global_batch_seqs": "16"}
    assert read_one(tmp_path, **layout).work.stages_per_rank == 4
    assert read_one(tmp_path, **layout, vpp="1").work.stages_per_rank == 1
    assert read_one(tmp_path, **layout, note="1F1B").work.stages_per_rank == 1


def test_speed_from_the_time_of_a_step(tmp_path):
    row = read_one(tmp_path, tok_s_gpu="", step_seconds="3.5 s")
    assert row.step_seconds == pytest.approx(3.5)


def test_thousands_are_read_by_what_they_count(tmp_path):
    row = read_one(tmp_path, seq_len="4k", tok_s_gpu="9.0k")
    assert (row.work.seq_len, row.tokens_per_second) == (4096, 9000)


def test_column_names_may_have_capitals_and_spaces(tmp_path):
    rows, skipped = read_published(write_csv(tmp_path, GOOD, header=HEADER.upper().replace(",", " , ")))
    assert (len(rows), skipped) == (1, [])


@pytest.mark.parametrize(
    ("spelled", "name"),
    [("H100-80GB-SXM", "H100"), ("h100 sxm", "H100"), ("A100-40GB", "A100-40GB"), ("GB200 NVL72", "GB200")],
)
def test_a_gpu_is_known_by_other_spellings(tmp_path, spelled, name):
    assert read_one(tmp_path, gpu=spelled, tok_s_gpu="2000").work.cluster.gpu.name == name


def test_megatron_on_ampere_is_that_of_its_time(tmp_path):
    stack = read_one(tmp_path, source="a paper", note="Megatron-LM", gpu="A100-80GB", tok_s_gpu="2000").work.stack
    assert (stack.family, stack.hides_tensor_parallel, stack.attention) == ("megatron-2021", False, "scores")
    fast = read_one(tmp_path, source="a paper", note="Megatron-LM, flash", gpu="A100-80GB", tok_s_gpu="2000").work.stack
    assert fast.attention == "flash1"


def test_a_pipeline_of_deepspeed_is_not_interleaved(tmp_path):
    layout = {"tp": "2", "pp": "4", "dp_shard": "1", "micro_batch": "1", "global_batch_seqs": "16"}
    assert read_one(tmp_path, **layout, note="Megatron-DeepSpeed").work.stages_per_rank == 1


def test_a_size_alone_is_given_layers_that_its_stages_divide(tmp_path):
    layout = {"tp": "2", "pp": "4", "dp_shard": "1", "micro_batch": "1", "global_batch_seqs": "16"}
    assert read_one(tmp_path, **layout, model="some-13B").work.shape.n_layers % 4 == 0


def test_the_held_out_figures_are_understood():
    rows, skipped = read_published(Path(__file__).parents[2] / "benchmarks" / "throughput_held_out.csv")
    assert len(rows) == 56
    assert [reason for _, reason in skipped] == ["GPU MI300X is not known"]
