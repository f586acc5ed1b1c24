"""Templates that would run for ever, or for all memory, end as an error, each within its limits."""

from __future__ import annotations

import resource

import pytest

from freehold.errors import BadTemplate
from freehold.sandbox.renderer import GRACE_S, MEMORY
from freehold.tokenizer import ChatTemplate
from tests.sandbox.bombs import BOMBS

SECONDS = 0.1


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_ends_within_its_limits(name: str):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(BadTemplate):
        ChatTemplate(BOMBS[name], seconds=SECONDS).render([{"role": "user", "content": "x"}])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of children that ended
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < SECONDS + GRACE_S + 1.0
    assert after.ru_maxrss * 1024 < MEMORY
