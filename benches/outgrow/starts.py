"""Start vLLM in ways that work and in ways that cannot, and see what a replica says of each.

`python -m benches.outgrow.starts --python PYTHON --model FOLDER [--head16 FOLDER] [--case NAME ...] [--logs DIR]`
Each case is a plan, changed where it has to be wrong, and one replica that starts it. A case that cannot work must
never be ready and name its cause in one line; tensor, data and pipeline parallel 2 must be ready, and say what one
process says: a build that cannot run pipeline parallel ends at its first request, which is what ready waits for.
`added` compares `freehold deploy` with the engine's own start: the time before the engine's process begins, and from
the moment that its socket takes connections to our first token, less the first token of an engine that was started by
hand. `--logs` keeps the engines' output.
Prints one line of JSON.
Path: starts.py -> plan_deployment -> Replica -> vLLM
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import say
from benches.outgrow.guard import deploy
from freehold.base.errors import UsageError
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployPlan, Listens, PlannedFlag
from freehold.outgrow.planning.options import plan_deployment
from freehold.outgrow.replicas.replica import Replica, ReplicaLimits
from freehold.route.providers.hop import Hop

LIMITS = ReplicaLimits(useless=1)
MOST_S = 420.0
BUSY = 24011
Change = Callable[[DeployPlan, "Bench"], DeployPlan]


@dataclass(frozen=True)
class Bench:
    """What the command line said."""

    python: str
    model: Path
    head16: Path | None
    folder: Path  # for what is made here


@dataclass(frozen=True)
class Case:
    """A start. `cause`: the words that its sentence must have; "": it must be ready."""

    name: str
    cause: str = ""
    flags: tuple[str, ...] = ()
    change: Change = lambda plan, bench: plan
    model: Callable[[Bench], Path] = lambda bench: bench.model
    busy: int = 0


def with_flag(name: str, value: str) -> Change:
    """Return a change that gives a flag another value, or adds it."""

    def change(plan: DeployPlan, bench: Bench) -> DeployPlan:
        flags = [flag for flag in plan.flags if flag.name != name]
        return replace(plan, flags=(*flags, PlannedFlag(name, value, "for this case")))

    return change


def on_port(plan: DeployPlan, bench: Bench) -> DeployPlan:
    """Let it listen on the port that is taken."""
    flags = [flag for flag in plan.flags if flag.name != "--uds"]
    taken = (PlannedFlag("--host", "127.0.0.1", ""), PlannedFlag("--port", str(BUSY), ""))
    return replace(plan, flags=(*flags, *taken), listens=Listens(port=BUSY))


def without_weights(plan: DeployPlan, bench: Bench) -> DeployPlan:
    """Let it load a folder whose weights are gone."""
    gone = bench.folder / "gone"
    gone.mkdir()
    for path in bench.model.iterdir():
        if path.suffix != ".safetensors":
            (gone / path.name).write_bytes(path.read_bytes())
    return with_flag("--model", str(gone))(plan, bench)


def elsewhere(plan: DeployPlan, bench: Bench) -> DeployPlan:
    """Start it by an interpreter that has no vLLM."""
    return replace(plan, command=(sys.executable, *plan.command[1:]))


def own_code(bench: Bench) -> Path:
    """Return a model whose configuration names Python code of its own."""
    made = bench.folder / "own-code"
    made.mkdir(exist_ok=True)
    for path in bench.model.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    config = json.loads((made / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (made / "config.json").write_text(json.dumps(config))
    return made


CASES = (
    Case("head size", "heads of size 16", model=lambda bench: bench.head16 or bench.model),
    Case("port taken", f"port {BUSY}", change=on_port, busy=BUSY),
    Case("no memory", "does not hold", change=with_flag("--kv-cache-memory-bytes", "10000")),
    Case("missing file", "no weights", change=without_weights),
    Case("wrong environment", "no module", change=elsewhere),
    Case("unknown parser", "parser", change=with_flag("--tool-call-parser", "hermess")),
    Case("auto_map", "Python code of its own", model=own_code),
    Case("tensor parallel 2", flags=("--tensor-parallel-size=2",)),
    Case("data parallel 2", flags=("--data-parallel-size=2",)),
    Case("pipeline parallel 2", flags=("--pipeline-parallel-size=2",)),
    Case("one process"),
)


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Hold a port of loopback, if one is named."""
    with socket.socket() as held:
        if port:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", port))
            held.listen()
        yield


