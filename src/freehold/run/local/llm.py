"""A loaded model that answers chats, texts and jobs, and turns texts into vectors.

Knows prompts, sampling and the engine's interface; knows no weights, no scheduling and no protocol. A call from
Python and a job from a server (opening.py) take the same path: Prompter, Engine.generate_many, LocalJob.

Texts become vectors by encoders and by decoders alike; a text is cut only where the caller asks for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, Unpack, cast, overload

import numpy as np
import numpy.typing as npt

from freehold import _native as native
from freehold.base.errors import (
    BadPrompt,
    ContextOverflow,
    EngineClosed,
    FreeholdError,
    UnsupportedModel,
    UsageError,
)
from freehold.base.serving import MAX_TEXTS, AdapterInfo, Begin, EmbedJob, EngineStats, Job, ModelInfo
from freehold.base.stopping import check_stopped
from freehold.base.terminal import Ticking
from freehold.base.types import Chunk, Completion, Embeddings, Message, SamplingParams, Turn
from freehold.run.engine import Encoder, Engine, scoring
from freehold.run.engine.scoring import Pooling, checked_pooling, embed
from freehold.run.formats.lora import MAX_ADAPTERS, check_adapter_name, unknown_adapter
from freehold.run.local.answering import (
    ConstraintBuilder,
    LocalJob,
    Prompts,
    SeenLater,
    complete,
    completion,
    is_batch,
)
from freehold.run.local.jobs import (
    Chat,
    ChatOptions,
    GenerateOptions,
    as_messages,
    chat_job,
    check_request,
    keywords,
    most_chars,
    sampling_of,
    seeded,
    text_job,
)
from freehold.run.local.prompt import Prompt, Prompter
from freehold.run.local.senses import Senses
from freehold.run.models.load import LoadedModel
from freehold.run.models.lora import Adapter, load_adapter
from freehold.run.store.overlays import Overlay, overlaid, with_messages
from freehold.run.tokenizer import ChatTemplate, Tokenizer

F32 = npt.NDArray[np.float32]

# --- vectors ---------------------------------------------------------------------------------------

Text = str | Sequence[int]


class Embedder:
    """Makes vectors with one model."""

    def __init__(self, engine: Engine | Encoder, tokenizer: Tokenizer, name: str, pooling: Pooling) -> None:
        """`pooling`: used where a request names none."""
        self._engine, self._tokenizer, self._name = engine, tokenizer, name
        self._pooling: Pooling = pooling

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self._engine.model.cfg.hidden

    def embed(self, job: EmbedJob, adapter: Adapter | None = None) -> Embeddings:
        """Return the vectors of a job's texts. Raises UsageError, BadPrompt, ContextOverflow naming the text."""
        if not 1 <= len(job.texts) <= MAX_TEXTS:
            raise UsageError(f"there are {len(job.texts):,} texts; expected 1 to {MAX_TEXTS:,}")
        if job.dimensions is not None and not 1 <= job.dimensions <= self.width:
            raise UsageError(f"dimensions is {job.dimensions}; {self._name} makes vectors of {self.width}")
        pooling = self._pooling if job.pooling is None else checked_pooling(job.pooling)
        encoded = [self._ids(f"text {i}", text, job.truncate) for i, text in enumerate(job.texts, job.first)]
        ids = [each for each, _ in encoded]
        if isinstance(self._engine, Encoder):
            vectors = self._engine.embed(ids, pooling, job.priority, job.client or job.tenant)
        else:
            vectors = embed(
                self._engine,
                ids,
                pooling,
                priority=job.priority,
                tenant=job.tenant,
                client=job.client,
                adapter=adapter,
            )
        cut = tuple(i for i, (_, shortened) in enumerate(encoded) if shortened)
        return Embeddings(_first(vectors, job.dimensions), tuple(map(len, ids)), cut)

    def _ids(self, name: str, text: Text, truncate: bool) -> tuple[list[int], bool]:
        """Return a text's ids, and whether it was cut."""
        check_stopped()
        room = self._engine.context
        most = most_chars(len(text), room, self._tokenizer.longest)
        far = isinstance(text, str) and len(text) > most
        if far and not truncate:
            raise self._too_long(
                f"{name} has {len(text):,} characters, more than the {most:,} in the {room:,} tokens that"
            )
        ids = self._tokenizer.encode(text[:most]) if isinstance(text, str) else self._checked(name, text)
        if not ids:
            raise BadPrompt(f"{name} is empty", "leave it out")
        if len(ids) <= room:
            return ids, far
        if not truncate:
            raise self._too_long(f"{name} has {len(ids):,} tokens; of those")
        return self._cut(ids, room, isinstance(text, str)), True

    def _too_long(self, what: str) -> ContextOverflow:
        return ContextOverflow(
            f"{what} {self._name} takes {self._engine.context:,}",
            "split it, or ask for it to be cut (truncate)",
        )

    def _cut(self, ids: list[int], room: int, framed: bool) -> list[int]:
        """Keep the beginning, and the tokens that the tokenizer itself appended."""
        end = self._tokenizer.suffix_ids if framed else ()
        return ids[:room] if len(end) >= room else [*ids[: room - len(end)], *end]

    def _checked(self, name: str, ids: Sequence[int]) -> list[int]:
        size = self._tokenizer.vocab_size
        wrong = next((id for id in ids if not 0 <= id < size), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} of {name} is outside the vocabulary of {size:,}")
        return list(ids)


