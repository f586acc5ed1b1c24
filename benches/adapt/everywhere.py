"""One adapter in three programs: our engine, llama.cpp and PEFT; the same greedy tokens on the same prompts?

Our engine and llama.cpp round activations to 8 bits, each in its own way, so a token may differ where two are nearly
equally likely: such a place is shown with the gap between the two, as PEFT computes it in float32. Token ids go in and
come out, so no tokenizer differs. Prompts are those of a file of test items. The last line is JSON.
Path: python benches/adapt/everywhere.py MODEL ADAPTER --prompts FILE [--count 20] [--python LLAMA_CPP_PYTHON]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benches.lib.environments import environment
from freehold.adapt.finetune import read_exam
from freehold.adapt.sampling import GREEDY, open_sampling
from freehold.adapt.training.trainee import GGUF
from freehold.base.config import load_settings
from freehold.run.store import ModelRef, Store

TOKENS = 32
TIE = 0.1  # nat between two tokens that rounding may exchange
_LLAMA = """
import json, sys
from llama_cpp import Llama
given = json.load(sys.stdin)
model = Llama(given["model"], lora_path=given["adapter"], n_ctx=1024, verbose=False, n_threads=2)
made = []
for prompt in given["prompts"]:
    ids = []
    model.reset()
    for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        ids.append(token)
        if token in given["ends"] or len(ids) == given["tokens"]:
            break
    made.append(ids)
print(json.dumps(made))
"""


def main() -> None:
    """Ask all three and print where they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--python", type=Path, help="an interpreter that has llama-cpp-python")
    given = parser.parse_args()
    store = Store(load_settings())
    ref = store.resolve(given.model)
    prompts, ours, ends = _freehold(ref, store.packs, given.adapter, given.prompts, given.count)
    asked = {"model": str(ref.path), "adapter": str(given.adapter / GGUF), "prompts": prompts}
    python = given.python or environment("llama_cpp")
    theirs = _llama(python, {**asked, "tokens": TOKENS, "ends": ends})
    base = _Base(ref.path, given.adapter)
    floats = [base.answer(prompt, ends) for prompt in prompts]
    found: dict[str, Any] = {"model": given.model, "prompts": len(prompts)}
    for name, made in (("freehold", ours), ("llama.cpp", theirs)):
        apart = [i for i in range(len(prompts)) if made[i] != floats[i]]
        gaps = [round(base.gap(prompts[i], floats[i], made[i]), 3) for i in apart]
        for i, gap in zip(apart, gaps, strict=True):
            print(f"{name}, prompt {i}: {made[i]} for {floats[i]}, {gap} nat apart")
        found[name] = {"same": len(prompts) - len(apart), "gaps": gaps, "ties": all(g < TIE for g in gaps)}
    print(json.dumps(found))


def _freehold(
    ref: ModelRef, packs: Path, adapter: Path, file: Path, count: int
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Return the prompts, our answers, and the tokens that end one."""
    with open_sampling(ref, packs, context=1024, adapters={"tuned": adapter}) as engine:
        prompts = [engine.render(item.messages) for item in read_exam(file).items[:count]]
        made = engine.sample(
            prompts,
            seeds=[0] * len(prompts),
            max_tokens=TOKENS,
            sampling=GREEDY,
            adapter=engine.adapters.find("tuned"),
        )
        return prompts, [list(one[0].ids) for one in made], sorted(engine.tokenizer.eos_ids)


def _llama(python: Path, given: dict[str, Any]) -> list[list[int]]:
    done = subprocess.run(
        [str(python), "-c", _LLAMA], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


class _Base:
    """The model in transformers as float32, with the adapter as PEFT applies it."""

    def __init__(self, path: Path, adapter: Path) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        )
        self._model = PeftModel.from_pretrained(base, str(adapter)).eval()

    def answer(self, prompt: list[int], ends: list[int]) -> list[int]:
        ids: list[int] = []
        while len(ids) < TOKENS and (not ids or ids[-1] not in ends):
            ids.append(int(self._last(prompt + ids).argmax()))
        return ids

    def gap(self, prompt: list[int], own: list[int], other: list[int]) -> float:
        """Return how much likelier the own token is than the other's, where the two answers part."""
        at = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), 0)
        logits = self._last(prompt + own[:at])
        return float(logits[own[at]] - logits[other[at]])

    def _last(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self._model(torch.tensor([ids])).logits[0, -1]


if __name__ == "__main__":
    main()
