"""`freehold quantize`, without the command line: a stored model in, a folder with model.gguf and receipt.json out.

Knows the order of the work: choose types, write the model in steps that a crash keeps, measure, write down. Knows no
terminal. Nothing is fetched; no network is used.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np

from freehold import _native as native
from freehold.adapt.evals.divergence import (
    UNTIL,
    AnsweredIds,
    LogitSource,
    OnBlock,
    TextDivergence,
    diverge,
    diverge_answers,
    held_out_text,
    tokenizer_of,
    windows,
)
from freehold.adapt.licences import base_licence
from freehold.adapt.quantize.calibration import CalibratedLayer, KeptLayers, Moments, OnText, calibrate
from freehold.adapt.quantize.changed import FusedFile, fused_file
from freehold.adapt.quantize.encoding import DAMPING, F32, U8, encode, encoded_pieces, feedback
from freehold.adapt.quantize.planning import (
    MODEL,
    OnGroup,
    OnTensor,
    QuantizationPlan,
    QuantizeRequest,
    by_type,
    calibration_texts,
    model_bytes,
    notes_before,
    planned,
    weight_bits,
    write_model,
)
from freehold.adapt.quantize.recipes import TensorChoice, layer_of
from freehold.adapt.quantize.texts import held_out, plain_text, texts_hash
from freehold.adapt.run import RunFolder, cpu_seconds, file_digest, receipt, text_digest
from freehold.adapt.stages import StageBases
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, NotMet, UnsupportedModel
from freehold.base.machine import default_threads
from freehold.base.types import SamplingParams
from freehold.base.version import __version__
from freehold.choose.advisor.file_anatomy import from_file
from freehold.choose.advisor.fit import Fit, fit
from freehold.choose.choosing import here
from freehold.run.engine import Engine
from freehold.run.formats import GGUFFile, open_model_file
from freehold.run.formats.trellis import BITS
from freehold.run.models.binding.bind import Source, read_source
from freehold.run.models.load import LoadedModel
from freehold.run.models.lora import Adapter
from freehold.run.store import ModelRef

# Processor seconds of a quantisation by what they were spent on, over all runs that made it.
PARTS = ("mix", "calibration", "encoding", "report")


class SpentSeconds:
    """Adds up seconds by part. A part inside another one counts alone: calibration runs while tensors are encoded."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._parts: list[str] = []
        self._since = 0.0

    def resume(self, kept: Mapping[str, float]) -> None:
        """Add what earlier runs spent."""
        for part, seconds in kept.items():
            if part in self.seconds:
                self.seconds[part] += float(seconds)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count what is spent inside as `part`."""
        self._count()
        self._parts.append(part)
        try:
            yield
        finally:
            self._count()
            self._parts.pop()

    def so_far(self) -> dict[str, float]:
        """Return seconds by part, rounded, up to now; parts without any are left out."""
        self._count()
        return {part: round(seconds, 2) for part, seconds in self.seconds.items() if seconds >= 0.005}

    def _count(self) -> None:
        now = cpu_seconds()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now


SPOOL = "streams.tmp"  # what texts have become on their way through the layers


@dataclass(frozen=True, slots=True)
class Watching:
    """Callbacks for notes and progress, and the seconds that they may show."""

    on_note: Callable[[str], None] = lambda _: None
    on_group: OnGroup | None = None
    on_tensor: OnTensor | None = None
    on_text: OnText | None = None
    on_block: OnBlock | None = None
    spent: SpentSeconds = field(default_factory=SpentSeconds)


# What a verb says of a written file beside its size: parts of the receipt. Raises NotMet for one that is not kept.
Examine: TypeAlias = Callable[[Path], Mapping[str, Any]]


def quantise(
    ref: ModelRef,
    out: Path,
    request: QuantizeRequest,
    settings: Settings,
    watching: Watching | None = None,
    *,
    adapters: Sequence[Path] = (),
    examine: Examine | None = None,
) -> dict[str, Any]:
    """Quantise a model, with `adapters` in its weights, into the folder `out`; return its receipt.

    The same call after an interruption continues, and makes the same bytes. Raises UsageError, UnsupportedModel,
    CapacityExceeded and StoreError.
    """
    request.check()
    bases = StageBases.of(ref, adapters)
    if not ref.source.startswith("file:"):  # a file's name says nothing of what is in it
        request = replace(request, base=ref.name)
    watching = watching or Watching()
    threads = request.threads or default_threads()
    pool = native.Threads(threads)
    with closing(_opened(ref, adapters)) as source:
        bound = read_source(source)
        texts = calibration_texts(request, source)
        inputs = _inputs(bases, request, texts) | bases.inputs
        for note in bases.notes:
            watching.on_note(note)
        with RunFolder.open(out, request.verb, inputs, fresh=request.fresh) as run:
            kept = run.kept.state if run.kept else {}
            spent = watching.spent
            spent.resume(kept.get("spent", {}))
            with spent.on("mix"):
                plan = planned(source, request, texts, pool, kept, watching.on_group)
            size = model_bytes(dict(plan.keys), plan.choices)
            for note in notes_before(plan.choices, size, _source_bytes(source)):
                watching.on_note(note)
            if not kept:
                run.keep(0, {}, {**plan.as_state(), "spent": spent.so_far()})
            with spent.on("encoding"):
                path = _written(run, plan, bound, texts, pool, watching)
            source.check_whole()
            with spent.on("report"):
                measurement = None
                if request.report:
                    reading = {"text": request.text, "until": request.until, "threads": threads}
                    packed = source.adapters.packed if isinstance(source, FusedFile) else None
                    measurement = measured(
                        ref.path, path, settings, packed=packed, **reading, on_block=watching.on_block
                    )
                parts = _examined(run, path, examine)
            dampings = run.kept.state["damping"] if run.kept else {}
            record = _receipt(ref, source, inputs, plan, path, measurement, request) | {
                **parts,
                "chain": bases.chain,
                "damping": dict(dampings),
                "cpu_seconds_by_part": spent.so_far(),
            }
            for note in record["notes"]:
                watching.on_note(note)
            run.finish(record)
    return record


def _examined(run: RunFolder, path: Path, examine: Examine | None) -> Mapping[str, Any]:
    """Return what is measured of a file; one that does not meet what it must is removed with the run's work."""
    if examine is None:
        return {}
    try:
        return examine(path)
    except NotMet:
        run.discard()
        raise


