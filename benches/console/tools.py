"""A hundred runs with tools of MCP servers, ended in every way: what of their processes is left.

`python benches/console/tools.py [--runs 100]`: a real server with a scripted model that calls tools, and servers of
tests/tools. Half of the runs end normally (one in five of those with the file server of the SDK), a quarter is
cancelled in the middle of a call, and of the rest a third each has its server of tools killed in the call, has one that
dies by itself, and is a request of /v1/responses whose client goes away in the call. A chat keeps its server for five
minutes, eight at most, which is counted apart; nothing else may run below the server, and after SIGTERM nothing at all.
The last line is JSON; exit 1 where a process is left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import httpx2  # noqa: E402
import psutil  # noqa: E402

from freehold.serve.tools.mcp.use import MOST  # noqa: E402
from tests.console.conftest import Served  # noqa: E402
from tests.console.scripted import write_scripted  # noqa: E402
from tests.console.talking import Heard, Talker  # noqa: E402
from tests.console.test_tools import FILESERVER, HERMES, SCRIPTS  # noqa: E402
from tests.tools.world import HOSTILE  # noqa: E402

HOWS = ("", "hang", "die")  # of the program in tests/tools/hostile.py
AT_ONCE = 4
GONE_S = 20.0


class World:
    """A server, its owner as a client, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        model = write_scripted(folder / "scripted.gguf", SCRIPTS, preamble=HERMES)
        notes, home = folder / "notes", folder / "home"
        notes.mkdir()
        home.mkdir()
        (notes / "notes.txt").write_text("Buy milk.")
        commands = {f"h{how}": [sys.executable, str(HOSTILE), how] for how in HOWS}
        commands["files"] = [sys.executable, str(FILESERVER), str(notes)]
        tables = "".join(f"[mcp.{n}]\ncommand = {json.dumps(words)}\n" for n, words in commands.items())
        (home / "config.toml").write_text("adopt = false\n" + tables)
        self.served = Served(home, (str(model),))
        self.served.start()
        token = (home / "owner.token").read_text().strip()
        self.talker = Talker(self.served.url, {"authorization": f"Bearer {token}"})
        self.model = self.talker.http.get("/v1/models").json()["data"][0]["id"]
        self.ended: Counter[str] = Counter()

    @property
    def process(self) -> psutil.Process:
        assert self.served.process is not None
        return psutil.Process(self.served.process.pid)

    def below(self) -> list[psutil.Process]:
        """What runs below the server."""
        found = self.process.children(recursive=True)
        return [each for each in found if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    def tools(self) -> dict[int, str]:
        """The servers of tools and their guards below the server, with their last words."""
        found = {each.pid: each.cmdline() for each in self.below()}
        return {pid: words[-1] for pid, words in found.items() if {str(HOSTILE), str(FILESERVER)} & {*words}}

    # --- one run each ----------------------------------------------------------------------------------

    def whole(self, number: int) -> None:
        """A run that is allowed and ends normally."""
        server, text = ("files", "read") if number % 5 == 0 else ("h", "please")
        self.follow(server, text, lambda run: None)

    def cancelled(self, number: int) -> None:
        self.follow("hhang", "please", lambda run: self.talker.json("POST", f"runs/{run}/cancel", {}))

    def killed(self, number: int) -> None:
        """A run whose server of tools is killed in the call; the run goes on, and says that the call failed."""
        self.follow("hhang", "please", lambda run: self.kill())

    def dead(self, number: int) -> None:
        self.follow("hdie", "please", lambda run: None)

    def left(self, number: int) -> None:
        """A request whose client goes away in the call."""
        body: dict[str, Any] = {"model": self.model, "tools": [{"type": "mcp", "server_label": "hhang"}]}
        answer = self.talker.http.post("/v1/responses", json={**body, "input": "please"})
        assert answer.status_code == 200, answer.text
        first = answer.json()
        (asked,) = [item for item in first["output"] if item["type"] == "mcp_approval_request"]
        yes = {"type": "mcp_approval_response", "approval_request_id": asked["id"], "approve": True}
        more = {**body, "input": [yes], "previous_response_id": first["id"]}
        try:
            self.talker.http.post("/v1/responses", json=more, timeout=3.0)
        except httpx2.TimeoutException:
            self.ended["client gone"] += 1

    def follow(self, server: str, text: str, act: Callable[[str], object]) -> None:
        """Start a run, allow its call, do `act` once it runs, and follow it to its end."""
        run = self.talker.run(self.talker.chat(self.model, tools=[server]), text)["run"]
        heard = self.talker.follow(run, until=lambda heard: heard.end is not None or "ask" in heard.data)
        if heard.end is None:
            asked = heard.data["ask"][0]["call"]
            self.talker.json("POST", f"runs/{run}/approve", {"call": asked, "verdict": "once"})
            heard = self.talker.follow(run, heard, until=running)
        if heard.end is None:
            act(run)
        heard = self.talker.follow(run, heard)
        states = [step["state"] for step in heard.data.get("tool", ())]
        assert heard.end is not None
        self.ended[f"{states[-1] if states else 'no call'}, {heard.end['finish']}"] += 1

    def kill(self) -> None:
        """Kill one server of tools that hangs."""
        found = [pid for pid, word in self.tools().items() if word == "hang"]
        os.kill(max(found), signal.SIGKILL)


def running(heard: Heard) -> bool:
    return heard.end is not None or "tool" in heard.data


def main() -> int:
    """Run all, count, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="freehold-tools-") as folder:
        world = World(Path(folder))
        try:
            before = len(world.below())
            every(world, runs)
            strange, kept = strays(world), len(world.tools())
            tree = world.below()
        finally:
            world.served.stop()
        _, left = psutil.wait_procs(tree, GONE_S)
    found = {
        "runs": runs,
        "ended": dict(world.ended),
        "below_before": before,
        "kept_of_chats": kept,
        "strays": strange,
        "left_after_the_end": len(left),
    }
    print(json.dumps(found))
    return int(bool(strange or left) or kept > MOST or world.ended.total() != runs)


def every(world: World, runs: int) -> None:
    """Make the runs, and give what ends a while to be gone."""
    rest = [world.dead, world.left]
    kinds = [world.whole] * (runs // 2) + [world.cancelled] * (runs // 4)
    kinds += [rest[i % 2] for i in range((runs - len(kinds)) * 2 // 3)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda i: kinds[i](i), range(len(kinds))))
    for number in range(runs - len(kinds)):  # alone, as another's server could be the one that is killed
        world.killed(number)
    until = time.monotonic() + GONE_S
    while time.monotonic() < until and strays(world):
        time.sleep(0.2)


def strays(world: World) -> list[str]:
    """What ought to have ended: servers of tools but those that a chat keeps, and guards without a server."""
    servers = world.tools().values()
    guards = sum("freehold.serve.tools.mcp.guard" in each.cmdline() for each in world.below())
    return [word for word in servers if word in HOWS[1:]] + ["guard"] * (guards - len(servers))


if __name__ == "__main__":
    sys.exit(main())
