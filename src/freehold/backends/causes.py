"""Why an engine ended, found in its log: one sentence for a person, and whether another start would end the same way.

The rules are read from the oldest line on and the first that fits wins, as engines report a cause first and its
consequences for pages after it. Knows what engines print; knows no process.
Path: OwnProcess.ended -> death -> RULES
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from freehold.backends.contract import EngineDeath


@dataclass(frozen=True, slots=True)
class CauseRule:
    """A line of a log and what it means. `{0}`, `{1}` in `sentence` stand for the pattern's groups."""

    name: str
    pattern: re.Pattern[str]
    sentence: str
    fatal: bool = True


def _rule(name: str, pattern: str, sentence: str, *, fatal: bool = True) -> CauseRule:
    return CauseRule(name, re.compile(pattern), sentence, fatal)


RULES: tuple[CauseRule, ...] = (
    _rule(
        "head-size",
        r"Unsupported CPU attention configuration:.*?head_dim=(\d+)",
        "its processor kernels do not compute heads of size {0}",
    ),
)
_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception)): (.+)")


def death(
    title: str, lines: Sequence[str], status: int | None, *, asked: str = "", memory_kill: bool = False
) -> EngineDeath:
    """Return what is said of an end. `status`: an exit code, or minus a signal; `asked`: why we ended it ourselves."""
    how = f"{title} {_ended(status)}" if not asked else f"{title} was ended: {asked}"
    if found := find(lines):
        rule, sentence = found
        return EngineDeath(f"{how}: {sentence}", rule.name, status, rule.fatal)
    if asked:
        return EngineDeath(how, "", status)
    if memory_kill and status == -signal.SIGKILL:
        return EngineDeath(f"{how}: the system had no memory left", "memory", status)
    last = next((m for line in reversed(lines) if (m := _ERROR.search(line))), None)
    return EngineDeath(f"{how}: {last[0]}" if last else how, "", status)


def find(lines: Sequence[str]) -> tuple[CauseRule, str] | None:
    """Return the first known cause in a log, and its sentence."""
    for line in lines:
        for rule in RULES:
            if match := rule.pattern.search(line):
                return rule, rule.sentence.format(*match.groups())
    return None


def _ended(status: int | None) -> str:
    if status is None:
        return "ended"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
