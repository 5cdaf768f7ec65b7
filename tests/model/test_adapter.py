"""Adapters: gradients against those of the whole matrices, the base untouched, and no bit changed at the first step."""

import pytest
import torch

from puna.core.errors import UsageError
from puna.model import cpu_kernels
from puna.model.adapter import adapt, fill_packed, packed_bytes, trained_parameters
from puna.model.adapter_config import AdapterConfig
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.layout import DocumentLayout
from puna.model.nf4 import NF4
from puna.model.projection import adapters_off, projections, row_lengths
from puna.model.transformer import Transformer

SHAPE = ModelConfig(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=24, vocab_size=64)
TOKENS = torch.randint(0, 64, (20,), generator=torch.Generator().manual_seed(5))
LAYOUT = DocumentLayout([7, 13])
KINDS = [
    {"kind": "lora"},
    {"kind": "lora", "targets": ("q_proj", "v_proj")},
    {"kind": "lora", "targets": ("up_proj", "lm_head", "k_proj"), "rslora": True},
    {"kind": "dora"},
    {"kind": "dora", "targets": ("o_proj", "gate_proj", "lm_head")},
    {"kind": "qlora"},
    {"kind": "qlora", "targets": ("down_proj",), "double_quantization": False},
]
kinds = pytest.mark.parametrize("values", KINDS, ids=lambda v: "-".join(map(str, v.values())))


def base(dtype=torch.float64):
    model = init_weights(Transformer(SHAPE), 0).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(torch.linspace(0.5, 1.5, len(parameter)))
    return model


def adapted(values, *, moved=True, dtype=torch.float64):
    model = adapt(base(dtype), AdapterConfig(rank=3, **values))
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def loss_of(model):
    return model.cross_entropy(model.hidden(TOKENS, LAYOUT), TOKENS.roll(-1))


@kinds
def test_loss_and_gradients_are_those_of_the_merged_matrices(values):
    """A model whose whole matrices are W + s B A: its gradients lead to A's, B's and magnitude's by the chain rule."""
    model, whole = adapted(values), base()
    own = dict(whole.named_modules())
    for name, projection in projections(model):
        own[name].weight.data.copy_(projection.matrix())
    loss, expected = loss_of(model), loss_of(whole)
    torch.testing.assert_close(loss, expected, atol=1e-8, rtol=1e-8)
    loss.backward()
    expected.backward()
    n = 0
    for name, projection in projections(model):
        for part, first, rows in projection.part_rows():
            adapter = projection.adapter_of(part)
            if adapter is None:
                continue
            d_E_D = own[name].weight.grad.narrow(0, first, rows)
            V = (projection.base().narrow(0, first, rows) + adapter.scale * adapter.B @ adapter.A).detach()
            if adapter.magnitude is not None:
                lengths = row_lengths(V)[:, None]
                torch.testing.assert_close(adapter.magnitude.grad, (d_E_D * V / lengths).sum(1), atol=1e-7, rtol=1e-5)
                d_E_D = d_E_D * adapter.magnitude.detach()[:, None] / lengths
            torch.testing.assert_close(adapter.B.grad, adapter.scale * d_E_D @ adapter.A.T, atol=1e-7, rtol=1e-5)
            torch.testing.assert_close(adapter.A.grad, adapter.scale * adapter.B.T @ d_E_D, atol=1e-7, rtol=1e-5)
            n += 1
    assert n == sum(2 if t != "lm_head" else 1 for t in model.adapter.config.targets)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@kinds
def test_the_plain_path_and_the_kernels_agree(values, monkeypatch):
    model = adapted(values)
    ours = model(TOKENS, LAYOUT)
    monkeypatch.setattr(cpu_kernels, "suits", lambda x: False)
    torch.testing.assert_close(model(TOKENS, LAYOUT), ours, atol=1e-3, rtol=1e-4)  # rotation is in fp32 there


@pytest.mark.parametrize(
    "values", [v for v in KINDS if v["kind"] != "qlora"], ids=lambda v: "-".join(map(str, v.values()))
)
def test_a_new_adapter_changes_nothing_and_adapters_can_be_switched_off(values):
    before = base(torch.float32)(TOKENS, LAYOUT)
    model = adapted(values, moved=False, dtype=torch.float32)
    exact = values["kind"] == "lora"
    torch.testing.assert_close(model(TOKENS, LAYOUT), before, atol=0 if exact else 1e-5, rtol=0)
    moved = adapted(values, dtype=torch.float32)
    with adapters_off(moved):
        assert torch.equal(moved(TOKENS, LAYOUT), before)
    assert not torch.allclose(moved(TOKENS, LAYOUT), before)


def test_chunks_of_tokens_do_not_matter(monkeypatch):
    values = {"kind": "lora"}
    whole, cut = adapted(values), adapted(values)
    loss_of(whole).backward()
    monkeypatch.setattr(cpu_kernels, "CHUNK_BYTES", 64 * 48 * 8)
    long = TOKENS.repeat(10)
    layout = DocumentLayout([7, 13] * 10)
    cut.cross_entropy(cut.hidden(long, layout), TOKENS.roll(-1).repeat(10)).backward()
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(10 * a.grad, b.grad, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_is_on_the_adapters_input_in_training_only(kind):
    model = adapted({"kind": kind, "dropout": 0.5})
    torch.manual_seed(0)
    first = loss_of(model)
    second = loss_of(model)
    torch.manual_seed(0)
    again = loss_of(model)
    assert torch.equal(first, again) and not torch.equal(first, second)
    model.eval()
    torch.testing.assert_close(loss_of(model), loss_of(adapted({"kind": kind})), atol=1e-6, rtol=1e-6)


def test_a_packed_base_is_filled_without_its_matrices_and_is_what_the_codes_stand_for():
    whole = base(torch.float32)
    with torch.device("meta"):
        model = Transformer(SHAPE)
    fill_packed(model, whole.state_dict().items(), dtype=torch.float32, double_quantization=True)
    adapt(model, AdapterConfig(kind="qlora"))
    own = whole.state_dict()
    for name, projection in projections(model.layers):
        assert projection.weight is None
        assert torch.equal(projection.base(), NF4.of(own[f"layers.{name}.weight"]).unpack())
    matrices = sum(p.numel() for name, p in whole.named_parameters() if name.startswith("layers.") and p.dim() == 2)
    assert packed_bytes(model) < 0.62 * matrices  # bytes, at this tiny size
    model.to(torch.bfloat16)
    assert all(p.base().dtype == torch.bfloat16 for _, p in projections(model))
    assert torch.isfinite(model(TOKENS, LAYOUT)).all()


@kinds
def test_the_count_of_trained_parameters_is_known_before_the_model(values):
    config = AdapterConfig(rank=3, **values)
    assert trained_parameters(adapted(values)) == config.parameters(SHAPE)


def test_what_cannot_be_adapted_is_refused():
    tied = Transformer(SHAPE.model_copy(update={"tie_embeddings": True}))
    with pytest.raises(UsageError, match="lm_head"):
        adapt(tied, AdapterConfig(targets=("lm_head",)))
    with pytest.raises(ValueError, match="dropout"):
        AdapterConfig(targets=("lm_head",), dropout=0.1)
    with pytest.raises(ValueError, match="twice"):
        AdapterConfig(targets=("q_proj", "q_proj"))
