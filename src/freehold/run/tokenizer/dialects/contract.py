"""The contract of a dialect: its marks, the parser of its calls, and the grammar that writes them.

A dialect is recognised by a template's source, never by a model's name (`dialect_of`). Its three sides belong
together: a template renders calls into history, a grammar makes the model write them, `read` takes them out again.

A parser reads text that arrives in pieces as if it were whole. Readers are generators: each `yield` says "more text,
please", so a reader is written straight down and the place where it waits is its state. What a reader decides depends
on the characters and on the end, never on where the pieces were cut; that is why a streamed answer parses as a whole
one does. Splitters cut such text at stop strings, and between reasoning and the answer proper. Knows JSON's grammar;
knows no token, no model and no request.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from freehold.base.errors import UsageError
from freehold.base.types import Tool
from freehold.run.tokenizer.dialects.grammar import CallForm

# --- splitters of text in pieces -------------------------------------------------------------------


def held_suffix(text: str, needles: Sequence[str]) -> int:
    """Return the length of the longest suffix of `text` that begins a needle (never a whole one)."""
    longest = max((len(n) for n in needles), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(n.startswith(text[-size:]) for n in needles if len(n) > size):
            return size
    return 0


class StopStrings:
    """Lets text through up to the first stop string; `hit`: whether one came; `stop`: which.

    Text that could be the beginning of a stop string is buffered, so no part of one is ever shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not isinstance(s, str) or not s for s in stops):
            raise UsageError("a stop string is empty or no text", "leave it out")
        self._stops, self._held = tuple(stops), ""
        self.hit, self.stop = False, ""

    def push(self, text: str) -> str:
        """Add text; return what can no longer be part of a stop string."""
        if self.hit:
            return ""
        text = self._held + text
        hits = [(at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if hits:
            first, self.stop = min(hits)
            self.hit, self._held = True, ""
            return text[:first]
        cut = len(text) - held_suffix(text, self._stops)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Return what was buffered: the answer ended before it became a stop string."""
        held, self._held = self._held, ""
        return held


class ThinkingSplitter:
    """Splits an answer into reasoning and text at the family's tags, which never show.

    Reasoning opens at the very beginning of an answer only (or the prompt opened it: `inside`), so that an
    answer about the tags keeps them. Blank space around a tag belongs to it. `tags` None: all is text.
    """

    def __init__(self, tags: tuple[str, str] | None, *, inside: bool = False) -> None:
        self._open, self._close = tags or ("", "")
        self._step = "text" if tags is None else "opened" if inside else "start"
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """Add text; return the (reasoning, text) that became certain."""
        if self._step == "text":
            return "", text
        self._held += text
        thinking = ""
        if self._step == "start":
            self._start()
        if self._step == "opened" and self._held.lstrip():
            self._held, self._step = self._held.lstrip(), "thinking"
        if self._step == "thinking":
            thinking = self._reason()
        return thinking, self._release()

    def finish(self) -> tuple[str, str]:
        """Return the (reasoning, text) that was buffered."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._step in ("opened", "thinking") else ("", held)

    def _start(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._open):
            self._held, self._step = begun[len(self._open) :], "opened"
        elif not self._open.startswith(begun):
            self._step = "text"

    def _reason(self) -> str:
        thinking, tag, rest = self._held.partition(self._close)
        if tag:
            self._held, self._step = rest, "closed"
            return thinking.rstrip()
        cut = len(thinking) - held_suffix(thinking, [self._close])
        cut = len(thinking[:cut].rstrip())
        self._held = thinking[cut:]
        return thinking[:cut]

    def _release(self) -> str:
        if self._step == "closed" and self._held.lstrip():
            self._held, self._step = self._held.lstrip(), "text"
        if self._step != "text":
            return ""
        text, self._held = self._held, ""
        return text


# --- text in pieces --------------------------------------------------------------------------------

T = TypeVar("T")
Reading = Generator[None, None, T]

MAX_DEPTH = 64  # of nested values: Python's own JSON reader recurses
_STRING_STOP = re.compile(r'["\\]')
_SCALAR = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_WORD = re.compile(r"[-+.\w]*")
_SPACE = re.compile(r"\s*")


class TextSource:
    """A growing text and a place in it; `ended` once nothing more will come."""

    def __init__(self) -> None:
        self.text, self.at, self.ended = "", 0, False

    def rest(self) -> str:
        """Return what was not read yet."""
        return self.text[self.at :]

    def char(self) -> Reading[str]:
        """Return the next character without reading it; "" at the end."""
        while self.at >= len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def space(self) -> Reading[None]:
        """Read over blanks."""
        yield from self._matched(_SPACE)

    def word(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Read the longest run that `pattern` (of single characters, repeated) matches."""
        return (yield from self._matched(pattern))

    def _matched(self, pattern: re.Pattern[str]) -> Reading[str]:
        start = at = self.at
        while True:
            match = pattern.match(self.text, at)
            at = match.end() if match else at
            if at < len(self.text) or self.ended:
                break
            yield
        self.at = at
        return self.text[start:at]

    def literal(self, *marks: str) -> Reading[str]:
        """Read the first of `marks` that the text has here and return it; "" if it has none."""
        while True:
            here = self.text[self.at : self.at + max(map(len, marks))]
            for mark in marks:
                if here.startswith(mark):
                    self.at += len(mark)
                    return mark
            if self.ended or not any(mark.startswith(here) for mark in marks):
                return ""
            yield

    def optional(self, mark: str) -> Reading[None]:
        """Read blanks and `mark` if it is there: what is whole without its closing mark is whole."""
        end = self.at
        yield from self.space()
        if not (yield from self.literal(mark)):
            self.at = end

    def until(self, *marks: str) -> Reading[tuple[str, str]]:
        """Read up to the nearest of `marks` and over it; return what came before, and the mark ("": the end)."""
        start = searched = self.at
        longest = max(map(len, marks))
        while True:
            places = [(at, mark) for mark in marks if (at := self.text.find(mark, searched)) >= 0]
            if places:
                at, mark = min(places)
                self.at = at + len(mark)
                return self.text[start:at], mark
            if self.ended:
                self.at = len(self.text)
                return self.text[start:], ""
            searched = max(start, len(self.text) - longest + 1)
            yield

    def json(self, first: str = "{[") -> Reading[str | None]:
        """Read one JSON value that begins with one of `first`; None as soon as it is none.

        Line ends inside strings are let through, as small models write them; `loaded` makes them right.
        """
        start = self.at
        if (yield from self.char()) not in first:
            return None
        closers: list[str] = []
        value = True  # what is due: a value, or else what follows one
        while True:
            if value:
                opened = yield from self._value(closers)
                if opened is None or len(closers) > MAX_DEPTH:
                    return None
                value = opened
            else:
                more = yield from self._after(closers)
                if more is None:
                    return None
                value = more
            if not closers and not value:
                return self.text[start : self.at]

    def _value(self, closers: list[str]) -> Reading[bool | None]:
        """Read a scalar or what opens a container; return whether another value is due, None for neither."""
        yield from self.space()
        char = yield from self.char()
        if char == "[":
            self.at += 1
            closers.append("]")
            yield from self.space()
            return (yield from self.char()) != "]"
        if char == "{":
            self.at += 1
            closers.append("}")
            yield from self.space()
            if (yield from self.char()) == "}":
                return False
            return True if (yield from self._key()) else None
        if char == '"':
            return False if (yield from self._string()) else None
        word = yield from self._matched(_WORD)
        return False if _SCALAR.fullmatch(word) else None

    def _after(self, closers: list[str]) -> Reading[bool | None]:
        """Read what follows a value in its container; return whether another value is due, None for neither."""
        yield from self.space()
        char = yield from self.char()
        if char == closers[-1]:
            self.at += 1
            closers.pop()
            return False
        if char != ",":
            return None
        self.at += 1
        if closers[-1] == "}":
            yield from self.space()
            return True if (yield from self._key()) else None
        return True

    def _key(self) -> Reading[bool]:
        if not (yield from self._string()):
            return False
        yield from self.space()
        return bool((yield from self.literal(":")))

    def _string(self) -> Reading[bool]:
        if not (yield from self.literal('"')):
            return False
        while True:
            match = _STRING_STOP.search(self.text, self.at)
            if match is None:
                self.at = len(self.text)
                if self.ended:
                    return False
                yield
            elif match.group() == '"':
                self.at = match.end()
                return True
            else:
                self.at = match.end()
                if not (yield from self.char()):
                    return False
                self.at += 1


BROKEN: Any = object()  # of a reader of values: it is none


def items(source: TextSource, close: str, item: Callable[[], Reading[Any]]) -> Reading[Any]:
    """Read what is between the bracket here and `close`, with commas between; BROKEN if it is not a list of `item`."""
    source.at += 1
    out: list[Any] = []
    yield from source.space()
    while not (yield from source.literal(close)):
        value = yield from item()
        yield from source.space()
        if value is BROKEN or not ((yield from source.literal(",")) or (yield from source.char()) == close):
            return BROKEN
        out.append(value)
        yield from source.space()
    return out


def loaded(raw: str | None) -> Any:
    """Return the value of JSON text that a model wrote, line ends in strings forgiven; None if it is none."""
    try:
        return None if raw is None else json.loads(raw, strict=False)
    except (ValueError, RecursionError):
        return None


def dumped(value: Any) -> str:
    """Write JSON, readable where it can be: half a surrogate pair stays an escape."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


# --- dialects --------------------------------------------------------------------------------------

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
