"""Reads LoRA adapters: a folder as PEFT writes it, or a GGUF file of type adapter; and checks their names.

Knows both containers, PEFT's settings and what of them changes the arithmetic; knows no model. What is set and not
computed here is refused by its name, so that no adapter answers as another one than was trained. A name is valid in
`base+adapter`, or refused.

PEFT: adapter_config.json, adapter_model.safetensors with base_model.model.MODULE.lora_A.weight [rank, K] and
lora_B.weight [N, rank]. GGUF: general.type "adapter", adapter.type "lora", adapter.lora.alpha; WEIGHT.lora_a, .lora_b.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from freehold.base.config import nearest
from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel, UsageError
from freehold.run.formats.fields import Metadata
from freehold.run.formats.filemap import Tensor, check_whole, map_file, not_a_model, read_head, shown
from freehold.run.formats.gguf import MAGIC, open_gguf
from freehold.run.formats.safetensors import open_safetensors, side_json

# --- names -----------------------------------------------------------------------------------------

MAX_ADAPTERS = 64  # beside one model
# Without a plus, so that the only plus in `base+adapter` is the one between the two.
ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def check_adapter_name(name: str) -> None:
    """Raise UsageError for a name that is not valid after a plus."""
    if not re.fullmatch(ADAPTER_NAME, name):
        raise UsageError(
            f"{name[:80]!r} cannot be an adapter's name", "use up to 64 letters, digits, dots, dashes and _"
        )


def unknown_adapter(model: str, name: str, held: list[str]) -> ModelNotFound:
    """Build the error for an adapter that a model does not have."""
    near = nearest(name, held)
    spelled = ", ".join(f"{model}+{each}" for each in sorted(held)[:10])
    known = f"its adapters: {spelled}" if held else "it has none at all"
    # Others are named in the hint alone: http/core/problems.py replaces it for a key whose scope does not hold them.
    hint = f"did you mean {model}+{near}?" if near else known
    return ModelNotFound(f"{model} has no adapter {name[:80]!r}", hint)


# --- adapters --------------------------------------------------------------------------------------

MAX_RANK = 512
MAX_MODULES = 1 << 14  # a thousand layers of seven, twice
MAX_PATTERNS = MAX_MODULES  # entries of rank_pattern and alpha_pattern
MAX_ALPHA = 1e6
MAX_BESIDE = 64 << 20  # bytes of a file beside its matrices: names, metadata, padding

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# Settings of PEFT that say how an adapter was trained, or what open_lora reads itself.
_KNOWN = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "eva_config"),
}  # fmt: skip
# Of those that begin otherwise (PiSSA, OLoRA, LoftQ, CorDA) the base model is changed too.
_INITS = (True, False, "gaussian", "eva", "orthogonal")
_NAME = re.compile(r"\^?[\w.]+")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What one module gains: W x becomes W x + scale * B (A x)."""

    a: Tensor  # [rank, K]
    b: Tensor  # [N, rank]
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class LoraFile:
    """An adapter as it is on disk. `modules`: by the name of the weight that is changed, as its base spells it."""

    path: Path
    gguf: bool  # names and the order of rows are those of GGUF files
    architecture: str  # that a GGUF names; "" for PEFT, which names none
    base: str  # what the file calls the model it was made for; "" where it does not
    modules: Mapping[str, LowRank]
    digest: str  # SHA-256 of all that was read

    def check_whole(self) -> None:
        """Raise BadModelFile if the file was cut short since it was opened: what was read of it may be zeros."""
        for pair in self.modules.values():
            for half in (pair.a, pair.b):
                check_whole(self.path, half.raw)


def open_lora(path: str | Path) -> LoraFile:
    """Open a PEFT folder, its adapter_model.safetensors, or a GGUF adapter.

    Raises ModelNotFound, UnsupportedModel for anything beyond low-rank changes of matrices, by name,
    and BadModelFile for what is inconsistent.
    """
    path = Path(path)
    if os.path.isdir(path):
        return _open_peft(path)
    head = read_head(path)
    if head.startswith(MAGIC):
        return _open_gguf(path)
    if path.name == WEIGHTS:
        return _open_peft(path.parent)
    raise not_a_model(path, head)


# --- PEFT ------------------------------------------------------------------------------------------


