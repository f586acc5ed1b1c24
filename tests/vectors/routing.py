"""What a transformers model's routers choose: hooks around torch.topk and the experts' modules.

Knows how transformers 5 names and calls its experts; needs torch.
Path: make.py -> chosen_experts
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch  # pyright: ignore[reportMissingImports]


@contextmanager
def chosen_experts(model: torch.nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """Collect what the routers choose meanwhile: `experts` [layers with experts, T, chosen], ascending, and `margins`.

    A margin is how far what is compared of the last chosen expert, or group of experts, is above the best that was
    left out: logits of a softmax, else scores. NaN where a router chooses in another way than by one top-k of all.
    """
    calls: list[tuple[torch.Tensor, int]] = []
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    plain = torch.topk

    def topk(values: torch.Tensor, k: int, *rest: Any, **named: Any) -> Any:
        calls.append((values.detach().float(), k))
        return plain(values, k, *rest, **named)

    def look(_module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [v for v in (*inputs, *named.values()) if torch.is_tensor(v) and not v.is_floating_point()]
        ids = given[0] if given else plain(*calls[-1]).indices  # Llama 4's experts see all tokens, weighed
        ids = ids.reshape(-1, ids.shape[-1])
        found = torch.full((len(ids),), float("nan"))
        if len(calls) == 1:
            (values, k) = calls[0]
            found = _margin(values.reshape(-1, values.shape[-1]), k)
        seen.append((ids.sort(-1).values.numpy(), found.numpy()))
        calls.clear()

    hooks = [
        module.register_forward_pre_hook(look, with_kwargs=True)
        for module in model.modules()
        if type(module).__name__.endswith("Experts")
    ]
    found: dict[str, np.ndarray] = {}
    with mock.patch.object(torch, "topk", topk), mock.patch.object(torch.Tensor, "topk", topk):
        yield found
    for hook in hooks:
        hook.remove()
    if seen:
        found["experts"] = np.stack([ids for ids, _ in seen]).astype(np.int16)
        found["margins"] = np.stack([margin for _, margin in seen]).astype(np.float32)


def _margin(values: torch.Tensor, k: int) -> torch.Tensor:
    """How far the k-th greatest is above the next; of a softmax's result, in logits."""
    if torch.allclose(values.sum(-1), torch.ones(len(values)), atol=1e-5):
        values = values.log()
    ranked = values.sort(dim=-1, descending=True).values
    return ranked[:, k - 1] - ranked[:, k]
