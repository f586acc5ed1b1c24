"""POST /api/create: a model made from another one, out of fields or of a Modelfile.

Knows the route's fields; store/create.py checks and keeps. Path: Gate -> create -> chores.run -> create.make
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta, Struct

from freehold.server.core.call import HttpCall
from freehold.server.core.fields import Name
from freehold.server.core.problems import Refused
from freehold.server.ollama import blobs, chores
from freehold.server.ollama.fields import unknown_fields
from freehold.server.ollama.generating import worded
from freehold.server.ollama.models import stored
from freehold.server.ollama.pull import fetchable
from freehold.store import parameters
from freehold.store.create import make
from freehold.store.modelfile import Recipe, parse
from freehold.store.overlays import MAX_MESSAGES

Files = Annotated[dict[str, Annotated[str, Meta(max_length=80)]], Meta(max_length=64)]


class OverlayMessage(Struct, kw_only=True):
    """A message that every chat begins with."""

    role: str
    content: str = ""


class CreateRequest(Struct, kw_only=True, rename={"base": "from"}):
    """POST /api/create: make a model from another one."""

    model: Annotated[Name | None, Meta(description="The new model's name.")] = None
    name: Annotated[Name | None, Meta(description="The same, as older clients call it.")] = None
    base: Annotated[Name | None, Meta(description="What it is made from; fetched if it is not here.")] = None
    files: Annotated[
        Files | None, Meta(description="Instead of from: one GGUF file's name and the digest of its blob.")
    ] = None
    adapters: Annotated[
        Files | None,
        Meta(
            description="LoRA: a GGUF file's name and the digest of its blob, or those of PEFT's two files, "
            "`adapter_config.json` and `adapter_model.safetensors`."
        ),
    ] = None
    template: Annotated[str | None, Meta(description="In Jinja; one in Go's language is ignored.")] = None
    license: Annotated[str | list[str] | None, Meta(description="The licence's text.")] = None
    system: Annotated[str | None, Meta(description="System text of chats that have none.")] = None
    parameters: Annotated[dict[str, Any] | None, Meta(description="Options that requests need not give.")] = (
        None
    )
    messages: Annotated[
        Annotated[list[OverlayMessage], Meta(max_length=MAX_MESSAGES)] | None,
        Meta(description="What every chat begins with."),
    ] = None
    modelfile: Annotated[
        str | None, Meta(description="All of this as a Modelfile, as older clients send it.")
    ] = None
    stream: Annotated[bool | None, Meta(description="A line of JSON a step. Default true.")] = None
    quantize: Annotated[str | None, Meta(description="Refused: models are stored as they come.")] = None


async def create(call: HttpCall) -> None:
    """Make a model from another one, in place of what was made under its name; only for the owner."""
    request, raw = await call.struct(CreateRequest)
    name = fetchable(request.model or request.name, "model")
    recipe, digest = await call.in_thread(_recipe, request)
    store = stored(call)
    notes = unknown_fields(raw, CreateRequest)

    models, loop = call.server.models, asyncio.get_running_loop()

    def work(tell: chores.Tell) -> None:
        fetch = (lambda *_: blobs.model_of(store, digest)) if digest else None
        with blobs.adapter_of(store, request.adapters or {}) as adapter:
            whole = replace(recipe, adapter=str(adapter or ""))
            overlay = make(store, name, whole, lambda event: chores.report(event, tell), fetch)
        # An engine of its own would continue with the template it has. What is refused leaves it as it is.
        asyncio.run_coroutine_threadsafe(models.retire(name), loop).result()
        tell({"status": f"using existing layer {overlay.base}"})
        for note in (*notes, *overlay.notes):
            tell({"status": chores.WARNING + note})
        tell({"status": "writing manifest"})

    first = {"status": "reading model metadata"}
    await worded(
        recipe.base or name,
        lambda: chores.run(call, name, work, stream=request.stream is not False, first=first),
    )


def _recipe(r: CreateRequest) -> tuple[Recipe, str]:
    """Return what is to be made, and the digest of the blob it is made from, if it is."""
    if r.quantize:
        raise Refused(400, "quantize is not supported", param="quantize", code="unsupported_parameter")
    parsed = parse(r.modelfile) if r.modelfile else Recipe()
    if parsed.adapter:
        raise Refused(
            400, "ADAPTER names a file; send it as a blob and name that in adapters", param="modelfile"
        )
    recipe = Recipe(
        base=r.base or parsed.base,
        parameters={**parsed.parameters, **(r.parameters or {})},
        system=parsed.system if r.system is None else r.system,
        template=r.template or parsed.template,
        messages=tuple((m.role, m.content) for m in r.messages or []) or parsed.messages,
        licence=_licence(r.license) or parsed.licence,
        notes=parsed.notes,
    )
    parameters.read(recipe.parameters, strict=True)
    if r.files and recipe.base:
        raise Refused(400, "files and from name two bases; expected one of them", param="files")
    if r.files:
        digest = blobs.only_gguf(r.files)
        return replace(recipe, base=blobs.model_name(digest)), digest
    return replace(recipe, base=fetchable(recipe.base, "from")), ""


def _licence(licences: str | list[str] | None) -> tuple[str, ...]:
    return (licences,) if isinstance(licences, str) and licences else tuple(licences or ())
