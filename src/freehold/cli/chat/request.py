"""The options of `freehold run`, apart from MODEL and PROMPT, and which of them contradict each other.

Knows options; knows no model. Path: run.command -> RunRequest -> check, check_terminal
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from freehold.cli.chat.answer import AnswerSettings
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.types import KvType


# Options about loading: with one of them the model is loaded in this process.
LOADING = {
    "engine": "--engine",
    "context": "--context",
    "kv_type": "--kv-type",
    "speculate": "--no-speculation",
    "draft": "--draft",
    "adapter": "--adapter",
    "threads": "--threads",
    "allow_paging": "--allow-paging",
    "pack": "--no-pack",
}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The command line's options, apart from MODEL, PROMPT and those of AnswerSettings."""

    system: str
    raw: bool
    plain: bool
    as_json: bool
    verbose: bool
    context: int | None
    kv_type: KvType
    speculate: bool
    draft: str | None
    adapter: str | None
    threads: int | None
    allow_paging: bool
    pack: bool  # keep a packed copy for the next load
    logprobs: int | None
    continued: bool
    session: str | None
    local: bool
    engine: str
    loop_guard: bool
    mcp: tuple[str, ...]  # servers of tools
    own: tuple[str, ...] = ()  # the given options that no server can honour: those of LOADING


def check(request: RunRequest, settings: AnswerSettings) -> None:
    """Raise UsageError for options that contradict each other."""
    if request.logprobs is not None and not request.as_json:
        raise UsageError("--logprobs needs --json", "stdout carries the answer only")
    if any(not s for s in settings.stop):
        raise UsageError("--stop is empty", "leave it out")
    if request.raw:
        used = {
            "--system": request.system,
            "--think": settings.think is not None,
            "--session": request.session,
            "--mcp": request.mcp,
        }
        used |= {"--continue": request.continued, "--overflow": settings.overflow != "error"}
        for option in (name for name, value in used.items() if value):
            raise UsageError(
                f"{option} is for chats, and --raw completes a text", f"leave out --raw or {option}"
            )
    if request.draft and not request.speculate:
        raise UsageError("--draft needs speculation, and --no-speculation turns it off", "give one of them")
    if request.continued and request.session:
        raise UsageError("--continue and --session name two sessions", "give one of them")


def check_terminal(request: RunRequest) -> None:
    """Raise UsageError where a chat is not possible: without a terminal, or with options for one answer."""
    for option, used in (("--json", request.as_json), ("--raw", request.raw)):
        if used:
            raise UsageError(f"{option} needs a prompt", "give one as an argument or through a pipe")
    if not sys.stdout.isatty():
        raise UsageError("there is no prompt, and stdout is not a terminal", "give a prompt")
