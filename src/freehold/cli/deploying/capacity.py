"""`freehold deploy capacity`: plays requests against simulated replicas, and says how many an objective takes.

Knows options; what they ask for is reports/capacity.py's, the wording deploying/figures.py's.
Path: deploy -> capacity -> CapacityOptions -> reports.capacity.simulated -> figures.lines
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from freehold.cli.progress import StatusLine
from freehold.cli.shared import Amount, Seconds, json_option
from freehold.config import Settings
from freehold.terminal import printable

EXAMPLE = "freehold deploy capacity qwen3:32b --on 4xh100 --trace requests.csv --objective ttft-p95=2s,tpot-p95=50ms"


@click.command("capacity", epilog=f"Example: {EXAMPLE}")
@click.argument("model", required=False, default="")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="File of requests: CSV (timestamp, input, output) or Mooncake's JSON lines; may be gzipped.",
)
@click.option("--ledger", is_flag=True, help="Use the requests in the ledger of this data folder's gateway.")
@click.option("--ledger-file", type=click.Path(path_type=Path), help="Use the requests in this ledger.")
@click.option("--since", type=Seconds(), default="7d", show_default=True, help="With a ledger: how far back.")
@click.option("--rate", type=float, help="Use random requests: this many per second, arriving independently.")
@click.option(
    "--prompt",
    type=Amount(whole=True),
    default=1024,
    show_default=True,
    help="With --rate: tokens of a prompt.",
)
@click.option(
    "--max-tokens",
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
    help="Length of the trace: with --rate, default 10m; of a file, use only its beginning.",
)
@click.option(
    "--faster",
    type=float,
    default=1.0,
    show_default=True,
    help="Replay the requests at this multiple of their rate.",
)
@click.option(
    "--steps",
    type=click.Path(path_type=Path),
    help="Step times measured by freehold deploy bench -o.",
)
@click.option(
    "--on",
    metavar="HARDWARE",
    default="",
    help="Hardware of one replica: h100, 4xh100; predicts its steps.",
)
@click.option(
    "--engine",
    metavar="NAME",
    default="",
    help="With --on: vllm, sglang, trtllm, llamacpp or mlx. Default: the engine that deploy would use.",
)
@click.option("--quant", metavar="Q", default="", help="With --on: published copy of the model: FP8, INT4.")
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
    help="Find the smallest number of replicas for this objective: "
    "ttft-p95=2s,tpot-p95=50ms,latency-p99=30s; repeatable.",
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
    help="Try autoscaling by outstanding requests per replica, or by busy time.",
)
@click.option(
    "--start-time",
    type=Seconds(),
    default="2m",
    show_default=True,
    help="With --autoscale: time until a new replica answers.",
)
@click.option(
    "--streams",
    type=click.IntRange(1),
    help="Parallel answers of one replica, if not as measured or predicted.",
)
@click.option("--room", type=Amount(whole=True), help="Tokens of KV cache of one replica, likewise.")
@click.option("--chunk", type=click.IntRange(1), help="Maximum tokens of a step, likewise.")
@click.option(
    "--rent",
    type=float,
    help="Cost of a replica in dollars an hour; with --on, the default is from the catalogue.",
)
@json_option
@click.pass_obj
def command(settings: Settings, model: str, as_json: bool, **options: Any) -> None:
    """Simulate replicas of an engine under a trace of requests: time to first token, speed, cache hits, cost.

    The time of a step is measured (--steps, from freehold deploy bench) or predicted for MODEL --on HARDWARE. With
    --objective, finds the smallest number of replicas; the range beside it covers the uncertainty of the step
    times.

    With --json: {"schema": 1, "trace": {...}, "engine": {...}, "runs": [...], "least": [...]}; times are in seconds.
    """
    from freehold.cli.deploying.figures import lines
    from freehold.reports.capacity import CapacityOptions, simulated

    with StatusLine("nothing was started") as status:
        result = simulated(settings, CapacityOptions(model, **options), status.show)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=1))
    else:
        for line in lines(result):
            click.echo(printable(line))  # names of a trace, and of a file of steps
