"""A model that learns: its file bound, matrices packed, low-rank pairs in float32, log-probabilities with gradients.

Knows a model file and what one forward pass over token rows gives; knows no data, no loss and no optimiser. SFT, DPO
and GRPO are weightings of what `log_probs` returns; rehearsal and distillation are divergences of what `states` does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.training.graph import RowBatch, Rows, TorchOps, Wanted
from freehold.adapt.training.packed import (
    AdaptedMatrix,
    AdaptedPlace,
    AdapterPair,
    Head,
    LowerPair,
    PackedMatrix,
    new_pair,
    places,
)
from freehold.adapt.training.parents import FixedPairs, check_rank, fixed_pairs, stacked
from freehold.base.errors import CapacityExceeded, UnsupportedModel, UsageError
from freehold.base.machine import available_bytes, default_threads
from freehold.base.version import __version__
from freehold.run.formats import LoraFile, ModelFile, QuantType, open_lora, open_model_file
from freehold.run.formats.gguf_writer import TensorPlan, Value, write_gguf
from freehold.run.formats.lora import CONFIG, WEIGHTS
from freehold.run.local.opening import text_side
from freehold.run.models.binding.bind import Source, assemble, read_source
from freehold.run.models.binding.binder import Stored
from freehold.run.models.family import NetworkWeights, Ops, TensorSpec
from freehold.run.models.lora import in_order_of
from freehold.run.models.tiny.make import safetensors_bytes
from freehold.run.store.space import human
from freehold.run.tokenizer import ChatTemplate, Tokenizer

if TYPE_CHECKING:
    import torch


F32 = NDArray[np.float32]
RANK, ALPHA = 16, 32.0
# Bytes: half of the layers for 256 tokens of a 0.5b; more costs memory, less a second forward pass.
ACTIVATIONS = 320 << 20
# Of a pair's values while it trains: themselves, the gradient, two moments, and the states before and after a step that
# loop.TrainingLoop holds, of three each.
COPIES = 10


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What a forward pass gives before the head: a row for each wanted token, of all token rows in turn."""

    rows: torch.Tensor  # float32 [wanted tokens, hidden], normalised
    head: Head
    targets: torch.Tensor  # the wanted tokens
    counts: tuple[int, ...]  # wanted tokens of each token row

    def log_probs(self) -> torch.Tensor:
        """Return log p(token) of all wanted tokens: float32 [wanted tokens]."""
        return self.head.log_probs(self.rows, self.targets)


@dataclass(frozen=True, slots=True)
class Beneath:
    """The adapter that a training starts from. `continued`: it is trained itself; else another on top of it."""

    path: Path
    continued: bool = False

    def opened(self) -> LoraFile:
        """Open its files. Raises what open_lora does."""
        return open_lora(self.path)


