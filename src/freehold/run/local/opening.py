"""Open a model: from a name or file to an LLM.

Knows the store, model files, tokenizers and templates; knows no request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

from freehold import _native as native
from freehold.base.config import check_names, load_settings
from freehold.base.errors import (
    CapacityExceeded,
    ContextOverflow,
    ModelNotFound,
    UnsupportedModel,
    UsageError,
)
from freehold.base.machine import available_bytes, default_threads, show_bytes
from freehold.base.serving import POOL_CONTEXTS, EmbedJob, Job
from freehold.base.terminal import Ticking
from freehold.base.types import (
    EYES,
    OWN_DRAFTS,
    Embeddings,
    KvType,
    Message,
    ModelOptions,
    SamplingParams,
    ServedModelOptions,
    Turn,
    draft_source,
    image_budget,
)
from freehold.run.engine import Encoder, Engine
from freehold.run.engine.cache.blocks import blocks_for
from freehold.run.engine.cache.capacity import MIN_CONTEXT, CacheBytes, bytes_per_block
from freehold.run.engine.scoring import Pooling, checked_pooling
from freehold.run.formats import GGUFFile, ModelFile, open_model_file, quantization_of
from freehold.run.formats.filemap import file_facts, file_identity
from freehold.run.local.answering import LocalJob
from freehold.run.local.jobs import LoadOptions, check_chars, check_job, keywords, seeded
from freehold.run.local.llm import LLM
from freehold.run.local.runnable import check_architecture, check_fetch
from freehold.run.local.senses import Ears, Eyes, Sense, Senses
from freehold.run.models.binding.bind import read_source
from freehold.run.models.family import TEXT_ALONE
from freehold.run.models.load import LoadedModel, load_model, pooling_from_dir
from freehold.run.models.packing.packer import Packer, Progress, Rounding, packed_sizes, rounded_types
from freehold.run.models.packing.packs import (
    Pack,
    PackingTurn,
    drop_torn,
    open_pack,
    pack_path,
    stream_pack,
    turn_to_pack,
    write_pack,
)
from freehold.run.models.seeing import load_tower
from freehold.run.models.tower import TokenBudget
from freehold.run.store import ModelRef, Store
from freehold.run.store.eyes import check_answers
from freehold.run.store.overlays import overlaid
from freehold.run.store.parameters import sampling_defaults
from freehold.run.store.progress import watching
from freehold.run.tokenizer import ChatTemplate, Tokenizer, tokenizer_from_dir, tokenizer_from_gguf
from freehold.run.tokenizer.template import chat_template_from_dir, chat_template_from_gguf

# A loaded model as an engine process holds it: jobs in, chunks out, one thread that computes steps.
# A program that loads a model for itself has no use for it: that is LLM.
MAX_LISTED = 1 << 20  # ids of one reply: more would block the server's loop while it writes them out


class ServedModel(LLM):
    """An LLM whose requests come as jobs from callers that are not trusted, and whose steps `pump` computes."""

    def start(self, job: Job) -> LocalJob:
        """Check a job and prepare its answers; `enter` of the result queues them in the engine.

        Raises UsageError for a field beyond its limit (jobs.py names them), ContextOverflow, BadTemplate.
        """
        self._check_open()
        self._generating()
        check_job(job, self.context, self._tokenizer.longest)
        return self._prepared(job, seeded(job.sampling, self.default_sampling), waits=False)

    def pump(self, timeout: float) -> bool:
        """Compute one step for all running requests; without any, wait up to `timeout` seconds for one."""
        return self._engine.pump(timeout)

    def embed_job(self, job: EmbedJob) -> Embeddings:
        """Embed the texts of a request, in the steps that `pump` computes."""
        return self._embedded(job)

    def tokenize(self, text: str, special: bool = False, *, bos: bool | None = None) -> list[int]:
        """Return the ids of a text. Raises ContextOverflow for one that no context of this size holds."""
        self._check_chars("the text", len(text))
        return _listable(super().tokenize(text, special, bos=bos))

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of ids, of no more than the context holds."""
        if len(ids) > self.context:
            raise ContextOverflow(
                f"there are {len(ids):,} token ids; the context holds {self.context:,}", "split them"
            )
        return super().detokenize(ids)

    def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of each id; control tokens as they are spelled."""
        self._check_open()
        return [self._tokenizer.token_bytes(id, special=True) for id in ids]

    def render(self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new") -> list[int]:
        """Return the ids of a chat. Raises ContextOverflow for one that no context of this size holds."""
        self._check_chars("the chat", sum(len(m.content) + len(m.thinking) for m in messages))
        return _listable(super().render(messages, think, turn))

    def _check_chars(self, what: str, chars: int) -> None:
        check_chars(what, chars, self.context, self._tokenizer.longest)

    def count(self, job: Job) -> int:
        """Return the number of tokens in a job's prompt, also where it exceeds the context."""
        self._check_open()
        check_job(job, self.context, self._tokenizer.longest, counted=True)
        return self._prompter.count(job if self._overlay is None else overlaid(job, self._overlay))

    def template(self) -> dict[str, Any]:
        """Describe the tokenizer: vocabulary size, begin and end tokens, and the source of the chat template."""
        tokenizer = self._tokenizer
        named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        spelled = {k: None if id is None else tokenizer.token_text(id) for k, id in named.items()}
        source = self._prompter.template.source if self._prompter.can_chat else None
        return {
            "chat_template": source,
            **spelled,
            "eos_token_ids": sorted(tokenizer.eos_ids),
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": self.context,
        }


