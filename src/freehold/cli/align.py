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

from freehold.cli.company import company_facts
from freehold.cli.options import MAX_SEED
from freehold.cli.progress import StatusLine
from freehold.cli.shared import json_option, pairs
from freehold.config import Settings

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("align")
@click.argument("model")
@click.option(
    "--pairs", "pairs_file", required=True, type=_FILE, help="Pairs of answers, one JSON object a line."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to make."
)
@click.option("--test", type=_FILE, help="Pairs to measure with; default: a share of --pairs.")
@click.option(
    "--test-share",
    type=click.FloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    help="Share of prompts that is not trained on, where --test is not given.",
)
@click.option(
    "--beta",
    type=click.FloatRange(0, min_open=True),
    default=0.1,
    show_default=True,
    help="How much a margin counts; less lets the model move further.",
)
@click.option(
    "--nll",
    type=click.FloatRange(0),
    default=0.1,
    show_default=True,
    help="Weight of the likelihood of chosen answers; 0 is plain DPO.",
)
@click.option(
    "--smoothing",
    type=click.FloatRange(0, 0.5, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of pairs taken to be labelled the wrong way round.",
)
@click.option(
    "--lr",
    "rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=2e-4,
    show_default=True,
    help="Learning rate.",
)
@click.option(
    "--rank", type=click.IntRange(1, 512), default=16, show_default=True, help="Rank of the adapter."
)
@click.option(
    "--epochs", type=click.IntRange(1, 100), default=1, show_default=True, help="Passes over the pairs."
)
@click.option("--batch", type=click.IntRange(1, 256), default=8, show_default=True, help="Pairs a step.")
@click.option(
    "--max-tokens",
    type=click.IntRange(8),
    default=1024,
    show_default=True,
    help="Tokens a prompt and its answer may have.",
)
@click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of all draws."
)
@click.option("--threads", type=click.IntRange(1), help="Compute threads; default: the physical cores.")
@click.option(
    "--half/--no-half",
    default=None,
    help="Multiply in bfloat16, which some processors do twice as fast; default: on those.",
)
@click.option("--fresh", is_flag=True, help="Discard what an interrupted run left, and start anew.")
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
    **given: Any,
) -> None:
    """Teach MODEL which of two answers to prefer; write the adapter and receipt.json to the folder OUT.

    A line of --pairs: {"prompt": "...", "chosen": "...", "rejected": "..."}, or `messages` in place of `prompt`.
    Prompts that are not trained on show what was learnt. After Ctrl-C or a crash the same command continues, to the
    same bits. Use the result with: freehold run MODEL --adapter OUT

    With --json, prints the receipt.
    """
    from freehold.adapt.align import AlignSettings, align
    from freehold.adapt.extra import half_helps
    from freehold.store import Store

    store = Store(settings)
    ref = store.resolve(model)
    half = half_helps() if given["half"] is None else given["half"]
    asked = AlignSettings(alpha=2.0 * given["rank"], **{**given, "half": half})
    with StatusLine(f"the same command continues; {out} is not there yet") as line:
        made = align(
            ref,
            pairs_file,
            out,
            asked,
            test=test,
            packs=store.packs,
            facts=company_facts(settings, {}),
            fresh=fresh,
            on_note=line.note,
            on_step=lambda row: line.show(_step(row)),
        )
    if as_json:
        click.echo(json.dumps(made))
    else:
        pairs(_rows(out, made))


def _step(row: Mapping[str, Any]) -> str:
    return (
        f"step {row['step']} of {row['steps']}: loss {row['loss']:.3f}, {row['preferred']:.0%} preferred, "
        f"chosen {row['chosen']:+.2f} nat, rejected {row['rejected']:+.2f}; {row['cpu_seconds']:.1f} CPU-s"
    )


def _rows(out: Path, made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the receipt as rows of text."""
    found = made["before_after"]
    return [
        ("adapter", str(out)),
        ("first loss", f"{made['first_loss']:.4f} (ln 2 is 0.6931)"),
        *(_measured(found) if found else [("unseen pairs", "none: what was learnt is not measured")]),
        *_served(made),
        *still_known_rows(made),
        ("time", f"{made['cpu_seconds']:.0f} CPU-s, {made['speed']['step_cpu_seconds']:.1f} a step"),
        ("receipt", str(out / "receipt.json")),
    ]


def _measured(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    fell = "; it fell: raise --nll, or lower --lr" if found["chosen_fell"] else ""
    return [
        (
            "unseen pairs",
            f"{found['preferred']:.1%} of {found['pairs']} prefer the chosen answer over the reference",
        ),
        (
            "",
            f"the chosen answer is the likelier one in {found['likelier_after']:.1%}, before "
            f"{found['likelier_before']:.1%} (p = {found['p']:.2g})",
        ),
        ("chosen", f"{found['chosen_after']:.2f} nat an answer, before {found['chosen_before']:.2f}{fell}"),
        ("rejected", f"{found['rejected_after']:.2f} nat an answer, before {found['rejected_before']:.2f}"),
    ]


def _served(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    found, gap = made["served"], made["mismatch"]
    if found is None:
        return []
    return [
        (
            "as served",
            f"{found['likelier']:.1%} of {found['pairs']} choose the chosen answer; the engine is "
            f"{gap['mean_absolute']:.4f} nat a token from the trainer (99 %: {gap['p99']:.2f})",
        )
    ]


def still_known_rows(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a training left of what was known before."""
    control, text = made["control"], made["text_loss"]
    return [
        ("facts", f"{control['after']} of {control['facts']} known, before {control['before']}"),
        ("other text", f"{text['after']:.3f} nat a token, before {text['before']:.3f}"),
    ]
