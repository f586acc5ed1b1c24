"""Makes golden/<family>.npz: logits of the tiny models, computed by `transformers` in float32 on the CPU.

Run from the repository's root in an environment with torch and transformers: `python -m tests.vectors.make
[FAMILY ...]`. Each model is loaded from the files that files.py writes, in both spellings of config.json,
so the writer is checked too. Never reads our own engine's output.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from tests.vectors import files, weights

GOLDEN = Path(__file__).with_name("golden")
AGREEMENT = 2e-4  # full forward against prefill + steps; the same sums in another order


def load(family: str, folder: Path, legacy: bool) -> torch.nn.Module:
    """Write the family's files into `folder` and load them eagerly in float32."""
    files.write_safetensors(family, folder, legacy=legacy)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


@torch.no_grad()
def full_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Logits of one forward over all of `ids`: float32 [T, V]."""
    return model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


@contextmanager
def chosen_experts(model: torch.nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """Collect what the routers choose meanwhile: `experts` [layers with experts, T, chosen], ascending, and `margins`.

    A margin is how far the last chosen expert's logit is above the best one's that was left out.
    """
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def look(router: torch.nn.Module, inputs: object, out: tuple[torch.Tensor, ...]) -> None:
        logits, _, ids = out
        ranked = logits.sort(dim=-1, descending=True).values
        chosen = ids.shape[-1]
        seen.append((ids.sort(dim=-1).values.numpy(), (ranked[:, chosen - 1] - ranked[:, chosen]).numpy()))

    routers = [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(look) for router in routers]
    found: dict[str, np.ndarray] = {}
    yield found
    for hook in hooks:
        hook.remove()
    if seen:
        found["experts"] = np.stack([ids for ids, _ in seen]).astype(np.int16)
        found["margins"] = np.stack([margin for _, margin in seen])


@torch.no_grad()
def stepped_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Logits of a prefill of weights.PREFILL tokens and one call for each token after: float32 [T, V]."""
    tokens = torch.from_numpy(ids)[None]
    out = model(input_ids=tokens[:, : weights.PREFILL], use_cache=True)
    rows = [out.logits[0]]
    for t in range(weights.PREFILL, len(ids)):
        out = model(input_ids=tokens[:, t : t + 1], use_cache=True, cache=out.cache)
        rows.append(out.logits[0])
    return torch.cat(rows).numpy()


def make(family: str) -> None:
    """Compute and store one family's golden file, and print how far its two paths are apart."""
    ids = weights.token_ids(family)
    with tempfile.TemporaryDirectory() as folder:
        model = load(family, Path(folder), legacy=False)
        with chosen_experts(model) as routes:
            full = full_logits(model, ids)
        steps = stepped_logits(model, ids)
        legacy = full_logits(load(family, Path(folder), legacy=True), ids)
    apart = float(np.abs(full - steps).max())
    assert np.isfinite(full).all() and apart < AGREEMENT, (family, apart)
    assert np.array_equal(full, legacy), f"{family}: the two spellings of config.json differ"
    np.savez_compressed(
        GOLDEN / f"{family}.npz",
        config=np.array(json.dumps(files.hf_config(family))),
        ids=ids,
        full=full,
        steps=steps,
        **routes,
        weights_crc32=np.array(weights.digest(family)),
        made_by=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
    )
    print(f"{family:14} std {full.std():.2f}  paths apart {apart:.1e}")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    torch.set_num_threads(2)
    for name in sys.argv[1:] or weights.FAMILIES:
        make(name)
