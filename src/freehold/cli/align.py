"""`freehold align MODEL --pairs FILE -o OUT`: an adapter that prefers the chosen of two answers, with a receipt.

Knows options and lines of text; adapt.align does the work. MODEL must be here already: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from freehold.adapt.settings import AlignSettings
from freehold.base.config import Settings
from freehold.base.terminal import Ticking
from freehold.choose.choosing import company_facts
from freehold.cli.options import setting_options
from freehold.cli.shared import json_option
from freehold.cli.training import (
    BASE,
    LINES,
    adapter_options,
    chosen_settings,
    continue_option,
    half_option,
    named_base,
    out_option,
    still_known_rows,
    time_row,
    train,
)


@click.command("align")
@click.argument("model", metavar=BASE)
@click.option(
    "--pairs", "pairs_file", required=True, type=LINES, help="Pairs of answers, one JSON object per line."
)
@out_option
@click.option("--test", type=LINES, help="Pairs to measure with; default: a share of --pairs.")
@setting_options(
    AlignSettings,
    "test_share",
    "beta",
    "nll",
    "replay",
    "replay_weight",
    "smoothing",
    "rate",
    "epochs",
    "batch",
    "max_length",
)
@half_option
@continue_option
@adapter_options
@json_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    pairs_file: Path,
    out: Path,
    test: Path | None,
    continued: bool,
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
        from freehold.adapt.align import align
    from freehold.run.store import Store

    store = Store(settings)
    base = named_base(store, model, continued=continued)
    settings_chosen = chosen_settings(AlignSettings, options)
    train(
        settings,
        "align",
        out,
        lambda line: align(
            base.ref,
            pairs_file,
            out,
            settings_chosen,
            adapter=base.adapter,
            continued=continued,
            test=test,
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


def _step(row: Mapping[str, Any]) -> str:
    return (
        f"step {row['step']} of {row['steps']}: loss {row['loss']:.3f}, {row['preferred']:.0%} preferred, "
        f"chosen {row['chosen']:+.2f} nat, rejected {row['rejected']:+.2f}; {row['cpu_seconds']:.1f} CPU-s"
    )


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    measured = record["before_after"]
    return [
        ("first loss", f"{record['first_loss']:.4f} (ln 2 is 0.6931)"),
        *(_measured(measured) if measured else [("unseen pairs", "none: what was learnt is not measured")]),
        *_served(record),
        *still_known_rows(record),
        time_row(record),
    ]


def _measured(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    fell = "; it fell: raise --nll, or lower --lr" if measured["chosen_fell"] else ""
    return [
        (
            "unseen pairs",
            f"{measured['preferred']:.1%} of {measured['pairs']} "
            "have a larger margin for the chosen answer than the reference",
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
