"""A model that follows a script, in this process or behind OpenAI's contract, and a run of it in a folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from freehold.base.types import Chunk, Message, ToolPiece, Usage
from freehold.serve.agent.journal import AgentJournal, Tree, TreeStore
from freehold.serve.agent.loop import AgentBudget, AgentEnd, AgentLoop, AgentOptions, begin
from freehold.serve.agent.permits import AgentQuestion, AgentReply
from freehold.serve.tools.own import OwnTools


@dataclass(frozen=True)
class Turn:
    """What the model writes at a step: words, calls."""

    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


def say(text: str) -> Turn:
    return Turn(text)


def act(name: str, words: str = "", /, **arguments: Any) -> Turn:
    return Turn(words, ((name, arguments),))


Script = Sequence[Turn] | Callable[[Sequence[Message]], Turn]


class ScriptedAgent:
    """A ChatModel. The number of its answers in a chat says which turn comes; tokens are words of four characters.

    A prompt's cached tokens are those that it shares, from its beginning on, with the last prompt and its answer.
    """

    name = "scripted"

    def __init__(self, script: Script) -> None:
        self._script = script
        self.prompts: list[str] = []
        self._cached = ""

    def turn(self, messages: Sequence[Message]) -> Turn:
        if callable(self._script):
            return self._script(messages)
        count = sum(message.role == "assistant" for message in messages)
        return self._script[count] if count < len(self._script) else say("Done.")

    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[Chunk]:
        offers = json.dumps([[t.name, t.description, dict(t.parameters)] for t in options.get("tools", ())])
        prompt = offers + "".join(map(rendered, messages))
        shared = next((i for i, (a, b) in enumerate(zip(prompt, self._cached, strict=False)) if a != b), None)
        shared = min(len(prompt), len(self._cached)) if shared is None else shared
        turn = self.turn(messages)
        answer = turn.text + json.dumps(turn.calls)
        self.prompts.append(prompt)
        self._cached = prompt + rendered(Message("assistant", turn.text, tool_calls=calls_of(turn)))
        yield Chunk(text=turn.text)
        for i, call in enumerate(calls_of(turn)):
            yield Chunk(tool_calls=(ToolPiece(i, call.id, call.name, call.arguments),))
        usage = Usage(len(prompt) // 4, len(answer) // 4, shared // 4)
        yield Chunk(finish_reason="tool_calls" if turn.calls else "stop", usage=usage)


def calls_of(turn: Turn) -> tuple[Any, ...]:
    from freehold.base.types import ToolCall

    return tuple(
        ToolCall(f"x{i}", name, json.dumps(arguments)) for i, (name, arguments) in enumerate(turn.calls)
    )


def rendered(message: Message) -> str:
    calls = "".join(f"<call>{call.name} {call.arguments}" for call in message.tool_calls)
    return f"<{message.role}>{message.content}{calls}"


@dataclass
class AgentWorld:
    """A folder, a home, and runs in them."""

    home: Path
    folder: Path
    questions: list[AgentQuestion] = field(default_factory=list)
    replies: list[AgentReply] = field(default_factory=list)  # in turn; then no
    journals: list[AgentJournal] = field(default_factory=list)
    opened: list[OwnTools] = field(default_factory=list)
    passage: str = ""  # what a search in documents returns

    def make(self, files: dict[str, str]) -> Tree:
        """Make files, and return the tree."""
        for path, text in files.items():
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        return self.tree()

    def tree(self) -> Tree:
        blobs = self.home / "looked-at"
        blobs.mkdir(parents=True, exist_ok=True)
        return TreeStore(self.folder, blobs).scan()

    def ask(self, question: AgentQuestion) -> AgentReply:
        self.questions.append(question)
        return self.replies.pop(0) if self.replies else AgentReply("deny")

    def tools(
        self, journal: AgentJournal, words: Sequence[str] = ("files",), folder: Path | None = None
    ) -> OwnTools:
        scratch = journal.path / "scratch"
        scratch.mkdir(exist_ok=True)
        place = folder or self.folder
        tools = OwnTools(
            scratch=scratch,
            folder=place,
            python=place if "python" in words else None,
            shell=place if "shell" in words else None,
            seen_at=str(self.folder),
            hosts=("localhost:9",) if "fetch" in words else (),
            collections=("notes",) if "documents" in words else (),
            search=lambda name, text, limit: self.passage,
        )
        self.opened.append(tools)
        return tools

    def begin(self, task: str, words: Sequence[str] = ("files",), allow: Sequence[str] = ()) -> AgentJournal:
        journal = AgentJournal.create(self.home)
        self.journals.append(journal)
        begin(journal, self.folder, task, model="scripted", tools=words, budget="10m", allow=allow)
        return journal

    def loop(
        self, model: Any, journal: AgentJournal, *, budget: str = "10m", window: int = 32_768
    ) -> AgentLoop:
        tools = self.tools(journal, journal.lines[0].tools)
        return AgentLoop(model, tools, journal, AgentBudget.of(budget), AgentOptions(window), self.ask)

    def run(
        self,
        script: Script,
        task: str = "Do it.",
        *,
        words: Sequence[str] = ("files",),
        allow: Sequence[str] = (),
        budget: str = "10m",
        window: int = 32_768,
    ) -> tuple[AgentEnd, AgentJournal]:
        """Run a script to its end."""
        journal = self.begin(task, words, allow)
        loop = self.loop(ScriptedAgent(script), journal, budget=budget, window=window)
        try:
            return loop.run(), journal
        finally:
            journal.close()


class ScriptedServer:
    """A ScriptedAgent behind POST /v1/chat/completions, streamed as OpenAI streams."""

    def __init__(self, script: Script) -> None:
        self.model = ScriptedAgent(script)
        self.requests: list[dict[str, Any]] = []
        self.free = 1 << 30  # so many requests are answered at once; the next ones wait for the gate
        self.gate = threading.Event()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                served.requests.append(body)
                if len(served.requests) > served.free:
                    served.gate.wait(60)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for event in served.events(body):
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        messages = [_message(each) for each in body["messages"]]
        for chunk in self.model.stream(messages):
            delta: dict[str, Any] = {"content": chunk.text} if chunk.text else {}
            if chunk.tool_calls:
                calls = [
                    {"index": p.index, "id": p.id, "function": {"name": p.name, "arguments": p.arguments}}
                    for p in chunk.tool_calls
                ]
                delta["tool_calls"] = calls
            yield {"choices": [{"delta": delta, "finish_reason": chunk.finish_reason}]}
            if chunk.usage:
                u = chunk.usage
                counts = {"prompt_tokens": u.prompt_tokens, "completion_tokens": u.completion_tokens}
                details = {"prompt_tokens_details": {"cached_tokens": u.cached_tokens}}
                yield {"choices": [], "usage": {**counts, **details}}


def _message(plain: dict[str, Any]) -> Message:
    return Message(plain["role"], plain.get("content") or "", name=plain.get("name", ""))
