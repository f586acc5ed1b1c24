"""The items of a response while they are made: chunks open, extend and close them, and each change is an event.

A whole answer goes the same way and leaves the events unread, so it holds the items that a stream announces. Items of
MCP servers come before the model's own. Knows the API's items and events; knows no job and no bytes.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Chunk, Image, SignedThinking, TokenLogprob, Tool, ToolCall, ToolPiece
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.computing import Fit, without_unseen
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.core.tools import run_tools
from freehold.serve.http.openai.chat import chat_logprobs
from freehold.serve.http.openai.fields.offers import input_of
from freehold.serve.http.openai.responses.fields import McpTool, sealed, wanted

if TYPE_CHECKING:
    from freehold.serve.chats.types import ToolAnswer, ToolQuestion, ToolStep
    from freehold.serve.tools.mcp.permissions import PinnedTool
    from freehold.serve.tools.mcp.use import RunTools


Event = dict[str, Any]  # `type` and what belongs to it; the shape numbers them
Annotate = Callable[[str], list[dict[str, Any]]]


BuiltIn = Callable[[int, str, str], "CallOutput"]  # makes an item of its index, the call's id and its tool


@dataclass(frozen=True, slots=True)
class RanChunk(Chunk):
    """Not of a model: a tool of this server begins a call (`ran` None), or has run it."""

    number: int = 0  # of the call, among those that the server runs
    ran: Mapping[str, Any] | None = None


NOT_RUN = {"status": "incomplete", "text": "[not run]"}


class Output:
    """All items of one answer. `custom`: names of free-form tools; `summarize`: reasoning goes by its summary.

    `mcp`: the tools whose calls need an approval, and the items that come before the model's own. `annotate`: returns
    the annotations of a text. `built_in`: by name, the items of calls of built-in tools.
    """

    def __init__(
        self,
        *,
        custom: frozenset[str],
        summarize: bool,
        mcp: McpTools | None = None,
        annotate: Annotate | None = None,
        built_in: Mapping[str, BuiltIn] | None = None,
    ) -> None:
        self._built_in = built_in or {}
        self._runs: list[CallOutput] = []  # calls that the server runs
        self._custom, self._summarize, self._annotate = custom, summarize, annotate
        self._pinned = mcp.pinned if mcp else {}
        self._items: list[Item] = [DoneOutput(i, item) for i, item in enumerate(mcp.first if mcp else ())]
        self._shown = 0  # of those, announced
        self._before = len(self._items)
        self._open: Item | None = None
        self._calls = 0  # begun
        self._blank = ""  # text that opens no item before there is more in it
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is still to come

    @property
    def items(self) -> list[dict[str, Any]]:
        """Return every item as far as it has come."""
        return [item.shown() for item in self._items]

    @property
    def kept(self) -> dict[str, dict[str, Any]]:
        """Return by an item's id what a later request needs of it beside what is shown."""
        return {item.id: item.kept() for item in self._runs}

    @property
    def texts(self) -> list[str]:
        """Return the texts of its messages."""
        return [item.text for item in self._items if type(item) is TextOutput]

    def add(self, chunk: Chunk) -> Iterator[Event]:
        """Take in a chunk."""
        yield from self._announced()
        if isinstance(chunk, RanChunk):
            yield from self._ran(chunk)
            return
        if chunk.thinking:
            self._logprobs = []
            yield from self._thought(chunk.thinking)
        elif not chunk.tool_calls:
            self._logprobs += chunk.logprobs
        for block in chunk.signed:
            yield from self._signed(block)
        if chunk.text:
            yield from self._delta(chunk.text)
        if chunk.refusal:
            yield from self._declined(chunk.refusal)
        for piece in chunk.tool_calls:
            yield from self._called(piece)

    def finish(self, *, whole: bool) -> Iterator[Event]:
        """Close what is open. `whole` False: the answer was cut, and its last item with it."""
        yield from self._announced()
        if len(self._items) == self._before:  # a client finds a message in every answer, be it an empty one
            yield from self._begin_text(self._blank)
        yield from self._close("completed" if whole else "incomplete")
        for number, item in enumerate(self._runs):
            if item.runs:  # the answer ended before it was run
                yield from self._ran(RanChunk(number=number, ran=NOT_RUN))

    def cut(self) -> None:
        """Leave what is open as it is: the answer failed."""
        for _ in self._close("incomplete"):
            pass
        for item in self._runs:
            item.status = "incomplete" if item.runs else item.status

    def _ran(self, chunk: RanChunk) -> Iterator[Event]:
        """Announce a call of a tool of this server, or what came of it; the model's round has ended."""
        yield from self._close("completed")
        self._blank, self._calls = "", 0
        item = self._runs[chunk.number]
        if chunk.ran is None:
            yield from item.begin_run()
            return
        yield from item.ran(chunk.ran)
        if (result := item.result(len(self._items), chunk.ran)) is not None:
            self._items.append(result)
            yield from result.begin()
            yield from result.end("completed")

    def _announced(self) -> Iterator[Event]:
        while self._shown < self._before:
            item = self._items[self._shown]
            self._shown += 1
            yield from item.begin()
            yield from item.end("completed")

    def _thought(self, text: str) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, ReasoningOutput):
            item = ReasoningOutput(len(self._items), self._summarize)
            yield from self._begin(item)
        yield from item.more(text)

    def _signed(self, block: SignedThinking) -> Iterator[Event]:
        """End a piece of reasoning with what its provider signed; each has an item of its own."""
        item = self._open
        if not isinstance(item, ReasoningOutput) or block.redacted:
            item = ReasoningOutput(len(self._items), self._summarize)
            yield from self._begin(item)
            if block.text:
                yield from item.more(block.text)
        item.seal = sealed(block)
        yield from self._close("completed")

    def _declined(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, RefusalOutput):
            yield from self._begin(RefusalOutput(len(self._items)))
        assert isinstance(self._open, RefusalOutput)
        yield from self._open.more(text, b"")

    def _delta(self, text: str) -> Iterator[Event]:
        if type(self._open) is TextOutput:
            yield from self._open.more(text, self._scored())
            return
        self._blank += text
        if not self._blank.isspace():
            yield from self._begin_text(self._blank)

    def _called(self, piece: ToolPiece) -> Iterator[Event]:
        item = self._open
        if piece.index == self._calls or not isinstance(item, CallOutput):
            kind = CustomOutput if piece.name in self._custom else self._built_in.get(piece.name, CallOutput)
            item = kind(len(self._items), piece.id, piece.name)
            if item.runs:
                self._runs.append(item)
            if (tool := self._pinned.get(piece.name)) is not None:
                item = ApprovalOutput(len(self._items), tool)
            self._calls += 1
            yield from self._begin(item)
        yield from item.more(piece.arguments)

    def _begin_text(self, text: str) -> Iterator[Event]:
        item = TextOutput(len(self._items), self._annotate)
        yield from self._begin(item)
        yield from item.more(text, self._scored())

    def _begin(self, item: Item) -> Iterator[Event]:
        yield from self._close("completed")
        self._blank = ""
        self._items.append(item)
        self._open = item
        yield from item.begin()

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self._open = None

    def _scored(self) -> bytes:
        """Return the log-probabilities of the text that comes now as JSON, without the list's brackets."""
        scored, self._logprobs = self._logprobs, []
        return msgspec.json.encode(chat_logprobs(scored, False)["content"])[1:-1] if scored else b""


