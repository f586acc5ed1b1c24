"""Whether small models call tools that can be run: parsed, of the right name, with the right arguments.

    python benches/server/tools.py qwen2.5-coder:0.5b --cases 100

The same file and the same requests for our server and for llama.cpp's, greedy, one after another: tool_choice auto
and required. `parsed`: the answer is one or more calls whose arguments are a JSON object. `right`: exactly one call,
and the one the leaderboard lists. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.server.function_calls import Case, cases
from benches.server.scenarios import model_name
from benches.server.servers import Server, free_port, llama_server
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.cli.bench import version
from freehold.run.store import Store

CONTEXT = 4096
TOKENS = 512  # of an answer: a model that repeats itself ends


@dataclass
class Tally:
    """What came of the cases."""

    parsed: int = 0
    right: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: Case, answer: dict[str, Any], seconds: float) -> None:
        """Judge an answer."""
        self.seconds.append(seconds)
        message = (answer.get("choices") or [{}])[0].get("message", {})
        calls = [_read(call) for call in message.get("tool_calls") or ()]
        parsed = bool(calls) and None not in calls
        right = parsed and len(calls) == 1 and calls[0] is not None and case.judge(*calls[0])
        self.parsed, self.right = self.parsed + parsed, self.right + right
        if not right:
            said = message.get("content") or answer.get("error")
            self.wrong.append({"id": case.id, "calls": calls, "said": said, "right": case.right})

    def facts(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "parsed": self.parsed,
            "right": self.right,
            "median_s": round(statistics.median(self.seconds), 3),
        }


def main() -> int:
    """Ask both servers, print a line for each, then the facts."""
    args = _arguments()
    path = Store(load_settings()).resolve(args.model).path
    asked = cases(args.cases)
    facts: dict[str, Any] = {}
    wrong: dict[str, Any] = {}
    for name, command in _servers(path, args.only).items():
        port = int(command[command.index("--port") + 1])
        with Server(command, port, {}, "/health") as server:
            for choice in args.choices:
                tally = _ask(server.port, model_name(server.port), asked, choice)
                facts[f"{name} {choice}"] = tally.facts()
                wrong[f"{name} {choice}"] = tally.wrong
                print(f"{name:10} {choice:9} {tally.facts()}", flush=True)
    if args.wrong:
        args.wrong.write_text(json.dumps(wrong, indent=1, ensure_ascii=False))
    shared = {"bench": "tools", "model": args.model, "machine": cpu_name(), "version": version()}
    print(json.dumps({**shared, "cases": len(asked), **facts}))
    return 0


def _servers(path: Path, only: str | None) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "freehold.cli.main", "serve", str(path), "--port", str(free_port())]
    commands = {"freehold": lambda: [*ours, "--context", str(CONTEXT)], "llama.cpp": lambda: _llama(path)}
    return {name: command() for name, command in commands.items() if only in (None, name)}


def _llama(path: Path) -> list[str]:
    command = [str(llama_server()), "-m", str(path), "--host", "127.0.0.1", "--port", str(free_port())]
    return [*command, "--no-ui", "--jinja", "-c", str(CONTEXT), "-np", "1"]


def _ask(port: int, model: str, asked: list[Case], choice: str) -> Tally:
    tally = Tally()
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        for case in asked:
            body = {
                "model": model,
                "messages": case.messages,
                "tools": [case.tool],
                "tool_choice": choice,
                "parallel_tool_calls": False,  # each question wants one call
                "temperature": 0,
                "max_tokens": TOKENS,
            }
            began = time.perf_counter()
            answer = client.post("/v1/chat/completions", json=body).json()
            tally.add(case, answer, time.perf_counter() - began)
    return tally


def _read(call: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    try:
        arguments = json.loads(call["function"]["arguments"])
    except ValueError:
        return None
    return (call["function"]["name"], arguments) if isinstance(arguments, dict) else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--only", choices=("freehold", "llama.cpp"))
    parser.add_argument("--choices", nargs="+", default=["auto", "required"])
    parser.add_argument("--wrong", type=Path, help="write what was not right there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
