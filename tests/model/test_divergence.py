"""Distillation sums against their formulas with autograd, in fp64, whatever the chunks."""

import pytest
import torch

from puna.model.divergence import Head, Mixture, distillation_sums


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(student, teacher, targets, mixture, weights):
    """All logits at once, KL by KL."""
    kept = targets >= 0
    s, t, w = student[kept], teacher[kept], weights[kept]
    T, b = mixture.temperature, mixture.jsd_beta
    ce = torch.nn.functional.cross_entropy(s, targets[kept], reduction="none")
    p, q = (t / T).softmax(1), (s / T).softmax(1)

    def kl(x, y):
        return (x * (x.log() - y.log())).sum(1)

    m = b * p + (1 - b) * q
    found = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": b * kl(p, m) + (1 - b) * kl(q, m)}
    d = found[mixture.divergence]
    return (w * ((1 - mixture.share) * ce + mixture.share * T**2 * d)).sum(), (w * ce).sum(), (w * d).sum()


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 19 * 3, 2**30])
def test_values_and_gradients_are_those_of_the_formula(divergence, temperature, chunk_bytes):
    hidden, head = random(11, 6, seed=0).requires_grad_(), random(19, 6, seed=1).requires_grad_()
    teacher = Head(random(11, 4, seed=2), random(19, 4, seed=3))
    targets = torch.randint(0, 19, (11,), generator=torch.Generator().manual_seed(4))
    targets[[2, 5]] = -100
    weights = random(11, seed=5).abs()
    mixture = Mixture(divergence, 0.3, temperature, 0.2)
    sums = distillation_sums(Head(hidden, head), teacher, targets, mixture, weights_T=weights, chunk_bytes=chunk_bytes)
    expected = naive(hidden @ head.T, teacher.hidden @ teacher.matrix.T, targets, mixture, weights)
    torch.testing.assert_close(sums, torch.stack(expected))
    ours = torch.autograd.grad(3 * sums[0], (hidden, head))
    theirs = torch.autograd.grad(3 * expected[0], (hidden, head))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_is_its_teacher_has_no_divergence_and_no_gradient(divergence):
    hidden, head = random(5, 6, seed=0).requires_grad_(), random(9, 6, seed=1).requires_grad_()
    same = Head(hidden.detach(), head.detach())
    targets = torch.zeros(5, dtype=torch.long)
    sums = distillation_sums(Head(hidden, head), same, targets, Mixture(divergence, 1.0, 2.0))
    assert abs(sums[0].item()) < 1e-12
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(sums[0], (hidden, head)))


def test_without_targets_all_is_zero():
    hidden, head = random(5, 6, seed=0).requires_grad_(), random(9, 6, seed=1).requires_grad_()
    targets = torch.full((5,), -100)
    sums = distillation_sums(Head(hidden, head), Head(hidden.detach(), head.detach()), targets, Mixture())
    sums[0].backward()
    assert (sums == 0).all() and (hidden.grad == 0).all() and (head.grad == 0).all()
