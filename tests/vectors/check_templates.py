"""Compares renderings of real chat templates with those of `transformers`, over many chats each.

    python -m tests.vectors.check_templates ask FOLDER asked.json        (here)
    python tests/vectors/check_templates.py answer asked.json answers.json  (in an environment with transformers)
    python -m tests.vectors.check_templates compare answers.json            (here)

FOLDER holds *.jinja; none is kept here, llama.cpp's source has some 70 (models/templates, in the sdist of
llama-cpp-python). `ask` writes every chat as this package spells it for that template, so what is compared is the
whole way: messages to dictionaries, dictionaries to text. A refusal agrees with a refusal.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

NOW = datetime(2026, 11, 24, 9, 5, 7)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
VARIABLES: tuple[dict[str, Any], ...] = (
    {},
    *({"enable_thinking": on} for on in (True, False)),
    *({"thinking": on} for on in (True, False)),
    *({"reasoning_effort": level} for level in ("none", "low", "medium", "high")),
    {"thinking_budget": 0},
)


def chats() -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yield (name, messages, tools)."""
    from freehold.base.types import Message, Tool, ToolCall

    weather = Tool(
        "get_weather",
        "Weather of a <city> & 'more' \"°C\" 日本",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name", "enum": ["Köln", "Rome"]},
                "days": {"type": ["integer", "null"], "default": 1},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    )
    clock = Tool("clock", "The time", {"type": "object", "properties": {}})
    tools = [weather, clock]
    system = Message("system", "Be brief.\n")
    user, again = Message("user", " Hi, 5 < 6 & é 🙂\n"), Message("user", "And now?")
    answer = Message("assistant", "Hello!")
    thought = Message("assistant", "42", thinking="Let me think.\nYes.")
    one = ToolCall(
        "call00001", "get_weather", '{"city": "Köln", "days": 2, "where": {"lat": 1.5}, "tags": ["a"]}'
    )
    two = ToolCall("call00002", "clock", "{}")
    calling = Message("assistant", "", tool_calls=(one,))
    both = Message("assistant", "I look.", tool_calls=(one, two), thinking="Two calls.")
    result = Message("tool", '{"t": 3}', tool_call_id="call00001", name="get_weather")
    late = Message("tool", "noon", tool_call_id="call00002", name="clock")
    yield "user", [user], []
    yield "turns", [user, answer, again], []
    yield "thought", [user, thought, again], []
    yield "thought last", [user, thought], []
    yield "tools", [user], tools
    yield "call", [user, calling, result], tools
    yield "call untooled", [user, calling, result], []
    yield "parallel", [user, both, result, late], tools
    yield "parallel answered", [user, both, result, late, thought, again], tools
    yield "two rounds", [user, both, result, late, replace(calling, thinking="More."), result, thought], tools
    yield "system", [system, user], []
    yield "system turns", [system, user, thought, again], []
    yield "system tools", [system, user, calling, result], tools
    yield "inline", [user, Message("assistant", "<think>\nhm\n</think>\n\nYes."), again], []
    yield "empty", [], []


def ask(folder: Path) -> list[dict[str, Any]]:
    """Return, for each template, the chats as they go into it."""
    from freehold.run.tokenizer import ChatTemplate
    from freehold.run.tokenizer.history import tool_dict

    asked = []
    for path in sorted(folder.glob("*.jinja")):
        template = ChatTemplate(path.read_text(), **TOKENS)
        rows = []
        for (name, messages, tools), variables in itertools.product(chats(), VARIABLES):
            spelled = template._spelling.chat(messages)
            rows.append(
                {
                    "name": name,
                    "messages": spelled,
                    "tools": [tool_dict(tool) for tool in tools] or None,
                    "add_generation_prompt": messages[-1:] == [] or messages[-1].role != "assistant",
                    "variables": variables,
                }
            )
        asked.append(
            {"name": path.name, "source": template.source, "form": asdict(template._spelling), "rows": rows}
        )
    return asked


def answer(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what transformers renders; None where the template refuses or fails."""
    from transformers.utils import chat_template_utils

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return NOW

    chat_template_utils.datetime = Frozen
    for entry in asked:
        for row in entry["rows"]:
            try:
                rendered, _ = chat_template_utils.render_jinja_template(
                    conversations=[row["messages"]],
                    tools=row["tools"],
                    chat_template=entry["source"],
                    add_generation_prompt=row["add_generation_prompt"],
                    **TOKENS,
                    **row["variables"],
                )
                row["expected"] = rendered[0]
            except Exception as error:
                row["expected"], row["error"] = None, f"{type(error).__name__}: {error}"[:200]
    return asked


def compare(told: list[dict[str, Any]]) -> int:
    """Print how many renderings of each template agree; return 1 if any does not."""
    from freehold.base.errors import BadTemplate
    from freehold.run.tokenizer import ChatTemplate

    agree = total = refused = 0
    for entry in told:
        template = ChatTemplate(entry["source"], **TOKENS, clock=lambda: NOW)
        wrong = []
        for row in entry["rows"]:
            options = dict(tools=row["tools"], add_generation_prompt=row["add_generation_prompt"])
            try:
                got = template.render(row["messages"], **options, **row["variables"]).text
            except BadTemplate as error:
                got = None
                row["ours"] = str(error)
            refused += row["expected"] is None
            if got != row["expected"]:
                wrong.append((row, got))
        agree, total = agree + len(entry["rows"]) - len(wrong), total + len(entry["rows"])
        if wrong:
            print(f"{entry['name']}: {len(entry['rows']) - len(wrong)} of {len(entry['rows'])}")
        for row, got in wrong[:2]:
            print(f"  {row['name']} {row['variables']}: {row.get('error')} / {row.get('ours')}")
            print(f"    {row['expected']!r:.300}\n    {got!r:.300}")
    print(f"{agree} of {total} renderings of {len(told)} templates agree, {refused} of them refusals")
    return 0 if agree == total else 1


def main() -> int:
    """Do one of the three steps."""
    step, source, *target = sys.argv[1:]
    if step == "ask":
        Path(target[0]).write_text(json.dumps(ask(Path(source))))
    elif step == "answer":
        Path(target[0]).write_text(json.dumps(answer(json.loads(Path(source).read_text()))))
    else:
        return compare(json.loads(Path(source).read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
