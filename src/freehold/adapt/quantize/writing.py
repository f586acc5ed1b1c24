"""Writes a quantised model: the source's metadata, every tensor in its chosen type, in steps that a crash keeps.

The header is complete before the first tensor, so the file of an interrupted run continues after the last tensor that
was brought to disk, and comes out with the same bytes. Knows files and choices; knows no mix and no report.
Path: cli/quantize.py -> quantised_keys, write_model -> GGUFWriter, RunFolder.keep
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from freehold.adapt.quantize.recipes import TensorChoice, layer_of
from freehold.adapt.run import RunFolder
from freehold.formats import GGUFFile, QuantType
from freehold.formats.gguf_writer import Bytes, GGUFWriter, TensorPlan, Value, copied_keys, gguf_size
from freehold.formats.weight_types import TABLE_TYPES

MODEL = "model.gguf"
KEEP_BYTES = 1 << 24  # written between two checkpoints: seconds of work
QUANTIZATION_VERSION = 2  # of ggml's block formats, as llama.cpp writes it

Encode: TypeAlias = Callable[[TensorChoice], Iterable[Bytes]]
OnTensor: TypeAlias = Callable[[int, int, TensorChoice], None]  # tensors done, in all, the one that follows


def quantised_keys(source: GGUFFile, file_type: int, ours: dict[str, Value]) -> dict[str, Value]:
    """Return the source's metadata with what quantising changes, and keys of our own."""
    changed: dict[str, Value] = {
        "general.file_type": file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    return copied_keys(source) | changed | ours


def plans_of(choices: Sequence[TensorChoice]) -> list[TensorPlan]:
    """Return the tensors to write, in order."""
    return [TensorPlan(c.tensor.name, c.type, c.tensor.shape) for c in choices]


def model_bytes(keys: dict[str, Value], choices: Sequence[TensorChoice]) -> int:
    """Return the size of the file to the byte, before anything is written."""
    return gguf_size(keys, plans_of(choices))


def write_model(
    run: RunFolder,
    keys: dict[str, Value],
    choices: Sequence[TensorChoice],
    encode: Encode,
    on_tensor: OnTensor | None = None,
    also: Callable[[], Mapping[str, Any]] = dict,
    *,
    by_layer: bool = False,
) -> Path:
    """Write the model into the run's folder, from where an interrupted run of the same inputs stopped.

    The run's state is saved after some bytes, after each tensor in a type of our own, which takes seconds, and with
    `by_layer` after each layer. It keeps its values; `whole` is the number of tensors on disk, and `also` adds more.
    """
    path = run.path(MODEL)
    state = dict(run.kept.state) if run.kept else {}
    whole = int(state.get("whole", 0))
    with GGUFWriter(path, keys, plans_of(choices), whole) as writer:
        kept_at = writer.nbytes
        layers = [layer_of(choice.tensor.name) for choice in choices]
        for done, choice in enumerate(choices[whole:], whole):
            if on_tensor is not None:
                on_tensor(done, len(choices), choice)
            for piece in encode(choice):
                writer.write(piece)
            ends_layer = by_layer and layers[done] >= 0 and layers[done] not in layers[done + 1 :]
            slow = choice.changes and choice.type in TABLE_TYPES
            if writer.nbytes - kept_at >= KEEP_BYTES or ends_layer or slow:
                kept_at = writer.nbytes
                run.keep(done + 1, {}, {**state, **also(), "whole": writer.sync()})
        writer.finish()
    run.keep(len(choices), {}, {**state, **also(), "whole": len(choices)})
    return path


def weight_bits(choices: Iterable[TensorChoice]) -> float:
    """Return the bits a weight of what was encoded, or NaN for nothing."""
    encoded = [c for c in choices if c.changes]
    weights = sum(_elements(c) for c in encoded)
    return 8 * sum(p.nbytes for p in plans_of(encoded)) / weights if weights else float("nan")


def by_type(choices: Iterable[TensorChoice]) -> dict[str, int]:
    """Return the bytes of each type, the most first."""
    sizes: dict[QuantType, int] = {}
    for plan in plans_of(list(choices)):
        sizes[plan.type] = sizes.get(plan.type, 0) + plan.nbytes
    return {t.name: n for t, n in sorted(sizes.items(), key=lambda item: -item[1])}


def _elements(choice: TensorChoice) -> int:
    count = 1
    for dim in choice.tensor.shape:
        count *= dim
    return count
