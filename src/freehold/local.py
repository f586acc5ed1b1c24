"""Chat with a model that runs in this process: template, tokenizer, engine, detokenizer, stop strings.

Knows text and token ids; knows no weights, no scheduling and no protocol. `LLM` is the ChatModel that
DESIGN.md calls local.LocalModel, and the class `freehold.load` returns.
Path: cli/run or freehold.load -> LLM.stream -> Engine -> Detokenizer -> _Answer -> Chunk
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from freehold import _native as native
from freehold.config import load_settings, nearest
from freehold.engine import Engine, Generation, TokenOut
from freehold.engine.capacity import KvType
from freehold.errors import (
    BadPrompt,
    ContextOverflow,
    EngineClosed,
    FreeholdError,
    UnsupportedModel,
    UsageError,
)
from freehold.formats import GGUFFile, ModelFile, open_model_file
from freehold.models.defaults import sampling_defaults
from freehold.models.loader import LoadedModel, Progress, load_model
from freehold.models.packs import file_identity, open_pack, pack_path, write_pack
from freehold.store import ModelRef, Store
from freehold.tokenizer import ChatTemplate, Detokenizer, Tokenizer, tokenizer_from_dir, tokenizer_from_gguf
from freehold.tokenizer.splitters import StopStrings, ThinkingSplitter
from freehold.tokenizer.template import chat_template_from_dir, chat_template_from_gguf
from freehold.types import Chunk, Completion, FinishReason, Message, Overflow, SamplingParams, TokenLogprob

Prompt = str | Sequence[Message | Mapping[str, str]]
F32 = npt.NDArray[np.float32]

ROOM = 512  # tokens that drop-oldest keeps free for an answer whose length nobody limited
SEED_BITS = 63
# GGUF's general.file_type; the gaps are types nobody writes any more.
_FILE_TYPES = {
    **dict(enumerate(["F32", "F16", "Q4_0", "Q4_1"])),
    **dict(enumerate(["Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M"], 7)),
    **dict(enumerate(["Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS"], 16)),
    **dict(enumerate(["IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"], 24)),
    **dict(enumerate(["TQ1_0", "TQ2_0", "MXFP4"], 36)),
}


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


_SAMPLING = [f.name for f in fields(SamplingParams)]
_ASKING = ["max_tokens", "sampling", "stop", "logprobs", "think", "overflow"]


class LLM:
    """A loaded model: chat with it, complete text, score tokens. Safe from many threads; close it when done.

    Use it as a context manager. After `close`, or in a forked child, every method raises EngineClosed.
    Sampling that is not given comes from the model's own metadata (`default_sampling`).
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        name: str,
        quantization: str = "",
        default_sampling: SamplingParams | None = None,
        load_s: float = 0.0,
        notes: Sequence[str] = (),
    ) -> None:
        self._engine, self._tokenizer, self._template = engine, tokenizer, template
        self.name, self.quantization = name, quantization
        self.default_sampling = default_sampling or SamplingParams()
        self.load_s, self._notes = load_s, list(notes)
        self._pid, self._closed = os.getpid(), False
        self._writer: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.name} {self.quantization} context={self.context}>"

    def close(self) -> None:
        """Free the weights and the cache; safe to call twice."""
        if not self._closed and self._pid == os.getpid():
            self._closed = True
            if self._writer is not None:
                self._writer.join()
            self._engine.close()

    def keep_packed(self, write: Callable[[], object]) -> None:
        """Run `write` in a thread of its own, so that answers need not wait for the disk; `close` does.

        Its failure costs the next load some time and nothing else, so it becomes a note.
        """

        def noted() -> None:
            try:
                write()
            except FreeholdError as e:
                self._notes.append(e.message)

        self._writer = threading.Thread(target=noted, name="freehold-pack")
        self._writer.start()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: parts left out, a template that is not the file's, a disk too full."""
        return tuple(self._notes)

    @property
    def context(self) -> int:
        """Tokens there is room for, prompt and answer together."""
        return self._engine.context

    @property
    def trained_context(self) -> int:
        """Tokens the model was made for; `context` is less where memory is short."""
        return self._engine.model.context

    @property
    def context_note(self) -> str:
        """Why the context has this size."""
        return self._engine.context_note

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._engine.threads

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights read to compute one token."""
        return self._engine.model.bytes_per_token

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that a token adds, and that every later one reads where no window hides it."""
        return self._engine.cache_bytes_per_token

    @property
    def weights_per_token(self) -> int:
        """Weights multiplied to compute one token: every matrix but an embedding that is no head."""
        model = self._engine.model
        unused = 0 if model.weights.head is model.weights.embed else model.cfg.vocab * model.cfg.hidden
        return sum(m.rows * m.cols for m in model.matrices.values()) - unused

    def check_think(self, think: bool | None) -> None:
        """Raise UsageError if the model's template has no such switch."""
        if think is not None:
            self._chat_template().render([Message("user", "x")], think=think)

    def chat(
        self,
        messages: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        think: bool | None = None,
        overflow: Overflow = "error",
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Answer a chat, or one user message given as text.

        `max_tokens` None: until the model ends or the context is full. `logprobs` N: also the N likeliest
        tokens of each step. `think`: None leaves reasoning to the template. `options` are fields of
        SamplingParams and win over `sampling`. Raises ContextOverflow, UsageError, BadTemplate.
        """
        params = self._seeded(sampling, options)
        return _completion(
            self.stream(
                messages,
                max_tokens=max_tokens,
                sampling=params,
                stop=stop,
                logprobs=logprobs,
                think=think,
                overflow=overflow,
            ),
            params,
        )

    def stream(
        self,
        messages: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        think: bool | None = None,
        overflow: Overflow = "error",
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Answer as `chat` does, piece by piece. Closing the iterator stops the model within one step."""
        self._check_open()
        chat = _as_messages(messages)
        fitted = self._fit(chat, think, _checked_overflow(overflow), max_tokens)
        job = self._job(fitted.ids, max_tokens, self._seeded(sampling, options), logprobs)
        tags = self._chat_template().thinking_tags
        answer = _Answer(self._tokenizer, StopStrings(stop), ThinkingSplitter(tags, inside=fitted.inside))
        return _chunks(job, answer, fitted.dropped)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Continue text or token ids as they are, without a chat template."""
        params = self._seeded(sampling, options)
        chunks = self.stream_text(
            prompt, max_tokens=max_tokens, sampling=params, stop=stop, logprobs=logprobs
        )
        return _completion(chunks, params)

    def stream_text(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Continue as `generate` does, piece by piece."""
        self._check_open()
        ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else self._ids(prompt)
        if not ids:
            raise BadPrompt("the prompt is empty", "give text or token ids")
        self._check_room(len(ids))
        job = self._job(ids, max_tokens, self._seeded(sampling, options), logprobs)
        answer = _Answer(self._tokenizer, StopStrings(stop), ThinkingSplitter(None), at_start=False)
        return _chunks(job, answer, 0)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Turn text into token ids. `special` obeys control tokens in it; keep it off for a user's text."""
        self._check_open()
        return self._tokenizer.encode(text, special=special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Turn token ids into text; control tokens are left out."""
        self._check_open()
        return self._tokenizer.decode(self._ids(ids))

    def logits(self, ids: Sequence[int]) -> F32:
        """Return the model's logits after each of `ids`: float32 [T, V]."""
        self._check_open()
        return self._engine.logits(self._ids(ids))

    def score(self, ids: Sequence[int]) -> F32:
        """Return the log-probability of each of `ids` but the first, given those before: float32 [T - 1]."""
        self._check_open()
        return self._engine.score(self._ids(ids))

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise EngineClosed(f"{self.name} was loaded by another process", "load it again after fork")
        if self._closed:
            raise EngineClosed(f"{self.name} is closed", "load it again")

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise UnsupportedModel(
                f"{self.name} has no chat template", "complete plain text: --raw, or LLM.generate"
            )
        return self._template

    def _job(
        self, ids: list[int], max_tokens: int | None, params: SamplingParams, logprobs: int | None
    ) -> Generation:
        return self._engine.generate(ids, params, max_tokens, self._tokenizer.eos_ids, logprobs)

    def _seeded(self, sampling: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
        """Merge what was given over the model's defaults, and draw the seed if nobody named one."""
        for name in options:
            if name not in _SAMPLING:
                near = nearest(name, [*_SAMPLING, *_ASKING])
                hint = f"did you mean {near}?" if near else f"known: {', '.join([*_ASKING, *_SAMPLING])}"
                raise UsageError(f"unknown option {name!r}", hint)
        params = replace(sampling or self.default_sampling, **options)
        return params if params.seed is not None else replace(params, seed=secrets.randbits(SEED_BITS))

    def _fit(
        self, chat: Sequence[Message], think: bool | None, overflow: Overflow, max_tokens: int | None
    ) -> _Fitted:
        """Render and tokenize; under drop-oldest leave out as few of the oldest turns as it takes."""

        def fitted(turns: int) -> _Fitted:
            kept = _without_oldest(chat, turns)
            rendered = template.render(kept, think=think)
            ids = self._tokenizer.encode_rendered(rendered)
            return _Fitted(ids, rendered.in_thinking, len(chat) - len(kept))

        template = self._chat_template()
        whole = fitted(0)
        room = min(max_tokens or ROOM, self.context // 4) if overflow == "drop-oldest" else 1
        limit = self.context - room
        if len(whole.ids) > limit and overflow == "drop-oldest":
            turns = range(1, _turns(chat))  # the last turn stays
            fewest = bisect_left(turns, True, key=lambda n: len(fitted(n).ids) <= limit)
            whole = fitted(min(fewest + 1, len(turns)))
        self._check_room(len(whole.ids))
        return whole

    def _check_room(self, tokens: int) -> None:
        if tokens >= self.context:
            raise ContextOverflow(
                f"prompt has {tokens:,} tokens; {self.name} is loaded with room for {self.context:,}",
                f"load it with --context {_rounded_up(tokens)}, shorten the prompt, or let "
                "--overflow drop-oldest leave out old messages of a chat",
            )

    def _ids(self, ids: Sequence[int]) -> list[int]:
        checked = [int(i) for i in ids]
        vocabulary = self._tokenizer.vocab_size
        for id in checked:
            if not 0 <= id < vocabulary:
                raise UsageError(f"token id {id} is outside the vocabulary of {vocabulary:,}")
        if not checked:
            raise UsageError("there are no token ids", "give at least one")
        return checked


@dataclass(frozen=True, slots=True)
class _Fitted:
    ids: list[int]
    inside: bool  # the prompt ends within an opened thinking block
    dropped: int


def _chunks(job: Generation, answer: _Answer, dropped: int) -> Iterator[Chunk]:
    """Turn tokens into chunks; the one with `finish_reason` comes last, however the answer ends."""
    if dropped:
        yield Chunk(dropped_messages=dropped)
    with closing(job):
        reason: FinishReason | None = None
        for out in job:
            reason = out.finish_reason
            thinking, text = ("", "") if reason == "stop" else answer.push(out.id)
            if answer.hit:
                reason = "stop"
            yield Chunk(text, thinking, (out.id,), _logprobs(out))
            if reason is not None:
                break
        thinking, text = answer.finish()
        yield Chunk(text, thinking, finish_reason=reason or "cancelled", usage=job.usage)


def _logprobs(out: TokenOut) -> tuple[TokenLogprob, ...]:
    return () if out.logprob is None else (TokenLogprob(out.id, out.logprob, out.top),)


class _Answer:
    """Token ids in, pieces of thinking and text out; `hit` once a stop string came."""

    def __init__(
        self, tokenizer: Tokenizer, stops: StopStrings, splitter: ThinkingSplitter, *, at_start: bool = True
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, at_start=at_start)
        self._stops, self._splitter = stops, splitter

    @property
    def hit(self) -> bool:
        return self._stops.hit

    def push(self, id: int) -> tuple[str, str]:
        """Add a token; return the (thinking, text) that became certain."""
        thinking, text = self._splitter.push(self._detokenizer.push(id))
        return thinking, self._stops.push(text)

    def finish(self) -> tuple[str, str]:
        """Return what was held back; nothing after a stop string."""
        last = self._splitter.push(self._detokenizer.finish())
        rest = self._splitter.finish()
        text = self._stops.push(last[1] + rest[1]) + self._stops.finish()
        return last[0] + rest[0], text


def _as_messages(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        prompt = [Message("user", prompt)]
    chat = [m if isinstance(m, Message) else _as_message(m) for m in prompt]
    if not any(m.content.strip() for m in chat if m.role != "system"):
        raise BadPrompt("the chat is empty", "give at least one message with text")
    return chat


def _as_message(raw: Mapping[str, str]) -> Message:
    if not isinstance(raw, Mapping):
        raise UsageError(
            f"a message is a {type(raw).__name__}", "give Message, or {'role': ..., 'content': ...}"
        )
    unknown = raw.keys() - {"role", "content", "thinking"}
    role, content = raw.get("role"), raw.get("content")
    if unknown or role not in ("system", "user", "assistant", "tool") or not isinstance(content, str):
        shown = {k: v for k, v in raw.items() if k != "content"}
        raise UsageError(
            f"not a message: {shown!r}",
            "it has role (system, user, assistant or tool), content and thinking, as text",
        )
    return Message(role, content, raw.get("thinking", ""))


def _checked_overflow(overflow: Overflow) -> Overflow:
    if overflow not in ("error", "drop-oldest"):
        raise UsageError(f"overflow {overflow!r} is unknown", "use 'error' or 'drop-oldest'")
    return overflow


def _turns(chat: Sequence[Message]) -> int:
    """Count the turns: each begins with a user's message."""
    return max(sum(m.role == "user" for m in chat), 1)


def _without_oldest(chat: Sequence[Message], turns: int) -> list[Message]:
    """Leave out the first `turns` turns, whatever they hold; system messages stay."""
    kept, seen = [], 0
    for message in chat:
        seen += message.role == "user"
        if message.role == "system" or seen > turns or not turns:
            kept.append(message)
    return kept


def _rounded_up(tokens: int) -> int:
    """Return a context that holds `tokens` and a short answer: the next multiple of 1,024."""
    return (tokens + ROOM + 1023) // 1024 * 1024


def _completion(chunks: Iterable[Chunk], params: SamplingParams) -> Completion:
    got = list(chunks)
    last = got[-1]
    if last.finish_reason is None or last.usage is None or params.seed is None:
        raise RuntimeError("a stream ended without its last chunk")  # our own invariant
    return Completion(
        text="".join(c.text for c in got),
        thinking="".join(c.thinking for c in got),
        token_ids=tuple(i for c in got for i in c.token_ids),
        logprobs=tuple(p for c in got for p in c.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        seed=params.seed,
        dropped_messages=sum(c.dropped_messages for c in got),
    )


def load(
    model: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    kv_type: KvType = "f16",
    speculate: bool = True,
    draft: str | Path | None = None,
    pull: bool = False,
) -> LLM:
    """Load a model by name, hub reference, GGUF file or folder of safetensors; use the result in a `with`.

    `context`: tokens there is room for (default: the model's own, cut to what fits in half the free memory).
    `threads`: default, the physical cores this process may use. `kv_type`: "f16"; "q8" for a cache of int8 codes
    in half the memory; "f32" for one of twice the size that rounds nothing. `speculate`: verify guesses at what
    comes next where that is faster; the answers are the same. `draft`: a smaller model of the same tokens that
    guesses too. `pull`: fetch what is not here; otherwise the network is never touched.
    Raises ModelNotFound, BadModelFile, CapacityExceeded, UsageError.
    """
    store = Store(load_settings())
    found = store.pull if pull else store.resolve
    return open_model(
        found(str(model)),
        context=context,
        threads=threads,
        kv_type=kv_type,
        speculate=speculate,
        draft=None if draft is None else found(str(draft)),
        packs=store.packs,
    )


def open_model(
    ref: ModelRef,
    *,
    context: int | None = None,
    threads: int | None = None,
    kv_type: KvType = "f16",
    speculate: bool = True,
    draft: ModelRef | None = None,
    packs: Path | None = None,
    progress: Progress | None = None,
) -> LLM:
    """Load what the store found; packed weights are mapped from the folder `packs`, or written there.

    Path: Store.resolve -> open_model -> load_model, Engine, Tokenizer -> LLM
    """
    started = time.perf_counter()
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; expected 1 or more")
    if draft is not None and not speculate:
        raise UsageError(f"{draft.name} is to draft, but speculation is off", "leave out one of the two")
    opened = _opened(ref, threads, packs, progress)
    drafter = None if draft is None else _drafter(draft, opened, packs, progress)
    loaded = opened.model
    llm = LLM(
        Engine(
            loaded,
            context=context,
            kv_type=kv_type,
            speculate=speculate,
            draft=drafter.model if drafter else None,
        ),
        opened.tokenizer,
        opened.template,
        name=ref.name,
        quantization=opened.quantization,
        default_sampling=opened.sampling,
        load_s=time.perf_counter() - started,
        notes=(*loaded.notes, *_template_notes(opened.template)),
    )
    writes = [each.write for each in (opened, drafter) if each is not None and each.write is not None]
    if writes:
        llm.keep_packed(lambda: [write() for write in writes])
    return llm


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model file with its text side."""

    model: LoadedModel
    tokenizer: Tokenizer
    template: ChatTemplate | None
    quantization: str
    sampling: SamplingParams
    write: Callable[[], None] | None  # keeps the packed weights for the next load; None: they lie there


def _opened(
    ref: ModelRef, threads: int | native.Threads | None, packs: Path | None, progress: Progress | None
) -> _Opened:
    now = time.time()
    with closing(open_model_file(ref.path)) as opened:
        digest = ref.digest or file_identity(opened.paths, now)
        pack = pack_path(packs, digest) if packs and digest else None
        mapped = open_pack(pack, digest) if pack else None
        tokenizer, template = _text_side(opened, ref.path)
        defaults: dict[str, Any] = {name: value for name, (value, _) in sampling_defaults(opened).items()}
        loaded = load_model(
            opened,
            threads=threads,
            name=ref.name,
            tokens=tokenizer.vocab_size,
            packed=mapped,
            progress=progress,
        )
        quantization = _quantization(opened, loaded.type_bytes)
    write = None
    if pack is not None and mapped is None:
        write = partial(write_pack, pack, digest, loaded.matrices)
    return _Opened(loaded, tokenizer, template, quantization, SamplingParams(**defaults), write)


def _drafter(ref: ModelRef, target: _Opened, packs: Path | None, progress: Progress | None) -> _Opened:
    """Load a draft model on the target's threads; refuse one whose ids stand for other tokens."""
    opened = _opened(ref, target.model.threads, packs, progress)
    wrong = target.tokenizer.first_difference(opened.tokenizer)
    if wrong is not None:
        raise UsageError(
            f"{ref.name} cannot draft for {target.model.name}: token {wrong} differs",
            "a draft model needs the very same tokens: choose a smaller model of the family",
        )
    return opened


def _text_side(opened: ModelFile, path: Path) -> tuple[Tokenizer, ChatTemplate | None]:
    if isinstance(opened, GGUFFile):
        tokenizer = tokenizer_from_gguf(opened.metadata)
        made = lambda: chat_template_from_gguf(opened.metadata, tokenizer)  # noqa: E731
    else:
        tokenizer = tokenizer_from_dir(path)
        made = lambda: chat_template_from_dir(path, tokenizer)  # noqa: E731
    try:
        return tokenizer, made()
    except UnsupportedModel:  # a base model: it completes text, and says so when asked to chat
        return tokenizer, None


def _template_notes(template: ChatTemplate | None) -> tuple[str, ...]:
    """Say that the turns of a chat are not the file's own: such a model was hardly trained to chat."""
    if template is None or not template.is_fallback:
        return ()
    return (f"chat template: {template.origin}; a base model continues text, see --raw",)


def _quantization(opened: ModelFile, type_bytes: Mapping[str, int]) -> str:
    """Name the quantisation as the file does (general.file_type), else the type that most bytes have."""
    stated = opened.metadata.get("general.file_type") if isinstance(opened, GGUFFile) else None
    if isinstance(stated, int) and stated in _FILE_TYPES:
        return _FILE_TYPES[stated]
    return next(iter(type_bytes), "")
