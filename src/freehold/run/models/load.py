"""Bound tensors in, loaded model out: packs the weights for the kernels and traces the forward pass.

Knows panels, memory and what a token reads of the weights; knows no format's names and no architecture.

How a folder of sentence-transformers files makes one vector of a text's activations, modules.json and the pooling
module's config.json say. What is not computed is refused: a further layer after the pooling would change every vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from freehold import _native as native
from freehold.base.errors import BadModelFile, CapacityExceeded, UnsupportedModel
from freehold.base.layers import LayerSpec, pages_of
from freehold.base.machine import available_bytes, default_threads, show_bytes
from freehold.run.formats import ModelFile, open_model_file
from freehold.run.models.binding.bind import Source, assemble, assemble_head, read_source
from freehold.run.models.binding.binder import LEFT_OUT
from freehold.run.models.config.rope import RopeTable
from freehold.run.models.family import Family, Network, NetworkWeights
from freehold.run.models.packing.packer import (
    Packer,
    Progress,
    Rounding,
    forecast,
    packed_sizes,
    rounded_types,
)
from freehold.run.models.packing.packs import Pack


@dataclass(frozen=True, slots=True)
class DraftingHead:
    """A model's own head that drafts (parts/drafting.py), with its weights and its target's ends."""

    network: Network
    weights: NetworkWeights
    bytes_per_token: int  # of packed weights that one drafted token reads, the output matrix among them

    @property
    def layer(self) -> LayerSpec:
        """What its one layer keeps of a sequence."""
        return self.network.layers[0].keeps

    def new_cache(self, blocks: int, kv_type: str = "f16") -> native.KvCache:
        """Allocate pages for its layer."""
        return native.KvCache([self.layer.page], blocks, kv_type)

    def build(self, cache: native.KvCache, max_rows: int, threads: native.Threads) -> native.Plan:
        """Trace its forward pass: a step has tokens, and the target's rows as features."""
        plan = native.Plan(threads, cache, max_rows)
        self.network.forward(plan, self.weights.at(cache.blocks * native.BLOCK_TOKENS))
        plan.finish()
        return plan


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights packed for the kernels, and all the engine needs to know about them. Immutable, shareable."""

    name: str
    path: Path
    family: Family
    cfg: Any
    network: Network
    weights: NetworkWeights
    threads: native.Threads = field(repr=False)  # the pool that packed it; the engine computes with it
    tokens: int  # selectable ids are 0 .. tokens - 1
    matrices: Mapping[str, native.Matrix] = field(repr=False)  # by tensor name: see packs.write_pack
    shares: Mapping[str, float]  # of each matrix that one token reads, by tensor name
    type_bytes: Mapping[str, int]  # file bytes by tensor type, the most first
    notes: tuple[str, ...] = ()
    gguf: bool = False  # names and the order of rows in its file are a GGUF's
    digest: str = ""  # distinguishes its file from others, as far as the caller knows one
    rope_side: str = ""  # which of longrope's factors it has, "short" or "long"; empty: it has no such choice
    drafter: DraftingHead | None = field(default=None, repr=False)  # its own drafting head
    pack: Pack | None = field(default=None, repr=False)  # the mapped file that has the matrices, if one does

    def check(self) -> None:
        """Raise DamagedPack unless what was computed up to now came from the weights as they were packed."""
        if self.pack is not None:
            self.pack.check()

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(m.nbytes for m in self.matrices.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of packed weights read to compute one token: chosen experts, and no embedding that is not the head."""
        return round(sum(m.nbytes * self.shares[name] for name, m in self.matrices.items()))

    @property
    def weights_per_token(self) -> int:
        """Weights multiplied to compute one token, counted alike."""
        return round(sum(m.rows * m.cols * self.shares[name] for name, m in self.matrices.items()))

    @property
    def architecture(self) -> str:
        """The family's name, as GGUF spells it."""
        return self.family.gguf_architecture

    @property
    def vocab(self) -> int:
        """Rows of logits; may exceed `tokens`."""
        return self.cfg.vocab

    @property
    def context(self) -> int:
        """Positions the model was trained or extended for."""
        return self.cfg.context

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """What each layer keeps of a sequence."""
        return tuple(layer.keeps for layer in self.network.layers)

    def at(self, context: int) -> LoadedModel:
        """Return the model for sequences of up to `context` tokens: longrope has other factors beyond its original.

        They are chosen once, by what sequences may become and not by what they are: else keys of both kinds would lie
        in one cache, and a prefix's bits would depend on the request that computed it.
        """
        choice = self.weights.choice
        if choice is None:
            return self
        side = "long" if context > choice.original else "short"
        return replace(self, weights=self.weights.at(context), rope_side=side)

    @property
    def rope_note(self) -> str:
        """What to add to a phrase about the context."""
        return f"; with the {self.rope_side} factors of its rope" if self.rope_side else ""

    def new_cache(
        self, blocks: int, kv_type: str = "f16", window_blocks: int = 0, slots: int = 0
    ) -> native.KvCache:
        """Allocate pages for all layers; with `window_blocks`, those with a window share a pool of this many.

        `slots`: how many states of recurrent layers there is memory for.
        """
        pages = pages_of(self.layers)
        indexes = len(pages) - len(self.layers)
        windows = [spec.window for spec in self.layers] + [0] * indexes
        states = [(spec.conv, spec.state) for spec in self.layers] + [(0, 0)] * indexes
        return native.KvCache(pages, blocks, kv_type, windows, window_blocks, states, slots)

    def build(
        self, cache: native.KvCache | None, max_rows: int, threads: native.Threads | None = None
    ) -> native.Plan:
        """Trace the forward pass into a plan for steps of at most `max_rows` rows; an encoder has no cache.

        A rope that a context chooses and `at` did not is that of as many tokens as the cache holds.
        """
        plan = native.Plan(threads or self.threads, cache, max_rows)
        held = cache.blocks * native.BLOCK_TOKENS if cache is not None else max_rows
        self.network.forward(plan, self.weights.at(held))
        plan.finish()
        return plan

    def build_prefix(
        self, cache: native.KvCache, max_rows: int, threads: native.Threads | None = None
    ) -> native.Plan | None:
        """Trace what is kept of rows that stand before a text, where the family has such rows."""
        if self.family.prefix is None:
            return None
        plan = native.Plan(threads or self.threads, cache, max_rows)
        self.family.prefix(self.cfg, plan, self.weights)
        plan.finish()
        return plan


