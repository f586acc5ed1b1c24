"""Tools of a `run`: a model whose answers may call them, each call asked about in the terminal.

The tools run in a loop of a thread of their own; questions come to the thread that reads the terminal, and Ctrl-C
there ends the call. Knows the terminal and the loop of answers and calls; knows no protocol.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import select
import shutil
import sys
import termios
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.terminal import Ticking
from freehold.base.types import Chunk, Image, Message, Tool, ToolCall
from freehold.cli.chat.pictures import installed_seeing, tool_pictures
from freehold.serve.chats.types import (
    ASK_S,
    MAX_ROUNDS,
    ToolAnswer,
    ToolQuestion,
    ToolResult,
    ToolRunner,
    ToolStep,
    ToolVerdict,
)
from freehold.serve.tools.mcp.use import RunTools, ToolServers, visible, visible_json
from freehold.serve.tools.misread import MISREAD, CallText, asked_again
from freehold.serve.tools.own import (
    JoinedRunner,
    OwnRunner,
    OwnTools,
    chat_folder,
    checked_pattern,
    own_tools,
    tools_of_chat,
)
from freehold.serve.tools.pictures import tool_message

T = TypeVar("T")
CHOICES: dict[str, ToolVerdict] = {"o": "once", "c": "chat", "a": "always"}
_SHOWN = 400  # characters of a result


class TerminalTools:
    """The servers that --mcp names and the tools of `own` (--tool), running while this is open.

    `chat`: its name; "" for one that is not saved, whose files of the tool python go with it.
    """

    def __init__(
        self,
        settings: Settings,
        names: Sequence[str],
        chat: str,
        *,
        own: Sequence[str] = (),
        allow: Sequence[str] = (),
    ) -> None:
        self._unsaved = "" if chat else secrets.token_hex(8)
        chat = chat or self._unsaved
        self._allow = own_patterns(allow)
        self._own = open_own(settings, own, chat) if own else None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="freehold-tools", daemon=True)
        self._thread.start()
        self._servers = ToolServers(lambda: settings.mcp, settings.home)
        self._names, self._chat = names, chat
        self._desk = TerminalDesk()
        self._settings = settings
        self._seeing: tuple[str, ...] | None = None  # once it is known
        self._runner = self._new_runner()
        self.offered: list[Tool] = []
        self.made: list[Message] = []  # turns between the last question and its last answer
        self.heard: Callable[[Message], None] = lambda _: None  # is given each of them as it is made

    def open(self) -> None:
        """Start the servers. Raises FreeholdErrors that name the one at fault."""
        self.offered = list(self._wait(self._runner.offer()))

    def begin(self) -> None:
        """Begin an answer, which has calls of its own to spend."""
        self._runner = self._new_runner()
        self.made = []
        self.open()

    def add(self, turn: Message) -> None:
        """Keep an answer with calls, or the result of one."""
        self.made.append(turn)
        self.heard(turn)

    def server_of(self, name: str) -> str:
        """Return the server of a tool, by the name that the model sees; "" for another name."""
        return self._runner.server_of(name)

    def seeing(self) -> tuple[str, ...]:
        """Return installed models that see, for a sentence to one that does not."""
        if self._seeing is None:
            from freehold.run.store import Store

            self._seeing = installed_seeing(Store(self._settings))
        return self._seeing

    def use(self, call: ToolCall) -> ToolResult:
        """Ask, and run a call. KeyboardInterrupt ends it."""
        try:
            return self._wait(self._runner.use(call, self._desk))
        finally:
            self._desk.rest()

    def close(self) -> None:
        """End the servers, and the interpreter."""
        self._wait(self._servers.close())
        if self._own is not None:
            self._own.close()
            if self._unsaved:
                shutil.rmtree(chat_folder(self._settings.home, self._unsaved), ignore_errors=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _new_runner(self) -> ToolRunner:
        servers = RunTools(self._servers, self._names, key="", chat=self._chat, keep=True)
        if self._own is None:
            return servers
        own = OwnRunner(self._own, self._settings.home, self._chat, self._allow)
        return JoinedRunner([servers, own]) if self._names else own

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work in the loop, and ask the user what it asks meanwhile."""
        done = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.add_done_callback(lambda _: self._desk.asked.put(None))
        try:
            while not done.done():
                if (pending := self._desk.asked.get()) is not None:
                    question, answer = pending
                    answer.set_result(answered(question))
            return done.result()
        except KeyboardInterrupt:
            done.cancel()
            raise


def open_own(settings: Settings, names: Sequence[str], chat: str) -> OwnTools:
    """Return Freehold's own tools for a chat. Raises UsageError for one that does not exist, or cannot be confined."""
    named = own_tools(names)
    collections = [each.value for each in named if each.kind == "documents"]
    search = document_search(settings, collections) if collections else None
    tools = tools_of_chat(named, settings.home, chat, offline=settings.offline, search=search)
    tools.check()
    return tools


