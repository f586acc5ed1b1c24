"""A Whisper of published sizes with random weights beside CTranslate2: windows encoded, and tokens written together.

`python benches/ears/shapes.py [--shape large-v3-turbo] [--threads 1] [--rounds 3] [--windows 2] [--together 8]
[--tokens 60] [--peers-python PYTHON]`. Both compute in int8 the same halves of one file, of which a temporary folder
has 1.6 GB for large-v3-turbo. Engines take turns, round by round; a ratio is the median over rounds of CPU seconds.
Writing tokens has in it what is kept of a window's sound. A table goes to stdout, then one JSON line.
Path: shapes.py -> lib.peer.Child -> drivers/ears_shapes_freehold.py, ears_shapes_ctranslate2.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.environments import DRIVERS, environment
from benches.lib.machine import better, ceilings, describe, say
from benches.lib.peer import Child
from benches.lib.random_whisper import SHAPES, WhisperShape, write_random


def operations(shape: WhisperShape) -> float:
    """Return the multiplications and additions of the encoder over a window."""
    n, rows = shape.width, 1500
    ends = 2 * rows * 3 * shape.bands * n + rows * 3 * n * n
    return 2.0 * (ends + shape.encoder_layers * rows * (12 * n * n + 2 * rows * n))


def main() -> None:
    """Read the command line, write the model, race both engines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="large-v3-turbo")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2, help="encoded in a round")
    parser.add_argument("--together", type=int, default=8, help="windows whose tokens are written at once")
    parser.add_argument("--tokens", type=int, default=60, help="of each")
    parser.add_argument("--peers-python", help="an interpreter with CTranslate2 (default: installed)")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    python = args.peers_python or environment("faster_whisper")
    work = {
        "encode": {"windows": args.windows},
        "write, alone": {"windows": 1, "count": args.tokens},
        "write, together": {"windows": args.together, "count": args.tokens},
    }
    figures: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        Child(sys.executable, DRIVERS / "ears_shapes_freehold.py", stops=True) as ours,
        Child(python, DRIVERS / "ears_shapes_ctranslate2.py", stops=True) as theirs,
    ):
        folder = write_random(shape, Path(temporary))
        load = {"folder": str(folder), "threads": args.threads}
        versions = [ours.ask("load", **load)["version"]]
        versions.append(theirs.ask("load", **load, bands=shape.bands, vocab=shape.vocab)["version"])
        before = ceilings(ours, [args.threads])
        print(f"{args.shape:20}{'ours, CPU s':>14}{'theirs':>10}{'ratio':>8}")
        for name, fields in work.items():
            op, rounds = name.split(",")[0].replace("write", "decode"), []
            for number in range(args.rounds):
                say(f"{name}: round {number + 1}")
                rounds.append([child.ask(op, **fields)["cpu_seconds"] for child in (ours, theirs)])
            ratio = statistics.median(b / a for a, b in rounds)
            medians = [statistics.median(each) for each in zip(*rounds, strict=True)]
            print(f"{name:20}{medians[0]:14.2f}{medians[1]:10.2f}{ratio:8.2f}", flush=True)
            figures.append({"work": name, **fields, "cpu_seconds": rounds, "ratio": ratio})
        limits = better(before, ceilings(ours, [args.threads]))
        about = describe(folder / "model.bin")
    gops = max(limits["measure_int8_gops"])
    least = min(a for a, _ in figures[0]["cpu_seconds"]) / args.windows
    share = operations(shape) / (gops * 1e9) / (least / args.threads)
    print(f"{gops:.0f} GOPS int8; the encoder's share of them: {share:.0%}")
    line = {"bench": "ears/shapes", "shape": args.shape, **about, "threads": args.threads}
    print(json.dumps(line | {"int8_gops": gops, "share": share, "versions": versions, "figures": figures}))


if __name__ == "__main__":
    main()
