"""Finds personal data and secrets in a text: a sieve of regular expressions, then a check of each hit.

One expression finds every hit in one pass, and checks decide which of them are findings.
RE2 takes time in proportion to a text's length, whatever is in it. A text is read as it is; where it has characters
that only look like others (full-width digits, spaces that do not break, zero-width characters), also as the plain
ones; where it has JSON's escapes, as a tool's result often has, also without them. Answers never hold what was found.
Checks are bounded by an Effort: a text with more candidates is not read to its end, and counts as having all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from freehold.base.errors import UsageError
from freehold.route.router.detect.detectors import (
    CREDENTIALS,
    PERSONAL,
    PHONES,
    DetectKind,
    Detector,
    Effort,
    Finding,
    Hit,
    TooManyHits,
    load_countries,
)
from freehold.route.router.toml.table import EXTRA

DETECTORS: tuple[Detector, ...] = (*CREDENTIALS, *PERSONAL, *PHONES)
KINDS: tuple[DetectKind, ...] = ("pii", "secrets")
# Candidates of one request that are checked: 0.3 to 0.6 s of processor. A megabyte of logs has some hundred.
MOST_HITS = 50_000
AHEAD = 4096  # bytes in which a hit says which detectors it is for; where none does, all are asked
_NEARLY = (
    "phone 000-0000, tel. 831 055 0199, +83201945 +81200945513, 12,Smith,555-0199-0012,2024-03-11,48213.07\n"
    "a@b.zz 4000 0000 0000 0001 DE00370400440532013000 DE21 3704 0044 0532 0130 00 219-00-9999 https://a:b@c/d\n"
    'sk-123 Bearer abc key=0123456789 ghp_0 AKIA0 -----BEGIN 1. (2) 3/4 5@6 7+8 {"a": 1} \\n\\u0041\n'
    "\uff11\u0300\u0323\u2019\u00a0\u2013\u202f\u200b\u0661"
) * 3
_ESCAPED = re.compile(r"\\+(?:u([0-9A-Fa-f]{4})|[nrtbf])")  # JSON in JSON has more than one backslash
_WORD = re.compile(rb"[A-Za-z0-9]*")
# Spaces, dashes and middle dots of typography, each become their ASCII; common in prose, so they are replaced one by
# one. Fillers of Hangul and an empty braille cell look like a blank.
_TYPOGRAPHY = {
    **dict.fromkeys("\u00a0\u202f\u205f\u3000\u2028\u2029\u115f\u1160\u3164\uffa0\u2800", " "),
    **dict.fromkeys(map(chr, range(0x2000, 0x200B)), " "),
    **dict.fromkeys("\u00b7\u2022\u2027\u22c5\u30fb", "."),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
}
# Characters without a shape: joiners, marks of direction, variation selectors, tags.
_INVISIBLE = (
    r"\x{ad}\x{34f}\x{61c}\x{180e}\x{200b}-\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2064}\x{2066}-\x{206f}"
    r"\x{fe00}-\x{fe0f}\x{feff}\x{e0001}\x{e0020}-\x{e007f}\x{e0100}-\x{e01ef}"
)
# Letters and digits of other detectors (full-width, small, mathematical, enclosed), and digits of other scripts.
_ODD = r"\x{2070}-\x{209f}\x{2460}-\x{249b}\x{fe50}-\x{fe6b}\x{ff01}-\x{ff5e}\x{1d400}-\x{1d7ff}"


class Sieve:
    """The detectors, and a gateway's own patterns, compiled once."""

    def __init__(self, patterns: Iterable[str] = (), kinds: Iterable[str] = KINDS) -> None:
        kinds = frozenset(kinds)
        self._detectors = [each for each in DETECTORS if each.kind in kinds]
        self._findings = [Finding(each.kind, each.name) for each in self._detectors]
        shapes = [each.pattern for each in self._detectors]
        if "pii" in kinds:
            load_countries()
        self._any = _bytes(b"|".join(b"(?:" + shape + b")" for shape in shapes)) if shapes else None
        self._each = [_bytes(shape) for shape in shapes]
        self._which = _set(shapes) if shapes else None
        self._typography = _text("[" + "".join(_TYPOGRAPHY) + "]")
        self._odd = _text(f"[{_INVISIBLE}{_ODD}]|[^0-9\\P{{Nd}}]")
        self._own = {pattern: _text(pattern) for pattern in dict.fromkeys(patterns)}
        self._any_own = _text("|".join(f"(?:{pattern})" for pattern in self._own)) if self._own else None

    def warm(self) -> None:
        """Read a text with near misses of all kinds: RE2 builds automata, and phonenumbers its rules, at first use."""
        with suppress(TooManyHits):
            self.find([_NEARLY])

    def find(self, texts: Iterable[str], most: int = MOST_HITS) -> set[Finding]:
        """Return what is in the texts, each finding once. What is spread over two texts is not found.

        Raises TooManyHits where checking the candidates would cost more than `most` units of an Effort.
        """
        text = "\n\n".join(texts)
        if "\\" in text and _ESCAPED.search(text):
            text = f"{text}\n\n{_unescaped(text)}"
        findings: set[Finding] = set()
        effort = Effort(most)
        for form in _forms(text, self._typography, self._odd):
            encoded = form.encode("utf-8", "replace")
            findings.update(self._found_in(encoded, effort))
            findings.update(self._own_in(encoded))
        if self._own and not text.isascii():  # they may ask for typography's own characters
            findings.update(self._own_in(text.encode("utf-8", "replace")))
        return findings

    def _own_in(self, text: bytes) -> Iterator[Finding]:
        if self._any_own is not None and self._any_own.search(text):
            yield from (Finding("pattern", p) for p, own in self._own.items() if own.search(text))

    def _found_in(self, text: bytes, effort: Effort) -> Iterator[Finding]:
        known: set[Finding] = set()
        at = 0
        while self._any is not None and (match := self._any.search(text, at)):
            effort.spend(1)
            at = match.start()
            if (finding := self._at(Hit(text, at, at, effort), known)) is not None:
                known.add(finding)
                yield finding
            at = max(_end_of_word(text, at), at + 1)

    def _at(self, hit: Hit, known: set[Finding]) -> Finding | None:
        """Return the first new finding among the detectors whose shape begins at one place."""
        assert self._which is not None
        text, start = hit.text, hit.start
        for number in sorted(self._which.Match(text[start : start + AHEAD]) or range(len(self._each))):
            finding = self._findings[number]
            if finding in known:
                continue
            match = self._each[number].match(text, start)
            if match and self._detectors[number].check(hit._replace(end=match.end())):
                return finding
        return None


