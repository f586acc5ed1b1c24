"""The fields of POST /infill, llama.cpp's route for completion in an editor, and the job that they make.

Knows the wire's fields and Job's; knows no route and no model. docs/reference/http.md is made from these structs.
Path: HttpCall.struct -> InfillRequest -> infill_job -> Job
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from freehold.server.core.fields import Name, priority
from freehold.server.openai.fields.generating import Generating, Positive, sampling, stops, tenant_of
from freehold.serving import Job

TOKENS = 128  # of an answer whose length is not given: an editor shows some lines
MAX_FILES = 256  # beside the one that is edited

Milliseconds = Annotated[float, Meta(ge=0, le=86_400_000)]


class InfillFile(Struct, kw_only=True):
    """Text of another file."""

    text: str
    filename: str = ""


class InfillRequest(Generating, kw_only=True):
    """POST /infill: the text between a prefix and a suffix, as llama.cpp's server has it."""

    model: Annotated[
        Name, Meta(description="Default: the model this server was started with, or the only one in memory.")
    ] = ""
    input_prefix: Annotated[str, Meta(description="The text before the cursor's line.")] = ""
    input_suffix: Annotated[str, Meta(description="The text after the cursor.")] = ""
    input_extra: Annotated[
        Annotated[list[InfillFile], Meta(max_length=MAX_FILES)] | None,
        Meta(
            description="Parts of other files, the most relevant last; what the context cannot hold is dropped."
        ),
    ] = None
    prompt: Annotated[str, Meta(description="The beginning of the cursor's line; follows input_prefix.")] = ""
    n_predict: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 20)] | None,
        Meta(
            description=f"Most tokens of the answer; 0 only computes the prompt. Default, and -1: {TOKENS}."
        ),
    ] = None
    n_indent: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | None,
        Meta(description="End the answer before a line that is indented by fewer characters."),
    ] = None
    t_max_predict_ms: Annotated[
        Milliseconds | None,
        Meta(description="End the answer after this time from its first token, once it has a line."),
    ] = None
    t_max_prompt_ms: Annotated[Milliseconds | None, Meta(description="Accepted and not used.")] = None
    repeat_penalty: Annotated[Positive | None, Meta(description="As repetition_penalty.")] = None
    repeat_last_n: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 20)] | None, Meta(description="As penalty_window.")
    ] = None
    response_fields: Annotated[
        Annotated[list[str], Meta(max_length=256)] | None,
        Meta(
            description="Only these fields in a whole answer; `timings/prompt_ms` is one of an inner object."
        ),
    ] = None
    samplers: Annotated[
        str | list[str] | None, Meta(description="Accepted and not used: the order here is fixed.")
    ] = None
    cache_prompt: Annotated[bool | None, Meta(description="Accepted and not used: prompts are cached.")] = (
        None
    )
    id_slot: Annotated[int | None, Meta(description="Accepted and not used: there are no slots.")] = None


def infill_job(r: InfillRequest, tenant: str) -> Job:
    """Return the job. Without a temperature it is greedy: an editor wants the most probable text."""
    if r.repetition_penalty is None:
        r.repetition_penalty = r.repeat_penalty
    if r.penalty_window is None and r.repeat_last_n is not None:
        r.penalty_window = max(r.repeat_last_n, 0)
    wanted = r.max_tokens if r.n_predict is None else r.n_predict
    limit = TOKENS if wanted in (None, -1) else wanted
    return Job(
        prompt=r.input_prefix + r.prompt,
        suffix=r.input_suffix,
        beside=tuple((each.filename, each.text) for each in r.input_extra or ()),
        max_tokens=max(limit or 0, 1),  # a prompt is computed for a token
        sampling={"temperature": 0.0, **sampling(r)},
        stop=stops(r),
        priority=priority(r.priority),
        tenant=tenant_of(r, tenant),
        timeout_s=r.timeout,
        whole=not r.stream,
    )
