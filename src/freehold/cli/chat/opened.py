"""The model of a `run`: loaded by this home's server where one runs, otherwise in this process; and its output.

Knows the server, the store, the options about loading, and where text is written; knows no prompt.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self, cast

from freehold.base.config import Settings
from freehold.base.errors import (
    EngineClosed,
    EngineLost,
    FreeholdError,
    ModelNotFound,
    ServerUnreachable,
    UsageError,
)
from freehold.base.serving import ModelInfo
from freehold.base.terminal import Ticking
from freehold.base.types import Message, draft_source, image_budget
from freehold.cli.chat.chat import ModelFacts
from freehold.cli.chat.markdown import DataRenderer, PlainRenderer, Renderer, StreamRenderer
from freehold.cli.chat.pictures import images_of
from freehold.cli.chat.request import RunRequest
from freehold.cli.shared import held_or_fetched
from freehold.outgrow.finding import driven
from freehold.run.store import ModelRef, Store
from freehold.run.store.naming import NamedModel, adapter_of, parted

if TYPE_CHECKING:
    from freehold.cli.chat.documents import TerminalDocuments
    from freehold.cli.chat.tools import TerminalTools
    from freehold.cli.serving.attach import RunningServer
    from freehold.outgrow.finding import EngineChoice
    from freehold.run.local import LLM
    from freehold.serve.http.inside import DeployedLLM
    from freehold.serve.remote.openai import HttpModel


# --- answers go to stdout, through the renderer that fits it, notes to stderr -----------------------


def show(message: Message, request: RunRequest) -> None:
    """Show a message of a session that is continued, as it was shown at first."""
    if message.role == "user":
        pictures = f"[pictures: {count}] " if (count := len(images_of(message))) else ""
        tell(f">>> {pictures}{message.content}")
        return
    shown = renderer(request)
    shown.feed(message.content)
    shown.finish()


def renderer(request: RunRequest, *, data: bool = False) -> Renderer:
    """Return what writes the answer; `data`: it is JSON or of another format, and not Markdown."""
    if request.as_json:
        return DataRenderer(lambda text: None)
    if data or not sys.stdout.isatty():
        return DataRenderer(write)
    colour = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
    if request.plain or not colour:
        return PlainRenderer(write, colour=colour)
    return StreamRenderer(write, shutil.get_terminal_size().columns)


def write(text: str) -> None:
    """Write a part of the answer on stdout."""
    sys.stdout.write(text)
    sys.stdout.flush()


def tell(text: str) -> None:
    """Print a line on stderr."""
    Ticking.make_way()
    print(text, file=sys.stderr, flush=True)


def tell_notes(llm: LLM | HttpModel, seen: int = 0) -> int:
    """Print the model's notes beyond the first `seen`; return how many notes there are."""
    notes = llm.info.notes
    for note in notes[seen:]:
        tell(f"note: {note}")
    return len(notes)


# --- the model: on the server, by another engine, or in this process --------------------------------


class Opened:
    """The model of this run, on the server or in this process; a chat may replace it."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        request: RunRequest,
        name: str,
        tools: TerminalTools | None = None,
        documents: TerminalDocuments | None = None,
    ) -> None:
        """`tools`: what its answers may call; `documents`: what they come from."""
        self._settings, self._store, self._request, self._tools = settings, store, request, tools
        self._documents = documents
        self.model = self._open(name, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.model.close()

    def switch(self, name: str) -> tuple[LLM | HttpModel, ModelFacts]:
        """Open another model, then close this one; if the other cannot be opened, this one stays as it is."""
        request = replace(self._request, draft=None, adapter=None)  # these options are for the first model
        other = self._open(name, request)
        self.model.close()
        self.model, self._request = other, request
        return self.model, self.facts

    @property
    def facts(self) -> ModelFacts:
        """What a chat's status line shows of it."""
        info = self.model.info
        return ModelFacts(info.quantization, info.context, info.can_see, info.can_listen)

    def _open(self, name: str, request: RunRequest) -> LLM | HttpModel:
        with Ticking(f"loading {name}"):
            named = with_adapter(self._store, name, request.adapter)
            llm = (
                attached(self._settings, self._store, named, request)
                or by_engine(self._settings, self._store, named, request)
                or open_llm(self._store, named, request)
            )
        if self._documents is not None:
            from freehold.cli.chat.documents import Documented

            return cast("LLM", Documented(llm, self._documents))
        if self._tools is None:
            return llm
        from freehold.cli.chat.tools import Tooled

        return cast("LLM", Tooled(llm, self._tools))


def with_adapter(store: Store, model: str, adapter: str | None) -> NamedModel:
    """Return MODEL[+ADAPTER] and --adapter as one; both mean the same. Raises UsageError where both name one."""
    named = parted(store, model)
    if adapter is None:
        return named
    if named.adapter:
        raise UsageError(f"{model} and --adapter {adapter} name two adapters", "give one of them")
    name, path = adapter_of(adapter)
    return NamedModel(named.model, name, path)


def attached(settings: Settings, store: Store, named: NamedModel, request: RunRequest) -> HttpModel | None:
    """Return the model on this home's running server; None if it must be loaded here."""
    if request.local or not settings.socket.exists():
        return None
    from freehold.cli.serving.attach import running

    try:
        server = running(settings)
    except ServerUnreachable as e:
        tell(f"note: {e.message}; loading the model in this process")
        return None
    if server is None:
        return None
    attached_model = None
    try:
        own = [option for option in request.own if option != "--adapter"]
        own += ["an adapter's path"] if named.path else []
        if own:
            tell(f"note: {own[0]} needs a model in this process; the running server is not used")
        else:
            attached_model = _served(server, store, named, request)
        return attached_model
    finally:
        if attached_model is None:
            server.api.close()


