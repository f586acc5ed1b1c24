"""Reads [tasks.*] and [keys.*], and where the ledger is.

Knows money as nano-dollars a period; knows no key's secret. Path: reading.py -> read_keys -> KeyPolicy
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast, get_args

from freehold.router.gateway import KeyPolicy, Label, Period, QualityTask, SpendLimit
from freehold.router.price import NANO
from freehold.router.toml.mistakes import shown
from freehold.router.toml.outside import Outside
from freehold.router.toml.providers import NAME
from freehold.router.toml.routes import read_labels_of
from freehold.router.toml.table import TomlTable

PERIODS = get_args(Period)
KEY_NAME = re.compile(r"[A-Za-z0-9][\w.@+-]{0,63}")  # as `freehold keys add` takes it
MOST_DOLLARS = 1_000_000_000


def read_tasks(top: TomlTable, outside: Outside) -> dict[str, QualityTask]:
    """Return the tasks by name."""
    tasks = {}
    for name, table in top.tables("tasks"):
        if not NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name",
                "letters, digits and . _ : / @ + - only, 128 at most",
            )
        if not table.has("bar"):
            table.bad("bar", "the task has no bar", "bar = 0.85: the least score of a model that may answer")
        file = table.text("file")
        if file and "\0" not in file and not (outside.folder / file).is_file():
            table.bad(
                "file", f"there is no file {shown(file)}", f"paths begin at {outside.folder.absolute()}"
            )
        whole = str((outside.folder / file).absolute()) if file else ""
        tasks[name] = QualityTask(name, table.share("bar", 0.0), whole)
        table.end()
    return tasks


def read_keys(top: TomlTable, labels: Mapping[str, Label]) -> dict[str, KeyPolicy]:
    """Return what the file says of keys, by their names."""
    policies = {}
    for name, table in top.tables("keys"):
        if not KEY_NAME.fullmatch(name):
            table.bad(
                "",
                f"{shown(name)} is not a valid name for a key",
                "letters, digits and . _ @ + - only, 64 at most, as freehold keys add takes it",
            )
        policies[name] = KeyPolicy(name, _budget(table), read_labels_of(table, labels))
        table.end()
    return policies


def _budget(table: TomlTable) -> SpendLimit | None:
    inside = table.table("budget")
    if inside is None:
        return None
    for key, example in (("usd", "usd = 20"), ("per", 'per = "day"')):
        if not inside.has(key):
            inside.bad(key, f"the budget has no {key}", example)
    dollars, per = inside.number("usd"), inside.choice("per", PERIODS, "day")
    inside.end()
    if dollars is None:
        return None
    if not 0 < dollars <= MOST_DOLLARS:
        inside.bad(
            "usd",
            f"{shown(dollars)} is not above zero and at most {MOST_DOLLARS:,}",
            "write dollars, such as 20; a label with stay keeps a key from rented models altogether",
        )
        return None
    return SpendLimit(round(dollars * NANO), cast(Period, per))


def read_ledger(top: TomlTable, outside: Outside) -> str:
    """Return the ledger's file, "" for the one of the data folder."""
    address = top.text("ledger")
    if not address:
        return ""
    file = outside.folder.absolute() / address
    if "://" in address or "\0" in address:
        shown_or_not = "the address" if "@" in address else shown(address)
        top.bad(
            "ledger", f"{shown_or_not} is not a path", "the ledger is a file: write a path, or leave it out"
        )
    elif not file.parent.is_dir():
        top.bad("ledger", f"there is no folder for {shown(address)}", "make it first")
    return str(file)
