"""Tool calls: what a family's template renders is read back as it was, however the text is cut."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.base.types import Message, Tool, ToolCall
from freehold.run.tokenizer import ChatTemplate
from freehold.run.tokenizer.dialects import (
    _MARKS,
    Call,
    HarmonyParser,
    Thought,
    ToolParser,
    dialect_of,
    grammar,
)
from freehold.run.tokenizer.dialects.contract import Dialect
from freehold.run.tokenizer.dialects.grammar import closed, pattern_of_bare
from tests.tokenizer import families

WEATHER = Tool(
    "get_weather",
    "Weather in a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "more": {"type": "object"},
            "places": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city"],
    },
)
CLOCK = Tool("clock", "The time", {"type": "object", "properties": {}})
TOOLS = (WEATHER, CLOCK)
FAMILIES = {
    "qwen2.5-coder-0.5b": "hermes",
    "qwen2.5-coder-1.5b": "hermes",
    "qwen3": "hermes",
    "deepseek-v3": "deepseek-v3",
    "gemma3": "gemma3",
    "xml": "xml",
    "nemotron": "nemotron",
    "mistral-v3": "mistral-v3",
    "mistral-v13": "mistral",
    "llama": "llama",
    "deepseek-v3.1": "deepseek-v3.1",
    "gemma4": "gemma4",
    "harmony": "harmony",
    "glm": "glm",
    "glm-4.7": "glm-4.7",
    "minimax": "minimax",
    "seed": "seed",
    "dsml": "dsml-function-calls",
    "hunyuan": "hunyuan",
    "llama4": "llama4",
    "lfm2": "lfm2",
    "kimi": "kimi",
    "tool-calls": "tool-calls",
    "granite": "granite",
    "phi4": "phi4",
    "cohere": "cohere",
    "functionary": "functionary",
}
MARKED = ("xml", "glm", "glm-4.7", "minimax", "seed", "dsml", "hunyuan")
DIALECTS = {dialect.name: dialect for dialect, _ in _MARKS}
ENDS = ("<|im_end|>", "<｜end▁of▁sentence｜>", "<end_of_turn>")


def parsed(dialect: Dialect, pieces: list[str], tools=TOOLS) -> tuple[str, list[Call], str]:
    """Return (text, calls, thinking) of an answer that comes in pieces."""
    parser = HarmonyParser() if dialect.channels else ToolParser(dialect, tools)
    got = [x for piece in pieces for x in parser.push(piece)] + parser.finish()
    return (
        "".join(x for x in got if isinstance(x, str)),
        [x for x in got if isinstance(x, Call)],
        "".join(x.text for x in got if isinstance(x, Thought)),
    )


def cut(text: str, at: list[int]) -> list[str]:
    at = sorted(i % (len(text) + 1) for i in at)
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def rendered_answer(template: ChatTemplate, calls: tuple[ToolCall, ...], said: str = "") -> str:
    """Return what the template writes of an assistant's turn with `calls`, as a model would."""
    user = Message("user", "x")
    answer = Message("assistant", said, tool_calls=calls)
    begin = template.render([user], tools=TOOLS).text
    whole = template.render([user, answer], tools=TOOLS, add_generation_prompt=False).text
    assert whole.startswith(begin)
    for end in ENDS:
        whole = whole[len(begin) :].partition(end)[0] if end in whole[len(begin) :] else whole
    return whole.removeprefix(begin).removeprefix("<think>\n\n</think>\n\n")  # the splitter's before it


