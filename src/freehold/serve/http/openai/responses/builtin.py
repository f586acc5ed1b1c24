"""Built-in tools of a response: `code_interpreter` and `shell` run here, a local `shell` and `apply_patch` at clients.

A call that runs here is followed by another round of the model, which has its result, until the model answers without
one. Rounds, time and output are bounded. Knows items, events and calls; containers.py runs what they contain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.base.errors import UsageError
from freehold.base.prompts import result_chars, without_middle
from freehold.base.serving import Begin, Job, ModelInfo
from freehold.base.types import Chunk, FinishReason, Message, SignedThinking, Tool, ToolCall
from freehold.serve.http.batches.desk import Desk
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.computing import Sink
from freehold.serve.http.core.limits import typed
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.responses.containers import (
    MAX_FILES_BYTES,
    ToolContainer,
    ToolContainers,
    not_allowed,
)
from freehold.serve.http.openai.responses.fields import (
    commands_of,
    outputs_text,
    patch_of,
    shell_text,
)
from freehold.serve.http.openai.responses.output import BuiltIn, CallOutput, Event, Item, RanChunk

MAX_ROUNDS = 16  # of calls in one response
CALL_S, ALL_S = 60.0, 300.0  # of one call or command, and of all in a response
MAX_COMMANDS = 16  # of one call
_UNUSED = {"allowed_callers"}  # "direct" is the only way here

_CODE = Tool(
    "python",
    "Run Python code in the user's sandbox, without network. Names and files stay for the next call; print what you "
    "want to see. Figures of matplotlib are shown to the user.",
    {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "The code."}},
        "required": ["code"],
    },
)
_SHELL = {
    "type": "object",
    "properties": {
        "commands": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Commands, each of which a new shell runs.",
        },
        "timeout_ms": {"type": "integer", "description": "How long each command may take."},
        "max_output_length": {"type": "integer", "description": "How many characters of output to return."},
    },
    "required": ["commands"],
}
_PATCH = Tool(
    "apply_patch",
    "Change one file of the user. The diff has the changed lines with some lines around them: it begins with @@, and "
    "each line with a space, + or -. For create_file, each line begins with +.",
    {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
            "path": {"type": "string", "description": "The file."},
            "diff": {"type": "string", "description": "The change; none for delete_file."},
        },
        "required": ["type", "path"],
    },
)


class ContainerFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which container a tool has: a new one, or that of the chat so far; or one by its id."""

    type: Literal["auto", "container_auto", "container_reference", "local"]
    container_id: Annotated[str, Meta(max_length=128)] | None = None
    file_ids: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=50)] | None = None
    memory_limit: Literal["1g", "4g", "16g", "64g"] | None = None
    network_policy: dict[str, Any] | None = None
    skills: list[Any] | None = None


