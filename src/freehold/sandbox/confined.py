"""The child that runs a model's code: it gives up what it could do harm with, then runs code and test.

Started as `python -m freehold.sandbox.confined PARENT` by code.py; the job comes on stdin as JSON. What is left of the
system calls is a list (seccomp): memory, clocks, threads, and files that are opened to be read. Everything else,
sockets and new processes among it, fails with EPERM. The token that says "passed" is written after the test, so that
code that exits early has not passed; code that searches the interpreter for it could still cheat.
Path: code.py -> main
"""

from __future__ import annotations

import json
import os
import resource
import sys

from freehold import platforms
from freehold.sandbox.children import follow_parent

REFUSED = 77


def main() -> None:
    """Read the job, confine this process, run it, and write the token or the reason."""
    follow_parent(int(sys.argv.pop()))
    job = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    for name in ("traceback", "math", "collections", "itertools", "re", "typing", "functools", "string"):
        __import__(name)
    limits = ((resource.RLIMIT_CPU, job["seconds"]), (resource.RLIMIT_AS, job["memory"]))
    for kind, most in (*limits, (resource.RLIMIT_FSIZE, 1 << 16), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not platforms.confine():
        os._exit(REFUSED)
    names = {"__name__": "answer", "__builtins__": __builtins__}
    try:
        exec(compile(job.pop("code"), "answer", "exec"), names)
        exec(compile(job.pop("test"), "test", "exec"), names)
    except SystemExit:
        _say(out, "exited")
    except BaseException as e:
        _say(out, f"{type(e).__name__}: {e}"[:160])
    _say(out, job["token"])


def _say(out: int, text: str) -> None:
    os.write(out, text.encode("utf-8", "replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
