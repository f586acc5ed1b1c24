"""`freehold quantize`, without the command line: a stored model in, a folder with model.gguf and receipt.json out.

Knows the order of the work: choose types, write the model in steps that a crash keeps, measure, write down. Knows no
terminal. Nothing is fetched; no network is used.
Path: cli/quantize.py -> quantise -> recipes, writing, report -> RunFolder.finish
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import freehold
from freehold import _native as native
from freehold.adapt.licences import base_licence
from freehold.adapt.quantize.encoding import encoded_pieces
from freehold.adapt.quantize.recipes import FILE_TYPES, TensorChoice, choose, file_type, quantisable
from freehold.adapt.quantize.report import UNTIL, Measurement, coarse_note, measured
from freehold.adapt.quantize.writing import (
    MODEL,
    OnTensor,
    by_type,
    model_bytes,
    quantised_keys,
    weight_bits,
    write_model,
)
from freehold.adapt.receipt import file_digest, receipt
from freehold.adapt.run import RunFolder
from freehold.advisor.facts import Facts
from freehold.config import Settings
from freehold.errors import UnsupportedModel, UsageError
from freehold.evals.side_by_side import OnBlock
from freehold.formats import GGUFFile, Tensor, open_model_file
from freehold.formats.gguf_writer import Value
from freehold.machine import default_threads
from freehold.models.binding.bind import read_source
from freehold.store import ModelRef

BITS = {4: "Q4_K_M"}
COARSE_BITS = 6.0  # of a source: below, its own errors are part of what is quantised


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """What to make of a model. One of `type`, `bits` and `target_bytes`, or none for four bits."""

    type: str = ""
    bits: int = 0
    target_bytes: int = 0
    report: bool = False
    text: Path | None = None  # what a report reads; None: the held-out text of the package
    until: float = UNTIL
    threads: int = 0  # 0: as many as help
    fresh: bool = False
    facts: Facts = field(default_factory=Facts)  # the user's, for the licence


@dataclass(frozen=True, slots=True)
class Watching:
    """Callbacks for notes and progress."""

    on_note: Callable[[str], None] = lambda _: None
    on_tensor: OnTensor | None = None
    on_block: OnBlock | None = None


@dataclass(frozen=True, slots=True)
class _Planned:
    """A source and what becomes of it."""

    source: GGUFFile
    name: str  # of the file type
    choices: Sequence[TensorChoice]
    keys: dict[str, Value]


def quantise(
    ref: ModelRef, out: Path, asked: QuantizeRequest, settings: Settings, watching: Watching | None = None
) -> dict[str, Any]:
    """Quantise a model into the folder `out`; return its receipt.

    The same call after an interruption continues, and makes the same bytes. Raises UsageError, UnsupportedModel,
    CapacityExceeded and StoreError.
    """
    watching = watching or Watching()
    threads = asked.threads or default_threads()
    inputs = _inputs(ref, asked)
    with closing(_opened(ref)) as source, RunFolder.open(out, "quantize", inputs, fresh=asked.fresh) as run:
        planned = _planned(source, asked)
        for note in notes_before(planned.choices):
            watching.on_note(note)
        pool = native.Threads(threads)
        path = write_model(
            run,
            planned.keys,
            planned.choices,
            lambda choice: encoded_pieces(choice.tensor, choice.type, pool),
            watching.on_tensor,
        )
        source.check_whole()
        found = _measured(ref, path, asked, settings, threads, watching) if asked.report else None
        made = _receipt(ref, inputs, planned, path, found, asked)
        for note in made["notes"]:
            watching.on_note(note)
        run.finish(made)
    return made


def _opened(ref: ModelRef) -> GGUFFile:
    """Open a source. Raises UnsupportedModel for what cannot be quantised into a GGUF, or not run."""
    opened = open_model_file(ref.path)
    if not isinstance(opened, GGUFFile):
        opened.close()
        raise UnsupportedModel(
            f"{ref.name} is a folder of safetensors; a GGUF is what is quantised",
            "take a GGUF of the model in F16, BF16 or Q8_0; freehold pull --quant q4 rounds safetensors when they load",
        )
    read_source(opened)
    return opened


def _inputs(ref: ModelRef, asked: QuantizeRequest) -> dict[str, Any]:
    """Return what decides the result's bytes."""
    return {
        "base": {"name": ref.name, "sha256": ref.digest or _digest(ref)},
        "type": asked.type,
        "bits": asked.bits,
        "target_bytes": asked.target_bytes,
        "code": freehold.__version__,
    }


