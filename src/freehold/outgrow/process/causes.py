"""Why an engine ended, found in its log: one sentence for a person, and whether another start would end the same way.

The rules of causes.toml are read from the oldest line on and the first that fits wins, as engines report a cause first
and its consequences for pages after it. Knows what engines print; knows no process.
"""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from freehold.outgrow.contract import EngineDeath

_NO_MEMORY = "this machine's memory does not suffice"


@dataclass(frozen=True, slots=True)
class CauseRule:
    """A row of causes.toml: a line of a log and what it means."""

    name: str
    pattern: re.Pattern[str]
    sentence: str
    fatal: bool


def _rules(which: str) -> tuple[CauseRule, ...]:
    text = resources.files("freehold.outgrow.process").joinpath("causes.toml").read_text(encoding="utf-8")
    return tuple(
        CauseRule(row["name"], re.compile(row["line"]), row["says"], row.get("fatal", True))
        for row in tomllib.loads(text)[which]
    )


RULES = _rules("first")
LATER = _rules("later")  # they follow a cause; one of them is the cause only if no other was found
# Lines before an end that are looked at: tracebacks of some processes; older errors ended nothing.
_TOLD = 600
_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception)|Exception): (.+)")
# What processes say of the end of another, whose own error comes before it.
_FOLLOWS = re.compile(
    r"[Ss]ee (?:the )?(?:root cause|stack ?trace|trace|error|log|logs|above)|background process|initialization failed|"
    r"EngineDeadError|EngineCore (?:failed|encountered)|died unexpectedly|Received sigquit|was killed|SystemExit"
)


def death(
    title: str,
    lines: Sequence[str],
    status: int | None,
    *,
    ended_by: str = "",
    memory_kill: bool = False,
    where: str = "an address of it",
) -> EngineDeath:
    """Return what is said of an end.

    `status`: an exit code, or minus a signal. `ended_by`: why we ended it ourselves. `memory_kill`: the system ended a
    process for lack of memory shortly before. `where`: on what it was to listen.
    """
    how = f"{title} was ended: {ended_by}" if ended_by else f"{title} {_ended(status)}"
    cause = find(lines, where)
    if memory_kill and not ended_by and (cause is None or cause[0] in LATER):
        return EngineDeath(f"{how}: {_NO_MEMORY}, the system ended a process of it", "memory", status)
    own = _own_error(lines) if cause is None or cause[0] in LATER[1:] else ""
    if cause is not None and not own:
        rule, sentence = cause
        return EngineDeath(f"{how}: {sentence}", rule.name, status, rule.fatal and not ended_by)
    if ended_by or status == -signal.SIGKILL:  # no time to write why: an older error says nothing of it
        return EngineDeath(how, "", status)
    return EngineDeath(f"{how}: {own}" if own else how, "", status)


def _own_error(lines: Sequence[str]) -> str:
    """Return the latest error that is not what one process says of the end of another; "" for none."""
    errors = [m[0] for line in reversed(lines[-_TOLD:]) if (m := _ERROR.search(line))]
    return next((each for each in errors if not _FOLLOWS.search(each)), "")


def find(lines: Sequence[str], where: str = "an address of it") -> tuple[CauseRule, str] | None:
    """Return the first known cause in a log, and its sentence; else the first of what follows from causes."""
    for rules in (RULES, LATER):
        for line in lines[-_TOLD:]:
            for rule in rules:
                if match := rule.pattern.search(line):
                    return rule, rule.sentence.format(*match.groups(), where=where)
    return None


def _ended(status: int | None) -> str:
    if status is None:
        return "ended"
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal has no name
            return f"was ended by signal {-status}"
    return f"ended with status {status}"
