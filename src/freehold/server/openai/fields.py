"""The fields of OpenAI's generating requests: types, ranges, and what becomes of each.

A field is honoured, refused by name because leaving it out would change the answer, or named in `warnings`.
Knows the wire's fields and Job's; knows no route and no model. docs/reference/http.md is made from these structs.
Path: Call.struct -> ChatRequest -> chat_job -> Job
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.config import nearest
from freehold.server.core.problems import Refused
from freehold.server.openai.offers import Offered
from freehold.server.openai.structured import Structured, format_of
from freehold.server.openai.tools import Choice, Offers, Uses, called, offered
from freehold.types import (
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_STOP_CHARS,
    MAX_STOPS,
    Job,
    Message,
    Overflow,
    Priority,
    Turn,
)

MAX_N = 128
MAX_CHOICES = 1024  # prompts x n of one request
MAX_SEED = (1 << 63) - 1
FORCED = 1 << 30  # more tokens than any context holds

Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[float, Meta(gt=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
Mass = Annotated[float, Meta(gt=0, le=1)]
LEAST_MASS = 1e-6  # what a top_p of 0 asks for: the likeliest token alone
Count = Annotated[int, Meta(ge=0, le=FORCED)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Label = Annotated[str, Meta(max_length=512)]
TokenId = Annotated[int, Meta(ge=0, le=0x7FFFFFFF)]
Rank = Annotated[
    Priority | Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None,
    Meta(description="`batch` takes what interactive requests leave; as a number, more than 0 is batch."),
]


class StreamOptions(Struct, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Generating(Structured, kw_only=True):
    """Fields that chats and completions share."""

    model: Annotated[Name, Meta(description="The model's name; it is loaded if it is not in memory.")]
    stream: Annotated[bool | None, Meta(description="Send the answer as server-sent events.")] = None
    stream_options: Annotated[
        StreamOptions | None, Meta(description="`include_usage`: a last event with the token counts.")
    ] = None
    max_tokens: Annotated[Count | None, Meta(description="Most tokens of an answer.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(description="0 is greedy. Default: the model's own."),
    ] = None
    top_p: Annotated[Share | None, Meta(description="Keep the likeliest tokens whose sum reaches this.")] = (
        None
    )
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=FORCED)] | None, Meta(description="Keep so many tokens; 0 or -1: all.")
    ] = None
    min_p: Annotated[
        Share | None, Meta(description="Drop tokens less likely than this times the likeliest.")
    ] = None
    typical_p: Annotated[Mass | None, Meta(description="Keep the most typical mass.")] = None
    repetition_penalty: Annotated[Positive | None, Meta(description="Divide the logits of seen tokens.")] = (
        None
    )
    presence_penalty: Annotated[Penalty | None, Meta(description="Subtract once per seen token.")] = None
    frequency_penalty: Annotated[Penalty | None, Meta(description="Subtract per time a token was seen.")] = (
        None
    )
    penalty_window: Annotated[
        Count | None, Meta(description="Last tokens the penalties look at; 0: all. Default 64.")
    ] = None
    logit_bias: Annotated[
        Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None,
        Meta(description="Token id, as text, to what is added to its logit."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-MAX_SEED - 1, le=MAX_SEED)] | None,
        Meta(
            description="The same seed gives the same answer; answer i draws with seed + i. Default, and -1: drawn."
        ),
    ] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_N)] | None, Meta(description="Answers to give. Default 1.")
    ] = None
    stop: Annotated[
        str | list[str] | None,
        Meta(
            description=f"Texts that end an answer: at most {MAX_STOPS}, each of 1 to {MAX_STOP_CHARS:,} characters."
        ),
    ] = None
    ignore_eos: Annotated[
        bool | None, Meta(description="Go on after the model's own end, to max_tokens: for load generators.")
    ] = None
    priority: Rank = None
    timeout: Annotated[
        Annotated[float, Meta(gt=0, le=86400)] | None,
        Meta(description="Seconds the whole answer may take; then status 504 or an error event."),
    ] = None
    keep_alive: Annotated[
        float | str | None,
        Meta(
            description="How long the model stays in memory afterwards: seconds or `10m`; negative: for ever."
        ),
    ] = None
    return_token_ids: Annotated[
        bool | None,
        Meta(description="Give `token_ids` with each choice, and `id` with each log-probability."),
    ] = None
    user: Annotated[Label | None, Meta(description="Accepted and not used.")] = None
    service_tier: Annotated[Label | None, Meta(description="Accepted and not used.")] = None
    safety_identifier: Annotated[Label | None, Meta(description="Accepted and not used.")] = None
    prompt_cache_key: Annotated[
        Label | None, Meta(description="Accepted and not used: prompts are cached by what they hold.")
    ] = None
    prompt_cache_retention: Annotated[Label | None, Meta(description="Accepted and not used.")] = None


class Part(Struct, kw_only=True):
    """A piece of a message's content: text, or an assistant's refusal."""

    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | Annotated[list[Part], Meta(max_length=1024)]


class ChatMessage(Struct, kw_only=True):
    """One turn. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Uses | None = None
    tool_call_id: Annotated[str, Meta(max_length=512)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None


_SPEAKERS = ("system", "developer", "user")  # of whom content is all there is
_MESSAGE_FIELDS = frozenset(ChatMessage.__struct_fields__)


class TemplateOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's name for what the template is told."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(Generating, kw_only=True):
    """POST /v1/chat/completions: a chat to answer."""

    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)],
        Meta(description="The chat: text, or parts of type text."),
    ]
    max_completion_tokens: Annotated[
        Count | None,
        Meta(description="OpenAI's newer name of max_tokens; wins. Default: what the context leaves."),
    ] = None
    logprobs: Annotated[bool | None, Meta(description="Give each token's log-probability.")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(description="And those of so many alternatives."),
    ] = None
    think: Annotated[
        bool | None, Meta(description="Reason before the answer, or not, where the model has the switch.")
    ] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        Meta(
            description="`none` is think false; else low, medium or high, where the model's template has levels: "
            "a warning says where it has none."
        ),
    ] = None
    thinking_token_budget: Annotated[
        Count | None,
        Meta(description="Most tokens of reasoning; then it is closed and the answer begins. vLLM's name."),
    ] = None
    chat_template_kwargs: Annotated[
        TemplateOptions | None, Meta(description="vLLM's way to say think: `enable_thinking`.")
    ] = None
    add_generation_prompt: Annotated[
        bool | None,
        Meta(
            description="vLLM's: false leaves out what the template writes to open an answer. Default true, or "
            "false with continue_final_message."
        ),
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Meta(
            description="vLLM's: the answer goes on from the last message, an assistant's, and gives what comes after "
            "it alone. Default false: a new answer, as OpenAI gives."
        ),
    ] = None
    tools: Annotated[
        Offers | None,
        Meta(description="Functions, or free-form tools, that the model may ask its caller to run."),
    ] = None
    tool_choice: Annotated[
        Choice | None,
        Meta(
            description="`auto` (default), `none`, `required`, the tool that has to be called, or `allowed_tools`."
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="False: an answer ends with its first call. Default true.")
    ] = None
    overflow: Annotated[
        Overflow | None,
        Meta(
            description="A chat longer than the context: `error` (default) or `drop-oldest`, counted in the receipt."
        ),
    ] = None


