"""A file of `freehold quantize` against llama.cpp's own of the same source, tensor by tensor.

`python -m benches.adapt.same_file SOURCE RESULT.gguf [--llama-cpp-python PYTHON]`
SOURCE: a GGUF, or the name of a model in the store. llama.cpp quantises it to RESULT's own file type, in a folder for
temporary files. Ends in one JSON line, and with 1 where a tensor's type or bytes differ.
Path: same_file.py -> llama_model_quantize in the peer's environment -> formats.open_gguf
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib import environments
from benches.lib.machine import describe, resolve
from freehold.run.formats import GGUFFile, open_gguf

# Run by the peer's interpreter: source, result, file type, threads.
_QUANTISE = """
import ctypes, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread, params.allow_requantize = int(sys.argv[3]), int(sys.argv[4]), True
status = llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params))
sys.exit(status)
"""


def main() -> int:
    """Let llama.cpp make its file, compare, report."""
    args = _options()
    source = resolve(args.source)
    python = args.llama_cpp_python or environments.environment("llama_cpp")
    with closing(open_gguf(args.result)) as ours, tempfile.TemporaryDirectory() as folder:
        kind = int(str(ours.metadata["general.file_type"]))
        made = Path(folder) / "llama.gguf"
        command = [str(python), "-c", _QUANTISE, str(source), str(made), str(kind), str(args.threads)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        with closing(open_gguf(made)) as theirs:
            same, different = _compared(ours, theirs)
    for name, how in different.items():
        print(f"{name}: {how}")
    print(
        f"{sum(same.values())} of {sum(same.values()) + len(different)} tensors have llama.cpp's type and bytes"
    )
    record = {
        "bench": "same_file",
        **describe(source),
        "file_type": kind,
        "same": same,
        "different": different,
    }
    print(json.dumps(record))
    return int(bool(different))


def _compared(ours: GGUFFile, theirs: GGUFFile) -> tuple[dict[str, int], dict[str, str]]:
    """Return how many tensors of each type are the same, and what the others differ in."""
    same: Counter[str] = Counter()
    different: dict[str, str] = {}
    for name in ours.tensors.keys() | theirs.tensors.keys():
        one, other = ours.tensors.get(name), theirs.tensors.get(name)
        if one is None or other is None:
            different[name] = "in one file only"
        elif one.type is not other.type:
            different[name] = f"{one.type.name}, llama.cpp has {other.type.name}"
        elif not np.array_equal(one.raw, other.raw):
            different[name] = f"other bytes of {one.type.name}"
        else:
            same[one.type.name] += 1
    return dict(same), different


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("result", type=Path, metavar="RESULT.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-cpp-python", type=Path, help="an interpreter with llama-cpp-python")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