def _digest(ref: ModelRef) -> str:
    """Return the digest of a file that the store never hashed, or of the list of its shards' digests."""
    from freehold.adapt.receipt import text_digest

    files = ref.files or (ref.path,)
    found = [file_digest(path) for path in files]
    return found[0] if len(found) == 1 else text_digest("\n".join(found))


def _planned(source: GGUFFile, asked: QuantizeRequest) -> _Planned:
    given = [name for name in ("type", "bits", "target_bytes") if getattr(asked, name)]
    if len(given) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{options} say different things", "give one of them")
    name, kind = file_type(asked.type or BITS[asked.bits or 4])
    choices = choose(source, name)
    if not any(c.changes for c in choices):
        raise UsageError(
            f"nothing would change: every matrix of {source.path.name} is what {name} makes of it",
            "choose another type",
        )
    return _Planned(source, name, choices, quantised_keys(source, kind.id, _own_keys(name)))


def _own_keys(name: str) -> dict[str, Value]:
    return {"freehold.quantized_as": name, "freehold.version": freehold.__version__}


def notes_before(choices: Sequence[TensorChoice]) -> list[str]:
    """Return what the user should know before the work: a coarse source, types that rows could not take."""
    return [note for note in (_coarse_source(choices), *_fallbacks(choices)) if note]


def _coarse_source(choices: Sequence[TensorChoice]) -> str:
    bits = _bits(c.tensor for c in choices if quantisable(c.tensor))
    if not bits < COARSE_BITS:
        return ""
    return f"the source has {bits:.1f} bits a weight itself: quality is measured against it, not against the original"


def _bits(tensors: Any) -> float:
    held: list[Tensor] = list(tensors)
    weights = sum(math.prod(t.shape) for t in held)
    return 8 * sum(t.nbytes for t in held) / weights if weights else math.inf


def _fallbacks(choices: Sequence[TensorChoice]) -> list[str]:
    """Return a line for each kind of fall-back: what was wanted, what was given, why, and how many tensors."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for c in choices:
        if c.fell_back:
            groups.setdefault((c.wanted.name, c.type.name, c.tensor.shape[-1]), []).append(c.tensor.name)
    return [
        f"{len(names)} tensors with rows of {columns} cannot be {wanted} (blocks of 256) and become {given}: "
        f"{names[0]}{', ...' if len(names) > 1 else ''}"
        for (wanted, given, columns), names in sorted(groups.items())
    ]


def _measured(
    ref: ModelRef, path: Path, asked: QuantizeRequest, settings: Settings, threads: int, watching: Watching
) -> Measurement:
    return measured(
        ref.path,
        path,
        settings,
        text=asked.text,
        until=asked.until,
        threads=threads,
        on_block=watching.on_block,
    )


def _receipt(
    ref: ModelRef,
    inputs: Mapping[str, Any],
    planned: _Planned,
    path: Path,
    found: Measurement | None,
    asked: QuantizeRequest,
) -> dict[str, Any]:
    bits = weight_bits(planned.choices)
    weights = sum(math.prod(c.tensor.shape) for c in planned.choices)
    coarse = coarse_note(bits, weights, found.divergence if found else None)
    return receipt(
        "quantize",
        inputs,
        result={
            "file": MODEL,
            "sha256": file_digest(path),
            "bytes": path.stat().st_size,
            "source_bytes": ref.bytes or sum(p.stat().st_size for p in planned.source.paths),
            "type": planned.name,
            "bits_a_weight": round(bits, 4),
            "weights": weights,
            "bytes_by_type": by_type(planned.choices),
            "fell_back": {
                c.tensor.name: {"wanted": c.wanted.name, "given": c.type.name}
                for c in planned.choices
                if c.fell_back
            },
        },
        licence=base_licence(ref, asked.facts).as_json(),
        notes=[note for note in (coarse,) if note],
        **(found.as_json() if found else {}),
    )


def expected_bytes(source: GGUFFile, name: str) -> int:
    """Return the size of a file of the type `name`, before it is written."""
    choices = choose(source, name)
    return model_bytes(quantised_keys(source, FILE_TYPES[name].id, _own_keys(name)), choices)