class CompletionRequest(Generating, kw_only=True):
    """POST /v1/completions: text to continue. `max_tokens` is 16 if it is not given, as OpenAI has it."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]] | None,
        Meta(description=f"Text, token ids, or a list of either; at most {MAX_CHOICES:,} answers in all."),
    ] = None
    suffix: Annotated[
        str | None, Meta(description="Fill in between prompt and this, where the model can.")
    ] = None
    echo: Annotated[
        bool | None, Meta(description="Begin with the prompt, with its log-probabilities if asked.")
    ] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(description="Give each token's log-probability, and those of so many alternatives."),
    ] = None


# Fields we do not honour yet and that change an answer -> values under which they change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(["functions", "documents", "bad_words", "stop_token_ids", "logits_processors"], ([],)),
    "function_call": ("none", "auto"),
    **dict.fromkeys(["structural_tag", "audio", "web_search_options", "prefill"], ()),
    "modalities": (["text"],),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    **dict.fromkeys(["allowed_token_ids", "prompt_logprobs", "prompt_embeds", "chat_template", "lora"], ()),
    **dict.fromkeys(["include_stop_str_in_output", "continue_final_message"], (False,)),
    **dict.fromkeys(["return_tokens_as_token_ids", "return_prompt_text", "echo"], (False,)),
    **dict.fromkeys(
        ["add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens"], (True,)
    ),
    **dict.fromkeys(["truncate_prompt_tokens", "repetition_detection"], ()),
    **dict.fromkeys(["mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range"], (0, 0.0)),
    "suffix": ("",),
    "add_special_tokens": (True,),
}
# OpenAI's own, not used here -> values that ask for nothing.
_UNUSED: dict[str, tuple[object, ...]] = {
    "store": (False,),
    "metadata": ({},),
    "verbosity": ("medium",),
    "prediction": (),
}
_INSTEAD = {"functions": "tools", "function_call": "tool_choice"}  # OpenAI's older names
_IN_CHAT = {"add_special_tokens": (False,)}  # there the template writes them
_ALIASES = {
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "n_predict": "max_tokens",
}
_SAMPLING = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_window",
)


def strangers(raw: dict[str, Any], kind: type[Struct]) -> list[str]:
    """Return a warning for each field that means nothing here; refuse those that would change the answer."""
    neutral = {**_NEUTRAL, **_IN_CHAT} if kind is ChatRequest else _NEUTRAL
    warnings = []
    options = raw.get("stream_options") if issubclass(kind, Generating) else None
    if options and not raw.get("stream"):
        warnings.append("field 'stream_options' was ignored: stream is not true")
    elif options:
        lost = sorted(options.keys() - set(StreamOptions.__struct_fields__))
        warnings += [f"field {name[:60]!r} of stream_options was ignored" for name in lost]
    for name in sorted(raw.keys() - set(kind.__struct_fields__)):
        value = raw[name]
        if name in neutral:
            if value is not None and value not in neutral[name]:
                instead = f"; send {_INSTEAD[name]}" if name in _INSTEAD else ""
                raise Refused(
                    400,
                    f"{name[:60]} is not supported by this server{instead or ' yet'}",
                    param=name,
                    code="unsupported_parameter",
                )
        elif name in _UNUSED:
            if value is not None and value not in _UNUSED[name]:
                warnings.append(f"field {name!r} was ignored: this server does not use it")
        elif value is not None:
            near = _ALIASES.get(name) or nearest(name[:60], list(kind.__struct_fields__))
            warnings.append(
                f"unknown field {name[:60]!r} was ignored" + (f"; did you mean {near}?" if near else "")
            )
    return warnings[:20]


# What a message may hold besides, and whether leaving it out changes what the model reads.
_IN_MESSAGE = {"function_call": True, "audio": True}


def message_strangers(messages: list[dict[str, Any]]) -> list[str]:
    """Do the same for the fields of messages, which must be of the right type already."""
    warnings: dict[str, None] = {}
    for i, message in enumerate(messages):
        for name in message.keys() - _MESSAGE_FIELDS:
            if not message[name]:
                continue
            if _IN_MESSAGE.get(name):
                where = f"messages[{i}].{name}"
                raise Refused(
                    400,
                    f"{where} is not supported by this server yet",
                    param=where,
                    code="unsupported_parameter",
                )
            warnings[f"field {name[:60]!r} of messages was ignored"] = None
    return list(warnings)[:20]


def sampling(r: Generating) -> dict[str, object]:
    """Return the fields of SamplingParams that the request gives."""
    given: dict[str, object] = {k: v for k in _SAMPLING if (v := getattr(r, k)) is not None}
    if r.seed not in (None, -1):  # which vLLM and llama.cpp read as no seed
        given["seed"] = r.seed & MAX_SEED
    if r.top_p == 0:
        given["top_p"] = LEAST_MASS
    if r.top_k is not None:
        given["top_k"] = max(r.top_k, 0)
    if r.logit_bias:
        given["logit_bias"] = {_token_id(k): v for k, v in r.logit_bias.items()}
    return given


def stops(r: Generating) -> tuple[str, ...]:
    """Return the stop texts; 400 for too many, an empty one or one too long."""
    given = [r.stop] if isinstance(r.stop, str) else r.stop or []
    if len(given) > MAX_STOPS:
        raise Refused(400, f"stop has {len(given)} texts; expected at most {MAX_STOPS}", param="stop")
    for text in given:
        if not 0 < len(text) <= MAX_STOP_CHARS:
            raise Refused(
                400,
                f"a stop text has {len(text):,} characters; expected 1 to {MAX_STOP_CHARS:,}",
                param="stop",
            )
    return tuple(given)


def priority(given: Priority | int | None) -> Priority:
    """Read vLLM's numbers too: there a lower one goes first, and 0 is everybody's."""
    if isinstance(given, int):
        return "batch" if given > 0 else "interactive"
    return given or "interactive"


def chat_job(r: ChatRequest, tenant: str, warnings: list[str]) -> tuple[Job, Offered]:
    """Return the job of a chat request, and what it offers."""
    tools = offered(r.tools or (), r.tool_choice, warnings)
    top = None
    if r.logprobs:
        top = r.top_logprobs or 0
    elif r.top_logprobs:
        raise Refused(400, "top_logprobs needs logprobs true", param="top_logprobs")
    limited = "max_tokens" if r.max_completion_tokens is None else "max_completion_tokens"
    limit = getattr(r, limited)
    if limit == 0:
        raise Refused(400, f"{limited} is 0; expected 1 or more", param=limited)
    messages = tuple(read_message(m, i) for i, m in enumerate(r.messages))
    _check_order(messages)
    job = Job(
        messages=messages,
        n=r.n or 1,
        max_tokens=limit,
        sampling=sampling(r),
        stop=stops(r),
        logprobs=top,
        think=_think(r),
        think_tokens=r.thinking_token_budget,
        effort=_EFFORTS.get(r.reasoning_effort or ""),
        tools=tools.tools,
        tool_choice=tools.choice,
        tool_name=tools.name,
        parallel_tool_calls=r.parallel_tool_calls is not False,
        overflow=r.overflow or "error",
        turn=turn_of(r.add_generation_prompt, r.continue_final_message),
        format=format_of(r),
        ignore_eos=bool(r.ignore_eos),
        priority=priority(r.priority),
        tenant=tenant,
        timeout_s=r.timeout,
    )
    return job, tools


def turn_of(opens: bool | None, continues: bool | None) -> Turn:
    """Return how a prompt ends by vLLM's two fields; 400 for both."""
    if continues and opens:
        raise Refused(
            400,
            "continue_final_message and add_generation_prompt are both true; expected at most one of them",
            param="continue_final_message",
        )
    return "continue" if continues else "none" if opens is False else "new"


