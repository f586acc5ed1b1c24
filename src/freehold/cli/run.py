"""`freehold run [MODEL] [PROMPT...]`: one answer, or a chat in the terminal.

Knows options, streams and exit codes; chat/ has the chat. A running server answers with its model; otherwise, and with
--local, the model is loaded in this process. Both give the same answers.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.machine import Crowd
from freehold.base.terminal import Ticking
from freehold.base.types import MAX_SEED, Audio, Chunk, Image, Message, Usage
from freehold.cli.chat.answer import (
    AnswerSettings,
    LoopGuard,
    StreamedAnswer,
    Waiting,
    as_json,
    speeds,
    stop,
    warnings,
)
from freehold.cli.chat.chat import COMMANDS, Chat
from freehold.cli.chat.markdown import Renderer
from freehold.cli.chat.opened import Opened, renderer, show, tell, tell_notes, write
from freehold.cli.chat.pictures import UNSAVED, check_hears, check_sees, tool_pictures, with_images
from freehold.cli.chat.request import (
    LOADING,
    RunRequest,
    check,
    check_terminal,
    joined,
    read_stdin,
    split_words,
)
from freehold.cli.chat.sessions import ChatSession, Sessions, unknown_server
from freehold.cli.chat.starter import default_model
from freehold.cli.helping import section
from freehold.cli.options import SAMPLING, chosen, read_format, sampling_options, setting_options
from freehold.cli.serving.options import checked_eyes, eyes_options
from freehold.cli.shared import (
    draft_option,
    engine_option,
    kv_option,
    offline_option,
    paging_option,
    speculate_option,
    with_offline,
)
from freehold.run.store import Store

if TYPE_CHECKING:
    from freehold.cli.chat.documents import TerminalDocuments
    from freehold.cli.chat.tools import TerminalTools
    from freehold.run.local import LLM
    from freehold.serve.remote.openai import HttpModel


@click.command("run")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]...")
@section("The answer")
@setting_options(RunRequest, "system")
@setting_options(RunRequest, "image", "sound")
@setting_options(AnswerSettings, "max_tokens", "stop")
@setting_options(RunRequest, "logprobs")
@setting_options(AnswerSettings, "think", "overflow")
@click.option(
    "--format",
    metavar="json|FILE",
    help="Constrain the answer to JSON, to FILE's JSON schema or to FILE.lark's grammar.",
)
@setting_options(RunRequest, "loop_guard", "raw")
@section("Sampling")
@sampling_options
@section("Loading the model")
@setting_options(RunRequest, "context")
@kv_option
@draft_option
@speculate_option
@paging_option
@setting_options(RunRequest, "pack", "adapter", "threads")
@eyes_options
@engine_option
@setting_options(RunRequest, "local")
@section("Chats and tools")
@setting_options(RunRequest, "continued", "session")
@click.option("--search", metavar="TEXT", help="Search saved sessions for TEXT; loads no model.")
@setting_options(RunRequest, "docs", "mcp", "tool", "allow")
@section("Output and network")
@setting_options(RunRequest, "plain", "as_json", "verbose")
@offline_option
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], **options: Any) -> None:
    """Answer PROMPT, or start a chat in the terminal if there is none.

    The first word is MODEL if it names a model: a short name, a file, org/repo[:quant] or a URL. Otherwise it
    belongs to the prompt, and the default model answers. A model that is not installed is downloaded first.
    MODEL+ADAPTER adds a LoRA adapter, here and in every command: a path, or the name of an adapter on the running
    server.

    Text from stdin goes before the prompt, separated by a blank line. Only the answer goes to stdout.

    If `freehold serve` is running, the server answers, and loads the model if necessary. With --local, or with an
    option that changes how a model is loaded (--context, --kv-type, --draft, --no-speculation, --adapter,
    --threads, --eyes, --image-tokens, --engine), this command loads the model itself.

    If there is a GPU with an engine for it, and that engine is predicted to be faster, it answers, and the reason
    is printed. --engine freehold forces the CPU.
    """
    settings: Settings = with_offline(ctx.obj, options.pop("offline"))
    if (text := options.pop("search")) is not None:
        ctx.exit(_search(Sessions(settings.home), text, as_json=options["as_json"]))
    answers = AnswerSettings(
        max_tokens=options.pop("max_tokens"),
        stop=tuple(options.pop("stop")),
        think=options.pop("think"),
        overflow=options.pop("overflow"),
        format=read_format(options.pop("format")),
    )
    options["eyes"] = checked_eyes(options["eyes"] or settings.eyes)
    options["image_tokens"] = options["image_tokens"] or settings.image_tokens
    names = RunRequest.__dataclass_fields__.keys() - {"own"}
    source = click.core.ParameterSource.COMMANDLINE
    own = tuple(option for name, option in LOADING.items() if ctx.get_parameter_source(name) is source)
    request = RunRequest(own=own, **{name: options[name] for name in names})
    sampling = {name: value for name, value in options.items() if name not in names}
    check(request, answers)
    ctx.exit(_run(settings, words, request, answers, sampling))


def _run(
    settings: Settings,
    words: tuple[str, ...],
    request: RunRequest,
    answers: AnswerSettings,
    sampling: dict[str, Any],
) -> int:
    images = (
        *map(Image.open, request.image),
        *map(Audio.open, request.sound),
    )  # a wrong file is refused before a model is loaded
    session = _session(Sessions(settings.home), request)
    store = Store(settings)
    model, prompt = split_words(words, store, lambda: (session and session.model) or default_model(settings))
    from_stdin = read_stdin()
    talking = not (from_stdin or prompt) and sys.stdin is not None and sys.stdin.isatty()
    if talking:
        check_terminal(request)
    else:
        prompt = joined(from_stdin, prompt)
    bias = sampling.pop("logit_bias")
    chosen(answers.sampling, sampling, bias)  # a wrong value is refused before a model is loaded
    with (
        _documents(settings, request) as documents,
        _tools(settings, request, session) as tools,
        Opened(settings, store, request, model, tools, documents) as opened,
    ):
        llm = opened.model
        answers.sampling = chosen(llm.info.default_sampling, sampling, bias)
        llm.check_think(answers.think)
        if request.image:
            check_sees(llm.name, llm.info.can_see)
        if request.sound:
            check_hears(llm.name, llm.info.can_listen)
        notes, crowd = tell_notes(llm), Crowd()
        if talking:
            status, usages = _talk(opened, settings, request, answers, session, tools, images)
        else:
            message = with_images(images, prompt)
            if request.sound and session is not None:
                tell(UNSAVED)
            status, usages = _answer(llm, settings, request, answers, session, message, tools, documents)
        _learn(opened.model, settings, request, usages, crowd)
    tell_notes(llm, notes)  # those that came up meanwhile
    return status


@contextmanager
def _documents(settings: Settings, request: RunRequest) -> Iterator[TerminalDocuments | None]:
    """Open the collections that --docs names."""
    if not request.docs:
        yield None
        return
    from freehold.cli.chat.documents import TerminalDocuments

    with closing(TerminalDocuments(settings, request.docs)) as documents:
        yield documents


@contextmanager
def _tools(
    settings: Settings, request: RunRequest, session: ChatSession | None
) -> Iterator[TerminalTools | None]:
    """Start the servers that --mcp names and the tools that --tool names, and end them."""
    if not request.mcp and not request.tool:
        yield None
        return
    from freehold.cli.chat.tools import TerminalTools

    chat = session.name if session else ""
    tools = TerminalTools(settings, request.mcp, chat, own=request.tool, allow=request.allow)
    try:
        with Ticking(f"starting the tools of {', '.join((*request.mcp, *request.tool))}"):
            tools.open()
        yield tools
    finally:
        tools.close()


def _session(sessions: Sessions, request: RunRequest) -> ChatSession | None:
    if request.continued:
        return sessions.latest()
    if request.session is None:
        return None
    if sessions.exists(request.session):
        return sessions.load(request.session)
    return ChatSession(request.session)


def _answer(
    llm: LLM | HttpModel,
    settings: Settings,
    request: RunRequest,
    answers: AnswerSettings,
    session: ChatSession | None,
    prompt: Message,
    tools: TerminalTools | None,
    documents: TerminalDocuments | None = None,
) -> tuple[int, list[Usage]]:
    """Print one answer; return 0, or 130 after Ctrl-C, and the usage."""
    if answers.sampling.seed is None:
        answers.sampling = replace(answers.sampling, seed=secrets.randbelow(MAX_SEED))
    session = session and session.answered()
    messages = _messages(session, request.system, prompt)
    answer = StreamedAnswer(guard=LoopGuard() if request.loop_guard else None)
    with Waiting(silent=request.as_json) as waiting:
        if request.raw:
            stream = llm.stream_text(
                prompt.content,
                max_tokens=answers.max_tokens,
                sampling=answers.sampling,
                stop=answers.stop,
                logprobs=request.logprobs,
                format=answers.format,
                on_prefill=waiting,
            )
        else:
            options = answers.stream_options()
            chat = tool_pictures(messages, llm.info.can_see, tools.seeing if tools else tuple)
            stream = llm.stream(chat, logprobs=request.logprobs, **options, on_prefill=waiting)
        _collect(stream, answer, renderer(request, data=answers.format is not None), waiting)
    info = llm.info
    warned = warnings(info, answer, answers)
    if request.as_json:
        whole = as_json(info, answer, answers, [*info.notes, *warned])
        if documents is not None and documents.last is not None:
            whole["documents"] = documents.last.shown()
        write(json.dumps(whole, ensure_ascii=False) + "\n")
    for line in warned:
        tell(f"warning: {line}")
    if request.verbose and answer.usage:
        tell(speeds(answer))
    if session is not None and answer.text:
        earlier, server_of = (tools.made, tools.server_of) if tools else ([], unknown_server)
        before = "".join(m.content for m in earlier if m.role == "assistant")
        thought = "".join(m.thinking for m in earlier if m.role == "assistant")
        final = Message("assistant", answer.text[len(before) :], answer.thinking[len(thought) :])
        session = replace(session, model=llm.name, messages=(*messages, *earlier, final))
        Sessions(settings.home).save(session, server_of)
    return (130, []) if answer.stopped else (0, [answer.usage] if answer.usage else [])


def _learn(
    llm: LLM | HttpModel, settings: Settings, request: RunRequest, usages: list[Usage], crowd: Crowd
) -> None:
    """Store the timings of answers that were computed as `freehold fit` predicts: here, without options."""
    plain = not (request.draft or request.adapter or request.threads) and request.kv_type == "f16"
    path = llm.path
    if usages and plain and path is not None:
        from freehold.choose.advisor.learning import learn

        learn(settings.home, path, usages, crowd.share(), llm.info.quantization)


def _messages(session: ChatSession | None, system: str, prompt: Message) -> tuple[Message, ...]:
    before = session.messages if session else ()
    if system:
        before = (Message("system", system), *(m for m in before if m.role != "system"))
    return (*before, prompt)


def _collect(stream: Iterator[Chunk], answer: StreamedAnswer, renderer: Renderer, waiting: Waiting) -> None:
    """Show an answer as it arrives; Ctrl-C and the loop guard stop it."""
    try:
        for chunk in stream:
            if answer.shown(chunk, renderer, waiting):
                break
    except KeyboardInterrupt:
        answer.stopped = True
    stop(stream)
    renderer.finish()


def _talk(
    opened: Opened,
    settings: Settings,
    request: RunRequest,
    answers: AnswerSettings,
    session: ChatSession | None,
    tools: TerminalTools | None,
    images: Sequence[Image | Audio],
) -> tuple[int, list[Usage]]:
    """Chat until the user leaves; return 0 and the usages of the last model's answers."""
    from freehold.cli.chat.terminal import LineReader, PlainReader

    if session is not None and not session.model:
        session = replace(session, model=opened.model.name)
    chat = Chat(
        opened.model,
        Sessions(settings.home),
        lambda: renderer(request),
        tell,
        answers=answers,
        facts=opened.facts,
        system=request.system,
        session=session,
        guard=request.loop_guard,
        switch=opened.switch,
        keep=lambda name, system: _kept(opened, settings, answers, name, system),
        tools=tools,
    )
    for path, image in zip((*request.image, *request.sound), images, strict=True):
        chat.attach(path, image)
    chat.resumed(lambda message: show(message, request))
    tell("/help lists the commands; Ctrl-D leaves")
    if os.environ.get("TERM", "dumb") == "dumb":
        reader = PlainReader()
    else:
        reader = LineReader(settings.home / "history", chat.status, [f"/{name}" for name in COMMANDS])
    chat.run(reader.read)
    chat.close()
    if chat.session.id:
        tell(f"saved: freehold run --session {chat.session.name} continues it")
    return 0, chat.usages


