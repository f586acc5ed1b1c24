"""Freehold's own tools: named on the command line, offered to a model, planned, asked about, run.

    files=DIR      list, read, search, edit, write and remove files of one folder
    python         code in a confined interpreter, whose names stay for the chat
    shell=DIR      commands without network, which write in one folder alone
    fetch=HOSTS    GET of pages from listed hosts
    documents=NAME search in a collection

None is offered unless it is named. A call is planned before it runs: what it would do, to what, and whether it is asked
about, so that a desk can show the difference of a write before it is made. Knows tools; knows no model and no terminal.
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from freehold.base.config import suggestion
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.types import Tool, ToolCall
from freehold.serve.chats.types import ToolDesk, ToolQuestion, ToolResult, ToolRunner, ToolState, ToolStep
from freehold.serve.tools.fetch import allowed_host, checked_hosts, fetched
from freehold.serve.tools.folder import FolderChange, ToolFolder
from freehold.serve.tools.mcp.permissions import Permissions, PinnedTool

KINDS = ("files", "python", "shell", "fetch", "documents")
MAX_ARGUMENTS = 1 << 20  # characters of a call
MAX_SECONDS = 600.0  # that a call may ask for
_SHELL_SECONDS, _PYTHON_SECONDS = 120.0, 60.0
_PASSAGES = 5  # passages of a search in documents
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# What a shell reads as more than the words of one command; a pattern with * matches no command that has one of them.
_SHELL_SIGNS = frozenset(";&|<>`$(){}\n\r\\!#~")


@dataclass(frozen=True, slots=True)
class OwnTool:
    """One of `--tool`: a kind, and what it is for."""

    kind: str
    value: str = ""


def own_tools(words: Sequence[str]) -> tuple[OwnTool, ...]:
    """Return what `--tool` names. Raises UsageError for an unknown kind, or a value that is missing or has no use."""
    tools: dict[str, OwnTool] = {}
    for word in words:
        kind, equals, value = word.partition("=")
        if kind not in KINDS:
            raise UsageError(
                f"there is no tool {kind[:40]!r}", suggestion(kind, KINDS, f"tools: {', '.join(KINDS)}")
            )
        if kind == "python" and equals:
            raise UsageError("the tool python takes no value", "its files are in a folder of the chat")
        if kind != "python" and not value:
            needs = {"files": "DIR", "shell": "DIR", "fetch": "HOST,HOST", "documents": "NAME"}[kind]
            raise UsageError(f"the tool {kind} names nothing", f"write --tool {kind}={needs}")
        if kind in tools and kind != "documents":
            raise UsageError(f"the tool {kind} is named twice", "name it once")
        tools[word if kind == "documents" else kind] = OwnTool(kind, value)
    return tuple(tools.values())


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call that could run now.

    `acts`: it changes, runs or reaches something, where others only read. `asks`: it is asked about each time, unless
    a pattern or an answer allowed it. `target`: the path, command, address or code that it is about; `texts`: what of
    its arguments is new in the world: added lines, a command, code, an address.
    """

    call: ToolCall
    kind: str
    target: str
    acts: bool
    asks: bool
    texts: tuple[str, ...]
    run: Callable[[], ToolResult]
    change: FolderChange | None = None

    @property
    def summary(self) -> str:
        """One line for people."""
        first = " ".join(self.target.split())
        counts = f" ({self.change.counts()})" if self.change else ""
        return f"{self.call.name}: {first[:200]}{counts}"

    @property
    def detail(self) -> str:
        """What a person reads before it runs: the difference, or the whole command."""
        return self.change.diff() if self.change else self.target