def completion_jobs(r: CompletionRequest, tenant: str) -> list[Job]:
    """Return one job for each prompt."""
    prompts = _prompts(r.prompt)
    limit = 16 if r.max_tokens is None else r.max_tokens
    scored = r.logprobs if r.echo else None
    if limit == 0 and not r.echo:
        raise Refused(400, "max_tokens is 0, which needs echo true; expected 1 or more", param="max_tokens")
    if limit == 0 and scored is None:
        scored = 0  # an engine reads a prompt for a token or for scores; these are not shown
    if r.suffix and (r.echo or not all(isinstance(p, str) for p in prompts)):
        raise Refused(400, "suffix needs a prompt that is text, and no echo", param="suffix")
    n = r.n or 1
    if len(prompts) * n > MAX_CHOICES:
        raise Refused(
            400, f"{len(prompts):,} prompts x n {n} are more than {MAX_CHOICES:,} answers", param="prompt"
        )
    shared = {
        "suffix": r.suffix or None,
        "n": n,
        "max_tokens": limit,
        "sampling": sampling(r),
        "stop": stops(r),
        "logprobs": r.logprobs,
        "prompt_logprobs": scored,
        "format": format_of(r),
        "ignore_eos": bool(r.ignore_eos),
        "priority": priority(r.priority),
        "tenant": tenant,
        "timeout_s": r.timeout,
    }
    return [Job(prompt=p, **shared) for p in prompts]