def load_model(
    source: str | Path | ModelFile,
    *,
    threads: int | native.Threads | None = None,
    name: str = "",
    tokens: int | None = None,
    packed: Mapping[str, native.Matrix] | None = None,
    progress: Progress | None = None,
    digest: str = "",
    rounding: Rounding | None = None,
    paging: bool = False,
    head: bool | None = True,
) -> LoadedModel:
    """Load a GGUF file or a directory of safetensors, packing its weights into memory.

    `source` is a path or an open model file. `threads` None: as many as help. `name` is what errors and
    status lines call it (default: the file's own name). `tokens` is the tokenizer's size where the file
    does not say it (safetensors). `packed` holds matrices packed before, by tensor name (packs.open_pack),
    taken as they are. `digest`: the file's; without one nothing that depends on it is kept for another life.
    `rounding`: the size that float weights are rounded to, in `packed` too; None: as they are. `paging`: a `packed`
    that memory does not hold is read from disk as it is needed. `head`: whether to load the model's own drafting head;
    None: if its drafts promise to pay.
    Raises BadModelFile naming the tensor or key, UnsupportedModel, CapacityExceeded.
    """
    opening = closing(open_model_file(source)) if isinstance(source, str | Path) else nullcontext(source)
    with opening as opened:
        read = read_source(opened, tokens=tokens)
        pool = native.Threads(threads or default_threads()) if isinstance(threads, int | None) else threads
        rounded = rounded_types(read, rounding) if rounding else {}
        read = _with_head(read, rounded, head)
        packer = Packer(pool, read, rounded, packed or {}, progress)
        notes = _check_memory(read, opened, rounded, packed or {}, paging)
        weights = assemble(read, packer.matrix, native_rope)
        drafter = _drafting_head(read, weights, packer)
        opened.check_whole()
        type_bytes = Counter[str]()
        for tensor in read.matrices():
            type_bytes[tensor.type.name] += tensor.nbytes
    return LoadedModel(
        name=name or read.name,
        path=read.path,
        family=read.family,
        cfg=read.cfg,
        network=read.network,
        weights=weights,
        threads=pool,
        tokens=read.tokens,
        matrices=packer.matrices,
        shares=read.shares,
        type_bytes=dict(type_bytes.most_common()),
        notes=(*read.notes, *notes),
        gguf=read.gguf,
        digest=digest,
        drafter=drafter,
        pack=packed if isinstance(packed, Pack) else None,
    )


# What a drafting head must promise to be loaded, by bytes alone: later each step is priced by what it takes. A row more
# in a step costs its own experts, and EXTRA_ROW of everything else (two vCPUs, 0.8B: 1.13 times for two rows). Users
# report FIRST_RATE of first drafts accepted; the head chooses among an eighth of the ids.
LEAST_GAIN, EXTRA_ROW, FIRST_RATE, LEAST_SHARE = 1.05, 0.13, 0.8, 0.125