class Item(ABC):
    """One item. `shown` is what the response holds of it."""

    prefix: str  # of its id

    def __init__(self, index: int) -> None:
        self.id = f"{self.prefix}_{secrets.token_hex(12)}"
        self.status = "in_progress"
        self._at = {"item_id": self.id, "output_index": index}
        self._index = index

    @abstractmethod
    def shown(self) -> dict[str, Any]: ...

    def begin(self) -> Iterator[Event]:
        """Announce it, empty."""
        yield self._whole("added")

    def end(self, status: str) -> Iterator[Event]:
        """Close it."""
        self.status = status
        yield self._whole("done")

    def _whole(self, what: str) -> Event:
        return {"type": f"response.output_item.{what}", "output_index": self._index, "item": self.shown()}


class TextOutput(Item):
    """What the assistant says: a message with one part."""

    prefix = "msg"
    event = "response.output_text"

    def __init__(self, index: int, annotate: Annotate | None = None) -> None:
        super().__init__(index)
        self._annotate = annotate
        self.annotations: list[dict[str, Any]] = []
        self._pieces: list[str] = []
        self._logprobs = bytearray()  # JSON, an eighth of what the objects would take
        self._begun = False
        self._at["content_index"] = 0

    def shown(self) -> dict[str, Any]:
        content = [self._part()] if self._begun else []
        return {
            "type": "message",
            "id": self.id,
            "status": self.status,
            "role": "assistant",
            "content": content,
        }

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        self._begun = True
        yield {"type": "response.content_part.added", **self._at, "part": self._part()}

    def more(self, text: str, logprobs: bytes) -> Iterator[Event]:
        if not text:
            return
        self._pieces.append(text)
        if logprobs:
            self._logprobs += b"," + logprobs if self._logprobs else logprobs
        yield {"type": f"{self.event}.delta", **self._at, "delta": text, **self._scored(logprobs)}

    @property
    def text(self) -> str:
        """Return the text as far as it has come."""
        return "".join(self._pieces)

    def end(self, status: str) -> Iterator[Event]:
        if self._annotate is not None:
            self.annotations = self._annotate(self.text)
        for n, each in enumerate(self.annotations):
            event = "response.output_text.annotation.added"
            yield {"type": event, **self._at, "annotation_index": n, "annotation": each}
        part = self._part()
        fields = {name: part[name] for name in ("text", "refusal", "logprobs") if name in part}
        yield {"type": f"{self.event}.done", **self._at, **fields}
        yield {"type": "response.content_part.done", **self._at, "part": part}
        yield from super().end(status)

    def _scored(self, logprobs: bytes | bytearray) -> dict[str, Any]:
        return {"logprobs": msgspec.Raw(b"[%b]" % logprobs)}

    def _part(self) -> dict[str, Any]:
        shown = {"type": "output_text", "text": self.text, "annotations": self.annotations}
        return {**shown, **self._scored(self._logprobs)}


