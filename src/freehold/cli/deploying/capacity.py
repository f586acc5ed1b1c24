"""`freehold deploy capacity`: plays requests against simulated replicas, and says how many an objective takes.

Knows options; the simulation is backends/capacity/, the wording deploying/figures.py.
Path: deploy -> capacity -> trace.from_file, EngineModel.load or predicting.predicted -> objective.least, simulate
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.progress import StatusLine
from freehold.cli.shared import Amount, Seconds, json_option
from freehold.config import Settings
from freehold.errors import ModelNotFound, UsageError
from freehold.reports.gateway_file import ledger_file

if TYPE_CHECKING:
    from freehold.advisor.roofline import Work
    from freehold.backends.capacity.objective import Aim
    from freehold.backends.capacity.scaling import Autoscaling
    from freehold.backends.capacity.steptime import EngineModel
    from freehold.backends.capacity.trace import RequestTrace
    from freehold.catalog.hardware import Money, Rig
    from freehold.cli.deploying.figures import Capacity

EXAMPLE = "freehold deploy capacity qwen3:32b --on 4xh100 --trace requests.csv --objective ttft-p95=2s,tpot-p95=50ms"


@click.command("capacity", epilog=f"Example: {EXAMPLE}")
@click.argument("model", required=False, default="")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Requests: CSV (timestamp, input, output) or Mooncake's JSON lines; .gz too.",
)
@click.option("--ledger", is_flag=True, help="Requests: those in the ledger of this home's gateway.")
@click.option("--ledger-file", type=click.Path(path_type=Path), help="Requests: those in this ledger.")
@click.option("--since", type=Seconds(), default="7d", show_default=True, help="With a ledger: how far back.")
@click.option("--rate", type=float, help="Requests: this many a second, arriving independently.")
@click.option(
    "--input",
    "prompt",
    type=Amount(whole=True),
    default=1024,
    show_default=True,
    help="With --rate: tokens of a prompt.",
)
@click.option(
    "--output",
    "answer",
    type=Amount(whole=True),
    default=256,
    show_default=True,
    help="With --rate: tokens of an answer.",
)
@click.option("--vary", is_flag=True, help="With --rate: exponential lengths around these means.")
@click.option(
    "--seconds",
    type=Seconds(),
    default=None,
    help="Length of the trace: 10m with --rate; of a file its beginning.",
)
@click.option(
    "--faster", type=float, default=1.0, show_default=True, help="Play it at this multiple of its rate."
)
@click.option(
    "--steps",
    type=click.Path(path_type=Path),
    help="What a step takes, as freehold deploy bench -o measured it.",
)
@click.option(
    "--on",
    "hardware",
    metavar="HARDWARE",
    default="",
    help="Hardware of one replica: h100, 4xh100; predicts its steps.",
)
@click.option(
    "--engine", metavar="NAME", default="", help="With --on: vllm, sglang, trtllm, llamacpp or mlx."
)
@click.option("--quant", metavar="Q", default="", help="With --on: quantisation, such as FP8 or BF16.")
@click.option(
    "--replicas",
    metavar="N|A..B",
    default="",
    help="Try N, or each from A to B. With --autoscale: its range.",
)
@click.option(
    "--objective",
    multiple=True,
    callback=lambda ctx, param, value: ",".join(value),
    metavar="AIMS",
    help="Find the fewest replicas: ttft-p95=2s,tpot-p95=50ms,latency-p99=30s; repeatable.",
)
@click.option(
    "--routing",
    default="least-loaded",
    show_default=True,
    metavar="A,B",
    help="round-robin, least-loaded, prefix, or all.",
)
@click.option(
    "--autoscale",
    default="",
    metavar="queue=N|utilisation=X",
    help="Try autoscaling by outstanding requests a replica, or busy time.",
)
@click.option(
    "--start-time",
    type=Seconds(),
    default="2m",
    show_default=True,
    help="With --autoscale: until a new replica answers.",
)
@click.option(
    "--streams",
    type=click.IntRange(1),
    help="Answers at a time of one replica, if not as measured or predicted.",
)
@click.option("--room", type=Amount(whole=True), help="Tokens of KV cache of one replica, likewise.")
@click.option("--chunk", type=click.IntRange(1), help="Tokens that a step computes at most, likewise.")
@click.option(
    "--rent", type=float, help="Dollars that a replica costs an hour; with --on from the catalogue."
)
@json_option
@click.pass_obj
def command(settings: Settings, model: str, as_json: bool, **given: Any) -> None:
    """Simulate replicas of an engine under a trace of requests: first tokens, pace, cache hits, cost.

    What a step takes is measured (--steps, by freehold deploy bench) or predicted for MODEL --on HARDWARE. With
    --objective, finds the fewest replicas; the range beside it is what the doubt about steps makes of it.

    With --json: {"schema": 1, "trace": {...}, "engine": {...}, "runs": [...], "least": {...}}; times are in seconds.
    """
    from freehold.backends.capacity.objective import parse
    from freehold.cli.deploying import figures

    aims = parse(given["objective"]) if given["objective"] else ()
    routings = _routings(given["routing"])
    trace = _trace(settings, given)
    engine, rent = _engine(settings, model, trace, given)
    scaling = _scaling(given)
    with StatusLine("nothing was started") as status:
        found = figures.Capacity(trace, engine, rent)
        for routing in routings:
            _tried(found, aims, routing, scaling, given["replicas"], status.show)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
    else:
        for line in found.lines():
            click.echo(line)


def _tried(
    found: Capacity,
    aims: tuple[Aim, ...],
    routing: str,
    scaling: Autoscaling | None,
    replicas: str,
    show: Callable[[str], None],
) -> None:
    """Simulate what was asked with one routing policy."""
    from freehold.backends.capacity.objective import least
    from freehold.backends.capacity.simulation import simulate

    def part(share: float) -> None:
        show(f"{routing}: {share:.0%} of the trace")

    if scaling is not None:
        found.add(
            simulate(found.trace, found.engine, routing=routing, scaling=scaling, on_progress=part), scaling
        )
        return
    if aims:
        found.add_least(aims, least(found.trace, found.engine, aims, routing=routing, on_progress=show))
    first, last = _range(replicas) if replicas else (1, 0 if aims else 1)
    for count in range(first, last + 1):
        found.add(simulate(found.trace, found.engine, count, routing=routing, on_progress=part))


def _trace(settings: Settings, given: dict[str, Any]) -> RequestTrace:
    from freehold.backends.capacity import trace as traces

    ledger = given["ledger"] or given["ledger_file"]
    asked = [
        name
        for name, value in (("--trace", given["trace"]), ("--ledger", ledger), ("--rate", given["rate"]))
        if value
    ]
    if len(asked) != 1:
        raise UsageError(
            f"requests come from one place, not from {' and '.join(asked)}" if asked else "which requests?",
            "give --trace FILE, --ledger, or --rate 2 --input 1024 --output 256",
        )
    if given["rate"]:
        sizes = given["rate"], given["prompt"], given["answer"]
        found = traces.steady(*sizes, seconds=given["seconds"] or 600.0, vary=given["vary"])
    else:
        found = traces.from_file(given["trace"]) if given["trace"] else _of_ledger(settings, given)
        found = found.first(given["seconds"]) if given["seconds"] else found
    return found if given["faster"] == 1 else found.faster(given["faster"])


def _of_ledger(settings: Settings, given: dict[str, Any]) -> RequestTrace:
    """Return the requests of a ledger that read a prompt and were answered."""
    from freehold.backends.capacity.trace import from_rows
    from freehold.router.ledger.queries import rows_in

    path, now = ledger_file(settings, given["ledger_file"]), time.time()
    rows = (
        (row.at, row.usage.prompt_tokens, row.usage.completion_tokens)
        for row in rows_in(path, now - given["since"], now)
        if row.usage.completion_tokens and not row.parent
    )
    return from_rows(rows, f"ledger {path.name}")


def _engine(
    settings: Settings, model: str, trace: RequestTrace, given: dict[str, Any]
) -> tuple[EngineModel, Money | float | None]:
    """Return an engine's step times and limits, and what a replica costs an hour."""
    from freehold import catalog
    from freehold.backends.capacity.steptime import EngineModel

    if bool(given["steps"]) == bool(given["hardware"]):
        raise UsageError(
            "what a step takes comes from one place: --steps FILE, or MODEL --on HARDWARE",
            "freehold deploy bench -o FILE measures a running engine",
        )
    rent: Money | float | None = given["rent"]
    if given["rent"] is not None and not 0 <= given["rent"] < math.inf:
        raise UsageError(f"--rent {given['rent']:g} is not a price", "give dollars an hour, such as 2.50")
    if given["steps"]:
        found = EngineModel.load(given["steps"])
    else:
        if not model:
            raise UsageError("--on needs a MODEL", f"such as {EXAMPLE}")
        rig = catalog.rig(given["hardware"])
        found = _predicted(settings, model, rig, trace, given["engine"], given["quant"])
        rent = rig.rent if rent is None else rent
    limits = {name: given[name] for name in ("streams", "room", "chunk") if given[name]}
    return replace(found, limits=replace(found.limits, **limits)), rent


