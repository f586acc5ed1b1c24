"""A mixture of experts: a router sends each token to a few of many MLPs.

    x += sum over the chosen e of p_e * down_e(act(gate_e n) * up_e n) [+ shared(n)],  n = norm(x)

p is what `route` makes of the router's logits: see sizes.Routing. Variants are fields: experts without a gate, with
biases, or between two projections of their own that narrow the token (latent); a shared expert, which every token is
sent to, with a sigmoid of its own or without. Where files keep the matrices is a layout.
Sources: arXiv 2401.04088 (Mixtral), 2409.02060 (OLMoE), 2401.06066 (DeepSeekMoE: shared experts), Qwen1.5-MoE's page of
2024 (the gated shared expert), gpt-oss's model card (clamps, biases).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.run.models.config.sizes import Mixture, Sizes
from freehold.run.models.family import Buffer, Cut, LayerPart, Name, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.mlp import GatedMlp
from freehold.run.models.parts.norms import RMS, NormForm, Read

# --- layouts: where files keep experts: apart, stacked, gate and up in one, transposed --------------

F32 = NDArray[np.float32]
Key: TypeAlias = Literal["gate", "up", "down"]


class ExpertSizes(NamedTuple):
    """Of all experts of a layer: how many, how wide inside, and how wide what they read and give."""

    experts: int
    inner: int
    width: int


Layout: TypeAlias = Callable[[Key, ExpertSizes], tuple["str | Cut", ...]]


def apart(prefix: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Layout:
    """Each expert's matrices are tensors of their own; `{e}` in the prefix is its number."""
    names = {"gate": gate, "up": up, "down": down}
    return lambda key, sizes: (f"{prefix}.{names[key]}.weight",)


def fused(gate_up: str, down: str) -> Layout:
    """[E, 2I, H], the rows of a gate before those of up; and [E, H, I]."""

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        return (down,) if key == "down" else (half_rows(gate_up, key, sizes),)

    return names


def half_rows(name: str, key: Key, sizes: ExpertSizes) -> Cut:
    """Cut the rows of gate or of up out of a stack that holds both of each expert."""
    experts, inner, width = sizes
    first = np.arange(experts)[:, None] * (2 * inner) + (inner if key == "up" else 0)
    rows = (first + np.arange(inner)).reshape(-1)
    return Cut(name, (experts, 2 * inner, width), rows=rows)


def transposed(gate_up: str, down: str, *, interleaved: bool) -> Layout:
    """[E, H, 2I] and [E, I, H]; columns of gate and up are halves, or take turns."""

    def turned(values: F32) -> F32:
        return values.transpose(0, 2, 1)

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        experts, inner, width = sizes
        if key == "down":
            return (Cut(down, (experts, inner, width), take=turned),)
        first = inner if key == "up" else 0
        part = slice(int(key == "up"), None, 2) if interleaved else slice(first, first + inner)
        return (Cut(gate_up, (experts, width, 2 * inner), take=lambda v: turned(v[..., part])),)

    return names


def interleaved_blocks(gate_up: str, down: str) -> Layout:
    """[E, 2I, H], rows of gate and up in turns, and [E, H, I]."""

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        experts, inner, width = sizes
        if key == "down":
            return (down,)
        rows = np.arange(int(key == "up"), 2 * experts * inner, 2)
        return (Cut(gate_up, (experts, 2 * inner, width), rows=rows),)

    return names


def either(*layouts: Layout) -> Layout:
    """The first of several layouts that a file has."""
    return lambda key, sizes: tuple(name for layout in layouts for name in layout(key, sizes))


def interleaved_biases(gate_up: str, down: str) -> Layout:
    """[E, 2I], gate and up in turns, and [E, H], each as one vector of all experts."""

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        if key == "down":
            return (flat(down, sizes.experts, sizes.width),)
        first = int(key == "up")
        return (Cut(gate_up, (sizes.experts, 2 * sizes.inner), take=lambda v: v[:, first::2].reshape(-1)),)

    return names


def flat(name: str, *shape: int) -> Cut:
    """A tensor of any shape as one vector."""
    return Cut(name, shape, take=lambda v: v.reshape(-1))


def gguf_names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
    """Stacked; or each apart, as in early 2024; or, of newer files, gate and up in one tensor."""
    names = (f"ffn_{key}_exps.weight", f"ffn_{key}.{{e}}.weight")
    return names if key == "down" else (*names, half_rows("ffn_gate_up_exps.weight", key, sizes))