async def started(case: Case, bench: Bench, logs: Path | None) -> dict[str, Any]:
    """Start a case; return what became of it."""
    began = time.monotonic()
    result: dict[str, Any] = {"case": case.name, "ready": False, "ready_s": 0.0, "said": ""}
    try:
        plan = plan_deployment(
            str(case.model(bench)),
            engine="vllm",
            python=bench.python,
            context=2048,
            streams=4,
            flags=case.flags,
        )
    except UsageError as e:
        return result | {
            "said": e.message,
            "ok": bool(case.cause) and case.cause in e.message,
            "planned": False,
        }
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    states: list[str] = []
    with taken(case.busy):
        replica = Replica(0, case.change(plan, bench), drivers.driver("vllm"), folder, Hop(), limits=LIMITS)
        replica.run()
        while time.monotonic() - began < MOST_S and replica.state not in ("ready", "failed"):
            row = replica.row()
            if not states or states[-1] != f"{row.state} {row.phase}":
                states.append(f"{row.state} {row.phase}")
                say(f"  {time.monotonic() - began:5.0f} s  {states[-1]}  {row.memory_bytes / 2**30:.1f} GiB")
            await asyncio.sleep(0.2)
        ready, said, log = replica.state == "ready", replica.said, replica.log
        took = time.monotonic() - began
        text = await said_by(replica) if ready else ""
        await replica.stop(5.0)
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{case.name.replace(' ', '-')}.txt").write_text("\n".join(log))
    good = ready if not case.cause else not ready and case.cause in said and "\n" not in said
    return result | {"ready": ready, "ready_s": round(took, 1), "said": said, "ok": good, "text": text}


async def said_by(replica: Replica) -> str:
    """Return what a ready engine says greedily, to compare with other cases of the same model."""
    import aiohttp

    engine = replica._engine
    assert engine is not None and engine.socket is not None
    body = {"model": "tiny", "prompt": "On the hill", "max_tokens": 24, "temperature": 0}
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine.socket))) as session,
        session.post(
            "http://engine/v1/completions", json=body, headers={"Authorization": f"Bearer {engine.key}"}
        ) as answer,
    ):
        return str((await answer.json())["choices"][0]["text"])


# --- what deploy adds ---------------------------------------------------------------------------------


async def added(bench: Bench) -> dict[str, Any]:
    """Compare `freehold deploy` with a start by hand of the same plan. Times in seconds."""
    model = str(bench.model)
    plan = plan_deployment(model, engine="vllm", python=bench.python, context=2048, streams=4)
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    path = folder / "s.sock"
    flags = tuple(replace(f, value=str(path)) if f.name == "--uds" else f for f in plan.flags)
    plan = replace(plan, flags=flags, listens=Listens(path))
    engine = await drivers.driver("vllm").launch(plan, folder)
    by_hand_began = time.monotonic()
    accepts = await accepting(lambda: path)
    token = await first_token(path, engine.key)
    await engine.stop(0.0)
    home = bench.folder / "home"
    home.mkdir(mode=0o700)
    began = time.time()
    run = deploy(home, bench.model, ["--engine", "vllm", "--python", bench.python])
    until = asyncio.create_task(asyncio.to_thread(run.until_ready, "tiny"))
    try:
        opened = await accepting(lambda: next(iter(home.rglob("s.sock")), None))
        await until
        ready = time.monotonic()
        process = next(p for p in run.tree.look() if "api_server" in " ".join(p.cmdline()))
        before = process.create_time() - began
    finally:
        run.process.terminate()
        run.process.wait(90)
    return {
        "by_hand": {"accepts": round(accepts - by_hand_began, 2), "first_token": round(token, 2)},
        "deploy": {"before_the_engine": round(before, 2), "accepts_to_token": round(ready - opened, 2)},
        "added_s": round(before + (ready - opened) - token, 2),
    }


async def accepting(path: Callable[[], Path | None]) -> float:
    """Return when a socket takes connections."""
    while True:
        if found := path():
            with suppress(OSError), socket.socket(socket.AF_UNIX) as tried:
                tried.connect(str(found))
                return time.monotonic()
        await asyncio.sleep(0.02)


async def first_token(path: Path, key: str) -> float:
    """Return the seconds until one token came, from now."""
    import aiohttp

    began = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        while True:
            body = {"model": "tiny", "prompt": "Hello", "max_tokens": 1, "temperature": 0}
            headers = {"Authorization": f"Bearer {key}"}
            with suppress(aiohttp.ClientError):
                async with session.post("http://engine/v1/completions", json=body, headers=headers) as answer:
                    await answer.read()
                    if answer.status == 200:
                        return time.monotonic() - began
            await asyncio.sleep(0.02)


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of an environment with vLLM")
    parser.add_argument("--model", type=Path, required=True, help="a folder, such as tiny.py makes")
    parser.add_argument("--head16", type=Path, help="one with heads of size 16")
    parser.add_argument("--case", action="append", help="one of the cases, or 'added'; default: all")
    parser.add_argument("--logs", type=Path, help="keep the engines' output here")
    args = parser.parse_args()
    names = args.case or [*(case.name for case in CASES), "added"]
    result: dict[str, Any] = {"bench": "starts", "cases": []}
    with tempfile.TemporaryDirectory(prefix="starts-", ignore_cleanup_errors=True) as folder:
        bench = Bench(args.python, args.model.resolve(), args.head16, Path(folder))
        for case in CASES:
            if case.name in names:
                say(case.name)
                result["cases"].append(asyncio.run(started(case, bench, args.logs)))
                say(json.dumps(result["cases"][-1]))
        if "added" in names:
            result["added"] = asyncio.run(added(bench))
    texts = {case.get("text") for case in result["cases"]} - {"", None}
    result["texts"] = len(texts)  # 1: all cases said the same
    result["ok"] = all(case["ok"] for case in result["cases"]) and len(texts) <= 1
    result["load_1m"] = round(psutil.getloadavg()[0], 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
