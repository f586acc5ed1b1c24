"""Gemma 4, text: E2B and E4B with embeddings of each layer, 12B, 31B, and 26B-A4B with experts beside the MLP.

Sliding layers have heads of one width and full ones of another; the full ones turn a quarter of their pairs, and in the
large models have no values of their own. In the small ones the last layers read the keys and values of the last layer
of their kind that has some. Norms are plain in both file formats. Rows of a picture see each other in the sliding
layers of the large models, within the window; in the small ones they read the row of the padding token for each layer.
Source: Google's Gemma 4 files, and transformers' Gemma4TextModel, read 2026-11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.rope import RopeSpec, hf_rope_section
from freehold.run.models.config.sizes import (
    Mixture,
    Sizes,
    check_heads,
    checked_sizes,
    gguf_sizes,
    gguf_windows,
    hf_sizes,
    sliding_windows,
)
from freehold.run.models.families.gemma import check_gemma
from freehold.run.models.family import Buffer, Family, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts import NO_NORM, DecoderEnds, GatedMlp, Read
from freehold.run.models.parts.moe import Moe, MoeNames, fused

# --- parts: keys and values of another layer, inputs of a layer, experts beside an MLP --------------
#     attention    q = norm(q n), k = norm(k n), v = unit(v n); scores are not scaled; where K = V, v = unit(k n)
#     inputs       x += norm(up(gelu(gate x) * e_i)),  e = (norm(P x_0 / sqrt(hidden)) + E[token] sqrt(width)) / sqrt(2)
#     experts      x += norm(norm(mlp(norm x)) + norm(experts(norm x))), routed by unit(x) * s / sqrt(hidden)
# unit is an RMS norm without a weight. A layer's factor multiplies x after all of them.


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingAttention(LayerPart):
    """One layer's attention, over keys and values of its own or of an earlier layer."""

    kinds = frozenset({"full", "window", "plain"})

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope: RopeSpec | None
    window: int
    source: int | None  # the layer whose keys and values it reads; None: its own
    twin: bool  # whether values are keys before their norm
    both: bool = False  # rows of a picture see each other

    @classmethod
    def of(
        cls, cfg: SharingSizes, layer: int, head_dim: int, twin: bool = False, both: bool = False
    ) -> SharingAttention:
        """Take the sizes of a layer out of a config."""
        return cls(
            hidden=cfg.hidden,
            heads=cfg.heads[layer],
            kv_heads=cfg.kv_heads[layer],
            head_dim=head_dim,
            eps=cfg.eps,
            rope=cfg.rope_local if cfg.windows[layer] else cfg.rope,
            window=cfg.windows[layer],
            source=source(cfg, layer) if layer >= cfg.layers - cfg.shared else None,
            twin=twin,
            both=both,
        )

    @property
    def keeps(self) -> LayerSpec | None:
        """Nothing, where another layer keeps it."""
        if self.source is not None:
            return None
        kind = "window" if self.window else "full"
        return LayerSpec(kind, 1, self.kv_heads, self.head_dim, window=self.window)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections and norms of what the layer computes itself."""
        q, kv, hidden = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden
        specs = {
            "attn_norm": vector("attn_norm.weight", "input_layernorm.weight", hidden),
            "q": matrix("attn_q.weight", "self_attn.q_proj.weight", q, hidden),
            "q_norm": vector("attn_q_norm.weight", "self_attn.q_norm.weight", self.head_dim),
            "o": matrix("attn_output.weight", "self_attn.o_proj.weight", hidden, q),
            "attn_post_norm": vector("post_attention_norm.weight", "post_attention_layernorm.weight", hidden),
        }
        if self.source is None:
            specs["k"] = matrix("attn_k.weight", "self_attn.k_proj.weight", kv, hidden)
            specs["k_norm"] = vector("attn_k_norm.weight", "self_attn.k_norm.weight", self.head_dim)
            if not self.twin:
                specs["v"] = matrix("attn_v.weight", "self_attn.v_proj.weight", kv, hidden)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, cache write or not, attention, output, norm and residual."""
        self.add(ops, layer, (x, w["attn_norm"]), x, w)

    def add(self, ops: Ops, layer: int, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm: a side path may read the same rows."""
        q = self._store(ops, layer, read, w) if self.source is None else self._query(ops, read, w)
        a = ops.attention(layer if self.source is None else self.source, q, 1.0, self.window, both=self.both)
        (a,) = ops.linear(a, (w["o"],), (None,))
        ops.add_norm(x, a, w["attn_post_norm"], self.eps)

    def _store(self, ops: Ops, layer: int, read: Read, w: Values) -> Buffer:
        names = ("q", "k") if self.twin else ("q", "k", "v")
        rows, norm = read
        q, k, *v = ops.linear(rows, tuple(w[n] for n in names), (None,) * len(names), norm, self.eps)
        values = ops.norm(v[0] if v else k, np.ones(self.head_dim, np.float32), self.eps)
        ops.rope_store(layer, q, k, values, w["rope"], w["q_norm"], w["k_norm"], self.eps)
        return q

    def _query(self, ops: Ops, read: Read, w: Values) -> Buffer:
        rows, norm = read
        (q,) = ops.linear(rows, (w["q"],), (None,), norm, self.eps)
        q = ops.norm(q, w["q_norm"], self.eps)
        ops.rotate(q, w["rope"], self.head_dim)
        return q


def input_tensors(hidden: int, width: int) -> dict[str, TensorSpec]:
    """Declare what a layer makes of its embedding, `width` wide: two projections and a norm."""
    return {
        "input_gate": matrix("inp_gate.weight", "per_layer_input_gate.weight", width, hidden),
        "input_up": matrix("proj.weight", "per_layer_projection.weight", hidden, width),
        "input_norm": vector("post_norm.weight", "post_per_layer_input_norm.weight", hidden),
    }


def layer_input(ops: Ops, layer: int, x: Buffer, w: Values, width: int) -> Buffer:
    """Compose gate, product and projection of a layer's embedding; the norm follows it."""
    h = ops.linear_act(x, w["input_gate"], "gelu")
    ops.multiply(h, w["inputs"], layer * width)
    (h,) = ops.linear(h, (w["input_up"],), (None,))
    return h


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInput(LayerPart):
    """What a layer adds of its own embedding of the token, and the factor on all it gives."""

    hidden: int
    width: int  # of the embedding; 0: it has none
    eps: float

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two projections and a norm, and the factor."""
        specs = {"factor": vector("layer_output_scale.weight", "layer_scalar", 1)}
        return specs | (input_tensors(self.hidden, self.width) if self.width else {})

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose gate, product, projection, norm, residual and factor."""
        if self.width:
            h = layer_input(ops, layer, x, w, self.width)
            ops.add_norm(x, h, w["input_norm"], self.eps)
        ops.scale(x, float(w["factor"][0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputEnds(DecoderEnds):
    """A decoder's ends with an embedding of each token for each layer."""

    layers: int
    width: int  # of a layer's embedding; 0: there are none
    rows: int = 0  # of their table; 0: as many as tokens. Tokens beyond it read its first row
    pad: int = 0  # the token whose row of the table rows of pictures read

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the table of all layers' embeddings, of which a token reads a row, and what joins it."""
        specs = DecoderEnds.tensors(self)
        if not self.width:
            return specs
        wide = self.layers * self.width
        names = "per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight"
        project = "per_layer_model_proj.weight", "model.per_layer_model_projection.weight"
        norm = "per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight"
        return specs | {
            "inputs_embed": matrix(*names, self.rows or self.vocab, wide, share=0.0),
            "inputs_project": matrix(*project, wide, self.hidden),
            "inputs_norm": vector(*norm, self.width),
        }

    def beside(self, ops: Ops, x: Buffer, w: Values) -> Mapping[str, Buffer]:
        """Return all layers' embeddings of the tokens."""
        if not self.width:
            return {}
        rows = 0 if self.rows else -1
        tokens = ops.embed(w["inputs_embed"], self.width**0.5, rows, self.pad)
        (own,) = ops.linear(x, (w["inputs_project"],), (None,))
        ops.scale(own, self.hidden**-0.5)
        own = ops.norm(own, w["inputs_norm"], self.eps)
        ops.add(own, tokens)
        ops.scale(own, 0.5**0.5)
        return {"inputs": own}


NAMES = MoeNames(router="router.proj.weight", experts=fused("experts.gate_up_proj", "experts.down_proj"))
_PREFIX = "expert_"  # of the experts' keys, as the MLP has a gate, an up and a down too


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsBeside(LayerPart):
    """An MLP and experts that read x through norms of their own and are added before a last one."""

    experts = True

    mlp: GatedMlp
    mixture: Mixture

    @property
    def _moe(self) -> Moe:
        m = self.mlp
        return Moe(hidden=m.hidden, mixture=self.mixture, eps=m.eps, act=m.act, norm=NO_NORM, names=NAMES)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both, the norms around them, and the router's two scales."""
        hidden, experts = self.mlp.hidden, self.mixture.experts
        norms = {
            "mlp_norm": ("post_ffw_norm_1.weight", "post_feedforward_layernorm_1.weight"),
            "experts_norm": ("post_ffw_norm_2.weight", "post_feedforward_layernorm_2.weight"),
            "experts_before": ("pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight"),
            "router_scale": ("ffn_gate_inp.scale", "router.scale"),
        }
        specs = {key: vector(gguf, hf, hidden) for key, (gguf, hf) in norms.items()}
        specs["expert_scale"] = vector("ffn_down_exps.scale", "router.per_expert_scale", experts)
        own = {f"{_PREFIX}{key}": spec for key, spec in self._moe.tensors().items()}
        return self.mlp.tensors() | specs | own

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose the MLP, router and experts, their norms, sum and residual; both see x as it was before."""
        mlp, eps = self.mlp, self.mlp.eps
        h = ops.gated(x, w["gate"], w["up"], mlp.act, w["ffn_norm"], eps)
        (h,) = ops.linear(h, (w["down"],), (None,))
        both = ops.norm(h, w["mlp_norm"], eps)
        scale = np.asarray(w["router_scale"] * np.float32(mlp.hidden**-0.5), np.float32)
        options = {"norm": scale, "eps": eps, "renormalise": True}
        routes = ops.route(x, w[f"{_PREFIX}router"], self.mixture.chosen, **options)
        ops.weigh(routes, w["expert_scale"])
        gate, up, down = (w[f"{_PREFIX}{key}"] for key in ("gate", "up", "down"))
        y = ops.experts(x, routes, gate, up, down, None, act=mlp.act, norm=w["experts_before"], eps=eps)
        ops.add(both, ops.norm(y, w["experts_norm"], eps))
        ops.add_norm(x, both, w["ffn_post_norm"], eps)


# --- the family -------------------------------------------------------------------------------------

LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0
GLOBAL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": GLOBAL_BASE}
GLOBAL_WIDTH, WINDOW, PATTERN = 512, 512, 6
UNIFIED = "gemma4_unified_text"  # model_type of the 12B's text half


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingSizes(Sizes):
    """Sizes of decoders whose last layers read keys and values of earlier ones; `rope` is that of full layers."""

    rope_local: RopeSpec
    softcap: float  # of logits
    shared: int  # of the last layers, how many keep no keys and values
    inputs: int  # width of a layer's embedding; 0: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaSizes4(SharingSizes):
    """Sizes of Gemma 4; `head_dim` is that of full layers."""

    local_dim: int  # width of a head in sliding layers
    twins: bool  # whether full layers' values are their keys
    both: bool  # whether rows of a picture see each other in sliding layers
    pad: int = 0  # the token whose embedding of each layer rows of pictures have


def config_from_gguf(meta: Fields, vocab: int) -> GemmaSizes4:
    """Read the keys under `gemma4.`; no key says whether values are keys: models without inputs of layers have that."""
    sizes = gguf_sizes(meta, vocab, adjacent=False, base=GLOBAL_BASE)
    layers = len(sizes["heads"])
    sizes["windows"] = gguf_windows(meta, layers, lambda i: (i + 1) % PATTERN != 0)
    local_dim = meta.integer("attention.key_length_swa", 1, MAX_WIDTH, sizes["head_dim"])
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if meta.integer(key, 1, MAX_WIDTH, local_dim) != local_dim:
            raise UnsupportedModel(
                f"{meta.name(key)} differs from the width of sliding layers' heads, {local_dim}"
            )
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, LOCAL_BASE)
    inputs = meta.integer("embedding_length_per_layer_input", 0, MAX_WIDTH, 0)
    if meta.integer("expert_count", 0, MAX_WIDTH, 0):
        sizes["mixture"] = gguf_mixture(meta, sizes)
    return _checked(
        GemmaSizes4(
            **sizes,
            local_dim=local_dim,
            rope_local=RopeSpec(base=base, width=local_dim, adjacent=False, divisible=False),
            softcap=meta.number("final_logit_softcapping", 0.0, 1e6, 0.0),
            shared=meta.integer("attention.shared_kv_layers", 0, MAX_LAYERS, 0),
            inputs=inputs,
            twins=not inputs,
            both=not inputs,
        )
    )


def config_from_hf(config: Fields) -> GemmaSizes4:
    """Read config.json; the 12B's classes have defaults of their own."""
    if config.get("model_type") == UNIFIED:
        config = config.assuming(hidden_size_per_layer_input=0, sliding_window=1024)
        if "use_bidirectional_attention" not in config.values:  # null means that they do not see each other
            config = config.assuming(use_bidirectional_attention="vision")
    both = config.get("use_bidirectional_attention") == "vision"
    check_gemma(config.without("use_bidirectional_attention") if both else config)
    sizes = hf_sizes(config, tied=True, head_dim=256, num_key_value_heads=4)
    layers, local_dim = len(sizes["heads"]), sizes["head_dim"]
    window = config.integer("sliding_window", 1, MAX_CONTEXT, WINDOW)
    windows = sliding_windows(config, layers, window, lambda i: (i + 1) % PATTERN != 0)
    inputs = config.integer("hidden_size_per_layer_input", 0, MAX_WIDTH, 256)
    if inputs and config.integer("vocab_size_per_layer_input", 1, 1 << 24, 262_144) != sizes["vocab"]:
        raise UnsupportedModel("vocab_size_per_layer_input differs from vocab_size, which is not supported")
    shared = config.integer("num_kv_shared_layers", 0, MAX_LAYERS, 0)
    wide = 2 if config.flag("use_double_wide_mlp", False) else 1
    own = sizes["intermediate"]
    sizes |= _full_layers(config, sizes, windows) | {
        "windows": windows,
        "intermediate": tuple(n * (wide if i >= layers - shared else 1) for i, n in enumerate(own)),
    }
    if _mixes(config):
        sizes["mixture"] = hf_mixture(config, "moe_intermediate_size", layers, chosen="top_k_experts")
    ropes = config.section("rope_parameters") or Fields({})
    local = ropes.section("sliding_attention")
    full = ropes.section("full_attention") or Fields(GLOBAL_ROPE)
    context = sizes["context"]
    return _checked(
        GemmaSizes4(
            **checked_sizes(**sizes),
            rope=hf_rope_section(full, head_dim=sizes["head_dim"], context=context, base=GLOBAL_BASE),
            local_dim=local_dim,
            rope_local=hf_rope_section(local, head_dim=local_dim, context=context, base=LOCAL_BASE),
            softcap=config.number("final_logit_softcapping", 0.0, 1e6, 0.0),
            shared=shared,
            inputs=inputs,
            twins=config.flag("attention_k_eq_v", False),
            both=both,
            pad=config.integer("pad_token_id", 0, sizes["vocab"] - 1, 0),
        )
    )


def _full_layers(config: Fields, sizes: dict[str, Any], windows: tuple[int, ...]) -> dict[str, Any]:
    """Read the head width of full layers and each layer's key heads: published keys, or transformers 5's of a layer."""
    each, own = config.section("per_layer_config"), config
    width, heads = "global_head_dim", "num_global_key_value_heads"
    if each is not None:
        full = [str(i) for i, window in enumerate(windows) if not window]
        own = (each.section(full[0]) if full else None) or Fields({})
        width, heads = "head_dim", "num_key_value_heads"
        if any(each.get(i) != each.get(full[0]) for i in full):
            raise UnsupportedModel("per_layer_config differs among full layers, which is not supported")
    kv_heads: tuple[int, ...] = sizes["kv_heads"]
    if config.flag("attention_k_eq_v", False):
        kv = own.integer(heads, 1, MAX_HEADS, kv_heads[0])
        kv_heads = tuple(n if window else kv for n, window in zip(kv_heads, windows, strict=True))
    check_heads(config.name(heads), sizes["heads"], kv_heads)
    return {"head_dim": own.integer(width, 1, MAX_WIDTH, GLOBAL_WIDTH), "kv_heads": kv_heads}


def _checked(cfg: GemmaSizes4) -> GemmaSizes4:
    """Return a config that ends in full attention."""
    if cfg.windows[-1]:
        raise UnsupportedModel("the last layer slides; only full attention is supported there")
    check_sources(cfg)
    return cfg


def check_sources(cfg: SharingSizes) -> None:
    """Raise unless every sharing layer has a layer to read from."""
    first = cfg.layers - cfg.shared
    if first < 1 or any(source(cfg, i) is None for i in range(first, cfg.layers)):
        raise BadModelFile(f"{cfg.shared} layers share keys and values that no layer of their kind keeps")


def source(cfg: SharingSizes, layer: int) -> int | None:
    """Return the last layer of the same kind that keeps keys and values."""
    kind = bool(cfg.windows[layer])
    own = range(cfg.layers - cfg.shared)
    return next((i for i in reversed(own) if bool(cfg.windows[i]) is kind), None)


def layer(cfg: GemmaSizes4, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention, an MLP or experts beside one, and its own input."""
    slides = bool(cfg.windows[i])
    head_dim = cfg.local_dim if slides else cfg.head_dim
    attention = SharingAttention.of(cfg, i, head_dim, twin=cfg.twins and not slides, both=cfg.both and slides)
    names = {"norm_name": "pre_feedforward_layernorm", "post_norm": "post_feedforward_layernorm"}
    mlp = GatedMlp.of(cfg, i, act="gelu", **names)
    beside = mlp if cfg.mixture is None else ExpertsBeside(mlp=mlp, mixture=cfg.mixture)
    return attention, beside, LayerInput(hidden=cfg.hidden, width=cfg.inputs, eps=cfg.eps)


def ends(cfg: GemmaSizes4) -> InputEnds:
    """Scale embeddings by sqrt(hidden), and embed tokens for each layer."""
    scale = math.sqrt(cfg.hidden)
    inputs = {"layers": cfg.layers, "width": cfg.inputs, "pad": cfg.pad}
    return InputEnds.of(cfg, scale=scale, softcap=cfg.softcap, **inputs)


def left_out(cfg: SharingSizes) -> tuple[tuple[str, str], ...]:
    """Published files hold projections of keys and values that sharing layers have no use for."""
    if not cfg.shared:
        return ()
    sharing = "|".join(str(i) for i in range(cfg.layers - cfg.shared, cfg.layers))
    unused = r"(self_attn\.(k_proj|v_proj|k_norm|v_norm)|attn_(k|v|k_norm))\."
    note = "keys and values of layers that read another layer's are left out, as the model does"
    return ((rf"(model\.layers|blk)\.({sharing})\.{unused}", note),)


def _mixes(config: Fields) -> bool:
    return config.flag("enable_moe_block", False)


DENSE = Family(
    gguf_architecture="gemma4",
    hf_classes=("Gemma4ForCausalLM", "Gemma4UnifiedForCausalLM"),
    hf_when=lambda config: not _mixes(config),
    wrappers=("Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration"),
    model_types=("gemma4_text", UNIFIED),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(SharingAttention, GatedMlp, LayerInput),
    layer=layer,
    ends=ends,
    left_out_of=left_out,
    both=lambda cfg: cfg.both,
    towers=("gemma4", "gemma4_unified", "gemma4_audio", "gemma4_unified_audio"),
)
FAMILIES = (DENSE, replace(DENSE, hf_when=_mixes, parts=(SharingAttention, ExpertsBeside, LayerInput)))
