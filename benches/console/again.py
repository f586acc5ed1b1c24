"""The same bits again under load: `python benches/console/again.py [MODEL --home H] [--answers 200]`.

Answers at random seeds and temperatures are computed again while other streams of random lengths run; each has to be
equal to the last token id. Exit 1 where one is not. Ends in one JSON line. Path: again.py -> started -> Talker.again
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.console.serving import started
from tests.console.talking import Talker

WORDS = [
    "a river",
    "a bridge",
    "the number seven",
    "a long winter",
    "two doors",
    "salt",
    "a letter",
    "the sea",
]


def load(url: str, name: str, quiet: threading.Event, seed: int) -> None:
    """Ask for answers of random lengths until `quiet`."""
    dice, mine = random.Random(seed), Talker(url)
    with mine.http:
        while not quiet.is_set():
            said = [{"role": "user", "content": f"Write about {dice.choice(WORDS)}, {dice.randrange(999)}."}]
            body: dict[str, Any] = {"model": name, "messages": said, "max_tokens": dice.randrange(4, 120)}
            mine.http.post("/v1/chat/completions", json=body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--others", type=int, default=3)
    args = parser.parse_args()
    dice, equal, tokens, wrong = random.Random(7), 0, 0, []
    began = time.monotonic()
    with started(args.home, args.model) as (server, talker, name):
        quiet = threading.Event()
        others = [
            threading.Thread(target=load, args=(server.url, name, quiet, i)) for i in range(args.others)
        ]
        for each in others:
            each.start()
        try:
            for i in range(args.answers):
                sampling = {"temperature": round(dice.uniform(0, 1.5), 2)}
                chat = talker.chat(name, max_tokens=args.tokens, sampling=sampling)
                made = talker.run(chat, f"Tell me of {dice.choice(WORDS)}, in your own words ({i}).")
                talker.follow(made["run"])
                said = talker.again(chat, made["answer"]["id"])
                equal += said["equal"]
                tokens += said["tokens"]
                if not said["equal"]:
                    wrong.append(said)
        finally:
            quiet.set()
            for each in others:
                each.join()
    result = {
        "bench": "console/again",
        "model": args.model or "scripted",
        "answers": args.answers,
        "equal": equal,
        "tokens": tokens,
        "others": args.others,
        "seconds": round(time.monotonic() - began, 1),
        "wrong": wrong[:3],
    }
    print(json.dumps(result))
    sys.exit(equal != args.answers)


if __name__ == "__main__":
    main()
