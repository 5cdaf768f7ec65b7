"""The transformer against transformers' Llama, against the naive twin, and against itself packed and unpacked."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from puna.model.attention import DocumentLayout
from puna.model.config import ModelConfig, RopeScaling
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from tests.reference import transformer_naive

SHAPES = [  # (query heads, kv heads, head_dim): MHA, GQA of several ratios, MQA, heads wider than dim / n_heads
    (4, 4, 8),
    (4, 2, 16),
    (6, 2, 8),
    (8, 1, 4),
]
SCALINGS = [None, RopeScaling(factor=8.0, original_max_seq_len=64), RopeScaling(factor=32.0, original_max_seq_len=96)]
GRID = [
    ModelConfig(
        dim=48,
        n_layers=2,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=56,
        vocab_size=83,
        max_seq_len=512,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=eps,
        tie_embeddings=tied,
    )
    for (heads, kv_heads, head_dim), scaling, (tied, theta, eps) in itertools.product(
        SHAPES, SCALINGS, [(False, 500_000.0, 1e-5), (True, 10_000.0, 1e-6)]
    )
]
LENGTHS = [150, 3, 40, 1, 129, 21]  # bands of a long document, squares of short ones, a document of one token


def small_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose first weights are large enough for every part to matter in the logits."""
    model = init_weights(Transformer(config), seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif name in ("embedding.weight", "head.weight"):
                parameter.mul_(20)
    return model


def llama_of_transformers(model: Transformer) -> LlamaForCausalLM:
    """The same weights in transformers' model, mapped here by hand as a second opinion on the checkpoint code."""
    config = model.config
    rope: dict[str, float | str] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_seq_len,
        }
    theirs = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.ffn_dim,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_seq_len,
            rope_parameters=rope,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    ours, state = model.state_dict(), {}
    state["model.embed_tokens.weight"] = ours["embedding.weight"]
    state["model.norm.weight"] = ours["norm.weight"]
    state["lm_head.weight"] = ours["embedding.weight" if config.tie_embeddings else "head.weight"]
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    for i in range(config.n_layers):
        us, them = f"layers.{i}.", f"model.layers.{i}."
        for name, part in zip("qkv", ours[us + "attention.qkv.weight"].split((q, kv, kv)), strict=True):
            state[f"{them}self_attn.{name}_proj.weight"] = part
        for name, part in zip(("gate", "up"), ours[us + "feed_forward.gate_up.weight"].chunk(2), strict=True):
            state[f"{them}mlp.{name}_proj.weight"] = part
        state[them + "self_attn.o_proj.weight"] = ours[us + "attention.output.weight"]
        state[them + "mlp.down_proj.weight"] = ours[us + "feed_forward.down.weight"]
        state[them + "input_layernorm.weight"] = ours[us + "attention_norm.weight"]
        state[them + "post_attention_layernorm.weight"] = ours[us + "feed_forward_norm.weight"]
    theirs.load_state_dict(state)
    return theirs.eval()


def random_tokens(config: ModelConfig, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", GRID, ids=lambda c: f"{c.n_heads}-{c.n_kv_heads}-{c.head_dim}")
def test_logits_equal_those_of_transformers_packed_and_unpacked(config):
    model = small_model(config)
    theirs = llama_of_transformers(model)
    rows = random_tokens(config, 2, 140)
    packed = random_tokens(config, sum(LENGTHS), seed=2)
    with torch.no_grad():
        assert (model(rows) - theirs(rows).logits).abs().max() <= 1e-4
        expected = torch.cat([theirs(document[None]).logits[0] for document in packed.split(LENGTHS)])
        assert expected.std() > 0.1, "logits near zero would agree whatever the model does"
        assert (model(packed, DocumentLayout.from_lengths(LENGTHS)) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("config", GRID[::5], ids=lambda c: f"{c.n_heads}-{c.n_kv_heads}-{c.head_dim}")
def test_logits_and_gradients_equal_the_naive_twin(config):
    model = small_model(config).double()
    tokens = random_tokens(config, sum(LENGTHS))
    targets = random_tokens(config, sum(LENGTHS), seed=3)
    parameters = dict(model.named_parameters())
    expected = torch.cat([transformer_naive.logits(parameters, config, d) for d in tokens.split(LENGTHS)])
    expected_gradients = torch.autograd.grad(cross_entropy(expected, targets), list(parameters.values()))
    actual = model(tokens, DocumentLayout.from_lengths(LENGTHS))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # angles are fp32 in the model, fp64 in the twin
    actual_gradients = torch.autograd.grad(cross_entropy(actual, targets), list(parameters.values()))
    for name, ours, theirs in zip(parameters, actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_document_gives_the_same_logits_packed_and_alone():
    config = GRID[8]
    model = small_model(config)
    tokens = random_tokens(config, sum(LENGTHS))
    packed = model(tokens, DocumentLayout.from_lengths(LENGTHS))
    alone = torch.cat([model(document) for document in tokens.split(LENGTHS)])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("document", range(len(LENGTHS)))
def test_no_gradient_leaks_into_another_document(document):
    config = GRID[8]
    model = small_model(config)
    embedded = []
    model.embedding.register_forward_hook(lambda _module, _args, out: embedded.append(out.retain_grad() or out) or out)
    logits = model(random_tokens(config, sum(LENGTHS)), DocumentLayout.from_lengths(LENGTHS))
    parts = logits.split(LENGTHS)
    parts[document].square().sum().backward()
    for other, gradient in enumerate(embedded[0].grad.split(LENGTHS)):
        if other == document:
            assert (gradient.abs().sum(-1) > 0).all()
        else:
            assert (gradient == 0).all()


def test_rows_without_a_layout_are_one_document_each():
    config = GRID[2]
    model = small_model(config)
    rows = random_tokens(config, 3, 50)
    torch.testing.assert_close(model(rows), model(rows, DocumentLayout.from_lengths([50, 50, 50])), rtol=0, atol=0)


def test_the_plain_formulas_give_what_the_cpu_kernels_give(monkeypatch):
    config = GRID[9]
    model = small_model(config)
    tokens, layout = random_tokens(config, sum(LENGTHS)), DocumentLayout.from_lengths(LENGTHS)
    fast = model(tokens, layout)
    monkeypatch.setattr("puna.model.cpu_kernels.suits", lambda x: False)
    torch.testing.assert_close(model(tokens, layout), fast, rtol=1e-4, atol=1e-5)
    rows = random_tokens(config, 2, 64)
    plain = model(rows)
    monkeypatch.undo()
    torch.testing.assert_close(model(rows), plain, rtol=1e-4, atol=1e-5)


def test_bf16_runs_and_stays_near_fp32():
    config = GRID[0]
    model = small_model(config)
    rows = random_tokens(config, 2, 20)
    expected = model(rows)
    actual = model.to(torch.bfloat16)(rows).float()
    assert (actual - expected).abs().mean() < 0.05 * expected.std()
