"""Encoding pictures at published towers' shapes with random weights, beside llama.cpp's mtmd on the same file.

`python benches/eyes/encode.py [SHAPE ...] [--type F16] [--layers 4] [--threads 2] [--rounds 3] [--alone] [--by-op]
[--llama-python PYTHON]`. SHAPE is one of SHAPES (default: all). Both engines load one mmproj, of as many layers;
llama.cpp also a text model of one layer, which it asks for. Freehold makes int8 panels of float matrices, as it does
when it serves; llama.cpp computes the file's own type, with flash attention and without, and the faster setting counts.
Neither time has opening and resizing. A share is that of the machine's int8 units: the multiplications of matrices and
attention, had all run there. `--alone` leaves llama.cpp out; `--by-op` adds where the time of a picture goes, as
processor time of the first thread. A table goes to stdout, then one JSON line a shape.
Path: encode.py -> lib.peer.Child -> drivers/eyes_freehold.py, drivers/eyes_mtmd.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gguf
import numpy as np

from benches.lib.environments import DRIVERS, NotInstalled, environment
from benches.lib.machine import better, ceilings, describe, say
from benches.lib.peer import Child, PeerFailed
from benches.lib.random_gguf import write as write_text
from freehold.run.formats.fields import Fields
from freehold.run.models.family import Cut
from freehold.run.models.tower import Tower
from freehold.run.models.towers import of_projector

HALF = [0.5, 0.5, 0.5]
SETTINGS: tuple[dict[str, Any], ...] = ({"flash": True}, {"flash": False})


@dataclass(frozen=True)
class TowerShape:
    """A tower's metadata under `clip.vision.`, and the pictures to encode."""

    projector: str
    vision: dict[str, Any]
    pictures: tuple[tuple[int, int], ...]  # near 256, 1,024 and 2,040 tokens
    source: str  # the repository whose config.json states the sizes
    most: int = 0  # tokens that pictures after the first may become; 0: as a file has it

    def budget(self, size: tuple[int, int]) -> int:
        """Return how many tokens a picture may become, 0 for the file's own limit."""
        return 0 if size == self.pictures[0] else self.most


