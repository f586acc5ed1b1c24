"""`freehold finetune MODEL --data FILE -o OUT`: an adapter that learnt a user's examples, with a receipt.

Knows options and lines of text; adapt.finetune does the work. MODEL must be here already: nothing is fetched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.adapt.settings import FinetuneSettings
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.terminal import Ticking, printable
from freehold.choose.choosing import company_facts
from freehold.cli.options import setting_options
from freehold.cli.shared import json_option, pairs
from freehold.cli.training import (
    BASE,
    FOLDER,
    LINES,
    adapter_options,
    chosen_settings,
    continue_option,
    half_option,
    named_base,
    served_row,
    still_known_rows,
    time_row,
    train,
)
from freehold.run.store import Store
from freehold.run.store.space import human

if TYPE_CHECKING:
    from freehold.run.store.naming import AdaptedModel


@click.command("finetune")
@click.argument("model", metavar=BASE)
@click.option("--data", required=True, type=LINES, help="Examples, one JSON object per line.")
@click.option("-o", "--out", type=FOLDER, help="The folder to create.")
@click.option(
    "--test",
    type=LINES,
    help="Test items, answered before and after training; those that occur in --data are reported.",
)
@setting_options(
    FinetuneSettings, "epochs", "batch", "rate", "replay", "replay_weight", "max_length", "skip_long"
)
@click.option(
    "--preflight",
    is_flag=True,
    help="Only check the data: loss mask, lengths, whether the model can overfit one batch, time and memory.",
)
@click.option(
    "--gguf/--no-gguf", default=True, show_default=True, help="Write adapter.gguf for llama.cpp too."
)
@half_option
@continue_option
@adapter_options
@json_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    data: Path,
    out: Path | None,
    test: Path | None,
    preflight: bool,
    gguf: bool,
    continued: bool,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Teach MODEL your examples; write the adapter and receipt.json to the folder OUT.

    A line of --data: {"prompt": "...", "completion": "..."}, or {"messages": [...]} with assistant turns to
    train on. A line of --test: the same, or a prompt with a judge of `freehold eval` (contains, regex, ...). The
    receipt has the test results before and after, and shows what the model forgot, measured with facts and a text
    that is never used in training.

    MODEL+ADAPTER starts from an adapter of MODEL. The result contains it, so it is used alone, and its receipt names
    the stages before it.

    After Ctrl-C or a crash, the same command continues and gives the same bits. Use the result with: freehold run
    MODEL --adapter OUT

    With --json, prints the receipt.
    """
    with Ticking("starting torch"):
        from freehold.adapt.finetune import finetune

    store = Store(settings)
    base = named_base(store, model, continued=continued)
    settings_chosen = chosen_settings(FinetuneSettings, options)
    if preflight:
        return _preflight(base, continued, data, test, settings_chosen, as_json=as_json)
    if out is None:
        raise UsageError("name the folder to make with -o", "or only check with --preflight")
    train(
        settings,
        "finetune",
        out,
        lambda line: finetune(
            base.ref,
            data,
            out,
            settings_chosen,
            adapter=base.adapter,
            continued=continued,
            test=test,
            gguf=gguf,
            packs=store.packs,
            facts=company_facts(settings, {}),
            fresh=fresh,
            on_note=line.note,
            on_step=lambda row: line.show(_step(row)),
        ),
        _rows,
        first=base.ref.name,
        as_json=as_json,
    )
    return None


def _preflight(
    named: AdaptedModel,
    continued: bool,
    data: Path,
    test: Path | None,
    settings: FinetuneSettings,
    *,
    as_json: bool,
) -> None:
    """Print what a run would see, and what one batch shows."""
    from freehold.adapt.finetune import SHOWN, Classroom, LengthHistogram, Lessons, rehearsal, shown
    from freehold.adapt.stages import StageBase

    base = StageBase.of(named.ref, named.adapter, continued=continued)
    with Ticking(f"reading {base.name}, and one batch"):
        lessons = Lessons.read(data, test)
        room = Classroom.of(base, lessons, base.fitted(settings))
        rows = room.course.rows
        masks = [shown(room.trainee.tokenizer, row) for row in rows[:SHOWN]]
        lengths, rehearsed = LengthHistogram.of(rows), rehearsal(room.trainee, room.course)
    steps = settings.epochs * room.course.order.steps_an_epoch
    if as_json:
        shown_masks = [[{"text": piece.text, "counts": piece.counts} for piece in mask] for mask in masks]
        counts = dict(zip(map(str, lengths.bounds), lengths.counts, strict=True))
        line = {"masks": shown_masks, "lengths": counts, "skipped": room.skipped, "steps": steps}
        line["contaminated"] = list(lessons.contaminated) if lessons.exam else None
        click.echo(json.dumps({**line, **rehearsed.as_json()}))
        return
    for mask in masks:
        click.echo("".join(click.style(printable(piece.text), reverse=piece.counts) for piece in mask) + "\n")
    marked = "shown reversed" if sys.stdout.isatty() else "the last part of each"
    ends = "  ".join(f"≤{b}: {n}" for b, n in zip(lengths.bounds, lengths.counts, strict=True) if n)
    minutes = steps * rehearsed.step_cpu_seconds / 60
    pairs(
        [
            ("loss counts", f"the answers with the token that ends a turn, {marked}"),
            ("samples", f"{len(rows):,} answers, {room.skipped:,} left out as too long"),
            ("tokens", f"{lengths.least} to {lengths.most}, half up to {lengths.median}; {ends}"),
            (
                "first loss",
                f"{rehearsed.first_loss:.3f} nats per token (a model that knows nothing: {rehearsed.worst:.1f})",
            ),
            (
                "one batch",
                f"learnt to {rehearsed.last_loss:.3f}" + ("" if rehearsed.sane else ": NOT as it should be"),
            ),
            ("test", lessons.tested),
            ("time", f"{steps} steps, about {minutes:.0f} CPU-minutes without replay and tests"),
            ("memory", f"{human(rehearsed.peak_bytes)} at most"),
        ]
    )


def _step(row: Mapping[str, Any]) -> str:
    drift = f", {row['drift']:.3f} nat from the base" if "drift" in row else ""
    return (
        f"step {row['step']} of {row['steps']}: loss {row['loss']:.3f}{drift}; {row['cpu_seconds']:.1f} CPU-s"
    )


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "loss",
            f"{record['loss']['first']:.3f} at the first step, {record['loss']['last']:.3f} at the last",
        ),
        *_exam(record["before_after"]),
        *still_known_rows(record),
        served_row(record),
        time_row(record),
    ]


def _exam(exam: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if exam is None:
        return [("test", "none: what was learnt is not measured")]
    rows = [("test", _compared(exam["all"]))]
    if exam["contaminated"]:
        clean = _compared(exam["clean"]) if "clean" in exam else "no item is left"
        rows.append(("not in the data", clean))
    return rows


def _compared(scores: Mapping[str, Any]) -> str:
    return f"{scores['after']} of {scores['items']} right ({scores['before']} before; p = {scores['p']:.2g})"