class BuiltInTools:
    """The built-in tools of one response; implements AnswerRounds for those that this server runs."""

    def __init__(self, call: HttpCall) -> None:
        self._call = call
        self._containers: ToolContainers | None = None
        self._here: dict[str, ToolContainer] = {}  # by the model's name of a tool that runs here
        self._used: dict[str, ToolContainer] = {}  # by id
        self.offered: tuple[Tool, ...] = ()
        self.items: dict[str, BuiltIn] = {}
        self.warnings: list[str] = []
        self._shows_outputs = False
        self._most: int | None = None  # calls that may run, as the request limits them
        self._ran, self._spent_s, self._number = 0, 0.0, 0
        self._tokens = 0  # of the answers so far
        self._seen: dict[tuple[str, str], str] = {}  # calls and their results
        self._begin_round()

    def _begin_round(self) -> None:
        self._text, self._thinking = "", ""
        self._calls: list[ToolCall] = []
        self._signed: list[SignedThinking] = []
        self._reason: FinishReason = "stop"

    @classmethod
    async def opened(
        cls,
        call: HttpCall,
        tools: Sequence[Any],
        include: Sequence[str],
        most: int | None,
        items: Sequence[Any],
    ) -> BuiltInTools:
        """Return the built-in tools of a request, with their containers.

        Raises Refused for those that the owner does not allow, UsageError where they cannot be confined.
        """
        built_in = cls(call)
        built_in._shows_outputs, built_in._most = "code_interpreter_call.outputs" in include, most
        try:
            for i, raw in enumerate(tools):
                kind = raw.get("type") if isinstance(raw, dict) else None
                if kind == "code_interpreter":
                    await built_in._offer_code(raw, f"tools[{i}]", items)
                elif kind == "shell":
                    await built_in._offer_shell(raw, f"tools[{i}]", items)
                elif kind == "apply_patch":
                    built_in.offered += (_PATCH,)
                    built_in.items[_PATCH.name] = PatchOutput
        except BaseException:
            built_in.close()
            raise
        return built_in

    @property
    def runs(self) -> bool:
        """Whether this server runs one of them."""
        return bool(self._here)

    def close(self) -> None:
        """Let others have the containers."""
        for container in self._used.values():
            container.users -= 1
        self._used = {}

    async def _offer_code(self, raw: dict[str, Any], at: str, items: Sequence[Any]) -> None:
        where = raw.get("container")
        if isinstance(where, str):
            where = {"type": "container_reference", "container_id": where}
        if not isinstance(where, dict):
            message = f'{at}.container is missing; send {{"type": "auto"}}, or the id of a container'
            raise Refused(400, message, param=f"{at}.container", code="missing_required_parameter")
        fields = typed(where, ContainerFields, f"{at}.container")
        container = self._here[_CODE.name] = await self._container("code_interpreter", fields, at, items)
        self.offered += (_CODE,)
        self.items[_CODE.name] = lambda index, call, name: CodeOutput(
            index, call, name, container.id, shows=self._shows_outputs
        )

    async def _offer_shell(self, raw: dict[str, Any], at: str, items: Sequence[Any]) -> None:
        fields = typed(raw.get("environment") or {"type": "local"}, ContainerFields, f"{at}.environment")
        where = {"type": "local"}
        if fields.type != "local":
            container = self._here["shell"] = await self._container("shell", fields, at, items)
            where = {"type": "container_reference", "container_id": container.id}
        machine = (
            "in the user's sandbox, without network" if "shell" in self._here else "on the user's machine"
        )
        self.offered += (Tool("shell", f"Run commands by the shell {machine}.", _SHELL),)
        self.items["shell"] = lambda index, call, name: ShellOutput(index, call, name, where)

    async def _container(
        self, kind: str, fields: ContainerFields, at: str, items: Sequence[Any]
    ) -> ToolContainer:
        call = self._call
        containers = self._containers = call.server.part(ToolContainers)
        if containers is None:
            raise not_allowed(kind)
        await containers.check(kind)
        if fields.skills or (fields.network_policy or {}).get("type", "disabled") != "disabled":
            name = "skills" if fields.skills else "network_policy"
            message = f"{at}: {name} is not supported; containers have no network"
            raise Refused(400, message, param=f"{at}.{name}", code="unsupported_parameter")
        if fields.memory_limit not in (None, "1g"):
            self.warnings.append(f"memory_limit {fields.memory_limit} was ignored: a container has 2 GiB")
        if fields.container_id is not None:
            container = containers.find(call.tenant, fields.container_id)
            if container is None:
                message = (
                    f"there is no container {fields.container_id[:80]!r}; those that are idle are removed"
                )
                raise Refused(404, message, param=f"{at}.container", code="no_container")
        else:
            container = next(iter(self._used.values()), None) or self._of_chat(containers, items)
            container = container or await containers.make(call.tenant)
        if container.id not in self._used:
            self._used[container.id] = container
            container.users += 1
        await self._put_files(container, fields.file_ids or ())
        call.inherited = tuple(dict.fromkeys((*call.inherited, *container.labels)))
        container.label(call.labels)
        return container

    def _of_chat(self, containers: ToolContainers, items: Sequence[Any]) -> ToolContainer | None:
        """Return the container that the chat had last, where it is still there."""
        for item in reversed(items):
            if isinstance(item, dict) and item.get("type") in ("code_interpreter_call", "shell_call"):
                where = item.get("environment")
                id = item.get("container_id") or (
                    where.get("container_id") if isinstance(where, dict) else None
                )
                if isinstance(id, str) and (container := containers.find(self._call.tenant, id)) is not None:
                    return container
        return None

    async def _put_files(self, container: ToolContainer, ids: Sequence[str]) -> None:
        """Copy uploaded files into a container. Raises Refused: 404 for one that is not there, 400 for too much."""
        if not ids:
            return
        files = self._call.part(Desk, 503, "this server has no folder for files", "no_files").files
        tenant = self._call.tenant
        records = [await self._call.in_thread(files.get, tenant, id) for id in ids]
        if sum(record.bytes for record in records) > MAX_FILES_BYTES:
            message = f"file_ids have more than {MAX_FILES_BYTES:,} bytes together"
            raise Refused(400, message, param="file_ids", code="invalid_value")
        for record in records:
            name = record.filename.replace("/", "_").lstrip(".")[:200] or record.id
            await self._call.in_thread(container.put, name, files.path(tenant, record.id))
            container.label(record.labels)

    # --- rounds

    def take(self, chunk: Chunk) -> Chunk:
        """Take in a chunk, and return it without the end of its round."""
        self._text, self._thinking = self._text + chunk.text, self._thinking + chunk.thinking
        self._signed += chunk.signed
        for piece in chunk.tool_calls:
            piece.join(self._calls)
        if chunk.finish_reason is None:
            return chunk
        self._reason = chunk.finish_reason
        self._tokens += chunk.usage.completion_tokens if chunk.usage else 0
        return replace(chunk, finish_reason=None, usage=None)

    async def after(self, job: Job, info: ModelInfo, begin: Begin, sink: Sink) -> Job | None:
        """Run the calls of a round; return the job that continues the answer, None once its end is in `sink`."""
        own = [call for call in self._calls if call.name in self._here]
        reason: FinishReason = self._reason
        if own and reason in ("stop", "tool_calls") and job.tool_choice != "none":
            for container in self._here.values():
                container.label(begin.labels)
            messages = [self._answer()]
            again = False
            for call in own:
                text = await self._run(call, info.context, sink)
                again = again or self._seen.get((call.name, call.arguments)) == text
                self._seen[call.name, call.arguments] = text
                messages.append(Message("tool", text, tool_call_id=call.id, name=call.name))
            left = None if job.max_tokens is None else job.max_tokens - self._tokens
            if len(own) == len(self._calls) and (left is None or left > 0):
                self._tokens = 0
                self._begin_round()
                self._number += 1
                may_call = not again and self._may_run and self._number < MAX_ROUNDS
                return replace(
                    job,
                    messages=(*(job.messages or ()), *messages),
                    max_tokens=left,
                    tool_choice="auto" if may_call else "none",
                    tool_name="",
                )
            reason = "tool_calls" if len(own) < len(self._calls) else "length"
        await sink(0, [(0, Chunk(finish_reason=reason))])
        return None

    def _answer(self) -> Message:
        return Message(
            "assistant",
            self._text,
            self._thinking,
            tool_calls=tuple(self._calls),
            signed=tuple(self._signed),
        )

    @property
    def _may_run(self) -> bool:
        return self._spent_s < ALL_S and (self._most is None or self._ran < self._most)

    async def _run(self, call: ToolCall, context: int, sink: Sink) -> str:
        """Run one call, show it, and return its result as the model reads it."""
        number, began = self._ran, time.monotonic()
        await sink(0, [(0, RanChunk(number=number))])
        most = result_chars(context)
        if not self._may_run:
            ran: dict[str, Any] = {"status": "incomplete", "text": "Not called: no more calls may run."}
        elif call.name == _CODE.name:
            ran = await self._run_code(call, most)
        else:
            ran = await self._run_shell(call, most)
        self._ran += 1
        self._spent_s += time.monotonic() - began
        await sink(0, [(0, RanChunk(number=number, ran=ran))])
        return ran["text"]

    async def _run_code(self, call: ToolCall, most: int) -> dict[str, Any]:
        assert self._containers is not None
        try:
            done = await self._containers.run_code(
                self._here[call.name], code_of(call.arguments), self._seconds()
            )
        except UsageError as e:
            done = {"text": e.message, "images": [], "failed": True, "ended": True}
        outputs: list[dict[str, str]] = []
        if done["text"]:
            outputs.append({"type": "logs", "logs": without_middle(done["text"], most)})
        outputs += [{"type": "image", "url": url} for url in done["images"]]
        status = "failed" if done["ended"] else "completed"
        return {"status": status, "outputs": outputs, "text": outputs_text(outputs)}

    async def _run_shell(self, call: ToolCall, most: int) -> dict[str, Any]:
        assert self._containers is not None
        action, output = commands_of(call.arguments), list[dict[str, Any]]()
        most = min(most, action["max_output_length"] or most)
        for command in action["commands"][:MAX_COMMANDS]:
            limit_s = (action["timeout_ms"] or CALL_S * 1000) / 1000
            try:
                done = await self._containers.run_command(
                    self._here[call.name], command, min(limit_s, self._seconds())
                )
            except UsageError as e:
                done = {"stdout": "", "stderr": e.message, "outcome": {"type": "exit", "exit_code": 126}}
            half = most // 2 if done["stdout"] and done["stderr"] else most
            shown = {name: without_middle(done[name], half) for name in ("stdout", "stderr")}
            output.append({**done, **shown})
        if not output:
            outcome = {"type": "exit", "exit_code": 2}
            output.append({"stdout": "", "stderr": "commands is empty", "outcome": outcome})
        return {"status": "completed", "output": output, "text": shell_text(output)}

    def _seconds(self) -> float:
        return max(min(CALL_S, ALL_S - self._spent_s), 1.0)


