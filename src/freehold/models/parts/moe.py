"""A mixture of experts: a router sends each token to a few of many gated MLPs.

    x += sum over the chosen e of p_e * down_e(silu(gate_e n) * up_e n) [+ sigmoid(g n) * shared(n)],  n = norm(x)

p is a softmax over all experts in float32, divided by the chosen ones' sum where the model says so. The shared expert,
which every token is sent to, passes a gate of its own. A GGUF holds experts stacked; safetensors, and GGUFs of early
2024, hold each apart.
Sources: arXiv 2401.04088 (Mixtral), 2409.02060 (OLMoE), Qwen1.5-MoE's page of 2024 (the gated shared expert).
Path: families.<family>.layer -> Moe -> Network.forward
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.models.family import LayerPart, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops
from freehold.models.parts.mlp import GatedMlp
from freehold.models.sizes import Mixture, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class HfNames:
    """How safetensors of a family name experts, under a layer."""

    router: str = "mlp.gate"
    gate: str = "mlp.experts.{e}.gate_proj"
    up: str = "mlp.experts.{e}.up_proj"
    down: str = "mlp.experts.{e}.down_proj"


QWEN = HfNames()  # and OLMoE's
MIXTRAL = HfNames(
    router="block_sparse_moe.gate",
    gate="block_sparse_moe.experts.{e}.w1",
    up="block_sparse_moe.experts.{e}.w3",
    down="block_sparse_moe.experts.{e}.w2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe(LayerPart):
    """One layer's experts."""

    experts = True

    hidden: int
    mixture: Mixture
    eps: float
    names: HfNames = QWEN

    @classmethod
    def of(cls, cfg: Sizes, names: HfNames = QWEN) -> Moe:
        """Take the sizes out of a config with a mixture."""
        assert cfg.mixture is not None, "a family of experts reads their sizes"
        return cls(hidden=cfg.hidden, mixture=cfg.mixture, eps=cfg.eps, names=names)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare router and experts, and the shared expert with its gate where there is one."""
        m, hidden = self.mixture, self.hidden
        found = {
            "ffn_norm": vector("ffn_norm.weight", "post_attention_layernorm.weight", hidden),
            "router": matrix(
                "ffn_gate_inp.weight",
                f"{self.names.router}.weight",
                m.experts,
                hidden,
                adaptable=False,
                floats=True,
            ),
            "gate": self._stack("gate", self.names.gate, m.intermediate, hidden),
            "up": self._stack("up", self.names.up, m.intermediate, hidden),
            "down": self._stack("down", self.names.down, hidden, m.intermediate),
        }
        if not m.shared:
            return found
        return found | {
            "shared_router": matrix("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", 1, hidden),
            "shared_gate": _shared("gate", m.shared, hidden),
            "shared_up": _shared("up", m.shared, hidden),
            "shared_down": _shared("down", hidden, m.shared),
        }

    def _stack(self, key: str, hf: str, rows: int, columns: int) -> TensorSpec:
        return TensorSpec(
            gguf=(f"ffn_{key}_exps.weight", f"ffn_{key}.{{e}}.weight"),
            hf=(f"{hf}.weight",),
            shape=(self.mixture.experts, rows, columns),
            share=self.mixture.chosen / self.mixture.experts,
            adaptable=False,
        )

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, router, chosen experts and shared expert; all of them see x as it was before."""
        norm, eps, m = w["ffn_norm"], self.eps, self.mixture
        h = gate = None
        if m.shared:
            h = ops.gated(x, w["shared_gate"], w["shared_up"], "silu", norm, eps)
            (gate,) = ops.linear(x, (w["shared_router"],), (None,), norm, eps)
        routes = ops.route(x, w["router"], m.chosen, norm=norm, eps=eps, renormalise=m.renormalise)
        ops.experts(x, routes, w["gate"], w["up"], w["down"], x, act="silu", norm=norm, eps=eps)
        if h is not None:
            ops.linear_add(h, w["shared_down"], x, gate=gate)


def mlp_or_experts(cfg: Sizes, layer: int, names: HfNames = QWEN) -> LayerPart:
    """Give a layer of a mixture its experts, or the dense MLP that some layers have instead."""
    assert cfg.mixture is not None, "a family of experts reads their sizes"
    return Moe.of(cfg, names) if cfg.mixture.sparse[layer] else GatedMlp.of(cfg, layer)


def _shared(key: str, rows: int, columns: int) -> TensorSpec:
    return matrix(f"ffn_{key}_shexp.weight", f"mlp.shared_expert.{key}_proj.weight", rows, columns)
