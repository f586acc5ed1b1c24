"""A real model and a file server made with the SDK, by the three ways to use tools: page, terminal, /v1/responses.

`python benches/console/file_server.py --home FOLDER [--model qwen2.5-coder:1.5b] [--ways page,run,responses]
[--server "npx -y @modelcontextprotocol/server-filesystem"]`: the model of that data folder is asked what a file says,
its calls are allowed, and its answer is searched for what only the file says. The server is ours, or the given command
with the folder behind it. The page is Debian's Chromium with approvals clicked, `freehold run --mcp` a terminal of its
own with `o` typed, and /v1/responses the openai package with approval items. Prints each way's calls and answer, and
one JSON line; exit 1 where a way gave no call, or none that ran.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.console.conftest import CHROMIUM, Served  # noqa: E402
from tests.console.owner import as_owner  # noqa: E402

FILESERVER = ROOT / "tests" / "tools" / "fileserver.py"
NOTES = "Meeting with Ada: Thursday at 14:20 in room 4.\nBuy milk.\n"
SAID = re.compile(r"14:20|2:20|thursday", re.IGNORECASE)
QUESTION = "When is the meeting with Ada? Read the file notes.txt."
MAIN = "from freehold.cli.main import main; main()"
WAIT_S = 240
ROUNDS = 4
_CHAT = """async model => {
    const headers = {"content-type": "application/json"};
    const settings = {tools: ["files"], sampling: {temperature: 0}, max_tokens: 200};
    const body = JSON.stringify({model, settings});
    return (await (await fetch("/console/api/chats", {method: "POST", headers, body})).json()).id;
}"""

Way = Callable[[Served, str], dict[str, Any]]


def page(server: Served, model: str) -> dict[str, Any]:
    """Ask in Chromium; every question of a tool is allowed once."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.set_default_timeout(1000 * WAIT_S)
        as_owner(server, tab)
        chat = tab.evaluate(_CHAT, model)
        tab.goto(f"{server.url}/#/chat/{chat}")
        tab.get_by_role("textbox", name="Message", exact=True).fill(QUESTION)
        tab.get_by_role("button", name="Send", exact=True).click()
        asked = tab.get_by_role("alertdialog")
        over = tab.get_by_role("button", name="Send", exact=True)
        for _ in range(ROUNDS):
            expect(asked.or_(over).first).to_be_visible(timeout=1000 * WAIT_S)
            if not asked.count():
                break
            asked.get_by_role("button", name="Allow once", exact=True).click()
            expect(asked).to_have_count(0)
        expect(over).to_be_visible(timeout=1000 * WAIT_S)
        shown = tab.evaluate("id => fetch(`/console/api/chats/${id}?last=50`).then(a => a.json())", chat)
        browser.close()
    turns = shown["messages"]
    calls = [f"{c['name']}({c['arguments']})" for m in turns for c in m.get("calls") or ()]
    ran = [m["content"] for m in turns if m["role"] == "tool"]
    return {"calls": calls, "results": ran, "answer": turns[-1]["content"]}


def run(server: Served, model: str) -> dict[str, Any]:
    """Ask by `freehold run --mcp files` in a terminal; `o` is typed at each question."""
    keys, screen = os.openpty()
    words = ["run", "--mcp", "files", "--temperature", "0", "--max-tokens", "200", "--plain", model, QUESTION]
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        env={**os.environ, "FREEHOLD_HOME": str(server.home)},
        stdin=screen,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as verb:
        assert verb.stdout is not None and verb.stderr is not None
        said = b""
        while part := verb.stderr.read1(4096):
            if b"[a]lways: " in part:
                os.write(keys, b"o\n")
            said += part
        answer = verb.stdout.read().decode()
    os.close(keys)
    os.close(screen)
    shown = said.decode()
    calls = re.findall(r"wants to call (\S+ \S+) with\n(.*?)\nThe tool says", shown, re.DOTALL)
    ran = re.findall(r"^\[(\S+ \S+ (?:done|failed|denied): .*)\]$", shown, re.MULTILINE)
    return {"calls": [f"{name}({given})" for name, given in calls], "results": ran, "answer": answer}


def responses(server: Served, model: str) -> dict[str, Any]:
    """Ask by the openai package; each request for an approval is answered with yes."""
    import openai

    token = (server.home / "owner.token").read_text().strip()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, timeout=WAIT_S)
    tools: Any = [{"type": "mcp", "server_label": "files", "require_approval": "always"}]
    more: dict[str, Any] = {"model": model, "tools": tools, "temperature": 0, "max_output_tokens": 200}
    answer = client.responses.create(input=QUESTION, **more)
    calls, results = [], []
    for _ in range(ROUNDS):
        results += [item.output or item.error for item in answer.output if item.type == "mcp_call"]
        asked = [item for item in answer.output if item.type == "mcp_approval_request"]
        if not asked:
            break
        calls += [f"{item.name}({item.arguments})" for item in asked]
        yes: Any = [
            {"type": "mcp_approval_response", "approval_request_id": item.id, "approve": True}
            for item in asked
        ]
        answer = client.responses.create(input=yes, previous_response_id=answer.id, **more)
    return {"calls": calls, "results": results, "answer": answer.output_text}


WAYS: dict[str, Way] = {"page": page, "run": run, "responses": responses}


def main() -> int:
    """Ask by each way, print what came, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder:1.5b")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--server", default=shlex.join([sys.executable, str(FILESERVER)]))
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="freehold-files-") as folder:
        (Path(folder) / "notes.txt").write_text(NOTES)
        mcp(given.home, "add", "files", "--", *shlex.split(given.server), folder)
        server = Served(given.home, (given.model,))
        try:
            server.start()
            for name in given.ways.split(","):
                begun = time.monotonic()
                found[name] = WAYS[name](server, given.model)
                found[name]["s"] = round(time.monotonic() - begun, 1)
                found[name]["right"] = SAID.search(found[name]["answer"]) is not None
                print(f"{name}: {json.dumps(found[name], indent=1, ensure_ascii=False)}", flush=True)
        finally:
            server.stop()
            mcp(given.home, "rm", "files")
    print(json.dumps({"model": given.model, "ways": found}))
    return int(not all(way["results"] for way in found.values()))


def mcp(home: Path, *words: str) -> None:
    """Run `freehold mcp`."""
    env = {**os.environ, "FREEHOLD_HOME": str(home)}
    subprocess.run([sys.executable, "-c", MAIN, "mcp", *words], env=env, check=True)


if __name__ == "__main__":
    sys.exit(main())
