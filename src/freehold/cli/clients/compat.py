"""`freehold doctor compat`: runs the installed SDKs against a server, one row per feature, green or red.

Knows which server to use, or starts one for the checks, and connects to no other address.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

import click

from freehold.base.config import Settings
from freehold.base.errors import ServerUnreachable, UsageError
from freehold.base.sandbox.children import spawn
from freehold.base.terminal import Ticking
from freehold.cli.chat.starter import default_model
from freehold.cli.shared import json_option

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
        with Ticking(f"asking {target.model}"):
            for row in checked(target, only or tuple(CHECKS)):
                rows.append(row)
                if not as_json:
                    Ticking.make_way()
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
    program = [sys.executable, "-P", "-m", "freehold.base.sandbox.die_with_parent", "freehold.cli.main"]
    command = [*program, "serve", model, "--port", "0", "--json", "--host", "127.0.0.1"]
    env = {**os.environ, "FREEHOLD_HOME": str(settings.home), "FREEHOLD_API_KEY": key}
    with (
        tempfile.TemporaryFile("w+") as log,
        spawn(command, env=env, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None
            with Ticking("starting a server"):
                line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise ServerUnreachable(f"the server did not start: {log.read()[-500:].strip()}")
            greeting = json.loads(line)
            yield CheckedServer(greeting["url"], key, greeting["models"][0])
        finally:
            process.terminate()
            process.wait()


# --- the checks: one small function per feature, which raises on failure ----------------------------
# An SDK is imported by the checks that use it.

PATIENCE_S = 120.0
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "green", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Return the weather of a city.", "parameters": PARAMETERS},
}
CHAT = [{"role": "user", "content": "Name a colour."}]
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """The server and the models to check. `able`: the model's capabilities; None: not reported."""

    url: str
    key: str
    model: str
    embedding: str
    able: frozenset[str] | None = None


def _need(condition: object, reason: str) -> None:
    if not condition:
        raise AssertionError(reason)


def _need_colour(text: str | None) -> None:
    value = json.loads(text or "")
    _need(
        set(value) == {"colour"} and value["colour"] in ("red", "green", "blue"),
        f"{text!r} is not of the schema",
    )


def _need_city(name: str, arguments: Any) -> None:
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    _need(
        name == "weather" and isinstance(value.get("city"), str), f"{name}({arguments!r}) is not of the tool"
    )


# openai


