"""`freehold bar run|list`: measures a model on a task's cases, and lists which results hold.

Knows options, names and messages; evals runs and judges, router.bar keeps. A model of a gateway.toml is asked through
the gateway, so that labels, budgets and the ledger hold for these requests too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, UsageError
from freehold.cli.report.trying import TrialProgress
from freehold.cli.shared import gateway_option, json_option, table
from freehold.serve.reports.gateway_file import gateway_path

if TYPE_CHECKING:
    from freehold.adapt.evals.samples import Samples
    from freehold.adapt.evals.trial import Open, TrialResult
    from freehold.route.router.bar import BarResult, MeasuredModel
    from freehold.route.router.gateway import Gateway, GatewayModel
    from freehold.route.router.toml.table import KeptEnvironment
    from freehold.run.store import Store

SCHEMA = 1
LEVEL = 0.95
_FEW = 30  # cases; fewer resample badly
_HEAD = ("TASK", "MODEL", "SCORE", "LOWER", "CASES", "MEASURED", "VALID")


@click.group("bar")
def command() -> None:
    """Measure models on your own cases; a route with a task uses only models whose lower bound reaches the bar."""


@dataclass(frozen=True, slots=True)
class BarRun:
    """What `run` was asked for, resolved."""

    task: str
    file: Path
    model: GatewayModel
    judge: GatewayModel | None
    bar: float | None


@command.command("run", epilog="Example: freehold bar run support --model coder --gateway gateway.toml")
@click.argument("task")
@click.option(
    "--model",
    required=True,
    metavar="M",
    help="A model in gateway.toml, or an installed model, optionally with +ADAPTER.",
)
@gateway_option
@click.option("--as", "called", metavar="NAME", help="Store the result under this task's name.")
@click.option("--judge", metavar="MODEL", help="Model that judges rubrics; it must be one of your own.")
@click.option(
    "--allow-rented-judge", is_flag=True, help="Let a provider's model judge: it sees prompts and answers."
)
@click.option("--label", "labels", multiple=True, metavar="NAME", help="Label of these requests.")
@click.option(
    "--key", default="", metavar="NAME", help="Send the requests with this key; its labels and budget apply."
)
@json_option
@click.pass_obj
def run_bar(
    settings: Settings,
    task: str,
    model: str,
    gateway: Path | None,
    called: str | None,
    judge: str | None,
    allow_rented_judge: bool,
    labels: tuple[str, ...],
    key: str,
    as_json: bool,
) -> None:
    """Run TASK's cases on a model and save the score with its confidence interval.

    TASK is a file, or a task of the gateway.toml that names one. The file has one JSON object per line with
    `prompt` or `messages`, and one of exact, contains, regex, json, json_schema, tests or judge. After Ctrl-C, the
    answers so far are kept, and the same command continues from there.
    """
    from freehold.route.router.bar import BarStore
    from freehold.run.store import Store

    store, path = Store(settings), gateway_path(settings, gateway)
    read = _gateway(settings, path)
    bar_run = planned_run(read, task, model, called, judge, allow_rented_judge)
    result = measured_on(settings, store, path, bar_run, labels, key)
    kept = BarStore(settings.home).keep(result)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **result.as_json(), "kept": str(kept)}, indent=1))
    else:
        _say(result, bar_run.bar)


def measured_on(
    settings: Settings,
    store: Store,
    path: Path | None,
    bar_run: BarRun,
    labels: tuple[str, ...] = (),
    key: str = "",
    environment: KeptEnvironment | None = None,
) -> BarResult:
    """Run a task's cases on a model; return its result, which is not kept. `path`: of a gateway.toml.

    `environment`: as for gateway_models.
    """
    from freehold.adapt.evals.samples import read as read_samples
    from freehold.adapt.evals.trial import TrialModel, run
    from freehold.route.router.bar import Identities, file_digest

    identities = Identities(store)
    measured = identities.of(bar_run.model)
    judge_model = bar_run.judge
    graded_by = f"{judge_model.name}@{_digest(identities.of(judge_model))}" if judge_model else ""
    digest = file_digest(bar_run.file)
    samples = read_samples(bar_run.file, graded_by)
    subject = TrialModel(bar_run.model.name, _digest(measured))
    with (
        _opening(settings, store, path, bar_run, labels, key, environment) as open_model,
        TrialProgress(bar_run.model.name) as shown,
    ):
        (trial,) = run(
            samples,
            [subject],
            settings.home,
            open_model,
            judge=bar_run.judge.name if bar_run.judge else "",
            on_case=shown,
        )
    if identities.of(bar_run.model) != measured or file_digest(bar_run.file) != digest:
        raise UsageError("the model or the task file changed while it was measured", "run it again")
    return _result(bar_run, samples, trial, measured, digest, graded_by)


@command.command("list", epilog="Example: freehold bar list --gateway gateway.toml")
@gateway_option
@json_option
@click.pass_obj
def list_bars(settings: Settings, gateway: Path | None, as_json: bool) -> None:
    """List the stored results: score, lower bound, and whether each is valid, or why not."""
    from freehold.route.router.bar import BarStore, Identities, void
    from freehold.route.router.gateway import GatewayModel
    from freehold.run.store import Store

    read = _gateway(settings, gateway_path(settings, gateway))
    identities, rows = Identities(Store(settings)), []
    for result in BarStore(settings.home).all():
        name = result.model.name
        known = read.models.get(name) if read else None
        if known is None and result.model.rented:
            why = "no gateway.toml names the model"
        else:
            try:
                why = void(result, identities.of(known or GatewayModel(name, local=name)), time.time())
            except FreeholdError as e:
                why = e.message
        rows.append((result, why))
    if as_json:
        plain = [{**result.as_json(), "holds": not why, "void": why} for result, why in rows]
        click.echo(json.dumps({"schema": SCHEMA, "results": plain}, indent=1))
    elif rows:
        lines = [
            (
                r.task,
                r.model.name,
                f"{r.score:.3f}",
                f"{r.low:.3f}",
                f"{r.cases:,}",
                r.at[:10],
                f"void: {why}" if why else "yes",
            )
            for r, why in rows
        ]
        table(_HEAD, lines, right=(2, 3, 4))
    else:
        click.echo("no results; freehold bar run TASK --model M makes one", err=True)


def _gateway(settings: Settings, path: Path | None) -> Gateway | None:
    if path is None:
        return None
    from freehold.serve.reports.gateway_file import read_gateway

    return read_gateway(settings, path, keys=False)


def planned_run(
    read: Gateway | None, task: str, model: str, called: str | None, judge: str | None, rented_judge: bool
) -> BarRun:
    named = read.tasks.get(task) if read else None
    path = Path(named.file) if named and named.file else Path(task).expanduser()
    if not path.is_file():
        known = [name for name, each in read.tasks.items() if each.file] if read else []
        raise UsageError(
            f"{task} is neither a task with a file nor a file",
            f"tasks with a file: {', '.join(known)}" if known else "give a file of JSON lines",
        )
    grader = _model(read, judge) if judge else None
    if grader is not None and not grader.owned and not rented_judge:
        raise UsageError(
            f"{grader.name} is rented, and a judge sees every prompt and answer",
            "name an owned model, or add --allow-rented-judge",
        )
    name = called or (task if named else path.stem)
    about = read.tasks.get(name) if read else None
    return BarRun(name, path.absolute(), _model(read, model), grader, about.bar if about else None)


def _model(read: Gateway | None, name: str) -> GatewayModel:
    from freehold.route.router.gateway import GatewayModel

    if read and name in read.routes:
        raise UsageError(f"{name} is a route", "measure its models one by one")
    known = read.models.get(name) if read else None
    return known or GatewayModel(name, local=name)


def _digest(measured: MeasuredModel) -> str:
    """Name what is measured, for the answers that are kept; a rented model's hold for the day."""
    day = datetime.now(UTC).date().isoformat() if measured.rented else ""
    return hashlib.sha256(json.dumps([asdict(measured), day], sort_keys=True).encode()).hexdigest()


