"""NF4 against its naive twin, its published constants, and bitsandbytes where it is installed."""

from itertools import pairwise

import pytest
import torch

from puna.model.nf4 import NF4, VALUES, dynamic_values
from tests.reference import nf4_naive


def weights(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_the_constants_are_those_of_the_papers():
    torch.testing.assert_close(torch.tensor(VALUES), torch.tensor(nf4_naive.nf4_values()), atol=1e-6, rtol=0)
    torch.testing.assert_close(dynamic_values(), torch.tensor(nf4_naive.dynamic_values()), atol=1e-6, rtol=0)
    assert len(dynamic_values()) == 256


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("shape", [(3, 64), (30, 10), (5, 7)])
def test_packing_equals_the_naive_twin(shape, double):
    w = weights(*shape)
    naive = torch.tensor(nf4_naive.round_trip(w.flatten().tolist(), double=double)).view(shape)
    torch.testing.assert_close(NF4.of(w, double=double).unpack(), naive, atol=1e-6, rtol=0)


def test_an_error_is_at_most_half_the_widest_gap_of_its_block():
    w = weights(64, 64)
    error = (NF4.of(w, double=False).unpack() - w).abs().view(-1, 64).amax(1)
    gap = max(b - a for a, b in pairwise(VALUES))
    assert (error <= w.abs().view(-1, 64).amax(1) * gap / 2 + 1e-7).all()


def test_bits_a_weight_are_4_127_with_double_quantization_and_4_5_without():
    w = weights(1024, 1024)
    assert NF4.of(w).nbytes * 8 / w.numel() == pytest.approx(4.127, abs=1e-3)
    assert NF4.of(w, double=False).nbytes * 8 / w.numel() == 4.5


def test_zeros_stay_zero_and_another_type_is_the_rounded_one():
    w = weights(4, 64)
    w[1] = 0.0
    packed = NF4.of(w, double=False)
    assert (packed.unpack()[1] == 0).all()
    assert torch.equal(packed.unpack(torch.bfloat16), packed.unpack().bfloat16())
    assert torch.equal(packed.to("cpu").unpack(), packed.unpack())


def test_codes_are_those_of_bitsandbytes():
    bits = pytest.importorskip("bitsandbytes.functional")
    w = weights(688, 256)
    codes, state = bits.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=False)
    ours = NF4.of(w, double=False)
    assert torch.equal(codes.flatten(), ours.codes) and torch.equal(state.absmax, ours.scales)
    codes, state = bits.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    double = NF4.of(w)
    assert torch.equal(codes.flatten(), double.codes) and torch.equal(state.state2.absmax, double.steps)
    # at the borders between two values its search and ours round apart
    assert (state.absmax != double.scales).float().mean() < 2e-3
