"""`freehold doctor compat`: runs the installed SDKs against a server, one row per feature, green or red.

Knows which server to use, or starts one for the checks, which are sdks.py's. Connects to no other address.
Path: doctor -> compat -> sdks.CHECKS -> stdout
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata

import click

from freehold.cli.chat.starter import default_model
from freehold.cli.clients.sdks import CHECKS, CLIENTS, NEEDS, PATIENCE_S, CheckTarget
from freehold.cli.shared import json_option
from freehold.config import Settings
from freehold.errors import ServerUnreachable, UsageError
from freehold.sandbox.children import spawn

SCHEMA = 1
_REASON = 200  # characters


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one check. `ok` None: not run, for the given reason."""

    sdk: str
    version: str
    feature: str
    ok: bool | None
    seconds: float = 0.0
    reason: str = ""


@click.command("compat", epilog="Example: freehold doctor compat smollm2:135m --only openai")
@click.argument("model", required=False)
@click.option(
    "--url",
    metavar="URL",
    help="Server to check; default: that of this data folder, or one started for the checks.",
)
@click.option("--key", metavar="KEY", help="API key; default: FREEHOLD_API_KEY.")
@click.option("--embedding", metavar="MODEL", help="Model for embeddings; default: MODEL.")
@click.option("--only", multiple=True, metavar="SDK", help="Only this SDK; repeatable.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    model: str | None,
    url: str | None,
    key: str | None,
    embedding: str | None,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the installed SDKs (openai, anthropic, ollama, langchain-openai, llm) against a server.

    MODEL: a model of the server; default: the one in its memory. If no server is running, one is started with MODEL
    on a free loopback port, and stopped afterwards. Features that MODEL lacks (tools without a template) are
    skipped. Exits with 1 if a row is red.
    """
    settings: Settings = ctx.obj
    wrong = [name for name in only if name not in CHECKS]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is not a checked SDK", ", ".join(CHECKS))
    rows: list[Row] = []
    with _server(settings, url, settings.api_key if key is None else key, model) as server:
        target = CheckTarget(server.url, server.key or "none", server.model, embedding or server.model)
        target = replace(target, able=able(target))
        if not as_json:
            click.echo(f"asking {target.model} at {target.url}", err=True)
        for row in checked(target, only or tuple(CHECKS)):
            rows.append(row)
            if not as_json:
                click.echo(_line(row))
    red = [row for row in rows if row.ok is False]
    if as_json:
        summary = {"schema": SCHEMA, "url": target.url, "model": target.model, "ok": not red}
        click.echo(json.dumps({**summary, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        click.echo(f"{sum(r.ok is True for r in rows)} green, {len(red)} red", err=True)
    ctx.exit(1 if red else 0)


def checked(target: CheckTarget, sdks: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each feature of each SDK, as it comes."""
    with _own_folder():
        for sdk in sdks:
            try:
                version = metadata.version(sdk)
            except metadata.PackageNotFoundError:
                yield Row(sdk, "", "", None, reason="not installed")
                continue
            for feature in CHECKS[sdk]:
                need = NEEDS.get(feature, "completion")
                if need and target.able is not None and need not in target.able:
                    yield Row(sdk, version, feature, None, reason=f"{target.model} has no {need}")
                else:
                    yield _checked(target, sdk, version, feature)


def able(target: CheckTarget) -> frozenset[str] | None:
    """Return the loaded model's capabilities; None for a server that does not report them.

    Raises ServerUnreachable if no server answers.
    """
    import httpx2

    headers = {"Authorization": f"Bearer {target.key}"}
    with httpx2.Client(base_url=target.url, headers=headers, timeout=PATIENCE_S) as client:
        try:
            client.post("/api/generate", json={"model": target.model})  # without a prompt it only loads
            card = client.get(f"/v1/models/{target.model}").json()
            return frozenset(card["freehold"]["capabilities"])
        except httpx2.TransportError as e:
            raise ServerUnreachable(f"no server answers at {target.url}: {e}", "freehold serve") from e
        except (ValueError, KeyError, TypeError, httpx2.HTTPError):
            return None


def _checked(target: CheckTarget, sdk: str, version: str, feature: str) -> Row:
    started = time.monotonic()
    try:
        with CLIENTS[sdk](target) as client:
            CHECKS[sdk][feature](target, client)
    except Exception as e:  # any exception of an SDK is one its user would see
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        return Row(sdk, version, feature, False, round(time.monotonic() - started, 3), reason[:_REASON])
    return Row(sdk, version, feature, True, round(time.monotonic() - started, 3))


def _line(row: Row) -> str:
    name = f"{row.sdk} {row.version}".strip()
    if row.ok is None:
        return f"{name:<26} {row.feature:<18} -      {row.reason}"
    state = click.style("ok    ", fg="green") if row.ok else click.style("FAILED", fg="red")
    return f"{name:<26} {row.feature:<18} {state} {row.seconds:7.2f} s  {row.reason}".rstrip()


@contextmanager
def _own_folder() -> Iterator[None]:
    """Give llm a temporary folder: it creates one at import."""
    before = os.environ.get("LLM_USER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLM_USER_PATH"] = folder
        try:
            yield
        finally:
            os.environ.pop("LLM_USER_PATH")
            if before is not None:
                os.environ["LLM_USER_PATH"] = before


@dataclass(frozen=True, slots=True)
class CheckedServer:
    """The server to check."""

    url: str
    key: str
    model: str


@contextmanager
def _server(settings: Settings, url: str | None, key: str, model: str | None) -> Iterator[CheckedServer]:
    """Give the named server, the running one, or one started for the checks."""
    if url is not None:
        if not model:
            raise UsageError("a model is missing", "freehold doctor compat MODEL --url URL")
        yield CheckedServer(url.rstrip("/").removesuffix("/v1"), key, model)
        return
    from freehold.cli.serving.attach import running

    server = running(settings)
    if server is not None:
        with server:
            held = next((m.name for m in server.loaded()), "")
            where = server.greeting.url
        if not (model or held):
            raise UsageError(f"the server at {where} has no model in memory", "freehold doctor compat MODEL")
        yield CheckedServer(where, key, model or held)
        return
    with _started(settings, model or default_model(settings)) as checked_server:
        yield checked_server


@contextmanager
def _started(settings: Settings, model: str) -> Iterator[CheckedServer]:
    """Run a server of this home on a free port during the checks, with its own key."""
    key = secrets.token_urlsafe(24)
    program = [sys.executable, "-P", "-m", "freehold.sandbox.die_with_parent", "freehold.cli.main"]
    command = [*program, "serve", model, "--port", "0", "--json", "--host", "127.0.0.1"]
    env = {**os.environ, "FREEHOLD_HOME": str(settings.home), "FREEHOLD_API_KEY": key}
    with (
        tempfile.TemporaryFile("w+") as log,
        spawn(command, env=env, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise ServerUnreachable(f"the server did not start: {log.read()[-500:].strip()}")
            greeting = json.loads(line)
            yield CheckedServer(greeting["url"], key, greeting["models"][0])
        finally:
            process.terminate()
            process.wait()