class Trainee:
    """A model bound for training. `pairs` change it; its own weights never change.

    Over an adapter that lies `beneath`, the base is the model with it.

    Use `open`. One instance computes in one thread at a time. Every result depends only on the arguments, the pairs'
    values and the number of threads, bit for bit.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        rank: int = RANK,
        alpha: float = ALPHA,
        seed: int = 0,
        threads: int | None = None,
        half: bool = False,
        memory: int = ACTIVATIONS,
        beneath: Beneath | None = None,
    ) -> None:
        count = threads or default_threads()
        load_torch(count)
        self.source, self.tokenizer, self.template = source, tokenizer, template
        self.rank, self.alpha, self.seed = rank, alpha, seed
        self._lower: FixedPairs | None = None
        self._continued = beneath is not None and beneath.continued
        if beneath is not None:
            self._begin_over(beneath)
        self._layers = [layer.keeps for layer in source.network.layers]
        self._memory = memory
        self._half, self._threads = half, native.Threads(count)
        _refuse_experts(source)
        self.adapted = self._drawn() if rank else ()  # every pair, in order of layers
        self._weights = self._bound()
        # On no rows nothing is computed, and a verb without a gradient raises by its name.
        self.states([], wanted=[], adapter=False)

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        rank: int = RANK,
        alpha: float = ALPHA,
        seed: int = 0,
        threads: int | None = None,
        half: bool = False,
        memory: int = ACTIVATIONS,
        beneath: Beneath | None = None,
    ) -> Self:
        """Bind a model file (GGUF, or a folder of safetensors) and draw its pairs.

        `rank` 0: no pairs at all, as for a teacher. `threads` None: as many as help. `half`: products in bfloat16
        with float32 sums, everything else in float32. `memory`: bytes for what the way back needs of layers; layers
        beyond it are computed twice, to the same bits. `beneath`: an adapter to start from; one that is continued
        keeps its own rank and scale. Raises BadModelFile, and UnsupportedModel for a model whose layers have no
        gradient here.
        """
        options: dict[str, Any] = {"rank": rank, "alpha": alpha, "seed": seed, "threads": threads}
        options |= {"half": half, "memory": memory, "beneath": beneath}
        with closing(open_model_file(Path(model))) as opened:
            return cls(_source(opened), *text_side(opened, Path(model)), **options)

    @property
    def name(self) -> str:
        """What the file calls itself."""
        return self.source.name

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return A and B of every pair, in order."""
        return [half for pair in self.adapted for half in (pair.a, pair.b)]

    # --- forward -----------------------------------------------------------------------------------

    def states(self, rows: Rows, *, wanted: Wanted | None = None, adapter: bool = True) -> States:
        """Compute the last activations before each wanted token; differentiable in the pairs.

        `rows`: token ids, two or more each; they are computed together and never see each other. Neighbours that begin
        alike, as answers to one prompt do, share what they begin with. `wanted`: for each row, whether the
        log-probability of ids[1], ids[2], ... is wanted; None: of all. The head costs time for wanted tokens alone.
        `adapter` False: the base, without a gradient.
        """
        import torch

        batch = RowBatch.of(rows, wanted)
        with nullcontext() if adapter and self.adapted else torch.no_grad():
            ops = TorchOps(batch, self._layers, self.name, adapter=adapter)
            self._forward(ops, self._weights.at(batch.longest), self._kept(len(batch.tokens)))
        assert ops.rows is not None and ops.head is not None, "a decoder's pass ends in logits"
        return States(ops.rows, ops.head, torch.from_numpy(batch.targets), batch.counts)

    def _forward(self, ops: TorchOps, weights: NetworkWeights, kept: int) -> None:
        """Run the network as Network.forward does; those before the last `kept` layers are computed twice."""
        from torch.utils.checkpoint import checkpoint

        network, verbs = self.source.network, cast(Ops, ops)
        x = network.ends.begin(verbs, weights.ends)
        beside = network.ends.beside(verbs, x, weights.ends)

        def layer(i: int, value: torch.Tensor) -> torch.Tensor:
            x.value = value
            for part in network.layers[i].parts:
                part.forward(verbs, i, x, {**weights.layers[i], **beside})
            return x.value

        for i in range(len(network.layers)):
            if i < len(network.layers) - kept:
                again = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
                x.value = cast("torch.Tensor", checkpoint(layer, i, x.value, **again))
            else:
                x.value = layer(i, x.value)
        network.ends.finish(verbs, x, weights.ends)

    def _kept(self, tokens: int) -> int:
        """Return how many layers' activations of a batch fit into the memory for them."""
        hidden = self._weights.ends["embed"].packed.columns
        width = max(
            sum(spec.shape[0] for spec, _ in b.values() if len(spec.shape) == 2) for b in self.source.layers
        )
        # Kept of a layer: rows of its products, most of them once, and some six of the residual's width.
        return self._memory // (4 * max(tokens, 1) * (6 * hidden + 3 * width // 2))

    def log_probs(
        self, rows: Rows, *, wanted: Wanted | None = None, adapter: bool = True
    ) -> list[torch.Tensor]:
        """Return log p(ids[t + 1] | ids[..t]) of each row's wanted tokens, in order: float32 [wanted tokens] each.

        Arguments as for `states`. Differentiable in the pairs; `backward` on a weighted sum of all rows is one pass.
        """
        states = self.states(rows, wanted=wanted, adapter=adapter)
        return list(states.log_probs().split(states.counts))

    # --- the pairs' values -------------------------------------------------------------------------

    def arrays(self) -> dict[str, F32]:
        """Return a copy of all pairs: "MODULE.a" [rank, columns] and "MODULE.b" [rows, rank]."""
        return {
            f"{pair.place.module}.{key}": half.detach().numpy().copy()
            for pair in self.adapted
            for key, half in (("a", pair.a), ("b", pair.b))
        }

    def restore(self, arrays: Mapping[str, F32]) -> None:
        """Take the values that `arrays` returned."""
        import torch

        with torch.no_grad():
            for pair in self.adapted:
                for key, half in (("a", pair.a), ("b", pair.b)):
                    half.copy_(torch.from_numpy(np.array(arrays[f"{pair.place.module}.{key}"])))

    def pairs(self) -> dict[str, tuple[F32, F32]]:
        """Return A and B by the name of the weight in the model's file, rows in its order, for models.lora.pack_pairs.

        Views, not copies, where nothing lies beneath: they change with the next step. The scale is `scale`.
        """
        own = "gguf" if self.source.gguf else "module"
        suffix = "" if self.source.gguf else ".weight"
        return {f"{getattr(pair.place, own)}{suffix}": self._whole(pair) for pair in self.adapted}

    def save(self, folder: Path, *, gguf: bool = False) -> None:
        """Write PEFT's two files into a folder that exists, and with `gguf` adapter.gguf for llama.cpp beside them."""
        pairs = []
        for pair in self.adapted:
            place, (a, b) = pair.place, self._whole(pair)
            pairs.append(SavedPair(place.module, place.gguf, place.spec, a, b, self.source.gguf))
        alpha = self.scale * len(pairs[0].a)
        write_peft(folder, pairs, alpha, self.name)
        if gguf:
            architecture = self.source.family.gguf_architecture
            write_gguf_adapter(folder / GGUF, pairs, alpha, architecture, self.name)

    @property
    def scale(self) -> float:
        """What a pair's product counts."""
        return self.alpha / self.rank

    def _whole(self, pair: AdapterPair) -> tuple[F32, F32]:
        """Return A and B of a pair, with what lies beneath it and is not in it already."""
        a, b = pair.a.detach().numpy(), pair.b.detach().numpy()
        if self._lower is None or self._continued:
            return a, b
        return stacked(self._lower, (pair.place.layer, pair.place.key), a, b, self.scale)

    # --- opening -----------------------------------------------------------------------------------

    def _drawn(self) -> tuple[AdapterPair, ...]:
        targets = list(places(self.source))
        if not targets:
            raise UnsupportedModel(f"{self.name} has no matrix that an adapter can change")
        values = self.rank * sum(sum(place.spec.shape) for place in targets)
        needed, free = COPIES * 4 * values, available_bytes()
        if needed > free:
            raise CapacityExceeded(
                f"pairs of rank {self.rank} take {human(needed)} while they are trained; {human(free)} are free",
                "lower --rank, or free memory",
            )
        pairs = tuple(new_pair(p, i, self.rank, self.alpha, self.seed) for i, p in enumerate(targets))
        if self._continued:
            self._take_lower(pairs)
        return pairs

    def _begin_over(self, beneath: Beneath) -> None:
        """Read the adapter beneath. A continued one sets rank and scale, another one moves the seed.

        Two adapters of one seed would begin with the same A.
        """
        file = beneath.opened()
        self._lower = fixed_pairs(file, self.source)
        if beneath.continued:
            self.rank, self.alpha = self._lower.rank, self._lower.scale * self._lower.rank
        else:
            check_rank(self._lower, self.rank)
            self.seed ^= int(file.digest[:8], 16)

    def _take_lower(self, pairs: Sequence[AdapterPair]) -> None:
        """Begin with the values of the adapter that is continued; rows that it lacks stay drawn, with B at zero."""
        import torch

        assert self._lower is not None, "a continued adapter lies beneath"
        with torch.no_grad():
            for pair in pairs:
                place = pair.place.layer, pair.place.key
                own = self._lower.pairs.get(place)
                taken = self._lower.as_pair(place, self.rank, self.scale)
                if own is None or taken is None:
                    continue
                pair.a[: own.rank] = torch.from_numpy(taken[0][: own.rank])
                pair.b.copy_(torch.from_numpy(taken[1]))

    def _lower_of(self, place: AdaptedPlace) -> LowerPair | None:
        import torch

        pair = self._lower.pairs.get((place.layer, place.key)) if self._lower else None
        if pair is None:
            return None
        a, b = torch.from_numpy(pair.a), torch.from_numpy(pair.b)
        return LowerPair(a, b, pair.scale, self._continued)

    def _bound(self) -> NetworkWeights:
        """Bind every matrix once, and put each pair beside its own."""
        packed: dict[str, PackedMatrix] = {}

        def matrix(stored: Stored) -> AdaptedMatrix:
            if stored.name not in packed:
                packed[stored.name] = PackedMatrix(stored, self._threads, half=self._half)
            return AdaptedMatrix(packed[stored.name])

        weights = assemble(self.source, matrix, lambda rope: rope)
        layers = [dict(w) for w in weights.layers]
        for pair in self.adapted:
            layer, key = layers[pair.place.layer], pair.place.key
            layer[key] = AdaptedMatrix(layer[key].packed, pair, self._lower_of(pair.place))
        return NetworkWeights(weights.ends, tuple(layers))


