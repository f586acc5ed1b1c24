"""Options, parameter types and output that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import ModelNotFound, UsageError
from freehold.base.terminal import printable
from freehold.run.store.naming import NamedModel, adapter_of, parted

if TYPE_CHECKING:
    from freehold.run.store import ModelRef, Store


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
offline_option = click.option("--offline", is_flag=True, help="Make no network requests.")

kv_option = click.option(
    "--kv-type",
    type=click.Choice(["f16", "q8", "f32"]),
    default="f16",
    show_default=True,
    help="Type of cached keys and values: f16, q8 (int8, half the memory) or f32 (not rounded).",
)

speculate_option = click.option(
    "--speculation/--no-speculation",
    "speculate",
    default=True,
    help="Verify drafted tokens where that is faster; answers do not change.",
)
paging_option = click.option(
    "--allow-paging",
    is_flag=True,
    help="Run a model that does not fit into memory from its packed file, at the disk's speed.",
)
draft_option = click.option(
    "--draft",
    metavar="auto|head|none|MODEL",
    help="Draft with the model's own head if it has one that promises to pay (auto, the default), require it (head), "
    "leave it out (none), or draft with a smaller model that has the same tokenizer.",
)


engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "freehold", "llamacpp", "mlx", "vllm", "sglang", "trtllm"]),
    default="auto",
    show_default=True,
    help="Engine to use; auto: a GPU engine, if there is one and it is predicted to be faster "
    "than Freehold's.",
)


def named_adapter(store: Store, text: str) -> tuple[str, str, Path]:
    """Split [MODEL+][NAME=]PATH; without NAME the file or folder gives it. Raises UsageError."""
    named = parted(store, text)
    if named.path is None:
        name, path = adapter_of(text)
        named = NamedModel("", name, path)
    if named.path is None:
        raise UsageError(f"--adapter {text}: {text} does not exist", "name a PEFT folder or a GGUF adapter")
    return named.model, named.adapter, named.path


class Seconds(click.ParamType):
    """A duration: 30, 30s, 5m, 1.5h or 2d; `never`, where it is allowed, is -1."""

    name = "time"
    _UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # noqa: RUF012

    def __init__(self, *, never: bool = False) -> None:
        self._never = never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        if self._never and (text == "never" or text.startswith("-")):
            return -1.0
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
        if match is None:
            or_never = ", or never" if self._never else ""
            self.fail(f"{value!r} is not a valid duration; write 30s, 5m, 2h or 7d{or_never}", param, ctx)
        return float(match[1]) * self._UNITS[match[2]]


drain_option = click.option(
    "--drain",
    type=Seconds(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="At shutdown, wait this long for running answers.",
)


class Amount(click.ParamType):
    """A number of tokens, users or dollars: 8192, 250_000, 32k, 1.5bn, "20 million"; k is 1,000."""

    name = "number"
    _BILLION = ("b", "bn", "billion", "g")
    _UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "million": 1e6, "t": 1e12} | dict.fromkeys(_BILLION, 1e9)

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, rounded to an int for a whole one."""
        if isinstance(value, (int, float)):
            return value
        text = re.sub(r"[_,]", "", str(value).strip().lower().removeprefix("$"))
        match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([a-z]*)", text)
        if match is None or match[2] not in self._UNITS:
            self.fail(f"{value!r} is not a valid number; write 8192, 32k, 20M or 1.5bn", param, ctx)
        number = float(match[1]) * self._UNITS[match[2]]
        return round(number) if self._whole else number


class Billions(click.ParamType):
    """A number of parameters: 8, 8b, 0.5B or 270M, in billions."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return billions."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bmt]?)", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a valid size; write 8b, 0.5b or 270m", param, ctx)
        return float(match[1]) * {"": 1.0, "b": 1.0, "m": 1e-3, "t": 1e3}[match[2]]


class MemorySize(click.ParamType):
    """A size of memory: 2GB, 500MB, 1.5GB; plain digits are bytes, and units are of 1000."""

    name = "size"
    _UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt]b|)", str(value).strip().lower())
        size = round(float(match[1]) * self._UNITS[match[2]]) if match else 0
        if not size:
            self.fail(f"{value!r} is not a size of memory; write 2GB or 500MB", param, ctx)
        return size


def with_offline(settings: Settings, offline: bool) -> Settings:
    """Return the settings, with offline mode on if the verb's option is given."""
    return replace(settings, offline=True) if offline else settings


