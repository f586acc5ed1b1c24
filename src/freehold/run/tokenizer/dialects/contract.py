"""The contract of a dialect: its marks, the parser of its calls, and the grammar that writes them.

A dialect is recognised by a template's source, never by a model's name (detect.py). Its three sides belong
together: a template renders calls into history, a grammar holds the model to them, `read` takes them out again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from freehold.base.types import Tool
from freehold.run.tokenizer.dialects.grammar import CallForm
from freehold.run.tokenizer.dialects.source import Reading, TextSource, dumped, loaded

MAX_NAME = 256  # characters; a longer text is not a tool's name


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it was read: the tool's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


Calls = list[Call] | None  # None: the text only looked like calls
Offer = Mapping[str, Tool]  # the tools of a request, by name


@dataclass(frozen=True, slots=True)
class Opening:
    """A text that may begin calls. `at_line`: only as the first thing of a line, for marks that prose has too."""

    mark: str
    at_line: bool = False


Read = Callable[[TextSource, str, Offer], Reading[Calls]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family calls tools. `read` begins after an opening and ends after the calls."""

    name: str
    openings: tuple[Opening, ...]
    read: Read
    form: CallForm  # how a grammar writes calls
    marks: tuple[str, ...] = ()  # further texts that may be control tokens and must reach `read`
    short_ids: bool = False  # ids of nine letters and digits, which the family's templates insist on
    # For templates that show no tools: what the system text says of them, and whether history is text too.
    preamble: Callable[[Sequence[Tool]], str] | None = None
    as_text: bool = False
    bare: CallForm | None = None  # how small models of the family write one without its marks
    in_system: bool = False  # templates read tools from the system message, as the text of a list
    channels: bool = False  # the whole answer is in channels (harmony.py)


def call_of(value: Any, named: str = "name") -> Call | None:
    """Return the call that a JSON object spells, or None. `named`: the key of the tool's name.

    A model may write its arguments as the text of an object, as OpenAI's wire does.
    """
    if not isinstance(value, dict):
        return None
    name = value.get(named)
    raw = next((value[key] for key in ("arguments", "parameters") if key in value), {})
    arguments = loaded(raw) if isinstance(raw, str) else raw
    if not is_name(name) or not isinstance(arguments, dict):
        return None
    return Call(name, arguments_text(arguments, raw if isinstance(raw, str) else None))


def calls_of(values: Any, named: str = "name") -> Calls:
    """Return the calls that a JSON list spells; None where one of them is none."""
    calls = [call_of(value, named) for value in values] if isinstance(values, list) else []
    parsed = [call for call in calls if call is not None]
    return parsed if parsed and len(parsed) == len(calls) else None


def call_here(source: TextSource, name: str) -> Reading[Call | None]:
    """Read the JSON object here, the arguments of a call of `name`; None if it is none."""
    raw = yield from source.json("{")
    arguments = loaded(raw)
    return None if arguments is None else Call(name, arguments_text(arguments, raw))


def listed(tools: Sequence[Tool]) -> str:
    """Return tools as lines of JSON, for a system text."""
    shown = ({"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in tools)
    return "\n".join(map(dumped, shown))


def arguments_text(arguments: dict[str, Any], raw: str | None = None) -> str:
    """Return the JSON text of `arguments`: `raw` as the model wrote it where that is strict JSON."""
    if raw is not None:
        try:
            json.loads(raw, parse_constant=_refuse)
            return raw
        except (ValueError, RecursionError):
            pass
    return dumped(_finite(arguments))


def is_name(name: Any) -> TypeGuard[str]:
    """Tell whether `name` can be a tool's."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and not set(name) & set(' \t\r\n"<>{}[]')


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot write: one beyond a double by the largest, no number by its text."""
    if isinstance(value, float) and value != value:
        return str(value)
    if isinstance(value, float):
        return max(-sys.float_info.max, min(sys.float_info.max, value))
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


# --- the parser that takes the calls out of an answer's text as it streams --------------------------
# A call comes out whole, once it is certain to be one: what only looked like a call becomes text again, so
# nothing is lost, and nothing is taken back.


class ToolParser:
    """Splits an answer into text and calls, in order. Blank space between the two belongs to neither."""

    def __init__(self, dialect: Dialect, tools: Sequence[Tool]) -> None:
        self._dialect = dialect
        self._offer = {tool.name: tool for tool in tools}
        self._source = TextSource()
        self._openings = sorted((o.mark for o in dialect.openings), key=len, reverse=True)
        self._at_line = {o.mark for o in dialect.openings if o.at_line}
        self._mark = re.compile("|".join(map(re.escape, self._openings)))
        self._reading: Reading[Calls] | None = None
        self._opening = ""  # that is being read; the source's text begins with it
        self._blank_line = True  # nothing of the present line was given out yet
        self._space, self._called = "", False  # blanks that wait; whether a call was the last thing given out

    def push(self, text: str) -> list[str | Call]:
        """Add text; return what became certain."""
        self._source.text += text
        return self._advance()

    def finish(self) -> list[str | Call]:
        """Return what was buffered, as text or calls."""
        self._source.ended = True
        out = self._advance()
        space, self._space = self._space, ""
        return [*out, space] if space else out

    def _advance(self) -> list[str | Call]:
        out: list[str | Call] = []
        while self._reading is not None or self._open(out):
            assert self._reading is not None
            try:
                next(self._reading)
                break  # it needs more text
            except StopIteration as end:
                self._close(end.value, out)
        return out

    def _open(self, out: list[str | Call]) -> bool:
        """Give out text up to the next opening; tell whether there is one."""
        source = self._source
        while match := self._mark.search(source.text):
            mark = match.group()
            self._say(source.text[: match.start()], out)
            source.text, source.at = source.text[match.start() :], len(mark)
            if mark not in self._at_line or self._blank_line:
                self._opening, self._reading = mark, self._dialect.read(source, mark, self._offer)
                return True
            self._close(None, out, mark)
        end = len(source.text) - self._unfinished()
        self._say(source.text[:end], out)
        source.text, source.at = source.text[end:], 0
        return False

    def _close(self, calls: Calls, out: list[str | Call], mark: str = "") -> None:
        """Give out calls that were read; without any, the opening is text and the search continues after it."""
        source, self._reading = self._source, None
        if not calls:
            mark = mark or self._opening
            source.at = len(mark)
            self._say(mark, out)
        else:
            self._space, self._called, self._blank_line = "", True, True
            out.extend(calls)
        source.text, source.at = source.text[source.at :], 0

    def _unfinished(self) -> int:
        """Count the characters at the end that may become an opening."""
        text = self._source.text
        for size in range(min(len(self._openings[0]) - 1, len(text)), 0, -1):
            if not self._source.ended and any(mark.startswith(text[-size:]) for mark in self._openings):
                return size
        return 0

    def _say(self, text: str, out: list[str | Call]) -> None:
        """Give out text; blanks at its end wait, because a call would swallow them."""
        line = text.rpartition("\n")
        self._blank_line = (self._blank_line or bool(line[1])) and not line[2].strip()
        text = self._space + text
        text = text.lstrip() if self._called else text
        visible = text.rstrip()
        self._space = text[len(visible) :]
        if visible:
            self._called = False
            out.append(visible)
