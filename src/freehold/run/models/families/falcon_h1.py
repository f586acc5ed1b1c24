"""Falcon-H1: attention and Mamba-2 side by side in every layer, reading one norm, then a gated MLP.

    x += attention(n) + mamba(n),  n = norm(x);  x += mlp(norm(x))

Training scaled every projection by a factor of its own. A GGUF holds weights that they have been multiplied into; of
safetensors they are multiplied at load, so that one forward pass serves both. Such weights take no adapters, which were
trained beside the factors. A GGUF without a head of its own has lost the head's factor, as its embedding holds another.
Sources: arXiv 2507.22448; transformers' FalconH1ForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeSpec
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Buffer, Cut, Family, LayerPart, Ops, TensorSpec, Values
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.mamba import Mamba2, MambaKeys, MambaSizes, gguf_mamba, hf_mamba

MAX_FACTOR = 1e6
MAMBA = MambaKeys("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv")
NAMES = {"mlp": "feed_forward", "model.norm": "model.final_layernorm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What projections are multiplied by; 1 where a file's weights hold it."""

    embed: float = 1.0
    head: float = 1.0
    attention_in: float = 1.0
    key: float = 1.0
    attention_out: float = 1.0
    ssm_in: tuple[float, ...] = (1.0,) * 5  # of z, heads, B, C and steps
    ssm_out: float = 1.0
    gate: float = 1.0
    down: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FalconSizes(Sizes):
    """Sizes of a Falcon-H1."""

    mamba: MambaSizes
    conv_bias: bool = True
    gated_norm: bool | None = None
    factors: Factors = Factors()


def config_from_hf(config: Fields) -> FalconSizes:
    for key in ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"):
        config.refuse(key, "a bias on projections")
    gated_norm = config.flag("mamba_rms_norm", False)
    if gated_norm and config.flag("mamba_norm_before_gate", True):
        raise UnsupportedModel("mamba_norm_before_gate is true: a norm before the gate is not supported")
    sizes = hf_decoder(config, eps=1e-5, num_key_value_heads=8)
    inner = config.integer("mamba_expand", 1, MAX_WIDTH, 2) * sizes["hidden"]
    if config.get("mamba_d_ssm") is not None:
        inner = config.integer("mamba_d_ssm", 1, MAX_WIDTH)
    return FalconSizes(
        **sizes,
        mamba=hf_mamba(config, MAMBA, inner),
        conv_bias=config.flag("mamba_conv_bias", True),
        gated_norm=gated_norm,
        factors=_factors(config),
    )


def _factors(config: Fields) -> Factors:
    def one(key: str) -> float:
        return config.number(f"{key}_multiplier", -MAX_FACTOR, MAX_FACTOR, 1.0)

    gate, down = _listed(config, "mlp_multipliers", 2)
    return Factors(
        embed=one("embedding"),
        head=one("lm_head"),
        attention_in=one("attention_in"),
        key=one("key"),
        attention_out=one("attention_out"),
        ssm_in=tuple(one("ssm_in") * each for each in _listed(config, "ssm_multipliers", 5)),
        ssm_out=one("ssm_out"),
        gate=gate,
        down=down,
    )


def _listed(config: Fields, key: str, count: int) -> tuple[float, ...]:
    values = config.get(key)
    if values is None:
        return (1.0,) * count
    if not isinstance(values, list) or len(values) != count:
        raise BadModelFile(f"{config.name(key)} is {str(values)[:60]}; expected {count} numbers")
    each = Fields({f"{key}.{i}": value for i, value in enumerate(values)}, f"{key}.")
    return tuple(each.number(str(i), -MAX_FACTOR, MAX_FACTOR) for i in range(count))