def _open_peft(folder: Path) -> LoraFile:
    if not os.path.exists(folder / CONFIG):
        raise ModelNotFound(f"{folder} has no {CONFIG}", "name the folder that PEFT saved the adapter in")
    if not os.path.exists(folder / WEIGHTS):
        raise ModelNotFound(
            f"{folder} has no {WEIGHTS}", "an adapter of pickled weights (adapter_model.bin) is never loaded"
        )
    config = side_json(folder / CONFIG)
    _refuse_settings(config, str(folder / CONFIG))
    scales = _Scales(config, str(folder / CONFIG))
    with open_safetensors(folder / WEIGHTS) as opened:
        ends = (".lora_A.weight", ".lora_B.weight")
        halves = {name: _half(folder / WEIGHTS, name, ends, _PREFIX) for name in opened.tensors}
        pairs = _paired(folder / WEIGHTS, opened.tensors, halves)
    modules = {f"{name}.weight": LowRank(a, b, scales.of(name, a.shape[0])) for name, (a, b) in pairs.items()}
    base = config.get_str("base_model_name_or_path", "")
    return LoraFile(folder, False, "", base, modules, _digest(folder / CONFIG, folder / WEIGHTS))


def _refuse_settings(config: Metadata, where: str) -> None:
    """Raise UnsupportedModel for the first setting whose arithmetic is not done here."""
    kind = config.get_str("peft_type")
    if kind != "LORA":
        raise UnsupportedModel(f"{where}: peft_type is {shown(kind)}; supported: LORA")
    if config.get_bool("use_dora", False):
        raise UnsupportedModel(f"{where}: use_dora is set; DoRA scales the base's own weights")
    bias = config.get_str("bias", "none")
    if bias != "none":
        raise UnsupportedModel(f"{where}: bias is {shown(bias)}; biases of an adapter are not applied")
    init = config.get("init_lora_weights")
    if init is not None and init not in _INITS:
        raise UnsupportedModel(
            f"{where}: init_lora_weights is {shown(str(init))}, which changes the base model too",
            "save it with path_initial_model_for_weight_conversion, which makes a plain adapter of it",
        )
    for key, value in config.items():
        if key not in _KNOWN and value not in (None, False, 0, "", [], {}):
            raise UnsupportedModel(
                f"{where} sets {shown(key)} to {shown(str(value))}, which is not supported"
            )


class _Scales:
    """How much each module's product counts: alpha over its rank, or over the rank's root."""

    def __init__(self, config: Metadata, where: str) -> None:
        self._where = where
        self._rank = _bounded(config.get_int("r"), MAX_RANK, f"{where}: r")
        self._alpha = _bounded(config.get_float("lora_alpha"), MAX_ALPHA, f"{where}: lora_alpha")
        self._root = config.get_bool("use_rslora", False)
        empty = Metadata({}, where)
        ranks, alphas = config.get_map("rank_pattern", empty), config.get_map("alpha_pattern", empty)
        self._ranks = _patterns({key: ranks.get_int(key) for key in ranks}, MAX_RANK, where)
        self._alphas = _patterns({key: alphas.get_float(key) for key in alphas}, MAX_ALPHA, where)

    def of(self, module: str, rank: int) -> float:
        """Return the scale of a module whose A has `rank` rows, which is what the settings say."""
        stated = int(_matching(self._ranks, module, self._rank))
        if rank != stated:
            raise BadModelFile(f"{self._where} gives {shown(module)} rank {stated}; its tensors have {rank}")
        alpha = _matching(self._alphas, module, self._alpha)
        return alpha / (math.sqrt(rank) if self._root else rank)


