"""`freehold data from-ledger|from-chats -o OUT`: files to train on, made of what people asked and got.

Knows options and lines of text; adapt.gathering does the work. No model is loaded.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.adapt.settings import GatherSettings
from freehold.base.config import Settings
from freehold.base.terminal import printable
from freehold.cli.options import setting_options
from freehold.cli.shared import Seconds, json_option, ledger_option, pairs
from freehold.cli.training import LINES, out_option
from freehold.serve.reports.gateway_file import ledger_file

if TYPE_CHECKING:
    from freehold.adapt.gathering import GatheredData

_CHARS = 100  # of a question that is shown
apart_option = click.option(
    "--apart",
    multiple=True,
    type=LINES,
    help="Tests or cases whose items must not be trained on; repeatable.",
)
since_option = click.option("--since", type=Seconds(), help="How far back: 12h, 90d. Default: all.")


@click.group("data")
def command() -> None:
    """Make training data from stored requests or your chats, without personal data and with separate test items.

    OUT contains examples.jsonl for `freehold finetune`, pairs.jsonl for `freehold align`, test items for each, and
    receipt.json with the counts. Of identical conversations, only the newest is used. Requests with a label are not.
    """


@command.command("from-ledger", epilog="Example: freehold data from-ledger --route tickets -o tickets")
@click.option("--route", required=True, help="The route in gateway.toml whose stored texts are used.")
@ledger_option
@since_option
@apart_option
@setting_options(GatherSettings, "personal", "test_share", "seed", "most")
@out_option
@json_option
@click.pass_obj
def from_ledger_command(
    settings: Settings, route: str, file: Path | None, out: Path, as_json: bool, **options: Any
) -> None:
    """Use the prompts and complete answers that a gateway stored for a route (`keep = "text"`).

    With --json, prints the receipt.
    """
    from freehold.adapt.gathering import from_ledger

    chosen = _chosen(options)
    data = from_ledger(ledger_file(settings, file), route, chosen)
    _write(data, out, f"the route {route}", chosen, as_json=as_json)


@command.command("from-chats", epilog="Example: freehold data from-chats -o mine")
@since_option
@apart_option
@setting_options(GatherSettings, "personal", "test_share", "seed", "most")
@out_option
@json_option
@click.pass_obj
def from_chats_command(settings: Settings, out: Path, as_json: bool, **options: Any) -> None:
    """Use your chats from the web console and the terminal: answers that you edited, rated or regenerated.

    An answer that you edited becomes an example, and is preferred to the model's answer. An answer that you rated with
    a thumbs up becomes an example, and is preferred to one with a thumbs down. Otherwise, if a message has several
    answers, the one with which the chat continues is preferred. Chats of API keys are not read.

    With --json, prints the receipt.
    """
    from freehold.adapt.gathering import gathered
    from freehold.serve.chats.folder import ChatFolder
    from freehold.serve.chats.gathered import from_chats

    chosen, left_out = _chosen(options), Counter[str]()
    items = from_chats(ChatFolder.of(settings.home), chosen.since, left_out)
    _write(gathered(items, chosen, left_out), out, "your chats", chosen, as_json=as_json)


def _chosen(options: dict[str, Any]) -> GatherSettings:
    since, apart = options.pop("since"), tuple(options.pop("apart"))
    return GatherSettings(since=time.time() - since if since else 0.0, apart=apart, **options)


def _write(data: GatheredData, out: Path, source: str, chosen: GatherSettings, *, as_json: bool) -> None:
    from freehold.adapt.gathering import write_data

    if chosen.personal == "show":
        for item in data.shown:
            question = printable(" ".join(item.question.split()))[:_CHARS]
            click.echo(f"left out {item.id} ({', '.join(item.findings)}): {question}", err=True)
    record = write_data(data, out, source, chosen)
    if as_json:
        click.echo(json.dumps(record))
        return
    rows = [(name, f"{each['lines']:,} lines") for name, each in record["files"].items()]
    reasons = [f"{count:,} for: {reason}" for reason, count in record["left_out"].items()]
    pairs(
        [
            ("folder", str(out)),
            *rows,
            *(("left out" if not i else "", reason) for i, reason in enumerate(reasons)),
            ("receipt", str(out / "receipt.json")),
        ]
    )