def code_of(arguments: str) -> str:
    """Return the code of a call; what is not an object with code is code itself."""
    try:
        value = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return arguments
    code = value.get("code") if isinstance(value, dict) else value
    return code if isinstance(code, str) else arguments


# --- items ------------------------------------------------------------------------------------------


class WholeCallOutput(CallOutput):
    """A call that is shown as code, commands or a change, once all of its arguments are there."""

    def end(self, status: str) -> Iterator[Event]:
        yield from Item.end(self, status)

    def _written(self, arguments: str) -> Iterator[Event]:
        yield from ()


class CodeOutput(WholeCallOutput):
    """A call of `code_interpreter`: its code, then what it printed, in one item."""

    prefix = "ci"
    runs = True

    def __init__(self, index: int, call_id: str, name: str, container: str, *, shows: bool) -> None:
        super().__init__(index, call_id, name)
        self._container, self._shows = container, shows
        self._outputs: list[dict[str, str]] = []

    def shown(self) -> dict[str, Any]:
        return {
            "type": "code_interpreter_call",
            "id": self.id,
            "status": self.status,
            "code": code_of("".join(self._pieces)),
            "container_id": self._container,
            "outputs": self._outputs if self._shows else None,
        }

    def kept(self) -> dict[str, Any]:
        return {} if self._shows else {"outputs": self._outputs}

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield {"type": "response.code_interpreter_call.in_progress", **self._at}

    def end(self, status: str) -> Iterator[Event]:
        code = code_of("".join(self._pieces))
        yield {"type": "response.code_interpreter_call_code.delta", **self._at, "delta": code}
        yield {"type": "response.code_interpreter_call_code.done", **self._at, "code": code}
        if status != "completed":
            self.runs = False
            yield from super().end(status)

    def begin_run(self) -> Iterator[Event]:
        self.status = "interpreting"
        yield {"type": "response.code_interpreter_call.interpreting", **self._at}

    def ran(self, result: Mapping[str, Any]) -> Iterator[Event]:
        self.runs, self._outputs = False, result.get("outputs", [])
        if result["status"] == "completed":
            yield {"type": "response.code_interpreter_call.completed", **self._at}
        yield from super().end(result["status"])