def scaled(spec: TensorSpec, factor: float | NDArray[np.float32]) -> TensorSpec:
    """Return a declaration whose values in safetensors are multiplied, by one factor or by one for each row."""

    def one(name: str | Cut) -> Cut:
        if isinstance(name, str):
            return Cut(name, spec.shape, take=lambda v: v * np.float32(factor))
        assert name.rows is not None, "rows of a matrix are multiplied"
        rows = np.asarray(name.rows, np.int64)
        return Cut(name.name, name.shape, take=lambda v: v[rows] * np.asarray(factor, np.float32))

    hf = spec.hf if np.all(factor == 1.0) else tuple(one(name) for name in spec.hf)
    return replace(spec, hf=hf, adaptable=False)  # of a GGUF the factor is not known


@dataclass(frozen=True, slots=True)
class SideBySide(LayerPart):
    """Attention and Mamba-2, which read the same norm of x."""

    kinds = Attention.kinds | Mamba2.kinds

    attention: Attention
    mamba: Mamba2
    factors: Factors

    @property
    def rope(self) -> RopeSpec | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Attention's."""
        return self.attention.rope

    @property
    def keeps(self) -> LayerSpec:
        """Keys and values, and a state beside them."""
        state = self.mamba.keeps
        return replace(self.attention.keeps, state=state.state, conv=state.conv)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the weights of both with their factors."""
        f, s, specs = self.factors, self.mamba.sizes, self.attention.tensors() | self.mamba.tensors()
        z, heads, b, c, step = f.ssm_in
        each = s.groups * s.states
        mixed = np.repeat(np.array([heads, b, c], np.float32), (s.inner, each, each))[:, None]
        factors = {
            "q": f.attention_in,
            "k": f.attention_in * f.key,
            "v": f.attention_in,
            "o": f.attention_out,
            "z": z,
            "mix": mixed,
            "dt": step,
            "out": f.ssm_out,
        }
        return specs | {key: scaled(specs[key], factor) for key, factor in factors.items()}

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Normalise once, then add both."""
        n = ops.norm(x, w["attn_norm"], self.attention.eps)
        self.attention.add(ops, layer, (n, None), x, w)
        self.mamba.add(ops, layer, (n, None), x, w)


@dataclass(frozen=True, slots=True, kw_only=True)
class FalconMlp(GatedMlp):
    """The MLP, with factors on its gate and its output."""

    factors: Factors

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the same weights with their factors."""
        specs = GatedMlp.tensors(self)
        specs["ffn_norm"] = replace(specs["ffn_norm"], gguf=("ffn_norm",))  # as its writer has it
        factors = {"gate": self.factors.gate, "down": self.factors.down}
        return specs | {key: scaled(specs[key], factor) for key, factor in factors.items()}


def layer(cfg: FalconSizes, i: int) -> tuple[LayerPart, ...]:
    mamba = Mamba2(
        hidden=cfg.hidden,
        sizes=cfg.mamba,
        eps=cfg.eps,
        conv_bias=cfg.conv_bias,
        gated_norm=cfg.gated_norm,
    )
    mlp = FalconMlp.of(cfg, i, norm_name="pre_ff_layernorm", factors=cfg.factors)
    return SideBySide(Attention.of(cfg, i), mamba, cfg.factors), mlp


def ends(cfg: FalconSizes) -> DecoderEnds:
    """Scale embeddings and logits where weights do not hold the factors."""
    scale = {"scale": cfg.factors.embed, "logit_scale": cfg.factors.head}
    return DecoderEnds.of(cfg, **scale)


FAMILY = Family(
    gguf_architecture="falcon-h1",
    hf_classes=("FalconH1ForCausalLM",),
    model_types=("falcon_h1",),
    config_from_gguf=lambda meta, vocab: FalconSizes(
        **gguf_sizes(meta, vocab, adjacent=False), mamba=gguf_mamba(meta)
    ),
    config_from_hf=config_from_hf,
    parts=(SideBySide, FalconMlp),
    layer=layer,
    ends=ends,
    names=NAMES,
    tied_note="the file has no head of its own, and lost what logits are multiplied by: a temperature may mean another",
)
