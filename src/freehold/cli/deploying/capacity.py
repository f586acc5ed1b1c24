"""`freehold deploy capacity|bench`: how many replicas an objective takes, by simulation; the step times it needs.

Knows options; the simulation and the measuring are outgrow/capacity/'s, the wording is deploying/figures.py's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.terminal import printable
from freehold.choose.advisor.interval import digits
from freehold.cli.options import setting_options
from freehold.cli.progress import StatusLine
from freehold.cli.shared import json_option, table, write_beside
from freehold.outgrow.options import CapacityOptions

if TYPE_CHECKING:
    from freehold.outgrow.capacity.engine import EngineModel


EXAMPLE = "freehold deploy capacity qwen3:32b --on 4xh100 --trace requests.csv --objective ttft-p95=2s,tpot-p95=50ms"


@click.command("capacity", epilog=f"Example: {EXAMPLE}")
@click.argument("model", required=False, default="")
@setting_options(CapacityOptions)
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
    from freehold.serve.reports.capacity import simulated

    with StatusLine("nothing was started") as status:
        result = simulated(settings, CapacityOptions(model, **options), status.show)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=1))
    else:
        for line in lines(result):
            click.echo(printable(line))  # names of a trace, and of a file of steps


# --- `freehold deploy bench` ------------------------------------------------------------------------
# Measures what the steps of a running engine take, for `freehold deploy capacity`.

BENCH_EXAMPLE = "freehold deploy bench http://127.0.0.1:8000/v1 -o steps.json"


class Numbers(click.ParamType):
    """Whole numbers with commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return them."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part.replace("_", "")) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write 1,4,16", param, ctx)


@click.command("bench", epilog=f"Example: {BENCH_EXAMPLE}")
@click.argument("target", metavar="MODEL|URL")
@click.option("--model", default="", help="With a URL: the model's name there, if the engine offers several.")
@click.option("--batches", type=Numbers(), default="1,2,4,8,16", show_default=True, help="Parallel answers.")
@click.option(
    "--depths",
    type=Numbers(),
    default="64,1024",
    show_default=True,
    help="Context of each answer, in tokens.",
)
@click.option(
    "--prompts",
    type=Numbers(),
    default="16,256,1024",
    show_default=True,
    help="Length of the prompts that are timed alone, in tokens.",
)
@click.option(
    "--clients",
    type=Numbers(),
    default="1,4,12",
    show_default=True,
    help="Clients that send one request after another, to measure a request's overhead.",
)
@click.option(
    "--max-tokens", type=click.IntRange(8), default=32, show_default=True, help="Tokens of an answer."
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=2,
    show_default=True,
    help="How often everything is measured.",
)
@click.option(
    "--streams",
    type=click.IntRange(1),
    default=None,
    help="Parallel answers that the engine allows, for the file.",
)
@click.option("--room", type=click.IntRange(1), default=None, help="Tokens of its KV cache, for the file.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write the step times here, for capacity --steps.",
)
@json_option
@click.pass_obj
def bench(
    settings: Settings, target: str, model: str, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Measure the step times of an engine, by parallel answers, their context length, and prompt tokens.

    MODEL is a deployment or another model of your running server; a URL is any engine or server with OpenAI's API (put
    its key into the variable FREEHOLD_BENCH_KEY). Prompts are random words. Run it while
    the engine has no other requests, because these would affect the times.

    With --json: {"schema": 1, "about": {...}, "time": {...}, "limits": {...}}; times are in seconds.
    """
    from freehold.outgrow.capacity.measuring import deploy_bench

    # The variable may be set for another engine: a model by name is asked by this home's own socket.
    key = os.environ.get("FREEHOLD_BENCH_KEY", "") if "://" in target else ""
    with StatusLine("nothing was written") as status:
        engine = deploy_bench(
            target, model=model, key=key, **options, settings=settings, on_progress=status.show
        )
    text = json.dumps(engine.as_json(), indent=1)
    if out is not None:
        write_beside(out, text + "\n")
    if as_json:
        click.echo(text)
    else:
        _print_steps(engine, out)


def _print_steps(engine: EngineModel, out: Path | None) -> None:
    time = engine.time
    about = engine.about
    click.echo(
        printable(f"{about.get('model')} at {about.get('at')}, load average {about.get('load_average')}")
    )
    rows = [(f"{b}", f"{1e3 * s:.2f} ms") for b, s in zip(time.batches, time.fixed, strict=True)]
    table(("ANSWERS", "A STEP TAKES"), rows, right=(0, 1))
    click.echo(f"and {1e6 * time.depth:.3f} us for each token of their contexts")
    prompt = f"{1 / time.prompt:,.0f} a second" if time.prompt else "too fast to be measured"
    click.echo(f"prompt tokens: {prompt}; beside answers each takes {time.beside:.2f} times as long")
    if engine.limits.pace:
        click.echo(f"a step with prompts takes {engine.limits.pace:.2f} times as long as its answers alone")
    click.echo(
        f"a request: {digits(1e3 * time.arrival)} ms before its first step, and {digits(1e3 * time.request)} ms in "
        "which all answers wait"
    )
    click.echo(f"fitted within {time.spread:.0%} (one deviation)")
    if out is not None:
        click.echo(
            f"written to {out}: freehold deploy capacity --steps {out} --rate 1 --prompt 512 --max-tokens 128"
        )
