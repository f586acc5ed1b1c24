"""What `freehold run` is asked: options that may contradict each other, MODEL and PROMPT, and text from stdin.

Knows options and names of models; loads none.
"""

from __future__ import annotations

import re
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from freehold.base.errors import BadPrompt, FreeholdError, ModelNotFound, UsageError
from freehold.base.options import option
from freehold.cli.chat.answer import AnswerSettings
from freehold.run.store import Store
from freehold.run.store.naming import parted

if TYPE_CHECKING:
    from freehold.base.types import KvType


# Options about loading: with one of them the model is loaded in this process.
LOADING = {
    "engine": "--engine",
    "context": "--context",
    "kv_type": "--kv-type",
    "speculate": "--no-speculation",
    "draft": "--draft",
    "adapter": "--adapter",
    "threads": "--threads",
    "eyes": "--eyes",
    "image_tokens": "--image-tokens",
    "allow_paging": "--allow-paging",
    "pack": "--no-pack",
}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The command line's options, apart from MODEL, PROMPT and those of AnswerSettings."""

    system: str = option("", "System prompt.", metavar="TEXT")
    raw: bool = option(False, "Complete the prompt without the chat template.")
    plain: bool = option(False, "Do not render Markdown.")
    as_json: bool = option(False, "Print one JSON object: text, usage, timings, seed, ...", name="json")
    verbose: bool = option(False, "Print load time and speeds on stderr.")
    context: int | None = option(
        None, "Context in tokens; default: the model's, if it fits into memory.", least=1
    )
    kv_type: KvType = "f16"
    speculate: bool = True
    draft: str | None = None
    adapter: str | None = option(
        None,
        "Use a LoRA adapter: a PEFT folder, a GGUF file, or the name of one on the server; as MODEL+ADAPTER.",
        metavar="[NAME=]PATH",
    )
    threads: int | None = option(None, "Number of compute threads.", least=1, most=1024)
    allow_paging: bool = False
    eyes: str = "lazy"  # this and the next are options of the settings
    image_tokens: str = ""
    pack: bool = option(
        True,
        "Keep a packed copy of the weights, as large as the file; without it each load takes longer.",
        off="no-pack",
    )
    logprobs: int | None = option(
        None,
        "With --json: log-probabilities of the answer and of the N most probable tokens.",
        least=0,
        most=20,
    )
    image: tuple[str, ...] = option(
        (),
        "Send this picture with the prompt, or with a chat's first message; repeatable.",
        metavar="FILE",
    )
    sound: tuple[str, ...] = option(
        (),
        "Send this audio file with the prompt, or with a chat's first message; repeatable.",
        metavar="FILE",
    )
    continued: bool = option(False, "Continue the latest session.", name="continue")
    session: str | None = option(None, "Continue the session NAME, or start it.", metavar="NAME")
    local: bool = option(False, "Load the model in this process, even if a server runs.")
    engine: str = "auto"
    loop_guard: bool = option(True, "Stop an answer that repeats itself endlessly.", off="no-loop-guard")
    mcp: tuple[str, ...] = option(
        (),
        "Let the model call this server's tools; Freehold asks before each call. Repeatable; see freehold mcp.",
        metavar="NAME",
    )
    docs: tuple[str, ...] = option(
        (),
        "Answer from this collection of documents, with citations; repeatable; see freehold docs.",
        metavar="NAME",
    )
    tool: tuple[str, ...] = option(
        (),
        "Let the model use one of Freehold's tools: files=DIR, python, shell=DIR, fetch=HOST,HOST, documents=NAME. "
        "Freehold asks before it writes a file or runs a command. Repeatable.",
        metavar="NAME[=VALUE]",
    )
    allow: tuple[str, ...] = option(
        (),
        "With --tool: allow calls of this kind without a question, such as 'shell:pytest*'. Repeatable.",
        metavar="TOOL:TEXT",
    )
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
            "--tool": request.tool,
            "--docs": request.docs,
            "--image": request.image,
            "--sound": request.sound,
        }
        used |= {"--continue": request.continued, "--overflow": settings.overflow != "error"}
        for name in (name for name, value in used.items() if value):
            raise UsageError(f"{name} is for chats, and --raw completes a text", f"leave out --raw or {name}")
    if request.allow and not request.tool:
        raise UsageError(
            "--allow is for the tools of --tool, and there is none", "leave it out, or name a tool"
        )
    if request.draft and not request.speculate:
        raise UsageError("--draft needs speculation, and --no-speculation turns it off", "give one of them")
    if request.docs and request.mcp:
        raise UsageError("--docs and --mcp cannot be used together", "leave out one of them")
    if request.continued and request.session:
        raise UsageError("--continue and --session name two sessions", "give one of them")


