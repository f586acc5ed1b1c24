"""`freehold run [MODEL] [PROMPT...]`: one answer, or a chat in the terminal.

Knows options, streams and exit codes; the model is a ChatModel, the chat lives in chat.py. Where a server runs,
the model is the server's, and answers the very same; otherwise, and with --local, it is loaded in this process.
Path: main -> run -> attached or open_llm -> LLM.stream -> a renderer -> stdout; without a prompt -> chat.Chat
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from freehold.cli.chat.chat import COMMANDS, Answer, Asking, Chat, Facts, Renderer, stop
from freehold.cli.chat.loops import ADVICE, LoopGuard
from freehold.cli.chat.markdown import DataRenderer, PlainRenderer, StreamRenderer
from freehold.cli.chat.prompt import joined, read_stdin, split_words
from freehold.cli.chat.sessions import Session, Sessions
from freehold.cli.options import MAX_SEED, chosen, read_format, sampling_options
from freehold.cli.shared import (
    draft_option,
    held_or_fetched,
    kv_option,
    named_adapter,
    offline_option,
    parted,
    speculate_option,
    with_offline,
)
from freehold.config import Settings
from freehold.errors import EngineClosed, FreeholdError, ModelNotFound, ServerUnreachable, UsageError
from freehold.machine import Crowd
from freehold.serving import ModelInfo
from freehold.store import ModelRef, Store
from freehold.types import Chunk, KvType, Message, TokenLogprob, Usage

if TYPE_CHECKING:
    from freehold.cli.serving.attach import Running
    from freehold.local import LLM
    from freehold.remote import RemoteModel

# Options that say how a model is loaded, and so are for one that is loaded here.
_OWN = {
    "context": "--context",
    "kv_type": "--kv-type",
    "speculate": "--no-speculation",
    "draft": "--draft",
    "adapter": "--adapter",
    "threads": "--threads",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for, apart from MODEL and PROMPT."""

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
    logprobs: int | None
    continued: bool
    session: str | None
    local: bool
    loop_guard: bool
    own: tuple[str, ...] = ()  # options that were given and that no server's model can be asked for


@click.command("run")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]...")
@click.option("--system", default="", metavar="TEXT", help="Say this before the chat.")
@sampling_options
@click.option("--max-tokens", type=click.IntRange(1), help="Stop after this many tokens.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; repeatable.")
@click.option("--logprobs", type=click.IntRange(0, 20), help="With --json: also the N likeliest tokens.")
@click.option("--think/--no-think", default=None, help="Switch reasoning on or off, if the model can.")
@click.option(
    "--context", type=click.IntRange(1), help="Room for this many tokens; default: the model's, if it fits."
)
@click.option(
    "--overflow",
    type=click.Choice(["error", "drop-oldest"]),
    default="error",
    help="Context full: fail, or leave out the oldest messages and say so.",
)
@click.option(
    "--format",
    metavar="json|FILE",
    help="The answer must be JSON, fit FILE's JSON schema, or FILE.lark's grammar.",
)
@kv_option
@draft_option
@speculate_option
@click.option(
    "--adapter", metavar="[NAME=]PATH", help="Answer with a LoRA adapter: a PEFT folder or a GGUF file."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Compute with this many threads.")
@click.option(
    "--loop-guard/--no-loop-guard", default=True, help="Stop an answer that repeats itself without end."
)
@click.option("--local", is_flag=True, help="Load the model here, even where a server runs.")
@click.option("--continue", "continued", is_flag=True, help="Go on with the latest session.")
@click.option("--session", metavar="NAME", help="Go on with the session NAME, or start it.")
@click.option("--search", metavar="TEXT", help="Find TEXT in saved sessions; no model is loaded.")
@click.option("--raw", is_flag=True, help="Complete the prompt as it is, without the chat template.")
@click.option("--plain", is_flag=True, help="Show Markdown as it was written.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: text, usage, timings, seed, ..."
)
@click.option("--verbose", is_flag=True, help="Print load time and speeds on stderr.")
@click.option("--image", multiple=True, metavar="FILE", help="Not possible yet; refused.")
@offline_option
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], **given: Any) -> None:
    """Answer PROMPT, or chat in the terminal when there is none.

    The first word is MODEL if it names one: a short name, a file, org/repo[:quant] or a URL. If it is a word
    or a sentence that names none, it begins the prompt for the default model. A model that is not here yet is
    fetched first.

    Text from stdin goes before the prompt, with a blank line between. stdout gets the answer only.

    Where `freehold serve` runs, its model answers, loaded if need be; --local, and options that say how a model
    is loaded (--context, --kv-type, --draft, --no-speculation, --adapter, --threads), load it here instead.
    """
    settings: Settings = with_offline(ctx.obj, given.pop("offline"))
    if given.pop("image"):
        raise UsageError("--image: none of the models Freehold runs can see", "describe the image in words")
    if (text := given.pop("search")) is not None:
        ctx.exit(_search(Sessions(settings.home), text, as_json=given["as_json"]))
    asking = Asking(
        max_tokens=given.pop("max_tokens"),
        stop=tuple(given.pop("stop")),
        think=given.pop("think"),
        overflow=given.pop("overflow"),
        format=read_format(given.pop("format")),
    )
    names = Request.__dataclass_fields__.keys() - {"own"}
    source = click.core.ParameterSource.COMMANDLINE
    own = tuple(option for name, option in _OWN.items() if ctx.get_parameter_source(name) is source)
    request = Request(own=own, **{name: given[name] for name in names})
    sampling = {name: value for name, value in given.items() if name not in names}
    _check(request, asking)
    ctx.exit(_run(settings, words, request, asking, sampling))


