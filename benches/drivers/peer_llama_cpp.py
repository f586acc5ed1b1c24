"""llama.cpp's driver, on its C API; runs in an environment with llama-cpp-python and NumPy.

Options: `flash` (flash attention; its own default is to use it), `repack` (weights re-laid for this
processor, its default), `unified` (one KV buffer for all sequences), and for quality.py `kv` ("f16" | "f32")
and `logits` (room for the logits of all rows).
Path: peers.py, quality.py or tests/vectors/check_families.py -> peer.Child -> this file
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import llama_cpp as ll  # pyright: ignore[reportMissingImports]

from benches.drivers.llama_driver import BATCH, LlamaDriver, set_sizes, used_features
from benches.lib.driver import main

KV_TYPES = {"f16": ll.GGML_TYPE_F16, "f32": ll.GGML_TYPE_F32}


class LlamaCpp(LlamaDriver):
    """llama.cpp."""

    name = "llama.cpp"
    api = ll
    trials: ClassVar = {
        "prefill": [{"repack": False}, {"flash": False}],
        "decode": [{"repack": False}],
        "depth": [{"flash": False}],
        "batch": [{"unified": True}, {"repack": False}],
    }

    def __init__(self) -> None:
        self._quiet = ll.llama_log_callback(lambda _level, _text, _data: None)  # llama.cpp keeps the pointer
        ll.llama_log_set(self._quiet, ctypes.c_void_p(0))
        super().__init__()

    def version(self) -> str:
        """Name the package, and what llama.cpp says it uses of the processor."""
        return f"llama-cpp-python {ll.__version__} ({used_features(ll.llama_print_system_info())})"

    def open_model(self, path: bytes, options: dict[str, Any]) -> Any:
        """Load a file."""
        params = ll.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = options.get("repack", True)
        return ll.llama_model_load_from_file(path, params)

    def open_context(
        self, model: Any, room: int, sequences: int, threads: int, options: dict[str, Any]
    ) -> Any:
        """Make a context with an f16 cache."""
        params = ll.llama_context_default_params()
        set_sizes(params, room, sequences, threads)
        params.type_k = params.type_v = KV_TYPES[options.get("kv", "f16")]
        params.kv_unified = options.get("unified", False)
        if options.get("logits") and hasattr(params, "n_outputs_max"):
            params.n_outputs_max = params.n_outputs_max_per_seq = BATCH
        # flash attention would round f32 keys to f16
        if options.get("kv") == "f32" or not options.get("flash", True):
            params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return ll.llama_init_from_model(model, params)

    def forget(self, context: Any, seq: int, first: int) -> bool:
        """Drop what sequence `seq` holds from `first` on, if its memory can."""
        memory = ll.llama_get_memory(context)
        if seq >= 0:
            return ll.llama_memory_seq_rm(memory, seq, first, -1)
        ll.llama_memory_clear(memory, True)
        return True

    def set_threads(self, context: Any, threads: int) -> None:
        """Compute with so many threads."""
        ll.llama_set_n_threads(context, threads, threads)


if __name__ == "__main__":
    main(LlamaCpp)
