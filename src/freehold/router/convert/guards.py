"""LiteLLM's guardrails as labels: what a filter looks for sets a label that keeps the request in the house.

A filter blocks or masks; a label decides where the request may be, and the text stays as it is. Knows LiteLLM's names
of filters; runs none.
Path: convert/litellm.py -> take_guardrails -> GatewayDraft
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from freehold.errors import UsageError
from freehold.router.convert.draft import GatewayDraft
from freehold.router.toml.labels import wrong_pattern

LABEL = "guarded"
_DETECTORS = {
    "presidio": ["pii"],
    "hide-secrets": ["secrets"],
    "hide_secrets": ["secrets"],
    "litellm_content_filter": ["pii", "secrets"],
}


def take_guardrails(draft: GatewayDraft, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Make one label of the filters that a detector here equals in purpose, and list the others."""
    detect: list[str] = []
    patterns: list[str] = []
    names: list[str] = []
    for name, params in _guardrails(config, settings):
        kind = str(params.get("guardrail", ""))
        if kind not in _DETECTORS:
            draft.leave(f"guardrails: {name} ({kind or 'no kind'})")
            continue
        names.append(name)
        custom, prebuilt = _patterns(draft, name, params)
        detect += _DETECTORS[kind] if prebuilt or not custom else []
        patterns += custom
    if not names:
        return
    table = draft.table("labels", draft.free("labels", LABEL))
    table.values["stay"] = "owned"
    if detect:
        table.values["detect"] = list(dict.fromkeys(detect))
    if patterns:
        table.values["patterns"] = list(dict.fromkeys(patterns))
    table.remarks.append(
        f"For {', '.join(names)}: what is found keeps the request on owned machines; it is refused"
    )
    table.remarks.append("where a route has none. Nothing is masked.")


def _guardrails(
    config: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each guardrail's name and settings, in today's form and in the one of litellm_settings."""
    for each in _dicts(config.get("guardrails")):
        params = each.get("litellm_params")
        yield str(each.get("guardrail_name", "unnamed")), params if isinstance(params, dict) else {}
    for each in _dicts(settings.get("guardrails")):
        for name, guard in each.items():
            kinds = guard.get("callbacks", []) if isinstance(guard, dict) else []
            for kind in kinds if isinstance(kinds, list) else []:
                yield str(name), {"guardrail": str(kind)}


def _patterns(draft: GatewayDraft, name: str, params: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return a filter's own expressions, those that RE2 takes, and whether it has ready-made ones."""
    custom, prebuilt = [], False
    for each in _dicts(params.get("patterns")):
        pattern = each.get("pattern")
        if not isinstance(pattern, str):
            prebuilt = True
            continue
        try:
            wrong = wrong_pattern(pattern)
        except UsageError:  # without RE2 the check of the file tells
            wrong = None
        if wrong is not None:
            draft.leave(f"guardrails: {name}: a pattern that {wrong[0]}")
        else:
            custom.append(pattern)
    if params.get("blocked_words"):
        draft.leave(f"guardrails: {name}: blocked_words; patterns = ['(?i)word'] of a label finds them")
    return custom, prebuilt


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
