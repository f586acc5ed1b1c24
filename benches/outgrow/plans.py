"""Check plans against vLLM's own parser, and time a plan in a fresh process.

`python -m benches.outgrow.plans --python /path/to/vllm-env/bin/python [--model FOLDER] [--plans 400]`
The random plans are those of tests/backends/plan_cases.py, all for vLLM; one process of vLLM's environment parses every
command line with make_arg_parser, and must refuse a flag that is not there. A plan's time is that of a process that
imports, reads the folder and plans; best and median of --rounds, wall and CPU. Ends in one JSON line.
Path: plans.py -> plan_cases.plans -> vLLM's FlexibleArgumentParser
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

from freehold.backends.contract import DeployPlan
from tests.backends.plan_cases import plans

PARSE = """
import json, sys, io, contextlib
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
wrong = []
for line in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(line)
    except (SystemExit, ValueError) as error:
        wrong.append([line, said.getvalue()[-400:] or str(error)])
print(json.dumps(wrong))
"""
PLAN = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
from pathlib import Path
from freehold.backends import drivers, facts
from freehold.backends.contract import EngineFacts, PlanRequest
model = facts.of_path(Path(sys.argv[1]))
nodes = facts.nodes_here(Path(sys.argv[1]))
request = PlanRequest(model, nodes, EngineFacts("0.32.0+cpu", cpu=True), socket=Path("/tmp/s.sock"))
drivers.driver("vllm").plan(request).shell()
assert not {"vllm", "torch", "transformers"} & set(sys.modules)
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def main() -> None:
    """Parse and time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of an environment with vLLM")
    parser.add_argument("--model", default="", help="a folder whose plan is timed")
    parser.add_argument("--plans", type=int, default=400)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    began = time.perf_counter()
    made = [p for p in plans(args.plans, args.seed, ("vllm",)) if isinstance(p, DeployPlan)]
    planned_s = time.perf_counter() - began
    lines = [_line(p) for p in made]
    wrong = parsed(args.python, [*lines, ["--no-such-flag"]])
    refused = [w for w in wrong if w[0] != ["--no-such-flag"]]
    for line, why in refused[:5]:
        print(" ".join(line), "\n ", why, file=sys.stderr)
    result = {
        "bench": "plans",
        "plans": len(made),
        "refused_by_vllm": len(refused),
        "parser_refuses_unknown": len(wrong) == len(refused) + 1,
        "ms_a_plan": round(1000 * planned_s / len(made), 2),
    }
    if args.model:
        times = sorted(timed(args.model) for _ in range(args.rounds))
        result["fresh_process_s"] = {
            "best": round(times[0][0], 3),
            "median": round(statistics.median(t[0] for t in times), 3),
            "cpu": round(statistics.median(t[1] for t in times), 3),
        }
    print(json.dumps(result))
    sys.exit(bool(refused))


def _line(plan: DeployPlan) -> list[str]:
    """Return what vLLM's parser would be given: the flags after the module's name."""
    return list(plan.argv(port=8000)[3:])


def parsed(python: str, lines: list[list[str]]) -> list[list]:
    """Return the command lines that vLLM's parser refuses, with what it says."""
    done = subprocess.run(
        [python, "-c", PARSE], input=json.dumps(lines), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def timed(model: str) -> tuple[float, float]:
    """Return wall and CPU seconds of a plan in a fresh process, its imports included."""
    done = subprocess.run([sys.executable, "-c", PLAN, model], capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


if __name__ == "__main__":
    main()
