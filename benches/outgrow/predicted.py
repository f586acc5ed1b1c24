"""Predict first tokens and pace of an engine under load, write that down, then replay the load and compare.

`python -m benches.outgrow.predicted [--engine freehold,vllm --folder TINY --python PYTHON] [--seconds 40] [--out DIR]`
For each load: measures what a step takes (as `freehold deploy bench`), simulates the requests of a real trace at that
share of the engine's own limit, writes the prediction to a file, and only then sends the same requests open-loop. The
trace's lengths are divided so that two cores can answer them; its bursts stay. Reports the errors of the medians and of
the 95th percentiles, those of a fit of the steps alone beside them, and the machine's load: on a busy machine the
figures are those of that moment. Samples and times of each request are written too, for another fit without a run.
Path: predicted.py -> measuring.measure, fit -> simulation.simulate -> DIR -> EngineDoor.ask
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.environments import ROOT
from benches.lib.machine import say
from benches.server.servers import free_port
from freehold.base.errors import FreeholdError
from freehold.outgrow.capacity import trace as traces
from freehold.outgrow.capacity.engine import EngineModel
from freehold.outgrow.capacity.measuring import (
    EngineDoor,
    MeasurePlan,
    PromptWords,
    TimedAnswer,
    fit,
    measure,
    rules,
)
from freehold.outgrow.capacity.simulation import SimulatedRun, simulate
from freehold.outgrow.capacity.trace import RequestTrace, TracedRequest

TRACE = ROOT / "tests" / "outgrow" / "capacity" / "azure-conv-1000.csv"
START_S = 420.0
PERCENTS = (50, 95)
LONGEST = 1400  # tokens of a prompt, which leaves room in a context of 2,048
MEASURED = MeasurePlan(
    batches=(1, 2, 4, 8, 16),
    depths=(32, 384),
    prompts=(16, 128, 512),
    beside=(1, 4),
    clients=(1, 4, 12),
    tokens=24,
)
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


def main() -> None:
    """Start an engine or use one, predict, replay, print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engine", default="freehold", help="freehold, vllm, sleeping, or several with commas"
    )
    parser.add_argument("--model", default="smollm2:135m", help="for our engine, or of --url")
    parser.add_argument(
        "--folder", default="tiny", help="the model for vLLM, as `benches.outgrow.tiny` writes it"
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has vLLM")
    parser.add_argument(
        "--url", default="", help="an engine that already runs, such as http://127.0.0.1:8000/v1"
    )
    parser.add_argument("--loads", default="0.3,0.5,0.7")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--shorter", type=float, default=4.0, help="divides the trace's lengths")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "predicted")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for engine in args.engine.split(","):
        given = argparse.Namespace(**{**vars(args), "engine": engine})
        given.model = args.folder if engine == "vllm" and not args.url else args.model
        with served(given) as door:
            rows.append(asyncio.run(compared(given, door)))
    print(json.dumps({"bench": "predicted", "engines": rows}))


@contextlib.contextmanager
def served(args: argparse.Namespace) -> Iterator[EngineDoor]:
    """Start the engine that was asked for; end it afterwards."""
    if args.url:
        yield EngineDoor(args.url, args.model)
        return
    port, name = free_port(), Path(args.model).name
    command = [
        sys.executable,
        "-m",
        "freehold.cli.main",
        "serve",
        args.model,
        "--port",
        str(port),
        "--offline",
    ]
    if args.engine == "sleeping":
        command = [sys.executable, "-m", "benches.outgrow.sleeping", "--port", str(port)]
    elif args.engine == "vllm":
        command = [args.python, "-m", "vllm.entrypoints.openai.api_server", "--model", args.model]
        command += [
            "--served-model-name",
            name,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--max-model-len",
            "2048",
        ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **VLLM}, start_new_session=True
        )
        try:
            door = EngineDoor(f"http://127.0.0.1:{port}/v1", name)
            say(f"starting {args.engine}, process {process.pid}")
            if not asyncio.run(answers(door, process)):
                log.seek(0)
                raise SystemExit(
                    f"{args.engine} did not start:\n{log.read().decode(errors='replace')[-3000:]}"
                )
            yield door
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def answers(door: EngineDoor, process: subprocess.Popen[bytes]) -> bool:
    """Wait for a real token."""
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < START_S:
        with contextlib.suppress(FreeholdError):
            if not (await door.ask("one two three", 2, limit_s=60)).error:
                return True
        await asyncio.sleep(0.5)
    return False


async def compared(args: argparse.Namespace, door: EngineDoor) -> dict[str, Any]:
    """Measure, predict and replay at each load."""
    whole = shorter(traces.from_file(args.trace), args.shorter)
    rows, limit = [], 0.0
    for number, load in enumerate(float(x) for x in args.loads.split(",")):
        begun = time.monotonic()
        samples = await measure(door, replace(MEASURED, rounds=args.rounds), say, seed=number)
        model = fit(samples, rules(args.engine), {"engine": args.engine})
        steps_alone = fit(replace(samples, runs=[]), rules(args.engine))
        written(args, load, "-samples", asdict(samples))
        measured_s = time.monotonic() - begun
        limit = saturation(whole, model)
        trace = part(whole, load * limit, args.seconds, number)
        run, alone = simulate(trace, model), simulate(trace, steps_alone)
        named = {"engine": args.engine, "model": args.model, "load": load, "at": time.time()}
        named["rate"] = round(trace.rate, 3)
        told = {**percentiles(run.ttft, run.tpot), "utilisation": run.utilisation}
        told["steps_alone"] = percentiles(alone.ttft, alone.tpot)
        path = written(args, load, "", {**named, **model.as_json(), **told})
        say(f"load {load:g}: {len(trace.requests)} requests at {trace.rate:.2f}/s; predicted in {path}")
        found, failed = await replay(door, trace, number)
        row = {**named, "requests": len(found), "failed": failed, "measure_s": round(measured_s, 1)}
        row |= errors(run, alone, found)
        say(json.dumps(row))
        written(args, load, "-measured", row | {"each": each_of(trace, found)})
        rows.append(row)
    return {"engine": args.engine, "limit_per_s": round(limit, 3), **summary(rows), "loads": rows}