def held_or_fetched(store: Store, model: str, *, speech: bool | None = False) -> ModelRef:
    """Find MODEL, or fetch it; a model that cannot run is not fetched.

    `speech`: one that writes down recordings, rather than one that answers; None: either will do.
    """
    from freehold.cli.progress import reporter
    from freehold.run.local.runnable import check_runs
    from freehold.run.store.naming import answering_model, speech_model
    from freehold.run.store.refs import parse_ref

    try:
        if speech is None:
            return store.resolve(model)
        return speech_model(store, model) if speech else answering_model(store, model)
    except (ModelNotFound, UsageError):
        if parted(store, model).path is not None:
            raise UsageError(
                f"{model} names an adapter, but this needs a model without one", "leave it out"
            ) from None
        if parse_ref(model).kind == "path":
            raise
        check_runs(model, speech=speech)
        with reporter() as on_event:
            return store.pull(model, on_event)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """Print rows in columns on stdout; `right`: indices of the right-aligned ones."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        sized = zip(row, widths, strict=True)
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(sized)]
        click.echo(printable("  ".join(cells).rstrip()))


def pairs(rows: list[tuple[str, str]]) -> None:
    """Print name and value on a line each, values aligned; a row without a name continues the one above."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(printable(f"{name.ljust(width)}  {value}"))


def write_beside(path: str | Path, text: str) -> Path:
    """Write a file atomically, through a temporary one that is renamed. Raises UsageError if it cannot be written."""
    target = Path(path).expanduser()
    beside = target.with_name(f".{target.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise UsageError(
            f"{target} cannot be written: {e.strerror}", "name a file in an existing folder"
        ) from None
    return target


# --- options for facts about the user's organisation; they override those in config.toml's [company]

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
_BY_VALUE: dict[str, tuple[str, click.ParamType | None, str | None, str]] = {
    "purpose": ("--for", None, "PURPOSE", "commercial, internal, evaluation or research."),
    "users": ("--monthly-users", Amount(whole=True), None, "Monthly users of all your products."),
    "revenue_year": ("--revenue", Amount(), None, "Your group's revenue in 12 months, in dollars."),
    "revenue_month": ("--monthly-revenue", Amount(), None, "The same for one month."),
    "seat": ("--seat", None, "CC", "Country of your principal place of business: two letters, or EU."),
}
# Each fact and its option, which an undecided verdict names.
FACT_OPTIONS = {
    name: row[0].partition("/")[0] for name, row in {**_BY_VALUE, **_YES_NO, **_OPTION_TEXTS}.items()
}
# All of these facts but the purpose.
FACTS = tuple(name for name in FACT_OPTIONS if name != "purpose")


def company_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the user's facts to a command."""
    for name, (flags, text) in reversed(_YES_NO.items()):
        command = click.option(flags, name, default=None, help=text)(command)
    for name, (flag, text) in reversed(_OPTION_TEXTS.items()):
        command = click.option(flag, name, is_flag=True, default=None, help=text)(command)
    for name, (flag, kind, metavar, text) in reversed(_BY_VALUE.items()):
        command = click.option(flag, name, type=kind, metavar=metavar, help=text)(command)
    return command


# --- options that name a gateway.toml or a ledger; what they name is read by reports/gateway_file.py

gateway_option = click.option(
    "--gateway",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use this gateway.toml. Default: `gateway` of config.toml.",
)

ledger_option = click.option(
    "--ledger",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The ledger; default: the one that gateway.toml names, or ledger.sqlite in the data folder.",
)
