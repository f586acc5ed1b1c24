"""The keywords of a loaded model's calls, each stated once: TypedDicts for type checkers, and signatures made of them.

Knows names, types and defaults; knows no model.
Path: LLM.chat, LLM.generate, AsyncLLM, freehold.load -> ChatOptions, GenerateOptions, LoadOptions
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from freehold.local.chat import Tools
from freehold.store.progress import ProgressLike
from freehold.types import FormatLike, ModelOptions, OnPrefill, Overflow, SamplingParams

C = TypeVar("C", bound=Callable[..., Any])


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParams as keywords: `chat("Hi", temperature=0, seed=1)`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float]
    seed: int | None


class GenerateOptions(SamplingOptions, total=False):
    """What `LLM.generate` takes besides the prompt; `LLM.chat` says what each means."""

    max_tokens: int | None  # None: until the model ends or the context is full
    sampling: SamplingParams | None  # None: the model's own; keywords of SamplingOptions win over it
    stop: Sequence[str]
    logprobs: int | None  # also the N likeliest tokens of each step
    format: FormatLike  # a JSON schema as a dict, "json" for any JSON object, or a Format
    adapter: str | None  # by its name, "" for none; None leaves it to `adapters.default`
    on_prefill: (
        OnPrefill | None
    )  # called with the prompt's tokens read and all of them, before the first token


class ChatOptions(GenerateOptions, total=False):
    """What `LLM.chat` and `LLM.stream` take besides the messages."""

    think: bool | None  # None leaves reasoning to the template
    think_tokens: int | None  # most tokens of reasoning; then it is closed and the answer begins
    effort: str | None  # one of the template's levels
    tools: Tools
    tool_choice: str  # "auto", "none", "required" or the name of a tool
    parallel_tool_calls: bool
    overflow: Overflow


class LoadOptions(ModelOptions, total=False):
    """What `load` takes besides the model."""

    draft: str | Path | None
    pull: bool
    progress: ProgressLike


# All others are None.
DEFAULTS: dict[str, object] = {
    "stop": (),
    "tools": (),
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "overflow": "error",
    "kv_type": "f16",
    "speculate": True,
    "allow_paging": False,
    "pull": False,
}
SAMPLING = tuple(SamplingOptions.__annotations__)
CALLS = tuple(name for name in ChatOptions.__annotations__ if name not in SAMPLING)
KNOWN = (*CALLS, *SAMPLING)


def keywords(options: type) -> Callable[[C], C]:
    """Give a function with `**options` the keys of a TypedDict as keywords in its signature, for help() and IPython.

    Sampling stays `**options`, as type checkers see all of them.
    """

    def given(function: C) -> C:
        signature = inspect.signature(function)
        plain = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shown = [*plain, *_parameters(options)]
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return given


def _parameters(options: type) -> Iterator[inspect.Parameter]:
    for name, annotated in options.__annotations__.items():
        if name not in SAMPLING:
            annotation = getattr(annotated, "__forward_arg__", annotated)
            default = DEFAULTS.get(name)
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
    if options.__annotations__.keys() >= set(SAMPLING):
        yield inspect.Parameter(
            "options", inspect.Parameter.VAR_KEYWORD, annotation="Unpack[SamplingOptions]"
        )
