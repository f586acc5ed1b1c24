"""Translates the Go templates of Ollama's requests and Modelfiles into Jinja.

They are in Go's template language. Those of one turn know three texts, .System, .Prompt and .Response; a chat is the
template once for each turn, and the last turn ends at .Response. That part is written exactly: text, these
fields, if with and, or and not, trims, comments, quoted text. Anything else (range, .Messages, .Tools, functions) is
refused by name, never approximated. Knows the language and no chat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freehold.base.errors import BadTemplate

_FIELDS = {"System": "s", "Prompt": "p", "Response": "r"}
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|\}\}|[^"`}]+|\}', re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|[()]|[^\s()]+')
_BLANKS = " \t\r\n"
MAX_DEPTH = 50  # of ifs and of parentheses
# A turn ends when the next one's system text or question comes; texts of one role in a row are one.
_CHAT = (
    "{%- set t = namespace(s='', p='', r='', role='') -%}{%- for m in messages -%}{%- set c = m.content or '' -%}"
    "{%- if m.role == t.role -%}"
    "{%- if m.role == 'system' -%}{%- set t.s = t.s ~ '\\n\\n' ~ c -%}"
    "{%- elif m.role == 'user' -%}{%- set t.p = t.p ~ '\\n\\n' ~ c -%}"
    "{%- else -%}{%- set t.r = t.r ~ '\\n\\n' ~ c -%}{%- endif -%}"
    "{%- else -%}"
    "{%- if (m.role == 'system' and (t.p or t.r)) or (m.role == 'user' and t.r) -%}"
    "{{- turn(t.s, t.p, t.r) -}}{%- set t.s = '' -%}{%- set t.p = '' -%}{%- set t.r = '' -%}{%- endif -%}"
    "{%- if m.role == 'system' -%}{%- set t.s = c -%}{%- elif m.role == 'user' -%}{%- set t.p = c -%}"
    "{%- elif m.role == 'assistant' -%}{%- set t.r = c -%}"
    "{%- else -%}{{- raise_exception('a template in Go\\'s language has no place for role ' ~ m.role) -}}{%- endif -%}"
    "{%- endif -%}{%- set t.role = m.role -%}{%- endfor -%}{{- last(t.s, t.p, t.r) -}}"
)


def is_go(source: str) -> bool:
    """Tell Go's language from Jinja, which has statements, or names the messages it renders."""
    return "{%" not in source and re.search(r"(?<![.\w])messages\b", source) is None


def to_jinja(source: str) -> str:
    """Return a Jinja template that renders a chat as `source` does. Raises BadTemplate for what is beyond that part."""
    pieces = list(_pieces(source))
    if not any(piece.kind == "field" and piece.text == "Response" for piece in pieces):
        pieces.append(_Piece("field", "Response"))
    whole, last = _Writer().written(pieces), _Writer(until_response=True).written(pieces)
    return f"{_macro('turn', whole)}{_macro('last', last)}{_CHAT}"


def _macro(name: str, body: str) -> str:
    return f"{{%- macro {name}(s, p, r) -%}}{body}{{%- endmacro -%}}"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text, or an action in Jinja's words."""

    kind: str  # text | field | if | elif | else | end
    text: str = ""


def _pieces(source: str) -> Iterator[_Piece]:
    last, trimmed = 0, False
    while (start := source.find("{{", last)) >= 0:
        end = _end_of_action(source, start + 2)
        action = source[start + 2 : end - 2]
        trims = action[:1] == "-" and action[1:2] in (*_BLANKS,)
        yield _Piece("text", _trimmed(source[last:start], left=trimmed, right=trims))
        action = action[1:] if trims else action
        trimmed, last = action[-1:] == "-" and action[-2:-1] in (*_BLANKS,), end
        if action := (action[:-1] if trimmed else action).strip():
            yield from _action(action)
    yield _Piece("text", _trimmed(source[last:], left=trimmed, right=False))


def _end_of_action(source: str, at: int) -> int:
    """Return where an action ends whose inside begins `at`; quoted text in it may hold the braces that would end it."""
    begins = re.compile(r"(?:-\s)?\s*/\*").match(source, at)
    if begins:  # a comment is an action of its own
        at = source.find("*/", begins.end()) + 2
    while at > 1 and (token := _TOKEN.match(source, at)):
        at = token.end()
        if token[0] == "}}":
            return at
    raise _refused(f"{source[source.rfind('{{', 0, max(at, 2)) :][:40]!r} is not closed")