def _prompts(prompt: str | list[Any] | None) -> list[str | tuple[int, ...]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise Refused(400, "prompt is missing or empty", param="prompt", code="missing_required_parameter")
    kinds = {type(p) for p in prompt}
    if len(kinds) > 1:
        raise Refused(400, "prompt mixes texts, token ids and lists; expected one of them", param="prompt")
    if kinds == {int}:
        return [tuple(prompt)]
    return [p if isinstance(p, str) else tuple(p) for p in prompt]


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise Refused(400, f"logit_bias has the key {key[:20]!r}; expected a token id", param="logit_bias")
    return int(key)


_EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}


def _think(r: ChatRequest) -> bool | None:
    if r.think is not None:
        return r.think
    told = r.chat_template_kwargs
    if told is not None and (told.enable_thinking is not None or told.thinking is not None):
        return told.enable_thinking if told.enable_thinking is not None else told.thinking
    return False if r.reasoning_effort == "none" else None


def _check_order(messages: Sequence[Message]) -> None:
    """Refuse (400) what OpenAI refuses: a result for no call of the turn before it, and a call without a result.

    Ids may be left out, as many clients of other servers do: a result without one is the next call's.
    """
    asked: list[str] = []  # ids of the calls that results may answer here
    due: list[str] = []  # of those, what has no result yet
    for i, message in enumerate(messages):
        if message.role != "tool":
            _check_answered(due, i)
            asked = [call.id for call in message.tool_calls]
            due = [*asked]
        elif not asked or (message.tool_call_id and not {message.tool_call_id, ""} & {*asked}):
            raise Refused(
                400,
                f"messages[{i}] answers the call {message.tool_call_id[:60]!r}, which the turn before it does not make",
                param=f"messages[{i}].tool_call_id",
            )
        elif message.tool_call_id in due:
            due.remove(message.tool_call_id)
        elif message.tool_call_id not in asked:
            del due[:1]
    _check_answered(due, len(messages))