def _unescaped(text: str) -> str:
    """Return a text with the characters that JSON's escapes stand for; halves of a pair are joined."""
    plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)) if match[1] else " ", text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _forms(text: str, typography: Any, odd: Any) -> Iterator[str]:
    """Yield the text with plain spaces and dashes, and once more in plain characters if it has odd ones."""
    if text.isascii():
        yield text
        return
    encoded, plain = text.encode("utf-8", "replace"), text
    if typography.search(encoded):
        for fine, ascii in _TYPOGRAPHY.items():
            plain = plain.replace(fine, ascii)
    yield plain
    if not odd.search(encoded):
        return
    yield plain.translate({ord(c): ascii for c in set(plain) if (ascii := _ascii_of(c)) is not None})


@lru_cache(maxsize=4096)
def _ascii_of(character: str) -> str | None:
    """Return the ASCII that a character looks like, "" for an invisible one, None where there is none.

    One by one: normalising a whole text takes time with the square of a run of accents, and may make it 18 times as
    long.
    """
    if character <= "\x7f":
        return None
    if _invisible().search(character.encode("utf-8", "replace")):
        return ""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    plain = unicodedata.normalize("NFKC", character)
    return plain if plain.isascii() else None


@cache
def _invisible() -> Any:
    return _text(f"[{_INVISIBLE}]")


def _end_of_word(text: bytes, start: int) -> int:
    match = _WORD.match(text, start)
    return match.end() if match else start


def _bytes(pattern: bytes) -> Any:
    return _re2().compile(pattern, _options())


def _set(patterns: Iterable[bytes]) -> Any:
    """Return what says at once which of the patterns begin where a text does."""
    pattern_set = _re2().Set.MatchSet(_options())
    for pattern in patterns:
        pattern_set.Add(pattern)
    pattern_set.Compile()
    return pattern_set


def _options() -> Any:
    options = _re2().Options()
    options.encoding = options.Encoding.LATIN1
    options.log_errors = False
    options.never_capture = True
    options.max_mem = 64 << 20
    return options


def _text(pattern: str) -> Any:
    options = _re2().Options()
    options.log_errors = False
    return _re2().compile(pattern.encode(), options)


def _re2() -> Any:
    try:
        import re2
    except ImportError:
        raise UsageError("labels with detect or patterns need the package google-re2", EXTRA) from None
    return re2