def _served(server: RunningServer, store: Store, named: NamedModel, request: RunRequest) -> HttpModel | None:
    """Load a model on the server; None if it does not have the model, or is stopping."""
    from freehold.run.formats.lora import unknown_adapter
    from freehold.serve.remote.openai import HttpModel

    started = time.perf_counter()
    adapter, ref = named.adapter, held_or_fetched(store, named.model)
    if adapter and f"{ref.name}+{adapter}" not in (names := server.names()):
        beside = f"{ref.name}+"
        raise unknown_adapter(
            ref.name, adapter, [n.removeprefix(beside) for n in names if n.startswith(beside)]
        )
    if not _is_server_s(server, store, ref):
        tell(f"note: the running server does not have {ref.name}; loading it in this process")
        return None
    try:
        with Ticking(f"the server loads {ref.name}"):
            info = server.load(ref.name).info
    except EngineClosed:
        return None
    if info is None:  # unloaded again at once
        return None
    parameters = ref.overlay.read.sampling if ref.overlay else {}
    sampling = replace(info.default_sampling, **parameters)  # type: ignore[arg-type]
    info = replace(info, load_s=time.perf_counter() - started, default_sampling=sampling)
    if server.note:
        tell(f"note: {server.note}")
    _tell_facts(info, request, f", on the server at {server.greeting.url}")
    return HttpModel(server.api, f"{ref.name}+{adapter}" if adapter else ref.name, info)


def _is_server_s(server: RunningServer, store: Store, ref: ModelRef) -> bool:
    """Return whether the server has the same file under the model's name."""
    if ref.name not in server.names():
        return False
    try:
        return ref.owner != "user" or store.resolve(ref.name).path == ref.path
    except FreeholdError:
        return False


def by_engine(settings: Settings, store: Store, named: NamedModel, request: RunRequest) -> HttpModel | None:
    """Start another engine with MODEL, if one was asked for or is predicted to be faster; None: ours computes."""
    if request.engine == "freehold" or (request.engine == "auto" and not driven()):
        return None
    from freehold.cli.serving.engines import OURS, EngineWish, engine_for, told

    if named.adapter and not named.path:
        return None
    own = next((o for o in request.own if o not in ("--engine", "--context")), "")
    own = own or ("--adapter" if named.path else "")
    ref = held_or_fetched(store, named.model)
    choice = engine_for(settings, ref, EngineWish(request.engine, request.context, own))
    for line in told(choice, request.engine):
        tell(line)
    if choice.engine == OURS:
        return None
    llm = _started(settings, ref, choice, request.context)
    _tell_facts(llm.info, request, f", by {choice.engine}")
    return llm


def _started(settings: Settings, ref: ModelRef, choice: EngineChoice, context: int | None) -> DeployedLLM:
    """Start another engine with a stored model; it ends with the model. Raises EngineLost with the way back to ours."""
    from freehold.cli.deploying.running import progress
    from freehold.cli.progress import StatusLine
    from freehold.outgrow.options import DeployOptions
    from freehold.outgrow.planning.options import planned
    from freehold.serve.http.inside import DeployedLLM

    options = DeployOptions(str(ref.path), ref.name, choice.engine, context=context or 0)
    plan = planned(settings, options, start=True)
    try:
        with StatusLine("the engine has ended") as line:
            return DeployedLLM(settings, options, plan, lambda row: line.show(progress(row)))
    except EngineLost as e:
        raise EngineLost(e.message, "--engine freehold runs on the CPU") from e


def open_llm(store: Store, named: NamedModel, request: RunRequest) -> LLM:
    """Load MODEL in this process; fetch it first if necessary."""
    base, name, path = named.model, named.adapter, named.path
    if name and not path:
        raise ModelNotFound(
            f"there is no adapter at {name}, and the model is loaded in this process",
            f"freehold run {base}+PATH, or --adapter PATH; freehold serve {base} --adapter {name}=PATH keeps one",
        )
    with Ticking(f"loading {base}"):
        from freehold.run.local import open_shown

        ref = held_or_fetched(store, base)
        drafter, head = draft_source(request.draft)
        draft = held_or_fetched(store, drafter) if drafter else None
    llm = open_shown(
        ref,
        context=request.context,
        kv_type=request.kv_type,
        speculate=request.speculate,
        draft=draft,
        head=head,
        adapters={name: path} if path else None,
        threads=request.threads,
        allow_paging=request.allow_paging,
        eyes=request.eyes,
        image_tokens=image_budget(request.image_tokens) if request.image_tokens else None,
        packs=store.packs if request.pack else None,
    )
    llm.adapters.default = name
    _tell_facts(llm.info, request)
    return llm


def _tell_facts(info: ModelInfo, request: RunRequest, where: str = "") -> None:
    """Print the context and the reason for it, and where the model is if not in this process."""
    cut = (
        request.context is None and info.context < info.trained_context
    )  # a reduced context is always reported
    if request.verbose or cut or sys.stderr.isatty():
        tell(
            " ".join(p for p in (info.name, info.quantization) if p)
            + f": context {info.context:,} tokens ({info.context_note}){where}"
        )
    if request.verbose:
        tell(f"loaded in {info.load_s:.2f} s, {info.threads} threads")