class RefusalOutput(TextOutput):
    """What the assistant says instead of an answer."""

    event = "response.refusal"

    def _scored(self, logprobs: bytes | bytearray) -> dict[str, Any]:
        return {}

    def _part(self) -> dict[str, Any]:
        return {"type": "refusal", "refusal": "".join(self._pieces)}


class ReasoningOutput(Item):
    """Reasoning text: sent as `content`, or as `summary` if the request asks for one."""

    prefix = "rs"

    def __init__(self, index: int, summary: bool) -> None:
        super().__init__(index)
        self.seal = ""  # what its provider signed
        self._pieces: list[str] = []
        self._begun = False
        self._in, self._part_type = ("summary", "summary_text") if summary else ("content", "reasoning_text")
        self._at["summary_index" if summary else "content_index"] = 0
        self._event = "response.reasoning_summary_text" if summary else "response.reasoning_text"
        self._part_event = "response.reasoning_summary_part" if summary else "response.content_part"

    def shown(self) -> dict[str, Any]:
        item = {"type": "reasoning", "id": self.id, "status": self.status, "summary": [], "content": []}
        signed = {"encrypted_content": self.seal} if self.seal else {}
        return {**item, **signed, self._in: [self._part()]} if self._begun else {**item, **signed}

    def more(self, text: str) -> Iterator[Event]:
        if not self._begun:
            self._begun = True
            yield {"type": f"{self._part_event}.added", **self._at, "part": self._part()}
        self._pieces.append(text)
        yield {"type": f"{self._event}.delta", **self._at, "delta": text}

    def end(self, status: str) -> Iterator[Event]:
        if self._begun:
            part = self._part()
            yield {"type": f"{self._event}.done", **self._at, "text": part["text"]}
            yield {"type": f"{self._part_event}.done", **self._at, "part": part}
        yield from super().end(status)

    def _part(self) -> dict[str, str]:
        return {"type": self._part_type, "text": "".join(self._pieces)}


