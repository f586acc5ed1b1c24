"""`freehold distil TEACHER --into MODEL --prompts FILE -o OUT`: an adapter that answers as a larger model does.

Knows options and lines of text; adapt.distil does the work. Both models must be here already: nothing is fetched.
Path: main -> distil -> Store.resolve -> adapt.distil.distil -> a folder
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from freehold.adapt.registry import note
from freehold.choosing import company_facts
from freehold.cli.progress import StatusLine, result_of
from freehold.cli.shared import FiniteRange, json_option, pairs
from freehold.cli.training import (
    LINES,
    adapter_options,
    batch_option,
    chosen_settings,
    epochs_option,
    half_option,
    max_length_option,
    out_option,
    rate_option,
    replay_option,
    served_row,
    still_known_rows,
    time_row,
)
from freehold.config import Settings
from freehold.terminal import Ticking


@click.command("distil")
@click.argument("teacher")
@click.option("--into", "student", required=True, metavar="MODEL", help="The model that learns.")
@click.option("--prompts", required=True, type=LINES, help="Prompts, one JSON object per line.")
@out_option
@click.option(
    "--on-policy",
    is_flag=True,
    help="Let MODEL answer and TEACHER judge each token; both must have the same tokenizer.",
)
@click.option(
    "--test", type=LINES, help="Prompts with checks to measure with; default: a share of --prompts."
)
@click.option(
    "--test-share",
    type=FiniteRange(0, 0.9),
    default=0.1,
    show_default=True,
    help="Share of prompts set aside for the test, if they have checks and there is no --test.",
)
@click.option(
    "--tries",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Maximum attempts of TEACHER per prompt until an answer passes; the first is greedy.",
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Tokens of an answer."
)
@max_length_option
@rate_option(2e-4)
@epochs_option(2, "the prompts")
@replay_option("not with --on-policy")
@batch_option("Prompts")
@half_option
@click.option(
    "--accept-teacher-terms",
    "accepted",
    default="",
    metavar="RIGHT",
    help="Your right to train although TEACHER's licence refuses, such as a contract; the receipt "
    "records it.",
)
@adapter_options
@json_option
@click.pass_obj
def command(
    settings: Settings,
    teacher: str,
    student: str,
    prompts: Path,
    out: Path,
    test: Path | None,
    accepted: str,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Teach MODEL to answer certain prompts as TEACHER does; write an adapter and receipt.json to the folder OUT.

    A line of --prompts: {"prompt": "..."}, or `messages`; with exact, contains, regex, json, json_schema or tests,
    answers are checked: TEACHER's wrong answers are left out, and MODEL is measured on prompts that it was not
    trained on. OUT/answers.jsonl keeps the answers. After Ctrl-C or a crash, the same command continues and gives
    the same bits. Use the result with: freehold run MODEL --adapter OUT

    With --json, prints the receipt.
    """
    with Ticking("starting torch"):
        from freehold.adapt.distil import DistilSettings, DistilWatch, distil
    from freehold.store import Store

    store = Store(settings)
    models = store.resolve(teacher), store.resolve(student)
    settings_chosen = chosen_settings(DistilSettings, options)
    note(settings.home, "distil", out)
    with StatusLine(result_of(out)) as line:
        line.show(f"before the first step: reading {models[0].name}")
        record = distil(
            *models,
            prompts,
            out,
            settings_chosen,
            test=test,
            packs=store.packs,
            facts=company_facts(settings, {}),
            accepted=accepted,
            fresh=fresh,
            watch=DistilWatch(line.note, line.show, lambda row: line.show(_step(row))),
        )
    if as_json:
        click.echo(json.dumps(record))
    else:
        pairs(_rows(out, record))


def _step(row: Mapping[str, Any]) -> str:
    gap = f", {row['mismatch']:.3f} nats per token between engine and trainer" if "mismatch" in row else ""
    return (
        f"step {row['step']} of {row['steps']}: {row['loss']:.3f} nats per token over {row['tokens']:,}{gap}; "
        f"{row['cpu_seconds']:.1f} CPU-s"
    )


def _rows(out: Path, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the receipt as rows of text."""
    measured = record["before_after"]
    return [
        ("adapter", str(out)),
        *_learnt(record),
        *(
            _measured(measured)
            if measured
            else [("unseen prompts", "none with a judge: what was learnt is not measured")]
        ),
        *still_known_rows(record),
        served_row(record),
        ("teacher", _licence(record["licence"]["teacher"])),
        time_row(record),
        ("receipt", str(out / "receipt.json")),
    ]


def _learnt(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "divergence" in record:
        first, last = record["divergence"]["first"], record["divergence"]["last"]
        return [("divergence", f"{last:.3f} nats per token from the teacher ({first:.3f} at first)")]
    counted = record["answers"]
    faults = ", ".join(f"{count} {kind}" for kind, count in counted["rejected"].items()) or "none rejected"
    return [("answers", f"{counted['kept']} kept; {faults}")]


def _measured(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    share = "" if measured["of_teacher"] is None else f", {measured['of_teacher']:.0%} of the teacher"
    return [
        (
            "unseen prompts",
            f"{measured['after']:.1%} of {measured['prompts']} pass{share} (p = {measured['p']:.2g})",
        ),
        ("", f"{measured['before']:.1%} before; the teacher {measured['teacher']:.1%}"),
    ]


def _licence(verdict: Mapping[str, Any]) -> str:
    named = ", ".join(verdict["licences"]) or "not known"
    under = f"; used under: {verdict['accepted']}" if verdict["accepted"] else ""
    return f"{named}: {verdict['answer']} for training on its answers{under}"
