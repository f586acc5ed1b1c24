"""Reads the text of a Prometheus page into numbers: each series by its name, summed over its labels.

    found = series(body)          # {"vllm:num_requests_running": 3.0, ...}; raises ValueError
    of_label(body, "sglang:realtime_tokens_total", "mode")   # {"decode": 812.0, "prefill_compute": 96.0}

Knows no engine: what a name means is its driver's. Path: EngineDriver.numbers -> series
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST = 2.0**53  # beyond it a float does not count, and no counter of an engine comes near: it is left out
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def series(body: bytes) -> dict[str, float]:
    """Return every series, summed over its labels. Raises ValueError for a body that is no such page."""
    sums: dict[str, float] = {}
    for name, _, value in _samples(body):
        sums[name] = min(sums.get(name, 0.0) + value, MOST)
    if not sums and body.strip():
        raise ValueError("the metrics are not in Prometheus' text format")
    return sums


def of_label(body: bytes, name: str, label: str) -> dict[str, float]:
    """Return one series by the values of one label."""
    sums: dict[str, float] = {}
    for called, labels, value in _samples(body):
        if called == name:
            key = next((v for k, v in _LABEL.findall(labels) if k == label), "")
            sums[key] = sums.get(key, 0.0) + value
    return sums


def _samples(body: bytes) -> Iterator[tuple[str, str, float]]:
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("#") or (match := _SAMPLE.match(line)) is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if abs(value) <= MOST:  # NaN is not
            yield match[1], match[2] or "", value