class CallOutput(Item):
    """A function that the model calls."""

    prefix = "fc"
    runs = False  # the server is to run it

    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self._call_id, self._name = call_id or f"call_{secrets.token_hex(12)}", name
        self._pieces: list[str] = []

    def shown(self) -> dict[str, Any]:
        return self._named("function_call", "arguments", "".join(self._pieces))

    def more(self, arguments: str) -> Iterator[Event]:
        if arguments:
            self._pieces.append(arguments)
            yield from self._written(arguments)

    def end(self, status: str) -> Iterator[Event]:
        event = "response.function_call_arguments.done"
        yield {"type": event, **self._at, "name": self._name, "arguments": "".join(self._pieces)}
        yield from super().end(status)

    def begin_run(self) -> Iterator[Event]:
        """Announce that the server runs it."""
        yield from ()

    def ran(self, result: Mapping[str, Any]) -> Iterator[Event]:
        """Take in what came of it."""
        self.runs = False
        yield from ()

    def result(self, index: int, result: Mapping[str, Any]) -> Item | None:
        """Return the item that has what came of it, where that is another one."""
        return None

    def kept(self) -> dict[str, Any]:
        """Return what a later request needs beside what is shown."""
        return {}

    def _written(self, arguments: str) -> Iterator[Event]:
        yield {"type": "response.function_call_arguments.delta", **self._at, "delta": arguments}

    def _named(self, kind: str, holds: str, value: str) -> dict[str, Any]:
        known = {"type": kind, "id": self.id, "status": self.status, "call_id": self._call_id}
        return {**known, "name": self._name, holds: value}


class CustomOutput(CallOutput):
    """A free-form tool that the model calls: its text was the one argument of a function, and comes at its end."""

    prefix = "ctc"

    def shown(self) -> dict[str, Any]:
        return self._named("custom_tool_call", "input", input_of("".join(self._pieces)))

    def end(self, status: str) -> Iterator[Event]:
        text = input_of("".join(self._pieces))
        yield {"type": "response.custom_tool_call_input.delta", **self._at, "delta": text}
        yield {"type": "response.custom_tool_call_input.done", **self._at, "input": text}
        yield from Item.end(self, status)

    def _written(self, arguments: str) -> Iterator[Event]:
        yield from ()


class ApprovalOutput(CallOutput):
    """A call of an MCP server's tool, which runs once its approval comes."""

    def __init__(self, index: int, tool: PinnedTool) -> None:
        super().__init__(index, "", tool.name)
        self.id = approval_id(tool)
        self._server = tool.server

    def shown(self) -> dict[str, Any]:
        known = {"type": "mcp_approval_request", "id": self.id, "server_label": self._server}
        return {**known, "name": self._name, "arguments": "".join(self._pieces)}

    def end(self, status: str) -> Iterator[Event]:
        yield from Item.end(self, status)

    def _written(self, arguments: str) -> Iterator[Event]:
        yield from ()


class DoneOutput(Item):
    """An item that was whole before the model began: a server's tools, or a call that was approved and has run."""

    prefix = "mcp"

    def __init__(self, index: int, item: dict[str, Any]) -> None:
        super().__init__(index)
        self._item = item
        self.id = self._at["item_id"] = item["id"]

    def shown(self) -> dict[str, Any]:
        return self._item

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield {"type": f"response.{self._item['type']}.in_progress", **self._at}

    def end(self, status: str) -> Iterator[Event]:
        kind = f"response.{self._item['type']}"
        if "arguments" in self._item:
            arguments = self._item["arguments"]
            yield {"type": f"{kind}_arguments.delta", **self._at, "delta": arguments}
            yield {"type": f"{kind}_arguments.done", **self._at, "arguments": arguments}
        if self._item["type"] == "file_search_call":
            yield {"type": f"{kind}.searching", **self._at}
        yield {"type": f"{kind}.{'failed' if self._item.get('error') else 'completed'}", **self._at}
        yield from super().end(status)


