"""The process that renders untrusted chat templates: one job after another, until the parent closes the socket.

Knows Jinja and its own limits; knows no chat. Nothing inside one operation looks at a clock (a comparison of lists
that share their parts, a sort, a regular expression), so the kernel does: a timer of processor time ends the process
by SIGPROF, and an allocation beyond the limit of addresses fails. It imports as little as it can, and is there in
some 60 ms.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

from freehold.base.errors import BadTemplate
from freehold.base.platforms import peak_bytes
from freehold.base.sandbox import jinja
from freehold.base.sandbox.children import follow_parent, limited, may_be_limited, receive, send
from freehold.base.sandbox.limits import HINT, TOO_LARGE, allowed_memory

GRACE_S = 0.2  # of processor time beyond the template's own limit, whose message is better
WORN = 192 << 20  # bytes; a chat of two megabytes stays below
IDLE_S = 300.0  # without a job the process gives its 20 MB back; the next job starts another


def main() -> None:
    """Render what comes through the socket whose number is the first argument."""
    follow_parent(int(sys.argv[2]))
    may_be_limited()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.sendall(b"+")
    while select.select([sock], [], [], IDLE_S)[0]:
        request = receive(sock)
        if not request:
            return
        answer = _done(request)
        send(sock, json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if answer["last"]:
            return


def _done(request: bytes) -> dict[str, Any]:
    """Do a job, its decoding included, within limits; `last` says that this process ends.

    A job's memory is not all released: the heap keeps its size while something is at its end, and the limit is of
    addresses. So a process that was once large does no other job.
    """
    job = json.loads(request.decode("utf-8", "surrogatepass"))
    with limited(job["seconds"] + GRACE_S, allowed_memory(len(request))):
        try:
            return {**_results(job), "last": peak_bytes() > WORN}
        except MemoryError:
            refusal = _refusal(BadTemplate(TOO_LARGE, HINT))
    return {**refusal, "last": True}


def _results(job: dict[str, Any]) -> dict[str, Any]:
    """Return a text, or why there is none, for each of the job's renders; or one refusal of them all."""
    now = datetime.fromisoformat(job["now"])
    try:
        texts = jinja.render(job["source"], job["renders"], job["seconds"], job["text"], now)
    except BadTemplate as e:
        return _refusal(e)
    return {
        "results": [_refusal(each) if isinstance(each, BadTemplate) else {"text": each} for each in texts]
    }


def _refusal(error: BadTemplate) -> dict[str, str]:
    return {"error": error.message, "hint": error.hint}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, OSError):
        main()
    os._exit(0)
