"""Replays a published server of tools: `python replay.py FILE` answers with what FILE has of its answers.

FILE has the server's answer to `initialize`, its tools (descriptions cut to their first sentences), and its results by
name and arguments. As servers may, it says beside each answer that its list of tools has changed, and talks on stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SAID = json.loads(Path(sys.argv[1]).read_text())


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a request."""
    if method == "initialize":
        return SAID["initialize"]
    if method == "tools/list":
        return {"tools": SAID["tools"]}
    asked = (params["name"], params.get("arguments"))
    return next(call["result"] for call in SAID["calls"] if (call["name"], call["arguments"]) == asked)


def send(message: dict[str, Any]) -> None:
    """Write a message."""
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def main() -> None:
    """Answer until stdin closes."""
    print("Server running on stdio", file=sys.stderr, flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            send({"method": "notifications/tools/list_changed"})
            send({"id": message["id"], "result": answer(message["method"], message.get("params") or {})})


if __name__ == "__main__":
    main()
