"""LFM3: LFM2's gated short convolutions of seven taps, and attention that slides or sees all tokens, a gate each head.

What a mixer and an MLP give passes a norm before it is added. Queries and keys pass a norm of each head before they
turn; sliding layers and full ones have a rope each, and of a full one's heads half of the pairs turn.
Source: transformers 5.24, models/lfm3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.rope import RopeSpec, hf_layer_ropes
from freehold.run.models.config.sizes import Sizes, hf_sizes
from freehold.run.models.families.lfm2 import MAX_TAPS, NAMES, ShortConv
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

KINDS = ("full_attention", "sliding_attention", "conv")
ROPES = {  # what the class assumes
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
MIXER_NORM, MLP_NORM = "post_operator_norm", "post_ffn_norm"
SAME = (
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
)  # unlike LFM2's, called as parts call them


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfm3Sizes(Sizes):
    """Sizes of an LFM3; a layer without kv heads has a convolution, and `rope` is that of full layers."""

    taps: int  # inputs of a convolution's sum
    rope_local: RopeSpec
    sandwich: bool  # whether norms follow mixers and MLPs
    gated: bool  # whether heads have gates


def config_from_gguf(meta: Fields, vocab: int) -> Lfm3Sizes:
    """Raise: no converter writes such a file, so its names are not known."""
    raise UnsupportedModel("GGUF files of lfm3 are not supported", "use the safetensors files")


def config_from_hf(config: Fields) -> Lfm3Sizes:
    """Read config.json of an Lfm3ForCausalLM."""
    config.refuse("conv_bias", "a bias on convolutions")
    config.refuse("attention_bias", "a bias on attention")
    if config.get("rope_parameters") is None:
        config = Fields({**config.values, "rope_parameters": ROPES})
    sizes = hf_sizes(config, tied=True, eps=1e-5, eps_key="norm_eps", head_dim=128)
    layers = len(sizes["heads"])
    kinds = config.texts("layer_types", layers) or [_kind(i) for i in range(layers)]
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise UnsupportedModel(f"layer_types names {strange[0][:60]!r}; supported: {', '.join(KINDS)}")
    bases: dict[str, Any] = {"base": 1e6, "local_base": 1e4}
    ropes = hf_layer_ropes(config, head_dim=sizes["head_dim"], context=sizes["context"], **bases)
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 256)
    kv_heads = zip(sizes["kv_heads"], kinds, strict=True)
    sizes["kv_heads"] = tuple(0 if kind == "conv" else n for n, kind in kv_heads)
    return Lfm3Sizes(
        **sizes,
        windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
        rope=ropes[0],
        rope_local=ropes[1],
        taps=config.integer("conv_L_cache", 2, MAX_TAPS, 7),
        sandwich=config.flag("use_sandwich_norm", True),
        gated=config.flag("use_attention_gate", True),
    )


def _kind(layer: int) -> str:
    """Return the kind of a layer of a config that lists none."""
    if layer % 4 == 2:
        return "full_attention"
    return "conv" if layer % 4 or not layer else "sliding_attention"


def layer(cfg: Lfm3Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention or a convolution, and an MLP."""
    post = MIXER_NORM if cfg.sandwich else ""
    if cfg.kv_heads[i]:
        mixer: LayerPart = Attention.of(
            cfg,
            i,
            rope=cfg.rope_local if cfg.windows[i] else cfg.rope,
            qk_norm="head",
            gate="g_proj" if cfg.gated else "",
            gate_heads=cfg.gated,
            post_norm=post,
        )
    else:
        mixer = ShortConv(hidden=cfg.hidden, taps=cfg.taps, eps=cfg.eps, post_norm=post)
    return mixer, GatedMlp.of(cfg, i, post_norm=MLP_NORM if cfg.sandwich else "")


FAMILY = Family(
    gguf_architecture="lfm3",
    hf_classes=("Lfm3ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, ShortConv, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
    names={part: name for part, name in NAMES.items() if part not in SAME},
)
