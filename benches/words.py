"""Counts, in help, errors, guides, docs and src, the patterns that the project's style replaces by plain words.

    python benches/words.py                   # a table and one JSON line
    python benches/words.py --show "goes on"  # each place of one pattern
    python benches/words.py --at REVISION     # the same of another commit

help: docs/reference/cli.md. errors: strings of `raise` in src. guides: README.md, docs/guides, docs/details. docs: all
other pages but the log and the reference. src: comments and strings. Text in backticks and fenced blocks is left out.
Metaphors (house, door, room) and words of our own (tower) may stay in design pages and in code. Names: five words that
say nothing about a value. Knows text; runs no program of the package. Path: main -> texts, names -> count -> table
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("help", "errors", "guides", "docs", "src")
READ_BY_USERS = ("help", "errors", "guides")
PATTERNS = {
    "nobody, somebody, whoever": r"(?:no|some|every|any)body|who(?:m)?ever",
    "told": r"told",
    "held": r"(?<!those )(?<!ranges )held(?![- ]out\b)",  # predictions hold, and sets are held out
    "is no X": r"(?<!there )is no (?!longer\b|more\b|less\b|such\b|better\b|worse\b|larger\b|slower\b|faster\b)[a-z]+",
    "of this machine": r"of this machine",
    "as there": r"as there(?=[.,;:)]| *$)",
    "begins so": r"begins? so",
    "is the owner's": r"is the owner's",
    "goes on": r"(?:goes|go|going|went) on",
    "stands": r"stands?(?! for\b| in for\b|-ins?\b)|stood",
    "lies": r"lies?(?= (?:in|on|at|beside|where|there|under)\b)",
    "so many": r"so many",
    "under way": r"under way",
    "for want of": r"for want of",
    "order of things": r"order of things",
    "makes of it": r"makes of it",
    "rents out": r"rents? (?:\w+ )?out",
    "is sure of": r"(?:is|are) (?:not )?sure of",
    "changes nothing": r"changes nothing",
    "the bill": r"the bill",
    "house": r"houses?",
    "door": r"doors?",
    "room": r"rooms?",
    "tower": r"towers?",  # of pictures or sounds: an encoder
    "sees no, hears no": r"(?:sees|hears) no",
    "anew": r"anew",
}
METAPHORS = ("house", "door", "room", "tower", "sees no, hears no", "anew")
NAMES = ("found", "asked", "given", "made", "said")
FENCED, QUOTED = re.compile(r"^ *```.*?^ *```$", re.M | re.S), re.compile(r"`[^`\n]*`|\]\([^)]*\)")


@dataclass(frozen=True)
class Text:
    """A piece of prose: its place in the table, and the file and line where it begins."""

    place: str
    file: str
    line: int
    words: str


def files(revision: str | None) -> Iterator[tuple[str, str]]:
    """Yield name and text of each tracked page and module, of the working tree or of a revision."""
    git = ["git", "-C", str(ROOT)]
    listed = [*git, "ls-tree", "-r", "--name-only", revision] if revision else [*git, "ls-files"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\n"):
        page = name.endswith(".md") and name.startswith(("README", "CONTRIBUTING", "docs/"))
        if not page and not (name.startswith("src/") and name.endswith(".py")):
            continue
        if revision:
            shown = subprocess.run([*git, "show", f"{revision}:{name}"], capture_output=True, check=True)
            yield name, shown.stdout.decode()
        elif (ROOT / name).is_file():
            yield name, (ROOT / name).read_text(encoding="utf-8")


def blank(match: re.Match[str]) -> str:
    """Replace a match by as many lines, so that line numbers stay right."""
    return "\n" * match[0].count("\n") or " "


def page_place(name: str) -> str | None:
    """Return the place of a page, or None where it is not counted."""
    if name == "docs/reference/cli.md":
        return "help"
    if name.startswith(("docs/reference/", "docs/log/")):
        return None
    return "guides" if name.startswith(("README", "docs/guides/", "docs/details/")) else "docs"


def texts(name: str, text: str) -> Iterator[Text]:
    """Yield the prose of a file."""
    if name.endswith(".md"):
        place = page_place(name)
        if place:  # the reference shows its help in fenced blocks
            page = text if place == "help" else FENCED.sub(blank, text)
            if name == "CONTRIBUTING.md":  # it lists refused words, in bold
                page = re.sub(r"\*\*.*?\*\*", " ", page)
            yield Text(place, name, 1, QUOTED.sub(blank, page))
        return
    raised = error_lines(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            bare = re.sub(r"\{[^{}\n]*\}", " ", token.string) if token.string[:1] in "fF" else token.string
            line = token.start[0]
            yield Text("errors" if line in raised else "src", name, line, QUOTED.sub(blank, bare))


def error_lines(text: str) -> set[int]:
    """Return the lines of a module on which a `raise` makes its error."""
    raised = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
    ]
    return {line for n in raised for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}


def matches(text: Text) -> Iterator[tuple[str, int, str]]:
    """Yield pattern, line and words of each match that counts in the text's place."""
    for pattern, expression in PATTERNS.items():
        if pattern not in METAPHORS or text.place in READ_BY_USERS:
            for match in re.finditer(rf"\b(?:{expression})\b", text.words, re.IGNORECASE):
                yield pattern, text.line + text.words.count("\n", 0, match.start()), match[0]


def names(text: str) -> Counter[str]:
    """Count names in a module that are one of NAMES, in any case, with or without an underscore before it."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    plain = (token.string.strip("_").lower() for token in tokens if token.type == tokenize.NAME)
    return Counter(name for name in plain if name in NAMES)


def main() -> None:
    """Print the table and one JSON line, or the places of one pattern."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--at", metavar="REVISION", help="count a commit; default: the working tree")
    options.add_argument("--show", metavar="PATTERN", choices=PATTERNS, help="print each match of PATTERN")
    options.add_argument("--only", metavar="PLACE", choices=PLACES, help="with --show: this column alone")
    chosen = options.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    named: Counter[str] = Counter()
    for name, text in files(chosen.at):
        if name.endswith(".py"):
            named += names(text)
        for piece in texts(name, text):
            for pattern, line, words in matches(piece):
                counts[pattern, piece.place] += 1
                if chosen.show == pattern and chosen.only in (None, piece.place):
                    print(f"{name}:{line}: {words}")
    if chosen.show:
        return
    print(f"{'PATTERN':26}" + "".join(f"{place:>8}" for place in PLACES))
    for pattern in PATTERNS:
        print(f"{pattern:26}" + "".join(f"{counts[pattern, place] or '-':>8}" for place in PLACES))
    sums = {place: sum(n for (_, where), n in counts.items() if where == place) for place in PLACES}
    print(f"{'all':26}" + "".join(f"{n:>8}" for n in sums.values()))
    print("names in src: " + ", ".join(f"{name} {named[name]:,}" for name in NAMES))
    print(
        json.dumps(
            {"bench": "words", "at": chosen.at or "worktree", **sums, "names": {n: named[n] for n in NAMES}}
        )
    )


if __name__ == "__main__":
    main()
