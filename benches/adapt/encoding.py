"""Weights encoded as T2 and T3 for a CPU-second, and memory: one layer of a model's shape, roots and feedback included.

`python -m benches.adapt.encoding SHAPE [--bits 3] [--threads 1]`
SHAPE is a name in SHAPES. Weights are Gaussian, and moments those of inputs that have a few causes in common, so no
model is needed: what encoding costs does not depend on the values. Each input's moments are factored once for all
matrices that read it, as `freehold quantize` does; its calibration, which comes on top, is measured by the verb's own
receipt. `model_cpu_s` is the layer's time times the layers. Ends in one JSON line.
Path: encoding.py -> Moments.feedback -> trellis.encode
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the verb has it; read when NumPy is imported

import numpy as np

from freehold import _native as native
from freehold.adapt.quantize.calibration import Moments
from freehold.adapt.quantize.encoding import encode
from freehold.adapt.run import cpu_seconds
from freehold.base.machine import cpu_name
from freehold.cli.bench import version

F32 = np.float32
CAUSES, TOKENS = 64, 2048  # of the inputs; fewer tokens than columns, so that damping has to help


class Shape(NamedTuple):
    """A dense model's layers: how many, the residual's width, keys' and values', and the gated MLP's."""

    layers: int
    hidden: int
    kv: int
    inner: int

    @property
    def inputs(self) -> list[tuple[int, list[int]]]:
        """Columns of each input, and the rows of the matrices that read it."""
        attention = [self.hidden, self.kv, self.kv]
        return [
            (self.hidden, attention),
            (self.hidden, [self.hidden]),
            (self.hidden, [self.inner, self.inner]),
            (self.inner, [self.hidden]),
        ]


SHAPES = {
    "smollm2:135m": Shape(30, 576, 192, 1536),
    "qwen2.5:0.5b": Shape(24, 896, 128, 4864),
    "qwen2.5:1.5b": Shape(28, 1536, 256, 8960),
    "qwen2.5:7b": Shape(28, 3584, 512, 18944),
}


def moments(columns: int, rng: np.random.Generator) -> Moments:
    """Make the second moments of inputs that go together."""
    causes = rng.standard_normal((CAUSES, columns), F32)
    x = rng.standard_normal((TOKENS, CAUSES), F32) @ causes + rng.standard_normal((TOKENS, columns), F32)
    made = Moments.of_width(columns)
    made.add(x)
    return made


def layer(shape: Shape, bits: int, threads: native.Threads) -> tuple[float, int]:
    """Encode a layer; return processor seconds and weights."""
    rng, spent, count = np.random.default_rng(0), 0.0, 0
    for columns, matrices in shape.inputs:
        seen = moments(columns, rng)
        for rows in matrices:
            weights = rng.standard_normal((rows, columns), F32) * F32(0.02)
            before = cpu_seconds()
            encode(weights, seen.feedback(), bits, threads)
            spent += cpu_seconds() - before
            count += weights.size
    return spent, count


def main() -> None:
    """Encode one layer and print what the model's would take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--bits", type=int, choices=(2, 3), default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    spent, weights = layer(shape, given.bits, native.Threads(given.threads))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    row = {
        "mweights_a_cpu_s": round(weights / 1e6 / spent, 1),
        "layer_cpu_s": round(spent, 2),
        "model_cpu_s": round(spent * shape.layers),
        "peak_bytes": peak,
        "two_layers_in_floats": 8 * weights,
    }
    print("  ".join(f"{key} {value:,}" for key, value in row.items()))
    facts = {"bench": "encoding", "machine": cpu_name(), "version": version(), "load_1m": os.getloadavg()[0]}
    print(json.dumps({**facts, "shape": given.shape, "bits": given.bits, **row}))


if __name__ == "__main__":
    main()
