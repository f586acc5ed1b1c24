"""llama.cpp's driver for eyes/encode.py, on mtmd's C API; runs in an environment with llama-cpp-python and NumPy.

Pictures are resized and cut while they are tokenised, which is not timed; what is timed is `mtmd_encode_chunk` of every
chunk of the picture.
Path: eyes/encode.py -> peer.Child -> this file
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import llama_cpp as ll  # pyright: ignore[reportMissingImports]
import llama_cpp.mtmd_cpp as mtmd  # pyright: ignore[reportMissingImports]
import numpy as np

from benches.drivers.llama_driver import used_features
from benches.lib.driver import Clock, serve


class Encoder:
    """One tower, with a context for each setting of its attention."""

    def __init__(self) -> None:
        self._quiet = ll.llama_log_callback(lambda _level, _text, _data: None)  # llama.cpp keeps the pointer
        ll.llama_log_set(self._quiet, ctypes.c_void_p(0))
        mtmd.mtmd_log_set(self._quiet, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self._contexts: dict[bool, Any] = {}
        self._chunks: dict[tuple[bool, int, int], Any] = {}
        self._bitmaps: list[Any] = []

    def load(self, text: str, mmproj: str, threads: int) -> dict[str, Any]:
        """Load a text model and the tower beside it, with flash attention and without."""
        params = ll.llama_model_default_params()
        params.n_gpu_layers = 0
        model = ll.llama_model_load_from_file(text.encode(), params)
        if not model:
            raise OSError(f"llama.cpp cannot load {text}")
        for flash in (True, False):
            options = mtmd.mtmd_context_params_default()
            options.use_gpu, options.print_timings, options.warmup = False, False, False
            options.n_threads = threads
            kind = "ENABLED" if flash else "DISABLED"
            options.flash_attn_type = getattr(ll, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
            self._contexts[flash] = mtmd.mtmd_init_from_file(mmproj.encode(), model, options)
            if not self._contexts[flash]:
                raise OSError(f"llama.cpp cannot load {mmproj}")
        return {
            "version": f"llama-cpp-python {ll.__version__} ({used_features(ll.llama_print_system_info())})"
        }

    def encode(self, width: int, height: int, flash: bool = True) -> dict[str, Any]:
        """Time the chunks of one picture."""
        context, chunks = self._contexts[flash], self._tokenised(flash, width, height)
        clock = Clock()
        tokens = 0
        for chunk in chunks:
            tokens += mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if code := mtmd.mtmd_encode_chunk(context, chunk):
                raise RuntimeError(f"mtmd_encode_chunk returned {code}")
        return {**clock.took()._asdict(), "tokens": tokens}

    def _tokenised(self, flash: bool, width: int, height: int) -> list[Any]:
        """Return the chunks that are a picture's, made on first use."""
        key = flash, width, height
        if key not in self._chunks:
            pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
            data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            bitmap = mtmd.mtmd_bitmap_init(width, height, data)
            self._bitmaps += [bitmap, pixels]
            chunks = mtmd.mtmd_input_chunks_init()
            marker = mtmd.mtmd_default_marker()
            text = mtmd.mtmd_input_text(text=marker, add_special=False, parse_special=True)
            if hasattr(text, "text_len"):  # newer releases
                text.text_len = len(marker)
            bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            code = mtmd.mtmd_tokenize(self._contexts[flash], chunks, ctypes.byref(text), bitmaps, 1)
            if code:
                raise RuntimeError(f"mtmd_tokenize returned {code}")
            every = (
                mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))
            )
            image = mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
            self._chunks[key] = [each for each in every if mtmd.mtmd_input_chunk_get_type(each) == image]
        return self._chunks[key]


if __name__ == "__main__":
    serve(Encoder())