def written(args: argparse.Namespace, load: float, what: str, value: dict[str, Any]) -> Path:
    """Write a file of a load and return its path; the prediction's for people too."""
    path = args.out / f"{args.engine}-{load:g}{what}.json"
    path.write_text(json.dumps(value, indent=None if what else 1) + "\n", encoding="utf-8")
    return path


def errors(run: SimulatedRun, alone: SimulatedRun, found: list[TimedAnswer | None]) -> dict[str, Any]:
    """Return both figures' percentiles, predicted and measured, and the errors of `run` and of `alone`."""
    ttft = np.array([a.ttft if a else np.nan for a in found])
    tpot = np.array([a.tpot if a and len(a.pieces) > 1 else np.nan for a in found])
    figures, by_steps = percentiles(ttft, tpot), percentiles(alone.ttft, alone.tpot)
    row: dict[str, Any] = {"load_average": round(os.getloadavg()[0], 2)}
    row["utilisation"] = round(run.utilisation, 3)
    for name, value in percentiles(run.ttft, run.tpot).items():
        row[f"{name}_ms"] = [round(1e3 * value, 1), round(1e3 * figures[name], 1)]
        row[f"{name}_error"] = round(value / figures[name] - 1, 3)
        row[f"{name}_error_steps_alone"] = round(by_steps[name] / figures[name] - 1, 3)
    row["request_error"] = {
        "ttft": round(float(np.nanmedian(np.abs(run.ttft / ttft - 1))), 3),
        "tpot": round(float(np.nanmedian(np.abs(run.tpot / tpot - 1))), 3),
    }
    return row


def shorter(trace: RequestTrace, factor: float) -> RequestTrace:
    """Divide the lengths."""
    cut = tuple(
        replace(
            r, prompt=min(max(round(r.prompt / factor), 8), LONGEST), answer=max(round(r.answer / factor), 2)
        )
        for r in trace.requests
    )
    return replace(trace, requests=cut)


def saturation(trace: RequestTrace, model: EngineModel) -> float:
    """Return the requests a second that the engine answers when it always has work: all of them come at once."""
    crowd = tuple(replace(r, at=0.0) for r in trace.requests[:300])
    limited = replace(model, limits=replace(model.limits, streams=16))
    run = simulate(replace(trace, requests=crowd), limited)
    return len(crowd) / run.span_s


def part(trace: RequestTrace, rate: float, seconds: float, number: int) -> RequestTrace:
    """Cut as many requests as come in `seconds` at `rate`, another part for each load, and give them that rate."""
    count = max(round(rate * seconds), 20)
    begin = min(number * 300, max(len(trace.requests) - count, 0))
    kept = trace.requests[begin : begin + count]
    times = (seconds - 2) / max(kept[-1].at - kept[0].at, 1e-9)
    return replace(trace, requests=tuple(replace(r, at=(r.at - kept[0].at) * times) for r in kept))


async def replay(door: EngineDoor, trace: RequestTrace, seed: int) -> tuple[list[TimedAnswer | None], int]:
    """Send every request at its time, whatever has been answered."""
    words = await PromptWords.for_engine(door, 1000 + seed)
    prompts = [words.draw(r.prompt) for r in trace.requests]
    begun = time.perf_counter() + 0.5

    async def one(request: TracedRequest, prompt: str) -> TimedAnswer | None:
        await asyncio.sleep(begun + request.at - time.perf_counter())
        answer = await door.ask(prompt, request.answer)
        return None if answer.error or not answer.pieces else answer

    found = await asyncio.gather(*(one(r, p) for r, p in zip(trace.requests, prompts, strict=True)))
    return found, sum(a is None for a in found)


def each_of(trace: RequestTrace, found: list[TimedAnswer | None]) -> list[list[Any]]:
    """Return the requests with their measured times, for another fit without another run."""
    pairs = zip(trace.requests, found, strict=True)
    return [[r.at, r.prompt, r.answer, a.prompt_tokens, a.tokens, a.ttft, a.tpot] for r, a in pairs if a]


def percentiles(ttft: Any, tpot: Any) -> dict[str, float]:
    """Return both figures' percentiles in seconds."""
    return {
        f"{name}_p{p}": float(np.nanpercentile(values, p))
        for name, values in (("ttft", ttft), ("tpot", tpot))
        for p in PERCENTS
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the largest and the middle error of each figure over the loads."""
    names = [f"{what}_p{p}_error" for what in ("ttft", "tpot") for p in PERCENTS]
    return {
        "worst": {n: max((r[n] for r in rows), key=abs) for n in names},
        "middle": {n: round(float(np.median([abs(r[n]) for r in rows])), 3) for n in names},
    }


if __name__ == "__main__":
    main()
