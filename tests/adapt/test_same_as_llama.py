"""A quantised file is llama.cpp's own, tensor by tensor: the type that each gets and the bytes it becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold import _native as native
from freehold.adapt.quantize.encoding import encoded_pieces
from freehold.adapt.quantize.recipes import choose
from freehold.run.formats import open_gguf

# Of names, types and bytes in the order of names, of smollm2:135m quantised by `llama_model_quantize` of
# llama-cpp-python 0.3.36 without importance. benches/adapt/same_file.py compares any model and type.
FILES = {
    "Q3_K_S": "24226cc4ef65ade1",
    "Q3_K_M": "fce2e762676525d7",
    "Q4_K_S": "ec0cfcf5d15061bf",
    "Q4_K_M": "6d05669270aecbbd",
    "Q5_K_M": "86680f6b38861a97",
    "Q6_K": "8c7a784449076e4b",
    "Q8_0": "b6c21295152ccf2f",
}


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize("name", FILES)
def test_file_of_a_type_holds_llama_cpps_tensors(name: str, model_path: Callable[[str], Path]):
    threads = native.Threads(1)
    digest = hashlib.sha256()
    with open_gguf(model_path("smollm2-135m")) as source:
        for choice in sorted(choose(source, name), key=lambda c: c.tensor.name):
            digest.update(f"{choice.tensor.name} {choice.type.name} ".encode())
            for piece in encoded_pieces(choice.tensor, choice.type, threads):
                digest.update(piece.tobytes())
    assert digest.hexdigest()[:16] == FILES[name]