def _opened(ref: ModelRef, adapters: Sequence[Path] = ()) -> GGUFFile:
    """Open a source, with adapters in its weights. Raises UnsupportedModel for what is not written as a GGUF."""
    opened = open_model_file(ref.path)
    if isinstance(opened, GGUFFile):
        try:
            return fused_file(opened, adapters) if adapters else opened
        except BaseException:
            opened.close()
            raise
    opened.close()
    raise UnsupportedModel(
        f"{ref.name} is a folder of safetensors; a GGUF is what is quantised",
        "use a GGUF of the model in F16, BF16 or Q8_0; freehold pull --quant q4 rounds safetensors when they load",
    )


def _inputs(bases: StageBases, request: QuantizeRequest, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {
        "base": {"name": bases.model.name, "sha256": bases.digest},
        "type": request.name or ("as the base" if request.as_base else ""),
        "target_bytes": request.target_bytes,
        "portable": request.portable,
        "calibration": {
            "texts": request.texts,
            "tokens": sum(map(len, texts)),
            "sha256": texts_hash(texts) if texts else "",
        },
        "code": __version__,
    }


def _written(
    run: RunFolder,
    plan: QuantizationPlan,
    bound: Source,
    texts: Sequence[Sequence[int]],
    pool: native.Threads,
    watching: Watching,
) -> Path:
    kept = run.kept.state.get("damping", {}) if run.kept else {}
    bits = max((BITS.get(c.type, 0) for c in plan.choices), default=0)
    dampings = {int(layer): damping for layer, damping in kept.items()}
    spent = watching.spent
    whole = int(run.kept.state.get("whole", 0)) if run.kept else 0
    wanted = (layer_of(c.tensor.name) for c in plan.choices[whole:] if c.changes)
    layers = KeptLayers(run.folder, next((n for n in wanted if n >= 0), 0))
    with CalibratedEncoder(
        bound,
        texts,
        run.path(SPOOL),
        pool,
        bits=bits,
        dampings=dampings,
        spent=spent,
        kept=layers,
        on_text=watching.on_text,
    ) as encoder:
        path = write_model(
            run,
            dict(plan.keys),
            plan.choices,
            encoder.pieces,
            watching.on_tensor,
            lambda: {
                "damping": {str(layer): each for layer, each in encoder.dampings.items()},
                "spent": spent.so_far(),
            },
            by_layer=bool(texts),
        )
    layers.clear()
    run.path(SPOOL).unlink(missing_ok=True)  # of a run that was killed
    return path


def _source_bytes(source: GGUFFile) -> int:
    return sum(path.stat().st_size for path in source.paths)


def _receipt(
    ref: ModelRef,
    source: GGUFFile,
    inputs: Mapping[str, Any],
    plan: QuantizationPlan,
    path: Path,
    measurement: Measurement | None,
    request: QuantizeRequest,
) -> dict[str, Any]:
    result = _result(source, plan, path)
    mix = {
        "predicted_divergence": plan.predicted,
        "sensitivity": dict(plan.sensitivity),
        "types": {c.tensor.name: c.type.name for c in plan.choices if c.changes},
    }
    layers = weight_bits(c for c in plan.choices if layer_of(c.tensor.name) >= 0)
    coarse = coarse_note(layers, result["weights"], measurement.divergence if measurement else None)
    return receipt(
        request.verb,
        inputs,
        result=result,
        licence=base_licence(ref, request.facts).as_json(),
        notes=[coarse] if coarse else [],
        **({} if plan.predicted is None else {"mix": mix}),
        **(measurement.as_json() if measurement else {}),
    )


def _result(source: GGUFFile, plan: QuantizationPlan, path: Path) -> dict[str, Any]:
    bits = weight_bits(plan.choices)
    return {
        "file": MODEL,
        "sha256": file_digest(path),
        "bytes": path.stat().st_size,
        "source_bytes": _source_bytes(source),
        "type": plan.name,
        "bits_a_weight": None if math.isnan(bits) else round(bits, 4),
        "weights": sum(math.prod(c.tensor.shape) for c in plan.choices),
        "bytes_by_type": by_type(plan.choices),
        "fell_back": {
            c.tensor.name: {"wanted": c.wanted.name, "given": c.type.name}
            for c in plan.choices
            if c.fell_back
        },
    }


# --- how far a quantised model is from its source ---------------------------------------------------
# How large and how fast it is: measured here, beside a prediction.
# The text is held out: not what the weights were calibrated on.

ROUNDS, PROMPT, TOKENS = 3, 32, 48  # of timed decoding
_SURE_BITS = 2.9  # of a layer's matrices; below: see coarse_note
_SMALL_MODEL = 1_000_000_000  # weights


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a report says of a result beside its source."""

    divergence: TextDivergence
    text: str  # where it came from
    text_sha256: str
    speed: Mapping[str, Mapping[str, float]]  # "source" and "result": tokens a second and what they take
    answers: TextDivergence | None = None  # at the tokens of answers
    moved: TextDivergence | None = None  # there, of the model without its adapter from itself with it

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "divergence": self.divergence.as_json() | {"text": self.text, "text_sha256": self.text_sha256},
            "speed": {name: dict(rates) for name, rates in self.speed.items()},
        }


def measured(
    source: Path,
    result: Path,
    settings: Settings,
    *,
    packed: Callable[[LoadedModel], Adapter] | None = None,
    answers: Sequence[AnsweredIds] = (),
    text: Path | None = None,
    until: float = UNTIL,
    limit: int = 0,
    threads: int = 1,
    on_block: OnBlock | None = None,
) -> Measurement:
    """Compare a quantised model with its source, or with what `packed` makes of it: with an adapter.

    `text`: a file to read, None for the package's held-out text; `limit`: most tokens of it, 0 for all. `until`: stop
    once the mean divergence is known to this share; 0: read all. `answers`: the models are compared at their tokens
    too. Both models are in memory together; raises CapacityExceeded where they do not fit.
    """
    read = held_out_text() if text is None else plain_text(text, "replace")
    blocks = windows(tokenizer_of(source), read, limit)
    pool = native.Threads(threads)
    with LogitSource.open(source, pool, packed) as reference, LogitSource.open(result, pool) as other:
        divergence = diverge(reference, other, blocks, until=until, on_block=on_block)
        on_answers = diverge_answers(reference, other, answers)
        moved = diverge_answers(reference, reference.plain(), answers) if packed else None
        rates = _decode_rates({"source": reference.engine, "result": other.engine}, blocks[0][:PROMPT])
    predicted = {"source": predicted_decode(source, settings), "result": predicted_decode(result, settings)}
    return Measurement(
        divergence,
        "held out with the package" if text is None else str(text),
        text_digest(read),
        {name: {**rates[name], **predicted[name]} for name in rates},
        on_answers,
        moved,
    )


def predicted_decode(path: Path, settings: Settings) -> dict[str, float]:
    """Return the decode speed that `freehold fit` predicts here, with its bounds; nothing where it cannot."""
    try:
        prediction = fit(from_file(path), here(settings), PROMPT + TOKENS)
    except FreeholdError:
        return {}
    if not isinstance(prediction, Fit):
        return {}
    bounds = prediction.decode
    return {
        "predicted_tok_s": round(bounds.mid, 2),
        "predicted_low_tok_s": round(bounds.low, 2),
        "predicted_high_tok_s": round(bounds.high, 2),
    }


def _decode_rates(engines: Mapping[str, Engine], prompt: Sequence[int]) -> dict[str, dict[str, float]]:
    """Time greedy decoding in turns, so that other load affects all; return medians."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            rounds[name].append(_decode(engine, prompt))
    return {
        name: {
            "measured_tok_s": round(statistics.median(rate for rate, _ in samples), 2),
            "cpu_s_a_token": round(statistics.median(cpu for _, cpu in samples), 5),
        }
        for name, samples in rounds.items()
    }


def _decode(engine: Engine, prompt: Sequence[int]) -> tuple[float, float]:
    """Return tokens a second, and processor seconds a token, of decoding after a short prompt."""
    answer = engine.generate(prompt, SamplingParams(temperature=0), max_tokens=TOKENS + 1)
    next(answer)
    begun, used = time.perf_counter(), time.process_time()
    count = sum(1 for _ in answer)
    return count / (time.perf_counter() - begun), (time.process_time() - used) / count


def coarse_note(bits: float, weights: int, divergence: TextDivergence | None) -> str:
    """Return a warning for two bits on a small model, with what was measured; empty for others."""
    if bits >= _SURE_BITS or weights >= _SMALL_MODEL:
        return ""
    measured_as = (
        f"here {divergence.mean:.2f} nats per token from its source, "
        f"and the same most probable token in {divergence.same_top:.0%}"
        if divergence is not None
        else "--report measures how much here"
    )
    return f"at two bits, a model below 1B loses much quality ({measured_as}): for fit tests and speed only"


# --- encodes tensors by what their inputs are like --------------------------------------------------
# T2 and T3 so that errors cancel, other types with weighted columns.
# Tensors are asked for layer by layer, as the file holds them, so one layer's moments are in memory. A run
# that continues takes the newest layer's streams and moments from the folder (kept_layers) and runs no layer
# again.

EVERY = 6  # layers that share a damping
LEAST_TEXTS = 9  # of which a third can choose anything


class CalibratedEncoder:
    """Gives a tensor's bytes in its chosen type. Use it in a `with` statement: it holds a file of streams.

    `bits`: of the trellis type that damping is chosen for, by a third of the texts; 0: none is written. Then that third
    counts as the others do. `dampings`: what was chosen, by the layer from which on it holds. `kept`: where the newest
    layer stays for a run that continues; the caller brings a layer's tensors to disk before it asks for the next one's.
    """

    def __init__(
        self,
        source: Source,
        texts: Sequence[Sequence[int]],
        spool: Path,
        threads: native.Threads,
        *,
        bits: int = 0,
        dampings: Mapping[int, float] | None = None,
        spent: SpentSeconds | None = None,
        kept: KeptLayers | None = None,
        on_text: OnText | None = None,
    ) -> None:
        chooses = bits > 0 and len(texts) >= LEAST_TEXTS
        held = held_out(texts) if chooses else ()
        passed = calibrate(
            source,
            texts,
            spool,
            held=held,
            every=EVERY,
            rough=True,
            threads=threads.size,
            kept=kept,
            on_text=on_text,
        )
        self._layers = passed if texts else iter(())
        self._layer: CalibratedLayer | None = None
        self._threads, self._bits = threads, bits if chooses else 0
        self.dampings = dict(dampings or {})
        self._spent = spent or SpentSeconds()

    def pieces(self, choice: TensorChoice) -> Iterable[U8]:
        """Yield a tensor's bytes, in order."""
        if not choice.changes:
            return [choice.tensor.raw]
        moments = self._moments(choice)
        if choice.type in BITS:
            tensor, layer = choice.tensor, layer_of(choice.tensor.name)
            values: F32 = tensor.numpy().reshape(-1, tensor.shape[-1])
            damping = self.dampings.get(layer - layer % EVERY, DAMPING)
            fed = None if moments is None else moments.feedback(damping)
            return [encode(values, fed, BITS[choice.type], self._threads).raw]
        importance = None if moments is None else np.concatenate([np.diag(h) for h in moments.means()])
        return encoded_pieces(choice.tensor, choice.type, self._threads, importance)

    def _moments(self, choice: TensorChoice) -> Moments | None:
        """Return the moments of a tensor's inputs; None for one that texts do not reach as a matrix."""
        number = layer_of(choice.tensor.name)
        while number >= 0 and (self._layer is None or self._layer.number < number):
            with self._spent.on("calibration"):
                following = next(self._layers, None)
                if following is None:
                    return None
                self._layer = following
                self._settle(following)
        layer = self._layer
        return layer.moments.get(choice.tensor.name) if layer and layer.number == number else None

    def _settle(self, layer: CalibratedLayer) -> None:
        """Choose the damping of every sixth layer by its held-out moments, and let those count from then on."""
        if not self._bits:
            return
        if layer.number % EVERY == 0 and layer.number not in self.dampings:
            errors = choose_damping(layer, self._bits, self._threads)
            self.dampings[layer.number] = min(errors, key=lambda damping: (errors[damping], damping))
        joined: set[int] = set()
        for name, moments in layer.moments.items():
            if id(moments) not in joined and name in layer.held:
                joined.add(id(moments))
                others = layer.held[name]
                for h, more in zip(moments.blocks, others.blocks, strict=True):
                    h += more
                moments.count += others.count

    def close(self) -> None:
        """Remove the file of streams."""
        close = getattr(self._layers, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- how much damping a layer's moments need, judged by texts that they are not of ------------------
# The error that calibration reports falls with less damping, whatever other texts lose. So some rows of each
# matrix are encoded with each damping by the moments of two thirds of the texts, and what counts is the
# output's error on the rest.

TRIED = (0.01, 0.03, 0.1, 0.3, 1.0)
_ROWS = 128  # of a matrix


def choose_damping(
    layer: CalibratedLayer, bits: int, threads: native.Threads, tried: Sequence[float] = TRIED
) -> dict[float, float]:
    """Return the relative error on the held-out texts by damping, a mean over the layer's inputs; the least is best."""
    errors = dict.fromkeys(tried, 0.0)
    firsts = {id(layer.moments[name]): name for name in reversed(layer.names)}  # of those that share an input
    for name in firsts.values():
        moments, held = layer.moments[name].blocks, layer.held[name].blocks  # their scale does not count
        weights = layer.weights(name)
        rows = np.ascontiguousarray(weights[:: max(1, len(weights) // _ROWS)][:_ROWS])
        for damping in tried:
            encoded = encode(rows, feedback(moments, damping), bits, threads)
            errors[damping] += relative_error(encoded.values, rows, held) / len(firsts)
    return errors


def relative_error(values: F32, weights: F32, moments: Sequence[F32]) -> float:
    """Return the mean squared error of the outputs over their mean square, by inputs of these moments."""
    wrong = whole = 0.0
    first = 0
    for h in moments:
        part = slice(first, first + len(h))
        wrong += _energy(values[:, part] - weights[:, part], h)
        whole += _energy(weights[:, part], h)
        first += len(h)
    return wrong / whole if whole else 0.0


def _energy(rows: F32, moments: F32) -> float:
    return float(np.einsum("ij,ij->", rows @ moments, rows, dtype=np.float64))
