"""Whether two and three bits through a trellis beat ggml's types of that size: KL divergence of a model from itself.

`python benches/adapt/gate.py MODEL.gguf [--ggml libggml.so] [--type T3 --type Q3_K ...] [--layers 0,6] [--judge FILE]`
Every matrix of the chosen layers is rounded to each type, by the same calibration texts (ggml's types take the
diagonal, T types the moments), and the logits after tokens of other texts are compared with the float model's: paired,
windows of 512 tokens, the first eight left out. `--ggml`: a library with ggml's quantisers, as the wheel
ik-llama-cpp-python has one; without it T types alone. A GGUF is its own reference, so at four bits a type that meets
the source's grid wins for nothing. Ends in one JSON line.
Path: gate.py -> calibrate, encode, Ggml.rounded -> LayerStreams.logits
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.engine.quality import SKIPPED, WINDOW, divergence
from benches.lib.ggml_types import Ggml
from benches.lib.machine import describe
from freehold import _native as native
from freehold.adapt.quantize.calibration import CalibratedLayer, LayerStreams, calibrate
from freehold.adapt.quantize.encoding import DAMPING, encode
from freehold.adapt.quantize.texts import default_texts
from freehold.run.formats import GGUFFile, open_model_file
from freehold.run.models.binding.bind import Source, read_source
from freehold.run.tokenizer import Tokenizer, tokenizer_from_gguf
from freehold.run.tokenizer.template import chat_template_from_gguf

TYPES = ("T3", "Q3_K", "IQ3_KS", "T2", "Q2_K", "IQ2_KS")
TEXT = Path(__file__).resolve().parents[2] / "tests" / "vectors" / "text.txt"


@dataclass(slots=True)
class Candidate:
    """A type, the streams of a model that is rounded to it, and what making it took."""

    type: str
    streams: LayerStreams
    seconds: float = 0.0  # of processor
    bits: float = 0.0
    weights: int = 0
    kl: list[np.ndarray] = field(default_factory=list)
    agrees: list[np.ndarray] = field(default_factory=list)

    def figures(self) -> dict[str, float | str]:
        """Condense it for the table."""
        kl, agrees = np.concatenate(self.kl), np.concatenate(self.agrees)
        return {
            "type": self.type,
            "bpw": round(self.bits / self.weights, 3),
            "kl": round(float(kl.mean()), 4),
            "se": round(float(kl.std() / len(kl) ** 0.5), 4),
            "kl_999": round(float(np.quantile(kl, 0.999)), 3),
            "top1": round(float(agrees.mean()), 4),
            "mweights_per_cpu_s": round(self.weights / 1e6 / self.seconds, 1),
        }


def windows(tokenizer: Tokenizer, files: Sequence[Path], each: int) -> list[list[int]]:
    """Cut `each` windows from every file, evenly spaced."""
    found: list[list[int]] = []
    for path in files:
        ids = tokenizer.encode(path.read_text(encoding="utf-8"))
        step = max(WINDOW, (len(ids) - WINDOW) // max(each - 1, 1))
        found += [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, step)][:each]
    return found


def layers_of(
    source: Source, texts: Sequence[list[int]], folder: Path, chosen: set[int]
) -> Iterator[tuple[int, CalibratedLayer]]:
    """Calibrate the layers that are asked for, and pass the others."""
    for layer in calibrate(source, texts, folder / "calibration", rough=True):
        yield layer.number, layer
        if layer.number >= max(chosen):
            return


def rounded(
    one: Candidate,
    layer: CalibratedLayer,
    name: str,
    ggml: Ggml | None,
    damping: float,
    threads: native.Threads,
) -> np.ndarray:
    """Round a matrix to the candidate's type, and count what it took."""
    weights = np.ascontiguousarray(layer.weights(name))
    begun = time.process_time()
    if one.type in ("T2", "T3"):
        made = encode(weights, layer.feedback(name, damping), int(one.type[1]), threads)
        values, bits = made.values, len(made.raw) * 8 / weights.size
    else:
        assert ggml is not None
        values, bits = ggml.rounded(
            one.type, weights, np.concatenate([np.diag(h) for h in layer.moments[name].means()])
        )
    one.seconds += time.process_time() - begun
    one.bits += bits * weights.size
    one.weights += weights.size
    return values


def main() -> None:
    """Calibrate, round, compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--ggml", type=Path)
    parser.add_argument("--type", action="append", choices=TYPES)
    parser.add_argument("--layers", help="such as 0,6,12; all of them otherwise")
    parser.add_argument("--tokens", type=int, default=16_384, help="to calibrate on")
    parser.add_argument(
        "--judge", type=Path, nargs="+", default=[TEXT], help="texts that divergence is measured on"
    )
    parser.add_argument("--windows", type=int, default=4, help="of each text")
    parser.add_argument("--damping", type=float, default=DAMPING)
    args = parser.parse_args()
    opened = open_model_file(args.model)
    assert isinstance(opened, GGUFFile)
    tokenizer, source = tokenizer_from_gguf(opened.metadata), read_source(opened)
    texts = default_texts(tokenizer, chat_template_from_gguf(opened.metadata, tokenizer), args.tokens)
    judged = windows(tokenizer, args.judge, args.windows)
    ggml = Ggml(args.ggml) if args.ggml else None
    count = len(source.network.layers)
    chosen = set(map(int, args.layers.split(","))) if args.layers else set(range(count))
    threads, begun = native.Threads(1), time.monotonic()
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        base = LayerStreams(source, judged, folder / "float")
        names = [t for t in args.type or TYPES if ggml or t in ("T2", "T3")]
        candidates = [Candidate(t, LayerStreams(source, judged, folder / t)) for t in names]
        calibrated = layers_of(source, texts, folder, chosen)
        for number in range(count):
            matrices = base.matrices(number)
            for w in matrices:
                w.hold()
            base.run(number)
            layer = next(calibrated)[1] if number <= max(chosen) else None
            for one in candidates:
                for w, own in zip(matrices, one.streams.matrices(number), strict=True):
                    if layer is None or number not in chosen or w.name not in layer.names:
                        own.hold(w.dense())
                    else:
                        own.hold(rounded(one, layer, w.name, ggml, args.damping, threads))
                one.streams.run(number)
                for own in one.streams.matrices(number):
                    own.drop()
            for w in matrices:
                w.drop()
            took = f"{time.monotonic() - begun:.0f} s, {time.process_time():.0f} of processor"
            print(f"layer {number + 1} of {count}, {took}", file=sys.stderr, flush=True)
        compare(base, candidates)
    report = [one.figures() for one in candidates]
    for row in report:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    facts = {"layers": sorted(chosen), "tokens": sum(map(len, texts)), "judged": sum(map(len, judged))}
    print(
        json.dumps(
            {"bench": "gate", **describe(args.model), **facts, "damping": args.damping, "types": report}
        )
    )


def compare(base: LayerStreams, candidates: Sequence[Candidate]) -> None:
    """Finish all streams, a window at a time, and keep the divergence of every token."""
    base.hold_ends()
    for one in candidates:
        one.streams.hold_ends(base)
    finished = [one.streams.logits() for one in candidates]
    for float_logits in base.logits():
        best = float_logits[SKIPPED:].argmax(axis=-1)
        for one, logits in zip(candidates, finished, strict=True):
            own = next(logits)[SKIPPED:]
            one.kl.append(divergence(float_logits[SKIPPED:], own))
            one.agrees.append(own.argmax(axis=-1) == best)


if __name__ == "__main__":
    main()