def _source(opened: ModelFile) -> Source:
    source = read_source(opened)
    if source.head is None:
        raise UnsupportedModel(f"{source.name} makes embeddings and no text", "train a model that generates")
    opened.check_whole()
    return source


def check_trainable(model: Path) -> None:
    """Raise what opening a Trainee would, and load no weights: for the front of work that a refusal would waste."""
    load_torch(default_threads())
    with closing(open_model_file(model)) as opened:
        _refuse_experts(_source(opened))


def _refuse_experts(source: Source) -> None:
    """Raise for a mixture, with the number of matrices that an adapter would leave unchanged."""
    stacks = [spec for _, (spec, _) in source.matrices_by_key() if len(spec.shape) == 3]
    if not stacks:
        return
    count = sum(spec.shape[0] for spec in stacks)
    raise UnsupportedModel(
        f"{source.name} is not trainable yet: mixture-of-experts, of which {count:,} matrices in {len(stacks)} stacks "
        "would stay without an adapter",
        "adapters train on dense models with attention",
    )


# --- writes an adapter: PEFT's two files, and a GGUF of it for llama.cpp ----------------------------
# PEFT's rows lie as safetensors have them, the GGUF's as a GGUF has them: of a llama's q and k the two
# differ, and either file is wrong for the other.