def _check(request: Request, asking: Asking) -> None:
    if request.logprobs is not None and not request.as_json:
        raise UsageError("--logprobs needs --json", "stdout carries the answer only")
    if any(not s for s in asking.stop):
        raise UsageError("--stop is empty", "leave it out")
    if request.raw:
        told = {"--system": request.system, "--think": asking.think is not None, "--session": request.session}
        told |= {"--continue": request.continued, "--overflow": asking.overflow != "error"}
        for option in (name for name, value in told.items() if value):
            raise UsageError(
                f"{option} belongs to a chat, and --raw has none", f"leave out --raw or {option}"
            )
    if request.draft and not request.speculate:
        raise UsageError("--draft guesses, and --no-speculation forbids it", "give one of them")
    if request.continued and request.session:
        raise UsageError("--continue and --session name two sessions", "give one of them")


def _run(
    settings: Settings, words: tuple[str, ...], request: Request, asking: Asking, sampling: dict[str, Any]
) -> int:
    session = _session(Sessions(settings.home), request)
    store = Store(settings)
    model, prompt = split_words(words, store, _default(settings, session))
    from_stdin = read_stdin()
    talking = not (from_stdin or prompt) and sys.stdin is not None and sys.stdin.isatty()
    if talking:
        _check_terminal(request)
    else:
        prompt = joined(from_stdin, prompt)
    bias = sampling.pop("logit_bias")
    chosen(asking.sampling, sampling, bias)  # refuse a wrong value before a model is loaded
    with Opened(settings, store, request, model) as opened:
        llm = opened.model
        asking.sampling = chosen(llm.info.default_sampling, sampling, bias)
        if check := getattr(llm, "check_think", None):  # a server checks it when it is asked
            check(asking.think)
        told, crowd = _tell_notes(llm), Crowd()
        if talking:
            status, usages = _talk(opened, settings, request, asking, session)
        else:
            status, usages = _answer(llm, settings, request, asking, session, prompt)
        _learn(opened.model, settings, request, usages, crowd)
    _tell_notes(llm, told)  # what came up while it answered
    return status


def _tell_notes(llm: LLM | RemoteModel, told: int = 0) -> int:
    """Say on stderr what the user should know of the model, once; return how many notes there are."""
    notes = llm.info.notes
    for note in notes[told:]:
        _tell(f"note: {note}")
    return len(notes)


def _default(settings: Settings, session: Session | None) -> str:
    from freehold import catalog

    held_with = session.model if session else ""
    return held_with or settings.default_model or catalog.default_model().name


def _session(sessions: Sessions, request: Request) -> Session | None:
    if request.continued:
        return sessions.latest()
    if request.session is None:
        return None
    return (
        sessions.load(request.session) if sessions.exists(request.session) else Session(request.session, "")
    )


def _check_terminal(request: Request) -> None:
    for option, told in (("--json", request.as_json), ("--raw", request.raw)):
        if told:
            raise UsageError(f"{option} needs a prompt", "give one as an argument or through a pipe")
    if not sys.stdout.isatty():
        raise UsageError("there is no prompt, and stdout is no terminal to chat in", "give a prompt")