def _listable(ids: list[int]) -> list[int]:
    if len(ids) > MAX_LISTED:
        raise UsageError(f"the text has {len(ids):,} tokens; the limit is {MAX_LISTED:,}", "split the text")
    return ids


# Requests that may wait, and prompts that may: what fills the cache four times over would wait for minutes.
QUEUED, QUEUED_POOLS = 512, 4


def _held(store: Store, name: str) -> ModelRef:
    """Find a model without any network. Raises ModelNotFound, which says how Python fetches it."""
    try:
        return store.resolve(name)
    except ModelNotFound as e:
        if e.hint.startswith("freehold pull "):
            hint = f"freehold.load({name!r}, pull=True) fetches it; in a shell, {e.hint}"
        elif e.hint.startswith("did you mean"):
            hint = f"{e.hint} pull=True fetches a model that is not here"
        else:
            raise
        raise ModelNotFound(e.message, hint) from None


@keywords(LoadOptions)
def load(model: str | Path, **options: Unpack[LoadOptions]) -> LLM:
    """Load a model by name, hub reference, GGUF file or folder of safetensors; use the result in a `with`.

    `context`: in tokens; default: the model's own, or as much as fits in half of the free memory. `threads`: default:
    the physical cores that this process may use. `kv_type`: "f16"; "q8" for int8 in half the memory; "f32" for twice
    the memory, without rounding. `speculate`: verify drafted tokens where that is faster; answers do not change.
    `draft`: a smaller model with the same vocabulary that drafts too. `eyes`: when to load the vision encoder: "lazy",
    with the first picture; "eager", with the model; "off", never; or the path of its mmproj file. `image_tokens`:
    minimum and maximum tokens per picture. `allow_paging`: run a model that does not fit in memory from its packed
    file, at the disk's speed. `adapters`: LoRA adapters (PEFT folders or GGUF files) by name. `pull`: download a model
    that is not installed; otherwise the network is never used. `progress`: as for `freehold.pull`.
    Raises ModelNotFound, BadModelFile, CapacityExceeded, UsageError.
    """
    check_names(options, tuple(LoadOptions.__annotations__))
    settings = load_settings()
    store, draft = Store(settings), options.pop("draft", None)
    if draft is None or str(draft) in OWN_DRAFTS:
        draft, options["head"] = draft_source(None if draft is None else str(draft))
    options.setdefault("eyes", settings.eyes)
    if settings.image_tokens:
        options.setdefault("image_tokens", image_budget(settings.image_tokens))
    pull, progress = options.pop("pull", False), options.pop("progress", None)
    for each in (model, draft) if pull else ():
        if each is not None:
            check_fetch(store, str(each), speech=False)
    with watching(progress) as on_event:
        locate = partial(store.pull, on_event=on_event) if pull else partial(_held, store)
        ref, drafter = locate(str(model)), None if draft is None else locate(str(draft))
    opening = open_model if progress is False or callable(progress) else open_shown
    return opening(ref, draft=drafter, packs=store.packs, **cast(ModelOptions, options))