class OwnTools:
    """The tools of one chat or run. Safe from one thread at a time; close it at the end.

    `folder`: of the tool files; `python`: where the interpreter works, None: it is not offered; `shell`: the folder of
    commands; `seen_at`: the path by which they see it.
    """

    def __init__(
        self,
        *,
        scratch: Path,
        folder: Path | None = None,
        python: Path | None = None,
        shell: Path | None = None,
        seen_at: str = "",
        hosts: Sequence[str] = (),
        collections: Sequence[str] = (),
        search: Callable[[str, str, int], str] | None = None,
        offline: bool = False,
    ) -> None:
        self._scratch, self._hosts, self._offline, self._seen_at = scratch, tuple(hosts), offline, seen_at
        self._folder = ToolFolder(folder) if folder is not None else None
        self._shell = ToolFolder(shell).path if shell is not None else None
        self._collections, self._search = tuple(collections), search
        self._notebook = None
        if python is not None:
            from freehold.base.sandbox.notebook import Notebook

            self._notebook = Notebook(python, scratch)
        self._makers = self._offered()

    @property
    def place(self) -> str:
        """The folders that its calls may change."""
        return "\n".join(str(each) for each in (self._folder and self._folder.path, self._shell) if each)

    def check(self) -> None:
        """Raise UsageError where a tool cannot be confined here: before a model is loaded."""
        if self._shell is not None:
            from freehold.base.sandbox.enclosed import run_enclosed

            run_enclosed("true", self._shell, seconds=30.0)

    def close(self) -> None:
        """End the interpreter, and let go of the folder."""
        self.restart()
        if self._folder is not None:
            self._folder.close()

    def restart(self) -> None:
        """End the interpreter: the next call has another, without the names of this one."""
        if self._notebook is not None:
            self._notebook.close()

    def tools(self) -> list[Tool]:
        """Return what a model may call."""
        return [tool for tool, _ in self._makers.values()]

    def kind_of(self, name: str) -> str:
        """Return the kind of an offered tool; "" for another name."""
        return _KIND_OF.get(name, "") if name in self._makers else ""

    def plan(self, call: ToolCall) -> PlannedCall:
        """Return what a call would do. Raises UsageError for a tool or arguments that cannot be."""
        if call.name not in self._makers:
            names = list(self._makers)
            near = suggestion(call.name, names, f"tools: {', '.join(names)}")
            raise UsageError(f"there is no tool called {call.name[:60]!r}", near)
        tool, maker = self._makers[call.name]
        return maker(call, _Arguments(tool, call.arguments))

    def _offered(self) -> dict[str, tuple[Tool, Callable[[ToolCall, _Arguments], PlannedCall]]]:
        makers: dict[str, Callable[[ToolCall, _Arguments], PlannedCall]] = {}
        if self._folder is not None:
            makers |= {
                "list_files": self._plan_list,
                "read_file": self._plan_read,
                "search_files": self._plan_search,
                "edit_file": self._plan_edit,
                "write_file": self._plan_write,
                "remove_file": self._plan_remove,
            }
        if self._notebook is not None:
            makers["python"] = self._plan_python
        if self._shell is not None:
            makers["shell"] = self._plan_shell
        if self._hosts:
            makers["fetch"] = self._plan_fetch
        if self._collections:
            makers["search_documents"] = self._plan_documents
        return {name: (TOOLS[name], maker) for name, maker in makers.items()}

    # --- files --------------------------------------------------------------------------------------

    def _plan_list(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        path = arguments.text("path", ".") or "."
        return self._reading(call, path, lambda folder: folder.listing(path))

    def _plan_read(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        path, first, last = arguments.text("path"), arguments.whole("first", 1), arguments.whole("last", None)
        return self._reading(call, path, lambda folder: folder.read(path, first or 1, last))

    def _plan_search(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        text, path = arguments.text("text"), arguments.text("path", ".") or "."
        return self._reading(call, text, lambda folder: folder.search(text, path))

    def _plan_edit(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        path, old, new = arguments.text("path"), arguments.text("old"), arguments.text("new")
        return self._changing(call, self._own_folder().edited(path, old, new, every=arguments.flag("every")))

    def _plan_write(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        path, text = arguments.text("path"), arguments.text("text")
        return self._changing(call, self._own_folder().written(path, text))

    def _plan_remove(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        return self._changing(call, self._own_folder().removed(arguments.text("path")))

    def _own_folder(self) -> ToolFolder:
        assert self._folder is not None
        return self._folder

    def _reading(self, call: ToolCall, target: str, read: Callable[[ToolFolder], str]) -> PlannedCall:
        def run() -> ToolResult:
            return ToolResult(content=read(self._own_folder()), server="files")

        return PlannedCall(call, "files", target, acts=False, asks=False, texts=(), run=run)

    def _changing(self, call: ToolCall, change: FolderChange) -> PlannedCall:
        def run() -> ToolResult:
            self._own_folder().carry_out(change)
            verb = "removed" if change.after is None else "written" if change.before is None else "changed"
            return ToolResult(content=f"{change.path} was {verb} ({change.counts()}).", server="files")

        removes = change.after is None
        return PlannedCall(call, "files", change.path, True, removes, (change.added,), run, change)

    # --- code, commands, pages, documents -----------------------------------------------------------

    def _plan_python(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        code, seconds = arguments.text("code"), arguments.seconds(_PYTHON_SECONDS)

        def run() -> ToolResult:
            assert self._notebook is not None
            done = self._notebook.run(code, seconds)
            urls = [f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in done.pictures]
            text = done.text or ("[no output]" if not urls else "")
            if urls:
                text += f"\n[{len(urls)} pictures]" if len(urls) > 1 else "\n[a picture]"
            return ToolResult(
                content=text.strip("\n"),
                images=tuple(urls),
                server="python",
                state="failed" if done.failed else "done",
            )

        return PlannedCall(call, "python", code, acts=True, asks=False, texts=(code,), run=run)

    def _plan_shell(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        command, seconds = arguments.text("command"), arguments.seconds(_SHELL_SECONDS)

        def run() -> ToolResult:
            from freehold.base.sandbox.enclosed import run_enclosed

            assert self._shell is not None
            done = run_enclosed(command, self._shell, at=self._seen_at, seconds=seconds)
            output = done.output.rstrip("\n")
            if done.late:
                output += f"\n[the command was ended after {seconds:g} s]"
            elif done.status:
                output += f"\n[exit status {done.status}]"
            state: ToolState = "failed" if done.status else "done"
            return ToolResult(content=output.strip("\n") or "[no output]", server="shell", state=state)

        return PlannedCall(call, "shell", command, acts=True, asks=True, texts=(command,), run=run)

    def _plan_fetch(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        url = arguments.text("url")
        allowed_host(url, self._hosts)

        def run() -> ToolResult:
            return ToolResult(content=fetched(url, self._hosts, offline=self._offline), server="fetch")

        return PlannedCall(call, "fetch", url, acts=True, asks=False, texts=(url,), run=run)

    def _plan_documents(self, call: ToolCall, arguments: _Arguments) -> PlannedCall:
        text, name = arguments.text("text"), arguments.text("collection", self._collections[0])
        if name not in self._collections:
            raise UsageError(
                f"there is no collection {name[:60]!r} here", f"it may be {', '.join(self._collections)}"
            )

        def run() -> ToolResult:
            assert self._search is not None
            return ToolResult(content=self._search(name, text, _PASSAGES), server="documents")

        return PlannedCall(call, "documents", text, acts=False, asks=False, texts=(), run=run)


class _Arguments:
    """The arguments of a call, checked against its tool's parameters."""

    def __init__(self, tool: Tool, text: str) -> None:
        if len(text) > MAX_ARGUMENTS:
            raise UsageError(f"the call has {len(text):,} characters; the limit is {MAX_ARGUMENTS:,}")
        try:
            values = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise UsageError("the arguments are not a JSON object")
        properties: Any = tool.parameters["properties"]
        for name in values:
            if name not in properties:
                raise UsageError(
                    f"{tool.name} has no parameter {name[:40]!r}", f"it has {', '.join(properties)}"
                )
        self._values, self._tool = values, tool

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text. Raises UsageError where it is missing or something else."""
        value = self._values.get(name, default)
        if not isinstance(value, str):
            why = "is missing" if value is None else "is not a text"
            raise UsageError(f"{self._tool.name}: {name} {why}")
        return value

    def whole(self, name: str, default: int | None) -> int | None:
        """Return a whole number. Raises UsageError for something else."""
        value = self._values.get(name, default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UsageError(f"{self._tool.name}: {name} is not a whole number")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false; false where it is missing."""
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise UsageError(f"{self._tool.name}: {name} is neither true nor false")
        return value

    def seconds(self, default: float) -> float:
        """Return how long the call may take."""
        value = self._values.get("seconds", default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_SECONDS:
            raise UsageError(f"{self._tool.name}: seconds is not a number from 1 to {MAX_SECONDS:g}")
        return float(value)


def _tool(name: str, description: str, required: Sequence[str] = (), **parameters: tuple[str, str]) -> Tool:
    properties = {key: {"type": kind, "description": text} for key, (kind, text) in parameters.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(required)})


_PATH = ("string", "Path of the file.")
TOOLS = {
    tool.name: tool
    for tool in (
        _tool(
            "list_files",
            "List the files of the folder, or below a path.",
            path=("string", "Path of a folder below."),
        ),
        _tool(
            "read_file",
            "Read a text file, or some of its lines.",
            ("path",),
            path=_PATH,
            first=("integer", "First line, from 1."),
            last=("integer", "Last line."),
        ),
        _tool(
            "search_files",
            "Find the lines that contain a text, exactly as written.",
            ("text",),
            text=("string", "The text."),
            path=("string", "Path of a file, or of a folder below."),
        ),
        _tool(
            "edit_file",
            "Replace a text of a file by another. The old text must occur exactly once, with the same spaces.",
            ("path", "old", "new"),
            path=_PATH,
            old=("string", "The text to replace, copied exactly."),
            new=("string", "The text in its place."),
            every=("boolean", "Replace every occurrence."),
        ),
        _tool(
            "write_file",
            "Write a whole file: a new one, or in the place of another.",
            ("path", "text"),
            path=_PATH,
            text=("string", "All of the file's text."),
        ),
        _tool("remove_file", "Remove a file.", ("path",), path=_PATH),
        _tool(
            "python",
            "Run Python code. Names stay for the next call; print what you want to see. It has no network.",
            ("code",),
            code=("string", "The code."),
            seconds=("number", "How long it may take; 60 by default."),
        ),
        _tool(
            "shell",
            "Run a command by the shell in the folder. It has no network and writes in the folder and in /tmp alone.",
            ("command",),
            command=("string", "The command."),
            seconds=("number", "How long it may take; 120 by default."),
        ),
        _tool(
            "fetch", "Get a page of the web as text.", ("url",), url=("string", "The address, with https://.")
        ),
        _tool(
            "search_documents",
            "Find passages in the user's documents.",
            ("text",),
            text=("string", "What to look for."),
            collection=("string", "The collection, where there are several."),
        ),
    )
}
_KIND_OF = {
    **dict.fromkeys((name for name in TOOLS if name.endswith(("_file", "_files"))), "files"),
    "python": "python",
    "shell": "shell",
    "fetch": "fetch",
    "search_documents": "documents",
}


# --- patterns: what a user allows in advance -------------------------------------------------------


def checked_pattern(text: str) -> str:
    """Return a pattern `TOOL:GLOB`. Raises UsageError for another form, or a tool that does not exist."""
    name, colon, glob = text.partition(":")
    if not colon or not glob or name not in TOOLS:
        near = suggestion(name, list(TOOLS), "for example shell:pytest* or write_file:reports/*")
        raise UsageError(f"{text[:80]!r} is not a pattern of the form TOOL:TEXT", near)
    return text


def matches(pattern: str, planned: PlannedCall) -> bool:
    """Return whether a pattern allows a call: `*` stands for any text, but in a command for no sign of the shell."""
    name, _, glob = pattern.partition(":")
    if name != planned.call.name:
        return False
    if planned.target == glob:
        return True
    if planned.kind == "shell" and any(sign in _SHELL_SIGNS for sign in planned.target):
        return False
    return fnmatchcase(planned.target, glob.replace("[", "[[]"))


def offered_pattern(planned: PlannedCall) -> str:
    """Return the pattern that a question offers: the program of a command, the folder of a path, the host."""
    name, target = planned.call.name, planned.target
    if planned.kind == "shell":
        if any(sign in _SHELL_SIGNS for sign in target):
            return f"{name}:{target}"
        with suppress(ValueError):
            words = shlex.split(target)
            return f"{name}:{words[0]} *" if len(words) > 1 else f"{name}:{target}"
        return f"{name}:{target}"
    if planned.kind == "files":
        above, slash, _ = target.rpartition("/")
        return f"{name}:{above}/*" if slash else f"{name}:{target}"
    if planned.kind == "fetch":
        return f"{name}:{'/'.join(target.split('/')[:3])}/*"
    return f"{name}:*"


# --- in a chat: asked about as the tools of servers are --------------------------------------------


class OwnRunner:
    """Implements chats.types.ToolRunner for one answer. `patterns`: what is allowed without a question."""

    def __init__(self, tools: OwnTools, home: Path, chat: str, patterns: Sequence[str] = ()) -> None:
        self._tools, self._chat, self._patterns = tools, chat, tuple(patterns)
        self._permissions = Permissions.of(home)

    async def offer(self) -> Sequence[Tool]:
        """Return the tools."""
        return self._tools.tools()

    def server_of(self, name: str) -> str:
        """Return the kind of a tool."""
        return self._tools.kind_of(name)

    async def use(self, call: ToolCall, desk: ToolDesk) -> ToolResult:
        """Plan a call, ask where it changes something, and run it. What fails or is denied is a result too."""
        kind = self._tools.kind_of(call.name)
        try:
            planned = await asyncio.to_thread(self._tools.plan, call)
            if denial := await self._denial(planned, desk):
                return self._ended(call, kind, desk, ToolResult(content=denial, server=kind, state="denied"))
            desk.say(_step(call, kind, "running"))
            result = await asyncio.to_thread(planned.run)
        except FreeholdError as e:
            text = f"The call failed: {e.message}" + (f" ({e.hint})" if e.hint else "")
            result = ToolResult(content=text, server=kind, state="failed")
        return self._ended(call, kind, desk, result)

    async def aclose(self) -> None:
        """Keep the tools: they are the chat's."""

    async def _denial(self, planned: PlannedCall, desk: ToolDesk) -> str:
        """Return what the model gets where the user says no; "" where the call may run."""
        if not (planned.asks or planned.change) or any(matches(each, planned) for each in self._patterns):
            return ""
        pin = _pin(planned, self._tools.place)
        if self._permissions.allows(pin, self._chat):
            return ""
        claims = {"description": f"{planned.summary}\n{planned.detail}"}
        answer = await desk.ask(
            ToolQuestion(
                call=planned.call.id,
                server=planned.kind,
                tool=planned.call.name,
                arguments=planned.call.arguments,
                claims=claims,
                digest=pin.digest,
            )
        )
        if answer.verdict == "deny":
            return "The user denied this call." + (f" {answer.word}" if answer.word else "")
        self._permissions.grant(pin, answer.verdict, self._chat)
        return ""

    def _ended(self, call: ToolCall, kind: str, desk: ToolDesk, result: ToolResult) -> ToolResult:
        desk.say(_step(call, kind, result.state, result.content))
        return result


class JoinedRunner:
    """Several runners as one; the first that offers a name has it."""

    def __init__(self, runners: Sequence[ToolRunner]) -> None:
        self._runners = tuple(runners)
        self._owners: dict[str, ToolRunner] = {}

    async def offer(self) -> Sequence[Tool]:
        """Return the tools of all. Raises UsageError where two have one name."""
        tools: list[Tool] = []
        for runner in self._runners:
            for tool in await runner.offer():
                if self._owners.setdefault(tool.name, runner) is not runner:
                    raise UsageError(f"two tools are called {tool.name!r}", "leave one of them out")
                tools.append(tool)
        return tools

    def server_of(self, name: str) -> str:
        """Return the server of a name."""
        return self._owners[name].server_of(name) if name in self._owners else ""

    async def use(self, call: ToolCall, desk: ToolDesk) -> ToolResult:
        """Run a call by the runner that offered it."""
        if call.name not in self._owners:
            near = difflib.get_close_matches(call.name, self._owners, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return ToolResult(content=f"There is no tool called {call.name[:100]!r}.{hint}", state="failed")
        return await self._owners[call.name].use(call, desk)

    async def aclose(self) -> None:
        """Release all."""
        for runner in self._runners:
            await runner.aclose()


def _step(call: ToolCall, kind: str, state: ToolState, result: str | None = None) -> ToolStep:
    return ToolStep(
        call=call.id, server=kind, tool=call.name, arguments=call.arguments, state=state, result=result
    )


def _pin(planned: PlannedCall, place: str) -> PinnedTool:
    """Return what a standing permission is for: a command as it is written; a folder for changes of its files."""
    whole: Mapping[str, Any] = {
        "kind": planned.kind,
        "tool": planned.call.name,
        "about": planned.target if planned.kind == "shell" else "",
        "folder": place,
    }
    text = json.dumps(whole, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    name = f"{planned.call.name} {digest[:12]}" if planned.kind == "shell" else planned.call.name
    return PinnedTool(f"freehold {planned.kind}", name, "", {}, {}, digest, text)


def tools_of_chat(
    named: Sequence[OwnTool],
    home: Path,
    chat: str,
    *,
    offline: bool,
    search: Callable[[str, str, int], str] | None,
) -> OwnTools:
    """Return the tools that `--tool` names, with the chat's own folder for Python. Raises UsageError."""
    from freehold.base import private

    values = {each.kind: each.value for each in named}
    work = chat_folder(home, chat)
    for kind in ("files", "shell"):
        if kind in values:
            check_apart(Path(values[kind]), home)
    python = None
    if "python" in values:
        python = private.folder(work / "files", home)
    return OwnTools(
        scratch=private.folder(work / "scratch", home) if python else work,
        folder=Path(values["files"]) if "files" in values else None,
        python=python,
        shell=Path(values["shell"]) if "shell" in values else None,
        hosts=checked_hosts(values["fetch"]) if "fetch" in values else (),
        collections=[each.value for each in named if each.kind == "documents"],
        search=search,
        offline=offline,
    )


def chat_folder(home: Path, chat: str) -> Path:
    """Return where a chat's files of the tool python are; a name that cannot name a folder becomes a digest."""
    name = (
        chat
        if _FOLDER_NAME.fullmatch(chat)
        else hashlib.sha256(chat.encode("utf-8", "replace")).hexdigest()[:24]
    )
    return home / "tools" / "chats" / name


def check_apart(folder: Path, home: Path) -> None:
    """Raise UsageError for a folder that holds Freehold's home, or lies in it: keys and permissions are there."""
    path, own = folder.resolve(), home.resolve()
    if path == own or path in own.parents or own in path.parents:
        raise UsageError(
            f"{folder} holds or lies in Freehold's own files ({own})", "name a folder of your work"
        )
