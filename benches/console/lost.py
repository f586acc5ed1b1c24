"""What is lost of an answer, at random moments of a stream: `python benches/console/lost.py [--rounds 30]`.

Each round of each kind begins an answer and then, at a random moment: reloads the page again and again; kills the
engine (-9); kills the server (-9) and starts it anew; terminates the server; or stops the answer, which is timed until
the engine computes nothing. An answer must be whole, or a prefix that its chat calls `lost` or `stopped`; a message
must be there once. Exit 1 where one is not. Ends in one JSON line. Path: lost.py -> started -> Talker.follow
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.console.serving import TEXT, engine_of, started
from tests.console.conftest import Served
from tests.console.talking import Heard, Talker

KINDS = ("reload", "engine", "killed", "terminated", "stopped")  # methods of Rounds
STOP_S = 0.3  # from a stop to an idle engine, at most


class Rounds:
    """One server and the answers that are disturbed on it."""

    def __init__(self, server: Served, talker: Talker, name: str, dice: random.Random) -> None:
        self.server, self.talker, self.name, self.dice = server, talker, name, dice
        self.stops: list[float] = []

    def begin(self) -> tuple[str, dict[str, Any], Heard]:
        """Start an answer and follow it to a random place."""
        chat = self.talker.chat(self.name)
        made = self.talker.run(chat, "say something long")
        units = self.dice.randrange(1, len(TEXT) // 2)
        return chat, made, self.talker.follow(made["run"], until=lambda heard: len(heard.text) >= units)

    def reload(self) -> bool:
        _, made, heard = self.begin()
        while heard.end is None:
            units = len(heard.text) + self.dice.randrange(1, 8000)
            self.talker.follow(made["run"], heard, lambda h, units=units: len(h.text) >= units)
        return heard.text == TEXT

    def engine(self) -> bool:
        chat, made, heard = self.begin()
        engine_of(self.server).kill()
        heard = self.talker.follow(made["run"], heard)
        noted = [note["code"] for note in heard.data.get("note", [])]
        saved = self.talker.message(chat, made["answer"]["id"])
        return heard.text == saved["content"] == TEXT and (noted == ["engine"] or not noted)

    def killed(self) -> bool:
        chat, made, _ = self.begin()
        self.server.stop(signal.SIGKILL)
        self.server.again()
        saved = self.talker.message(chat, made["answer"]["id"])
        kept = TEXT.startswith(saved["content"]) and saved["state"] == "lost"
        return self.once(chat, made) and (kept or saved["content"] == TEXT)

    def terminated(self) -> bool:
        chat, made, _ = self.begin()
        self.server.stop(signal.SIGTERM)
        self.server.again()
        saved = self.talker.message(chat, made["answer"]["id"])
        return self.once(chat, made) and saved["content"] == TEXT and saved["state"] == "whole"

    def stopped(self) -> bool:
        chat, made, heard = self.begin()
        began = time.perf_counter()
        self.talker.json("POST", f"runs/{made['run']}/cancel", {})
        while self.running():
            time.sleep(0.005)
        self.stops.append(time.perf_counter() - began)
        heard = self.talker.follow(made["run"], heard)
        saved = self.talker.message(chat, made["answer"]["id"])
        return saved["content"] == heard.text and TEXT.startswith(heard.text) and saved["state"] != "lost"

    def running(self) -> bool:
        lines = self.talker.http.get("/metrics").text.splitlines()
        return any(x.startswith("vllm:num_requests_running{") and float(x.split()[-1]) for x in lines)

    def once(self, chat: str, made: dict[str, Any]) -> bool:
        """Return whether both messages are in the chat, once each."""
        tree = [row[0] for row in self.talker.json("GET", f"chats/{chat}")["tree"]]
        return tree == [made["user"]["id"], made["answer"]["id"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=KINDS)
    args = parser.parse_args()
    good: dict[str, int] = {}
    with started() as (server, talker, name):
        rounds = Rounds(server, talker, name, random.Random(args.seed))
        for kind in args.only or KINDS:
            disturb: Callable[[], bool] = getattr(rounds, kind)
            good[kind] = sum(disturb() for _ in range(args.rounds))
            print(f"{kind:12} {good[kind]}/{args.rounds}", file=sys.stderr)
    stops = sorted(rounds.stops)
    result = {
        "bench": "console/lost",
        "rounds": args.rounds,
        "nothing_lost": good,
        "stop_s": {
            "median": round(statistics.median(stops), 4),
            "most": round(stops[-1], 4),
            "ceiling": STOP_S,
        }
        if stops
        else None,
    }
    print(json.dumps(result))
    sys.exit(any(count != args.rounds for count in good.values()))


if __name__ == "__main__":
    main()