GGUF = "adapter.gguf"


@dataclass(frozen=True, slots=True)
class SavedPair:
    """A trained pair: its module's name in safetensors, its tensor's in a GGUF, rows as `of_gguf` says."""

    module: str
    gguf: str
    spec: TensorSpec
    a: F32
    b: F32
    of_gguf: bool  # rows and columns are in a GGUF's order

    def ordered(self, *, gguf: bool) -> tuple[F32, F32]:
        """Return A and B in a format's order."""
        if gguf == self.of_gguf:
            return self.a, self.b
        return in_order_of(self.spec, self.a, self.b, to_gguf=gguf)


def write_peft(folder: Path, pairs: Sequence[SavedPair], alpha: float, base: str) -> None:
    """Write adapter_model.safetensors (float32) and adapter_config.json. `base`: what the config names as the base."""
    rank = len(pairs[0].a)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({pair.module.rsplit(".", 1)[1] for pair in pairs}),
    }
    tensors: dict[str, F32] = {}
    for pair in pairs:
        a, b = pair.ordered(gguf=False)
        tensors[f"base_model.model.{pair.module}.lora_A.weight"] = a
        tensors[f"base_model.model.{pair.module}.lora_B.weight"] = b
    (folder / WEIGHTS).write_bytes(safetensors_bytes(tensors))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def write_gguf_adapter(
    path: Path, pairs: Sequence[SavedPair], alpha: float, architecture: str, base: str
) -> None:
    """Write the adapter as llama.cpp's `--lora` reads it: float32, rows in a GGUF's order."""
    keys: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        "general.name": f"an adapter for {base}",
        "general.base_model.count": 1,
        "general.base_model.0.name": base,
    }
    plans, data = [], []
    for pair in pairs:
        for suffix, values in zip(("lora_a", "lora_b"), pair.ordered(gguf=True), strict=True):
            plans.append(TensorPlan(f"{pair.gguf}.{suffix}", QuantType.F32, values.shape))
            data.append(np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8))
    write_gguf(path, keys, plans, data)


# --- torch, where training needs it: found when it is used, and asked for by name where it is missing

INSTALL = 'pip install "freehold[adapt]"'


def load_torch(threads: int) -> Any:
    """Return the module torch, set to `threads` and to algorithms that give the same bits again.

    Threads that wait must not spin: the engine's own would wait for the cores they hold. Raises UsageError where torch
    is not installed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        torch = importlib.import_module("torch")
    except ImportError as e:
        raise UsageError(
            f"training needs torch, which cannot be imported: {e}", f"install it: {INSTALL}"
        ) from e
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills every new tensor: a tenth of a step, against reads that our code does not do.
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch


def arithmetic(threads: int | None) -> dict[str, Any]:
    """Return what a run's bits follow from besides its inputs: the code's versions, and the number of threads."""
    from freehold.base.machine import default_threads

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:  # load_torch says so
        torch = ""
    return {"freehold": __version__, "torch": torch, "threads": threads or default_threads()}


def half_helps() -> bool:
    """Say whether this processor multiplies bfloat16 faster than float32.

    Intel's tiles (AMX) and AMD's AVX512_BF16 compute at least twice the products of float32. Intel's AVX512_BF16
    computes as many, and the conversions made torch's passes 1.4 times as long (Emerald Rapids, without its tiles).
    """
    from freehold.base.machine import processor

    cpu = processor()
    return "amx_bf16" in cpu.features or ("avx512_bf16" in cpu.features and "AMD" in cpu.name)