def _patterns(values: Mapping[str, float], most: float, where: str) -> dict[str, float]:
    """Check a pattern's names: ends of module names, from the beginning after a ^. Expressions are refused."""
    if len(values) > MAX_PATTERNS:
        raise BadModelFile(f"{where}: a pattern has {len(values):,} entries; the limit is {MAX_PATTERNS:,}")
    for key, value in values.items():
        if not _NAME.fullmatch(key):
            raise UnsupportedModel(f"{where}: the pattern {shown(key)} is not a module's name")
        _bounded(value, most, f"{where}: the pattern {shown(key)}")
    return dict(values)


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first name that fits a module, as PEFT chooses it."""
    for key, value in patterns.items():
        name = key.removeprefix("^")
        if module == name or (name == key and module.endswith(f".{name}")):
            return value
    return default


# --- GGUF ------------------------------------------------------------------------------------------


def _open_gguf(path: Path) -> LoraFile:
    with open_gguf(path) as opened:
        meta = opened.metadata
        kind, form = meta.get_str("general.type", "model"), meta.get_str("adapter.type", "")
        if kind != "adapter":
            raise BadModelFile(f"{path} is of type {shown(kind)}, no adapter", "give it as MODEL")
        if form != "lora":
            raise UnsupportedModel(f"{path}: adapter.type is {shown(form)}; supported: lora")
        if "adapter.alora.invocation_tokens" in meta:
            raise UnsupportedModel(
                f"{path} is switched on by tokens (adapter.alora.invocation_tokens), which is not supported"
            )
        alpha = _bounded(meta.get_float("adapter.lora.alpha"), MAX_ALPHA, f"{path}: adapter.lora.alpha")
        halves = {name: _half(path, name, (".lora_a", ".lora_b")) for name in opened.tensors}
        pairs = _paired(path, opened.tensors, halves)
        modules = {name: LowRank(a, b, alpha / a.shape[0]) for name, (a, b) in pairs.items()}
        base = meta.get_str("general.base_model.0.name", "")
        return LoraFile(path, True, opened.architecture, base, modules, _digest(*opened.paths))


# --- both ------------------------------------------------------------------------------------------


def _half(path: Path, name: str, ends: tuple[str, str], prefix: str = "") -> tuple[str, bool]:
    """Split a tensor's name into the module's and whether it is B, by what those of A and of B end in."""
    for end in ends:
        if name.startswith(prefix) and name.endswith(end):
            return name.removeprefix(prefix).removesuffix(end), end == ends[1]
    raise UnsupportedModel(
        f"{path} holds {shown(name)}, which is not a low-rank change of a matrix",
        "an adapter with other parts (embeddings, norms, magnitudes, whole modules) is merged into its base first",
    )


def _paired(
    path: Path, tensors: Mapping[str, Tensor], halves: Mapping[str, tuple[str, bool]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Bring A and B of each module together, of one rank within its limits."""
    sides: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for name, (module, is_b) in halves.items():
        sides[is_b][module] = tensors[name]
    alone = next(iter(sides[0].keys() ^ sides[1].keys()), None)
    if alone is not None:
        raise BadModelFile(f"{path}: {shown(alone)} has only one of its two matrices")
    if not 1 <= len(sides[0]) <= MAX_MODULES:
        raise BadModelFile(f"{path} changes {len(sides[0]):,} modules; expected 1 to {MAX_MODULES:,}")
    held, size = sum(tensor.raw.size for tensor in tensors.values()), path.stat().st_size
    if size > held + MAX_BESIDE:  # all of it is read for the digest
        raise BadModelFile(
            f"{path} has {size:,} bytes, and its matrices {held:,}; expected at most {MAX_BESIDE:,} beside them"
        )
    pairs = {module: (a, sides[1][module]) for module, a in sides[0].items()}
    for module, (a, b) in pairs.items():
        _check_pair(f"{path}: {shown(module)}", a, b)
    return pairs


def _check_pair(where: str, a: Tensor, b: Tensor) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise BadModelFile(
            f"{where} has A {list(a.shape)} and B {list(b.shape)}; expected [rank, K], [N, rank]"
        )
    if not 1 <= a.shape[0] <= MAX_RANK:
        raise BadModelFile(f"{where} has rank {a.shape[0]:,}; expected 1 to {MAX_RANK}")
    for tensor in (a, b):
        if tensor.type.name.startswith("I") and not tensor.type.name.startswith("IQ"):
            raise UnsupportedModel(f"{where} is of type {tensor.type.name}, which holds no weights")


def _bounded(value: float, most: float, name: str) -> float:
    """Return a number above 0 and up to `most`."""
    if not 0 < value <= most:
        # An integer of any length is not a float, and too long to show.
        raise BadModelFile(f"{name} is {value!s:.40}; expected more than 0, to {most:g}")
    return value


def _digest(*paths: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        data = map_file(path)
        total.update(len(data).to_bytes(8))
        total.update(data.data)
        check_whole(path, data)
    return total.hexdigest()
