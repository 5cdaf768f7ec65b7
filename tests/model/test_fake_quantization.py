"""Fake quantization: its formulas, torchao's where it is installed, straight-through gradients, and the codes kept."""

import pytest
import torch

from puna.checkpoint.format import load_model
from puna.checkpoint.quantized import read_codes, save_quantized
from puna.core.errors import UsageError
from puna.model.fake_quantization import (
    BITS,
    QuantizationConfig,
    dequantize_weight,
    fake_quantized_linear,
    quantize_weight,
)
from puna.model.projection import train_for
from tests.post.tiny import TOKENIZER, tiny_model

CONFIGS = [
    QuantizationConfig(weights=w, group_size=g, activations=a)
    for w, g, a in (("int4", 8, "int8"), ("int8", 16, "none"))
]
configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.weights}-{c.activations}")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@configs
def test_codes_are_rounded_one_by_one(config):
    w = random(5, 32)
    codes, scales = quantize_weight(w, config)
    half = 2 ** (BITS[config.weights] - 1)
    for row in range(5):
        for group in range(32 // config.group_size):
            columns = slice(group * config.group_size, (group + 1) * config.group_size)
            scale = w[row, columns].abs().max() / (half - 0.5)
            assert scales[row, group] == pytest.approx(float(scale), rel=1e-6)
            expected = (w[row, columns] * (1.0 / scale)).round()  # the largest lies on a border: by this very product
            expected = expected.clamp(-half, half - 1)
            assert torch.equal(codes[row, columns].float(), expected)
    assert (dequantize_weight(codes, scales) - w).abs().max() <= scales.max() / 2 * 1.001


def test_gradients_pass_straight_through_but_not_where_a_value_was_clipped():
    config = QuantizationConfig(group_size=8, activations="none")
    x, w, d_y = random(7, 32, seed=1).requires_grad_(), random(5, 32).requires_grad_(), random(7, 5, seed=2)
    fake_quantized_linear(x, w, config).backward(d_y)
    groups = w.detach().unflatten(1, (-1, 8))
    scaled = (groups * (1.0 / (groups.abs().amax(-1, keepdim=True) / 7.5))).round()
    kept = ((scaled >= -8) & (scaled <= 7)).flatten(1)
    assert not kept.all()
    torch.testing.assert_close(w.grad, (d_y.T @ x.detach()) * kept)
    torch.testing.assert_close(x.grad, d_y @ dequantize_weight(*quantize_weight(w, config)))


@configs
def test_the_rounding_is_torchaos(config):
    qat = pytest.importorskip("torchao.quantization.qat")
    linear = qat.linear.FakeQuantizedLinear
    weights = qat.IntxFakeQuantizeConfig(
        torch.int4 if config.weights == "int4" else torch.int8, group_size=config.group_size, is_symmetric=True
    )
    tokens = None
    if config.activations == "int8":
        tokens = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    theirs = linear(32, 5, False, activation_config=tokens, weight_config=weights)
    w, x = random(5, 32), random(7, 32, seed=1)
    theirs.weight.data.copy_(w)
    x_theirs, x_ours, w_ours = x.clone().requires_grad_(), x.clone().requires_grad_(), w.clone().requires_grad_()
    expected, found = theirs(x_theirs), fake_quantized_linear(x_ours, w_ours, config)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(w_ours.grad, theirs.weight.grad, atol=1e-4, rtol=1e-4)


def test_what_is_written_is_what_was_trained(tmp_path):
    model = tiny_model(dtype=torch.float32).eval()
    config = QuantizationConfig(group_size=8, activations="none")
    train_for(model, config)
    tokens = torch.arange(20)
    trained = model(tokens)
    save_quantized(tmp_path / "quantized", model, config, tokenizer=TOKENIZER)
    loaded, _ = load_model(tmp_path / "quantized")
    torch.testing.assert_close(loaded.eval()(tokens), trained, atol=1e-4, rtol=1e-4)
    codes = read_codes(tmp_path / "quantized")
    own = dict(loaded.named_parameters())["layers.1.feed_forward.down.weight"]
    stem = "model.layers.1.mlp.down_proj"
    assert torch.equal(dequantize_weight(codes[f"{stem}.codes"], codes[f"{stem}.scales"]), own)
    assert codes[f"{stem}.codes"].abs().max() <= 8


def test_groups_that_do_not_fill_a_row_are_refused():
    with pytest.raises(UsageError, match="group_size"):
        train_for(tiny_model(), QuantizationConfig(group_size=5))