def calls_of(values: list[dict[str, object]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(f"call{i:05}", WEATHER.name, json.dumps(v)) for i, v in enumerate(values))


@pytest.mark.parametrize("family, name", FAMILIES.items())
def test_dialect_is_told_by_the_template_s_source(family, name):
    template = families.template(family)
    assert template.dialect is DIALECTS[name]
    assert template.can_call


@pytest.mark.parametrize("name", ["smollm2-135m", "llama3.1"])
def test_template_without_tools_offers_none(name):
    assert families.stored(name).dialect is None
    assert not families.stored(name).can_call


words = st.text(
    st.characters(codec="utf-8", exclude_characters="\r", exclude_categories=["Cc", "Cs"]), max_size=20
)
arguments = st.fixed_dictionaries(
    {"city": words},
    optional={
        "days": st.integers(-(10**12), 10**12),
        "exact": st.booleans(),
        "places": st.lists(words, max_size=3),
        "more": st.dictionaries(st.sampled_from(["a", "b"]), st.booleans() | words, max_size=2),
    },
)


def fits(family: str, text: str) -> bool:
    """Leave out what a family's notation cannot spell, or its template trims."""
    marks = ("<", "[", "{", "`", "｜", "|", ">") if family in (*MARKED, "gemma4") else ("｜", "<", "[TOOL")
    return not any(mark in text for mark in marks)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(values=st.lists(arguments, min_size=1, max_size=2), at=st.lists(st.integers(0, 500), max_size=8))
def test_rendered_calls_are_read_back_however_the_text_is_cut(family, values, at):
    template = families.template(family)
    assert template.dialect is not None
    spelled = json.dumps(values, ensure_ascii=False)
    if not fits(family, spelled.replace("[{", "").replace("}]", "").replace("{", "").replace("[", "")):
        return
    if family == "xml" and any(v["city"] != v["city"].strip("\n") for v in values):
        return
    values = values[:1] if family == "deepseek-v3" else values
    text = rendered_answer(template, calls_of(values))
    said, calls, _ = parsed(template.dialect, cut(text, at))
    assert [json.loads(c.arguments) for c in calls] == values
    assert {c.name for c in calls} == {WEATHER.name}
    assert said == ""
    assert parsed(template.dialect, [text]) == (said, calls, "")


ALPHABET = [
    *(
        "<tool_call>",
        "</tool_call>",
        '{"name": "get_weather", "arguments": ',
        '{"city": "Rome"}',
        "}",
        "\n",
        "```",
    ),
    *(
        "json",
        "<function=get_weather>",
        "<parameter=city>",
        "</parameter>",
        "</function>",
        "Rome",
        " ",
        "[",
        "]",
    ),
    *(
        "<arg_key>city</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<minimax:tool_call>",
        '<invoke name="get_weather">',
        '<parameter name="city">',
        "</invoke>",
        "<seed:tool_call>",
        "<|tool_call_start|>[",
        "get_weather(city='",
        "')",
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>functions.get_weather:0",
        "<|tool_call_argument_begin|>",
        "<tool_calls>",
        "<|START_ACTION|>",
        "<function=get_weather>",
        "<｜DSML｜function_calls>",
        '<｜DSML｜invoke name="get_weather">',
        '<｜DSML｜parameter name="city" string="true">',
        "<TOOLCALL>",
        "</TOOLCALL>",
        "[TOOL_CALLS]",
        "get_weather",
        "[ARGS]",
        "<|python_tag|>",
        ";",
        "<|tool_call>",
    ),
    *("call:get_weather", "{", 'city:<|"|>Rome<|"|>', "<tool_call|>", "<｜tool▁calls▁begin｜>"),
    *(
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<|channel|>",
        "analysis",
        "<|message|>",
    ),
    *(
        "<|start|>",
        "<|end|>",
        "assistant",
        "<|call|>",
        "to=functions.get_weather",
        '"',
        "\\",
        ",",
        ":",
        "-1.5e9",
    ),
    *("null", "é"),
]
broken = st.lists(st.sampled_from(ALPHABET) | st.text(max_size=3), max_size=14).map("".join)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
@settings(max_examples=60, deadline=None)
@given(text=broken, at=st.lists(st.integers(0, 200), max_size=10))
def test_any_text_is_read_alike_streamed_and_whole_and_nothing_raises(dialect, text, at):
    whole = parsed(dialect, [text])
    assert parsed(dialect, cut(text, at)) == whole
    for call in whole[1]:
        assert isinstance(json.loads(call.arguments), dict)
    if not whole[1] and not dialect.channels:
        assert whole[0] == text


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
def test_no_opening_is_the_beginning_of_another(dialect):
    marks = [o.mark for o in dialect.openings]
    assert not any(a != b and b.startswith(a) for a in marks for b in marks)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
def test_long_hostile_text_takes_no_long_time(dialect):
    for piece in (
        "<tool_call>{",
        "<function=a><parameter=b>",
        "[TOOL_CALLS][",
        "<|tool_call>call:a{b:[",
        "<tool_call>a<arg_key>b</arg_key><arg_value>",
        "</arg_value></tool_call",
        '<minimax:tool_call><invoke name="a">',
        "<｜DSML｜function_calls>",
        '{"name":',
    ):
        began = time.process_time()
        parser = HarmonyParser() if dialect.channels else ToolParser(dialect, TOOLS)
        for _ in range(2000):
            parser.push(piece)
        parser.finish()
        assert time.process_time() - began < 2


# --- families, by example -------------------------------------------------------------------------------


def read(name: str, text: str, tools=TOOLS) -> tuple[str, list[tuple[str, dict]]]:
    said, calls, _ = parsed(DIALECTS[name], list(text), tools)
    return said, [(c.name, json.loads(c.arguments)) for c in calls]


ROME = ("get_weather", {"city": "Rome"})
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
BARE = '{"name": "get_weather", "arguments": {"city": "Rome"}}'


@pytest.mark.parametrize(
    "text, said, calls",
    [
        (f"Let me see.\n{HERMES_CALL}", "Let me see.", 1),
        (f"{HERMES_CALL}\n{HERMES_CALL}", "", 2),
        (f"{HERMES_CALL} Done.", "Done.", 1),
        (HERMES_CALL.removesuffix("\n</tool_call>"), "", 1),  # the model ended without the mark
        (BARE, "", 1),
        (f"```json\n{BARE}\n```", "", 1),
        (f"Sure:\n```\n{BARE}\n```\n", "Sure:", 1),
        (BARE.replace("get_weather", "stranger"), BARE.replace("get_weather", "stranger"), 0),
        (f"Like {BARE}", f"Like {BARE}", 0),
        ('{"name": "Bob"}', '{"name": "Bob"}', 0),
        ("```json\n{}\n```\n", "```json\n{}\n```\n", 0),
        ('<tool_call>{"name": "get_weather"', '<tool_call>{"name": "get_weather"', 0),
        ("<tool_call>\nget_weather\n</tool_call>", "<tool_call>\nget_weather\n</tool_call>", 0),
    ],
)
def test_hermes(text, said, calls):
    assert read("hermes", text) == (said, [ROME] * calls)


def test_bare_object_is_text_where_no_such_tool_was_given():
    assert read("hermes", BARE, tools=(CLOCK,)) == (BARE, [])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"name": "clock", "arguments": {', "clock"),
        ('So:\n```json\n{\n  "name": "get_weather",\n  "parameters": {\n', "get_weather"),
        ('{"name": "clock", "about": "', ""),
        ('{"name": "clocks", "arguments": {', ""),
        ('So {"name": "clock", "arguments": {', ""),
        ('```python\nx = {"name": "clock", "arguments": {', ""),
    ],
)
def test_bare_call_is_known_before_it_is_whole_and_nothing_else_is_taken_for_one(text: str, name: str):
    found = re.search(pattern_of_bare(TOOLS).encode(), b"\n" + text.encode())
    assert (found is not None) == bool(name)
    assert found is None or (b"\n" + text.encode())[found.end() :].startswith(f'"{name}"'.encode())