def _first(vectors: F32, dimensions: int | None) -> F32:
    """Keep the first `dimensions` numbers of each vector, at unit length again; None keeps all."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimensions].astype(np.float64)
    lengths = np.sqrt(np.square(kept).sum(axis=1, keepdims=True))
    return (kept / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)


# --- answers ---------------------------------------------------------------------------------------


class LLM:
    """A loaded model: chat with it, complete text, score tokens. Safe to use from many threads; close it when done.

    Use it as a context manager. After `close`, or in a forked child, every method raises EngineClosed.
    Sampling that is not given comes from the model's own metadata (`default_sampling`).
    """

    def __init__(
        self,
        engine: Engine | Encoder,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        name: str,
        quantization: str = "",
        default_sampling: SamplingParams | None = None,
        weight_bytes: int = 0,
        load_s: float = 0.0,
        notes: Sequence[str] = (),
        overlay: Overlay | None = None,
        pooling: Pooling = "last",
        weights: str = "",
        eyes: Senses | None = None,
    ) -> None:
        """`engine` is an Encoder for a model that makes embeddings alone. `pooling`: the model's own.

        `weights` names the files that were loaded. `eyes`: of a model that sees or hears.
        """
        self._engine, self._tokenizer, self._weight_bytes = engine, tokenizer, weight_bytes
        self._constraints = ConstraintBuilder(tokenizer, name)
        self.adapters = Adapters(engine.model)
        self._eyes = eyes
        self._prompter = Prompter(tokenizer, template, name, engine.context, eyes)
        self._embedder = Embedder(engine, tokenizer, name, pooling)
        self.name, self.quantization = name, quantization
        self._overlay, self._weights = overlay, weights
        sampling = overlay.read.sampling if overlay else {}
        self.default_sampling = replace(default_sampling or SamplingParams(), **sampling)  # type: ignore[arg-type]
        self.load_s, self._notes = load_s, list(notes)
        self._pid, self._closed = os.getpid(), False
        self._writer: threading.Thread | None = None
        self.shown = False  # a terminal sees what `close` waits for

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
                with (
                    Ticking("keeping the packed weights for the next start") if self.shown else nullcontext()
                ):
                    self._writer.join()
            if self._eyes is not None:
                self._eyes.close()
            self._engine.close()

    def _keep_packed(self, write: Callable[[], object]) -> None:
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
        """Notes for the user: parts left out, a template that is not the file's, a full disk."""
        return tuple(self._notes)

    @property
    def path(self) -> Path:
        """The file or folder that holds its weights."""
        return self._engine.model.path

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and answer together."""
        return self._engine.context

    @property
    def trained_context(self) -> int:
        """The model's own context in tokens; `context` is smaller if memory is short."""
        return self._engine.model.context

    @property
    def context_note(self) -> str:
        """Why the context has this size."""
        return self._engine.context_note

    @property
    def threads(self) -> int:
        """Number of compute threads."""
        return self._engine.threads

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that are read to compute one token."""
        return self._engine.model.bytes_per_token

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values per token, which attention reads for each later token in its window."""
        return self._engine.cache_bytes_per_token

    @property
    def weights_per_token(self) -> int:
        """Weights multiplied to compute one token: all matrices, except an embedding that is not the output head."""
        return self._engine.model.weights_per_token

    @property
    def can_see(self) -> bool:
        """Whether messages may contain pictures."""
        return self._eyes is not None and "picture" in self._eyes.kinds

    @property
    def can_listen(self) -> bool:
        """Whether messages may contain audio."""
        return self._eyes is not None and "sound" in self._eyes.kinds

    def check_think(self, think: bool | None) -> None:
        """Raise UsageError if the model's template does not support these thinking settings."""
        if think is not None:
            self._prompter.template.render([Message("user", "x")], think=think)

    @keywords(ChatOptions)
    def chat(self, messages: Chat, **options: Unpack[ChatOptions]) -> Completion:
        """Answer a chat, or one user message given as text.

        `max_tokens` None: until the model ends or the context is full. `logprobs` N: also return the N most probable
        tokens of each step. `think`: True or False; None leaves the decision to the template. `think_tokens`: maximum
        tokens of reasoning, after which the answer begins. `effort`: one of the template's levels. `tools`: tools that
        the model may call; `tool_choice`: "auto", "none", "required" or the name of one. `format`: a JSON schema as a
        dict, "json" for any JSON object, or a Format. `adapter`: its name, "" for none; None uses `adapters.default`.
        `options`: fields of SamplingParams, which override `sampling`. Raises ContextOverflow, UsageError, BadTemplate,
        and ModelNotFound for an unknown adapter.
        """
        return complete(self._job_of(messages, options))

    @keywords(ChatOptions)
    def stream(self, messages: Chat, **options: Unpack[ChatOptions]) -> Iterator[Chunk]:
        """Answer as `chat` does, with its keywords, piece by piece.

        Closing the iterator stops the model within one step.
        """
        return self._job_of(messages, options).stream()

    @overload
    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> Completion: ...
    @overload
    def generate(self, prompt: Prompts, **options: Unpack[GenerateOptions]) -> list[Completion]: ...
    @keywords(GenerateOptions)
    def generate(
        self, prompt: str | Sequence[int] | Prompts, **options: Unpack[GenerateOptions]
    ) -> Completion | list[Completion]:
        """Continue text or token ids as they are, without a chat template; a list of prompts as one batch.

        Prompts in a batch share the engine's steps, and each answer is the same as for the prompt alone. A `seed`
        applies to every prompt. If one prompt is invalid, the error gives its index, and no prompt is answered.
        """
        if not is_batch(prompt):
            return complete(self._continued(cast(str, prompt), options))
        return all_together(self._generating(), [partial(self._continued, each, options) for each in prompt])

    @keywords(GenerateOptions)
    def stream_text(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> Iterator[Chunk]:
        """Continue one prompt as `generate` does, with its keywords, piece by piece."""
        return self._continued(prompt, options).stream()

    def answer_many(
        self, jobs: Iterable[Job], *, at_once: int = 16
    ) -> Iterator[tuple[int, Completion | ContextOverflow]]:
        """Answer jobs in batches of `at_once`, and yield each answer with its index when it is complete.

        Each answer is the same as for the job alone. A job that is too long yields a ContextOverflow.
        """
        self._check_open()
        return as_they_end(self._generating(), self._checked, jobs, at_once)

    def prompt_ids(self, job: Job) -> tuple[int, ...]:
        """Return the token ids of a job's prompt. Raises ContextOverflow, BadTemplate, UsageError."""
        self._check_open()
        return tuple(self._prompter.prompt(self._overlaid(job)).ids)

    def _checked(self, job: Job) -> LocalJob:
        check_request(job)
        return self._prepared(job, seeded(job.sampling, self.default_sampling))

    def _overlaid(self, job: Job) -> Job:
        return job if self._overlay is None else overlaid(job, self._overlay)

    def _job_of(self, messages: Chat, options: ChatOptions) -> LocalJob:
        """Prepare the answer to a chat; nothing is computed before it is streamed or entered."""
        self._check_open()
        job = chat_job(messages, options, self.adapters.chosen(options.get("adapter")))
        if job.effort is not None and job.effort not in self._prompter.template.efforts:
            self._prompter.template.render(
                job.messages or (), effort=job.effort
            )  # raises with the levels it has
        job_made = self._prepared(job, sampling_of(options, self.default_sampling))
        return job_made.watched(options.get("on_prefill"))

    def _continued(self, prompt: str | Sequence[int], options: GenerateOptions) -> LocalJob:
        """Prepare the continuation of a text or of token ids."""
        self._check_open()
        text = prompt if isinstance(prompt, str) else tuple(self._prompter.checked(prompt))
        job = text_job(text, options, self.adapters.chosen(options.get("adapter")))
        job_made = self._prepared(job, sampling_of(options, self.default_sampling))
        return job_made.watched(options.get("on_prefill"))

    @property
    def stats(self) -> EngineStats:
        """Counters of the engine, and its current state."""
        stats = self._engine.stats()
        return stats if self._eyes is None else replace(stats, **self._eyes.counts)

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        kv_tokens = self.stats.blocks * native.BLOCK_TOKENS
        chats = self._prompter.can_chat
        return ModelInfo(
            name=self.name,
            quantization=self.quantization,
            context=self.context,
            trained_context=self.trained_context,
            kv_tokens=kv_tokens,
            threads=self.threads,
            load_s=self.load_s,
            memory_bytes=self._weight_bytes + self.adapters.nbytes + self._engine.cache_bytes,
            cache_bytes=self._engine.cache_bytes,
            vocab=self._tokenizer.vocab_size,
            can_chat=chats,
            can_fill=self._prompter.fill is not None,
            can_call=chats and self._prompter.template.can_call,
            can_see=self.can_see,
            can_listen=self.can_listen,
            thinking=self._prompter.template.thinking if chats else "none",
            efforts=self._prompter.template.efforts if chats else (),
            default_sampling=self.default_sampling,
            notes=self.notes,
            context_note=self.context_note,
            adapters=self.adapters.infos,
            width=self._embedder.width,
            embeds_only=isinstance(self._engine, Encoder),
            weights=self._weights,
        )

    def add_adapter(self, name: str, path: str | Path) -> ModelInfo:
        """Load a LoRA adapter, which requests can then name. See Adapters.add."""
        self._check_open()
        self._generating()
        self.adapters.add(name, path)
        return self.info

    def remove_adapter(self, name: str) -> ModelInfo:
        """Remove an adapter; running requests continue to use it."""
        self._check_open()
        self.adapters.remove(name)
        return self.info

    def render(self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new") -> list[int]:
        """Return the prompt ids of a chat, up to where its answer begins or continues (`turn`)."""
        self._check_open()
        if self._overlay is not None:
            messages = with_messages(tuple(messages), self._overlay)
        return self._prompter.render(messages, think, turn)

    def count_tokens(self, messages: Chat) -> int:
        """Return the number of prompt tokens of a chat, even if it exceeds the context."""
        return len(self.render(as_messages(messages)))

    def embed(
        self,
        texts: Text | Sequence[Text],
        *,
        pooling: str | None = None,
        truncate: bool = False,
        dimensions: int | None = None,
        adapter: str | None = None,
    ) -> Embeddings:
        """Return a vector of unit length for each text, given as text or as token ids.

        `pooling`: "mean", "last" or "cls" of the last activations; None: the model's own pooling, or "last" for a
        generative model. `dimensions`: keep this many dimensions of each vector, normalised again, for models trained
        for it. `truncate`: truncate texts that are longer than the context; Embeddings.cut lists them. `adapter`: as in
        `chat`. Raises ContextOverflow with the index of a text that is too long, BadPrompt for an empty text, and
        UsageError.
        """
        alone = isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], int))
        listed = [cast(Text, texts)] if alone else cast(Sequence[Text], texts)
        plain = tuple(text if isinstance(text, str) else tuple(text) for text in listed)
        chosen = self.adapters.chosen(adapter)
        return self._embedded(EmbedJob(plain, pooling, truncate, dimensions, adapter=chosen))

    def _embedded(self, job: EmbedJob) -> Embeddings:
        self._check_open()
        return self._embedder.embed(job, self.adapters.find(job.adapter))

    def _generating(self) -> Engine:
        """Return the engine. Raises UnsupportedModel where it makes no text."""
        if isinstance(self._engine, Encoder):
            raise UnsupportedModel(
                f"{self.name} cannot chat: it makes embeddings",
                "use LLM.embed, or POST /v1/embeddings of a server",
            )
        return self._engine

    def _prepared(self, job: Job, params: SamplingParams, *, waits: bool = True) -> LocalJob:
        """Prepare a job; `waits`: for its pictures, which otherwise are computed once the job is returned."""
        engine = self._generating()
        job = self._overlaid(job)
        adapter = self.adapters.find(job.adapter)
        prompt = self._prompter.prompt(job)
        constraint, left = self._constraints.constraint(job, prompt)
        seen = self._seen(job, prompt, waits)
        job = replace(job, messages=None)  # whose pictures are in base64
        room = self.context - len(prompt.ids)
        begin = Begin(
            context=self.context,
            prompt_ids=tuple(prompt.ids),
            sampling=params,
            max_tokens=room if job.max_tokens is None else min(job.max_tokens, room),
            dropped_messages=prompt.dropped,
            warnings=(*prompt.warnings, *left),
            weights=self._weights,
        )
        prompt = replace(prompt, pictures=None)
        return LocalJob(engine, self._tokenizer, job, prompt, begin, constraint, adapter, seen)

    def _seen(self, job: Job, prompt: Prompt, waits: bool) -> SeenLater | None:
        """Begin to compute the pictures of a prompt."""
        eyes, placed = self._eyes, prompt.pictures
        if eyes is None or placed is None:
            return None
        if job.prompt_logprobs is not None:
            kinds = " and a ".join(sorted(placed.senses))
            raise UsageError(
                f"prompt_logprobs are only for text, but the chat has a {kinds}", "leave them out"
            )
        seeing = eyes.begin(placed, job.client or job.tenant, job.tenant, bool(job.resume))
        if waits:
            seeing.wait()
        return SeenLater(seeing, partial(eyes.shown, placed.bare, seeing))

    def tokenize(self, text: str, special: bool = False, *, bos: bool | None = None) -> list[int]:
        """Turn text into token ids. `special`: parse control tokens in the text; do not use it for text from users.

        `bos`: whether to start with the model's beginning-of-sequence token, if it has one; None: as the model does for
        prompts. Raises UsageError for lone surrogates.
        """
        self._check_open()
        if not isinstance(text, str):
            raise UsageError(f"text is a {type(text).__name__}; expected a str")
        return self._tokenizer.encode(text, special=special, bos=bos)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Turn token ids into text; control tokens are left out."""
        self._check_open()
        return self._tokenizer.decode(self._prompter.known(ids))

    def logits(self, ids: Sequence[int], adapter: str | None = None) -> F32:
        """Return the model's logits after each of `ids`: float32 [T, V]."""
        self._check_open()
        chosen = self.adapters.find(self.adapters.chosen(adapter))
        return scoring.logits(self._generating(), self._prompter.checked(ids), adapter=chosen)

    def score(self, ids: Sequence[int], adapter: str | None = None) -> F32:
        """Return the log-probability of each of `ids` but the first, given those before: float32 [T - 1]."""
        return self.score_many([ids], adapter)[0]

    def score_many(self, rows: Sequence[Sequence[int]], adapter: str | None = None) -> list[F32]:
        """Score each of `rows` as `score` does, in one batch; the scores are the same as for each row alone."""
        self._check_open()
        checked = [self._prompter.checked(ids) for ids in rows]
        chosen = self.adapters.find(self.adapters.chosen(adapter))
        return scoring.score_many(self._generating(), checked, adapter=chosen)

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise EngineClosed(f"{self.name} was loaded by another process", "load it again after fork")
        if self._closed:
            raise EngineClosed(f"{self.name} is closed", "load it again")