def head_gain(source: Source, rounded: Mapping[str, str]) -> float:
    """Return how many times as many tokens a second one draft a step by a source's head promises."""
    assert source.drafter is not None and source.head is not None
    sizes, shares = packed_sizes(source, rounded), source.shares
    read = {name: size * shares[name] for name, size in sizes.items()}
    own_experts = sum(size for name, size in read.items() if shares[name] < 1.0)
    step = max(sum(read.values()), 1.0)
    bound = (*source.drafter.ends.values(), *source.drafter.layer.values())
    own = sum(sizes[each.tensor.name] * each.spec.share for each in bound if each.is_matrix)
    drafting = own + LEAST_SHARE * sizes[source.head.name]
    verifying = own_experts + EXTRA_ROW * (step - own_experts)
    return (1.0 + FIRST_RATE) / (1.0 + (drafting + verifying) / step)


def _with_head(source: Source, rounded: Mapping[str, str], head: bool | None) -> Source:
    """Return the source without its drafting head where that is not wanted, cannot pay, or has no room in memory."""
    if source.drafter is None:
        return source
    if head is False:
        return replace(source, drafter=None)
    if head is None and (gain := head_gain(source, rounded)) < LEAST_GAIN:
        why = f"they promise {gain:.2f} times the speed; --draft head loads them"
        return replace(source, drafter=None, notes=(*source.notes, f"{LEFT_OUT}: {why}"))
    alone = replace(source, drafter=None, notes=(*source.notes, f"{LEFT_OUT}: they do not fit in memory"))
    have = available_bytes()
    with_head, without = (sum(packed_sizes(each, rounded).values()) for each in (source, alone))
    return alone if without <= have < with_head else source


def _drafting_head(source: Source, target: NetworkWeights, packer: Packer) -> DraftingHead | None:
    weights = assemble_head(source, target, packer.matrix, native_rope)
    if weights is None or source.drafter is None:
        return None
    bound = [
        b for group in (source.drafter.ends, source.drafter.layer) for b in group.values() if b.is_matrix
    ]
    own = sum(packer.matrices[b.tensor.name].nbytes * b.spec.share for b in bound)
    return DraftingHead(source.drafter.network, weights, round(own + weights.ends["head"].nbytes))


def native_rope(table: RopeTable) -> native.Rope:
    """Hand a table to the kernels."""
    return native.Rope(table.inv_freq, table.factor, table.adjacent, table.axes)


def _check_memory(
    source: Source,
    opened: ModelFile,
    rounded: Mapping[str, str],
    packed: Mapping[str, native.Matrix],
    paging: bool,
) -> tuple[str, ...]:
    """Return a note where weights will come from disk. Raises CapacityExceeded where they may not, or cannot."""
    need, have = sum(packed_sizes(source, rounded).values()), available_bytes()
    if need <= have:
        return ()
    expected = forecast(source, opened.paths, rounded, need, have)
    if paging and packed:
        return (f"runs from disk: {expected}",)
    hint = f"with --allow-paging it runs from disk, at {expected}"
    if paging:
        hint = (
            "it has no packed file to run from: give a folder for packs, and a file that did not just change"
        )
    raise CapacityExceeded(
        f"{source.name} needs {show_bytes(need)} of memory for its weights; {show_bytes(have)} are free",
        f"choose a smaller model or a smaller quantisation of this one; {hint}",
    )


# --- how a folder pools ----------------------------------------------------------------------------

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODULES = ("Transformer", "Pooling", "Normalize")


def pooling_from_dir(folder: Path, default: str) -> str:
    """Return "mean", "last" or "cls"; `default` where the folder says nothing. Raises UnsupportedModel."""
    from freehold.run.tokenizer.directory import read_json, read_json_list

    modules = read_json_list(folder / "modules.json")
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules if isinstance(m, dict)]
    strange = [kind for kind in kinds if kind not in _MODULES]
    if strange:
        raise UnsupportedModel(
            f"{folder.name} makes embeddings with a module of type {strange[0][:60]!r}",
            f"supported: {', '.join(_MODULES)}",
        )
    places = [str(m.get("path", "")) for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    if not places:
        return default
    path = folder / places[0]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadModelFile(
            f"modules.json of {folder.name} names a path outside its folder: {places[0][:60]!r}"
        )
    return _mode(read_json(path / "config.json"), default)


def _mode(config: dict[str, object], default: str) -> str:
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode")  # as newer files write it
    if isinstance(named, str):
        modes = [next((key for key, mode in _MODES.items() if mode == named), f"pooling_mode_{named}")]
    unknown = [key for key in modes if key not in _MODES]
    if unknown or len(modes) > 1:
        raise UnsupportedModel(
            f"the model pools by {', '.join(key[:60] for key in modes)}",
            f"supported: one of {', '.join(_MODES)}",
        )
    return _MODES[modes[0]] if modes else default