@contextmanager
def _openai(a: CheckTarget) -> Iterator[Any]:
    from openai import OpenAI

    with OpenAI(base_url=f"{a.url}/v1", api_key=a.key, max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def _need_listed(a: CheckTarget, names: Iterable[str]) -> None:
    # Ollama's protocol gives every name a tag.
    _need({a.model, f"{a.model}:latest"} & set(names), f"{a.model} is not listed")


def openai_models(a: CheckTarget, client: Any) -> None:
    _need_listed(a, [m.id for m in client.models.list()])


def openai_chat(a: CheckTarget, client: Any) -> None:
    answer = client.chat.completions.create(model=a.model, messages=CHAT, max_tokens=16)
    _need(answer.choices[0].message.content and answer.usage.total_tokens, "no text, or no usage")


def openai_stream(a: CheckTarget, client: Any) -> None:
    options = {"include_usage": True}
    events = list(
        client.chat.completions.create(
            model=a.model, messages=CHAT, max_tokens=16, stream=True, stream_options=options
        )
    )
    _need(any(e.choices and e.choices[0].delta.content for e in events), "no text")
    _need(events[-1].usage is not None, "no usage at the end")


def openai_async(a: CheckTarget, client: Any) -> None:
    from openai import AsyncOpenAI

    async def ask() -> Any:
        async with AsyncOpenAI(
            base_url=f"{a.url}/v1", api_key=a.key, max_retries=0, timeout=PATIENCE_S
        ) as client:
            return await client.chat.completions.create(model=a.model, messages=CHAT, max_tokens=16)  # type: ignore[arg-type]

    _need(asyncio.run(ask()).choices[0].message.content, "no text")


def openai_tools(a: CheckTarget, client: Any) -> None:
    answer = client.chat.completions.create(
        model=a.model, messages=QUESTION, tools=[TOOL], tool_choice="required", max_tokens=128
    )
    calls = answer.choices[0].message.tool_calls
    _need(calls, "no tool was called")
    _need_city(calls[0].function.name, calls[0].function.arguments)


def openai_structured(a: CheckTarget, client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": ANSWER_SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=a.model, messages=CHAT, response_format=form, max_tokens=64)
    _need_colour(answer.choices[0].message.content)


def openai_completions(a: CheckTarget, client: Any) -> None:
    answer = client.completions.create(model=a.model, prompt="One, two,", max_tokens=8)
    _need(answer.choices[0].text, "no text")


def openai_responses(a: CheckTarget, client: Any) -> None:
    _need(
        client.responses.create(model=a.model, input="Name a colour.", max_output_tokens=16).output_text,
        "no text",
    )


def openai_responses_stream(a: CheckTarget, client: Any) -> None:
    kinds = [
        e.type
        for e in client.responses.create(
            model=a.model, input="Name a colour.", max_output_tokens=16, stream=True
        )
    ]
    _need("response.output_text.delta" in kinds, "no text")
    _need(kinds[-1] in ("response.completed", "response.incomplete"), f"the last event is {kinds[-1]}")


def openai_embeddings(a: CheckTarget, client: Any) -> None:
    response = client.embeddings.create(model=a.embedding, input=["one", "two"])
    _need(len(response.data) == 2 and len(response.data[0].embedding) > 1, "not two vectors")


# anthropic


@contextmanager
def _anthropic(a: CheckTarget) -> Iterator[Any]:
    from anthropic import Anthropic

    with Anthropic(base_url=a.url, api_key=a.key, max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def anthropic_models(a: CheckTarget, client: Any) -> None:
    _need_listed(a, [m.id for m in client.models.list()])


def anthropic_chat(a: CheckTarget, client: Any) -> None:
    answer = client.messages.create(model=a.model, messages=CHAT, max_tokens=16)
    _need(
        any(b.type == "text" and b.text for b in answer.content) and answer.usage.input_tokens,
        "no text or usage",
    )


def anthropic_stream(a: CheckTarget, client: Any) -> None:
    with client.messages.stream(model=a.model, messages=CHAT, max_tokens=16) as stream:
        _need("".join(stream.text_stream), "no text")
        _need(stream.get_final_message().stop_reason, "no stop_reason")


def anthropic_async(a: CheckTarget, client: Any) -> None:
    from anthropic import AsyncAnthropic

    async def ask() -> Any:
        async with AsyncAnthropic(base_url=a.url, api_key=a.key, max_retries=0, timeout=PATIENCE_S) as client:
            return await client.messages.create(model=a.model, messages=CHAT, max_tokens=16)  # type: ignore[arg-type]

    _need(asyncio.run(ask()).content, "no text")


def anthropic_tools(a: CheckTarget, client: Any) -> None:
    tool = {"name": "weather", "description": "Return the weather of a city.", "input_schema": PARAMETERS}
    answer = client.messages.create(
        model=a.model, messages=QUESTION, tools=[tool], tool_choice={"type": "any"}, max_tokens=128
    )
    calls = [b for b in answer.content if b.type == "tool_use"]
    _need(calls, "no tool was called")
    _need_city(calls[0].name, calls[0].input)


def anthropic_count(a: CheckTarget, client: Any) -> None:
    _need(client.messages.count_tokens(model=a.model, messages=CHAT).input_tokens > 1, "no count")


# ollama


@contextmanager
def _ollama(a: CheckTarget) -> Iterator[Any]:
    from ollama import Client

    headers = {"Authorization": f"Bearer {a.key}"}
    with Client(host=a.url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


def ollama_list(a: CheckTarget, client: Any) -> None:
    _need_listed(a, [m.model or "" for m in client.list().models])


def ollama_show(a: CheckTarget, client: Any) -> None:
    shown = client.show(a.model)
    _need(shown.capabilities and shown.modelinfo, "no capabilities, or no model_info")


def ollama_chat(a: CheckTarget, client: Any) -> None:
    answer = client.chat(model=a.model, messages=CHAT, options={"num_predict": 16})
    _need(answer.message.content and answer.done, "no text, or not done")


def ollama_stream(a: CheckTarget, client: Any) -> None:
    parts = list(client.chat(model=a.model, messages=CHAT, stream=True, options={"num_predict": 16}))
    _need("".join(p.message.content or "" for p in parts) and parts[-1].done, "no text, or not done")


def ollama_async(a: CheckTarget, client: Any) -> None:
    from ollama import AsyncClient

    async def ask() -> Any:
        headers = {"Authorization": f"Bearer {a.key}"}
        async with AsyncClient(host=a.url, headers=headers, timeout=PATIENCE_S) as client:
            return await client.chat(model=a.model, messages=CHAT, options={"num_predict": 16})

    _need(asyncio.run(ask()).message.content, "no text")


def ollama_generate(a: CheckTarget, client: Any) -> None:
    _need(client.generate(model=a.model, prompt="One, two,", options={"num_predict": 8}).response, "no text")


def ollama_tools(a: CheckTarget, client: Any) -> None:
    answer = client.chat(
        model=a.model, messages=QUESTION, tools=[TOOL], options={"num_predict": 128, "temperature": 0}
    )
    # Ollama's protocol cannot demand a call, so a small model may answer in words.
    _need(answer.done, "not done")
    for call in answer.message.tool_calls or ():
        _need_city(call.function.name, dict(call.function.arguments))


def ollama_structured(a: CheckTarget, client: Any) -> None:
    answer = client.chat(model=a.model, messages=CHAT, format=ANSWER_SCHEMA, options={"num_predict": 64})
    _need_colour(answer.message.content)


def ollama_embeddings(a: CheckTarget, client: Any) -> None:
    vectors = client.embed(model=a.embedding, input=["one", "two"]).embeddings
    _need(len(vectors) == 2 and len(vectors[0]) > 1, "not two vectors")


# langchain-openai


@contextmanager
def _langchain(a: CheckTarget) -> Iterator[Any]:
    from langchain_openai import ChatOpenAI

    options: dict[str, Any] = {"max_retries": 0, "timeout": PATIENCE_S, "max_tokens": 128}
    yield ChatOpenAI(model=a.model, base_url=f"{a.url}/v1", api_key=a.key, **options)  # type: ignore[arg-type]


def langchain_chat(a: CheckTarget, client: Any) -> None:
    _need(client.invoke("Name a colour.").content, "no text")


def langchain_stream(a: CheckTarget, client: Any) -> None:
    _need("".join(str(c.content) for c in client.stream("Name a colour.")), "no text")


def langchain_async(a: CheckTarget, client: Any) -> None:
    _need(asyncio.run(client.ainvoke("Name a colour.")).content, "no text")


def langchain_tools(a: CheckTarget, client: Any) -> None:
    calls = client.bind_tools([TOOL], tool_choice="required").invoke("Weather in Paris?").tool_calls
    _need(calls, "no tool was called")
    _need_city(calls[0]["name"], calls[0]["args"])


def langchain_structured(a: CheckTarget, client: Any) -> None:
    schema = {"title": "colour", "description": "A colour.", **ANSWER_SCHEMA}
    response = client.with_structured_output(schema, method="json_schema").invoke("Name a colour.")
    _need_colour(json.dumps(response))


# llm


@contextmanager
def _llm(a: CheckTarget) -> Iterator[Any]:
    from llm.default_plugins.openai_models import Chat

    model = Chat("freehold", model_name=a.model, api_base=f"{a.url}/v1")
    model.key = a.key
    yield model


def llm_prompt(a: CheckTarget, client: Any) -> None:
    _need(client.prompt("Name a colour.", stream=False, max_tokens=16, key=a.key).text(), "no text")


def llm_stream(a: CheckTarget, client: Any) -> None:
    _need("".join(client.prompt("Name a colour.", stream=True, max_tokens=16, key=a.key)), "no text")


# distribution -> what makes a client of it
CLIENTS: dict[str, Callable[[CheckTarget], AbstractContextManager[Any]]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "ollama": _ollama,
    "langchain-openai": _langchain,
    "llm": _llm,
}
# distribution -> feature -> check; the asynchronous ones make a client of their own
CHECKS: dict[str, dict[str, Callable[[CheckTarget, Any], None]]] = {
    "openai": {
        "models": openai_models,
        "chat": openai_chat,
        "stream": openai_stream,
        "async": openai_async,
        "tools": openai_tools,
        "structured": openai_structured,
        "completions": openai_completions,
        "responses": openai_responses,
        "responses, stream": openai_responses_stream,
        "embeddings": openai_embeddings,
    },
    "anthropic": {
        "models": anthropic_models,
        "chat": anthropic_chat,
        "stream": anthropic_stream,
        "async": anthropic_async,
        "tools": anthropic_tools,
        "count tokens": anthropic_count,
    },
    "ollama": {
        "list": ollama_list,
        "show": ollama_show,
        "chat": ollama_chat,
        "stream": ollama_stream,
        "async": ollama_async,
        "generate": ollama_generate,
        "tools": ollama_tools,
        "structured": ollama_structured,
        "embeddings": ollama_embeddings,
    },
    "langchain-openai": {
        "chat": langchain_chat,
        "stream": langchain_stream,
        "async": langchain_async,
        "tools": langchain_tools,
        "structured": langchain_structured,
    },
    "llm": {"chat": llm_prompt, "stream": llm_stream},
}

# feature -> what a model must be able to do for it; the others need one that generates text
NEEDS = {"models": "", "list": "", "show": "", "embeddings": "", "tools": "tools"}
