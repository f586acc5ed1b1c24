"""POST /v1/batches and what is asked of batches: list, describe, cancel.

Knows OpenAI's fields; the work is server/batches/desk.py's. Path: Gate -> create -> Desk.create
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from freehold.server.batches.desk import Desk, NewBatch
from freehold.server.batches.record import Batch
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.problems import Refused
from freehold.server.openai.pages import page, query
from freehold.server.openai.responses.fields import Key, Value

LONGEST_S = 7 * 24 * 3600
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


class BatchRequest(Struct, kw_only=True):
    """POST /v1/batches: lines of a file to answer on idle capacity."""

    input_file_id: Annotated[
        Annotated[str, Meta(max_length=128)], Meta(description="An uploaded file, a request a line.")
    ]
    endpoint: Annotated[
        Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"],
        Meta(description="What all lines ask."),
    ]
    completion_window: Annotated[
        Annotated[str, Meta(max_length=32)],
        Meta(description="Time until what is left expires, such as `24h`; at most 7 days."),
    ]
    metadata: Annotated[
        Annotated[dict[Key, Value], Meta(max_length=16)] | None,
        Meta(description="Comes back with the batch."),
    ] = None


async def create(call: HttpCall) -> None:
    """Take in a batch."""
    request, raw = await call.struct(BatchRequest)
    for name in raw.keys() - set(BatchRequest.__struct_fields__):
        if raw[name] is not None:
            raise Refused(
                400, f"{name[:60]} is not supported here", param=name[:60], code="unsupported_parameter"
            )
    batch = NewBatch(
        request.endpoint,
        request.input_file_id,
        request.completion_window,
        _window(request.completion_window),
        request.metadata or {},
        call.labels,
    )
    await call.answer((await _desk(call).create(call.tenant, batch)).shown())


async def batches(call: HttpCall) -> None:
    """List batches, the newest first."""
    await call.answer(page(_desk(call).all(call.tenant), query(call), Batch.shown))


async def batch(call: HttpCall) -> None:
    """Describe a batch and how far it is."""
    await call.answer(_desk(call).get(call.tenant, _id(call)).shown())


async def cancel(call: HttpCall) -> None:
    """End a batch; what it has answered becomes its output."""
    await call.answer((await _desk(call).cancel(call.tenant, _id(call))).shown())


def _window(text: str) -> float:
    try:
        window = seconds(text) or 0.0
    except Refused:
        window = 0.0
    if not 1 <= window <= LONGEST_S:
        raise Refused(
            400,
            f"completion_window is {text!r}; expected 1s to {LONGEST_S // 3600}h",
            param="completion_window",
            code="invalid_value",
        )
    return window


def _desk(call: HttpCall) -> Desk:
    desk = call.server.part(Desk)
    if desk is None:
        raise Refused(503, "this server has no folder for batches", code="no_files")
    return desk


def _id(call: HttpCall) -> str:
    return call.scope["path_params"]["id"]
