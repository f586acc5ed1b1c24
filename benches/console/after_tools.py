"""What a model says once a tool has answered: words, or another call. Ten questions about six small files, greedy.

`python benches/console/after_tools.py [--model qwen2.5-coder:1.5b] [--rows plain,twice]`: each chat has the question,
the right call and its result already; only the next answer is computed, of 60 tokens. A row changes one thing: the
question's wording, the result, how often it was called, or whether tools are offered. Rows `files-...`
offer the 14 tools of a published file server, others two. Prints right and wrong words and calls of the same and of
other tools for each row, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import freehold  # noqa: E402
from freehold.base.types import Message, Tool, ToolCall  # noqa: E402

RECORDED = ROOT / "tests" / "tools" / "recorded" / "filesystem.json"
FILES = {
    "notes.txt": "Meeting with Ada: Thursday at 14:20 in room 4.\nBuy milk.\n",
    "shopping.txt": "eggs 12\nflour 2 kg\nbutter 250 g\n",
    "server.ini": "[server]\nhost = 127.0.0.1\nport = 8123\ntimeout = 45\n",
    "poem.txt": "The grey heron stands\nwaiting in the morning mist\nfor a silver fish.\n",
    "team.csv": "name,role,city\nMira,engineer,Oslo\nJonas,designer,Porto\nLea,manager,Graz\n",
    "todo.md": "- [x] pay rent\n- [ ] call the dentist\n- [ ] water the plants\n",
}
QUESTIONS = (
    ("notes.txt", "When is the meeting with Ada?", "14:20|2:20|thursday"),
    ("notes.txt", "In which room is the meeting?", r"\b4\b|four"),
    ("notes.txt", "What should I buy?", "milk"),
    ("shopping.txt", "How much flour is needed?", "2 ?kg|2 kilo"),
    ("shopping.txt", "How many eggs are needed?", r"\b12\b|twelve"),
    ("server.ini", "Which port does the server use?", "8123"),
    ("server.ini", "What is the timeout?", r"\b45\b"),
    ("poem.txt", "Which bird is in the poem?", "heron"),
    ("team.csv", "In which city does Jonas work?", "porto"),
    ("todo.md", "What is still to be done?", "dentist|plants"),
)
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TWO = (
    Tool("list_files", "List the names of the files.", {"type": "object", "properties": {}}),
    Tool("read_file", "Read the file of this name and return its text.", NAME),
)
WORD = "\n[This result is the same as before. Answer the user's question with it, in words.]"
CALLED = re.compile(r'"name"\s*:\s*"(\w+)"')


@dataclass(frozen=True)
class Row:
    """What one row changes."""

    wording: str = "{q} Read the file {f}."
    result: Callable[[str], str] = str
    times: int = 1  # the call stands in the chat so often
    word: str = ""  # behind the last result
    last: str = ""  # the user's, after the result
    offered: bool = True
    sampled: bool = False


ROWS = {
    "plain": Row(),
    "file-first": Row("Read the file {f} and answer: {q}"),
    "once-in-words": Row("{q}\n\nThe file {f} says it. Use the tool once, then answer in one sentence."),
    "as-json": Row(result=lambda text: json.dumps({"content": text})),
    "sampled": Row(sampled=True),
    "twice": Row(times=2),
    "twice-word": Row(times=2, word=WORD),
    "word": Row(word="\nThe tool is done. Answer the user's question in words now."),
    "asked-again": Row(last="Now answer in words, without a tool: {q}"),
    "no-tools": Row(offered=False),
    "twice-no-tools": Row(times=2, offered=False),
}


def chat(row: Row, file: str, question: str, call: tuple[str, dict[str, str]]) -> list[Message]:
    """Return the chat up to the answer that is computed."""
    name, arguments = call
    turns = [Message("user", row.wording.format(q=question, f=file))]
    for i in range(row.times):
        word = row.word if i == row.times - 1 else ""
        made = ToolCall(f"c{i}", name, json.dumps(arguments))
        turns += [
            Message("assistant", "", tool_calls=(made,)),
            Message("tool", row.result(FILES[file]) + word, tool_call_id=made.id, name=name),
        ]
    return [*turns, Message("user", row.last.format(q=question))] if row.last else turns


def kind(text: str, calls: tuple[ToolCall, ...], right: str, call: tuple[str, dict[str, str]]) -> str:
    """Return what an answer is: a call counts as one when it is written as text too."""
    found = CALLED.search(text)
    name = calls[0].name if calls else found.group(1) if found else ""
    if name:
        said = calls[0].arguments if calls else text
        same = name == call[0] and all(json.dumps(value) in said for value in call[1].values())
        return "same call" if same else "other call"
    if not text.strip():
        return "empty"
    return "right" if re.search(right, text, re.IGNORECASE) else "wrong"


def main() -> None:
    """Print a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder:1.5b")
    parser.add_argument("--rows", default=",".join([*ROWS, "files-plain", "files-twice", "files-twice-word"]))
    given = parser.parse_args()
    listed = json.loads(RECORDED.read_text())["tools"]
    many = tuple(Tool(each["name"], each["description"], each["inputSchema"]) for each in listed)
    counts: dict[str, Counter[str]] = {}
    with freehold.load(given.model, context=4096) as llm:
        for name in given.rows.split(","):
            row, files = ROWS[name.removeprefix("files-")], name.startswith("files-")
            counts[name] = Counter()
            for file, question, right in QUESTIONS:
                call = ("read_text_file", {"path": file}) if files else ("read_file", {"name": file})
                tools = (many if files else TWO) if row.offered else ()
                sampling: Any = {"seed": 1} if row.sampled else {"temperature": 0.0}
                answer = llm.chat(chat(row, file, question, call), tools=tools, max_tokens=60, **sampling)
                counts[name][kind(answer.text, answer.tool_calls, right, call)] += 1
            print(f"{name:16} {dict(counts[name].most_common())}", flush=True)
    print(json.dumps({"model": given.model, "questions": len(QUESTIONS), "rows": counts}))


if __name__ == "__main__":
    main()