# --- the LoRA adapters of one loaded model, by name -------------------------------------------------
# Adding and removing is safe while answers are made: a request holds its adapter, and keeps it to its end.


class Adapters:
    """The adapters that `model+NAME` can name. `default`: for calls that name none ("": the model itself)."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._held: dict[str, Adapter] = {}
        self._lock = threading.Lock()  # one is loaded at a time
        self.default = ""

    def add(self, name: str, path: str | Path) -> None:
        """Load an adapter; it replaces one of the same name.

        Raises UsageError for an invalid name or one adapter too many, and what load_adapter raises.
        """
        check_adapter_name(name)
        with self._lock:
            if name not in self._held and len(self._held) >= MAX_ADAPTERS:
                raise UsageError(f"{self._model.name} has {MAX_ADAPTERS} adapters", "remove one first")
            self._held = {**self._held, name: load_adapter(path, self._model, name)}

    def remove(self, name: str) -> None:
        """Remove an adapter. Raises ModelNotFound."""
        with self._lock:
            self.find(name)
            self._held = {key: adapter for key, adapter in self._held.items() if key != name}

    def chosen(self, name: str | None) -> str:
        """Return the name, or the default for None."""
        return self.default if name is None else name

    def find(self, name: str) -> Adapter | None:
        """Return an adapter, None for the model itself. Raises ModelNotFound with the names there are."""
        if not name:
            return None
        held = self._held
        if name not in held:
            raise unknown_adapter(self._model.name, name, [*held])
        return held[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(adapter.nbytes for adapter in self._held.values())

    @property
    def infos(self) -> tuple[AdapterInfo, ...]:
        """What they are, by name."""
        return tuple(
            AdapterInfo(a.name, a.rank, a.modules, a.nbytes, a.digest) for _, a in sorted(self._held.items())
        )


# --- answers many jobs in shared steps --------------------------------------------------------------
# A batch to its end, or a stream of jobs with a bounded number in the engine.
# In a stream the next job enters as one ends, so that the batch stays full. Each answer is the one that its
# job gets alone.

DRIVE_S = 1.0  # how long to wait for a step that another thread computes before looking again


def all_together(engine: Engine, makers: Iterable[Callable[[], LocalJob]]) -> list[Completion]:
    """Prepare a batch and compute it to its end in this thread; an interrupt ends all of it."""
    batch = prepared(makers)
    chunks: list[list[Chunk]] = [[] for _ in batch]
    try:
        for job in batch:
            job.enter()
        while not all(job.done for job in batch):
            engine.drive(DRIVE_S)
            for got, job in zip(chunks, batch, strict=True):
                got.extend(chunk for _, chunk in job.take())
    finally:
        for job in batch:
            job.cancel()
    return [completion(got, each.seed) for got, each in zip(chunks, batch, strict=True)]


def prepared(makers: Iterable[Callable[[], LocalJob]]) -> list[LocalJob]:
    """Prepare the jobs of a batch. An error names the index of its prompt, and then none is answered."""
    return [_numbered(i, make) for i, make in enumerate(makers)]


def _numbered(index: int, make: Callable[[], LocalJob]) -> LocalJob:
    try:
        return make()
    except FreeholdError as e:
        e.message = f"prompt {index}: {e.message}"
        e.args = (e.message,)
        raise


def as_they_end(
    engine: Engine, prepare: Callable[[Job], LocalJob], jobs: Iterable[Job], at_once: int
) -> Iterator[tuple[int, Completion | ContextOverflow]]:
    """Yield (number of the job, its answer) in the order in which they end; closing the iterator ends all.

    A job that the context cannot hold yields its error, and the others continue. Raises what else a job raises.
    """
    waiting = enumerate(jobs)
    running: dict[int, tuple[LocalJob, list[Chunk]]] = {}
    try:
        while True:
            while len(running) < at_once and (entry := next(waiting, None)) is not None:
                number, submitted = entry
                try:
                    job = prepare(submitted)
                except ContextOverflow as e:
                    yield number, e
                    continue
                running[number] = job, []
                job.enter()
            if not running:
                return
            engine.drive(DRIVE_S)
            for number, (job, chunks) in [*running.items()]:
                chunks.extend(chunk for _, chunk in job.take())
                if job.done:
                    del running[number]
                    yield number, completion(chunks, job.seed)
    finally:
        for job, _ in running.values():
            job.cancel()