def test_arguments_may_be_the_text_of_an_object():
    assert read("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}') == (
        "",
        [ROME],
    )


def test_line_ends_within_strings_are_forgiven_and_the_arguments_are_json():
    _, calls, _ = parsed(
        DIALECTS["hermes"], ['<tool_call>{"name": "clock", "arguments": {"a": "x\ny"}}</tool_call>']
    )
    assert calls[0].arguments == '{"a": "x\\ny"}'


XML_CALL = "<function=get_weather>\n<parameter=city>\n{}\n</parameter>\n</function>"


@pytest.mark.parametrize(
    "value", ["12", "true", '{"a": 1}', " x ", "a\nb", "</parameter>", "</tool_call>", ""]
)
def test_string_of_an_xml_call_stays_a_string(value):
    text = f"<tool_call>\n{XML_CALL.format(value)}\n</tool_call>"
    assert read("xml", text) == ("", [("get_weather", {"city": value})])


@pytest.mark.parametrize(
    "key, raw, value",
    [
        ("days", "3", 3),
        ("exact", "True", True),
        ("exact", "false", False),
        ("more", '{"a": [1]}', {"a": [1]}),
        ("places", '["x"]', ["x"]),
        ("days", "soon", "soon"),
        ("days", "null", None),
        ("unknown", "3", "3"),
    ],
)
def test_value_of_an_xml_call_has_the_schema_s_type(key, raw, value):
    text = f"<function=get_weather><parameter={key}>{raw}</parameter></function>"
    assert read("xml", text) == ("", [("get_weather", {key: value})])


