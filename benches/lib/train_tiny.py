"""Trains a tiny stand-in of an architecture on this repository's own text, so that its logits are those of a language.

`python -m benches.lib.train_tiny KIND FOLDER [--minutes 8] [--threads 1]`, in an environment with torch and
transformers 5; KIND is one of KINDS. A few million weights see the bytes of docs and sources for minutes. FOLDER gets
transformers' safetensors and the tokenizer of tests/vectors. Then, with llama.cpp's converter and its library,
quality.py's files:

    python convert_hf_to_gguf.py FOLDER --outtype f32 --outfile KIND.gguf
    python -m benches.lib.train_tiny --quantise KIND.gguf     (in an environment with llama-cpp-python)
Path: train_tiny.py -> transformers -> FOLDER; engine/quality.py reads the quantised files
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ROOT = Path(__file__).resolve().parents[2]
LENGTH, BATCH = 128, 8  # bytes of a sequence, sequences of a step
RATE, WARM_UP = 2e-3, 50  # of AdamW, and the steps until it is reached
TYPES = {"Q4_K": "Q4_K_M", "Q5_0": "Q5_0", "Q8_0": "Q8_0"}  # names, and llama.cpp's of the whole file

BASE: dict[str, Any] = {
    "vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_size": 256,
    "num_attention_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "intermediate_size": 512, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 64,
            "moe_intermediate_size": 256, "num_local_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True,
        },
    ),
    "delta": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {
            "intermediate_size": 512, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 64,
            "linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 64,
            "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.25,
                "mrope_section": [3, 3, 2], "mrope_interleaved": True,
            },
        },
    ),
    "mamba": (
        "NemotronHConfig",
        "NemotronHForCausalLM",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention", "mlp"],
            "intermediate_size": 512, "num_key_value_heads": 2, "head_dim": 64, "ssm_state_size": 64,
            "mamba_num_heads": 8, "mamba_head_dim": 64, "n_groups": 2, "conv_kernel": 4, "chunk_size": 64,
        },
    ),
    "latent": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            "intermediate_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 4, "num_key_value_heads": 4,
            "kv_lora_rank": 256, "q_lora_rank": 256, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64,
            "v_head_dim": 64, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
            "norm_topk_prob": True,
        },
    ),
}  # fmt: skip


# What published config.json files state, llama.cpp's converter needs, and transformers does not write; and what the
# converter takes for experts where there are none.
STATED: dict[str, dict[str, Any]] = {
    "latent": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "mamba": {"hybrid_override_pattern": "M-*-M-", "num_hidden_layers": 6},
}
NOT_STATED = {
    "mamba": (
        "layers_block_type", "mtp_layers_block_type", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
        "moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size",
    )
}  # fmt: skip


def corpus() -> bytes:
    """Join the repository's prose and sources, in a fixed order; what is measured on later is not among them."""
    paths = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/freehold/**/*.py")])
    return b"\n\n".join(path.read_bytes() for path in paths)


def train(kind: str, folder: Path, minutes: float) -> None:
    """Train for so long and write the model; prints the loss in bits a byte."""
    import torch
    import transformers

    from tests.vectors.files import tokenizer_json

    config_class, model_class, own = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**BASE | own)).float()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = torch.tensor(tokenizer(corpus().decode("utf-8", "replace"), add_special_tokens=False)["input_ids"])
    weights = sum(p.numel() for p in model.parameters())
    print(f"{kind}: {weights / 1e6:.1f} million weights, {len(ids):,} tokens", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    began, step, smooth = time.monotonic(), 0, 0.0
    while (spent := time.monotonic() - began) < 60 * minutes:
        left = 1 - spent / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * max(left, 0.05)
        at = torch.randint(0, len(ids) - LENGTH - 1, (BATCH,))
        rows = torch.stack([ids[i : i + LENGTH] for i in at.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        step += 1
        if step % 50 == 0:
            print(f"step {step}: {smooth / 0.6931:.2f} bits a token", flush=True)
    model.eval().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | STATED.get(kind, {})
    config = {key: value for key, value in config.items() if key not in NOT_STATED.get(kind, ())}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    print(f"{kind}: {step} steps, {smooth / 0.6931:.2f} bits a token", flush=True)


def quantise(path: Path) -> None:
    """Write KIND-TYPE.gguf for each of TYPES with llama.cpp's own quantiser."""
    import llama_cpp as ll  # pyright: ignore[reportMissingImports]

    for name, file_type in TYPES.items():
        params = ll.llama_model_quantize_default_params()
        params.ftype, params.nthread = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{file_type}"), 1
        out = path.with_name(f"{path.stem}-{name}.gguf")
        if ll.llama_model_quantize(str(path).encode(), str(out).encode(), params):
            raise OSError(f"llama.cpp cannot quantise {path} to {name}")
        print(out)


def main() -> None:
    """Read the command line; train, or quantise what was trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kind", nargs="?", choices=list(KINDS))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantise", type=Path, metavar="GGUF")
    args = parser.parse_args()
    if args.quantise:
        quantise(args.quantise)
        return
    if not args.kind or not args.folder:
        parser.error("KIND and FOLDER, or --quantise GGUF")
    import torch

    torch.set_num_threads(args.threads)
    train(args.kind, args.folder, args.minutes)


if __name__ == "__main__":
    main()
