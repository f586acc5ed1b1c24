"""Check plans against the engines' own parsers, and time a plan in a fresh process.

`python -m benches.outgrow.plans --python /path/to/vllm-env/bin/python [--sglang WHEEL-FOLDER] [--model FOLDER]`
The random plans are those of tests/outgrow/plan_cases.py, and its plans of twenty models of the hub; one process of
vLLM's environment parses every command line with make_arg_parser, and must refuse a flag that is not there. With
--sglang, a folder of its unpacked wheel, its parser reads as many in the same environment, keys from a file included,
behind tools/engine_schema.py's stand-ins. A plan's time is that of a process that imports, reads the folder and plans;
best and median of --rounds, wall and CPU.
Ends in one JSON line.
Path: plans.py -> plan_cases.plans -> vLLM's FlexibleArgumentParser, SGLang's ServerArgs
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.base.config import load_settings
from freehold.outgrow.contract import DeployPlan
from tests.outgrow.plan_cases import hub_plans, plans

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
# SGLang's, of an unpacked wheel: keys come from the file that --config names, as at a start.
PARSE_SGLANG = """
import argparse, contextlib, io, json, sys
from pathlib import Path
root, tools = Path(sys.argv[1]).resolve(), sys.argv[2]
sys.path[:0] = [str(root), tools]
import torch._dynamo  # looks for optional packages itself, and must not meet their stand-ins
from engine_schema import StandIns
sys.meta_path.append(StandIns(root))
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger
parser = argparse.ArgumentParser(allow_abbrev=False)
ServerArgs.add_cli_args(parser)
wrong = []
for line in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            read = parser.parse_args(ConfigArgumentMerger(parser).merge_config_with_args(line))
        assert "--config" not in line or read.api_key and read.admin_api_key, "no key was read"
    except (SystemExit, ValueError, AssertionError) as error:
        wrong.append([line, said.getvalue()[-400:] or str(error)])
print(json.dumps(wrong))
"""
PLAN = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
from pathlib import Path
from freehold.outgrow import drivers
from freehold.outgrow.planning import facts
from freehold.outgrow.contract import EngineFacts, PlanRequest
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
    parser.add_argument("--sglang", default="", help="a folder with SGLang's unpacked wheel")
    parser.add_argument("--model", default="", help="a folder whose plan is timed")
    parser.add_argument("--plans", type=int, default=400)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    began = time.perf_counter()
    made = drawn("vllm", args.plans, args.seed)
    ms = round(1000 * (time.perf_counter() - began) / len(made), 2)
    made += hub_plans(load_settings(), ("vllm",))
    lines = [list(p.argv(port=8000)[3:]) for p in made]
    result: dict = {"bench": "plans", "ms_a_plan": ms, "vllm": verdict(lines, [args.python, "-c", PARSE])}
    if args.sglang:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "keys.yaml").write_text("api-key: a\nadmin-api-key: b\n", encoding="utf-8")
            chosen = [*drawn("sglang", args.plans, args.seed), *hub_plans(load_settings(), ("sglang",))]
            lines = [list(p.argv(0, "10.0.0.1", folder=folder, port=8000)[3:]) for p in chosen]
            tools = Path(__file__).resolve().parents[2] / "tools"
            command = [args.python, "-c", PARSE_SGLANG, args.sglang, str(tools)]
            result["sglang"] = verdict(lines, command)
    if args.model:
        times = sorted(timed(args.model) for _ in range(args.rounds))
        result["fresh_process_s"] = {
            "best": round(times[0][0], 3),
            "median": round(statistics.median(t[0] for t in times), 3),
            "cpu": round(statistics.median(t[1] for t in times), 3),
        }
    print(json.dumps(result))
    sys.exit(any(result.get(e, {}).get("refused") for e in ("vllm", "sglang")))


def drawn(engine: str, count: int, seed: int) -> list[DeployPlan]:
    """Return as many plans of an engine; what does not fit is left out."""
    return [p for p in plans(count, seed, (engine,)) if isinstance(p, DeployPlan)]


def verdict(lines: list[list[str]], command: list[str]) -> dict:
    """Return how many command lines a parser refuses; it has to refuse a flag that is not there."""
    unknown = ["--no-such-flag"]
    done = subprocess.run(
        command, input=json.dumps([*lines, unknown]), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    wrong = json.loads(done.stdout.splitlines()[-1])
    refused = [w for w in wrong if w[0] != unknown]
    for line, why in refused[:5]:
        print(" ".join(line), "\n ", why, file=sys.stderr)
    return {"plans": len(lines), "refused": len(refused), "refuses_unknown": len(wrong) == len(refused) + 1}


def timed(model: str) -> tuple[float, float]:
    """Return wall and CPU seconds of a plan in a fresh process, its imports included."""
    done = subprocess.run([sys.executable, "-c", PLAN, model], capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


if __name__ == "__main__":
    main()