# --- tools of MCP servers that the owner configured: `{"type": "mcp", "server_label": NAME}` --------
# Each call of the model ends the response with an `mcp_approval_request`; the request that brings its
# `mcp_approval_response` runs the call first, and has it as an `mcp_call` before the model's next words. An
# approval holds for the tool as it was: its id carries a part of the digest.

DENIED = "The user did not allow this call."
_IMAGES = (
    "images"  # of an mcp_call, beside OpenAI's fields: data: URLs, which a client sends back as it got them
)
_PIN = 24  # characters of a digest in an approval's id


class McpTools:
    """The MCP tools of one response."""

    def __init__(self, runner: RunTools | None, servers: Mapping[str, McpTool]) -> None:
        self._runner, self._servers = runner, servers
        self.offered: tuple[Tool, ...] = ()
        self.pinned: dict[str, PinnedTool] = {}  # by the model's name
        self.first: list[dict[str, Any]] = []  # items that come before the model's own
        self._images: dict[str, list[Any]] = {}  # data: URLs of results, by the id of their call

    @classmethod
    async def opened(cls, call: HttpCall, tools: Sequence[Any]) -> McpTools:
        """Start the servers that a request names. Raises Refused, FreeholdErrors."""
        servers = wanted(tools)
        runner = run_tools(call, "", list(servers), keep=False) if servers else None
        opened_tools = cls(runner, servers)
        if runner is not None:
            opened_tools._offer(await runner.offer(), runner.tools())
        return opened_tools

    async def aclose(self) -> None:
        """End the servers."""
        if self._runner is not None:
            await self._runner.aclose()

    def name_of(self, item: Mapping[str, Any]) -> str:
        """Return by which name the model knows the tool of an item."""
        for name, tool in self.pinned.items():
            if (tool.server, tool.name) == (item.get("server_label"), item.get("name")):
                return name
        return str(item.get("name"))[:64]

    async def read(self, items: Sequence[Any]) -> list[Any]:
        """Return the items with what the chat needs of MCP's: calls with results. Runs what was approved."""
        requests = {str(i.get("id")): i for i in items if _is(i, "mcp_approval_request")}
        done = {i.get("approval_request_id") for i in items if _is(i, "mcp_call")}
        if not any(_is(i, "mcp_list_tools") for i in items):
            self.first += self._listed()
        out: list[Any] = []
        for item in items:
            if self._runner is not None and isinstance(item, dict) and item.get("role") == "user":
                self._runner.forget()
            if _is(item, "mcp_approval_response"):
                id = str(item.get("approval_request_id"))
                if id in done:
                    continue
                if id not in requests:
                    message = f"no item asks for the approval {id[:80]!r}"
                    raise Refused(400, message, param="input", code="invalid_value")
                done.add(id)
                out += self._chat(await self._answered(requests[id], item))
            elif _is(item, "mcp_call"):
                if self._runner is not None and isinstance(output := item.get("output"), str):
                    call = ToolCall(str(item.get("id")), self.name_of(item), str(item.get("arguments")))
                    self._runner.recall(call, output)
                out += self._chat(item)
            elif not (_is(item, "mcp_approval_request") or _is(item, "mcp_list_tools")):
                out.append(item)
        return out

    def with_pictures(self, job: Job) -> Job:
        """Return a job whose results of MCP's tools have their pictures. Raises Refused for another URL than data:."""
        if not self._images:
            return job
        from freehold.serve.tools.pictures import tool_message  # a server starts without the room of tools

        messages = [
            tool_message(m.content, m.tool_call_id, m.name, self._pictures(m.tool_call_id))
            if m.role == "tool" and m.tool_call_id in self._images
            else m
            for m in job.messages or ()
        ]
        return replace(job, messages=tuple(messages))

    def fit(self, call: HttpCall) -> Fit | None:
        """Return what adapts a job with such pictures to its model; None where there are none."""
        return without_unseen(call) if self._images else None

    def _pictures(self, id: str) -> list[Image]:
        images: list[Image] = []
        for i, url in enumerate(self._images[id]):
            place = f"{_IMAGES}[{i}] of the mcp_call {id[:60]}"
            if not (isinstance(url, str) and url.startswith("data:")):
                raise Refused(400, f"{place} is not a data: URL", param="input", code="unsupported_content")
            try:
                images.append(Image.at(url, place=place))
            except UsageError as e:
                raise Refused(400, e.message, param="input", code="unsupported_content") from None
        return images

    def _offer(self, tools: Iterable[Tool], pinned: Mapping[str, PinnedTool]) -> None:
        for tool in tools:
            names = self._servers[pinned[tool.name].server].names
            if names is None or pinned[tool.name].name in names:
                self.offered = (*self.offered, tool)
                self.pinned[tool.name] = pinned[tool.name]

    def _listed(self) -> list[dict[str, Any]]:
        rows: dict[str, list[dict[str, Any]]] = {label: [] for label in self._servers}
        for tool in self.pinned.values():
            row = {key: value for key, value in tool.shown().items() if key != "digest"}
            rows[tool.server].append(row)
        return [
            {"type": "mcp_list_tools", "id": _id("mcpl"), "server_label": label, "tools": tools}
            for label, tools in rows.items()
        ]

    async def _answered(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
        """Return the call's item; one that was approved is run and shown among the response's items."""
        item: dict[str, Any] = {
            "type": "mcp_call",
            "id": _id("mcp"),
            "approval_request_id": request.get("id"),
            "server_label": str(request.get("server_label")),
            "name": str(request.get("name")),
            "arguments": str(request.get("arguments")),
            "output": None,
            "error": None,
        }
        if answer.get("approve") is not True:
            reason = str(answer.get("reason") or "")[:1000]
            return {**item, "error": f"{DENIED} {reason}".rstrip()}
        if self._runner is None:
            raise Refused(400, "an approved call needs its server among tools", param="tools")
        call = ToolCall(item["id"], self.name_of(request), item["arguments"])
        result = await self._runner.use(call, _Approved(str(request.get("id"))))
        item["error" if result.failed else "output"] = result.content
        if result.images:
            item[_IMAGES] = list(result.images)
        self.first.append(item)
        return item

    def _chat(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a call and its result as the items by which chats have them."""
        id, output = str(call.get("id")), call.get("output")
        if isinstance(images := call.get(_IMAGES), list) and images:
            self._images[id] = images
        return [
            {
                "type": "function_call",
                "call_id": id,
                "name": self.name_of(call),
                "arguments": str(call.get("arguments")),
            },
            {
                "type": "function_call_output",
                "call_id": id,
                "output": str(call.get("error") if output is None else output),
            },
        ]


class _Approved:
    """Implements ToolDesk: allows the one tool that was approved, as it was described then."""

    def __init__(self, id: str) -> None:
        self._pin = id.rpartition("_")[2]

    async def ask(self, question: ToolQuestion) -> ToolAnswer:
        from freehold.serve.chats.types import ToolAnswer

        if question.digest[:_PIN] == self._pin:
            return ToolAnswer(verdict="once")
        return ToolAnswer(verdict="deny", word="the tool has changed since the approval was requested")

    def say(self, step: ToolStep) -> None:
        return


def approval_id(tool: PinnedTool) -> str:
    """Return the id of a request for approval, which says what is approved."""
    return f"{_id('mcpr')}_{tool.digest[:_PIN]}"


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _is(item: Any, kind: str) -> bool:
    return isinstance(item, dict) and item.get("type") == kind