def _kept(opened: Opened, settings: Settings, answers: AnswerSettings, name: str, system: str) -> str:
    """Make a model of the present one, its system prompt and what differs from its own settings; return its name."""
    from freehold.cli.create import parameters_of
    from freehold.run.store.create import Recipe, make

    own, now = opened.model.info.default_sampling, answers.sampling
    changed = {name: getattr(now, name) for name in SAMPLING if getattr(now, name) != getattr(own, name)}
    limits = {"num_predict": answers.max_tokens, "stop": list(answers.stop) or None}
    options = parameters_of(changed) | {key: value for key, value in limits.items() if value is not None}
    recipe = Recipe(base=opened.model.name, system=system or None, parameters=options)
    return make(Store(settings), name, recipe, lambda _: None).name


def _search(sessions: Sessions, text: str, *, as_json: bool) -> int:
    """Print the messages with TEXT; return 1 if there are none, as grep does."""
    matches = sessions.search(text)
    for match in matches:
        if as_json:
            row = {"session": match.session.name, "model": match.session.model, "role": match.role}
            print(json.dumps({**row, "excerpt": match.excerpt}, ensure_ascii=False))
        else:
            print(f"{match.session.name:<20}{match.role}: {match.excerpt}")
    if not matches:
        tell(f"no session contains {text!r}")
    return 0 if matches else 1
