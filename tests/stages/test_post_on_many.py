"""Post-training on two processes ends where one ends: SFT, DPO and reward models, whole weights and adapters."""

import json
import random

import pytest
import torch
from pydantic import ValidationError

from puna.checkpoint.format import load_model, save_model
from puna.checkpoint.peft import read_adapter
from puna.core.errors import ConfigError
from puna.core.run_folder import RunFolder
from puna.stages import dpo, reward, sft
from tests.post.tiny import TOKENIZER, tiny_model
from tests.train.ranks import run_ranks

STAGES = {"sft": sft.STAGE, "dpo": dpo.STAGE, "rm": reward.STAGE}
TRAIN = {
    "steps": 6,
    "threads": 1,
    "device": "cpu",
    "log_every_steps": 1,
    "save_every_steps": 4,
    "accumulation": 2,
    "optim": {"lr": 3e-3},
    "schedule": {"kind": "constant", "warmup_steps": 0},
}
SIZES = {"data": {"rows": 4, "sequence_length": 160}}
LORA = {"adapter": {"rank": 4, "dropout": 0.0}}
QAT = {"quantization": {"group_size": 8}, "train": {**TRAIN, "steps": 1}}
"""One step: after it a weight that rounding left apart falls on the other side of a level."""
SHARDS, COPIES, BOTH = {"dp_shard": 2}, {"dp_replicate": 2}, {"dp_shard": 2, "dp_replicate": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    model = tiny_model(dtype=torch.float32)
    save_model(folder / "start", model, model.config, tokenizer=TOKENIZER)
    teacher = tiny_model(1, dtype=torch.float32)
    save_model(folder / "teacher", teacher, teacher.config, tokenizer=TOKENIZER)
    rng = random.Random(0)
    dialogs, pairs = [], []
    for n in range(60):
        asked, answer = f"say {n}", "yes" * rng.randint(1, 12)
        dialogs.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]})
        pairs.append({"prompt": asked, "chosen": answer + "!", "rejected": "no" * rng.randint(1, 9), "strength": 3})
    for name, rows in (("dialogs", dialogs), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe_of(folder, verb, out, **tables):
    files = {"sft": {"dialogs": [folder / "dialogs.jsonl"]}, "dpo": {"pairs": [folder / "pairs.jsonl"]}}
    files["rm"] = {"preferences": [folder / "pairs.jsonl"], "held_out_fraction": 0.2}
    if "distill" in tables:
        tables = tables | {"distill": {"teacher": folder / "teacher"}}
    given = {"out": folder / out, "start_from": folder / "start", "train": TRAIN, **SIZES, **files[verb], **tables}
    return STAGES[verb].recipe.model_validate(given)


def work(rank, verb, recipe):
    STAGES[verb].run(recipe, RunFolder(recipe.out))


def session(folder, verb, out, processes, **tables):
    recipe = recipe_of(folder, verb, out, **tables)
    recipe.out.mkdir(parents=True)
    if processes == 1:
        work(0, verb, recipe)
    else:
        run_ranks(processes, work, verb, recipe, folder=folder)
    return recipe.out


def tensors(model):
    if (model / "adapter_model.safetensors").exists():
        found = read_adapter(model).tensors
        return {f"{name}.{kind}": tensor for name, kinds in found.items() for kind, tensor in kinds.items()}
    return load_model(model)[0].state_dict()


def assert_close(one, other):
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for name in other:
            assert_close(one[name], other[name])
    elif isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def apart(one, other):
    one, other = tensors(one / "model"), tensors(other / "model")
    assert one.keys() == other.keys()
    norm = torch.linalg.vector_norm
    return max(float(norm(one[n] - other[n]) / norm(other[n]).clamp(min=1e-6)) for n in other)


CASES = [
    pytest.param("sft", LORA, COPIES, 2, id="sft-lora"),
    pytest.param("dpo", {}, SHARDS, 2, id="dpo"),
    pytest.param("rm", {}, SHARDS, 2, id="rm"),
    pytest.param("dpo", LORA, COPIES, 2, id="dpo-lora"),
    pytest.param("sft", {}, SHARDS, 2, id="sft", marks=pytest.mark.slow),
    pytest.param("dpo", {}, BOTH, 4, id="dpo-hsdp", marks=pytest.mark.slow),
    pytest.param("rm", {}, COPIES, 2, id="rm-copies", marks=pytest.mark.slow),
    pytest.param("sft", {"adapter": {"kind": "qlora", "rank": 4}}, COPIES, 2, id="qlora", marks=pytest.mark.slow),
    pytest.param(
        "sft",
        {**LORA, "train": {**TRAIN, "activations": "recompute"}},
        COPIES,
        2,
        id="lora-recompute",
        marks=pytest.mark.slow,
    ),
    pytest.param("sft", {"distill": {}}, COPIES, 2, id="distill", marks=pytest.mark.slow),
    pytest.param("sft", QAT, COPIES, 2, id="qat", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("verb", "tables", "layout", "processes"), CASES)
def test_several_processes_end_with_the_model_of_one(folder, tmp_path, verb, tables, layout, processes):
    name = f"{verb}-{len(list(folder.iterdir()))}"
    one = session(folder, verb, f"{name}-one", 1, **tables)
    many = session(folder, verb, f"{name}-many", processes, **tables, parallel=layout)
    assert apart(many, one) < 1e-5
    told = [[r for r in RunFolder(out).read_metrics() if r["kind"] == "train"] for out in (many, one)]
    assert told[0][0]["grad_norm"] == pytest.approx(told[1][0]["grad_norm"], rel=1e-6)
    for record, expected in zip(*told, strict=True):  # later gradients: AdamW makes whole steps of what rounding left
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2)
        assert record["tokens"] == expected["tokens"]
    if verb == "rm":  # the held-out preferences are dealt out too
        assert_close(*(json.loads((out / "check.json").read_text()) for out in (many, one)))
    assert sorted(p.name for p in (many / "model").iterdir()) == sorted(p.name for p in (one / "model").iterdir())


def test_a_run_on_two_processes_is_gone_on_with_by_one(folder):
    """The checkpoint of step 4 of two processes, then step 5 and 6 by one: as if nothing had happened."""
    short = {**TRAIN, "steps": 4}
    for tables, layout in ((LORA, COPIES), ({}, SHARDS)):
        name = f"elastic-{len(tables)}"
        whole = session(folder, "dpo", f"{name}-whole", 1, **tables)
        out = session(folder, "dpo", f"{name}-cut", 2, **tables, parallel=layout, train=short)
        work(0, "dpo", recipe_of(folder, "dpo", out.name, **tables))
        assert apart(out, whole) < 1e-5


@pytest.mark.parametrize(
    ("verb", "tables", "words"),
    [
        ("sft", {**LORA, "parallel": {"dp_shard": 2}}, "parallel.dp_replicate and leave dp_shard=2 out"),
        ("sft", {"quantization": {}, "parallel": {"tp": 2}}, "leave tp=2 out"),
        ("dpo", {"parallel": {"tp": 2, "pp": 2}}, "leave tp=2, pp=2 out"),
        ("rm", {"parallel": {"cp": 2}}, "leave cp=2 out"),
    ],
)
def test_a_layout_that_cuts_what_must_be_whole_is_refused(folder, verb, tables, words):
    with pytest.raises(ValidationError, match=words):
        recipe_of(folder, verb, "refused", **tables)


def test_adapters_on_a_wrong_number_of_processes_are_refused_before_the_base_is_read(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = recipe_of(folder, "sft", "refused", **LORA)
    with pytest.raises(ConfigError, match="one process is asked for, there are 2"):
        STAGES["sft"].run(recipe, RunFolder(recipe.out))
