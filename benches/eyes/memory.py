"""What pictures take that come at once, beside what `fit` says of them.

    python benches/eyes/memory.py [--shapes qwen3.5,gemma3] [--layers 2] [--only SHAPE SIDE COUNT]

Towers of published widths with random weights; as many clients as pictures, each with one, of pixels that are drawn in
place of a file's. Each row is a process of its own, three times: the most that one had resident while the pictures were
computed, less what it had after the tower was packed, beside models/seeing.py's `pictures_bytes`. Which runs meet is
decided by the clock, so the greatest of the three counts. Goal: 5 %.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benches.eyes.encode import SHAPES, write_mmproj
from benches.lib.machine import describe
from freehold import _native as native
from freehold.base.serving import FEATURE_BYTES
from freehold.run.formats import open_model_file
from freehold.run.local.encoding import EncodeQueue, FeatureCache, WantedPicture
from freehold.run.models import seeing
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.load import LoadedModel
from freehold.run.models.tower import PicturePlan

# Sides of square pictures and how many of them, by shape: 256, 1,024 and some 2,000 tokens, alone and many.
ROWS = {
    "qwen3.5": ((512, 1), (512, 32), (1024, 1), (1024, 8), (1024, 32), (1408, 1), (1408, 4)),
    "gemma3": ((896, 1), (896, 32)),
    "gemma4": ((768, 1), (768, 32)),
    "siglip-400m": ((1920, 1), (1920, 4)),
}
GOAL, TRIES = 0.05, 3


def status(name: str) -> int:
    """Return the bytes that the kernel counts of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def measured(path: Path, side: int, count: int) -> dict[str, Any]:
    """Compute `count` pictures for as many clients; return what was predicted and what it took."""
    with open_model_file(path) as opened:
        source = read_tower(opened)
    assert source is not None
    width = source.cfg.feature_width
    family = SimpleNamespace(towers=(source.tower.name,), feature_width=lambda cfg: width)
    text = SimpleNamespace(
        name="any", architecture="any", family=family, gguf=True, threads=native.Threads(2)
    )
    text.cfg = SimpleNamespace(hidden=source.cfg.out)
    tower = seeing.load_tower(path, cast(LoadedModel, text))
    assert tower is not None
    plan = tower.plan(side, side)

    def opens(data: bytes, plan: PicturePlan) -> list[np.ndarray]:
        rng = np.random.default_rng(1)
        return [rng.integers(0, 256, (r[-1].height, r[-1].width, 3), np.uint8) for r in plan.resizes]

    opens(b"", plan)
    del source
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
    before = status("VmRSS")
    queue = EncodeQueue(tower, FeatureCache(FEATURE_BYTES), opens)
    wanted = [WantedPicture(("", str(i).encode()), b"x", plan, "") for i in range(count)]
    for each in [queue.see([picture], str(i)) for i, picture in enumerate(wanted)]:
        each.wait()
    most = status("VmHWM")
    queue.close()
    said = seeing.pictures_bytes(tower.cfg, plan.patches, plan.tokens, count)
    return {
        "tokens": plan.tokens, "patches": plan.patches, "pictures": count,
        "predicted": said, "peak": most - before,
    }  # fmt: skip


def main() -> int:
    """Measure each row in a process of its own; return 1 where a prediction is further off than the goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(ROWS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--file", type=Path, help="an mmproj that was written before; for --only")
    parser.add_argument(
        "--only", nargs=3, metavar=("SHAPE", "SIDE", "COUNT"), help="one row, in this process"
    )
    args = parser.parse_args()
    if args.only and args.file:
        print(json.dumps(measured(args.file, int(args.only[1]), int(args.only[2]))))
        return 0
    rows: list[dict[str, Any]] = []
    path = Path()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'tower':12} tokens pictures  predicted       peak  peak / predicted")
        for name in [args.only[0]] if args.only else args.shapes.split(","):
            path = Path(folder) / f"mmproj-{name}.gguf"
            write_mmproj(path, SHAPES[name], args.layers, "F16")
            for side, count in [(int(args.only[1]), int(args.only[2]))] if args.only else ROWS[name]:
                command = [
                    sys.executable,
                    __file__,
                    "--file",
                    str(path),
                    "--only",
                    name,
                    str(side),
                    str(count),
                ]
                tries = [
                    subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(TRIES)
                ]
                row = max((json.loads(done.stdout) for done in tries), key=lambda each: each["peak"])
                row |= {"shape": name}
                row["ratio"] = round(row["peak"] / row["predicted"], 3)
                rows.append(row)
                print(
                    f"{name:12}{row['tokens']:7,}{count:9}{row['predicted'] / 1e6:8,.0f} MB"
                    f"{row['peak'] / 1e6:8,.0f} MB{row['ratio']:10.3f}"
                )
        worst = max(abs(row["ratio"] - 1) for row in rows)
        print(f"at most {worst:.1%} off; the goal is {GOAL:.0%}")
        print(json.dumps({"bench": "eyes/memory", **describe(path), "rows": rows, "worst": worst}))
    return int(worst > GOAL)


if __name__ == "__main__":
    raise SystemExit(main())
