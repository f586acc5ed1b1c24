"""A recipe of R1's three stages killed (SIGKILL) in each of them and built on: the same bits? And CPU-seconds by stage.

`python benches/adapt/killed.py MODEL [--out FOLDER] [--kills 2] [--steps 8] [--tokens 4096] [--items 60]`
Writes the data and the recipe of examples/r1 in small: fewer steps, answers, test items and tokens of calibration, and
a gate after the examples. Builds it once undisturbed and once with kills: the n-th process in a stage is killed
when it has kept n states (`--kills` of them in a stage), another one while the gate asks, and the last one ends by
itself. States are kept after every step, not every 30 seconds. Compares the digests of all weights. The seconds are of
all processes that worked on a stage, without what a killed one did after its last state. Exits 1 where
bits differ or a stage was not killed. Ends in a JSON line.
Path: killed.py -> freehold build's Builder in child processes -> finetune, reinforce, fuse
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benches.adapt.folders import work_folder
from benches.lib.machine import describe
from freehold.adapt.run import file_digest, spent_seconds
from freehold.base.config import load_settings
from freehold.run.store import Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "r1" / "data.py"
WEIGHTS = ("adapter_model.safetensors", "adapter.gguf", "model.gguf")
STAGES = ("examples", "rewards", "small")
GATE = "gate"
POLL_S = 0.02
RECIPE = """
base = "{model}"

[examples]
verb = "finetune"
data = "cold.jsonl"
lr = 5e-4
gate = {{ data = "unseen.jsonl", better_than = "base", p = 0.5 }}

[rewards]
verb = "reinforce"
from = "examples"
continue = true
reward = "rg:needle_haystack:min_num_statements=3,max_num_statements=6"
steps = {steps}
lr = 1e-4
batch = 4
group = 4
max_tokens = 8
unseen = 8

[small]
verb = "fuse"
from = "rewards"
quant = "T3"
calibrate = "cold.jsonl"
tokens = {tokens}
bound = 5
"""
# What each child runs: it builds, keeps a state after every step, and prints how many items its gate has answered.
CHILD = """
import sys
from pathlib import Path
import freehold.adapt.loop as loop
from freehold.adapt.recipes.build import Builder, BuildWatch
from freehold.adapt.recipes.recipe import read_recipe
from freehold.base.config import load_settings
from freehold.choose.advisor.verdict import Facts
from freehold.run.store import Store
loop.KEEP_S = 0
settings = load_settings()
watch = BuildWatch(
    items=lambda stage, done, total: print(done, flush=True),
)
Builder(read_recipe(Path(sys.argv[1])), Path(sys.argv[2]), settings, Store(settings), Facts(), watch).build()
"""


def main() -> int:
    """Build twice, once with kills; compare."""
    args = _options()
    machine = describe(Store(load_settings()).resolve(args.model).path)
    with work_folder(args.out) as folder:
        recipe = _written(folder, args)
        whole = folder / "whole"
        _build(recipe, whole)
        kills = _killed(recipe, folder / "killed", args.kills)
        digests = {out.name: _digests(out) for out in (whole, folder / "killed")}
        spent = {out.name: _spent(out) for out in (whole, folder / "killed")}
    same = {stage: digests["whole"][stage] == digests["killed"][stage] for stage in STAGES}
    for stage in STAGES:
        print(
            f"{stage:9} killed {kills[stage]} times; {'the same bits' if same[stage] else 'OTHER BITS'}; "
            f"CPU-s {spent['whole'][stage]:.0f} undisturbed, {spent['killed'][stage]:.0f} with kills"
        )
    print(f"the gate was killed {kills[GATE]} times")
    print(
        json.dumps(
            {
                "bench": "killed",
                "model": args.model,
                "machine": machine,
                "kills": kills,
                "same_bits": same,
                "cpu_seconds": spent,
            }
        )
    )
    return int(not all(same.values()) or not all(kills.values()))


def _build(recipe: Path, out: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", CHILD, str(recipe), str(out)], check=True, stdout=subprocess.DEVNULL
    )


def _killed(recipe: Path, out: Path, wanted: int) -> dict[str, int]:
    """Build with `wanted` kills in each stage and one in the gate; return how many there were."""
    kills: dict[str, int] = dict.fromkeys((*STAGES, GATE), 0)
    while True:
        command = [sys.executable, "-c", CHILD, str(recipe), str(out)]
        states: dict[str, int] = dict.fromkeys(kills, 0)  # that this process kept
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for place in _places(child, out):
                states[place] += 1
                if kills[place] < (1 if place == GATE else wanted) and states[place] > kills[place]:
                    child.kill()
                    kills[place] += 1
                    break
        if child.returncode == 0:
            return kills
        if child.returncode > 0:
            raise RuntimeError(f"the build exits {child.returncode}")


def _places(child: subprocess.Popen[str], out: Path) -> Iterator[str]:
    """Yield a stage each time that it has kept another state, and GATE each time that it has answers."""
    answered = threading.Semaphore(0)
    assert child.stdout is not None
    lines = child.stdout

    def read() -> None:
        for _ in lines:
            answered.release()

    threading.Thread(target=read, daemon=True).start()
    before = _states(out)
    while child.poll() is None:
        time.sleep(POLL_S)
        now = _states(out)
        yield from (stage for stage in now if now[stage] != before.get(stage))
        before = now
        if answered.acquire(blocking=False):
            yield GATE


def _states(out: Path) -> dict[str, int]:
    """Return when each stage's newest state was written."""
    states: dict[str, int] = {}
    for path in out.glob(".*.part/checkpoint.npz"):
        try:
            states[path.parent.name[1:].partition("-")[0]] = path.stat().st_mtime_ns
        except FileNotFoundError:  # the stage has just ended
            continue
    return states


def _written(folder: Path, args: argparse.Namespace) -> Path:
    """Write the data of examples/r1, its test items shortened, and the recipe."""
    subprocess.run([sys.executable, str(EXAMPLE), str(folder)], check=True, stderr=subprocess.DEVNULL)
    unseen = folder / "unseen.jsonl"
    unseen.write_text(
        "\n".join(unseen.read_text(encoding="utf-8").splitlines()[: args.items]), encoding="utf-8"
    )
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=args.model, steps=args.steps, tokens=args.tokens), encoding="utf-8")
    return path


def _digests(out: Path) -> dict[str, dict[str, str]]:
    return {
        stage: {name: file_digest(path) for name in WEIGHTS if (path := out / stage / name).exists()}
        for stage in STAGES
    }


def _spent(out: Path) -> dict[str, float]:
    receipts: dict[str, Any] = {
        stage: json.loads((out / stage / "receipt.json").read_text(encoding="utf-8")) for stage in STAGES
    }
    return {stage: spent_seconds(record) for stage, record in receipts.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, help="keep the work here, in a folder that is new")
    parser.add_argument("--kills", type=int, default=2, help="in each stage")
    parser.add_argument("--steps", type=int, default=8, help="of reinforce")
    parser.add_argument("--tokens", type=int, default=4096, help="that the three bits are calibrated on")
    parser.add_argument("--items", type=int, default=60, help="that the gate asks")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