def own_patterns(allow: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns of --allow. Raises UsageError."""
    return tuple(checked_pattern(each) for each in allow)


def document_search(settings: Settings, names: Sequence[str]) -> Callable[[str, str, int], str]:
    """Return a search in collections by their names, which gives numbered passages. Raises UsageError for others."""
    from freehold.serve.documents.citing import numbered
    from freehold.serve.documents.collection import search
    from freehold.serve.documents.local import open_collection

    for name in names:
        open_collection(settings.home, name).close()

    def passages(name: str, text: str, limit: int) -> str:
        collection = open_collection(settings.home, name)
        try:
            rows = [numbered(n, each) for n, each in enumerate(search(collection, text, limit), 1)]
        finally:
            collection.close()
        return "\n\n".join(rows) or "[no passage matches]"

    return passages


class TerminalDesk:
    """Implements chats.types.ToolDesk: questions wait in `asked` for the thread that has the terminal."""

    def __init__(self) -> None:
        self.asked: queue.SimpleQueue[tuple[ToolQuestion, Future[ToolAnswer]] | None] = queue.SimpleQueue()
        self._line = Ticking()  # of the call that runs

    async def ask(self, question: ToolQuestion) -> ToolAnswer:
        """Hand the question over and wait."""
        answer: Future[ToolAnswer] = Future()
        self.asked.put((question, answer))
        return await asyncio.wrap_future(answer)

    def say(self, step: ToolStep) -> None:
        """Print the state of a call."""
        name = visible(f"{step.server}: {step.tool}", lines=False)
        self.rest()
        if step.state == "running":
            _tell(f"[{name} runs]")
            self._line = Ticking(f"{name} runs")
            return self._line.start()
        excerpt = visible((step.result or "")[:_SHOWN], lines=False)
        more = " ..." if len(step.result or "") > _SHOWN else ""
        return _tell(f"[{name} {step.state}: {excerpt}{more}]")

    def rest(self) -> None:
        """Take the line of a running call away."""
        self._line.close()


def answered(question: ToolQuestion) -> ToolAnswer:
    """Show a question and return the user's answer; anything but o, c or a denies, and so does silence."""
    if sys.stdin is None or not sys.stdin.isatty():
        return ToolAnswer(verdict="deny", word="there is no terminal to ask in")
    for line in _lines(question):
        _tell(line)
    termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before the question does not answer it
    print("Allow? [N]o, [o]nce, for this [c]hat, [a]lways: ", end="", file=sys.stderr, flush=True)
    if not select.select([sys.stdin], [], [], ASK_S)[0]:
        _tell(f"\nno answer in {ASK_S / 60:.0f} minutes: no")
        return ToolAnswer(verdict="deny", word=f"no answer came in {ASK_S / 60:.0f} minutes")
    reply = sys.stdin.readline().strip()
    verdict = CHOICES.get(reply[:1].lower()) if reply.lower() in _WORDS else None
    if verdict is None:
        return ToolAnswer(verdict="deny", word="" if reply.lower() in ("", "n", "no") else reply)
    return ToolAnswer(verdict=verdict)


_WORDS = frozenset({"o", "once", "c", "chat", "a", "always"})


def _lines(question: ToolQuestion) -> Iterator[str]:
    name = visible(f"{question.server}: {question.tool}", lines=False)
    yield f"\nThe model wants to call {name} with"
    yield visible_json(question.arguments)
    claims = question.claims
    yield "The tool's description:"
    for line in visible(str(claims.get("description", "")))[:2000].split("\n"):
        yield f"  | {line}"  # no line of it can pass for one of ours
    for hint, value in (claims.get("annotations") or {}).items():
        yield f"  | {visible(f'{hint}: {value}', lines=False)[:200]}"
    if question.changed:
        yield "It has changed since you allowed it. Before:"
        yield visible(question.changed["before"])
        yield "Now:"
        yield visible(question.changed["after"])


class Tooled:
    """A ChatModel whose answers may call tools; all that is not `stream` is the model's."""

    def __init__(self, model: Any, tools: TerminalTools) -> None:
        self._model, self._tools = model, tools

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[Chunk]:
        """Yield the chunks of all answers, up to the first without calls. Raises UsageError after MAX_ROUNDS.

        A call that cannot be parsed is not yielded as the answer: the model answers once more, and then without tools.
        """
        tools = self._tools
        tools.begin()
        misread: list[Message] = []  # turns about calls that could not be read; no chat keeps them
        for _ in range(MAX_ROUNDS):
            message, calls = Message("assistant", ""), list[ToolCall]()
            offered = tools.offered if len(misread) < 2 * MISREAD else []
            text = CallText(tool.name for tool in tools.offered)
            chat = (*messages, *tools.made, *misread)
            chat = tool_pictures(chat, self._model.info.can_see, tools.seeing)
            for chunk in self._model.stream(chat, tools=offered, **options):
                for piece in chunk.tool_calls:
                    piece.join(calls)
                message = replace(
                    message, content=message.content + chunk.text, thinking=message.thinking + chunk.thinking
                )
                shown = text.shown(chunk.text, ended=chunk.finish_reason is not None)
                again = chunk.finish_reason == "tool_calls" or (text.is_call and not calls)
                yield replace(chunk, text=shown, finish_reason=None if again else chunk.finish_reason)
            if calls:
                tools.add(replace(message, tool_calls=tuple(calls)))
                for call in calls:
                    tools.add(self._result(call))
            elif text.is_call and not offered:
                raise UsageError(
                    "the model writes calls that cannot be read", "use a larger model, or leave --mcp out"
                )
            elif text.is_call:
                then = "it is asked once more" if not misread else "it answers without tools"
                _tell(f"[the model wrote a call that cannot be read; {then}]")
                misread += asked_again(message.content)
            else:
                return
        raise UsageError(
            f"this answer called tools in {MAX_ROUNDS} rounds, the limit",
            "ask for one thing at a time, or use a larger model",
        )

    def _result(self, call: ToolCall) -> Message:
        result = self._tools.use(call)
        images = [Image.at(url) for url in result.images]
        return tool_message(result.content, call.id, call.name, images, failed=result.failed)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
