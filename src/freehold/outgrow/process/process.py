"""An engine as a process of ours: started, watched from outside, ended with all its children.

    engine = await launch(plan, folder, phase=driver.phase, title="vLLM")
    engine.progress(), engine.log; death = await engine.ended
    await engine.stop(drain_s=60)

Beside it a supervisor (`freehold.outgrow.process.supervisor`) ends the tree when this process is gone. Secrets travel
to it by a pipe and to the engine by its environment, so no command line has them. Our environment may have keys of
providers, tokens of hubs, and switches that open an engine's doors (VLLM_SERVER_DEV_MODE); an engine gets what is on
the list here and nothing else.

Why an engine ended is found in its log: one sentence for a person, and whether another start would end the same way.
The rules of causes.toml are read from the oldest line on and the first that fits wins, as engines report a cause first
and its consequences for pages after it. Knows processes, variables and lines; knows no HTTP and no engine: what a line
means is the driver's and causes.toml's.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, overload

import psutil

from freehold.base import private
from freehold.base.errors import EngineLost, UsageError
from freehold.base.sandbox import tree
from freehold.base.sandbox.children import spawn
from freehold.outgrow.contract import DeployPlan, EngineDeath, Listens, SecretRef, StartProgress, fill
from freehold.outgrow.process.supervisor import OWNER, owner

# --- what an engine gets at its start --------------------------------------------------------------

# What keeps the hub's client and the libraries below engines from calling out.
PRIVATE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
# Programs and libraries, places of caches, devices, threads, network interfaces of collectives.
_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "SSL_CERT_FILE", "SSL_CERT_DIR", "CC", "CXX", "MAX_JOBS"),
        *("HF_HOME", "HF_HUB_CACHE", "VLLM_CACHE_ROOT", "VLLM_TARGET_DEVICE", "SGLANG_CACHE_DIR"),
        "FLASHINFER_WORKSPACE_BASE",
        *("OLLAMA_MODELS", "OLLAMA_LLM_LIBRARY", "ZE_AFFINITY_MASK", "FREEHOLD_ISA"),
    }
)
_BEGINNINGS = (
    *("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_", "HSA_", "ROCM_", "GPU_DEVICE_", "ONEAPI_"),
    *("OMP_", "MKL_", "KMP_", "GOMP_", "GLOO_", "UCX_", "TORCHINDUCTOR_", "TRITON_", "VLLM_CPU_", "GGML_"),
)


def engine_environment(
    plan: DeployPlan, held: Mapping[str, str], ours: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment of an engine: what is passed on, the plan's variables, and its secrets' values."""
    ours = os.environ if ours is None else ours
    passed = {name: value for name, value in ours.items() if name in _NAMES or name.startswith(_BEGINNINGS)}
    filed = {reference.variable for reference in plan.secrets if reference.file}
    keys = {name: value for name, value in held.items() if name not in filed}
    # The engine's temporary files go with it; what Torch compiled stays.
    kept = {"TORCHINDUCTOR_CACHE_DIR": folder} if (folder := _compiled()) else {}
    return {**kept, **passed, "PYTHONNOUSERSITE": "1", **plan.environment, **keys}


def _compiled() -> str:
    """Return where Torch keeps what it compiled, unless a variable says otherwise: a folder that is ours alone.

    Torch runs what it finds there, and any account may make a folder of that name first, or a link. Then there is none:
    what is compiled goes with the engine's other temporary files.
    """
    folder = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    with suppress(OSError):
        with suppress(FileExistsError):
            os.mkdir(folder, private.FOLDER)
        status = os.lstat(folder)
        writable = stat.S_IWGRP | stat.S_IWOTH
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & writable:
            return folder
    return ""


def values_of(references: tuple[SecretRef, ...]) -> dict[str, str]:
    """Return variable -> value: 32 random bytes each, or what another variable holds. Raises UsageError."""
    values = {}
    for reference in references:
        kind, _, name = reference.source.partition(":")
        if kind == "random":
            values[reference.variable] = secrets.token_hex(32)
        elif kind == "env" and os.environ.get(name):
            values[reference.variable] = os.environ[name]
        elif kind == "env":
            raise UsageError(
                f"the plan takes {reference.variable} from the environment's {name}, which is not set",
                f"export {name}, or leave the key to be made at random",
            )
        else:
            where = "is a secret of a cluster and has no value on this machine"
            raise UsageError(f"{reference.source!r} {where}")
    return values