SHAPES = {
    "siglip-400m": TowerShape(
        "idefics3",
        {
            "image_size": 384, "patch_size": 14, "embedding_length": 1152, "feed_forward_length": 4304,
            "attention.head_count": 16, "projection_dim": 2048, "projector.scale_factor": 3, "preproc_image_size": 1920,
        },
        # The longer side becomes five tiles: 5 x 1, 5 x 2 and 5 x 5 of them, and the whole.
        ((1920, 384), (1920, 768), (1920, 1920)),
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    "qwen3.5": TowerShape(
        "qwen3vl_merger",
        {
            "image_size": 768, "patch_size": 16, "embedding_length": 1152, "feed_forward_length": 4304,
            "attention.head_count": 16, "projection_dim": 4096, "spatial_merge_size": 2,
        },
        ((512, 512), (1024, 1024), (1920, 1088)),
        "Qwen/Qwen3.5-9B",
    ),
    "gemma3": TowerShape(
        "gemma3",
        {
            "image_size": 896, "patch_size": 14, "embedding_length": 1152, "feed_forward_length": 4304,
            "attention.head_count": 16, "projection_dim": 2560,
        },
        ((896, 896),),  # 256 tokens of any picture
        "google/gemma-3-4b-it",
    ),
    "gemma4": TowerShape(
        "gemma4v",
        {
            "image_size": 768, "patch_size": 16, "embedding_length": 1152, "feed_forward_length": 4304,
            "attention.head_count": 16, "projection_dim": 2816, "projector.scale_factor": 3,
        },
        ((768, 768), (1584, 1584)),  # sides that llama.cpp, which enlarges nothing, keeps too: 256 and 1,089 of 1,120
        "google/gemma-4-26B-A4B-it",
        1120,
    ),
}  # fmt: skip
TEXT = {
    "block_count": 1, "context_length": 4096, "feed_forward_length": 256, "attention.head_count": 16,
    "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e4,
}  # fmt: skip


# --- files ---------------------------------------------------------------------------------------------


def keys_of(shape: TowerShape, layers: int) -> dict[str, Any]:
    """Return the metadata of a shape's mmproj."""
    vision = {**shape.vision, "block_count": layers, "image_mean": HALF, "image_std": HALF}
    vision |= {"attention.layer_norm_epsilon": 1e-6}
    about = {"clip.has_vision_encoder": True, "clip.projector_type": shape.projector, "clip.use_gelu": True}
    return about | {f"clip.vision.{key}": value for key, value in vision.items()}


def tensors(tower: Tower, cfg: Any) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, key and shape of what a GGUF of the tower stores, each once."""
    seen: set[str] = set()
    for _, prefix, key, spec in tower.declared(cfg):
        if not spec.gguf or spec.optional:
            continue
        first = spec.gguf[0]
        name, shape = (first, spec.shape) if isinstance(first, str) else (first.name, first.shape)
        names = (name,) if isinstance(name, str) else name
        shape = (shape[0] // len(names), *shape[1:]) if isinstance(first, Cut) else shape
        for each in names:
            if prefix + each not in seen:
                seen.add(prefix + each)
                yield prefix + each, key, shape


def write_mmproj(
    path: Path, shape: TowerShape, layers: int, kind: str, more: Mapping[str, Any] | None = None
) -> None:
    """Write random weights: matrices of the type `kind` where its blocks fit, else F16; vectors and patches F32.

    `more`: further metadata.
    """
    tower = of_projector(shape.projector)
    assert tower is not None
    keys = keys_of(shape, layers) | dict(more or {})
    cfg, rng = tower.config_from_gguf(Fields(keys, "clip.")), np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    for key, value in keys.items():
        _add(writer, key, value)
    for name, _, shape_ in tensors(tower, cfg):
        drawn = rng.standard_normal(shape_, np.float32)
        if len(shape_) == 1:
            writer.add_tensor(
                name, np.ones_like(drawn) if name.endswith("weight") else drawn * np.float32(0.1)
            )
            continue
        drawn *= np.float32(np.prod(shape_[1:]) ** -0.5)
        fits = len(shape_) == 2 and "embd" not in name
        chosen = "F32" if not fits else kind if shape_[-1] % 32 == 0 else "F16"
        type_ = gguf.GGMLQuantizationType[chosen]
        writer.add_tensor(name, gguf.quants.quantize(drawn, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


# --- what bounds it ------------------------------------------------------------------------------------


def operations(shape: TowerShape, layers: int, counts: dict[str, Any]) -> float:
    """Return the multiplications and additions of a picture: matrices over patches or joined rows, and attention."""
    tower = of_projector(shape.projector)
    assert tower is not None
    cfg = tower.config_from_gguf(Fields(keys_of(shape, layers), "clip."))
    network = tower.network(cfg)
    joined = set(network.merger.tensors())
    total = 0
    for _, key, size in ((n, k, s) for n, k, s in tensors(tower, cfg) if len(s) > 1 and k != "positions"):
        total += int(np.prod(size)) * (counts["tokens"] if key in joined else counts["patches"])
    return 2.0 * total + attention(shape, layers, counts)


def attention(shape: TowerShape, layers: int, counts: dict[str, Any]) -> float:
    """Return those of attention: scores and values of all rows of a group."""
    pairs = sum(group**2 for group in counts["groups"])
    return 4.0 * shape.vision["embedding_length"] * pairs * layers


# --- the race ------------------------------------------------------------------------------------------


def race(ours: Child, theirs: Child | None, size: tuple[int, int], most: int, rounds: int) -> dict[str, Any]:
    """Encode one picture in turns; the ratio of a round is with their better setting over all rounds."""
    width, height = size
    settings = SETTINGS if theirs is not None else ()
    counts = ours.ask("encode", width=width, height=height, most=most)  # buffers, first touches
    for setting in settings:
        assert theirs is not None
        theirs.ask("encode", width=width, height=height, **setting)
    mine: list[float] = []
    peer: list[list[float]] = [[] for _ in settings]
    tokens: set[int] = set()
    for _ in range(rounds):
        mine.append(ours.ask("encode", width=width, height=height, most=most)["seconds"])
        for times, setting in zip(peer, settings, strict=True):
            assert theirs is not None
            took = theirs.ask("encode", width=width, height=height, **setting)
            times.append(took["seconds"])
            tokens.add(took["tokens"])
    record: dict[str, Any] = {"picture": size, "freehold": mine}
    record |= {key: counts[key] for key in ("tokens", "patches", "groups")}
    if peer:
        best = min(peer, key=statistics.median)
        record |= {"llama.cpp": best, "setting": SETTINGS[peer.index(best)], "peer_tokens": sorted(tokens)}
        record["ratio"] = statistics.median(b / a for a, b in zip(mine, best, strict=True))
    return record


def by_op(ours: Child, size: tuple[int, int], most: int) -> dict[str, float]:
    """Return milliseconds by kind of op, the longest first."""
    spent: dict[str, float] = {}
    for op, seconds in ours.ask("spent", width=size[0], height=size[1], most=most)["ops"]:
        spent[op] = spent.get(op, 0.0) + 1e3 * seconds
    return dict(sorted(spent.items(), key=lambda it: -it[1]))


def run(args: argparse.Namespace, name: str, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Write a shape's files, race every picture, print the table; return the record."""
    shape = SHAPES[name]
    mmproj, text = folder / f"mmproj-{name}-{args.layers}-{args.type}.gguf", folder / f"{name}.gguf"
    if not mmproj.exists():
        say(f"writing {mmproj}")
        write_mmproj(mmproj, shape, args.layers, args.type)
    if not text.exists():
        write_text(text, "llama", {**TEXT, "embedding_length": shape.vision["projection_dim"]})
    ours = stack.enter_context(Child(sys.executable, DRIVERS / "eyes_freehold.py", stops=True))
    load = {"text": str(text), "mmproj": str(mmproj), "threads": args.threads}
    versions, theirs = [ours.ask("load", **load)["version"]], None
    if not args.alone:
        python = Path(args.llama_python) if args.llama_python else environment("llama_cpp")
        theirs = stack.enter_context(Child(python, DRIVERS / "eyes_mtmd.py", stops=True))
        versions.append(theirs.ask("load", **load)["version"])
    before = ceilings(ours, [args.threads])
    figures = []
    for size in shape.pictures:
        say(f"{name}: {size[0]} x {size[1]}")
        figures.append(race(ours, theirs, size, shape.budget(size), args.rounds))
        if args.by_op:
            figures[-1]["spent_ms"] = by_op(ours, size, shape.budget(size))
    limits = better(before, ceilings(ours, [args.threads]))
    gops = max(limits["measure_int8_gops"])
    print(
        f"{name} ({shape.source}), {args.layers} layers, {args.type}: {gops:.0f} GOPS int8; medians of {args.rounds}"
    )
    print(
        f"{'picture':>13}{'tokens':>8}{'patches':>9}{'freehold':>11}{'llama.cpp':>11}{'ratio':>7}{'int8 share':>12}"
    )
    for figure in figures:
        mine = statistics.median(figure["freehold"])
        figure["share"] = operations(shape, args.layers, figure) / (gops * 1e9) / mine
        peer = f"{1e3 * statistics.median(figure['llama.cpp']):,.0f} ms" if "ratio" in figure else "-"
        ratio = f"{figure['ratio']:.2f}" if "ratio" in figure else "-"
        width, height = figure["picture"]
        print(
            f"{f'{width} x {height}':>13}{figure['tokens']:>8,}{figure['patches']:>9,}{1e3 * mine:>8,.0f} ms"
            f"{peer:>11}{ratio:>7}{figure['share']:>12.0%}"
        )
        for op, spent in figure.get("spent_ms", {}).items():
            beside = ""
            if op == "AttendBoth":  # each thread has its part of the work, and of the rate
                figure["attention_share"] = attention(shape, args.layers, figure) / (gops * 1e6) / spent
                beside = f", {figure['attention_share']:.2f} of the int8 units (advisor/fit.py)"
            print(f"{'':13}{spent:8,.0f} ms  {op}{beside}")
    record = {"bench": "eyes/encode", "shape": name, "source": shape.source, **describe(mmproj)}
    record |= {"threads": args.threads, "layers": args.layers, "int8_gops": gops, "versions": versions}
    return record | {"figures": figures}


def main() -> None:
    """Read the command line, make the files, race one shape after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "shapes", nargs="*", choices=[*SHAPES, []], help="default: all that Freehold has towers for"
    )
    parser.add_argument("--folder", type=Path, help="where files are written (default: a temporary one)")
    parser.add_argument("--type", default="F16", choices=("F16", "Q8_0"), help="of the mmproj's matrices")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--by-op", action="store_true", help="show where the time of a picture goes")
    parser.add_argument(
        "--llama-python", help="an interpreter with llama-cpp-python (default: installed into .peers/)"
    )
    args = parser.parse_args()
    known = [name for name, shape in SHAPES.items() if of_projector(shape.projector) is not None]
    with tempfile.TemporaryDirectory() as folder:
        for name in args.shapes or known:
            with ExitStack() as stack:
                try:
                    print(json.dumps(run(args, name, args.folder or Path(folder), stack)), flush=True)
                except (NotInstalled, PeerFailed) as why:
                    say(f"{name}: {why}")


if __name__ == "__main__":
    main()
