"""A GGUF file as a `transformers` model in float32: the float oracle for real models.

Reads through the `gguf` package, dequantises with its decoders, maps names by hand; nothing of Freehold.
Families: llama, qwen2, qwen3, gemma3 without rope scaling, which is what the real test files hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
FIXED = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_PARTS = PARTS | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def load(path: Path | str) -> Any:
    """Load the file's weights, dequantised, into a float32 causal model in evaluation mode."""
    reader = gguf.GGUFReader(path)
    config = _config(reader)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    state = dict(_state(reader, config))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not missing and not unexpected, (missing, unexpected)
    _make_buffers(model, config)
    return model.eval()


def load_tokenizer(path: Path | str) -> Any:
    """Make transformers' own tokenizer of the file's vocabulary."""
    path = Path(path)
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _config(reader: gguf.GGUFReader) -> Any:
    arch = reader.fields["general.architecture"].contents()

    def key(name: str, default: Any = None) -> Any:
        found = reader.fields.get(f"{arch}.{name}")
        return default if found is None else found.contents()

    assert key("rope.scaling.type") is None, "rope scaling is not mapped here"
    names = {tensor.name for tensor in reader.tensors}
    heads, hidden, layers = key("attention.head_count"), key("embedding_length"), key("block_count")
    fields: dict[str, Any] = {
        "vocab_size": int(next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]),
        "hidden_size": hidden,
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key("attention.head_count_kv", heads),
        "head_dim": key("attention.key_length", hidden // heads),
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in names,
        "rope_parameters": {"rope_type": "default", "rope_theta": key("rope.freq_base", 10000.0)},
    }
    if arch == "gemma3":
        full = fields["rope_parameters"]
        fields["rope_parameters"] = {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": key("rope.freq_base_swa", 10000.0)},
        }
        fields["sliding_window"] = key("attention.sliding_window")
        fields["layer_types"] = [
            "full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)
        ]
        fields["query_pre_attn_scalar"] = fields["head_dim"]
    return transformers.AutoConfig.for_model(MODEL_TYPES[arch], **fields)


def _state(reader: gguf.GGUFReader, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    kind = config.model_type
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    parts = GEMMA_PARTS if kind == "gemma3_text" else PARTS
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        if kind == "gemma3_text" and tensor.name.endswith("norm.weight"):
            value = value - np.float32(1)
        name = FIXED.get(tensor.name)
        if name is None:
            _, layer, part, suffix = tensor.name.split(".")
            name = f"model.layers.{layer}.{parts[part]}.{suffix}"
            if kind == "llama" and part in heads:
                value = _to_halves(value, heads[part])
        yield name, torch.from_numpy(np.ascontiguousarray(value))


def _to_halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Undo the converter's row order: from pairs that rotate together to (first half, second half)."""
    return value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _make_buffers(model: Any, config: Any) -> None:
    """Fill what no file stores and "meta" left empty: rope frequencies, gemma's embedding scale."""
    inner = model.model
    inner.rotary_emb = type(inner.rotary_emb)(config)
    if hasattr(inner.embed_tokens, "embed_scale"):
        inner.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    assert not any(buffer.is_meta for buffer in model.buffers())


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> np.ndarray:
    """Compute the logits after each of `ids`: float32 [T, V]."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
