"""Ask a model a question, stream the answer, and say how fast it was."""
# model

import freehold

with freehold.load("qwen2.5-coder:0.5b", context=4096, pull=True) as llm:
    for chunk in llm.stream("Write a haiku about owning things.", max_tokens=60, seed=1):
        print(chunk.text, end="", flush=True)
        if chunk.usage:
            print(f"\n{chunk.usage.decode_tok_s:.1f} tok/s")
