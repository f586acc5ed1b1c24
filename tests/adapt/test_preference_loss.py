"""The arithmetic of the preference loss."""

from __future__ import annotations

import math

import pytest

from freehold.adapt.align import preference_loss

torch = pytest.importorskip("torch")


def test_the_first_loss_is_ln_2_whatever_the_likelihoods():
    chosen, rejected = torch.tensor([-30.0, -5.5, -120.0]), torch.tensor([-2.0, -60.0, -7.0])
    found = preference_loss(chosen, rejected, chosen, rejected, beta=0.1)
    assert found.preference / 3 == pytest.approx(math.log(2), abs=1e-7)
    assert float(found.loss) == pytest.approx(math.log(2), abs=1e-7)


def test_loss_and_gradient_are_the_closed_form():
    beta, smoothing, nll = 0.3, 0.1, 0.2
    chosen = torch.tensor([-3.0, -4.0], requires_grad=True)
    rejected = torch.tensor([-5.0, -2.0], requires_grad=True)
    reference = torch.tensor([-3.5, -4.5]), torch.tensor([-4.0, -2.5])
    found = preference_loss(chosen, rejected, *reference, beta=beta, smoothing=smoothing, nll=nll, tokens=8)
    found.loss.backward()
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    total, grads = 0.0, []
    for c, r, rc, rr in zip([-3, -4], [-5, -2], [-3.5, -4.5], [-4, -2.5], strict=True):
        m = beta * ((c - rc) - (r - rr))
        total += -(1 - smoothing) * math.log(sigmoid(m)) - smoothing * math.log(sigmoid(-m))
        grads.append(beta * (sigmoid(m) - (1 - smoothing)) / 2)
    assert found.preference == pytest.approx(total, abs=1e-6)
    assert float(found.loss.detach()) == pytest.approx(total / 2 + nll * 7 / 8, abs=1e-6)
    assert rejected.grad.tolist() == pytest.approx([-g for g in grads], abs=1e-6)
    assert chosen.grad.tolist() == pytest.approx([g - nll / 8 for g in grads], abs=1e-6)
    assert found.margins.tolist() == pytest.approx([1.5, 0.0], abs=1e-6)


def test_smoothing_keeps_a_margin_finite():
    """With labels that may be wrong, an endless margin costs: the loss has its least value at a finite one."""
    zero = torch.zeros(1)
    at = lambda m: preference_loss(torch.tensor([m]), zero, zero, zero, beta=1.0, smoothing=0.1).preference  # noqa: E731
    best = math.log(0.9 / 0.1)
    assert at(best) < at(best - 1)
    assert at(best) < at(best + 1)


def test_parts_of_a_batch_add_up_to_it():
    draw = torch.Generator().manual_seed(0)
    sums = [torch.randn(6, generator=draw) for _ in range(4)]
    given = {"beta": 0.2, "nll": 0.3, "smoothing": 0.1, "tokens": 40}
    whole = preference_loss(*sums, **given)
    parts = [preference_loss(*(s[i : i + 2] for s in sums), **given, pairs=6) for i in (0, 2, 4)]
    assert sum(float(part.loss) for part in parts) == pytest.approx(float(whole.loss), abs=1e-6)
    assert sum(part.preference for part in parts) == pytest.approx(whole.preference, abs=1e-6)