# --- what a plan leaves open until the start: a port of loopback, files and links in the replica's folder ---------

# Below the ports that systems lend to outgoing connections (32768 on for Linux, 49152 on for macOS): an engine that
# needs a minute to start would else find its port taken by some program's request.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """Return a port of loopback that was free just now, and that no outgoing connection is lent meanwhile.

    Raises:
        OSError: none of 100 ports drawn by chance was free.
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port of loopback among 100 drawn from {_PORTS.start} to {_PORTS.stop - 1}")


def filled(plan: DeployPlan, folder: Path) -> DeployPlan:
    """Return the plan with the replica's folder, and a port in place of 0, in its flags and variables too."""
    listens = plan.listens
    if listens.socket is not None:
        listens = Listens(Path(str(listens.socket).replace("{folder}", str(folder))))
    elif not listens.port:
        listens = Listens(host=listens.host, port=free_port())
    places = {"{folder}": str(folder), "{port}": str(listens.port)}
    return replace(
        plan,
        listens=listens,
        flags=tuple(replace(flag, value=flag.value and fill(flag.value, places)) for flag in plan.flags),
        environment={name: fill(value, places) for name, value in plan.environment.items()},
    )


def make_links(plan: DeployPlan, folder: Path) -> None:
    """Make the plan's links in the replica's folder, in place of those of an earlier start."""
    for name, target in plan.links.items():
        link = folder / name
        private.folder(link.parent, folder)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def write_keys(plan: DeployPlan, folder: Path, held: Mapping[str, str]) -> None:
    """Write the secrets that an engine reads from files, where it takes them from no variable."""
    for name in {reference.file for reference in plan.secrets if reference.file}:
        keys = {r.variable: held[r.variable] for r in plan.secrets if r.file == name}
        write_settings(folder / name, keys)