def _check_answered(due: Sequence[str], i: int) -> None:
    if due:
        raise Refused(
            400,
            f"the call {due[0][:60]!r} has no result before messages[{i}]; expected a tool message for each",
            param=f"messages[{i}].role",
        )


def read_message(m: ChatMessage, i: int) -> Message:
    """Return message number `i`, its text parts joined; refuse parts that are no text, and what says nothing."""
    if m.content is None and m.role in _SPEAKERS:
        where = f"messages[{i}].content"
        raise Refused(
            400,
            f"{where} is missing or null; expected the text of the {m.role} message",
            param=where,
            code="missing_required_parameter",
        )
    return Message(
        "system" if m.role == "developer" else m.role,
        text_of(m.content or m.refusal or "", f"messages[{i}].content"),
        m.reasoning_content or m.reasoning or "",
        called(m.tool_calls or (), f"messages[{i}].tool_calls"),
        m.tool_call_id or "",
        m.name or "",
    )


def text_of(content: Content, at: str) -> str:
    """Return the text of a message, its parts joined; refuse parts that are no text."""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
            raise Refused(
                400,
                f"{at}[{i}] is of type {part.type[:40]!r}; this server reads text so far",
                param=f"{at}[{i}]",
                code="unsupported_content",
            )
        texts.append(text)
    return "".join(texts)
