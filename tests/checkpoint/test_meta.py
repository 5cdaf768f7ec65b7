"""Meta's layout in and out, bit by bit, in one shard and in many."""

import json

import pytest
import torch

from puna.checkpoint.format import load_model, load_tokenizer, resolve
from puna.checkpoint.meta import _feed_forward, save_meta
from puna.core.errors import CorruptError, MissingError, PunaError
from puna.model.config import SIZES, RopeScaling
from puna.tokenizer.specials import COUNT

from .conftest import tiny_config, tiny_model

SHAPES = [
    {},
    {"tie_embeddings": True, "n_kv_heads": 4},
    {"rope_scaling": RopeScaling(), "max_seq_len": 131_072},
    {"rope_scaling": RopeScaling(factor=32.0, original_max_seq_len=64), "n_kv_heads": 1},
    {"head_dim": 16, "rope_theta": 10_000.0},
]


def _same(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _split(folder, n):
    """Cut one shard into n, as model-parallel ranks held them."""
    whole = torch.load(folder / "consolidated.00.pth", weights_only=True)
    n_kv_heads = json.loads((folder / "params.json").read_text())["n_kv_heads"]
    for rank in range(n):
        shard = {}
        for name, tensor in whole.items():
            if tensor.dim() == 1:
                shard[name] = tensor
            elif name.endswith(("wk.weight", "wv.weight")) and n_kv_heads < n:
                shard[name] = tensor.chunk(n_kv_heads)[rank * n_kv_heads // n].clone()
            else:
                shard[name] = tensor.chunk(n, dim=1 if name.endswith(("wo.weight", "w2.weight")) else 0)[rank].clone()
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    (folder / "checksums.json").unlink()


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_changes_no_bit_and_keeps_the_shape(changes, dtype, tmp_path):
    model = tiny_model(dtype=dtype, **changes)
    save_meta(tmp_path / "meta", model, model.config)
    assert resolve(tmp_path / "meta").layout == "meta"
    again, config = load_model(tmp_path / "meta")
    assert config == model.config and _same(again, model)
    save_meta(tmp_path / "meta2", again, config)
    first = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    second = torch.load(tmp_path / "meta2" / "consolidated.00.pth", weights_only=True)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_query_rows_lie_as_pairs_in_metas_files():
    """Row 2i of Meta's head is our row i, and row 2i + 1 is our row i + H/2 (the pairs that RoPE turns together)."""
    from puna.checkpoint.meta import _pairs_apart, _pairs_together

    ours = torch.arange(8.0)[:, None]  # one head of width 8: pairs (0, 4), (1, 5), (2, 6), (3, 7)
    assert _pairs_together(ours, 8)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(_pairs_apart(_pairs_together(ours, 8), 8), ours)


@torch.no_grad()
def test_metas_own_formula_for_rotary_pairs_gives_our_attention_scores(tmp_path):
    """Scores by Meta's complex-number RoPE on Meta's weights equal ours on ours: the permutation is the right one."""
    model = tiny_model()
    config = model.config
    save_meta(tmp_path / "meta", model, config)
    weights = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    x = torch.randn(7, config.dim, generator=torch.Generator().manual_seed(3))
    turns = torch.outer(torch.arange(7.0), config.rope_theta ** (-torch.arange(0, 8, 2) / 8.0))
    turns = torch.polar(torch.ones_like(turns), turns)[:, None]

    def rotate(y):
        pairs = torch.view_as_complex(y.reshape(7, -1, 4, 2).contiguous())
        return torch.view_as_real(pairs * turns).flatten(2)

    q = rotate(x @ weights["layers.0.attention.wq.weight"].T)
    k = rotate(x @ weights["layers.0.attention.wk.weight"].T).repeat_interleave(2, dim=1)
    theirs = torch.einsum("snh,tnh->nst", q, k)

    from puna.model.rope import frequencies, rotation
    from puna.model.rope import rotate as our_rotate

    turn = rotation(torch.arange(7), frequencies(config))
    heads = (x @ model.layers[0].attention.qkv.weight.T).unflatten(-1, (-1, 8))
    q, k = our_rotate(heads[:, :4], *turn), our_rotate(heads[:, 4:6], *turn).repeat_interleave(2, dim=1)
    torch.testing.assert_close(torch.einsum("snh,tnh->nst", q, k), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 4])
def test_model_parallel_shards_come_together(n, tmp_path):
    model = tiny_model(vocab_size=564)
    save_meta(tmp_path, model, model.config)
    _split(tmp_path, n)  # with 4 ranks and 2 kv heads, two ranks hold each kv head
    again, config = load_model(tmp_path)
    assert config == model.config and _same(again, model)


def test_the_tokenizer_goes_along_as_ranks(tokenizer, tmp_path):
    model = tiny_model()
    save_meta(tmp_path / "meta", model, model.config, tokenizer=tokenizer)
    names = {path.name for path in (tmp_path / "meta").iterdir()}
    assert names == {"params.json", "consolidated.00.pth", "tokenizer.model", "checksums.json"}
    assert load_tokenizer(tmp_path / "meta").encode("The dog") == tokenizer.encode("The dog")
    assert tokenizer.vocab_size - COUNT > 256


@pytest.mark.parametrize("name", SIZES)
def test_metas_formula_gives_our_feed_forward_width(name):
    multiple_of, multiplier = _feed_forward(SIZES[name])
    width = int(multiplier * int(2 * (4 * SIZES[name].dim) / 3))
    assert multiple_of * ((width + multiple_of - 1) // multiple_of) == SIZES[name].ffn_dim


def test_params_of_llama_3_1_turn_the_frequency_scaling_on(tmp_path):
    model = tiny_model()
    save_meta(tmp_path, model, model.config)
    params = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "checksums.json").unlink()
    (tmp_path / "params.json").write_text(json.dumps({**params, "use_scaled_rope": True, "max_seq_len": None}))
    _, config = load_model(tmp_path)
    assert config.rope_scaling == RopeScaling() and config.max_seq_len == 131_072


def test_a_missing_shard_a_cut_shard_and_a_program_in_a_shard_are_refused(tmp_path):
    model = tiny_model()
    save_meta(tmp_path, model, model.config)
    (tmp_path / "checksums.json").unlink()
    path = tmp_path / "consolidated.00.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match=r"consolidated\.00\.pth"):
        load_model(tmp_path)
    torch.save({"tok_embeddings.weight": Trap()}, path)
    with pytest.raises(CorruptError, match=r"consolidated\.00\.pth cannot be read as tensors alone"):
        load_model(tmp_path)
    assert not Trap.sprung
    path.rename(tmp_path / "consolidated.01.pth")
    with pytest.raises(MissingError, match=r"no consolidated\.00\.pth"):
        load_model(tmp_path)


class Trap:
    """An object whose unpickling runs code."""

    sprung = False

    def __reduce__(self):
        return (_spring, ())


def _spring():
    Trap.sprung = True


def test_tensors_that_do_not_fit_params_are_named_with_both_shapes(tmp_path):
    model = tiny_model()
    save_meta(tmp_path, model, model.config)
    (tmp_path / "checksums.json").unlink()
    weights = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    weights["layers.1.attention.wo.weight"] = torch.zeros(32, 30)
    torch.save(weights, tmp_path / "consolidated.00.pth")
    with pytest.raises(
        PunaError, match=r"layers\.1\.attention\.wo\.weight has shape \[32, 30\].*expected is \[32, 32\]"
    ):
        load_model(tmp_path)
    assert tiny_config().n_layers == 2