class Opened:
    """The model of this run, on the server or in this process; a chat may put another in its place."""

    def __init__(self, settings: Settings, store: Store, request: Request, name: str) -> None:
        self._settings, self._store, self._request = settings, store, request
        self.model = self._open(name, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.model.close()

    def switch(self, name: str) -> tuple[LLM | RemoteModel, Facts]:
        """Open another model, then close this one; if the other cannot be opened, this one stays as it is."""
        request = replace(self._request, draft=None, adapter=None)  # they belong to the model before
        other = self._open(name, request)
        self.model.close()
        self.model, self._request = other, request
        return self.model, self.facts

    @property
    def facts(self) -> Facts:
        """What a chat's status line says of it."""
        return Facts(self.model.info.quantization, self.model.info.context)

    def _open(self, name: str, request: Request) -> LLM | RemoteModel:
        return attached(self._settings, self._store, name, request) or open_llm(self._store, name, request)


def attached(settings: Settings, store: Store, model: str, request: Request) -> RemoteModel | None:
    """Return the model as this home's server has it; None where it is to be loaded here."""
    if request.local or not settings.socket.exists():
        return None
    from freehold.cli.serving.attach import running

    try:
        server = running(settings)
    except ServerUnreachable as e:
        _tell(f"note: {e.message}; the model is loaded here")
        return None
    if server is None:
        return None
    found = None
    try:
        if request.own:
            _tell(f"note: {request.own[0]} is for a model that is loaded here: not asking the running server")
        else:
            found = _served(server, store, model, request)
        return found
    finally:
        if found is None:
            server.api.close()


def _served(server: Running, store: Store, model: str, request: Request) -> RemoteModel | None:
    """Have the server load a model; None if it is none of the server's, or the server is ending."""
    from freehold.formats.adapter_names import unknown_adapter
    from freehold.remote import RemoteModel

    started = time.perf_counter()
    base, adapter = parted(store, model)
    ref = held_or_fetched(store, base)
    if adapter and f"{ref.name}+{adapter}" not in (names := server.names()):
        beside = f"{ref.name}+"
        raise unknown_adapter(
            ref.name, adapter, [n.removeprefix(beside) for n in names if n.startswith(beside)]
        )
    if not _is_server_s(server, store, ref):
        _tell(f"note: the running server does not know {ref.name}; it is loaded here")
        return None
    if sys.stderr.isatty() and not any(m.name == ref.name and m.info for m in server.loaded()):
        _tell(f"the server loads {ref.name} ...")
    try:
        info = server.load(ref.name).info
    except EngineClosed:
        return None
    if info is None:  # it left memory again at once
        return None
    made = ref.overlay.read.sampling if ref.overlay else {}
    sampling = replace(info.default_sampling, **made)  # type: ignore[arg-type]
    info = replace(info, load_s=time.perf_counter() - started, default_sampling=sampling)
    if server.note:
        _tell(f"note: {server.note}")
    _tell_facts(info, request, f", held by the server at {server.greeting.url}")
    return RemoteModel(server.api, f"{ref.name}+{adapter}" if adapter else ref.name, info)


def _is_server_s(server: Running, store: Store, ref: ModelRef) -> bool:
    """Return whether the server means the same file by the model's name."""
    if ref.name not in server.names():
        return False
    try:
        return ref.owner != "user" or store.resolve(ref.name).path == ref.path
    except FreeholdError:
        return False


def open_llm(store: Store, model: str, request: Request) -> LLM:
    """Load MODEL in this process, fetching it first if it is not here."""
    from freehold.local import open_model

    _, name, path = named_adapter(request.adapter) if request.adapter else ("", "", None)
    base, beside = parted(store, model)
    if beside:
        raise ModelNotFound(
            f"{model} is the name of an adapter on a running server, and the model is to be loaded here",
            f"freehold run {base} --adapter PATH; or freehold serve {base} --adapter {beside}=PATH first",
        )
    ref = held_or_fetched(store, model)
    shown = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    llm = open_model(
        ref,
        context=request.context,
        kv_type=request.kv_type,
        speculate=request.speculate,
        draft=held_or_fetched(store, request.draft) if request.draft else None,
        adapters={name: path} if path else None,
        threads=request.threads,
        packs=store.packs,
        progress=_show_packing if shown else None,
    )
    llm.adapters.default = name
    _tell_facts(llm.info, request)
    return llm


def _tell_facts(info: ModelInfo, request: Request, where: str = "") -> None:
    """Say on stderr which context there is and why, and where the model is held if not here."""
    cut = request.context is None and info.context < info.trained_context  # never in silence
    if request.verbose or cut or sys.stderr.isatty():
        _tell(
            " ".join(p for p in (info.name, info.quantization) if p)
            + f": context {info.context:,} tokens ({info.context_note}){where}"
        )
    if request.verbose:
        _tell(f"loaded in {info.load_s:.2f} s, {info.threads} threads")


def _show_packing(done: int, total: int) -> None:
    """Show how far the first load is, on one line that it wipes at the end."""
    text = f"\rpreparing the weights: {done / max(total, 1):.0%}" if done < total else "\r\x1b[K"
    print(text, end="", file=sys.stderr, flush=True)


def _answer(
    llm: LLM | RemoteModel,
    settings: Settings,
    request: Request,
    asking: Asking,
    session: Session | None,
    prompt: str,
) -> tuple[int, list[Usage]]:
    """Print one answer; return 0, or 130 when Ctrl-C cut it, and what it took."""
    if asking.sampling.seed is None:
        asking.sampling = replace(asking.sampling, seed=secrets.randbelow(MAX_SEED))
    messages = _messages(session, request.system, prompt)
    if request.raw:
        stream = llm.stream_text(
            prompt,
            max_tokens=asking.max_tokens,
            sampling=asking.sampling,
            stop=asking.stop,
            logprobs=request.logprobs,
            format=asking.format,
        )
    else:
        stream = llm.stream(messages, logprobs=request.logprobs, **asking.stream_options())
    answer = Answer(guard=LoopGuard() if request.loop_guard else None)
    _collect(stream, answer, _renderer(request, data=asking.format is not None))
    info = llm.info
    warnings = _warnings(info, answer, asking)
    if request.as_json:
        told = [*info.notes, *warnings]
        _write(json.dumps(_as_json(info, answer, asking, told), ensure_ascii=False) + "\n")
    for line in warnings:
        _tell(f"warning: {line}")
    if request.verbose and answer.usage:
        _tell(speeds(answer))
    if session is not None and answer.text:
        said = Message("assistant", answer.text, answer.thinking)
        Sessions(settings.home).save(replace(session, model=llm.name, messages=(*messages, said)))
    return (130, []) if answer.stopped else (0, [answer.usage] if answer.usage else [])


def _learn(
    llm: LLM | RemoteModel, settings: Settings, request: Request, usages: list[Usage], crowd: Crowd
) -> None:
    """Keep what answers took that were computed here as `freehold fit` predicts them: plainly."""
    plain = not (request.draft or request.adapter or request.threads) and request.kv_type == "f16"
    path: Path | None = getattr(llm, "path", None)  # a server's model has none
    if usages and plain and path is not None:
        from freehold.advisor.learning import learn

        learn(settings.home, path, usages, crowd.share())


def _messages(session: Session | None, system: str, prompt: str) -> tuple[Message, ...]:
    before = session.messages if session else ()
    if system:
        before = (Message("system", system), *(m for m in before if m.role != "system"))
    return (*before, Message("user", prompt))


def _collect(stream: Iterator[Chunk], answer: Answer, renderer: Renderer) -> None:
    """Take an answer in and show it as it arrives; Ctrl-C and the loop guard end it."""
    try:
        for chunk in stream:
            if answer.shown(chunk, renderer):
                break
    except KeyboardInterrupt:
        answer.stopped = True
    stop(stream)
    renderer.finish()


def _warnings(info: ModelInfo, answer: Answer, asking: Asking) -> list[str]:
    lines = []
    if answer.dropped:
        lines.append(f"context full: the {answer.dropped} oldest messages were left out")
    if answer.looped:
        lines.append(f"stopped: the answer repeats itself; {ADVICE}")
    used = answer.usage.prompt_tokens + answer.usage.completion_tokens if answer.usage else 0
    if answer.cut and used >= info.context:
        lines.append(f"cut: the context of {info.context:,} tokens is full")
    elif answer.cut:
        lines.append(f"cut after --max-tokens {asking.max_tokens}")
    return lines


_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "drafted_tokens", "accepted_tokens")


