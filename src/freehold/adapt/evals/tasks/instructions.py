"""Instruction following, as programs verify it: requests of our own with one to three rules each.

Strict counts the reply as it is, loose also one that would obey without its first or last line or its asterisks; by
prompt (all rules of a request) and by instruction (each rule). The name is IFEval's, the prompts are not: scores
cannot be set beside IFEval's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from freehold.adapt.evals.evaluate import EvalItem, EvalQuestion, EvalTask, ItemMark, ModelReply
from freehold.adapt.evals.samples import json_text
from freehold.base.types import Message

METRICS = (
    *("prompt_level_strict_acc", "inst_level_strict_acc"),
    *("prompt_level_loose_acc", "inst_level_loose_acc"),
)


def instructions() -> EvalTask:
    """Return the task, from data/instructions.jsonl."""
    text = (
        resources.files("freehold.adapt.evals")
        .joinpath("data", "instructions.jsonl")
        .read_text(encoding="utf-8")
    )
    items = tuple(_item(json.loads(line)) for line in text.splitlines() if line.strip())
    return EvalTask("ifeval", items, METRICS, original=len(items), config={"prompts": "freehold's own"})


def _item(doc: Mapping[str, Any]) -> EvalItem:
    rules = [(name, {**options, "request": doc["ask"]}) for name, options in doc["rules"]]
    prompt = " ".join([doc["ask"], *(instruction_of(name, options) for name, options in rules)])

    def mark(reply: ModelReply) -> ItemMark:
        strict = tuple(float(obeys(reply.text, *rule)) for rule in rules)
        loose = tuple(float(obeys_loosely(reply.text, *rule)) for rule in rules)
        broken = [name for (name, _), held in zip(rules, strict, strict=True) if not held]
        numbers = (float(all(strict)), strict, float(all(loose)), loose)
        return ItemMark(
            dict(zip(METRICS, numbers, strict=True)), f"breaks {', '.join(broken)}" if broken else ""
        )

    question = EvalQuestion((Message("user", prompt),), max_tokens=512)
    rules_json = json.dumps(doc["rules"], sort_keys=True)
    return EvalItem(doc, question, rules_json, mark, f"ifeval {rules_json}")


# --- twenty-five rules that a text obeys or does not, each with the sentence that asks for it -------
# Pure functions of a text, in time linear in it: no pattern backtracks over more than a word. No model
# judges. An empty text obeys none. The idea is IFEval's (Zhou et al. 2023): requests whose fulfilment a
# program can verify; rules, wording and prompts are our own.

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """`asks`: the sentence, with the options' names in braces. `holds`: whether a text that is not empty obeys."""

    asks: str
    holds: Callable[[str, Options], bool]


def instruction_of(name: str, options: Options) -> str:
    """Return the sentence that asks for a rule."""
    shown = {k: ", ".join(v) if isinstance(v, list) else v for k, v in options.items()}
    return RULES[name].asks.format(**shown)


def obeys(text: str, name: str, options: Options) -> bool:
    """Tell whether a text obeys a rule."""
    return bool(text.strip()) and RULES[name].holds(text.strip(), options)


