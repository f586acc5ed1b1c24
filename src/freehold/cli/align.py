"""`freehold align MODEL --pairs FILE -o OUT`: an adapter that prefers the chosen of two answers, with a receipt.

Knows options and lines of text; adapt.align does the work. MODEL must be here already: nothing is fetched.
Path: main -> align -> Store.resolve -> adapt.align.align -> a folder
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
    still_known_rows,
    time_row,
)
from freehold.config import Settings
from freehold.terminal import Ticking


@click.command("align")
@click.argument("model")
@click.option(
    "--pairs", "pairs_file", required=True, type=LINES, help="Pairs of answers, one JSON object per line."
)
@out_option
@click.option("--test", type=LINES, help="Pairs to measure with; default: a share of --pairs.")
@click.option(
    "--test-share",
    type=FiniteRange(0, 0.9),
    default=0.1,
    show_default=True,
    help="Share of prompts set aside for the test, without --test.",
)
@click.option(
    "--beta",
    type=FiniteRange(0, min_open=True),
    default=0.1,
    show_default=True,
    help="Weight of the margin; a smaller one lets the model move further.",
)
@click.option(
    "--nll",
    type=FiniteRange(0),
    default=0.1,
    show_default=True,
    help="Weight of the likelihood of chosen answers; 0 is plain DPO.",
)
@replay_option()
@click.option(
    "--smoothing",
    type=FiniteRange(0, 0.5, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of pairs assumed to be labelled the wrong way round.",
)
@rate_option(2e-4)
@epochs_option(1, "the pairs")
@batch_option("Pairs")
@max_length_option
@half_option
@adapter_options
@json_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    pairs_file: Path,
    out: Path,
    test: Path | None,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Teach MODEL which of two answers to prefer; write the adapter and receipt.json to the folder OUT.

    A line of --pairs: {"prompt": "...", "chosen": "...", "rejected": "..."}, or `messages` in place of `prompt`.
    Prompts set aside for the test show what the model learnt. After Ctrl-C or a crash, the same command continues
    and gives the same bits. Use the result with: freehold run MODEL --adapter OUT

    With --json, prints the receipt.
    """
    with Ticking("starting torch"):
        from freehold.adapt.align import AlignSettings, align
    from freehold.store import Store

    store = Store(settings)
    ref = store.resolve(model)
    settings_chosen = chosen_settings(AlignSettings, options)
    note(settings.home, "align", out)
    with StatusLine(result_of(out)) as line:
        line.show(f"before the first step: reading {ref.name}")
        record = align(
            ref,
            pairs_file,
            out,
            settings_chosen,
            test=test,
            packs=store.packs,
            facts=company_facts(settings, {}),
            fresh=fresh,
            on_note=line.note,
            on_step=lambda row: line.show(_step(row)),
        )
    if as_json:
        click.echo(json.dumps(record))
    else:
        pairs(_rows(out, record))


def _step(row: Mapping[str, Any]) -> str:
    return (
        f"step {row['step']} of {row['steps']}: loss {row['loss']:.3f}, {row['preferred']:.0%} preferred, "
        f"chosen {row['chosen']:+.2f} nat, rejected {row['rejected']:+.2f}; {row['cpu_seconds']:.1f} CPU-s"
    )


def _rows(out: Path, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the receipt as rows of text."""
    measured = record["before_after"]
    return [
        ("adapter", str(out)),
        ("first loss", f"{record['first_loss']:.4f} (ln 2 is 0.6931)"),
        *(_measured(measured) if measured else [("unseen pairs", "none: what was learnt is not measured")]),
        *_served(record),
        *still_known_rows(record),
        time_row(record),
        ("receipt", str(out / "receipt.json")),
    ]


def _measured(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    fell = "; it fell: raise --nll, or lower --lr" if measured["chosen_fell"] else ""
    return [
        (
            "unseen pairs",
            f"{measured['preferred']:.1%} of {measured['pairs']} prefer the chosen answer over the reference",
        ),
        (
            "",
            f"the chosen answer is likelier in {measured['likelier_after']:.1%} "
            f"({measured['likelier_before']:.1%} before; p = {measured['p']:.2g})",
        ),
        (
            "chosen",
            f"{measured['chosen_after']:.2f} nats per answer ({measured['chosen_before']:.2f} before){fell}",
        ),
        (
            "rejected",
            f"{measured['rejected_after']:.2f} nats per answer ({measured['rejected_before']:.2f} before)",
        ),
    ]


def _served(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    served, gap = record["served"], record["mismatch"]
    if served is None:
        return []
    return [
        (
            "as served",
            f"{served['likelier']:.1%} of {served['pairs']} prefer the chosen answer; engine and trainer "
            f"differ by {gap['mean_absolute']:.4f} nats per token (99 %: {gap['p99']:.2f})",
        )
    ]
