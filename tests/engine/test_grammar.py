"""Formats become masks: what may come, what may not, what is refused, and that no format ends the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import MAX_FORMAT_CHARS, Format, FormatKind
from freehold.run.engine.constrain import grammar as grammar_module
from freehold.run.engine.constrain import trial_compile
from freehold.run.engine.constrain.constraint import Constraint, ConstraintMatcher
from freehold.run.engine.constrain.grammar import Grammars, NotReady, _deep
from freehold.run.local.jobs import check_request
from freehold.run.tokenizer import Tokenizer, tokenizer_from_gguf
from tests.engine.instances import patiently, takes
from tests.tokenizer import toys

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_from_gguf(toys.byte_level())


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


@pytest.mark.parametrize(
    "kind, source, good, bad",
    [
        ("json", "", ['{"a": [1, null]}', "{}"], ["[]", "1", '{"a"}', " {}"]),
        ("json_schema", json.dumps(PERSON), ['{"name": "é", "age": 3}'], ['{"age": 3}', '{"name": "x", "age": "3"}']),
        ("json_schema", "true", ["1", "[]"], ["x"]),
        ("regex", r"[a-c]{2,3}|\d+", ["ab", "abc", "42"], ["a", "abcd", "4a"]),
        ("lark", 'start: "hello" (" " WORD)*\nWORD: /[a-z]+/', ["hello", "hello hello"], ["hell", "hello "]),
        ("choice", json.dumps(["yes", 'n"o\\', "é / ☃"]), ["yes", 'n"o\\', "é / ☃"], ["ye", "no", ""]),
    ],
)  # fmt: skip
def test_texts_that_fit_go_through_and_others_do_not(
    grammars: Grammars, tokenizer: Tokenizer, kind: FormatKind, source: str, good: list[str], bad: list[str]
):
    grammar = grammars.grammar(Format(kind, source))
    assert [t for t in good if not takes(grammar, tokenizer, t)] == []
    assert [t for t in bad if takes(grammar, tokenizer, t)] == []


def test_texts_that_fit_any_of_several_formats_go_through(grammars: Grammars, tokenizer: Tokenizer):
    kinds = [
        ("json_schema", json.dumps(PERSON)),
        ("regex", "a+"),
        ("lark", 'start: "b" | %json {"enum": [3]}'),
    ]
    grammar = grammars.grammar(*(Format(kind, source) for kind, source in kinds))
    good, bad = ['{"name": "x", "age": 3}', "aa", "b", "3"], ["", "ab", '{"name": 3}', "33"]
    assert [t for t in good if not takes(grammar, tokenizer, t)] == []
    assert [t for t in bad if takes(grammar, tokenizer, t)] == []


@pytest.mark.parametrize(
    "kind, source, words",
    [
        ("json_schema", "{", "the JSON schema is not JSON"),
        ("json_schema", "[1]", "is a list; expected an object"),
        ("json_schema", '"{}"', "the JSON schema is a JSON string"),
        ("choice", '"abc"', "the choice is a JSON string"),
        ("json_schema", "[" * 100_000, "the JSON schema is not JSON"),
        ("json_schema", '{"a":' * 101 + "1" + "}" * 101, "more than 100 levels"),
        ("json_schema", '{"not": {}, "unevaluatedItems": false}', 'Unimplemented keys: ["not", "unevaluatedItems"]'),
        ("json_schema", '{"minimum": 3, "maximum": 2, "type": "number"}', "minimum (3) is greater than maximum (2)"),
        ("json_schema", '{"$ref": "http://example.com/a"}', "'http://example.com/a' is not present"),
        ("json_schema", "false", "is false, and nothing fits it"),
        ("json_schema", " " * (MAX_FORMAT_CHARS + 1), "the limit is 262,144"),
        ("regex", "[a", "unclosed character class"),
        ("regex", "", "is empty"),
        ("regex", "a" * (grammar_module.MAX_REGEX_CHARS + 1), "the limit is 16,384"),
        ("lark", "start: nothing", 'unknown name: "nothing"'),
        ("choice", '["a", 1]', "a list of texts"),
        ("choice", "[]", "a list of texts"),
        ("choice", json.dumps(["x"] * 10_001), "has 10,001 texts; the limit is 10,000"),
        ("haiku", "", "'haiku'; expected one of json, json_schema"),
    ],
)  # fmt: skip
def test_invalid_format_is_refused_by_what_is_wrong(grammars: Grammars, kind, source: str, words: str):
    with pytest.raises(UsageError) as e:
        grammars.grammar(Format(kind, source))
    assert words in e.value.message and len(e.value.message) < 500 and "\n" not in e.value.message


def test_characters_beyond_ascii_count_once(grammars: Grammars, tokenizer: Tokenizer):
    schema = {"type": "integer", "description": "é" * (MAX_FORMAT_CHARS // 2 - 100)}
    check_request(Job(format=Format("json_schema", schema)))
    assert takes(grammars.grammar(Format("json_schema", schema)), tokenizer, "3")


def test_chain_of_rules_that_ends_a_process_ends_another_one(grammars: Grammars):
    chain = "\n".join(f"r{i}:r{i + 1}" for i in range(5500)) + '\nr5500:"a"\nstart:r0'
    with pytest.raises(UsageError, match=trial_compile.DIED):
        grammars.grammar(Format("lark", chain))


def test_long_grammar_that_names_tokens_is_tried_as_any():
    rules = "\n".join(f'r{i}: "{"x" * 100}"' for i in range(50))
    source = json.dumps({"grammars": [{"lark_grammar": f"start: <[151657]> r0 <[3-9]>\n{rules}\n"}]})
    assert len(source) > grammar_module.SHORT and trial_compile.try_compile(source, grammar_module.WIDE) == ""


def test_compilation_that_takes_too_long_is_ended(grammars: Grammars, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial_compile, "COMPILE_S", 0.01)
    long = json.dumps({"enum": [f"value {i}" for i in range(500)]})
    with pytest.raises(UsageError, match=r"it took more than 0\.01 s to compile"):
        grammars.grammar(Format("json_schema", long))


def test_compilation_that_gets_no_processor_for_a_while_is_not_ended(monkeypatch: pytest.MonkeyPatch):
    spawn = trial_compile.spawn

    def spawn_stopped(*given: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = spawn(*given, **options)
        os.kill(child.pid, signal.SIGSTOP)
        threading.Timer(1.2, child.send_signal, [signal.SIGCONT]).start()
        return child

    monkeypatch.setattr(trial_compile, "spawn", spawn_stopped)
    monkeypatch.setattr(trial_compile, "COMPILE_S", 1.0)
    assert (
        trial_compile.try_compile(json.dumps({"grammars": [{"json_schema": {}}]}), grammar_module.WIDE) == ""
    )


# A text of n letters is read in as many ways as there are binary and ternary trees over them.
AMBIGUOUS = 'start: e\ne: e e | "a" | e e e | ""\n'


def test_sum_of_an_answers_parser_calls_has_a_limit(grammars: Grammars, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar_module.time, "thread_time", count(0.0, 0.3).__next__)
    matcher = grammars.grammar(Format("json")).matcher()
    matcher.mask()
    matcher.advance(ord("{"))
    matcher.forced()
    with pytest.raises(
        UsageError, match=r"took 1\.20 s of processor for 1 tokens; the limit is 1 s and 2 ms a"
    ):
        matcher.forced()


def test_answer_whose_tokens_are_cheap_may_be_of_any_length(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grammar_module.time, "thread_time", count(0.0, 0.0009).__next__)
    matcher = grammars.grammar(Format("regex", "a*")).matcher()
    for _ in range(3000):
        matcher.mask()
        matcher.advance(ord("a"))


def test_grammar_with_many_readings_is_ended_while_its_calls_are_short(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grammar_module, "SPARE_S", 1e9)  # by the parser's own limits, whatever the machine
    monkeypatch.setattr(grammar_module, "WIDE", grammar_module.LIMITS)
    matcher = Grammars(grammars._tokenizer).grammar(Format("lark", AMBIGUOUS)).matcher()
    with pytest.raises(UsageError, match="Current row has") as e:
        for _ in range(110):
            patiently(matcher.mask)
            matcher.advance(ord("a"))
    assert "repeat to the left" in e.value.hint


@pytest.mark.heavy
def test_form_of_hundreds_of_fields_that_may_be_left_out_is_taken(grammars: Grammars, tokenizer: Tokenizer):
    """Also one whose fields refer to a definition, and one that is one of four."""
    form = {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(480)}}
    referring = {"$defs": {"s": {"type": "string"}}, "type": "object"}
    referring["properties"] = {f"f{i}": {"$ref": "#/$defs/s"} for i in range(480)}
    quarters = [dict(list(form["properties"].items())[i::4]) for i in range(4)]
    one_of_four = {"anyOf": [{"properties": each, "additionalProperties": False} for each in quarters]}
    filled = json.dumps({f"f{i}": "x" for i in range(0, 480, 40)})
    for schema in (form, referring, one_of_four):
        grammar = grammars.grammar(Format("json_schema", schema))
        assert takes(grammar, tokenizer, filled) and not takes(grammar, tokenizer, '{"f479": 1}')


@pytest.mark.heavy
def test_schema_that_names_itself_many_times_is_taken(grammars: Grammars, tokenizer: Tokenizer):
    itself = {"type": "array", "items": {"$ref": "#/$defs/e"}}
    schema = {"$defs": {"e": {"anyOf": [itself] * 150}}, "$ref": "#/$defs/e"}
    assert takes(grammars.grammar(Format("json_schema", schema)), tokenizer, "[[[[[]]]]]")


FORMS = {"anyOf": [{"properties": {f"f{i}_{j}": {"type": "string"} for i in range(125)}} for j in range(60)]}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "format, text",
    [
        pytest.param(Format("json_schema", FORMS), '{"f1_1": ""}', id="forms"),
        pytest.param(Format("lark", AMBIGUOUS), "a" * 90, id="many readings"),
        pytest.param(Format("regex", "(?:[a-z]{1,40}[0-9]?){1,200}x{1,500}y"), "abcabcabcabcabc", id="pattern"),
    ],
)  # fmt: skip
def test_calls_that_take_long_are_made_in_the_thread_apart(
    grammars: Grammars, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, format: Format, text: str
):
    """A first mask of 60 forms took 260 ms in a step. Whatever is beyond LIMITS is done there, or not at all."""
    limits = grammar_module.LIMITS
    monkeypatch.setattr(grammar_module, "LIMITS", {**limits, "step_lexer_fuel": 500})  # of 256 tokens
    done: list[str] = []
    failure = grammar_module._failure

    def seen(state: Any) -> str:
        done.append(threading.current_thread().name)
        return failure(state)

    matcher = Grammars(tokenizer).grammar(format).matcher()
    monkeypatch.setattr(grammar_module, "_failure", seen)
    with suppress(UsageError):
        for id in tokenizer.encode(text, bos=False):
            patiently(matcher.mask)
            matcher.advance(id)
        patiently(matcher.mask)
    assert any(name.startswith("freehold-grammars") for name in done)
    assert (
        not matcher.forced() and matcher.count_valid([ord("a")]) == 0
    )  # nothing is looked for here any more


def test_a_step_does_not_wait_for_a_mask_that_takes_long(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grammar_module, "MARKS", 0)
    at_work, may_end = threading.Event(), threading.Event()
    grammar_module.apart.submit(lambda: (at_work.set(), may_end.wait(60)))
    matcher = Grammars(tokenizer).grammar(Format("json")).matcher()
    assert at_work.wait(60)
    with pytest.raises(NotReady):
        matcher.mask()
    may_end.set()
    assert patiently(matcher.mask)[ord("{")] and not patiently(matcher.mask)[ord("1")]


def test_an_answer_that_goes_apart_has_the_masks_of_one_that_does_not(
    grammars: Grammars, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    here, ids = grammars.grammar(Format("json")), tokenizer.encode('{"a": [1, {"b": null}]}', bos=False)
    monkeypatch.setattr(grammar_module, "LIMITS", {**grammar_module.LIMITS, "step_max_items": 20})
    there = Grammars(tokenizer).grammar(Format("json"))
    one, other = here.matcher(), there.matcher()
    for id in ids:
        assert np.array_equal(patiently(one.mask), patiently(other.mask))
        one.advance(id)
        other.advance(id)
    assert np.array_equal(patiently(one.mask), patiently(other.mask))
    assert other._apart is not None and one._apart is None


def test_choice_of_thousands_of_texts_is_taken(grammars: Grammars, tokenizer: Tokenizer):
    texts = [f"option {i}" for i in range(10_000)]
    grammar = grammars.grammar(Format("choice", json.dumps(texts)))
    assert takes(grammar, tokenizer, "option 9876") and not takes(grammar, tokenizer, "option 98765")


def test_panic_of_the_parser_is_an_error_of_the_format():
    class PanicException(BaseException):
        pass

    def panic() -> None:
        raise PanicException("index out of bounds")

    with pytest.raises(UsageError, match="format: index out of bounds"):
        grammar_module._guarded(panic)


def test_token_that_may_not_come_is_refused(grammars: Grammars, tokenizer: Tokenizer):
    matcher = grammars.grammar(Format("regex", "a")).matcher()
    with pytest.raises(UsageError, match="format"):
        matcher.advance(tokenizer.encode("b", bos=False)[0])


def test_same_format_is_compiled_once_and_the_oldest_forgotten(tokenizer: Tokenizer):
    grammars = Grammars(tokenizer)
    first = grammars.grammar(Format("regex", "a"))
    assert grammars.grammar(Format("regex", "a")) is first
    for i in range(grammar_module.KEPT):
        grammars.grammar(Format("regex", f"a{i}"))
    assert grammars.grammar(Format("regex", "a")) is not first


def test_answers_of_one_grammar_go_their_own_ways(grammars: Grammars, tokenizer: Tokenizer):
    grammar = grammars.grammar(Format("regex", "ab|cd"))
    one, other = grammar.matcher(), grammar.matcher()
    a, b, c, d = tokenizer.encode("abcd", bos=False)
    one.advance(a)
    other.advance(c)
    assert one.mask()[b] and not one.mask()[d]
    assert other.mask()[d] and not other.mask()[b]


def test_mask_depends_on_the_tokens_alone(grammars: Grammars, tokenizer: Tokenizer):
    """However often masks, forced tokens and drafts were checked on the way, and after a log was pushed."""
    grammar = grammars.grammar(Format("json_schema", json.dumps(PERSON)))
    ids = tokenizer.encode('{"name": "hello", "age": 12', bos=False)
    asked, pushed = grammar.matcher(), grammar.matcher()
    for i, id in enumerate(ids):
        asked.mask(), asked.forced(), asked.count_valid(ids[i : i + 3])
        asked.advance(id)
        pushed.advance(id)
    assert np.array_equal(asked.mask(), pushed.mask()) and asked.forced() == pushed.forced()


def test_forced_tokens_are_those_that_must_come(grammars: Grammars, tokenizer: Tokenizer):
    matcher = grammars.grammar(Format("regex", "hello [ab]")).matcher()
    ids = tokenizer.encode("hello a", bos=False)
    assert matcher.forced() == ids[:2]
    assert matcher.count_valid(ids) == len(ids) and matcher.count_valid([ids[0], ids[0]]) == 1


@pytest.mark.parametrize(
    "format",
    [
        Format("choice", '["abc"]'),
        Format("json_schema", '{"enum": ["abc"]}'),
        Format("lark", 'start: "abc"'),
    ],
)
def test_space_that_a_tokenizer_takes_from_the_beginning_may_be_written(format: Format):
    tokenizer = tokenizer_from_gguf(toys.sentencepiece())
    assert tokenizer.strips_leading_space
    at_start = Grammars(tokenizer).grammar(format, at_start=True)
    later = Grammars(tokenizer).grammar(format)
    text = '"abc"' if format.kind == "json_schema" else "abc"
    spaced, plain = (tokenizer.encode(text, bos=False), tokenizer.encode("é" + text, bos=False)[2:])
    for grammar, ids in ((at_start, spaced), (later, plain)):
        matcher = grammar.matcher()
        for id in ids:
            assert matcher.mask()[id]
            matcher.advance(id)
        assert matcher.mask()[2]
    assert not later.matcher().mask()[spaced[0]]


def test_regex_that_begins_with_a_space_keeps_it_where_one_is_taken_away():
    tokenizer = tokenizer_from_gguf(toys.sentencepiece())
    matcher = Grammars(tokenizer).grammar(Format("regex", " a"), at_start=True).matcher()
    space = tokenizer.token_id("<0x20>")
    assert space is not None
    matcher.advance(space)
    assert not matcher.mask()[tokenizer.token_id("a")]
    matcher.advance(space)
    assert matcher.mask()[tokenizer.token_id("a")]


# --- thinking -----------------------------------------------------------------------------------------


def matcher_of(
    grammars: Grammars, tokenizer: Tokenizer, tags: tuple[str, str], inside: bool = False
) -> ConstraintMatcher:
    grammar = grammars.grammar(Format("regex", "ab"))
    return Constraint(grammar, tokenizer, tags, inside).matcher(tokenizer.eos_ids)


def push(matcher: ConstraintMatcher, tokenizer: Tokenizer, text: str) -> None:
    for id in tokenizer.encode(text, bos=False):
        mask = matcher.mask()
        assert mask is not None and mask[id], text
        matcher.advance(id)


def allowed(matcher: ConstraintMatcher, tokenizer: Tokenizer) -> set[bytes]:
    mask = matcher.mask()
    assert mask is not None
    return {tokenizer.token_bytes(int(id), special=True) for id in np.flatnonzero(mask)}


def test_thinking_is_free_and_the_text_behind_it_is_not(grammars: Grammars, tokenizer: Tokenizer):
    matcher = matcher_of(grammars, tokenizer, ("<tool>", "</t>"))  # one token, and four
    assert allowed(matcher, tokenizer) == {b"a", b"<tool>"}
    push(matcher, tokenizer, "<tool>hello (anything) é\n")
    assert b"<|im_end|>" not in allowed(matcher, tokenizer) and matcher.forced() == []
    push(matcher, tokenizer, "</t>")
    assert b"a" in allowed(matcher, tokenizer) and b"b" not in allowed(matcher, tokenizer)
    push(matcher, tokenizer, "\n")  # belongs to the tag
    assert allowed(matcher, tokenizer) == {b"a"}
    push(matcher, tokenizer, "ab")
    assert allowed(matcher, tokenizer) == {b"<|im_end|>"}


def test_answer_may_begin_without_thinking(grammars: Grammars, tokenizer: Tokenizer):
    matcher = matcher_of(grammars, tokenizer, ("<tool>", "</t>"))
    push(matcher, tokenizer, "ab")
    assert allowed(matcher, tokenizer) == {b"<|im_end|>"}


def test_prompt_may_have_opened_thinking(grammars: Grammars, tokenizer: Tokenizer):
    matcher = matcher_of(grammars, tokenizer, ("<tool>", "</t>"), inside=True)
    push(matcher, tokenizer, "hmm</t>ab")
    assert allowed(matcher, tokenizer) == {b"<|im_end|>"}


def test_token_that_closes_thinking_may_begin_the_text(grammars: Grammars, tokenizer: Tokenizer):
    matcher = matcher_of(grammars, tokenizer, ("<tool>", "he"), inside=True)
    matcher._grammar = grammars.grammar(Format("regex", "llo!")).matcher()
    push(matcher, tokenizer, "hello")
    assert allowed(matcher, tokenizer) == {b"!"}


def test_format_without_a_token_that_ends_it_is_refused(grammars: Grammars, tokenizer: Tokenizer):
    constraint = Constraint(grammars.grammar(Format("json")), tokenizer)
    with pytest.raises(UsageError, match="ends the answer"):
        constraint.matcher(frozenset())


def test_grammars_compiled_at_once_leave_the_threads_stack_as_it_was():
    before = threading.stack_size()
    threads = [threading.Thread(target=lambda: [_deep(int) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert threading.stack_size() == before


words = st.sampled_from(
    [
        *"()[]{}|+*?.:/\\\"'",
        *(
            "start: ",
            "\n",
            "A: /x/",
            "%json",
            "%ignore",
            "@",
            "<[1]>",
            "a{1,9}",
            "(?i)",
            "\\u0000",
            "é",
            "1e999",
        ),
        *('{"type": "string"}', '{"anyOf": []}', '{"pattern": "(a*)*"}', '{"$ref": "#"}', '"enum"', '["a"]'),
    ]
)
sources = st.lists(words | st.text(max_size=4), max_size=14).map("".join)


@given(st.sampled_from(["json_schema", "regex", "lark", "choice"]), sources, st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_source_is_a_grammar_or_a_named_error(
    grammars: Grammars, kind: FormatKind, source: str, two: bool
):
    try:
        formats = [Format(kind, source), *([Format("regex", "a+")] if two else [])]
        matcher = grammars.grammar(*formats).matcher()
        for _ in range(4):
            allowed = np.flatnonzero(matcher.mask())
            matcher.forced(), matcher.count_valid(list(allowed[:3]))
            if matcher.is_complete or not len(allowed):
                break
            matcher.advance(int(allowed[-1]))
    except UsageError as e:
        assert e.message.startswith("format") and len(e.message) < 1000
