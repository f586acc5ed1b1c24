"""The processes that run a model's code and its test: one that stays, and two confined ones for each test.

Started as `python -m freehold.base.sandbox.confined FD PARENT` by code.py. The first process runs no line of either.
For each test it forks two, hands them the pipes that the parent made for them, and kills both when the parent has its
verdict. Both close themselves in (closing_in.py) before they read anything. One runs the code and answers what the
other asks (apart.py). The other runs the test and alone can write the verdict: the code's process holds neither that
pipe nor the test, so that nothing it does to itself is a pass.
"""

from __future__ import annotations

import builtins
import dis
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any, NoReturn

from freehold.base import platforms
from freehold.base.sandbox.apart import BrokenPeer, Peer
from freehold.base.sandbox.children import follow_parent, waits
from freehold.base.sandbox.closing_in import close_in, runtime_files
from freehold.base.sandbox.remote import RemoteCallable, RemoteFunction, trust

PASSED, FAILED, REFUSED = b"p", b"f", b"r"  # a verdict's first byte; after FAILED comes why
IDLE_S = 300.0  # without a test the process ends; the next test starts another
_READ, _SET = ("LOAD_NAME", "LOAD_GLOBAL"), ("STORE_NAME", "STORE_GLOBAL")
_WHY = 160  # characters of a reason
_CODE, _TEST = "answer", "test"  # the modules that their classes say they are of
_ENDED = "the code's process ended before the test did: it exited, or took too much time or memory"
# Imported once, before the first fork: most code asks for them.
_USUAL = (
    *(
        "traceback",
        "math",
        "collections",
        "itertools",
        "re",
        "typing",
        "functools",
        "string",
        "heapq",
        "bisect",
    ),
    *("copy", "datetime", "decimal", "fractions", "dataclasses", "enum", "random", "ctypes", "asyncio"),
)


def main() -> None:
    """Run the tests that the parent sends through the socket whose number is the first argument."""
    follow_parent(int(sys.argv[2]))
    platforms.limit("RLIMIT_CORE", 0)
    for name in _USUAL:
        __import__(name)
    _run_loops_without_sockets()
    readable = runtime_files()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        while waits(sock, IDLE_S):
            request, pipes, _, _ = socket.recv_fds(sock, 1024, 3)
            if not request:
                return
            _test(sock, json.loads(request), pipes, readable)


def _run_loops_without_sockets() -> None:
    """Let asyncio do without epoll, and without the sockets by which threads and signals wake it: there are none."""
    import selectors
    from asyncio.selector_events import BaseSelectorEventLoop

    selectors.DefaultSelector = selectors.PollSelector  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("_make_self_pipe", "_close_self_pipe", "_write_to_self"):
        assert hasattr(BaseSelectorEventLoop, name)
        setattr(BaseSelectorEventLoop, name, lambda self: None)


def _test(sock: socket.socket, limits: dict[str, int], pipes: list[int], readable: list[str]) -> None:
    """Start both processes, and end them when the parent says so."""
    code, test, verdict = pipes
    requests, asks = os.pipe()
    answered, answers = os.pipe()
    pids = []
    for work, kept in ((_run_code, (code, requests, answers)), (_run_test, (test, answered, asks, verdict))):
        pids.append(platforms.fork())
        if pids[-1] == 0:
            try:
                follow_parent(os.getppid())
                seconds, memory = limits["seconds"], limits["memory"]
                work(close_in(kept, seconds=seconds, memory=memory, readable=readable), *kept)
            finally:
                os._exit(1)
    for fd in (*pipes, requests, asks, answered, answers):
        os.close(fd)
    sock.recv(1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
        os.waitpid(pid, 0)
    sock.sendall(b"+")


def _run_code(confined: bool, code: int, reads: int, writes: int) -> None:
    """Run the code, then answer the test."""
    if not confined:
        return
    source = _all_of(code)
    sys.modules[_CODE] = module = ModuleType(_CODE)
    names = module.__dict__
    peer = Peer(reads, writes, names)
    peer.take_streams()
    try:
        exec(compile(source, _CODE, "exec", dont_inherit=True), names)
    except BaseException as e:
        peer.tell_raised(e)
        return
    defined = [name for name, value in names.items() if getattr(value, "__module__", _CODE) == _CODE]
    peer.tell([name for name in defined if not name.startswith("__")])
    peer.serve()


def _run_test(confined: bool, test: int, reads: int, writes: int, verdict: int) -> None:
    """Run the test, and write the verdict."""

    def end(why: str | None, kind: bytes = FAILED) -> NoReturn:
        message = PASSED if why is None else kind + why[:_WHY].encode("utf-8", "replace")
        os.write(verdict, message)
        os._exit(0)

    if not confined:
        end("", REFUSED)
    source = _all_of(test)
    sys.modules[_TEST] = ModuleType(_TEST)  # dataclasses look for it
    peer = Peer(reads, writes, is_own=_is_of_test, broken=lambda: end(_ENDED))
    try:
        own = peer.start()
        compiled = compile(source, _TEST, "exec", dont_inherit=True)
        names = _TestNames(peer)
        names.bind(set(own), compiled)
        exec(compiled, names)
    except SystemExit:
        end("exited")
    except BrokenPeer:
        end(_ENDED)
    except BaseException as e:
        end(_shown(e))
    end(None)


def _shown(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


class _TestNames(dict[str, Any]):
    """The test's names; what it does not define is the code's."""

    def __init__(self, peer: Peer) -> None:
        super().__init__({"__name__": _TEST, "__builtins__": builtins})
        self._peer = peer

    def __missing__(self, name: str) -> Any:
        if not hasattr(builtins, name):
            known, value = self._peer.ask("name", name)
            if known is True:
                return _as_named(name, value)
        raise KeyError(name)

    def bind(self, own: set[str], test: CodeType) -> None:
        """Take what the code defines and the test uses: the body of a class does not ask `__missing__`.

        A name of Python's own that the code defines too is Python's own in the test, unless the test uses nothing else
        that it does not define. Raises NameError where it uses several of those.
        """
        used, set_ = set(_names_in(test, _READ)), set(_names_in(test, _SET))
        builtin = {name for name in used if hasattr(builtins, name)}
        taken = used & own - builtin
        if used <= builtin | set_ and (hidden := builtin & own - set_):
            if len(hidden) > 1:
                raise NameError(
                    f"the code defines {', '.join(sorted(hidden))}, which the test uses as Python's own"
                )
            taken |= hidden
        for name in sorted(taken):
            known, value = self._peer.ask("name", name)
            if known is True and callable(value):
                self[name] = _as_named(name, value)


def _as_named(name: str, value: Any) -> Any:
    """Return an object of the code. What has a class's name and no function's type is trusted as a class."""
    if name[:1].isupper() and isinstance(value, RemoteCallable) and not isinstance(value, RemoteFunction):
        trust(value)
    return value


def _is_of_test(value: Any) -> bool:
    """Return whether the code may read attributes of a value that the test passed to it."""
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__ == _TEST


def _names_in(code: CodeType, operations: tuple[str, ...]) -> Iterator[str]:
    """Yield every global name that a piece of code reads or sets."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname in operations)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant, operations)


def _all_of(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


if __name__ == "__main__":
    main()
