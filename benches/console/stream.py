"""An answer through a run's events beside the same by `/v1`: `python benches/console/stream.py [MODEL --home H]`.

Both are read by curl, in turns; the run is started by a request before it, which counts. Medians of `--rounds` rounds,
and the ceiling beside the ratio: a run may take 2 % more. Without MODEL a scripted model speaks, at thousands of tokens
a second, where what the server adds to a token shows most. Ends in one JSON line.
Path: stream.py -> started -> curl
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.console.serving import started
from tests.console.talking import Talker

CEILING = 1.02


def curl(url: str, *args: str) -> int:
    """Read an answer; return its bytes."""
    done = subprocess.run(["curl", "-sN", *args, url], capture_output=True, check=True)
    return len(done.stdout)


def by_v1(talker: Talker, url: str, name: str, question: str, tokens: int) -> float:
    """Return the seconds of an answer by /v1."""
    said = [{"role": "user", "content": question}]
    body = {"model": name, "messages": said, "stream": True, "max_tokens": tokens, "temperature": 0}
    began = time.perf_counter()
    curl(f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body))
    return time.perf_counter() - began


def by_run(talker: Talker, url: str, name: str, question: str, tokens: int) -> float:
    """Return the seconds of an answer by a run."""
    chat = talker.chat(name, max_tokens=tokens, sampling={"temperature": 0})
    began = time.perf_counter()
    run = talker.run(chat, question)["run"]
    curl(f"{url}/console/api/runs/{run}/events")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=4000)
    args = parser.parse_args()
    question = "Count from 1 to 1000, please." if args.model else "say something long"
    with started(args.home, args.model) as (server, talker, name):
        times: dict[str, list[float]] = {"v1": [], "run": []}
        for i in range(args.rounds + 1):
            for kind, way in (("v1", by_v1), ("run", by_run)):
                spent = way(talker, server.url, name, question, args.tokens)
                if i:  # the first round warms up
                    times[kind].append(spent)
                    print(f"{kind:4} {spent:7.3f} s", file=sys.stderr)
    medians = {kind: statistics.median(spent) for kind, spent in times.items()}
    ratio = statistics.median(r / v for r, v in zip(times["run"], times["v1"], strict=True))
    result = {
        "bench": "console/stream",
        "model": args.model or "scripted",
        "tokens": args.tokens,
        **{f"{kind}_s": round(spent, 4) for kind, spent in medians.items()},
        "ratio": round(ratio, 4),
        "ceiling": CEILING,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