def _trimmed(text: str, *, left: bool, right: bool) -> str:
    text = text.lstrip(_BLANKS) if left else text
    return text.rstrip(_BLANKS) if right else text


def _action(action: str) -> Iterator[_Piece]:
    if action.startswith("/*") and action.endswith("*/"):
        return
    words = _WORD.findall(action)
    match words:
        case ["if", _, *_]:
            yield _Piece("if", _condition(words[1:]))
        case ["else", "if", _, *_]:
            yield _Piece("elif", _condition(words[2:]))
        case ["else"] | ["end"]:
            yield _Piece(words[0])
        case [word] if name := _field(word):
            yield _Piece("field", name)
        case [word] if word[0] in '"`':
            yield _Piece("text", _quoted(word))
        case _:
            raise _refused(f"{{{{ {action[:60]} }}}} is not supported")


def _field(word: str) -> str:
    name = word.removeprefix("$").removeprefix(".")
    return name if word.removeprefix("$") == f".{name}" and name in _FIELDS else ""


def _quoted(word: str) -> str:
    if word[0] == "`":
        return word[1:-1]
    try:
        return json.loads(word)
    except ValueError:
        raise _refused(f"{word[:60]} has an escape that is not supported") from None


def _condition(words: Sequence[str]) -> str:
    """Return a condition in Jinja's words: a field, or and, or and not of conditions."""
    left = list(reversed(words))
    condition = _operand(left, 0) if len(words) == 1 or words[0] == "(" else _call(left, 0)
    if left:
        raise _refused(f"the condition {' '.join(words)[:60]!r} is not supported")
    return condition


def _operand(left: list[str], depth: int) -> str:
    word = left.pop() if left else ""
    if word == "(" and depth < MAX_DEPTH:
        inner = _call(left, depth + 1)
        if left and left.pop() == ")":
            return inner
    elif name := _field(word):
        return _FIELDS[name]
    raise _refused(f"the condition {word[:60]!r} is not supported")


def _call(left: list[str], depth: int) -> str:
    name = left.pop() if left else ""
    if name not in ("and", "or", "not"):
        raise _refused(f"the condition {name[:60]!r} is not supported")
    operands = []
    while left and left[-1] != ")":
        operands.append(_operand(left, depth))
    if not operands or (name == "not" and len(operands) != 1):
        raise _refused(f"the condition {name!r} has {len(operands)} operands")
    return f"(not {operands[0]})" if name == "not" else f"({f' {name} '.join(operands)})"


class _Writer:
    """Writes pieces in Jinja; with `until_response` nothing after the first .Response."""

    def __init__(self, until_response: bool = False) -> None:
        self._until, self._cut = until_response, False
        self._open: list[bool] = []  # for each if: whether its else was there

    def written(self, pieces: Sequence[_Piece]) -> str:
        """Return Jinja. Raises BadTemplate for ifs that are not closed, or not opened."""
        text = "".join(map(self._piece, pieces))
        if self._open:
            raise _refused("an if is not closed")
        return text

    def _piece(self, piece: _Piece) -> str:
        match piece.kind:
            case "text":
                shown = json.dumps(piece.text, ensure_ascii=False)
                return f"{{{{- {shown} -}}}}" if piece.text and not self._cut else ""
            case "field":
                shown = "" if self._cut else f"{{{{- {_FIELDS[piece.text]} -}}}}"
                self._cut = self._cut or (self._until and piece.text == "Response")
                return shown
            case "if":
                self._open.append(False)
                if len(self._open) > MAX_DEPTH:
                    raise _refused(f"ifs are nested more than {MAX_DEPTH} deep")
                return f"{{%- if {piece.text} -%}}"
        return self._branch(piece)

    def _branch(self, piece: _Piece) -> str:
        if not self._open or (piece.kind != "end" and self._open[-1]):
            raise _refused(f"{piece.kind!r} belongs to no if")
        if piece.kind == "end":
            self._open.pop()
            return "{%- endif -%}"
        self._open[-1] = piece.kind == "else"
        return "{%- else -%}" if piece.kind == "else" else f"{{%- elif {piece.text} -%}}"


def _refused(what: str) -> BadTemplate:
    return BadTemplate(
        f"the template is in Go's language, and {what}",
        "known are .System, .Prompt, .Response, if, else, end, and, or, not; or write it in Jinja, over messages",
    )