@pytest.mark.parametrize(
    "name, text, calls",
    [
        ("llama", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Rome"}}', 1),
        ("llama", '{"name": "get_weather", "parameters": {"city": "Rome"}}; ' + BARE, 2),
        ("mistral", '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Rome"}', 1),
        ("mistral", f"[TOOL_CALLS][{BARE}, {BARE}]", 2),
        ("nemotron", f"<TOOLCALL>[{BARE}]", 1),
        ("tool-calls", f"<tool_calls>[{BARE}, {BARE}]</tool_calls>", 2),
        ("granite", f"<|tool_call|>[{BARE}]", 1),
        ("llama4", '{"name": "get_weather", "parameters": {"city": "Rome"}}' * 2, 2),
        (
            "llama4",
            '<|python_start|>{"name": "get_weather", "parameters": {"city": "Rome"}}<|python_end|>',
            1,
        ),
        ("phi4", f"<|tool_call|>[{BARE}]<|/tool_call|>", 1),
        ("functionary", '<function=get_weather>{"city": "Rome"}</function>', 1),
        (
            "lfm2",
            "<|tool_call_start|>[get_weather(city='Rome'), get_weather( city = \"Rome\" )]<|tool_call_end|>",
            2,
        ),
        (
            "cohere",
            '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Rome"}}'
            "\n]<|END_ACTION|>",
            1,
        ),
        (
            "kimi",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
            '{"city": "Rome"}<|tool_call_end|><|tool_call_begin|>get_weather<|tool_call_argument_begin|>'
            '{"city": "Rome"}',
            2,
        ),
        ("gemma4", '<|tool_call>call:get_weather{<|"|>city<|"|>:<|"|>Rome<|"|>}<tool_call|>', 1),
        (
            "deepseek-v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
            '```json\n{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            1,
        ),
        ("glm", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>", 1),
        (
            "minimax",
            '<minimax:tool_call><invoke name="get_weather"><parameter name="city">Rome</parameter></invoke>'
            '\n\n<invoke name="get_weather">\n<parameter name="city">Rome</parameter>\n</invoke>',
            2,
        ),
        (
            "dsml-function-calls",
            '<｜DSML｜function_calls><｜DSML｜invoke name="get_weather">'
            '<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter></｜DSML｜invoke>',
            1,
        ),
    ],
)
def test_other_families(name, text, calls):
    assert read(name, text) == ("", [ROME] * calls)


@pytest.mark.parametrize(
    "name, text",
    [
        ("glm", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</tool_call>"),
        ("glm", '<tool_call>{"name": "get_weather"}</tool_call>'),
        ("glm", "<tool_call>get_weather"),
        ("glm", "<tool_call></tool_call>"),
        ("minimax", "<minimax:tool_call>none</minimax:tool_call>"),
        ("minimax", '<invoke name="get_weather"></invoke>'),
        ("seed", "<seed:tool_call><function=get_weather></seed:tool_call>"),
        (
            "dsml-function-calls",
            '<｜DSML｜function_calls><｜DSML｜invoke name="x"><｜DSML｜parameter name="a">1',
        ),
        ("hunyuan", "<tool_calls><tool_call>get_weather</tool_call></tool_calls>"),
        ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.clock:0<|tool_call_end|>"),
        ("kimi", "<|tool_calls_section_begin|>none<|tool_calls_section_end|>"),
        ("granite", '<|tool_call|>[{"function": "clock"}]'),
        ("cohere", '<|START_ACTION|>[{"name": "clock"}]<|END_ACTION|>'),
        ("functionary", "<function=clock>soon</function>"),
        ("lfm2", "<|tool_call_start|>[get_weather('Rome')]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[get_weather(city='Rome']<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[get_weather(city=Rome)]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>none<|tool_call_end|>"),
    ],
)
def test_what_only_resembles_a_call_is_text(name, text):
    assert read(name, text) == (text, [])


@pytest.mark.parametrize(
    "value", ["12", "true", '{"a": 1}', " x ", "a\nb\n", "</arg_value>", "</tool_call>", ""]
)
def test_string_between_marks_stays_a_string(value):
    text = f"<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    assert read("glm", text) == ("", [("get_weather", {"city": value})])


def test_nested_value_may_hold_the_mark_that_ends_values():
    more = {"a": "</arg_value></tool_call>"}
    text = (
        f"<tool_call>get_weather<arg_key>more</arg_key><arg_value>{json.dumps(more)}</arg_value></tool_call>"
    )
    assert read("glm", text) == ("", [("get_weather", {"more": more})])


@pytest.mark.parametrize(
    "schema, words",
    [
        ({"anyOf": [{}]}, "'anyOf' of all parameters"),
        ({"properties": {"a": {"type": "string", "not": {"const": "x"}}}}, "further conditions"),
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {"minLength": 2}]}}}, "may fit two"),
        ({"properties": {"a": {"anyOf": [{"type": "null"}], "minLength": 1}}}, "'minLength' beside 'anyOf'"),
        ({"properties": {"a": {"enum": ["</arg_value>"]}}}, "ends a value"),
        ({"properties": {"a": {"type": "integer", "enum": ["a"]}}}, "nothing fits"),
        ({"properties": {"a": False}}, "nothing fits"),
        ({"properties": {"a": {"$ref": "#/none"}}}, "not within the schema"),
    ],
)
def test_schema_that_marked_text_cannot_keep_is_refused_by_name(schema, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        list(DIALECTS["glm"].form.arguments("a", schema, json.dumps))


def test_dsml_says_itself_which_values_are_strings():
    def call(kind: str) -> str:
        return (
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="unknown" '
            f'string="{kind}">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'
        )

    assert read("dsml-function-calls", call("true")) == ("", [("get_weather", {"unknown": "3"})])
    assert read("dsml-function-calls", call("false")) == ("", [("get_weather", {"unknown": 3})])


def test_harmony_s_channels_are_thinking_text_and_calls():
    answer = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Rome"}<|call|>'
    )
    for pieces in ([answer], list(answer)):
        said, calls, thought = parsed(DIALECTS["harmony"], pieces)
        assert (said, thought) == ("I look.", "Hm.")
        assert [(c.name, json.loads(c.arguments)) for c in calls] == [ROME]


