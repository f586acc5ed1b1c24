"""The arithmetic of advantages, weights and the clipped objective."""

from __future__ import annotations

import math

import numpy as np
import pytest

from freehold.adapt.reinforce.policy import Mismatch, Objective, advantages
from freehold.adapt.settings import CAP

torch = pytest.importorskip("torch")


def test_advantages_are_of_the_group_and_equal_groups_are_dropped():
    scores = [[1.0, 0.0, 0.0, 1.0], [0.25] * 4, [0.0, 0.0, 0.0, 1.0]]
    plain, scaled = advantages(scores, "dr_grpo"), advantages(scores, "dapo")
    assert plain == [[0.5, -0.5, -0.5, 0.5], None, [-0.25, -0.25, -0.25, 0.75]]
    assert scaled[0] == [1.0, -1.0, -1.0, 1.0] and scaled[1] is None
    assert scaled[2] == pytest.approx([-1 / math.sqrt(3)] * 3 + [math.sqrt(3)])


def test_the_first_update_is_the_policy_gradient_weighted_by_trainer_over_sampler():
    now = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    sampled = torch.tensor([-1.0, -2.5, -5.0])
    Objective().sum(now, now.detach(), sampled, torch.full((3,), 0.5)).backward()
    assert now.grad.tolist() == pytest.approx([-0.5, -0.5 * math.exp(0.5), -0.5 * CAP])


def test_without_a_cap_the_sampler_is_taken_for_the_trainer():
    now = torch.tensor([-1.0, -2.0], requires_grad=True)
    Objective(cap=0.0).sum(now, now.detach(), torch.tensor([-3.0, -2.0]), torch.full((2,), 1.0)).backward()
    assert now.grad.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("moved", "advantage", "moves"),
    [(0.3, 1.0, False), (0.2, 1.0, True), (-0.3, 1.0, True), (-0.3, -1.0, False), (0.3, -1.0, True)],
)
def test_a_later_update_is_clipped_where_it_went_far_enough(moved: float, advantage: float, moves: bool):
    start = torch.tensor([-1.0])
    now = (start + moved).requires_grad_()
    Objective(cap=0.0).sum(now, start, start, torch.tensor([advantage])).backward()
    assert (float(now.grad) != 0) == moves


def test_a_steps_sum_is_divided_by_a_constant_or_by_its_tokens():
    assert Objective("dr_grpo").divisor(64, 40, 300) == 64 * 40
    assert Objective("dapo").divisor(64, 40, 300) == 300


def test_mismatch_is_measured_over_tokens():
    start, sampled = np.array([-1.0, -2.0, -3.0], "f4"), np.array([-1.5, -2.0, -2.75], "f4")
    found = Mismatch.of(start, sampled)
    assert found is not None and found.tokens == 3
    assert found.mean == pytest.approx(0.25 / 3) and found.mean_size == pytest.approx(0.25)
    assert Mismatch.of(start[:0], sampled[:0]) is None