# --- the part ---------------------------------------------------------------------------------------

_APART = apart("mlp.experts.{e}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeNames:
    """How files of a family name what surrounds experts, under a layer; None: not in such a file."""

    experts: Layout = _APART
    router: Name = "mlp.gate.weight"
    router_bias: str | None = None
    correction: Name = "mlp.gate.e_score_correction_bias"
    gguf_correction: str = "exp_probs_b.bias"
    norm: str = "post_attention_layernorm"
    gguf_norm: str = "ffn_norm"
    shared: str | tuple[str, ...] = "mlp.shared_expert"
    shared_gate: str = "mlp.shared_expert_gate.weight"
    biases: Layout | None = None  # of experts' matrices
    latent: tuple[str, str] = ("mixer.fc1_latent_proj.weight", "mixer.fc2_latent_proj.weight")


QWEN = MoeNames()  # and OLMoE's
MIXTRAL = MoeNames(
    experts=apart("block_sparse_moe.experts.{e}", "w1", "w3", "w2"), router="block_sparse_moe.gate.weight"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe(LayerPart):
    """One layer's experts."""

    experts = True

    hidden: int
    mixture: Mixture
    eps: float
    act: str = "silu"  # between an expert's halves; relu2 has no gate
    limit: float = 0.0  # of silu, once activated, 0: none; of act clamped, with
    alpha: float = 1.0
    shared_limit: float = 0.0  # the same of the shared expert's silu
    biased: bool = False  # whether experts' matrices have biases
    latent: int = 0  # width that experts read and give; 0: the hidden one
    norm: NormForm = RMS
    residual: float = 1.0  # of what is added to x
    post_norm: str = ""  # safetensors' name of a norm of the sum; empty: there is none
    names: MoeNames = QWEN

    @classmethod
    def of(cls, cfg: Sizes, names: MoeNames = QWEN, **options: Any) -> Moe:
        """Take the sizes out of a config with a mixture."""
        assert cfg.mixture is not None, "a family of experts reads their sizes"
        return cls(hidden=cfg.hidden, mixture=cfg.mixture, eps=cfg.eps, names=names, **options)

    @property
    def _keys(self) -> tuple[Key, ...]:
        return ("up", "down") if self.act == "relu2" else ("gate", "up", "down")

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare norm, router and experts, and what else the variant has."""
        names, hidden = self.names, self.hidden
        specs = self.norm.tensors("ffn_norm", names.gguf_norm, names.norm, hidden) | self._router()
        for key in self._keys:
            specs[key] = self._stack(key)
            if self.biased:
                specs[f"{key}_bias"] = self._bias(key)
        if self.latent:
            down, up = names.latent
            specs["latent_down"] = matrix("ffn_latent_down.weight", down, self.latent, hidden)
            specs["latent_up"] = matrix("ffn_latent_up.weight", up, hidden, self.latent)
        if self.post_norm:
            own = self.norm.tensors("ffn_post_norm", "post_ffw_norm", self.post_norm, hidden)
            specs["ffn_post_norm"] = own["ffn_post_norm"]
        return specs | (self._shared() if self.mixture.shared else {})

    def _router(self) -> dict[str, TensorSpec]:
        m, names = self.mixture, self.names
        options = {"adaptable": False, "floats": True}
        specs = {"router": matrix("ffn_gate_inp.weight", names.router, m.experts, self.hidden, **options)}
        if m.routing.bias:
            specs["router_bias"] = vector("ffn_gate_inp.bias", names.router_bias, m.experts)
        if m.routing.correction:
            specs["correction"] = vector(names.gguf_correction, names.correction, m.experts)
        return specs

    @property
    def _sizes(self) -> ExpertSizes:
        return ExpertSizes(self.mixture.experts, self.mixture.intermediate, self.latent or self.hidden)

    def _stack(self, key: Key) -> TensorSpec:
        m, sizes = self.mixture, self._sizes
        one = (sizes.width, sizes.inner) if key == "down" else (sizes.inner, sizes.width)
        return TensorSpec(
            gguf=gguf_names(key, sizes),
            hf=self.names.experts(key, sizes),
            shape=(m.experts, *one),
            share=m.chosen / m.experts,
            adaptable=False,
        )

    def _bias(self, key: Key) -> TensorSpec:
        experts, inner, width = self._sizes
        rows = width if key == "down" else inner
        hf = self.names.biases(key, self._sizes) if self.names.biases else ()
        return vector(flat(f"ffn_{key}_exps.bias", experts, rows), hf, experts * rows)

    def _shared(self) -> dict[str, TensorSpec]:
        hidden, wide, names = self.hidden, self.mixture.shared, self.names
        specs: dict[str, TensorSpec] = {}
        for key in self._keys:
            shape = (hidden, wide) if key == "down" else (wide, hidden)
            prefixes = (names.shared,) if isinstance(names.shared, str) else names.shared
            hf = tuple(f"{prefix}.{key}_proj.weight" for prefix in prefixes)
            specs[f"shared_{key}"] = matrix(f"ffn_{key}_shexp.weight", hf, *shape)
        if self.mixture.shared_gate:
            specs["shared_router"] = matrix("ffn_gate_inp_shexp.weight", names.shared_gate, 1, hidden)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, router, chosen experts and shared expert; all of them see x as it was before."""
        self.add(ops, self.norm.before(ops, x, w, "ffn_norm", self.eps), x, w)

    def add(self, ops: Ops, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm."""
        h, gate = self._shared_half(ops, read, w)
        total = self._chosen(ops, read, self._route(ops, read, w), None if self.post_norm else x, w)
        if h is not None:
            ops.linear_add(h, w["shared_down"], total, gate=gate, scale=self.residual)
        if self.post_norm:
            ops.add_norm(x, total, w["ffn_post_norm"], self.eps)

    def _route(self, ops: Ops, read: Read, w: Values) -> Buffer:
        m, (rows, norm) = self.mixture, read
        rule: dict[str, Any] = {k: v for k, v in asdict(m.routing).items() if k not in _OF_EXPERTS}
        if not (m.routing.weigh_input or self.latent):
            rule["scale"] *= self.residual
        rule |= {"bias": w.get("router_bias"), "correction": w.get("correction")}
        return ops.route(rows, w["router"], m.chosen, norm=norm, eps=self.eps, **rule)

    def _chosen(self, ops: Ops, read: Read, routes: Buffer, x: Buffer, w: Values) -> Buffer:
        """Add the chosen experts' sum to x and return it; the sum alone without an x."""
        (rows, norm), (gate, up, down) = read, (w.get("gate"), w["up"], w["down"])
        options: dict[str, Any] = {"act": self.act, "weigh_input": self.mixture.routing.weigh_input}
        if self.limit:
            options |= {"limit": self.limit, "alpha": self.alpha}
        if self.biased:
            options |= {f"{key}_bias": w[f"{key}_bias"] for key in self._keys}
        if not self.latent:
            total = ops.experts(rows, routes, gate, up, down, x, norm=norm, eps=self.eps, **options)
            return total if x is None else x
        (z,) = ops.linear(rows, (w["latent_down"],), (None,), norm, self.eps)
        y = ops.experts(z, routes, gate, up, down, None, **options)
        ops.linear_add(y, w["latent_up"], x, scale=self.residual)
        return x

    def _shared_half(self, ops: Ops, read: Read, w: Values) -> tuple[Buffer, Buffer]:
        if not self.mixture.shared:
            return None, None
        (rows, norm), gate = read, None
        if self.act == "relu2":
            h = ops.linear_act(rows, w["shared_up"], self.act, None, norm, self.eps)
        else:
            limit = self.shared_limit
            h = ops.gated(rows, w["shared_gate"], w["shared_up"], self.act, norm, self.eps, limit)
        if self.mixture.shared_gate:
            (gate,) = ops.linear(rows, (w["shared_router"],), (None,), norm, self.eps)
        return h, gate


_OF_EXPERTS = ("bias", "correction", "weigh_input")  # of a Routing: which weights it has, and what experts do


def mlp_or_experts(cfg: Sizes, layer: int, names: MoeNames = QWEN, **options: Any) -> LayerPart:
    """Give a layer of a mixture its experts, or the dense MLP that some layers have instead."""
    assert cfg.mixture is not None, "a family of experts reads their sizes"
    if cfg.mixture.sparse[layer]:
        return Moe.of(cfg, names, **options)
    return GatedMlp.of(cfg, layer, gguf_norm=names.gguf_norm)
