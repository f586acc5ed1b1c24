"""Makes greedy/<model>.json: 64 greedy tokens after each of 20 prompts, by `transformers` in float32.

Run from the repository's root with torch, transformers and gguf:
`python -m tests.vectors.make_greedy MODEL GGUF_PATH` where MODEL names the output (smollm2-135m, ...).
A step is decided, and so judged by the tests, where the best logit leads the second by MARGIN or more. Of the
candidate prompts the 20 hardest are kept that together have at least ENOUGH of their steps decided.
Every step's two best ids and their margin are stored, so a test can go on from this reference's own prefix.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from tests.vectors import reference
from tests.vectors.prompts import CHAT, RAW

GREEDY = Path(__file__).with_name("greedy")
TOKENS = 64
KEPT = 20
MARGIN = 0.5
ENOUGH = 0.92


def encode(tokenizer: Any, kind: str, text: str) -> list[int]:
    """Turn a candidate into ids: as it stands, or as one user turn in the file's chat template."""
    if kind == "raw":
        return list(tokenizer(text).input_ids)
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


@torch.no_grad()
def decode(model: Any, prompts: list[list[int]], stops: set[int]) -> list[dict[str, Any]]:
    """Run all prompts greedily for TOKENS steps as one batch, padded on the left.

    An answer that meets an end-of-text id is cut after it.
    """
    width = max(map(len, prompts))
    step = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    best, margins, cache = [], [], None
    for _ in range(TOKENS):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
        out = model(
            input_ids=step,
            attention_mask=mask,
            position_ids=places,
            use_cache=True,
            cache=cache,
            logits_to_keep=1,
        )
        cache = out.cache if hasattr(out, "cache") else out.past_key_values
        top = out.logits[:, -1].topk(2)
        best.append(top.indices)
        margins.append(top.values[:, 0] - top.values[:, 1])
        step = top.indices[:, :1]
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
    ids, gaps = torch.stack(best, 1).tolist(), torch.stack(margins, 1).tolist()
    return [_entry(rows, gap, stops) for rows, gap in zip(ids, gaps, strict=True)]


def _entry(rows: list[list[int]], margins: list[float], stops: set[int]) -> dict[str, Any]:
    tokens = [first for first, _ in rows]
    end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
    return {
        "tokens": tokens[:end],
        "second": [second for _, second in rows[:end]],
        "margin": [round(margin, 3) for margin in margins[:end]],
        "ended": tokens[end - 1] in stops,
    }


def decided(entry: dict[str, Any]) -> float:
    """Share of an entry's steps whose margin is at least MARGIN."""
    return share_decided([entry])


def candidates(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Decode every candidate prompt, chat ones only where the file has a template."""
    stops = {i for i in map(tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>")) if i}
    stops |= {tokenizer.eos_token_id}
    pool = [("raw", text) for text in RAW]
    if tokenizer.chat_template:
        pool += [("chat", text) for text in CHAT]
    prompts = [encode(tokenizer, kind, text) for kind, text in pool]
    entries = []
    for (kind, text), ids, answer in zip(pool, prompts, decode(model, prompts, stops), strict=True):
        entry = {"kind": kind, "text": text, "prompt": ids, **answer}
        shown = tokenizer.decode(entry["tokens"])[:60]
        print(
            f"{decided(entry):5.2f} {len(entry['tokens']):3} {kind} {text[-50:]!r} -> {shown!r}", flush=True
        )
        entries.append(entry)
    return entries


def choose(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick KEPT neighbours in order of decidedness: the hardest such run that is decided ENOUGH.

    The easiest prompts would all be copying, which hides small errors. Those that end early are spares.
    """
    ranked = sorted((e for e in entries if not e["ended"]), key=decided)
    spares = sorted((e for e in entries if e["ended"]), key=decided, reverse=True)
    ranked = spares[: max(KEPT - len(ranked), 0)] + ranked
    for start in range(len(ranked) - KEPT + 1):
        kept = ranked[start : start + KEPT]
        if share_decided(kept) >= ENOUGH:
            return kept
    return ranked[-KEPT:]


def share_decided(entries: list[dict[str, Any]]) -> float:
    """Share of all the entries' steps whose margin is at least MARGIN."""
    margins = [margin for entry in entries for margin in entry["margin"]]
    return sum(margin >= MARGIN for margin in margins) / len(margins)


def write(name: str, entries: list[dict[str, Any]]) -> None:
    """Store the kept entries, one a line, and print the share of their steps that is decided."""
    kept = choose(entries)
    share, steps = share_decided(kept), sum(len(entry["tokens"]) for entry in kept)
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}, float32"
    head = {"model": name, "made_by": made_by, "steps": steps, "decided": round(share, 4)}
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in kept)
    text = json.dumps(head, indent=1)[:-2] + ',\n "prompts": [\n' + lines + "\n]}\n"
    (GREEDY / f"{name}.json").write_text(text, encoding="utf-8")
    ended = sum(entry["ended"] for entry in kept)
    print(f"{name}: {share:.1%} of {steps} steps decided, {ended} of {len(kept)} end early")


def main() -> None:
    """Make one model's file."""
    name, path = sys.argv[1:]
    torch.set_num_threads(2)
    GREEDY.mkdir(exist_ok=True)
    model, tokenizer = reference.load(path), reference.load_tokenizer(path)
    write(name, candidates(model, tokenizer))


if __name__ == "__main__":
    main()