def open_shown(
    ref: ModelRef,
    *,
    draft: ModelRef | None = None,
    packs: Path | None = None,
    kind: type[LLM] = LLM,
    **options: Unpack[ServedModelOptions],
) -> LLM:
    """Load as open_model does; a terminal sees how far it is, and later what `close` waits for."""
    with Ticking(f"loading {ref.name}") as line:
        preparing = f"preparing the weights of {ref.name}"
        share: Progress = lambda done, total: line.show(f"{preparing}: {done / max(total, 1):.0%}")  # noqa: E731
        llm = open_model(ref, draft=draft, packs=packs, progress=share, kind=kind, **options)
    llm.shown = True
    return llm


def open_model(
    ref: ModelRef,
    *,
    draft: ModelRef | None = None,
    packs: Path | None = None,
    progress: Progress | None = None,
    kind: type[LLM] = LLM,
    **options: Unpack[ServedModelOptions],
) -> LLM:
    """Load what the store found; packed weights are mapped from the folder `packs`, or written there.

    `kind`: the class to make. Raises UsageError and CapacityExceeded, and what reading the files raises.
    """
    started = time.perf_counter()
    threads, adapters = options.pop("threads", None), options.pop("adapters", None) or {}
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; expected 1 or more")
    if draft is not None and not options.get("speculate", True):
        raise UsageError(f"{draft.name} is to draft, but speculation is off", "leave out one of the two")
    head = options.get("head") if draft is None and options.get("speculate", True) else False
    opened = _opened(ref, threads, packs, progress, options.pop("allow_paging", False), head)
    drafter = None if draft is None else _drafter(draft, opened, packs, progress)
    loaded = opened.model
    eyes, blind = _senses(ref, opened, options)
    notes = [note for note in loaded.notes if eyes is None or note != TEXT_ALONE]
    draft_model = drafter.model if drafter else None
    tokenizer, template = opened.tokenizer, opened.template
    if eyes is not None:
        tokenizer, template = eyes.tokenizer, None if template is None else eyes.guarding(template)
    llm = kind(
        _engine(loaded, draft_model, options, 0 if eyes is None else eyes.span_rows),
        tokenizer,
        template,
        name=ref.name,
        quantization=opened.quantization,
        default_sampling=opened.sampling,
        weight_bytes=sum(sum(m.type_bytes.values()) for m in (loaded, draft_model) if m is not None)
        + (eyes.nbytes if eyes is not None else 0),
        load_s=time.perf_counter() - started,
        notes=(*ref.notes, *notes, *blind, *_template_notes(opened.template)),
        overlay=ref.overlay,
        weights=opened.weights,
        pooling=opened.pooling,
        eyes=eyes,
    )
    try:
        for name, path in adapters.items():
            llm.add_adapter(name, path)
        if ref.overlay is not None and ref.overlay.adapter:
            llm.add_adapter(ref.overlay.adapter_name, ref.overlay.adapter)
    except BaseException:
        llm.close()
        raise
    writes = [each.write for each in (opened, drafter) if each is not None and each.write is not None]
    if writes:
        llm._keep_packed(lambda: [write() for write in writes])
    return llm


def open_served(
    ref: ModelRef,
    *,
    draft: ModelRef | None = None,
    packs: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ServedModelOptions],
) -> ServedModel:
    """Load a model for an engine process; see open_model."""
    model_opened = open_model(ref, draft=draft, packs=packs, progress=progress, kind=ServedModel, **options)
    return cast(ServedModel, model_opened)