@contextmanager
def _opening(
    settings: Settings,
    store: Store,
    path: Path | None,
    bar_run: BarRun,
    labels: tuple[str, ...],
    key: str,
    environment: KeptEnvironment | None = None,
) -> Iterator[Open]:
    """Give a function that opens the models: in this process, or through the gateway."""
    if path is not None:
        from freehold.cli.serving.hybrid import gateway_models

        with gateway_models(settings, store, path, labels, key, environment=environment) as opened:
            yield opened
        return
    if labels or key:
        raise UsageError("labels and keys are defined in gateway.toml", "add --gateway FILE")

    def open_model(name: str) -> Any:
        from freehold.run.local import open_shown
        from freehold.run.store.naming import adapters_of

        wanted = bar_run.judge if bar_run.judge and bar_run.judge.name == name else bar_run.model
        model, adapters = adapters_of(store, wanted.local)
        named = {each.name: each.path for each in adapters}
        opened = open_shown(store.resolve(model), packs=store.packs, adapters=named)
        opened.adapters.default = next(iter(named), "")
        return opened

    yield open_model


def _result(
    bar_run: BarRun,
    samples: Samples,
    trial: TrialResult,
    measured: MeasuredModel,
    digest: str,
    judge: str,
) -> BarResult:
    from freehold.adapt.evals.paired import resampled_mean, wilson
    from freehold.route.router.bar import BarResult, now_text

    scores = trial.scores
    graded = len(scores) >= _FEW and any(0 < s < 1 for s in scores)
    bounds = resampled_mean(scores, LEVEL) if graded else wilson(scores, LEVEL)
    return BarResult(
        task=bar_run.task,
        model=measured,
        file=str(bar_run.file),
        cases_digest=digest,
        cases=len(samples.cases),
        score=bounds.mid,
        low=bounds.low,
        high=bounds.high,
        method="bootstrap" if graded else "wilson",
        at=now_text(time.time()),
        judge=judge if samples.needs_judge else "",
        tokens=sum(a.tokens for a in trial.answers),
        seconds=round(sum(a.seconds for a in trial.answers), 3),
    )


def _say(result: BarResult, bar: float | None) -> None:
    click.echo(
        f"{result.model.name} on {result.task}: {result.score:.3f} ({result.low:.3f} to {result.high:.3f}, 95% CI) "
        f"on {result.cases:,} cases"
    )
    if bar is not None:
        reaches = "reaches" if result.low >= bar else "is below"
        click.echo(f"its lower bound {reaches} the bar of {bar:g}")