def _as_json(info: ModelInfo, answer: Answer, asking: Asking, warnings: list[str]) -> dict[str, Any]:
    usage = answer.usage
    timings = {"load_s": round(info.load_s, 4)}
    if usage is not None:
        for name in ("prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"):
            timings[name] = round(getattr(usage, name), 4)
    used = usage.prompt_tokens + usage.completion_tokens if usage else 0
    plain = {
        "model": info.name,
        "text": answer.text,
        "thinking": answer.thinking,
        "finish_reason": answer.finish_reason,
        "seed": asking.sampling.seed,
        "usage": {n: getattr(usage, n) for n in _COUNTS} if usage else None,
        "timings": timings,
        "context": {
            "limit": info.context,
            "note": info.context_note,
            "used": used,
            "dropped_messages": answer.dropped,
        },
        "warnings": warnings,
    }
    if answer.logprobs:
        plain["logprobs"] = [_token_json(p) for p in answer.logprobs]
    return plain


def _token_json(p: TokenLogprob) -> dict[str, Any]:
    text = p.token.decode("utf-8", "replace")
    return {"token_id": p.token_id, "logprob": p.logprob, "top": p.top, "text": text}


def speeds(answer: Answer) -> str:
    """Return the line that --verbose prints after an answer."""
    usage = answer.usage
    if usage is None:
        return ""
    cached = f", {usage.cached_tokens:,} of them cached" if usage.cached_tokens else ""
    guessed = ""
    if usage.drafted_tokens:
        guessed = (
            f"; {usage.accepted_tokens:,} of {usage.drafted_tokens:,} guesses held, "
            f"{usage.tokens_per_step:.2f} tokens a step"
        )
    return (
        f"prefill {usage.prompt_tokens:,} tokens at {usage.prefill_tok_s:,.1f} tok/s{cached}; "
        f"decode {usage.completion_tokens:,} tokens at {usage.decode_tok_s:,.1f} tok/s{guessed}"
    )


