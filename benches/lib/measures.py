"""What is measured, and what the machine allows of it. Knows no peer.

Bytes bound a token decoded alone, int8 operations a prompt; a batch is bound by whichever is slower.
Path: peers.py -> MEASURES, Facts -> contest.py, report.py
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benches.lib.driver import FIRST_CONTEXT, SHORT

CONTEXT = 8192  # room in every peer; the deepest decode ends inside it
OVERHEAD = 160e6  # bytes a process may hold besides weights and cache


@dataclass(frozen=True)
class Measure:
    """One figure. `size` is tokens, depth or sequences by `kind`; at most `steps` are timed after it."""

    name: str
    kind: str  # prefill, decode, batch; or first, memory: of a fresh process
    size: int = 0
    steps: int = field(default=0, compare=False)
    unit: str = "tok/s"

    @property
    def tokens(self) -> int:
        """Tokens that the timed work yields."""
        return {"prefill": self.size, "decode": self.steps, "batch": self.size * self.steps}[self.kind]

    def lasting(self, seconds: float, rate: float) -> Measure:
        """Cut the steps to what takes so long at `rate` tokens a second, but not below eight."""
        tokens = rate * seconds / (self.size if self.kind == "batch" else 1)
        return replace(self, steps=min(self.steps, max(int(tokens), 8)))

    @property
    def trial(self) -> Measure:
        """The short work that settings are tried on; measures that share it share the best setting."""
        if self.kind == "prefill":
            return Measure("prefill trial", "prefill", 256)
        if self.kind == "batch":
            return Measure("batch trial", "batch", 4, 8)
        return Measure(f"{self.name} trial", "decode", self.size, 12 if self.size == SHORT else 6)


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("prefill-512", "prefill", 512),
        Measure("prefill-4096", "prefill", 4096),
        Measure("decode-0", "decode", SHORT, 256),
        Measure("decode-2k", "decode", 2000, 128),
        Measure("decode-8k", "decode", 8000, 128),
        *(Measure(f"batch-{n}", "batch", n, 90) for n in (1, 2, 4, 8, 16)),
        Measure("first-token", "first", unit="s"),
        Measure("memory", "memory", unit="MB"),
    )
}


@dataclass(frozen=True)
class Facts:
    """What a GGUF file asks of the machine."""

    tensor_bytes: int
    token_bytes: int  # read for one token: all but an embedding that is not the head
    layer_weights: int  # multiplied for every token of a prompt; the head for the last one only
    head_weights: int
    kv_token_bytes: int  # of one position in an f16 cache

    @staticmethod
    def of(path: Path) -> Facts:
        """Read them from the file's header."""
        from freehold.run.formats import open_model_file

        file: Any = open_model_file(path)
        sizes = {name: (tensor.nbytes, tensor.shape) for name, tensor in file.tensors.items()}
        untied = sizes["token_embd.weight"][0] if "output.weight" in sizes else 0
        head = sizes.get("output.weight", sizes["token_embd.weight"])[1]
        layers = [s for name, (_, s) in sizes.items() if name.startswith("blk.") and len(s) == 2]
        kv = [s[0] for name, (_, s) in sizes.items() if name.endswith(("attn_k.weight", "attn_v.weight"))]
        total = sum(nbytes for nbytes, _ in sizes.values())
        file.close()
        weights = sum(n * k for n, k in layers)
        return Facts(total, total - untied, weights, head[0] * head[1], 2 * sum(kv))


@dataclass(frozen=True)
class Ceilings:
    """What this machine gave in this run: the most of any thread count measured."""

    read_gb_s: float
    int8_gops: float  # of the dpbusd loop, or of AMX where that is more

    def of(self, measure: Measure, facts: Facts) -> float | None:
        """Return the bound of a measure in its unit; None where nothing bounds it."""
        if measure.kind == "memory":
            kv = FIRST_CONTEXT * facts.kv_token_bytes
            return (1.1 * facts.tensor_bytes + kv + OVERHEAD) / 1e6
        if measure.kind == "first":
            return None
        sequences = measure.size if measure.kind == "batch" else 1
        operations = 2 * facts.layer_weights
        if measure.kind == "prefill":
            seconds = (operations * measure.size + 2 * facts.head_weights) / (self.int8_gops * 1e9)
            return measure.size / seconds
        depth = measure.size if measure.kind == "decode" else SHORT
        nbytes = facts.token_bytes + sequences * depth * facts.kv_token_bytes
        step = max(
            nbytes / (self.read_gb_s * 1e9),
            sequences * (operations + 2 * facts.head_weights) / (self.int8_gops * 1e9),
        )
        return sequences / step
