"""AdamW, its groups and clipping against their twins."""

import pytest
import torch

from puna.train.optim import (
    OptimConfig,
    begin_optimizer_state,
    build_optimizer,
    optimizer_tensors,
    scale_and_clip,
    set_rate,
)
from tests.reference.training_naive import adamw, clipped_mean

from .conftest import tiny_model


def test_matrices_decay_and_norms_do_not():
    model = tiny_model()
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(weight_decay=0.3))
    decays = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    assert decays.keys() == dict(model.named_parameters()).keys()
    assert {name for name, decay in decays.items() if decay == 0} == {n for n in decays if "norm" in n}
    assert set(decays.values()) == {0.0, 0.3}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_ten_steps_equal_the_twin(shape, weight_decay):
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(10)]
    start = parameter.detach().flatten().tolist()
    config = OptimConfig(lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=weight_decay)
    optimizer = build_optimizer([("w", parameter)], config)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    expected = adamw(
        start,
        [g.flatten().tolist() for g in gradients],
        lr=0.02,
        betas=(0.8, 0.9),
        eps=1e-6,
        weight_decay=weight_decay if len(shape) == 2 else 0.0,
    )
    assert parameter.detach().flatten().tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("limit", [0.0, 0.01, 1.0, 100.0])
def test_clipping_looks_at_the_global_norm_of_the_mean(limit):
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    flat = torch.cat([g.flatten() for g in gradients]).tolist()
    expected, norm = clipped_mean(flat, 7, limit)
    found = scale_and_clip(gradients, count=7, clip_norm=limit)
    assert found == pytest.approx(norm, rel=1e-6)
    assert torch.cat([g.flatten() for g in gradients]).tolist() == pytest.approx(expected, rel=1e-5)
    if limit:
        assert float(torch.cat([g.flatten() for g in gradients]).norm()) <= max(limit, 0) * (1 + 1e-6) or norm <= limit


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_reported_by_the_norm(bad):
    gradients = [torch.ones(3), torch.tensor([1.0, bad])]
    norm = scale_and_clip(gradients, count=2, clip_norm=1.0)
    assert not norm < float("inf")
    assert torch.equal(gradients[0], torch.ones(3))


def test_a_zero_gradient_stays_zero():
    gradients = [torch.zeros(3)]
    assert scale_and_clip(gradients, count=5, clip_norm=1.0) == 0.0
    assert torch.equal(gradients[0], torch.zeros(3))


def test_a_restored_optimizer_makes_the_same_next_step_bit_by_bit():
    def steps(model, optimizer, n, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    first = tiny_model()
    optimizer = build_optimizer(first.named_parameters(), OptimConfig())
    steps(first, optimizer, 3, seed=0)
    second = tiny_model(seed=1)
    second.load_state_dict(first.state_dict())
    fresh = build_optimizer(second.named_parameters(), OptimConfig())
    begin_optimizer_state(fresh, lambda name: True)
    for kind, tensors in optimizer_tensors(fresh).items():
        for name, tensor in tensors.items():
            tensor.copy_(optimizer_tensors(optimizer)[kind][name])
    for each in (optimizer, fresh):
        set_rate(each, 1e-3)
    steps(first, optimizer, 2, seed=1)
    steps(second, fresh, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_parameter_that_never_had_a_gradient_gets_no_state():
    model = tiny_model()
    optimizer = build_optimizer(model.named_parameters(), OptimConfig())
    begin_optimizer_state(optimizer, lambda name: name == "norm.weight")
    found = optimizer_tensors(optimizer)
    assert {kind: list(tensors) for kind, tensors in found.items()} == {
        kind: ["norm.weight"] for kind in ("step", "exp_avg", "exp_avg_sq")
    }
    assert optimizer.state[model.norm.weight]["exp_avg"].shape == model.norm.weight.shape