def write_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Write a file of settings that its user alone can read. JSON is YAML."""
    with open(path, "w", encoding="utf-8", opener=private.opener) as file:
        json.dump(dict(settings), file)


# --- what it died of -------------------------------------------------------------------------------

_NO_MEMORY = "this machine's memory does not suffice"


@dataclass(frozen=True, slots=True)
class CauseRule:
    """A row of causes.toml: a line of a log and what it means."""

    name: str
    pattern: re.Pattern[str]
    sentence: str
    fatal: bool


def _rules(which: str) -> tuple[CauseRule, ...]:
    text = resources.files("freehold.outgrow.process").joinpath("causes.toml").read_text(encoding="utf-8")
    return tuple(
        CauseRule(row["name"], re.compile(row["line"]), row["says"], row.get("fatal", True))
        for row in tomllib.loads(text)[which]
    )


RULES = _rules("first")
LATER = _rules("later")  # they follow a cause; one of them is the cause only if no other was found
# Lines before an end that are looked at: tracebacks of some processes; older errors ended nothing.
_TOLD = 600
_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception)|Exception): (.+)")
# What processes say of the end of another, whose own error comes before it.
_FOLLOWS = re.compile(
    r"[Ss]ee (?:the )?(?:root cause|stack ?trace|trace|error|log|logs|above)|background process|initialization failed|"
    r"EngineDeadError|EngineCore (?:failed|encountered)|died unexpectedly|Received sigquit|was killed|SystemExit"
)


def death(
    title: str,
    lines: Sequence[str],
    status: int | None,
    *,
    ended_by: str = "",
    memory_kill: bool = False,
    where: str = "an address of it",
) -> EngineDeath:
    """Return what is said of an end.

    `status`: an exit code, or minus a signal. `ended_by`: why we ended it ourselves. `memory_kill`: the system ended a
    process for lack of memory shortly before. `where`: on what it was to listen.
    """
    how = f"{title} was ended: {ended_by}" if ended_by else f"{title} {_ended(status)}"
    cause = find(lines, where)
    if memory_kill and not ended_by and (cause is None or cause[0] in LATER):
        return EngineDeath(f"{how}: {_NO_MEMORY}, the system ended a process of it", "memory", status)
    own = _own_error(lines) if cause is None or cause[0] in LATER[1:] else ""
    if cause is not None and not own:
        rule, sentence = cause
        return EngineDeath(f"{how}: {sentence}", rule.name, status, rule.fatal and not ended_by)
    if ended_by or status == -signal.SIGKILL:  # no time to write why: an older error says nothing of it
        return EngineDeath(how, "", status)
    return EngineDeath(f"{how}: {own}" if own else how, "", status)


def _own_error(lines: Sequence[str]) -> str:
    """Return the latest error that is not what one process says of the end of another; "" for none."""
    errors = [m[0] for line in reversed(lines[-_TOLD:]) if (m := _ERROR.search(line))]
    return next((each for each in errors if not _FOLLOWS.search(each)), "")


def find(lines: Sequence[str], where: str = "an address of it") -> tuple[CauseRule, str] | None:
    """Return the first known cause in a log, and its sentence; else the first of what follows from causes."""
    for rules in (RULES, LATER):
        for line in lines[-_TOLD:]:
            for rule in rules:
                if match := rule.pattern.search(line):
                    return rule, rule.sentence.format(*match.groups(), where=where)
    return None


def _ended(status: int | None) -> str:
    if status is None:
        return "ended"
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal has no name
            return f"was ended by signal {-status}"
    return f"ended with status {status}"


# --- the process -----------------------------------------------------------------------------------

COMMAND = (sys.executable, "-P", "-m", "freehold.outgrow.process.supervisor")
# For the supervisor to say that the engine's program runs, on a machine that is short of everything.
START_S = 60.0
END_S = 5.0  # beyond the drain, for an engine that was asked to end
KILL_S = 15.0  # for the supervisor to end all below it: its own limit is 8 s
_TREE_S = 1.0  # that a list of a tree's processes is used: finding them reads every process of the machine
_MOVED_CPU_S, _MOVED_BYTES = 1.0, 32 << 20  # idle threads of a stuck start use less


async def launch(plan: DeployPlan, folder: Path, *, phase: Callable[[str], str], title: str) -> OwnProcess:
    """Start an engine. Raises UsageError: no such program, no value for a secret; EngineLost: it could not begin."""
    plan = filled(plan, folder)
    if plan.listens.socket is not None:
        plan.listens.socket.unlink(missing_ok=True)
    held = values_of(plan.secrets)
    write_keys(plan, folder, held)
    make_links(plan, folder)
    engine = OwnProcess(plan, held, phase, title)
    await engine.start(folder)
    return engine


class OwnProcess:
    """Implements contract.LaunchedEngine."""

    def __init__(
        self, plan: DeployPlan, held: Mapping[str, str], phase: Callable[[str], str], title: str
    ) -> None:
        """`held`: the values of the plan's secrets by variable. Made inside a running event loop."""
        self.plan = plan
        self.title = title
        self.ended: asyncio.Future[EngineDeath | None] = asyncio.get_running_loop().create_future()
        self.log = LogRing(held.values(), self._tell)
        self._held = dict(held)
        self._read_phase = phase
        self._phase = "starting"
        self._pid, self._temporary = 0, ""
        self._ended_by = ""  # why it ends, if we asked; "stop": by `stop`
        self._reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._tree: list[psutil.Process] = []
        self._tree_at = -_TREE_S
        self._mark = (0.0, 0, 0)
        self._moved_at = time.monotonic()

    @property
    def pid(self) -> int:
        """The engine's own process: vLLM's API server."""
        return self._pid

    @property
    def socket(self) -> Path | None:
        """Where it listens, if on a Unix socket."""
        return self.plan.listens.socket

    @property
    def url(self) -> str:
        """Of its API, as a Provider has it."""
        listens = self.plan.listens
        return "http://engine/v1" if listens.socket else f"http://{listens.host}:{listens.port}/v1"

    @property
    def key(self) -> str:
        """The key that its API wants: the plan's first secret."""
        return next(iter(self._held.values()), "")

    async def start(self, folder: Path) -> None:
        """Start the supervisor and wait until it says that the program runs. Raises UsageError, EngineLost."""
        pipe = subprocess.PIPE
        child = spawn(COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._supervisor = child
        loop = asyncio.get_running_loop()
        assert child.stdout is not None and child.stderr is not None
        await loop.connect_read_pipe(lambda: self.log, child.stderr)
        await loop.connect_read_pipe(lambda: _Reports(self._reports), child.stdout)
        environment = {**engine_environment(self.plan, self._held), OWNER: owner(folder)}
        place = next(iter(self.plan.places), "")
        self._order({"argv": self.plan.argv(), "env": environment, "cwd": str(folder), "place": place})
        try:
            first = await asyncio.wait_for(self._reports.get(), START_S)
        except BaseException:
            self._abandon()
            raise
        if "pid" not in first:
            self._abandon()
            raise self._not_begun(first)
        self._pid, self._temporary = first["pid"], first["temporary"]
        self._watching = asyncio.create_task(self._watch())

    def progress(self) -> StartProgress:
        """Look at the tree: processor seconds, memory, lines."""
        used = tree.usage(self._processes())
        cpu, memory, news = self._mark
        grew = used.cpu_s - cpu >= _MOVED_CPU_S or abs(used.memory_bytes - memory) >= _MOVED_BYTES
        if grew or self.log.news > news:
            self._mark = (used.cpu_s, used.memory_bytes, self.log.news)
            self._moved_at = time.monotonic()
        since = time.monotonic() - self._moved_at
        return StartProgress(self._phase, used.cpu_s, used.memory_bytes, self.log.lines, since)

    async def stop(self, drain_s: float) -> None:
        """Ask it to end, wait for its answers, then end what is left and what it left in shared memory."""
        self._ended_by = self._ended_by or "stop"
        self._order({"signal": 15})
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.ended), drain_s + END_S)
        self._order({"kill": True})
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.ended), KILL_S)
        if not self.ended.done() and self._supervisor is not None:
            self._tree = tree.descendants(self._supervisor.pid)  # which `_watch` then ends
            self._supervisor.kill()  # it takes no orders: it was stopped, or hangs in a disk
        await self.ended

    def kill(self, why: str) -> None:
        """End every process at once; `ended` says why."""
        self._ended_by = self._ended_by or why
        self._order({"kill": True})

    def _processes(self) -> list[psutil.Process]:
        if self.ended.done() or self._supervisor is None:
            return []  # its number may be another's by now
        if time.monotonic() - self._tree_at >= _TREE_S:
            self._tree = tree.descendants(self._supervisor.pid)
            self._tree_at = time.monotonic()
        return self._tree

    def _order(self, what: dict[str, Any]) -> None:
        """Tell the supervisor; one that has ended needs no orders."""
        pipe = self._supervisor.stdin if self._supervisor else None
        if pipe is not None and not pipe.closed:
            with suppress(OSError):
                pipe.write(json.dumps(what).encode() + b"\n")
                pipe.flush()

    def _tell(self, line: str) -> None:
        self._phase = self._read_phase(line) or self._phase

    async def _watch(self) -> None:
        """Wait for the end, read the last lines, end what the supervisor could not, and say how it was."""
        report = await self._reports.get()
        if "ended" not in report:  # the supervisor was killed: nothing else ends its children
            tree.kill(self._tree)
            tree.end_group(self._pid)
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._ended_by = self._ended_by or "its supervisor was killed"
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.log.closed), 1.0)
        self._abandon()
        if not self.ended.done():
            self.ended.set_result(None if self._ended_by == "stop" else self._death(report))

    def _death(self, report: Mapping[str, Any]) -> EngineDeath:
        status = report.get("ended")
        listens = self.plan.listens
        return death(
            self.title,
            list(self.log),
            status,
            ended_by=self._ended_by,
            memory_kill=bool(report.get("memory_kill")),
            where=str(listens.socket or f"port {listens.port} of {listens.host}"),
        )

    def _not_begun(self, report: Mapping[str, Any]) -> UsageError | EngineLost:
        if error := report.get("error"):
            return UsageError(
                f"{self.title} does not start: {error}", f"the plan's program is {self.plan.command[0]!r}"
            )
        last = next(iter(reversed(self.log)), "")
        return EngineLost(f"{self.title} was not started: its supervisor ended{': ' + last if last else ''}")

    def _abandon(self) -> None:
        """Close our end of the pipe, at which the supervisor ends all; take its status and remove the socket."""
        child = self._supervisor
        if child is None:
            return
        assert child.stdin is not None
        with suppress(OSError):
            child.stdin.close()
        asyncio.get_running_loop().run_in_executor(None, child.wait)
        if self.plan.listens.socket is not None:
            self.plan.listens.socket.unlink(missing_ok=True)