def _talk(
    opened: Opened, settings: Settings, request: Request, asking: Asking, session: Session | None
) -> tuple[int, list[Usage]]:
    """Chat until the user leaves; return 0 and what the answers of the last model took."""
    from freehold.cli.chat.terminal import LineReader, PlainReader

    if session is not None and not session.model:
        session = replace(session, model=opened.model.name)
    chat = Chat(
        opened.model,
        Sessions(settings.home),
        lambda: _renderer(request),
        _tell,
        asking=asking,
        facts=opened.facts,
        system=request.system,
        session=session,
        guard=request.loop_guard,
        switch=opened.switch,
    )
    chat.resumed(lambda message: _show(message, request))
    _tell("/help lists the commands; Ctrl-D leaves")
    if os.environ.get("TERM", "dumb") == "dumb":
        reader = PlainReader()
    else:
        reader = LineReader(settings.home / "history", chat.status, [f"/{name}" for name in COMMANDS])
    chat.run(reader.read)
    if chat.session.messages:
        _tell(f"saved: freehold run --session {chat.session.name} goes on with it")
    return 0, chat.usages


def _show(message: Message, request: Request) -> None:
    """Show a message of a session that goes on, as it was shown before."""
    if message.role == "user":
        _tell(f">>> {message.content}")
        return
    renderer = _renderer(request)
    renderer.feed(message.content)
    renderer.finish()


def _renderer(request: Request, *, data: bool = False) -> Renderer:
    if request.as_json:
        return DataRenderer(lambda text: None)
    if data or not sys.stdout.isatty():
        return DataRenderer(_write)
    colour = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
    if request.plain or not colour:
        return PlainRenderer(_write, colour=colour)
    return StreamRenderer(_write, shutil.get_terminal_size().columns)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _search(sessions: Sessions, text: str, *, as_json: bool) -> int:
    """Print where TEXT was said; 1 when nowhere, as grep does."""
    found = sessions.search(text)
    for match in found:
        if as_json:
            row = {"session": match.session.name, "model": match.session.model, "role": match.role}
            print(json.dumps({**row, "excerpt": match.excerpt}, ensure_ascii=False))
        else:
            print(f"{match.session.name:<20}{match.role}: {match.excerpt}")
    if not found:
        _tell(f"no session says {text!r}")
    return 0 if found else 1
