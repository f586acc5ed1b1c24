"""Makes golden/<family>.npz: logits of the tiny models, computed by `transformers` in float32 on the CPU.

Run from the repository's root in an environment with torch and transformers: `python -m tests.vectors.make
[FAMILY ...]`. Each model is loaded from the files that files.py writes, in both spellings of config.json,
so the writer is checked too. Never reads our own engine's output.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from tests.vectors import files, weights
from tests.vectors.routing import chosen_experts

GOLDEN = Path(__file__).with_name("golden")
# Full forward against prefill + steps, of the logits' deviation: the same sums in another order; a DeltaNet's states
# sum up their roundings.
AGREEMENT = 5e-4


def load(family: str, folder: Path, legacy: bool) -> Any:
    """Write the family's files into `folder` and load them eagerly in float32."""
    files.write_safetensors(family, folder, legacy=legacy)
    kind, tiny = _class(weights.FAMILIES[family].hf), weights.FAMILIES[family]
    if tiny.head == "layers":  # the class names the layers of published sizes alone
        kind._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{tiny.hf['num_hidden_layers']}.*"]
    model, report = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    for (
        module
    ) in model.modules():  # Mamba-2: transformers clamps steps in prefill alone; no model was trained so
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    return model.eval()


def _class(config: dict[str, Any]) -> Any:
    """Find the class that config.json names; the newest are not exported."""
    name, kind = config["architectures"][0], config["model_type"].removesuffix("_text")
    if hasattr(transformers, name):
        return getattr(transformers, name)
    return getattr(importlib.import_module(f"transformers.models.{kind}.modeling_{kind}"), name)


@torch.no_grad()
def full_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits of one forward over all of `ids`: float32 [T, V]."""
    return model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


@torch.no_grad()
def stepped_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits of a prefill of weights.PREFILL tokens and one call for each token after: float32 [T, V]."""
    tokens = torch.from_numpy(ids)[None]
    out = model(input_ids=tokens[:, : weights.PREFILL], use_cache=True)
    rows = [out.logits[0]]
    for t in range(weights.PREFILL, len(ids)):
        kept = next(
            name for name in ("cache", "cache_params", "past_key_values") if out.get(name) is not None
        )
        out = model(input_ids=tokens[:, t : t + 1], use_cache=True, **{kept: out[kept]})
        rows.append(out.logits[0])
    return torch.cat(rows).numpy()


@torch.no_grad()
def drafted_logits(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of the drafting head after each token but the first, and of its second token after the last: [T, V].

    The second comes from what the head itself gave for the first, as a chained draft does.
    """
    from transformers.modeling_layers import MtpModel  # pyright: ignore[reportMissingImports]

    head = MtpModel.from_pretrained(model).eval().float()
    tokens = torch.from_numpy(ids)[None]
    rows = model(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states[-1][:, :-1]
    places = torch.arange(1, len(ids))[None]
    first = head.forward_layer(0, rows, places, None, input_ids=tokens[:, 1:])
    logits = model.lm_head(first)[0]
    chosen = logits[-1:].argmax(-1)[None]
    rows, tokens = torch.cat([rows, first[:, -1:]], 1), torch.cat([tokens[:, 1:], chosen], 1)
    second = head.forward_layer(0, rows, torch.cat([places, places[:, -1:] + 1], 1), None, input_ids=tokens)
    return {"drafted": torch.cat([logits, model.lm_head(second[:, -1])]).numpy()}


def computed(family: str) -> dict[str, np.ndarray]:
    """Compute one family's golden arrays, and print how far its two paths are apart."""
    ids = weights.token_ids(family)
    with tempfile.TemporaryDirectory() as folder:
        model = load(family, Path(folder), legacy=False)
        with chosen_experts(model) as routes:
            full = full_logits(model, ids)
        steps = stepped_logits(model, ids)
        heads = drafted_logits(model, ids) if weights.FAMILIES[family].head else {}
        legacy = full_logits(load(family, Path(folder), legacy=True), ids)
    apart = float(np.abs(full - steps).max() / full.std())
    assert np.isfinite(full).all() and apart < AGREEMENT, (family, apart)
    assert np.array_equal(full, legacy), f"{family}: the two spellings of config.json differ"
    print(f"{family:24} std {full.std():.2f}  paths apart {apart:.1e}", flush=True)
    return {
        "config": np.array(json.dumps(weights.FAMILIES[family].hf)),
        "ids": ids,
        "full": full,
        **routes,
        **heads,
        "weights_crc32": np.array(weights.digest(family)),
        "made_by": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
    }


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for name in sys.argv[1:] or weights.FAMILIES:
        if name in weights.SEEING:
            print(f"{name:24} is made by make_towers.py")
        else:
            np.savez_compressed(GOLDEN / f"{name}.npz", **computed(name))  # pyright: ignore[reportArgumentType]
