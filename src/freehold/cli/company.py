"""Options for facts about the user's organisation; they override those in config.toml's [company].

Knows names and types; knows no licence. Path: cli/license -> company_options; the facts are choosing.company_facts
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from freehold.cli.shared import Amount

_YES_NO = {
    "offers_access": (
        "--offers-access/--no-access",
        "Third parties access the model itself, for example by API.",
    ),
    "embeds": ("--product/--no-product", "Customers use your product or service built on it."),
    "model_service": (
        "--model-service/--no-model-service",
        "Your group sells inference or fine-tuning of any language model.",
    ),
    "assistant": ("--assistant/--no-assistant", "You sell an AI work assistant."),
    "redistributes": ("--ships/--no-ships", "You distribute the weights, in a product or alone."),
    "modifies": ("--modifies/--no-modifies", "You fine-tune, merge or requantise it."),
    "distils": ("--distils/--no-distils", "Its outputs will train another model."),
    "multimodal": (
        "--multimodal/--text-only",
        "The model accepts more than text; the catalogue knows this for its own models.",
    ),
}
_OPTION_TEXTS = {
    "same_family": (
        "--same-family",
        "The model trained on outputs is of the family that the licence covers.",
    ),
    "narrow": ("--narrow", "The model trained on outputs only classifies or extracts."),
    "end_user": ("--end-user", "You only use another company's product, and run no model."),
    "bypasses_guardrails": ("--bypasses-guardrails", "You weaken guardrails in the model."),
}
_BY_VALUE = {
    "purpose": "--for",
    "users": "--monthly-users",
    "revenue_year": "--revenue",
    "revenue_month": "--monthly-revenue",
    "seat": "--seat",
}
# Each fact and its option, which an undecided verdict names.
OPTIONS = (
    _BY_VALUE
    | {name: flags.partition("/")[0] for name, (flags, _) in _YES_NO.items()}
    | {name: flag for name, (flag, _) in _OPTION_TEXTS.items()}
)
# All of these facts but the purpose.
FACTS = tuple(name for name in OPTIONS if name != "purpose")


def company_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the user's facts to a command."""
    for name, (flags, text) in reversed(_YES_NO.items()):
        command = click.option(flags, name, default=None, help=text)(command)
    for name, (flag, text) in reversed(_OPTION_TEXTS.items()):
        command = click.option(flag, name, is_flag=True, default=None, help=text)(command)
    return _value_options(command)


def _value_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "--for", "purpose", metavar="PURPOSE", help="commercial, internal, evaluation or research."
        ),
        click.option(
            "--monthly-users", "users", type=Amount(whole=True), help="Monthly users of all your products."
        ),
        click.option(
            "--revenue", "revenue_year", type=Amount(), help="Your group's revenue in 12 months, in dollars."
        ),
        click.option("--monthly-revenue", "revenue_month", type=Amount(), help="The same for one month."),
        click.option(
            "--seat", metavar="CC", help="Country of your principal place of business: two letters, or EU."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