def check_terminal(request: RunRequest) -> None:
    """Raise UsageError where a chat is not possible: without a terminal, or with options for one answer."""
    for name, used in (("--json", request.as_json), ("--raw", request.raw)):
        if used:
            raise UsageError(f"{name} needs a prompt", "give one as an argument or through a pipe")
    if not sys.stdout.isatty():
        raise UsageError("there is no prompt, and stdout is not a terminal", "give a prompt")


# --- MODEL and PROMPT among the words, and a prompt from stdin --------------------------------------

MAX_STDIN = 64 << 20  # bytes; far beyond any context, small enough to hold
PATIENCE_S = 3.0  # until a silent pipe is reported


def split_words(words: Sequence[str], store: Store, default: Callable[[], str]) -> tuple[str, str]:
    """Return (MODEL, prompt). The first word is MODEL if it names one; `default` is called where none is named.

    Otherwise it begins the prompt for the default model, if it contains a space, or does not look like a name and is
    not close to one (`hello`).
    """
    if not words:
        return default(), ""
    first, rest = words[0], " ".join(words[1:])
    missing = _missing(parted(store, first).model, store)
    if missing is None:
        return first, rest
    if len(first.split()) != 1:
        return default(), " ".join(words)
    if Path(first).exists():
        raise ModelNotFound(missing.message, f"for the file of that name, write ./{first}")
    if "did you mean" in missing.hint or not _is_word(first):
        from freehold.run.local.runnable import check_runs

        check_runs(first)  # what the catalogue knows without a short name is refused for what it is
        raise ModelNotFound(missing.message, missing.hint)
    model = default()
    print(f"{first!r} is not a model: prompting {model}", file=sys.stderr)
    return model, " ".join(words)


def _is_word(text: str) -> bool:
    """Return whether a text may be a word of a sentence: names have digits, hyphens, colons or slashes."""
    return not re.search(r"[\d:/\\_-]", text)


def _missing(word: str, store: Store) -> FreeholdError | None:
    """Return the error if `word` names no model; None if it does, in the store or not."""
    from freehold.base import catalog
    from freehold.run.store.refs import parse_ref

    try:
        kind = parse_ref(word).kind
    except UsageError as e:
        return e
    if kind != "name":
        return None
    try:
        catalog.find(word)
    except ModelNotFound as missing:
        try:
            store.resolve(word)
        except ModelNotFound:
            return missing
    return None


def read_stdin(stream: BinaryIO | None = None) -> str:
    """Read all of stdin as UTF-8 (empty: a terminal, or closed); raise BadPrompt for other bytes."""
    if stream is None:
        if not sys.stdin or sys.stdin.closed or sys.stdin.isatty():
            return ""
        _mention_a_silent_pipe()
    raw = (stream or sys.stdin.buffer).read(MAX_STDIN + 1)
    if len(raw) > MAX_STDIN:
        raise BadPrompt(f"stdin holds more than {MAX_STDIN >> 20} MiB", "send less: no context is that long")
    return decoded(raw, "stdin")


def read_text_file(path: Path) -> str:
    """Read a text file whole; raise BadPrompt for other bytes, UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_STDIN + 1)
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}", "check the path") from e
    if len(raw) > MAX_STDIN:
        raise BadPrompt(f"{path} holds more than {MAX_STDIN >> 20} MiB", "no context is that long")
    return decoded(raw, str(path))


def decoded(raw: bytes, where: str) -> str:
    """Decode UTF-8 text (a byte order mark is dropped); raise BadPrompt naming the byte at fault."""
    zero = raw.find(b"\0")
    if zero >= 0:
        raise BadPrompt(f"{where} is binary: a NUL byte at offset {zero}", "send UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadPrompt(
            f"{where} is not UTF-8 text: byte 0x{raw[e.start]:02x} at offset {e.start}", "send UTF-8 text"
        ) from None


def joined(context: str, prompt: str) -> str:
    """Join the text from stdin and the prompt with a blank line between; raise BadPrompt if both are blank."""
    if "\0" in prompt:
        raise BadPrompt("the prompt holds a NUL character", "send UTF-8 text")
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise BadPrompt("the prompt is not UTF-8 text", "check the terminal's encoding")
    parts = [p for p in (context.strip("\n"), prompt) if p.strip()]
    if not parts:
        raise BadPrompt("the prompt is empty", 'give one: freehold run MODEL "..." or through a pipe')
    return "\n\n".join(parts)


def _mention_a_silent_pipe() -> None:
    """Print that stdin is awaited if nothing arrives for a while: a forgotten pipe looks like a hang."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], PATIENCE_S)
    except (OSError, ValueError):  # not selectable: a plain file on some systems
        return
    if not ready:
        print("reading the prompt from stdin (Ctrl-D ends it) ...", file=sys.stderr, flush=True)