class _Reports(asyncio.Protocol):
    """Lines of JSON from the supervisor; the end of its output is an empty report."""

    def __init__(self, taken: asyncio.Queue[dict[str, Any]]) -> None:
        self._taken = taken
        self._held = b""

    def data_received(self, data: bytes) -> None:
        *whole, self._held = (self._held + data).split(b"\n")
        for line in whole:
            self._taken.put_nowait(json.loads(line))

    def connection_lost(self, exc: Exception | None) -> None:
        self._taken.put_nowait({})


# --- the newest lines of an engine's output ---------------------------------------------------------
# Bounded in lines and in their length, without secrets and requests.
# Engines print what they like, for months: a line of megabytes, a bar that is drawn again and again, their
# environment in a traceback.

LINES = 2000
CHARACTERS = 500  # of a line
_UNFINISHED = 1 << 16  # bytes of a line whose end has not come: what follows is dropped
_SEEN = 1024  # different lines remembered, to tell news from repetition
_COLOUR = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
# What is left would be obeyed by the terminal that shows the log: titles, the clipboard, lines written over.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# An engine that dies prints the requests it computed: stop strings, schemas, expressions are the client's words.
_REQUESTS = re.compile(rb"Dumping |[Ss]ampling_?[Pp]arams|prompt_token_ids=|scheduled_new_reqs")
_FIGURES = re.compile(r"[\d.:,/%-]+")


