"""`freehold build RECIPE [STAGE]`: a model built in stages from a recipe, each run when it is out of date.

Knows options and lines of text; adapt.recipes does the work. The base must be here already: nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.terminal import Ticking
from freehold.choose.choosing import company_facts
from freehold.cli.progress import StatusLine
from freehold.cli.shared import json_option, table
from freehold.run.store import Store
from freehold.run.store.space import human

if TYPE_CHECKING:
    from freehold.adapt.recipes.build import Builder, PlannedStage, StageReport
    from freehold.adapt.recipes.gates import GateResult

_PLAN = ("STAGE", "VERB", "FROM", "STATE", "MINUTES", "MEMORY")
_DONE = ("STAGE", "VERB", "STATE", "CPU-S", "GATE")


@click.command("build")
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("stage", required=False, default="")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the results; default: RECIPE without .toml, with -build, beside it.",
)
@click.option(
    "--plan",
    is_flag=True,
    help="Only print which stages would run, with their minutes and memory on this machine.",
)
@json_option
@click.pass_obj
def command(
    settings: Settings, recipe: Path, stage: str, out: Path | None, plan: bool, as_json: bool
) -> None:
    """Build a model from RECIPE: run the stages that are out of date, up to STAGE if one is named.

    A stage has a verb (finetune, align, reinforce, distil, fuse, quantize or eval), the verb's options, and optionally
    `from`, the stage to start from, and a gate, a test on items that no stage is trained on. If a result does not pass
    its gate, the build prints the figures and exits 1.

    A stage is out of date if its files, its options, its parent's result or the version of Freehold changed. After
    Ctrl-C or a crash, the same command continues and gives the same bits. OUT/STAGE is the newest result.

    With --json, prints one object.
    """
    with Ticking(f"reading {recipe}"):
        from freehold.adapt.recipes.build import Builder
        from freehold.adapt.recipes.recipe import read_recipe

        builder = Builder(
            read_recipe(recipe),
            out or recipe.with_name(f"{recipe.stem}-build"),
            settings,
            Store(settings),
            company_facts(settings, {}),
        )
    if plan:
        return _plan(builder, stage, as_json=as_json)
    return _build(builder, stage, as_json=as_json)


def _plan(builder: Builder, stage: str, *, as_json: bool) -> None:
    """Print the stages with what each takes here."""
    from freehold.adapt.recipes.estimate import estimated, estimates_json

    with Ticking("comparing digests"):
        rows = [
            (each, estimated(each.stage, builder.base.ref, builder.earlier(each)))
            for each in builder.plan(stage)
        ]
    if as_json:
        plain = [
            {
                "stage": each.stage.name,
                "verb": each.stage.verb.name,
                "from": each.stage.parent,
                "runs": bool(each.why),
                "why": each.why,
                "gate": each.gate,
                "out": str(each.out) if each.out else None,
                **estimates_json(estimate),
            }
            for each, estimate in rows
        ]
        click.echo(json.dumps({"recipe": str(builder.recipe.path), "stages": plain}))
        return
    lines = [
        (
            each.stage.name,
            each.stage.verb.name,
            each.stage.parent,
            _state(each),
            f"{estimate.minutes:.1f}" if each.why else "",
            human(estimate.memory) if each.why else "",
        )
        for each, estimate in rows
    ]
    table(_PLAN, lines, right=(4, 5))
    minutes = sum(estimate.minutes for each, estimate in rows if each.why)
    if minutes:
        click.echo(f"about {minutes:.1f} minutes on this machine's cores, without gates", err=True)


def _state(planned: PlannedStage) -> str:
    if planned.why:
        return f"runs: {planned.why}"
    return "its gate is measured" if planned.gate else "up to date"


def _build(builder: Builder, stage: str, *, as_json: bool) -> None:
    from freehold.adapt.recipes.build import BuildWatch, GateNotMet

    reports: list[StageReport] = []
    with StatusLine(f"the same command continues; the stages before are whole in {builder.folder}") as line:

        def ended(report: StageReport) -> None:
            reports.append(report)
            line.say(f"{report.name}: {report.state}{_gate_line(report.gate)}")

        builder.watch = BuildWatch(
            begins=lambda planned: line.begin(f"{planned.stage.name}: {planned.why or 'up to date'}"),
            note=line.note,
            step=lambda name, row: line.show(_step(name, row)),
            items=lambda name, done, total: line.show(f"gate of {name}: {done} of {total} items"),
            ends=ended,
        )
        try:
            builder.build(stage)
        except GateNotMet:
            if as_json:
                click.echo(json.dumps(_as_json(builder, reports)))
            raise
    if as_json:
        click.echo(json.dumps(_as_json(builder, reports)))
        return
    rows = [(r.name, r.verb, r.state, f"{r.cpu_seconds:,.0f}", _gate_text(r.gate)) for r in reports]
    table(_DONE, rows, right=(3,))
    click.echo(f"results: {builder.folder}", err=True)


def _as_json(builder: Builder, reports: list[StageReport]) -> dict[str, Any]:
    return {
        "recipe": str(builder.recipe.path),
        "folder": str(builder.folder),
        "passed": all(each.gate is None or each.gate.passed for each in reports),
        "stages": [each.as_json() for each in reports],
    }


def _step(name: str, row: Mapping[str, Any]) -> str:
    value = next((f", {key} {row[key]:.3f}" for key in ("loss", "score") if key in row), "")
    return f"{name}: step {row['step']} of {row.get('steps', '?')}{value}"


def _gate_line(gate: GateResult | None) -> str:
    return "" if gate is None else f"; gate {_gate_text(gate)}"


def _gate_text(gate: GateResult | None) -> str:
    """Return a gate's figures in one line."""
    if gate is None:
        return ""
    figures, parts = gate.figures, []
    if "share" in figures:
        parts.append(f"{figures['share']:.1%} of {figures['items']}")
    if "other" in figures:
        parts.append(f"before {figures['other']:.1%}, p = {figures['p']:.2g}")
    if "lost" in figures:
        parts.append(f"{figures['lost']} facts lost")
    if figures.get("divergence") is not None:
        parts.append(f"{figures['divergence']:.4f} nats per token")
    return ("met: " if gate.passed else "NOT met: ") + ", ".join(parts)