@pytest.mark.parametrize(
    "schema, words",
    [
        ({"uniqueItems": True}, "'uniqueItems' cannot be kept"),
        ({"not": False}, "'not' cannot be kept"),
        ({"$ref": "http://example.com/a"}, "not within the schema"),
        ({"$ref": "#/$defs/none"}, "not within the schema"),
        (False, "nothing fits False"),
        ({"enum": ['<|"|>']}, "would end it"),
        ({"type": "string", "enum": [1]}, "nothing fits"),
        ({"enum": ["a", "b"], "maxLength": 1}, "'maxLength' beside constants"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "may fit two of 'oneOf'"),
        ({"type": "string", "anyOf": [{"type": "null"}]}, "'type' is said twice"),
        ({"type": "what"}, "no type 'what'"),
        ({"minItems": 5000}, "the limit is 1,000"),
        ({"properties": [1]}, "not a JSON schema"),
        ({"anyOf": []}, "expected schemas"),
        ({"type": "string", "minLength": "x"}, "not a JSON schema"),
    ],
)
def test_schema_that_gemma_s_notation_cannot_keep_is_refused_by_name(schema, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        grammar.arguments("a", {"properties": {"x": schema}, "required": ["x"]}, json.dumps)


def test_schema_of_choices_within_choices_is_refused_before_it_fills_memory():
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(14):
        schema = {"anyOf": [{"items": schema}, {"items": schema}]}
    with pytest.raises(UsageError, match="more than 4,096 rules"):
        grammar.arguments("a", {"properties": {"x": schema}}, json.dumps)


def test_harmony_without_a_header_is_text():
    assert parsed(DIALECTS["harmony"], list("Hello <|end|>"))[0] == "Hello "


def test_unknown_ways_to_call_are_no_dialect():
    assert dialect_of("<|tool_call|>[{{ tools }}]") is None


def test_a_schema_is_closed_where_it_does_not_speak_of_others():
    named = {"properties": {"a": {}}}
    shut = {**named, "additionalProperties": False}
    cases = [
        (named, shut),
        ({"properties": {}}, {"properties": {}}),
        ({**named, "additionalProperties": True}, {**named, "additionalProperties": True}),
        ({**named, "patternProperties": {}}, {**named, "patternProperties": {}}),
        ({"allOf": [named, named]}, {"allOf": [named, named]}),
        ({**named, "required": ["a"]}, {**shut, "required": ["a"]}),
        ({**named, "required": ["b"]}, {**named, "required": ["b"]}),
        ({"$defs": {"a": named}, "items": named}, {"$defs": {"a": shut}, "items": shut}),
        ({"$defs": {"a": named}, "allOf": [{"$ref": "#/$defs/a"}, named]}, None),
        ({"anyOf": [named, True]}, {"anyOf": [shut, True]}),
        (True, True),
    ]
    for schema, wanted in cases:
        assert closed(schema) == (schema if wanted is None else wanted)


@pytest.mark.parametrize(
    "text, value",
    [
        (r"'it\'s\n\x41\u00e9'", "it's\nAé"),
        (r'"\ud83d\ude42 \q\u12"', r"🙂 \q\u12"),
        ("[1, -2.5e3, 1., True, false, None, null]", [1, -2500.0, 1.0, True, False, None, None]),
        ("{'a': (1, 2,), \"b\": {}}", {"a": [1, 2], "b": {}}),
        ("''", ""),
    ],
)
def test_python_s_literals_are_read(text, value):
    said, calls = read("lfm2", f"<|tool_call_start|>[clock(v={text})]<|tool_call_end|>")
    assert (said, calls) == ("", [("clock", {"v": value})])


@pytest.mark.parametrize("text", ["{1: 2}", "f()", "'open", "1_000", "{'a' 1}", "[1 2]", "01a"])
def test_what_is_no_literal_is_no_call(text):
    whole = f"<|tool_call_start|>[clock(v={text})]<|tool_call_end|>"
    assert read("lfm2", whole) == (whole, [])


def test_dictionary_that_a_template_prints_as_python_does_is_read():
    call = "<seed:tool_call><function=get_weather><parameter=more>{'a': [True]}</parameter></function></seed:tool_call>"
    assert read("seed", call) == ("", [("get_weather", {"more": {"a": [True]}})])


def test_parameter_that_is_no_identifier_is_refused_as_a_keyword():
    with pytest.raises(UsageError, match="'odd key' cannot be the name of a keyword argument"):
        DIALECTS["lfm2"].form.arguments("a", {"properties": {"odd key": {}}}, json.dumps)


def test_number_beyond_a_double_is_the_largest_and_stays_a_number():
    _, calls, _ = parsed(
        DIALECTS["nemotron"], ['<TOOLCALL>[{"name": "clock", "arguments": {"a": [-1e999]}}]']
    )
    assert json.loads(calls[0].arguments) == {"a": [-sys.float_info.max]}
