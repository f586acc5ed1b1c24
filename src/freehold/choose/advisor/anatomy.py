"""Sizes of a model: bytes of weights in total and per token, and bytes that a conversation keeps.

`from_catalogue` works from published sizes and a quantisation's mix, and is as exact as they are;
`file_anatomy.from_file` reads a file's headers and is exact. Knows no machine and no engine: what an engine makes of
it (packs, caches in blocks, buffers) is fit.py's, and speed is not here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from freehold.base.catalog import quants
from freehold.base.catalog.model import Model, Stretch, Structure
from freehold.base.errors import UsageError
from freehold.base.layers import ATTENTION, STATE_WIDTH, LayerSpec, TowerNeed, kept_bytes, recurrent_bytes

# Models up to here use their embedding as head, as do all Gemmas; above, few do. Billions of parameters.
_TIED_BELOW = 4.5
# inputs for each head of latent attention: 56 of DeepSeek-V3, 112 of Kimi K2, 128 of V2-Lite
_LATENT_HEAD = 80
_TIED = ("Gemma", "Command", "SmolLM")
# llama.cpp does not round weights again that are in this type: every GGUF of gpt-oss has its experts as published.
_KEPT = "MXFP4"


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Weights of one role and one type."""

    # body | experts | embed | head | norms | towers (for images) | drafts (layers that guess ahead)
    role: str
    type: str  # a type's name, as catalog.quants has it
    weights: float
    bytes: float
    share: float = 1.0  # of them a token reads: of experts those it is sent to, of an embedding a row


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A model in one quantisation, in bytes. `exact`: read from a file's headers, not from published sizes."""

    name: str
    quant: str
    architecture: str
    parts: tuple[WeightGroup, ...]
    layers: tuple[LayerSpec, ...]
    context: int  # tokens it was made for; 0: not known
    # tokens that an indexer picks for attention: beyond, it reads these alone; 0: it always reads all
    index_topk: int = 0
    hidden: int = 0
    vocab: int = 0
    queries: int = 0  # query heads x their width, of a layer with attention; 0: not known
    kv_bytes: int = 0  # published cache bytes per token at 16 bits, where `layers` are not known
    role: str = "generator"  # as the catalogue has it; a file does not say
    exact: bool = False
    path: Path | None = None
    stretch: Stretch | None = None  # of the context, as its card tells; from_catalogue fills it
    tower: TowerNeed | None = None  # of pictures, where our engine reads them; choosing.py fills it

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as the file stores them."""
        return round(sum(p.bytes for p in self.parts))

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that one token alone reads."""
        return round(sum(p.bytes * p.share for p in self.parts))

    @property
    def weights(self) -> int:
        """Weights in all."""
        return round(sum(p.weights for p in self.parts))

    @property
    def token_weights(self) -> int:
        """Weights that one token is multiplied with."""
        return round(sum(p.weights * p.share for p in self.parts))

    @property
    def head_weights(self) -> int:
        """Weights of the head alone, which a prompt needs for its last token only."""
        return round(sum(p.weights for p in self.parts if p.role == "head"))

    @property
    def structure(self) -> Structure:
        """The architecture name by which an engine says whether it runs this model."""
        kinds = frozenset(g.kind for g in self.layers)
        return Structure(self.architecture, kinds, any(p.role == "experts" for p in self.parts), self.role)

    @property
    def make(self) -> str:
        """What costs beside dense matrices and keys: experts, states, latents, or several of them; else dense."""
        kinds = {g.kind for g in self.layers}
        features = (
            ("experts", any(p.role == "experts" for p in self.parts)),
            ("latents", "latent" in kinds),
            ("states", self.state_bytes > 0),
        )
        return " and ".join(name for name, has in features if has) or "dense"

    @property
    def depth(self) -> int:
        """Layers."""
        return sum(g.count for g in self.layers)

    @property
    def cache_known(self) -> bool:
        """Whether the cache's bytes rest on facts; without them they are 0."""
        return bool(self.layers or self.kv_bytes)

    def cache_bytes(self, tokens: int, width: float = 2) -> int:
        """Return the bytes of keys and values of one sequence of `tokens`; a window counts as a window."""
        return sum(self.cache_by_kind(tokens, width).values()) - self.state_bytes

    def cache_by_kind(self, tokens: int, width: float = 2, conv_width: int = STATE_WIDTH) -> dict[str, int]:
        """Return the same by kind of layer, with `state` for what recurrent layers keep (`state_of`)."""
        if not self.layers:
            return {"full": round(self.kv_bytes * tokens * width / 2)} if self.kv_bytes else {}
        cache: dict[str, int] = {}
        for group in self.layers:
            if kept := kept_bytes((group,), tokens, width):
                cache[group.kind] = cache.get(group.kind, 0) + kept
        state = self.state_of(conv_width)
        return cache | ({"state": state} if state else {})

    @property
    def state_bytes(self) -> int:
        """Bytes that recurrent layers keep of one sequence in our engine."""
        return recurrent_bytes(self.layers)

    def state_of(self, conv_width: int) -> int:
        """Return the same for an engine that keeps a convolution's inputs in `conv_width` bytes a value."""
        return recurrent_bytes(self.layers, conv_width)

    def attention_ops(self, tokens: int, most: int = 0) -> float:
        """Return the operations of attention over a prompt of `tokens`: each position looks at those before it.

        Two for each key and each value element; windows bound what is seen. 0 where the heads are not known.
        `most`: positions that latent attention looks at, where an indexer picks them; 0: all.
        """
        total = 0.0
        for group in self.layers:
            if group.kind not in ATTENTION:
                continue
            seen = group.tokens_kept(tokens) // group.stride
            if most and group.kind == "latent":
                seen = min(seen, most)
            pairs = seen * (seen + 1) / 2 + (tokens - seen) * seen
            total += group.count * pairs * 4 * self.queries
        return total


