"""A student in service: which comparisons with its teacher send a route back, and which do not."""

from __future__ import annotations

import random

import pytest

from freehold.route.router.graduation import contradicted, same_answer


@pytest.mark.parametrize(("floor", "misses"), [(0.95, 2), (0.85, 3), (0.8, 3), (0.7, 4)])
def test_a_change_of_every_answer_is_seen_after_few_comparisons(floor: float, misses: int):
    before = [True] * 100
    assert not contradicted([*before, *[False] * (misses - 1)], floor)
    assert contradicted([*before, *[False] * misses], floor) == misses


def test_a_student_that_agrees_as_it_must_rarely_goes_back():
    draw, fallen = random.Random(0), 0
    for _ in range(100):  # 100 comparisons each, which are 5,000 requests at 2 %
        agreed: list[bool] = []
        for _ in range(100):
            agreed.append(draw.random() < 0.97)
            if contradicted(agreed, 0.85):
                fallen += 1
                break
    assert fallen <= 5


def test_answers_are_compared_as_json_or_without_white_space():
    assert same_answer('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    assert same_answer(" yes\n", "yes") and not same_answer("yes", "no")
