"""Translates a hub repository's card and configuration into the catalogue's terms.

Knows the hub's answer to /api/models and config.json; opens no connection and judges no licence.
Path: hub.py, refresh.py -> licence, card_facts, config_facts.
"""

from __future__ import annotations

import re
from typing import Any

# The hub's identifiers that name one licence text -> ours. "other" and "modified-mit" name several.
_LICENCES = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "llama2": "LicenseRef-scancode-llama-2-license-2023",
    "llama3": "LicenseRef-llama-3-license-2024",
    "llama3.1": "LicenseRef-scancode-llama-3.1-license-2024",
    "llama3.2": "LicenseRef-scancode-llama-3.2-license-2024",
    "llama3.3": "LicenseRef-scancode-llama-3.3-license-2024",
    "llama4": "LicenseRef-scancode-llama-4-cla-2025",
    "gemma": "LicenseRef-scancode-gemma-tou-2025-03-24",
    "tongyi-qianwen": "LicenseRef-scancode-tongyi-qianwen-2023",
    "qwen": "LicenseRef-scancode-qwen-2024",
    "qwen-research": "LicenseRef-qwen-research-2024",
    "mrl": "LicenseRef-MRL-0.1",
    "mnpl": "LicenseRef-MNPL-0.1",
}
_NOT_NAMED = {"", "other", "unknown"}
# key of config.json (or of its text_config) -> the catalogue's
_CONFIG = {
    "max_position_embeddings": "context",
    "hidden_size": "hidden",
    "vocab_size": "vocab",
    "num_experts_per_tok": "experts_per_token",
}


def licence(info: Any) -> str:
    """Return the licence that the card names: our identifier where the name has one, else the card's own word."""
    card = info.get("cardData") if isinstance(info, dict) else None
    if not isinstance(card, dict):
        return ""
    tag = card.get("license")
    if tag in _NOT_NAMED or not isinstance(tag, str):
        named = card.get("license_name")
        tag = named if isinstance(named, str) else tag if isinstance(tag, str) else ""
    return _LICENCES.get(tag.lower(), tag)


def known_licence(word: str) -> bool:
    """Say whether `licence` returned one of our identifiers, and not a card's own word."""
    return word in _LICENCES.values()


def card_facts(info: Any, repo: str) -> dict[str, Any]:
    """Return what the hub's answer says of `repo`: licence, gated, parameters, base (parents of other labs)."""
    facts: dict[str, Any] = {}
    if word := licence(info):
        facts["licence"] = word
    if isinstance(info.get("gated"), str | bool):
        facts["gated"] = bool(info["gated"])
    tensors = info.get("safetensors")
    total = tensors.get("total") if isinstance(tensors, dict) else None
    if type(total) is int and 0 < total < 10**14:
        facts["parameters"] = total
    org = repo.partition("/")[0]
    parents = [p for p in _parents(info.get("cardData")) if p.partition("/")[0] != org]
    if parents:
        facts["base"] = parents
    return facts


def config_facts(config: Any) -> dict[str, Any]:
    """Return what config.json says that the catalogue keeps; a multimodal model's text part counts."""
    if not isinstance(config, dict):
        return {}
    inner = config.get("text_config")
    stated = {**config, **inner} if isinstance(inner, dict) else config
    facts = {ours: stated.get(theirs) for theirs, ours in _CONFIG.items()}
    return {k: v for k, v in facts.items() if type(v) is int and 0 < v < 1 << 31}


def _parents(card: Any) -> list[str]:
    bases = card.get("base_model") if isinstance(card, dict) else None
    named = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    return [p for p in named if isinstance(p, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", p)][:16]
