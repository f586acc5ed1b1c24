"""ik_llama.cpp's driver, on its C API; runs in an environment with ik-llama-cpp-python and NumPy.

Options: `flash` (flash attention, its default) and `repack` (rows interleaved on load, off by default).
Path: peers.py -> peer.Child -> this file
"""

from __future__ import annotations

import ctypes
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ik_llama_cpp import _ctypes_api as ik  # pyright: ignore[reportMissingImports]

from benches.drivers.llama_driver import LlamaDriver, set_sizes, used_features
from benches.lib.driver import main

LIBRARY = ik._lib
# Calls of llama.h that the package leaves unbound; all take and return plain integers and pointers.
LIBRARY.llama_kv_cache_seq_rm.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
LIBRARY.llama_kv_cache_seq_rm.restype = ctypes.c_bool
LIBRARY.llama_set_n_threads.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
LIBRARY.llama_set_n_threads.restype = None
LIBRARY.llama_print_system_info.restype = ctypes.c_char_p
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class IkLlama(LlamaDriver):
    """ik_llama.cpp."""

    name = "ik_llama.cpp"
    api = ik
    trials: ClassVar = {
        "prefill": [{"repack": True}, {"flash": False}],
        "decode": [{"repack": True}],
        "depth": [{"flash": False}],
        "batch": [{"repack": True}],
    }

    def __init__(self) -> None:
        self._quiet = LogCallback(lambda _level, _text, _data: None)  # the library keeps the pointer
        LIBRARY.llama_log_set(self._quiet, None)
        super().__init__()

    def version(self) -> str:
        """Name the package, and what the library says it uses of the processor."""
        features = used_features(LIBRARY.llama_print_system_info())
        return f"ik-llama-cpp-python {version('ik-llama-cpp-python')} ({features})"

    def open_model(self, path: bytes, options: dict[str, Any]) -> Any:
        """Load a file; repacking needs memory of its own instead of the mapping."""
        params = ik.llama_model_default_params()
        params.n_gpu_layers = 0
        params.repack_tensors = options.get("repack", False)
        params.use_mmap = not params.repack_tensors
        return ik.llama_model_load_from_file(path, params)

    def open_context(
        self, model: Any, room: int, sequences: int, threads: int, options: dict[str, Any]
    ) -> Any:
        """Make a context with an f16 cache."""
        params = ik.llama_context_default_params()
        set_sizes(params, room, sequences, threads)
        params.flash_attn = options.get("flash", sequences == 1)  # several abort it: GGML_ASSERT(S > 0)
        return ik.llama_init_from_model(model, params)

    def forget(self, context: Any, seq: int, first: int) -> bool:
        """Drop what sequence `seq` holds from `first` on."""
        if seq < 0:
            ik.llama_kv_cache_clear(context)
            return True
        return bool(LIBRARY.llama_kv_cache_seq_rm(context, seq, first, -1))

    def set_threads(self, context: Any, threads: int) -> None:
        """Compute with so many threads."""
        LIBRARY.llama_set_n_threads(context, threads, threads)


if __name__ == "__main__":
    main(IkLlama)
