"""Sampled tokens a CPU-second with their log-probabilities: our engine beside `generate` of transformers, in turns.

    python benches/adapt/sampling.py smollm2:135m --prompts 8 --group 8 --tokens 40

Both draw from the model's own distribution (temperature 1, nothing cut off) and keep the log-probability of each
token. transformers loads the same file into floats; its answers run to the same number of tokens or their own end.
CPU-seconds, since the machine may be shared; the load is printed beside them. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freehold.adapt.reinforce.policy import seeds_of
from freehold.adapt.sampling import SamplingModel, open_sampling
from freehold.base.config import load_settings
from freehold.base.machine import cpu_name
from freehold.base.types import Message
from freehold.cli.bench import version
from freehold.run.store import Store

QUESTION = "State the final answer to the following arithmetic problem: {} + {} ="
Sampled = Callable[[int], int]  # a round's number -> tokens


def main() -> int:
    """Measure in turns, print a line for each round, then the facts."""
    args = _arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    store = Store(load_settings())
    ref = store.resolve(args.model)
    with open_sampling(ref, store.packs, threads=args.threads) as model:
        prompts = [
            model.render((Message("user", QUESTION.format(i, 3 * i + 5)),)) for i in range(args.prompts)
        ]
        engines: dict[str, Sampled] = {"freehold": _ours(model, prompts, args)}
        if not args.alone:
            engines["transformers"] = _theirs(ref.path, model, prompts, args)
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(args.rounds + 1):  # the first warms up
            for name, sample in engines.items():
                start = _cpu()
                tokens = sample(number)
                spent = _cpu() - start
                if number:
                    rates[name].append(tokens / spent)
                    print(f"round {number}: {name} {tokens} tokens in {spent:.2f} CPU-s", file=sys.stderr)
    medians = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    facts = {
        "bench": "sampling",
        "model": args.model,
        "machine": cpu_name(),
        "version": version(),
        "load_average": round(os.getloadavg()[0], 2),
        "prompts": args.prompts,
        "group": args.group,
        "tokens": args.tokens,
        "prompt_tokens": len(prompts[0]),
        "tokens_per_cpu_second": medians,
        "ratio": round(medians["freehold"] / medians["transformers"], 2) if not args.alone else None,
        "at": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(facts))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40, help="most of an answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alone", action="store_true", help="without transformers")
    return parser.parse_args()


def _ours(model: SamplingModel, prompts: list[list[int]], args: argparse.Namespace) -> Sampled:
    def sample(number: int) -> int:
        seeds = seeds_of(0, number, len(prompts))
        found = model.sample(prompts, args.group, seeds=seeds, max_tokens=args.tokens)
        return sum(len(answer.ids) for group in found for answer in group)

    return sample


def _theirs(path: Path, model: SamplingModel, prompts: list[list[int]], args: argparse.Namespace) -> Sampled:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads or model.threads)
    peer: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    width = max(map(len, prompts))
    end = min(model.tokenizer.eos_ids)
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts]).repeat_interleave(args.group, 0)
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]).repeat_interleave(
        args.group, 0
    )

    def sample(number: int) -> int:
        torch.manual_seed(number)
        with torch.no_grad():
            out = peer.generate(
                ids, attention_mask=seen, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=args.tokens, eos_token_id=sorted(model.tokenizer.eos_ids), pad_token_id=end,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        answers = out.sequences[:, width:]
        for at, logits in enumerate(out.logits):  # what a trainer needs of them
            torch.log_softmax(logits.float(), -1).gather(1, answers[:, at : at + 1])
        ended = torch.isin(answers, torch.tensor(sorted(model.tokenizer.eos_ids))).int()
        return int((ended.cumsum(1) - ended == 0).sum())  # tokens up to the first end, with it

    return sample


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