class LogRing(asyncio.Protocol, Sequence[str]):
    """A pipe's reader that keeps the newest lines. `lines` counts all, `news` those that say something new."""

    def __init__(self, secrets: Iterable[str] = (), told: Callable[[str], object] | None = None) -> None:
        """`secrets` are replaced wherever they occur; `told` is called with each line."""
        self.lines = self.news = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._secrets = [s.encode() for s in secrets if s]
        self._told = told
        self._kept: deque[str] = deque(maxlen=LINES)
        self._held = b""
        self._dropping = False
        self._seen: dict[str, None] = {}

    def data_received(self, data: bytes) -> None:
        """Take lines; a carriage return ends one too, as bars use it."""
        *whole, self._held = (self._held + data.replace(b"\r", b"\n")).split(b"\n")
        if len(whole) > LINES:  # a flood: what would be pushed out at once is counted alone
            self._dropping, self.lines = False, self.lines + len(whole) - LINES
            whole = whole[-LINES:]
        for line in whole:
            if not self._dropping:
                self._add(line)
            self._dropping = False
        if len(self._held) > _UNFINISHED:
            if not self._dropping:
                self._add(self._held)
            self._held, self._dropping = b"", True

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep what had no line end."""
        if self._held and not self._dropping:
            self._add(self._held)
        self._held = b""
        if not self.closed.done():
            self.closed.set_result(None)

    def _add(self, raw: bytes) -> None:
        if match := _REQUESTS.search(raw):
            raw = raw[: match.start()] + b"[text of requests is left out]"
        for secret in self._secrets:
            raw = raw.replace(secret, b"[secret]")
        line = _CONTROL.sub("", _COLOUR.sub(b"", raw).decode("utf-8", "replace")).rstrip()
        if not line:
            return
        self.lines += 1
        if len(line) > CHARACTERS:
            line = line[: CHARACTERS - 1] + "…"
        self._kept.append(line)
        self._note_news(line)
        if self._told is not None:
            self._told(line)

    def _note_news(self, line: str) -> None:
        """Count a line unless it was said before with other figures: "still waiting, 60 s", "still waiting, 120 s"."""
        shape = _FIGURES.sub("0", line)
        if shape not in self._seen:
            self.news += 1
            self._seen[shape] = None
            if len(self._seen) > _SEEN:
                del self._seen[next(iter(self._seen))]

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return list(self._kept)[index] if isinstance(index, slice) else self._kept[index]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._kept))