def _senses(
    ref: ModelRef, opened: _Opened, options: ServedModelOptions
) -> tuple[Senses | None, tuple[str, ...]]:
    """Take the towers that `options` name, or that a model's folder holds, or the file beside a GGUF.

    Notes say which of the model's own do not run here. Raises UnsupportedModel for a file that was named, UsageError
    for one that is not there, and for a budget of tokens that the tower does not take.
    """
    chosen, budget = str(options.pop("eyes", EYES[0])), options.pop("image_tokens", None)
    source = ref.path if ref.eyes is None and ref.path.is_dir() else ref.eyes
    named = chosen not in EYES
    if named:
        source = Path(chosen).expanduser()
        if not source.exists():
            hint = f"give {', '.join(EYES)} or the path of an mmproj file"
            raise UsageError(f"eyes is {chosen!r}: there is no such file", hint)
    if source is None or chosen == "off" or opened.model.family.encoder:
        return None, ()
    senses: list[Sense] = []
    notes: list[str] = []
    for kind in (Eyes, Ears):
        try:
            tower = load_tower(source, opened.model, lazy=chosen == "lazy", hears=kind is Ears)
            if tower is None:
                continue
            tokenizer, disk = senses[-1].tokenizer if senses else opened.tokenizer, options.get("disk")
            if kind is Ears:
                senses.append(Ears(tower, tokenizer, disk))
                continue
            both = opened.model.family.both(opened.model.cfg)
            within = None if budget is None else TokenBudget(*budget)
            senses.append(Eyes(tower, tokenizer, both, within, disk))
        except UnsupportedModel as e:
            if named:
                raise
            notes.append(f"it cannot {'process audio' if kind is Ears else 'read pictures'}: {e.message}")
    if not senses:
        if named and not notes:
            raise UnsupportedModel(f"{source.name} has no vision encoder", "name an mmproj file")
        return None, tuple(notes)
    joined = Senses(*senses)
    return joined, (*notes, *joined.notes(opened.template))


def _engine(
    model: LoadedModel, draft: LoadedModel | None, options: ServedModelOptions, span_rows: int
) -> Engine | Encoder:
    """Make a model's engine; with `cache_bytes` its cache has that size, and its queue a limit."""
    if model.family.encoder:
        return Encoder(model, context=options.get("context"))
    cache_bytes = options.pop("cache_bytes", None)
    settings: dict[str, Any] = {**options}
    if cache_bytes is not None:
        kv_type = options.get("kv_type", "f16")
        settings["context"], blocks = _pool(model, draft, options.get("context"), kv_type, cache_bytes)
        queued = {"max_queued": QUEUED, "max_queued_tokens": QUEUED_POOLS * blocks * native.BLOCK_TOKENS}
        settings = {"blocks": blocks, **queued, **settings}
    return Engine(model, draft=draft, span_rows=span_rows, **settings)


