"""Compiles a grammar in a process of its own, which may die of it: a long one is tried here first.

Knows llguidance and one grammar; imports next to nothing else, so that it starts in some 60 ms. A chain of a few
thousand rules overflows llguidance's stack, which no caller can catch, and nothing stops a compilation in a thread.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from freehold.base.platforms import limit
from freehold.base.sandbox.children import follow_parent, passed_on, spawn, watched

COMPILE_S = 3.0  # of processor for the whole process; a schema of 100 KB takes 0.3 s
WALL_S = (
    20.0  # of all time: ends a process that does not run at all, on a machine that is short of everything
)
MEMORY = 2 << 30  # bytes of addresses; the libraries map some 100 MB
STACK = 8 << 20  # bytes, half of what the compilation gets that counts
DIED = "it is too deep or too large to compile"
_TOKEN = re.compile(r"<\[\^?[\d,-]+\]>")  # by ids, of which the vocabulary here has few: any stands for any


def try_compile(source: str, limits: dict[str, Any]) -> str:
    """Compile `source` in another process; return its error, or an empty text."""
    source = _TOKEN.sub("<[256]>", source)
    order = json.dumps({"source": source, "limits": limits, "seconds": COMPILE_S})
    late = f"it took more than {COMPILE_S:g} s to compile"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with spawn([sys.executable, "-P", __file__], env=passed_on(), **pipes) as child:
        try:
            with watched(child, MEMORY):
                message, _ = child.communicate(order.encode(), WALL_S)
        except subprocess.TimeoutExpired:
            return late
        finally:
            child.kill()
    if child.returncode == -signal.SIGPROF:
        return late
    return DIED if child.returncode else message.decode(errors="replace").strip()


def main() -> None:
    """Compile the grammar on stdin and make a first mask; print the error."""
    import threading

    follow_parent(int(sys.argv[1]))
    for name, value in (("RLIMIT_AS", MEMORY), ("RLIMIT_CORE", 0)):
        limit(name, value)
    order = json.load(sys.stdin)
    with suppress(AttributeError, ValueError):  # a parent may ignore or block it, and children inherit that
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.setitimer(signal.ITIMER_PROF, order["seconds"])
    threading.stack_size(STACK)
    thread = threading.Thread(target=_compile, args=(order["source"], order["limits"]))
    thread.start()
    thread.join()


def _compile(source: str, limits: dict[str, Any]) -> None:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._tokenizer import TokenizerWrapper

    class Bytes:
        eos_token_id = 256
        bos_token_id = None
        tokens = [*(bytes([b]) for b in range(256)), b"<end>"]  # noqa: RUF012
        special_token_ids = [256]  # noqa: RUF012

        def __call__(self, text: bytes) -> list[int]:
            return list(text)

    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), slices=[])
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=LLParserLimits(**limits, verbose_errors=False))
    if not matcher.is_error():
        matcher.compute_bitmask()
    sys.stdout.write(matcher.get_error())


if __name__ == "__main__":
    main()
