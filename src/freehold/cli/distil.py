"""`freehold distil TEACHER --into MODEL --prompts FILE -o OUT`: an adapter that answers as a larger model does.

Knows options and lines of text; adapt.distil does the work. Both models must be here already: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from freehold.adapt.settings import DistilSettings
from freehold.base.config import Settings
from freehold.base.terminal import Ticking
from freehold.choose.choosing import company_facts
from freehold.cli.options import setting_options
from freehold.cli.shared import json_option
from freehold.cli.training import (
    LINES,
    adapter_options,
    chosen_settings,
    continue_option,
    half_option,
    named_base,
    out_option,
    served_row,
    still_known_rows,
    time_row,
    train,
)


@click.command("distil")
@click.argument("teacher", metavar="TEACHER[+ADAPTER]")
@click.option(
    "--into", "student", required=True, metavar="MODEL[+ADAPTER]", help="The model that learns, MODEL."
)
@click.option("--prompts", required=True, type=LINES, help="Prompts, one JSON object per line.")
@out_option
@setting_options(DistilSettings, "on_policy")
@click.option(
    "--teacher-system",
    type=LINES,
    help="Instructions that TEACHER sees before each prompt and MODEL does not.",
)
@click.option(
    "--teacher-shots",
    type=LINES,
    help="Solved examples that TEACHER sees and MODEL does not: JSON lines with prompt and completion.",
)
@click.option(
    "--test", type=LINES, help="Prompts with checks to measure with; default: a share of --prompts."
)
@setting_options(
    DistilSettings, "test_share", "tries", "max_tokens", "max_length", "rate", "epochs", "replay", "batch"
)
@half_option
@continue_option
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
    teacher_system: Path | None,
    teacher_shots: Path | None,
    test: Path | None,
    continued: bool,
    accepted: str,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Teach MODEL to answer certain prompts as TEACHER does; write an adapter and receipt.json to the folder OUT.

    A line of --prompts: {"prompt": "..."}, or `messages`; with exact, contains, regex, json, json_schema or tests,
    answers are checked: TEACHER's wrong answers are left out, and MODEL is measured on prompts that it was not
    trained on. OUT/answers.jsonl keeps the answers.

    With --teacher-system, --teacher-shots, or `teacher_messages` in a line, TEACHER sees text that MODEL does not
    see; MODEL learns to answer without it. TEACHER may be MODEL itself.

    After Ctrl-C or a crash, the same command continues and gives
    the same bits. Use the result with: freehold run MODEL --adapter OUT

    With --json, prints the receipt.
    """
    with Ticking("starting torch"):
        from freehold.adapt.distil import DistilWatch, distil
        from freehold.adapt.teacher_prompts import TeacherContext
    from freehold.run.store import Store

    store = Store(settings)
    teaches, learns = named_base(store, teacher), named_base(store, student, continued=continued)
    context = TeacherContext.read(teacher_system, teacher_shots)
    settings_chosen = chosen_settings(DistilSettings, options)
    train(
        settings,
        "distil",
        out,
        lambda line: distil(
            teaches.ref,
            learns.ref,
            prompts,
            out,
            settings_chosen,
            teacher_adapter=teaches.adapter,
            adapter=learns.adapter,
            continued=continued,
            context=context,
            test=test,
            packs=store.packs,
            facts=company_facts(settings, {}),
            accepted=accepted,
            fresh=fresh,
            watch=DistilWatch(line.note, line.show, lambda row: line.show(_step(row))),
        ),
        _rows,
        first=teaches.ref.name,
        as_json=as_json,
    )


def _step(row: Mapping[str, Any]) -> str:
    gap = f", {row['mismatch']:.3f} nats per token between engine and trainer" if "mismatch" in row else ""
    return (
        f"step {row['step']} of {row['steps']}: {row['loss']:.3f} nats per token over {row['tokens']:,}{gap}; "
        f"{row['cpu_seconds']:.1f} CPU-s"
    )


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    measured = record["before_after"]
    return [
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