def _predicted(
    settings: Settings, name: str, rig: Rig, trace: RequestTrace, engine: str, quant: str
) -> EngineModel:
    """Predict with the named engine and quantisation, or the first that run there."""
    from freehold.advisor import engines
    from freehold.backends.capacity.predicting import predicted
    from freehold.backends.planning.asked import advised

    works = [*_works(settings, name, quant)]
    able = (
        [engines.engine(advised(engine))]
        if engine
        else [e for e in engines.engines() if e.runs_on(rig.device)]
    )
    why = None
    for runs in able:
        for work in works:
            try:
                return predicted(
                    work, rig, runs, prompt=round(trace.prompt_mean), answer=round(trace.answer_mean)
                )
            except UsageError as e:
                why = why or e  # of the first engine with the model as it was published
    raise why or UsageError(f"no engine runs on {rig.device.title}", "name other hardware")


def _works(settings: Settings, name: str, quant: str) -> Iterator[Work]:
    """Yield a catalogue's model in its quantisations, or what is held here under this name or path."""
    from freehold import catalog
    from freehold.advisor.anatomy import from_catalogue
    from freehold.advisor.places import quants_of
    from freehold.backends.planning.facts import deployed

    try:
        facts = catalog.model(name)
    except ModelNotFound:
        yield deployed(settings, name, quant=quant).anatomy
    else:
        yield from (from_catalogue(facts, kind) for kind in ((quant,) if quant else quants_of(facts)))


def _routings(text: str) -> list[str]:
    from freehold.backends.capacity.routing import POLICIES, policy

    names = [*POLICIES] if text == "all" else [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        policy(name)
    return names or ["least-loaded"]


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text.strip())
    first = int(found[1]) if found else 0
    last = int(found[2] or first) if found else 0
    if not 1 <= first <= last <= 1024:
        raise UsageError(f"--replicas {text} is not within 1..1,024", "write 4, or 1..8 for a range")
    return first, last


def _scaling(given: dict[str, Any]) -> Autoscaling | None:
    from freehold.backends.capacity.scaling import Autoscaling

    if not given["autoscale"]:
        return None
    if given["objective"]:
        raise UsageError("--autoscale and --objective are two questions", "leave out one of them")
    found = re.fullmatch(r"(queue|utilisation)=(\d+(?:\.\d+)?)", given["autoscale"].strip())
    if found is None:
        raise UsageError(
            f"--autoscale {given['autoscale']} is not a policy", "write queue=16 or utilisation=0.7"
        )
    first, last = _range(given["replicas"] or "1..8")
    return Autoscaling(first, last, **{found[1]: float(found[2])}, start_s=given["start_time"])