class ShellOutput(WholeCallOutput):
    """A call of `shell`; `where`: its environment. One in a container is run here."""

    prefix = "sh"

    def __init__(self, index: int, call_id: str, name: str, where: Mapping[str, str]) -> None:
        super().__init__(index, call_id, name)
        self._where = where
        self.runs = where["type"] != "local"

    def shown(self) -> dict[str, Any]:
        return {
            "type": "shell_call",
            "id": self.id,
            "status": self.status,
            "call_id": self._call_id,
            "action": commands_of("".join(self._pieces)),
            "environment": self._where,
        }

    def end(self, status: str) -> Iterator[Event]:
        at = {"output_index": self._index}
        for i, command in enumerate(commands_of("".join(self._pieces))["commands"]):
            event = {**at, "command_index": i}
            yield {"type": "response.shell_call_command.added", **event, "command": ""}
            yield {"type": "response.shell_call_command.delta", **event, "delta": command}
            yield {"type": "response.shell_call_command.done", **event, "command": command}
        yield from super().end(status)

    def result(self, index: int, result: Mapping[str, Any]) -> Item | None:
        output = result.get("output")
        if output is None:  # it was not run
            outcome = {"type": "exit", "exit_code": 125}
            output = [{"stdout": "", "stderr": result.get("text", ""), "outcome": outcome}]
        most = commands_of("".join(self._pieces))["max_output_length"]
        return ShellResult(index, self._call_id, output, most)


class ShellResult(Item):
    """What came of a call of `shell`."""

    prefix = "sho"

    def __init__(self, index: int, call_id: str, output: list[dict[str, Any]], most: int | None) -> None:
        super().__init__(index)
        self._call_id, self._output, self._most = call_id, output, most

    def shown(self) -> dict[str, Any]:
        return {
            "type": "shell_call_output",
            "id": self.id,
            "status": self.status,
            "call_id": self._call_id,
            "output": [] if self.status == "in_progress" else self._output,
            "max_output_length": self._most,
        }

    def end(self, status: str) -> Iterator[Event]:
        for i, each in enumerate(self._output):
            at = {**self._at, "command_index": i}
            delta = {name: each[name] for name in ("stdout", "stderr") if each[name]}
            if delta:
                yield {"type": "response.shell_call_output_content.delta", **at, "delta": delta}
            yield {"type": "response.shell_call_output_content.done", **at, "output": [each]}
        yield from super().end(status)


class PatchOutput(WholeCallOutput):
    """A call of `apply_patch`, which the client applies."""

    prefix = "apc"

    def shown(self) -> dict[str, Any]:
        return {
            "type": "apply_patch_call",
            "id": self.id,
            "status": "completed" if self.status == "completed" else "in_progress",
            "call_id": self._call_id,
            "operation": patch_of("".join(self._pieces)),
        }
