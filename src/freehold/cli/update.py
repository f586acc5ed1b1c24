"""`freehold update [MODEL]`: is there a newer revision, what changes, and the exchange once the new one answers.

Path: main -> update -> store.renewing -> open_model (a trial) -> take
"""

from __future__ import annotations

import json

import click

from freehold.cli.progress import StatusLine, reporter
from freehold.cli.shared import json_option, offline_option, with_offline
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError
from freehold.store import ModelRef, Store
from freehold.store.renewing import Renewal, fetched, renewable, renewal, take
from freehold.store.space import human


@click.command("update")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--check", is_flag=True, help="Print what would change; download nothing.")
@json_option
@offline_option
@click.pass_obj
def command(settings: Settings, models: tuple[str, ...], check: bool, as_json: bool, offline: bool) -> None:
    """Download newer versions of MODELs; default: all models that Freehold downloaded.

    First prints what changes. The old files stay until the new ones are downloaded, checked and have produced an
    answer. Then the old files and their packed copies are deleted. With --json, prints {"schema": 1, "models":
    [{"name", "changes", "updated"}, ...]}.
    """
    store = Store(with_offline(settings, offline))
    names = models or tuple(m.name for m in store.list() if renewable(m) and not m.source.startswith("sent:"))
    if not names:
        raise UsageError("no model was downloaded yet", "freehold pull MODEL fetches one")
    rows = []
    for name in names:
        with reporter() as on_event:
            new = renewal(store, name, on_event)
        if not as_json:
            _tell(new)
        if new.changes and not check:
            _exchange(store, new)
        rows.append(
            {"name": new.model.name, "changes": new.changes, "updated": bool(new.changes) and not check}
        )
    if as_json:
        click.echo(json.dumps({"schema": 1, "models": rows}, indent=1))


def _tell(new: Renewal) -> None:
    click.echo(f"{new.model.name}: {'a newer revision' if new.changes else 'current'} ({new.plan.source})")
    for line in new.changes:
        click.echo(f"  {line}")


def _exchange(store: Store, new: Renewal) -> None:
    with reporter() as on_event:
        ref = fetched(store, new, on_event)
    with StatusLine("the model is as it was; the same command continues") as status:
        status.begin("trying the new files ...")
        try:
            _try(ref)
        except FreeholdError as e:
            raise type(e)(
                f"the new files of {new.model.name} do not answer: {e.message}", "the old ones stay"
            ) from e
    click.echo(f"{new.model.name}: updated, {human(take(store, new))} freed", err=True)


def _try(ref: ModelRef) -> None:
    """Load the files and make one token, or one vector."""
    from freehold.local import open_model

    with open_model(ref, context=64) as llm:
        if llm.info.embeds_only:
            llm.embed("Hi")
        else:
            llm.generate("Hi", max_tokens=1)