def _pool(
    model: LoadedModel, draft: LoadedModel | None, context: int | None, kv_type: KvType, cache_bytes: int
) -> tuple[int, int]:
    """Return the context and the cache's blocks that `cache_bytes` hold. Raises CapacityExceeded."""
    also = 0 if draft is None else bytes_per_block(draft, kv_type)
    if draft is None and model.drafter is not None:
        also = model.drafter.new_cache(1, kv_type).bytes_per_block
    bytes_ = CacheBytes.of(model, kv_type, also=also)
    most = bytes_.blocks(cache_bytes)
    chosen = context or min(model.context, most * native.BLOCK_TOKENS)
    need = blocks_for(max(chosen, 1))
    if need > most or chosen < min(MIN_CONTEXT, model.context):
        raise CapacityExceeded(
            f"a context of {context or MIN_CONTEXT:,} tokens takes {show_bytes(bytes_.total(max(need, 1)))}; "
            f"{show_bytes(cache_bytes)} are free for the cache of {model.name}",
            "free memory, unload another model, or name a smaller --context",
        )
    return chosen, min(most, POOL_CONTEXTS * need)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model file with its tokenizer and template."""

    model: LoadedModel
    tokenizer: Tokenizer
    template: ChatTemplate | None
    quantization: str
    sampling: SamplingParams
    pooling: Pooling
    weights: str  # names its files: ModelInfo.weights
    write: (
        Callable[[], None] | None
    )  # keeps the packed weights for the next load; None: they are there already


def _opened(
    ref: ModelRef,
    threads: int | native.Threads | None,
    packs: Path | None,
    progress: Progress | None,
    paging: bool = False,
    head: bool | None = False,
) -> _Opened:
    now = time.time()
    check_answers(ref)
    with closing(open_model_file(ref.path)) as opened:
        check_architecture(opened)  # before its tokenizer, which may be as new as it
        weights = ref.digest or file_facts(opened.paths)
        digest = ref.digest or file_identity(opened.paths, now)
        digest = f"{digest}-{ref.rounding}" if digest and ref.rounding else digest
        pack = pack_path(packs, digest) if packs and digest else None
        if packs:
            drop_torn(packs)
        mapped = open_pack(pack, digest, paging) if pack else None
        turn = turn_to_pack(opened.paths[0]) if pack is not None and mapped is None else None
        if turn is not None and pack is not None:
            mapped = open_pack(pack, digest, paging)  # another process wrote it meanwhile
        tokenizer, template = text_side(opened, ref.path)
        if ref.overlay is not None and ref.overlay.template:
            origin = f"the owner's, of {ref.overlay.name}"
            template = ChatTemplate.for_tokenizer(ref.overlay.template, tokenizer, origin=origin)
        if template is not None:
            template.prepare()
        rounding = cast(Rounding, ref.rounding) if ref.rounding else None
        if paging and pack is not None and mapped is None:
            mapped = _streamed(opened, tokenizer.vocab_size, pack, digest, rounding, threads, progress)
        defaults: dict[str, Any] = {name: value for name, (value, _) in sampling_defaults(opened).items()}
        loaded = load_model(
            opened,
            threads=threads,
            name=ref.name,
            tokens=tokenizer.vocab_size,
            packed=mapped,
            progress=progress,
            digest=digest,
            rounding=rounding,
            paging=paging,
            head=head,
        )
        quantization = ref.rounding or quantization_of(opened, loaded.type_bytes)
    if loaded.family.encoder:
        template = None
    default = "mean" if loaded.family.encoder else "last"
    pooling = checked_pooling(default if ref.path.is_file() else pooling_from_dir(ref.path, default))
    write = None
    if pack is not None and mapped is None:
        write = partial(_write, turn, pack, digest, loaded.matrices)
    elif turn is not None:
        turn.end()
    defaulted = SamplingParams(**defaults)
    return _Opened(loaded, tokenizer, template, quantization, defaulted, pooling, weights, write)


def _write(turn: PackingTurn | None, pack: Path, digest: str, matrices: Mapping[str, native.Matrix]) -> None:
    try:
        write_pack(pack, digest, matrices)
    finally:
        if turn is not None:
            turn.end()


def _streamed(
    opened: ModelFile,
    tokens: int,
    pack: Path,
    digest: str,
    rounding: Rounding | None,
    threads: int | native.Threads | None,
    progress: Progress | None,
) -> Pack | None:
    """Write the pack of a model that memory does not hold and map it; None for one that memory holds."""
    source = read_source(opened, tokens=tokens)
    rounded = rounded_types(source, rounding) if rounding else {}
    sizes = packed_sizes(source, rounded)
    if sum(sizes.values()) <= available_bytes():
        return None
    pool = threads if isinstance(threads, native.Threads) else native.Threads(threads or default_threads())
    stream_pack(pack, digest, sizes, Packer(pool, source, rounded, {}, progress).each())
    return open_pack(pack, digest, paged=True)


def _drafter(ref: ModelRef, target: _Opened, packs: Path | None, progress: Progress | None) -> _Opened:
    """Load a draft model on the target's threads; refuse one with another vocabulary."""
    opened = _opened(ref, target.model.threads, packs, progress)
    wrong = target.tokenizer.first_difference(opened.tokenizer)
    if wrong is not None:
        raise UsageError(
            f"{ref.name} cannot draft for {target.model.name}: token {wrong} differs",
            "a draft model needs the very same tokens: choose a smaller model of the family",
        )
    return opened


def text_side(opened: ModelFile, path: Path) -> tuple[Tokenizer, ChatTemplate | None]:
    if isinstance(opened, GGUFFile):
        tokenizer = tokenizer_from_gguf(opened.metadata)
        make_template = lambda: chat_template_from_gguf(opened.metadata, tokenizer)  # noqa: E731
    else:
        tokenizer = tokenizer_from_dir(path)
        make_template = lambda: chat_template_from_dir(path, tokenizer)  # noqa: E731
    try:
        return tokenizer, make_template()
    except UnsupportedModel:  # a base model: it completes text, and a chat is refused
        return tokenizer, None


def _template_notes(template: ChatTemplate | None) -> tuple[str, ...]:
    """Return a note where the chat template is not the file's own: such a model was hardly trained to chat."""
    if template is None or not template.is_fallback:
        return ()
    return (f"chat template: {template.origin}; a base model continues text, see --raw",)
