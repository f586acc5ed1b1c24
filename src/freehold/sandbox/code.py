"""Runs Python that a model wrote, and then a test, in a process that can neither write, connect nor start others.

The child (confined.py) closes itself in before it runs the code: memory, processor time, and the system calls that
are left to it. Linux alone has the means; elsewhere such code is not run. It may read files: what it learns goes
nowhere but into a word or two beside "failed". Knows no model and no case.
Path: evals/judges.py -> failure -> confined.py
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys

from freehold.errors import CapacityExceeded, UsageError
from freehold.platforms import can_confine
from freehold.sandbox.children import spawn

COMMAND = (sys.executable, "-P", "-m", "freehold.sandbox.confined")
SECONDS = 10  # of processor
WALL_S = 60  # on the clock: a busy machine may take longer
MEMORY = 1 << 30
_PASSED_ON = ("PYTHON", "LD_", "LC_", "LANG")  # of the environment: what is secret stays here
REFUSED = 77  # of confined.py: it could not confine itself


def failure(code: str, test: str) -> str:
    """Run `code`, then `test`; return in a few words why they failed, or "" where both ended without an error.

    Raises UsageError where this system cannot confine a process, CapacityExceeded where none can be started.
    """
    if not can_confine():
        raise UsageError(
            "tests of code run on Linux only, where a process can be confined", "use another judge here"
        )
    token = secrets.token_hex(16)
    job = json.dumps({"code": code, "test": test, "token": token, "seconds": SECONDS, "memory": MEMORY})
    kept = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    try:
        child = spawn(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
            cwd="/",
            start_new_session=True,
        )
    except OSError as e:
        raise CapacityExceeded(f"no process can be started for the tests: {e.strerror}") from e
    with child:
        try:
            said, _ = child.communicate(job.encode("utf-8", "surrogatepass"), timeout=WALL_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return f"ran longer than {WALL_S} s"
        except BaseException:
            child.kill()
            raise
    if child.returncode == REFUSED:
        raise UsageError("this kernel lets no process confine itself", "use another judge here")
    if said.endswith(token.encode()):
        return ""
    if child.returncode < 0:
        return f"was ended: over {SECONDS} s or {MEMORY >> 20:,} MiB"
    return said.decode("utf-8", "replace").strip()[-160:] or "ended before its test"