def from_catalogue(model: Model, quant: str) -> Anatomy:
    """Compute a model's sizes from published figures, in a quantisation that catalog.quants knows.

    A GGUF holds the text model alone; what servers load from the hub also has its towers and draft layers.
    As exact as the count of weights, which is a label's round number where no count is known; without the width of
    the embedding, it counts as a layer's. Raises UsageError for an unknown quantisation, and where the number
    of parameters is unknown.
    """
    mix = quants.mix(quant)
    if not _text_weights(model):
        raise UsageError(
            f"the number of parameters of {model.id} is not known",
            "freehold models refresh asks; or name its file",
        )
    roles = list(_published(model))
    if (beside := _beside(model)) and (mix.file_type < 0 or mix.name in ("BF16", model.native)):
        roles.append(("towers" if len(model.modalities) > 1 else "drafts", beside, 0.0))
    return Anatomy(
        name=model.name or model.id,
        quant=mix.name,
        architecture=model.architecture,
        parts=tuple(
            _mixed(roles, mix, model.hidden, _expert_width(model, roles), kept=model.native == _KEPT)
        ),
        layers=model.layers,
        context=model.context,
        stretch=model.stretch,
        index_topk=model.index_topk,
        hidden=model.hidden,
        vocab=model.vocab,
        queries=_queries(model),
        kv_bytes=model.kv_bytes,
        role=model.role,
    )


def _queries(model: Model) -> int:
    """Return how wide all query heads are: as the model, as most are; of latents, each as wide as a latent."""
    latent = max((g.latent + g.rope for g in model.layers), default=0)
    return round(model.hidden / _LATENT_HEAD) * latent if latent else model.hidden


def tied(model: Model) -> bool:
    """Say whether a model's head is its embedding; where no source says so, by size and family."""
    if model.tied is not None:
        return model.tied
    return model.params_b < _TIED_BELOW or model.family.startswith(_TIED)


def _text_weights(model: Model) -> float:
    return model.text_parameters or model.parameters or model.params_b * 1e9


def _beside(model: Model) -> float:
    """Return the weights of towers and draft layers; a second copy of a tied head is loaded once."""
    rest = model.parameters - model.text_parameters if model.text_parameters else 0
    copy = model.hidden * model.vocab if tied(model) else 0
    return max(rest - copy if 0 < copy <= rest < 1.01 * copy else rest, 0)


