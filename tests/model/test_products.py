"""Matrix products by oneDNN and by MKL, which must agree whatever way their factors lie."""

import numpy as np
import pytest
import torch

from puna.core.batch import PackedBatch
from puna.model import products
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.train.loss import next_token_loss

LEFT = {"rows": lambda m, k: torch.randn(m, k), "columns": lambda m, k: torch.randn(k, m).T}
RIGHT = {"rows": lambda k, n: torch.randn(k, n), "columns": lambda k, n: torch.randn(n, k).T}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("smallest", [0, products.SMALLEST], ids=["onednn", "mkl"])
@pytest.mark.parametrize("right_lies", RIGHT)
@pytest.mark.parametrize("left_lies", LEFT)
def test_products_equal_pytorchs(
    left_lies: str, right_lies: str, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SMALLEST", smallest)
    left, right, total = LEFT[left_lies](33, 70), RIGHT[right_lies](70, 21), torch.randn(33, 21)
    expected = (left.double() @ right.double()).float()
    torch.testing.assert_close(products.product(left, right), expected)
    torch.testing.assert_close(products.plus_product(total, left, right), total + expected)
    torch.testing.assert_close(products.accumulate(None, left, right), expected)
    torch.testing.assert_close(products.accumulate(total.clone(), left, right), total + expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_stay_with_pytorch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 0)
    left, right = torch.randn(8, 16).to(dtype), torch.randn(16, 4).to(dtype)
    assert torch.equal(products.product(left, right), left @ right)


def test_a_sum_of_a_product_leaves_the_total_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 0)
    total = torch.randn(8, 4)
    before = total.clone()
    products.plus_product(total, torch.randn(8, 16), torch.randn(16, 4))
    assert torch.equal(total, before)


def test_without_the_operator_everything_goes_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.setattr(products, "_LINEAR", None)
    left, right = torch.randn(8, 16), torch.randn(16, 4)
    assert torch.equal(products.product(left, right), left @ right)


def test_a_model_learns_the_same_by_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=128)
    tokens = np.random.default_rng(0).integers(128, size=(2, 96))
    batch = PackedBatch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        positions=np.tile(np.arange(96, dtype=np.int32), (2, 1)),
        lengths=np.array([96, 96]),
        n_targets=192,
    )
    gradients = []
    for smallest in (0, products.SMALLEST):
        monkeypatch.setattr(products, "SMALLEST", smallest)
        model = init_weights(Transformer(config), seed=0)
        next_token_loss(model, batch).sum.backward()
        gradients.append([p.grad for p in model.parameters()])
    for by_onednn, by_mkl in zip(*gradients, strict=True):
        torch.testing.assert_close(by_onednn, by_mkl, rtol=1e-4, atol=1e-5 * float(by_mkl.abs().max()))
