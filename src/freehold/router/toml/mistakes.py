"""What is wrong with a gateway.toml: each mistake with its line, its key and the way out, all of them in one error.

Knows lines and keys; no rule of the file. A message never quotes what may be a secret: `shown` shortens values, and
fields that hold keys quote none.
Path: toml/table.py -> Mistakes.add -> BadGateway -> cli/main.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.errors import UsageError
from freehold.router.toml.lines import KeyPath

MOST_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing that is wrong. `line` counts from 1; 0: the file as a whole."""

    line: int
    key: str  # providers.openai.kind; "" for the file as a whole
    message: str  # names the value and the limit
    hint: str  # the way out

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.key}{': ' if self.key else ''}{self.message}"


class BadGateway(UsageError):
    """A gateway.toml that is not sound. `mistakes` holds all of them, in the file's order."""

    def __init__(self, name: str, mistakes: tuple[Mistake, ...]) -> None:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        lines = "".join(
            f"\n  {each}" + (f"\n    hint: {each.hint}" if each.hint else "") for each in mistakes
        )
        super().__init__(
            f"{name} has {count}:{lines}", "freehold gateway check FILE reads it without a server"
        )
        self.name, self.mistakes = name, mistakes


@dataclass(slots=True)
class Mistakes:
    """Mistakes as they are found."""

    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    found: list[Mistake] = field(default_factory=list)

    def add(self, path: KeyPath, message: str, hint: str = "") -> None:
        """Note a mistake at a key; one that is not written is reported at the table that lacks it."""
        above = path
        while above and above not in self.lines:
            above = above[:-1]
        self.found.append(Mistake(self.lines.get(above, 0), spelled(path), message, hint))

    def check(self, name: str) -> None:
        """Raise BadGateway if anything was found."""
        if self.found:
            raise BadGateway(name, tuple(sorted(set(self.found))))


def spelled(path: KeyPath) -> str:
    """Return a key as TOML writes it: routes.chat.targets[0], models."gpt 5"."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
            continue
        bare = part.isascii() and part.replace("-", "a").replace("_", "a").isalnum()
        out += ("." if out else "") + (part if bare else shown(part))
    return out


def shown(value: object) -> str:
    """Return a value as messages quote it: on one line, and short."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
        text = f'"{text[:MOST_SHOWN]}…' + '"' if len(text) > MOST_SHOWN else f'"{text}"'
    elif isinstance(value, (dict, list)):
        text = "a table" if isinstance(value, dict) else f"an array of {len(value)}"
    else:
        text = str(value)
    return text if len(text) <= MOST_SHOWN + 3 else f"{text[:MOST_SHOWN]}…"