def obeys_loosely(text: str, name: str, options: Options) -> bool:
    """Tell whether the text obeys, or would without its first line, its last line, or its asterisks."""
    lines = text.strip().splitlines()
    cut = [text, *("\n".join(part) for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return any(obeys(t, name, options) for each in cut for t in (each, each.replace("*", "")))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)


def _sentences(text: str) -> int:
    return len([s for s in re.split(r"(?<![.!?])[.!?]++(?:\s+|$)", text) if _words(s)])


def _paragraphs(text: str) -> int:
    return len([p for p in re.split(r"\n\s*\n", text) if p.strip()])


def _lines(text: str, pattern: str) -> int:
    return len(re.findall(pattern, text, re.MULTILINE))


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _is_json(text: str) -> bool:
    try:
        json.loads(json_text(text))
    except (ValueError, RecursionError):
        return False
    return True


def _two(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _counts_to(n: int, numbers: list[str]) -> bool:
    return all(len(each) < 10 for each in numbers) and [int(each) for each in numbers] == [*range(1, n + 1)]


def _without_end(text: str) -> str:
    return text.rstrip(" .!*\"'").casefold()


RULES: dict[str, Rule] = {
    "words_at_most": Rule("Use at most {n} words.", lambda t, o: len(_words(t)) <= o["n"]),
    "words_at_least": Rule("Use at least {n} words.", lambda t, o: len(_words(t)) >= o["n"]),
    "sentences_at_most": Rule("Use at most {n} sentences.", lambda t, o: _sentences(t) <= o["n"]),
    "paragraphs": Rule(
        "Write exactly {n} paragraphs with a blank line between them.", lambda t, o: _paragraphs(t) == o["n"]
    ),
    "bullets": Rule(
        'Include exactly {n} bullet points that begin with "- ".',
        lambda t, o: _lines(t, r"^[^\S\n]*[-*] +\S") == o["n"],
    ),
    "numbered": Rule(
        'Include a list of exactly {n} items numbered "1.", "2." and so on.',
        lambda t, o: _counts_to(o["n"], re.findall(r"^[^\S\n]*(\d+)\. +\S", t, re.M)),
    ),
    "lowercase": Rule("Write in lower case only.", lambda t, o: t == t.lower()),
    "uppercase": Rule("WRITE IN CAPITAL LETTERS ONLY.", lambda t, o: t == t.upper()),
    "no_commas": Rule("Do not use any commas.", lambda t, o: not re.search(r"[,，、]", t)),
    "keyword": Rule('Use the word "{word}" at least {n} times.', lambda t, o: _count(t, o["word"]) >= o["n"]),
    "without": Rule('Do not use the word "{word}".', lambda t, o: not _count(t, o["word"])),
    "starts_with": Rule('Begin with exactly: "{text}"', lambda t, o: t.lstrip("\"'*").startswith(o["text"])),
    "ends_with": Rule(
        'End with exactly "{text}" and nothing after it.',
        lambda t, o: _without_end(t).endswith(_without_end(o["text"])),
    ),
    "title": Rule(
        "Give it a title in double angle brackets such as <<a title>>.",
        lambda t, o: bool(re.search(r"<<[^<>\n\w]*+\w[^<>\n]*+>>", t)),
    ),
    "quoted": Rule(
        "Put the whole reply in double quotation marks.",
        lambda t, o: len(t) > 2 and t[0] in '"“' and t[-1] in '"”',
    ),
    "json": Rule("Reply with valid JSON and nothing else.", lambda t, o: _is_json(t)),
    "highlights": Rule(
        "Highlight at least {n} parts with asterisks such as *this part*.",
        lambda t, o: len(re.findall(r"\*{1,2}[^*\n\w]*+\w[^*\n]*+\*{1,2}", t)) >= o["n"],
    ),
    "placeholders": Rule(
        "Include at least {n} placeholders in square brackets such as [name].",
        lambda t, o: len(re.findall(r"\[[^\[\]\n\w]*+\w[^\[\]\n]*+\]", t)) >= o["n"],
    ),
    "postscript": Rule(
        'Add a postscript at the end that begins with "P.S."',
        lambda t, o: bool(re.search(r"^[^\w\n]*P\. ?S\.\s*\S", t, re.M)),
    ),
    "letter": Rule(
        'Use the letter "{letter}" at least {n} times.', lambda t, o: t.lower().count(o["letter"]) >= o["n"]
    ),
    "capitals": Rule(
        "Write at least {n} words in capital letters.",
        lambda t, o: sum(len(w) > 1 and w.isalpha() and w.isupper() for w in _words(t)) >= o["n"],
    ),
    "sections": Rule(
        'Divide it into exactly {n} sections headed "Section 1", "Section 2" and so on.',
        lambda t, o: _counts_to(o["n"], re.findall(r"^[^\w\n]*Section (\d+)\b", t, re.M)),
    ),
    "two_answers": Rule(
        "Give two different answers with six asterisks (******) between them.", lambda t, o: _two(t)
    ),
    "repeats": Rule(
        "First repeat the request above word for word; then answer.",
        lambda t, o: t.lstrip("\"'*").casefold().startswith(o["request"].casefold()) and t != o["request"],
    ),
    "one_of": Rule(
        "Answer with exactly one of these and nothing else: {options}.",
        lambda t, o: _without_end(t) in [each.casefold() for each in o["options"]],
    ),
}
