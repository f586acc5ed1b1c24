"""GET /v1/models, what could be asked and what is in memory; and a model's tokenizer in vLLM's shapes.

Knows names, sizes, texts and ids; the tokenizer is in the engine process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta, Struct

from freehold.base.serving import (
    MAX_MESSAGES,
    EstimatedCount,
    Job,
    LoadedInfo,
    ModelHandle,
    StoredModel,
    tokenizer_of,
)
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import ESTIMATED, Name, Pictures, TokenId, doc
from freehold.serve.http.core.listing import answer_one, capabilities, listed
from freehold.serve.http.core.longjson import long_list
from freehold.serve.http.core.media import checked
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.fields.chat import (
    ChatMessage,
    TemplateOptions,
    read_message,
    turn_of,
    unknown_fields,
    unknown_message_fields,
)


async def models(call: HttpCall) -> None:
    """List every model."""
    await call.answer({"object": "list", "data": await listed(call, _model)})


async def model(call: HttpCall) -> None:
    """Describe one; its id may hold `/` and `:`."""
    await answer_one(call, _model)


def _model(name: str, held: StoredModel | None, loaded: Mapping[str, LoadedInfo]) -> dict[str, Any]:
    parent = held.parent if held else ""
    each = loaded.get(parent or name)
    info = each.info if each else None
    places = held.places if held else ()
    more: dict[str, Any] = {"bytes": held.bytes if held else None, "loaded": info is not None}
    if places:  # a name of a gateway's file: by itself it is not in local memory
        more = {"places": places}
    if info:
        more |= {"quantization": info.quantization, "trained_context": info.trained_context}
        more["capabilities"] = capabilities(info)
    return {
        "id": name,
        "object": "model",
        "created": int(held.modified) if held else 0,
        "owned_by": places[0] if len(places) == 1 else "freehold",
        "root": parent or name,
        "parent": parent or None,
        "max_model_len": info.context if info else None,
        "freehold": more,
    }


# --- POST /tokenize, POST /detokenize, GET /tokenizer_info, in vLLM's shapes; lm-eval reads them ----

MAX_IDS = 1 << 20  # longer than any context; the model's own is the limit
TOKEN = 32  # bytes of an answer for each token: its id, and perhaps its text


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize: a text to count, or a chat as the model's template writes it."""

    model: Annotated[
        Name | None,
        doc("Default: the model this server was started with, or the only one in memory."),
    ] = None
    prompt: Annotated[str | None, doc("A text.")] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)] | None,
        doc("A chat."),
    ] = None
    add_special_tokens: Annotated[
        bool | None, doc("Add the model's special tokens at the start of a text. Default true.")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, doc("For a chat, as in /v1/chat/completions. Default true.")
    ] = None
    continue_final_message: Annotated[
        bool | None, doc("For a chat, as in /v1/chat/completions. Default false.")
    ] = None
    return_token_strs: Annotated[bool | None, doc("Also return each token's text.")] = None
    chat_template_kwargs: Annotated[TemplateOptions | None, doc("`enable_thinking`.")] = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize: ids to write as text."""

    tokens: Annotated[Annotated[list[TokenId], Meta(max_length=MAX_IDS)], doc("Token ids.")]
    model: Annotated[
        Name | None,
        doc("Default: the model this server was started with, or the only one in memory."),
    ] = None


async def tokenize(call: HttpCall) -> None:
    """Count and list the tokens of a text or a chat."""
    request, raw = await call.struct(TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise Refused(400, "give either prompt or messages", param="prompt")
    warnings = unknown_fields(raw, TokenizeRequest)
    warnings += await call.apart(unknown_message_fields, raw.get("messages") or [])
    await call.while_here(_tokenize(call, request, warnings))


async def _tokenize(call: HttpCall, request: TokenizeRequest, warnings: list[str]) -> None:
    served, pictures = await _served(call, request.model), Pictures()
    turns = request.messages or ()
    chat = await call.apart(lambda: [read_message(m, i, pictures) for i, m in enumerate(turns)])
    if chat:
        (fetched,) = await checked(call, pictures, served.info, [Job(messages=tuple(chat))])
        chat = [*(fetched.messages or ())]
    if served.tokenizer is None and not request.return_token_strs:
        job = Job(messages=tuple(chat)) if chat else Job(prompt=request.prompt)
        await _counted(call, served, job, warnings)
        return
    if request.messages is not None:
        options = request.chat_template_kwargs
        turn = turn_of(request.add_generation_prompt, request.continue_final_message)
        ids = await tokenizer_of(served).render(
            chat, options.enable_thinking if options else None, turn, call.caller
        )
    else:
        ids = await tokenizer_of(served).tokenize(
            request.prompt or "", request.add_special_tokens is not False, call.caller
        )
    call.work.prompt_tokens = len(ids)
    written = await tokenizer_of(served).token_texts(ids) if request.return_token_strs else None
    more = {"max_model_len": served.info.context, "freehold": {"warnings": warnings}}

    def body() -> bytes:
        texts = written and long_list([t.decode("utf-8", "replace") for t in written])
        out = {"count": len(ids), **more, "tokens": long_list(ids), "token_strs": texts}
        return msgspec.json.encode(out)

    await call.answer(await call.apart(body, size=TOKEN * len(ids)))


async def _counted(call: HttpCall, served: ModelHandle, job: Job, warnings: list[str]) -> None:
    """Answer with the number alone, of a model whose tokenizer is elsewhere."""
    count = await served.count(replace(job, client=call.caller))
    call.work.prompt_tokens = int(count)
    all_warnings = [*warnings, f"tokens is empty: {served.name} is counted where it runs"]
    if isinstance(count, EstimatedCount):
        all_warnings[-1:] = [ESTIMATED]
    out = {"count": int(count), "max_model_len": served.info.context, "tokens": [], "token_strs": None}
    await call.answer({**out, "freehold": {"warnings": all_warnings}})


async def detokenize(call: HttpCall) -> None:
    """Write token ids as text."""
    request, raw = await call.struct(DetokenizeRequest)
    warnings = unknown_fields(raw, DetokenizeRequest)

    async def work() -> None:
        served = await _served(call, request.model)
        text = await tokenizer_of(served).detokenize(request.tokens, call.caller)
        await call.answer({"prompt": text, "freehold": {"warnings": warnings}})

    await call.while_here(work())


async def tokenizer_info(call: HttpCall) -> None:
    """Return the template and the special tokens; `?model=` names the model."""
    call.server.guard.check_asked(call.headers)  # it may load the model
    name = parse_qs(call.scope["query_string"].decode("latin-1")).get("model", [None])[0]

    async def work() -> None:
        served = await _served(call, name)
        info: dict[str, Any] = {"tokenizer_class": "freehold", "model_max_length": served.info.context}
        await call.answer({**info, **await tokenizer_of(served).template()})

    await call.while_here(work())


async def _served(call: HttpCall, name: str | None) -> ModelHandle:
    name = model_name(call, name)
    call.work.model = name
    return await call.models.use(name)


def model_name(call: HttpCall, name: str | None) -> str:
    """Return the model asked for, or the one this server was started with, or the only one in memory."""
    name = name or call.server.default_model
    if name:
        return name
    loaded = call.models.loaded()
    if len(loaded) != 1:
        raise Refused(400, f"{len(loaded)} models are in memory; say which", param="model")
    return loaded[0].name
