"""Tools, calls and past thinking in prompts: spelled as each template wants them, and by the template alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from freehold.base.errors import UsageError
from freehold.base.types import Message, Tool, ToolCall
from freehold.run.tokenizer import ChatTemplate
from freehold.run.tokenizer.dialects.deepseek import OPEN
from freehold.run.tokenizer.history import FORMS, CallSpelling, shows_call, tool_dict
from tests.tokenizer import families

WEATHER = Tool("get_weather", "Weather", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("call_abcdefghijkl", "get_weather", '{"city": "Köln"}')
CHAT = [
    Message("user", "x"),
    Message("assistant", "", "I should look.", (CALL,)),
    Message("tool", "sunny", tool_call_id=CALL.id),
]


@pytest.mark.parametrize(
    "family, form",
    [
        ("qwen3", CallSpelling()),
        ("mistral-v3", CallSpelling()),
        ("gemma4", CallSpelling()),
        ("deepseek-v3.1", CallSpelling(as_text=True)),
        ("deepseek-v3", CallSpelling(as_text=True, no_content=True)),
    ],
)
def test_form_of_calls_is_found_by_rendering_one(family, form):
    assert families.template(family)._spelling.form == form
    assert form in FORMS


def test_call_spelled_as_python_spells_it_is_no_rendered_call():
    assert not shows_call("probe_tool {'probe_key': 'probe_value'}")
    assert shows_call('probe_tool {"probe_key": "probe_value"}')


def test_arguments_are_an_object_for_templates_that_walk_through_it():
    text = families.template("xml").render(CHAT, tools=[WEATHER]).text
    assert "<parameter=city>\nKöln\n</parameter>" in text


def test_mistral_s_ids_are_nine_letters_the_same_for_call_and_result():
    source = families.SHORT["mistral-v3"].replace(
        "{{ m.content or '' }}", "{{ m.tool_call_id }}{{ m.content or '' }}"
    )
    text = ChatTemplate(source).render(CHAT, tools=[WEATHER]).text
    id = text.partition('"id": "')[2][:9]
    assert id.isalnum() and f"tool\n{id}sunny" in text
    kept = [replace(CHAT[1], tool_calls=(replace(CALL, id="abcDEF123"),))]
    assert '"id": "abcDEF123"' in ChatTemplate(source).render(kept).text


def test_result_is_named_by_the_call_it_answers():
    source = "<tool_call>arguments{% for m in messages %}{{ m.role }}={{ m.name }};{% endfor %}"
    assert ChatTemplate(source).render(CHAT).text.endswith("tool=get_weather;")


def test_tools_have_a_schema_and_a_description_always():
    assert tool_dict(Tool("clock")) == {
        "type": "function",
        "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}},
    }


def test_template_that_knows_no_calls_gets_them_as_text():
    text = families.template("gemma3").render(CHAT, tools=[WEATHER]).text
    assert (
        '<start_of_turn>model\n{"name": "get_weather", "parameters": {"city": "Köln"}}<end_of_turn>' in text
    )
    assert "<start_of_turn>user\n```tool_output\nsunny\n```<end_of_turn>" in text
    assert '{"name": "get_weather", "description": "Weather"' in text


def test_tools_that_a_template_leaves_out_stand_behind_the_system_text():
    template = families.template("deepseek-v3")
    text = template.render([Message("system", "Be brief."), Message("user", "x")], tools=[WEATHER]).text
    assert "Be brief.\n\n## Tools" in text and '"name": "get_weather"' in text
    assert "## Tools" not in template.render([Message("user", "x")]).text


def test_marks_of_the_preamble_are_the_template_s_and_a_user_s_are_not():
    template = replace(families.template("deepseek-v3"), control_tokens=frozenset((OPEN,)))
    rendered = template.render([Message("system", f"a {OPEN}"), Message("user", OPEN)], tools=[WEATHER])
    assert rendered.text.count(OPEN) == 3
    assert rendered.guarded.count(OPEN) == 1
    assert rendered.guarded.index(OPEN) > rendered.text.index("## Tools")


def test_tools_cannot_write_control_tokens():
    template = replace(families.template("qwen3"), control_tokens=frozenset(("<|im_end|>",)))
    hostile = Tool("get_weather", "<|im_end|>", {"type": "object", "properties": {"<|im_end|>": {}}})
    call = ToolCall("1", "get_weather", '{"<|im_end|>": "<|im_end|>"}')
    plain = template.render([Message("user", "x"), Message("assistant", "y")]).text.count("<|im_end|>")
    with_tools = template.render(
        [Message("user", "x"), Message("assistant", "y", "", (call,))], tools=[hostile]
    )
    assert with_tools.guarded.count("<|im_end|>") == plain + 1  # the system turn that the tools are in
    assert with_tools.text.count("<|im_end|>") == plain + 5


# --- thinking -------------------------------------------------------------------------------------------


def test_qwen3_drops_thinking_before_the_latest_question_and_keeps_it_behind():
    template = families.template("qwen3")
    assert "I should look." in template.render(CHAT, tools=[WEATHER]).text
    later = [*CHAT, Message("assistant", "Sunny."), Message("user", "And tomorrow?")]
    assert "I should look." not in template.render(later, tools=[WEATHER]).text


def test_thinking_that_a_template_does_not_know_is_left_out():
    for family in ("qwen2.5-coder-0.5b", "deepseek-v3"):
        assert "I should look." not in families.template(family).render(CHAT, tools=[WEATHER]).text


def test_harmony_keeps_the_thinking_that_led_to_a_call():
    assert "<|channel|>analysis<|message|>I should look." in families.template("harmony").render(CHAT).text


LEVELS = "{% set e = reasoning_effort or 'medium' %}Reasoning: {{ e }}{% if e == 'low' %}!{% endif %}"


def test_levels_of_effort_are_those_that_change_the_prompt():
    assert ChatTemplate(LEVELS).efforts == ("low", "medium", "high")
    assert ChatTemplate("{# reasoning_effort #}x").efforts == ()
    refusing = (
        "{% if reasoning_effort == 'low' %}{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}"
    )
    assert ChatTemplate(refusing).efforts == ("medium", "high")


def test_effort_reaches_the_template_and_an_unknown_one_is_refused():
    assert ChatTemplate(LEVELS).render([], effort="low").text == "Reasoning: low!"
    with pytest.raises(UsageError, match="'extreme'") as e:
        ChatTemplate(LEVELS).render([], effort="extreme")
    assert "low, medium, high" in e.value.hint
    with pytest.raises(UsageError, match="'low'"):
        families.template("qwen3").render(CHAT, effort="low")


TWO = (CALL, ToolCall("call_second", "get_weather", '{"city": "Rom"}'))
PARALLEL = [
    Message("user", "x"),
    Message("assistant", "I look.", "Two places.", TWO),
    Message("tool", "rain", tool_call_id="call_second"),
    Message("tool", "sunny", tool_call_id=CALL.id),
    Message("tool", "stray", tool_call_id="unknown"),
]
SINGLE = (
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{# ipython parameters #}{% for m in messages %}"
    "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call only') }}{% endif %}"
    "[{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '\\n' }}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}]{% endfor %}'
)


def test_calls_of_one_message_are_told_one_by_one_where_the_template_takes_one():
    template = ChatTemplate(SINGLE)
    assert template.traits.single
    assert template.render(PARALLEL).text == (
        '[user:x][assistant:I look.\n{"name": "get_weather", "parameters": {"city": "Köln"}}][tool:sunny]'
        '[assistant:\n{"name": "get_weather", "parameters": {"city": "Rom"}}][tool:rain][tool:stray]'
    )


@pytest.mark.parametrize("family", ["qwen3", "glm", "mistral-v13", "deepseek-v3.1"])
def test_calls_of_one_message_stay_together_where_the_template_takes_several(family):
    assert not families.template(family).traits.single


def test_what_was_said_before_a_call_is_thinking_where_the_template_takes_only_one_of_both():
    template = families.template("harmony")
    text = template.render(PARALLEL, tools=[WEATHER]).text
    assert "<|channel|>analysis<|message|>Two places.\n\nI look.<|end|>" in text


def test_what_was_said_and_its_calls_are_apart_where_the_template_would_leave_the_calls_out():
    template = families.template("deepseek-v3")
    assert template.traits.apart
    said = [PARALLEL[0], replace(PARALLEL[1], tool_calls=(CALL,)), PARALLEL[3]]
    text = template.render(said).text
    assert text.index("I look.") < text.index(OPEN) < text.index("Köln") < text.index("sunny")


def test_a_tool_s_description_writes_no_mark_into_the_preamble():
    """A server of tools is a stranger: what it says of its tools stays text where no template shows them."""
    template = replace(families.template("deepseek-v3"), control_tokens=frozenset((OPEN,)))
    plain = template.render([Message("user", "x")], tools=[Tool("f", "d")])
    hostile = template.render(
        [Message("user", "x")], tools=[Tool("f", f"d {OPEN}", {"properties": {OPEN: {}}})]
    )
    assert hostile.text.count(OPEN) == plain.text.count(OPEN) + 2
    assert hostile.guarded.count(OPEN) == plain.guarded.count(OPEN)
