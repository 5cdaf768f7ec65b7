"""Adapters and memory levers through the one training loop: they learn, resume bit by bit, and leave the base alone."""

import warnings

import pytest
import torch

from puna.checkpoint.format import load_model, save_model
from puna.core.errors import UsageError
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.model.adapter import adapt
from puna.model.adapter_config import AdapterConfig
from puna.post.distill import DistillConfig, DistillLoss
from puna.post.sft import SftBatches, SftConfig, sft_loss
from puna.train.config import TrainConfig
from puna.train.loop import train
from tests.post.tiny import TOKENIZER, dialog_rows, tiny_model


def settings(steps, **changes):
    values = {
        "steps": steps,
        "device": "cpu",
        "log_every_steps": 2,
        "save_every_steps": 2,
        "tiers": {"saving": "never"},
        "optim": {"lr": 1e-2},
        "schedule": {"kind": "constant", "warmup_steps": 0},
    }
    return TrainConfig.model_validate(values | changes)


def session(folder, config, *, adapter=None, die_after=10**9):
    torch.manual_seed(0)  # as a process begins: dropout draws from PyTorch's own generator
    model = tiny_model(dtype=torch.float32)
    if adapter is not None:
        adapt(model, adapter, base=str(folder.parent / "base"), base_fingerprint=fingerprint(folder.parent / "base"))
    seen = []

    def loss(model, batch):
        seen.append(batch)
        if len(seen) > die_after:
            raise KeyboardInterrupt
        return sft_loss(model, batch)

    run = RunFolder(folder)
    batches = SftBatches(dialog_rows(20), TOKENIZER, SftConfig(rows=2, sequence_length=256))
    train(model, loss=loss, batches=batches, config=config, run=run, tokenizer=TOKENIZER)
    return model, [r["loss"] for r in run.read_metrics() if r["kind"] == "train"]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def base(tmp_path):
    model = tiny_model(dtype=torch.float32)
    save_model(tmp_path / "base", model, model.config, tokenizer=TOKENIZER)
    return tmp_path


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_an_adapter_learns_and_a_run_cut_in_two_gives_the_same_weights(base, kind):
    adapter = AdapterConfig(kind=kind, rank=4, dropout=0.1 if kind == "lora" else 0.0)
    whole, losses = session(base / "whole", settings(6), adapter=adapter)
    assert losses[-1] < losses[0]
    before = tiny_model(dtype=torch.float32)
    own = dict(whole.named_parameters())
    for name, parameter in before.named_parameters():
        if name in own:
            assert torch.equal(own[name], parameter), name
    with pytest.raises(KeyboardInterrupt):
        session(base / "cut", settings(6), adapter=adapter, die_after=3)
    checkpoint = next((base / "cut/checkpoints").glob("step-*"))
    assert sum(f.stat().st_size for f in checkpoint.glob("**/*.safetensors")) < 500_000
    unfinished, _ = load_model(base / "cut")  # the newest checkpoint is an adapter too
    resumed, _ = session(base / "cut", settings(6), adapter=adapter)
    assert equal(whole, resumed)
    merged, _ = load_model(base / "whole")
    tokens = torch.arange(20)
    torch.testing.assert_close(merged.eval()(tokens), whole.eval()(tokens), atol=1e-4, rtol=1e-4)
    assert not equal(unfinished, merged)


@pytest.mark.parametrize("activations", ["recompute", "offload"])
def test_recomputed_and_offloaded_activations_change_no_bit(base, activations):
    plain, _ = session(base / "plain", settings(3))
    other, _ = session(base / "other", settings(3, activations=activations))
    assert equal(plain, other)
    adapter = AdapterConfig(rank=4, dropout=0.2)
    plain, _ = session(base / "plain-lora", settings(3), adapter=adapter)
    other, _ = session(base / "other-lora", settings(3, activations=activations), adapter=adapter)
    assert equal(plain, other)


def test_steps_in_the_backward_are_the_same_steps_and_resume(base):
    optim = {"lr": 1e-2, "clip_norm": 0.0}
    plain, losses = session(base / "plain", settings(4, optim=optim))
    config = settings(4, optim=optim | {"step": "in_backward"})
    inside, same = session(base / "inside", config)
    for a, b in zip(plain.parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
    assert same == pytest.approx(losses, rel=1e-6)
    with pytest.raises(KeyboardInterrupt):
        session(base / "cut", config, die_after=3)
    assert equal(inside, session(base / "cut", config)[0])


@pytest.mark.slow  # bf16 products on a CPU, and the measure of their rate
def test_in_bf16_adapters_and_steps_in_the_backward_work_on_masters(base):
    adapter = AdapterConfig(rank=4)
    whole, losses = session(base / "whole", settings(6, precision="bf16"), adapter=adapter)
    assert losses[-1] < losses[0] and whole.dtype == torch.bfloat16
    with pytest.raises(KeyboardInterrupt):
        session(base / "cut", settings(6, precision="bf16"), adapter=adapter, die_after=3)
    assert equal(whole, session(base / "cut", settings(6, precision="bf16"), adapter=adapter)[0])
    optim = {"lr": 1e-2, "clip_norm": 0.0}
    plain, _ = session(base / "plain", settings(3, precision="bf16", optim=optim))
    inside, _ = session(base / "inside", settings(3, precision="bf16", optim=optim | {"step": "in_backward"}))
    assert equal(plain, inside)


def test_steps_in_the_backward_refuse_what_they_cannot_do(base):
    with pytest.raises(ValueError, match="clip_norm"):
        settings(2, optim={"step": "in_backward"})
    with pytest.raises(UsageError, match="accumulation"):
        session(base / "x", settings(2, accumulation=2, optim={"step": "in_backward", "clip_norm": 0.0}))


@pytest.mark.slow  # its step is compiled
def test_moments_in_eight_bits_learn_and_resume(base):
    pytest.importorskip("torchao")
    config = settings(4, optim={"lr": 1e-2, "kind": "adamw8bit"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, losses = session(base / "whole", config)
        assert losses[-1] < losses[0]
        with pytest.raises(KeyboardInterrupt):
            session(base / "cut", config, die_after=3)
        assert equal(whole, session(base / "cut", config)[0])


def test_a_student_learns_from_its_teacher(base):
    teacher = tiny_model(seed=3, dtype=torch.float32)
    config = DistillConfig(teacher=base, share=1.0, divergence="reverse_kl", temperature=2.0)
    loss = DistillLoss(teacher, config, student_vocab=512)
    model, run = tiny_model(dtype=torch.float32), RunFolder(base / "student")
    batches = SftBatches(dialog_rows(20), TOKENIZER, SftConfig(rows=2, sequence_length=256))
    train(model, loss=loss, batches=batches, config=settings(8), run=run, tokenizer=TOKENIZER)
    records = [r for r in run.read_metrics() if r["kind"] == "train"]
    assert records[-1]["divergence"] < 0.9 * records[0]["divergence"]
    assert records[0]["loss"] == pytest.approx(4 * records[0]["divergence"], rel=1e-5)
    with pytest.raises(UsageError, match="vocabulary"):
        DistillLoss(teacher, config, student_vocab=511)