def in_quant(anatomy: Anatomy, quant: str) -> Anatomy:
    """Compute a file's model in another quantisation: its own matrices, the mix's types."""
    mix = quants.mix(quant)
    sums: dict[tuple[str, float], float] = {}
    for part in anatomy.parts:
        sums[part.role, part.share] = sums.get((part.role, part.share), 0.0) + part.weights
    kept = any(part.role == "experts" and part.type == _KEPT for part in anatomy.parts)
    roles = ((role, n, share) for (role, share), n in sums.items())
    parts = _mixed(roles, mix, anatomy.hidden, kept=kept)
    return replace(anatomy, quant=mix.name, parts=tuple(parts), exact=False, path=None)


def _published(model: Model) -> Iterable[tuple[str, float, float]]:
    """Yield role, weights and the share of them that a token reads, as far as they are published."""
    table = float(model.hidden * model.vocab)
    makes_text = model.role == "generator"
    one = tied(model) or not makes_text
    if table and makes_text:
        yield "head", table, 1.0
    if table and not (one and makes_text):
        yield "embed", table, 1 / model.vocab
    total = _text_weights(model)
    left = max(total - table * (1 if one else 2), 0.0)
    used = min(max(_active_weights(model, total) - (table if makes_text else 0.0), 0.0), left)
    if (
        model.kind == "dense"
    ):  # tables by token and layer, as Gemma's E models have: a token reads a row of each
        role, chosen = "embed", 1 / (model.vocab or 1e5)
    else:
        role, chosen = "experts", used / left if left else 1.0
        chosen = model.experts_per_token / model.experts if model.experts else chosen
    # a token reads the shared weights and `chosen` experts; what it does not read gives the size of the rest
    rest = min((left - used) / (1 - chosen), left) if used < left else 0.0
    if left > rest:
        yield "body", left - rest, 1.0
    if rest:
        yield role, rest, chosen


def _active_weights(model: Model, total: float) -> float:
    """Return the weights that a token is multiplied with; a dense model's are all, whatever its label rounds to."""
    if model.active_parameters:
        return float(model.active_parameters)
    whole = model.kind == "dense" and model.active_b >= model.params_b
    return total if whole or not model.active_b else model.active_b * 1e9


def expert_width(model: Model) -> int:
    """Return how wide a model's experts are; 0: it has none, or its counts of weights do not tell."""
    return _expert_width(model, list(_published(model))) if model.experts else 0


def _expert_width(model: Model, roles: Iterable[tuple[str, float, float]]) -> int:
    """Return how wide experts of three matrices in every layer are; 0 where the counts of weights give no whole number.

    Gemma 4 26B's are 704 wide, no multiple of a K type's block: its Q4_K_M holds a third of them in larger types.
    """
    each = 3 * model.hidden * model.experts * sum(g.count for g in model.layers)
    width = sum(n for role, n, _ in roles if role == "experts") / each if each else 0.0
    whole = round(width)
    return whole if whole and abs(width - whole) < 1e-4 * whole and whole % 32 == 0 else 0


def _mixed(
    roles: Iterable[tuple[str, float, float]],
    mix: quants.Mix,
    hidden: int,
    width: int = 0,
    *,
    kept: bool = False,
) -> Iterable[WeightGroup]:
    """Yield the parts of roles in a mix's types, experts `width` wide; norms and towers stay what they are.

    `kept`: the experts are published in MXFP4, which a GGUF of any mix keeps.
    """
    roles = list(roles)
    body = mix.body_of(hidden)
    moe = any(role == "experts" for role, _, _ in roles)
    whole = {"head": mix.head, "embed": mix.embed, "towers": "BF16"} | ({"body": mix.shared} if moe else {})
    experts = {_KEPT: 1.0} if kept and mix.file_type >= 0 else mix.body_of(hidden, width)
    types = {"norms": {"F32": 1.0}, "experts": experts} | {
        role: {mix.stored(kind, hidden): 1.0} for role, kind in whole.items() if kind
    }
    for role, weights, share in roles:
        for kind, part in types.get(role, body).items():
            yield WeightGroup(role, kind, weights * part, weights * part * quants.bits(kind) / 8, share)
