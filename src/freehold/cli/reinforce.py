"""`freehold reinforce MODEL --reward VERIFIER -o OUT`: an adapter that earns higher scores, with a receipt.

Knows options and lines of text; adapt.reinforce does the work. MODEL must be here already: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from freehold.adapt.settings import ReinforceSettings
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
    named_base,
    out_option,
    still_known_rows,
    train,
)

_ANSWER = 60  # characters of an answer that a row shows


@click.command("reinforce")
@click.argument("model", metavar=BASE)
@click.option(
    "--reward",
    required=True,
    metavar="FILE.py|rg:DATASET",
    help="Scores the answers: a file with reward(prompt, answer, item), or a data set of "
    "reasoning-gym, rg:DATASET[:name=value,...].",
)
@out_option
@click.option(
    "--prompts",
    "prompts_file",
    type=LINES,
    help="Prompts, one JSON object per line; default: a data set's own.",
)
@setting_options(ReinforceSettings, "steps")
@click.option(
    "--check",
    default="",
    metavar="FILE.py|rg:DATASET",
    help="A second verifier that scores the same answers.",
)
@click.option("--test", type=LINES, help="Prompts to measure with; default: some of --prompts, set aside.")
@setting_options(
    ReinforceSettings, "unseen", "passes_at", "system", "shots", "prompts", "group", "max_tokens"
)
@setting_options(
    ReinforceSettings,
    *("loss", "rate", "replay", "replay_weight", "updates", "cap", "most_mismatch", "allow_gameable", "half"),
)
@continue_option
@adapter_options
@json_option
@click.pass_obj
def command(
    settings: Settings,
    model: str,
    reward: str,
    out: Path,
    prompts_file: Path | None,
    check: str,
    test: Path | None,
    continued: bool,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train MODEL on the scores of its own answers; write the adapter and receipt.json to the folder OUT.

    A reward runs in a process without network or environment that cannot write files, with one second of CPU time
    per answer. A score is from 0 to 1; anything else is a failure and scores 0. A verifier that rewards useless
    answers is refused. A line of --prompts: {"prompt": "...", ...}; the whole line is the reward's `item`, and
    --shots uses its "answer", if it has one. After Ctrl-C or a crash, the same command continues and gives the same
    bits. Use the result with: freehold run MODEL --adapter OUT

    With --json, prints the receipt.
    """
    with Ticking("starting torch"):
        from freehold.adapt.reinforce.course import ReinforceSources, reinforce
    from freehold.run.store import Store

    store = Store(settings)
    base = named_base(store, model, continued=continued)
    settings_chosen = chosen_settings(ReinforceSettings, options)
    train(
        settings,
        "reinforce",
        out,
        lambda line: reinforce(
            base.ref,
            ReinforceSources(reward, check, prompts_file, test),
            out,
            settings_chosen,
            adapter=base.adapter,
            continued=continued,
            packs=store.packs,
            facts=company_facts(settings, {}),
            fresh=fresh,
            on_note=line.note,
            on_step=lambda row: line.say(_step(row, settings_chosen.steps)),
        ),
        _rows,
        first=base.ref.name,
        as_json=as_json,
    )


def _step(row: Mapping[str, Any], steps: int) -> str:
    parts = [
        f"step {row['step']} of {steps}: score {row['score']:.2f}, {row['passed']:.0%} pass",
        f"{row['dropped']} of {row['groups']} groups equal",
        f"{row['tokens']:.0f} tokens, {row['repetition']:.0%} repeated, {row['distinct']:.0%} distinct",
        "no mismatch measured"
        if row["mismatch"] is None
        else f"mismatch {row['mismatch']:.3f} nats per token",
    ]
    if row["failures"]:
        parts.append("failures: " + _counted(row["failures"]))
    if row.get("parted"):
        parts.append(f"the check parts in {row['parted']:.0%}")
    return "; ".join(parts) + f"; {row['cpu_seconds']:.1f} CPU-s"


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    steps, mismatch, speed = record["steps"], record["mismatch"], record["speed"]
    gap = "not measured: every group was equal"
    if mismatch["mean_size"] is not None:
        gap = f"{mismatch['mean_size']:.4f} nats per token, at most {mismatch['most']:.4f} in a step"
    rows = [
        *_measured(record.get("before_after")),
        *still_known_rows(record),
        ("groups", f"{steps['dropped']} of {steps['groups']} were equal, and dropped"),
        ("mismatch", gap),
        ("failures", _counted(steps["failures"]) or "none"),
    ]
    if steps["parted"] is not None:
        rows.append(("check", f"parts from the reward in {steps['parted']:.1%} of the answers"))
        rows += [("", _parted(each)) for each in steps["parted_shown"]]
    sampling = f"{speed['sampling_share']:.0%} of the steps' is sampling"
    time = f"{record['cpu_seconds']:.0f} CPU-s, the reward's not counted; {sampling}"
    return [*rows, ("time", time)]


def _measured(measured: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if measured is None:
        return [("unseen", "no prompts: what was learnt is not measured")]
    rows = []
    for kind in ("greedy", "sampled"):
        one = measured[kind]
        rows.append(
            (
                "unseen" if kind == "greedy" else "",
                f"{one['after']:.1%} of {measured['prompts']} prompts pass {kind} ({one['before']:.1%} before; "
                f"p = {one['p']:.2g}); mean score {one['mean_after']:.2f} ({one['mean_before']:.2f} before)",
            )
        )
    return rows


def _parted(shown: Mapping[str, Any]) -> str:
    answer = shown["answer"] if len(shown["answer"]) <= _ANSWER else shown["answer"][: _ANSWER - 3] + "..."
    return f"{shown['score']:.2f} and {shown['check']:.2f} for {answer!r}"


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
