"""Templates that would run for ever, or for all memory, end as an error, each within its limits."""

from __future__ import annotations

import resource

import pytest

from freehold.base.errors import BadTemplate
from freehold.base.sandbox.limits import MEMORY
from freehold.base.sandbox.renderer import GRACE_S
from freehold.base.sandbox.rendering import Renderers, RenderJob
from freehold.run.tokenizer import ChatTemplate
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
    # The largest of all children so far; each begins with its parent's peak, which exec does not reset.
    known = max(before.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert after.ru_maxrss <= known or after.ru_maxrss * 1024 < MEMORY


class Counting(Renderers):
    """Renderers that count the jobs they were given."""

    jobs = 0

    def run(self, asked: RenderJob) -> list[str | BadTemplate]:
        self.jobs += 1
        return super().run(asked)


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("source", [BOMBS["equal lists"], BOMBS["kept ranges"], LOOPS, "{{ unclosed"])
def test_a_template_that_probes_found_dead_is_not_tried_again(source: str):
    renderers = Counting()
    template = ChatTemplate(source, seconds=SECONDS, renderers=renderers)
    assert template.thinking == "none" and not template.can_call and renderers.jobs == 2
    for _ in range(20):
        with pytest.raises(BadTemplate):
            template.render([{"role": "user", "content": "x"}])
    assert renderers.jobs == 2
    renderers.close()


def test_a_template_that_refuses_a_chat_of_one_word_is_not_dead():
    source = "{% if messages | length < 2 %}{{ raise_exception('two') }}{% endif %}ok{# enable_thinking #}"
    template = ChatTemplate(source, seconds=60.0)
    assert template.thinking == "none"
    with pytest.raises(BadTemplate, match="two"):
        template.render([{"role": "user", "content": "x"}])
    assert template.render([{"role": "user", "content": "x"}] * 2).text == "ok"


def test_a_template_whose_tools_never_end_still_renders_a_chat():
    source = "{% if tools %}" + BOMBS["equal lists"] + "{% endif %}{{ messages[0].content }}"
    template = ChatTemplate(source, seconds=1.0)
    assert not template.can_call
    assert template.render([{"role": "user", "content": "hi"}]).text == "hi"
