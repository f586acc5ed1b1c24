"""Write a tiny random Qwen2 with a real tokenizer, as a folder that vLLM and SGLang load.

`python -m benches.outgrow.tiny OUT [--head-size 32] [--tokenizer MODEL]`
Two layers, four heads, two heads of keys and values: two devices can share it. The tokenizer and the chat template are
those of a GGUF in the store (`--tokenizer`, a name or a path), read by transformers. `--head-size 16` makes one that
vLLM's CPU build loads and calls healthy, and that ends it at the first request.
Path: tiny.py -> transformers.AutoTokenizer, Qwen2ForCausalLM -> OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import resolve

HEADS, KV_HEADS, LAYERS, SEED = 4, 2, 2, 20


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--head-size", type=int, default=32)
    parser.add_argument("--tokenizer", default="qwen2.5-coder:0.5b")
    args = parser.parse_args()
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    source = resolve(args.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    hidden = HEADS * args.head_size
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(config).bfloat16()
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(json.dumps({"bench": "tiny", "folder": str(args.out), "head_size": args.head_size}))


if __name__ == "__main__":
    main()
