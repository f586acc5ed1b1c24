"""`freehold launch APP`: the settings another program needs to use this server; shown, written or restored.

Knows files, backups and messages; apps.py has the programs and the edits. A record in the data folder says
what was written where, so that --restore undoes exactly that.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import click

from freehold.base.config import Settings, suggestion
from freehold.base.errors import FreeholdError, StoreError, UsageError
from freehold.cli.chat.starter import default_model
from freehold.cli.clients.apps import APPS, App, NotUnderstood, Target
from freehold.cli.shared import json_option

SCHEMA = 1
BACKUP = ".before-freehold"


@dataclass(frozen=True, slots=True)
class Record:
    """What --write changed: the file, the backup of the earlier one (None: there was no file), the new digest."""

    path: Path
    backup: Path | None
    sha256: str


@click.command("launch")
@click.argument("app", metavar="APP")
@click.option(
    "--model",
    metavar="MODEL",
    help="Model to use; default: one in the server's memory, or else the default model of `run`.",
)
@click.option(
    "--url",
    metavar="URL",
    help="Server; default: the running server of this data folder, or its configured address.",
)
@click.option("--key", metavar="KEY", help="API key; default: FREEHOLD_API_KEY.")
@click.option(
    "--write", is_flag=True, help="Write the settings to the program's file, with a backup beside it."
)
@click.option("--restore", is_flag=True, help="Restore the earlier file.")
@click.option("--force", is_flag=True, help="With --restore: even if the file was changed since.")
@json_option
@click.pass_obj
def command(
    settings: Settings,
    app: str,
    model: str | None,
    url: str | None,
    key: str | None,
    write: bool,
    restore: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Show or write the settings that make APP use this server.

    APP is claude (Claude Code), codex, aider, continue, opencode, zed, vscode (Copilot), cline, cursor,
    llama-vscode, llama-vim, open-webui or llm. Without --write, nothing changes. If a file cannot be edited safely,
    it stays unchanged, and the lines to add are shown. Settings without a file are shown with the place where they
    belong.
    """
    client = _app(app)
    if restore:
        summary = _restored(settings, app, force=force)
        click.echo(
            json.dumps({"schema": SCHEMA, "app": app, "restored": str(summary)}) if as_json else "",
            nl=as_json,
        )
        if not as_json:
            click.echo(f"{summary}: restored", err=True)
        return
    target = _target(settings, url, model, key)
    if not target.key and url is None and _keyed(settings):
        click.echo("note: the server requires a key: give --key, or set FREEHOLD_API_KEY", err=True)
    path = client.file(os.environ, settings.home) if client.file is not None else None
    if write and path is None:
        raise UsageError(
            f"{client.title} has no file that can be written", "leave --write out: the steps are shown"
        )
    text = client.edit("", target)
    changed = _written(settings, app, client, path, target) if write and path is not None else False
    commands = client.start(target, path or Path())
    if as_json:
        summary = {
            "schema": SCHEMA,
            "app": app,
            "file": str(path or ""),
            "settings": text,
            "commands": commands,
        }
        click.echo(json.dumps({**summary, "written": write, "changed": changed, "source": client.source}))
        return
    if not write:
        click.echo(text, nl=False)
        if path is not None:
            click.echo(f"these settings belong in {path}; --write writes them", err=True)
    elif changed:
        click.echo(f"written: {path}; freehold launch {app} --restore undoes it", err=True)
    else:
        click.echo(f"{path} has these settings already", err=True)
    for line in commands:
        click.echo(f"then: {line}", err=True)


def _app(name: str) -> App:
    if name not in APPS:
        raise UsageError(
            f"{name!r} is not a program of launch", suggestion(name, list(APPS), ", ".join(APPS))
        )
    return APPS[name]


def _target(settings: Settings, url: str | None, model: str | None, key: str | None) -> Target:
    """Fill in what was not given from the running server, or from the settings."""
    where, held = "", ""
    if url is None or model is None:
        where, held = _running(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = (url or where or f"http://{host}:{settings.port}").rstrip("/").removesuffix("/v1")
    chosen = model or held or default_model(settings)
    return Target(base, chosen, settings.api_key if key is None else key)


def _keyed(settings: Settings) -> bool:
    from freehold.serve.http.core.keys import KeyFile

    return bool(KeyFile(settings.keys).read())


def _running(settings: Settings) -> tuple[str, str]:
    """Return the running server's URL and a model in its memory; "" where there is none."""
    from freehold.cli.serving.attach import running

    try:
        server = running(settings)
    except FreeholdError:
        return "", ""
    if server is None:
        return "", ""
    with server:
        return server.greeting.url, next((m.name for m in server.loaded()), "")


def _written(settings: Settings, name: str, app: App, path: Path, target: Target) -> bool:
    """Write the settings; return whether the file changed."""
    path = path.resolve()  # a symbolic link stays a link
    old = _read(path)
    try:
        new = app.edit(old or "", target)
    except NotUnderstood as e:
        lines = app.edit("", target)
        raise UsageError(
            f"{path} is left unchanged: {e.message}", f"add this to it yourself:\n{lines}"
        ) from e
    if new == old:
        return False
    before = _record(settings, name)
    backup = before.backup if before is not None and before.path == path else _backed_up(path, old)
    _put(path, new)
    kept = {"path": str(path), "backup": str(backup) if backup else None, "sha256": _digest(new)}
    _put(_record_path(settings, name), json.dumps(kept))
    return True


def _restored(settings: Settings, name: str, *, force: bool) -> Path:
    record = _record(settings, name)
    if record is None:
        raise UsageError(f"this home has written no settings for {name}")
    now = _read(record.path)
    if now is not None and _digest(now) != record.sha256 and not force:
        kept = f"the earlier file is {record.backup}" if record.backup else "there was no file before"
        raise UsageError(f"{record.path} was changed since", f"{kept}; --force restores it")
    if record.backup is not None:
        try:
            record.backup.replace(record.path)
        except OSError as e:
            raise StoreError(f"{record.backup} cannot be restored: {e.strerror}") from e
    else:
        record.path.unlink(missing_ok=True)
    _record_path(settings, name).unlink()
    return record.path


def _backed_up(path: Path, old: str | None) -> Path | None:
    if old is None:
        return None
    backup = path.with_name(path.name + BACKUP)
    count = 1
    while backup.exists():
        count += 1
        backup = path.with_name(f"{path.name}{BACKUP}-{count}")
    _put(backup, old, mode=path.stat().st_mode & 0o777)
    return backup


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} cannot be read: {e}") from e


def _put(path: Path, text: str, mode: int | None = None) -> None:
    """Write a file atomically, by default readable by its owner only: it may hold a key."""
    if mode is None:
        mode = path.stat().st_mode & 0o700 if path.exists() else 0o600
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8"
        ) as file:
            file.write(text)
        new.chmod(mode)
        new.replace(path)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror}") from e


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _record_path(settings: Settings, name: str) -> Path:
    return settings.home / "launch" / f"{name}.json"


def _record(settings: Settings, name: str) -> Record | None:
    text = _read(_record_path(settings, name))
    if text is None:
        return None
    try:
        kept = json.loads(text)
        backup = kept["backup"]
        return Record(Path(kept["path"]), Path(backup) if backup else None, kept["sha256"])
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(f"{_record_path(settings, name)} is damaged: {e}") from e
