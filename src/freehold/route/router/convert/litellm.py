"""Turns the config.yaml of a LiteLLM proxy into a GatewayDraft of gateway.toml.

Every deployment is a model, every model name a route: its deployments in their order, then its fallbacks'. What has no
counterpart is listed. Keys in the file are never copied, nor quoted. Knows LiteLLM's words; reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from freehold.base.errors import UsageError
from freehold.route.router.convert import (
    GatewayDraft,
    as_rows,
    as_seconds,
    as_table,
    as_text,
    as_texts,
    duration,
)
from freehold.route.router.toml.models import is_inside
from freehold.route.router.toml.routes import wrong_pattern

_VARIABLE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
# What stands in the place of a key where none is needed.
_ANY_KEY = (
    "", "none", "fake", "fake-key", "dummy", "empty", "anything", "any", "sk-1234", "na", "n/a", "not-needed",
)  # fmt: skip
_TAKEN_PARAMS = (
    "model", "api_base", "base_url", "api_key", "timeout", "stream_timeout", "tags", "order", "max_retries",
)  # fmt: skip
_COSTS = {  # LiteLLM's words for dollars a token -> ours
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "written",
    "output_cost_per_token": "output",
}
_ABILITIES = {
    "supports_vision": "images",
    "supports_function_calling": "tools",
    "supports_response_schema": "json_schema",
}
_ABOVE = re.compile(r"(\w+?)_above_(\d+)k_tokens")
_TALKS = ("chat", "completion", "embedding", "responses", "")
_ROUTING = ("num_retries", "timeout", "request_timeout", "stream_timeout", "allowed_fails", "cooldown_time")
_LISTS = ("fallbacks", "context_window_fallbacks", "default_fallbacks")
_BUDGET = 'a budget is a key\'s: [keys.NAME] budget = { usd = 20, per = "day" }'
_MEANING = {  # settings without a counterpart -> what is here instead
    "master_key": "freehold keys add NAME --admin creates an administrator's key",
    "database_url": "keys are in keys.json, spending in the ledger of the data folder",
    "max_budget": _BUDGET,
    "budget_duration": "a budget is a key's: its `per`",
    "provider_budget_config": _BUDGET,
    "content_policy_fallbacks": "a refused answer is an answer: no other target is asked",
    "routing_strategy": "targets are tried in order",
    **dict.fromkeys(("cache", "cache_params"), 'a route keeps answers with cache = "10m"'),
    **dict.fromkeys(
        ("callbacks", "success_callback", "failure_callback"),
        "the ledger has a row for every request; /metrics has the sums",
    ),
    "drop_params": "what a target cannot do is refused, or listed in `warnings`",
    "enable_pre_call_checks": "a prompt that is too long is always sent to a larger window",
    "redis_host": "one process serves: nothing is shared",
    **dict.fromkeys(
        ("default_internal_user_params", "max_internal_user_budget", "default_team_settings"),
        "freehold keys add NAME, then [keys.NAME]",
    ),
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One entry of model_list, by the names it has in the draft."""

    group: str
    model: str
    provider: str
    order: float
    params: Mapping[str, Any]


def converted(config: Any, origin: str) -> GatewayDraft:
    """Return the draft of what a config.yaml holds. Anything but a table gives a draft with nothing in it."""
    draft, config = GatewayDraft(origin), as_table(config)
    for section in ("providers", "models", "labels", "routes"):  # in this order in the file
        draft.sections[section] = {}
    settings = {**as_table(config.get("litellm_settings")), **as_table(config.get("router_settings"))}
    deployments = [d for each in as_rows(config.get("model_list")) for d in _deployed(draft, each)]
    _take_tags(draft, deployments, settings)
    take_guardrails(draft, config, settings)
    _take_routes(draft, deployments, settings)
    _leave_rest(draft, config)
    if not deployments:
        draft.leave("model_list: it has no entry that could be taken over")
    draft.sections = {name: tables for name, tables in draft.sections.items() if tables}
    return draft


# --- deployments -------------------------------------------------------------------------------------


def _deployed(draft: GatewayDraft, entry: Mapping[str, Any]) -> Iterator[Deployment]:
    params, info = as_table(entry.get("litellm_params")), as_table(entry.get("model_info"))
    group, model = as_text(entry.get("model_name")), as_text(params.get("model"))
    mode = as_text(info.get("mode") or params.get("mode"))
    name, rest = seller_of(model)
    seller = SELLERS.get(name)
    where = f"model_list: {group or 'an entry'} ({model or 'no model'})"
    if not group or not model:
        draft.leave(f"{where}: model_name and litellm_params.model are both needed")
    elif "*" in group or "*" in model:
        draft.leave(f"{where}: a pattern; list each model instead")
    elif mode not in _TALKS:
        draft.leave(f"{where}: {mode} is not served")
    elif seller is None:
        draft.leave(f"{where}: {name} is not supported; its OpenAI-compatible endpoint would work")
    elif not (url := _url(name, seller, params)) and seller.kind == COMPATIBLE:
        draft.leave(f"{where}: it has no api_base, or one that the environment holds")
    else:
        provider = _provider(draft, name, seller, url, _key(draft, where, name, seller, url, params))
        yield _model(draft, group, rest, provider, params, info, where)


def _url(name: str, seller: Seller, params: Mapping[str, Any]) -> str:
    url = as_text(params.get("api_base") or params.get("base_url")).rstrip("/")
    if not url.startswith(("http://", "https://")):
        return seller.url
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.rpartition("@")[2]
    except ValueError:
        return seller.url
    path = parts.path.removesuffix("/chat/completions")
    if name == "azure":
        path = path.removesuffix("/openai/v1")
    added = ADDED.get(name, "")
    return f"{parts.scheme}://{netloc}{path}" + ("" if added and path.endswith(added) else added)


def _key(
    draft: GatewayDraft, where: str, name: str, seller: Seller, url: str, params: Mapping[str, Any]
) -> str:
    """Return "env:NAME"; a key that the file holds is asked for in a variable instead."""
    key = params.get("api_key")
    if key is None:  # LiteLLM would send the seller's key to a machine of the house too
        private = is_inside(urlsplit(url).hostname or "seller.example")
        return f"env:{seller.variable}" if seller.variable and not private else ""
    text = as_text(key)
    if match := _VARIABLE.fullmatch(text):
        return f"env:{match[1]}"
    if text.lower() in _ANY_KEY:
        return ""
    variable = seller.variable or f"{re.sub('[^A-Z0-9]', '_', name.upper())}_API_KEY"
    draft.leave(f"{where}: its api_key, which was in the file: export {variable}, and make a new key of it")
    return f"env:{variable}"


def _provider(draft: GatewayDraft, name: str, seller: Seller, url: str, key: str) -> str:
    """Return the name of the provider with this address and key, made if there is none."""
    kind = seller.kind
    if kind == "openai" and url and urlsplit(url).hostname != "api.openai.com":
        kind = COMPATIBLE
    wanted = {"kind": kind} | ({"url": url} if url else {}) | ({"key": key} if key else {})
    for known, table in draft.sections["providers"].items():
        if {k: v for k, v in table.values.items() if k != "plain_http"} == wanted:
            return known
    free_name = draft.free("providers", name.replace("_", "-"))
    table = draft.table("providers", free_name)
    table.values |= wanted
    parts = urlsplit(url)
    if parts.hostname and is_inside(parts.hostname):
        table.remarks.append(
            "If this machine is yours, add owned = true: private requests may go there then."
        )
    elif parts.scheme == "http":
        table.values["plain_http"] = True
        table.remarks.append("http beyond a private network: others can read prompts and keys.")
    if name == "azure":
        table.remarks.append("Azure's endpoint for OpenAI clients; the model is the deployment's name.")
    return free_name


def _model(
    draft: GatewayDraft,
    group: str,
    model: str,
    provider: str,
    params: Mapping[str, Any],
    info: Mapping[str, Any],
    where: str,
) -> Deployment:
    name = draft.free("models", f"{provider}/{model}")
    table = draft.table("models", name)
    table.values |= {"provider": provider, "model": model}
    for key, ours in (("max_input_tokens", "context"), ("max_output_tokens", "max_output")):
        if isinstance(info.get(key), int) and 0 < info[key] <= 100_000_000:
            table.values[ours] = info[key]
    if lacks := {ours: False for key, ours in _ABILITIES.items() if info.get(key) is False}:
        table.values["can"] = lacks
    if price := _price(draft, where, {**info, **params}):
        table.values["price"] = price
    taken = (*_TAKEN_PARAMS, *_COSTS, "api_version")
    if rest := [k for k in params if k not in taken and not _ABOVE.fullmatch(k)]:
        draft.leave(f"{where}: {', '.join(sorted(map(str, rest)))}")
    order = params.get("order")
    return Deployment(group, name, provider, order if isinstance(order, (int, float)) else 0, params)


def _price(draft: GatewayDraft, where: str, info: Mapping[str, Any]) -> dict[str, Any]:
    price = {ours: paid for key, ours in _COSTS.items() if (paid := _million(info.get(key))) is not None}
    if not price:
        return {}
    if not {"input", "output"} <= price.keys():
        draft.leave(f"{where}: its price, as input and output are not both there")
        return {}
    above: dict[int, dict[str, Any]] = {}
    for key, value in info.items():
        match, paid = _ABOVE.fullmatch(str(key)), _million(value)
        if match and match[1] in _COSTS and paid is not None:
            above.setdefault(int(match[2]) * 1000, {})[_COSTS[match[1]]] = paid
    if len(above) > 1:
        draft.leave(f"{where}: prices above {', '.join(f'{n:,}' for n in sorted(above)[1:])} tokens")
    if above:
        over = min(above)
        price |= {"over": over, "long": {**price, **above[over]}}
    return price


def _million(value: Any) -> Decimal | None:
    """Return dollars for a million tokens, to six places; None for anything but a price."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        paid = (Decimal(str(value)) * 1_000_000).quantize(Decimal("0.000001"))
    except InvalidOperation:
        return None
    return paid if paid.is_finite() and 0 <= paid <= 100_000 else None


# --- tags and routes ---------------------------------------------------------------------------------


def _take_tags(draft: GatewayDraft, deployments: Sequence[Deployment], settings: Mapping[str, Any]) -> None:
    """Make each tag a label: its requests stay at the providers of the deployments that have it."""
    tagged: dict[str, list[str]] = {}
    for each in deployments:
        for tag in as_texts(each.params.get("tags")):
            tagged.setdefault(tag, []).append(each.provider)
    for tag, providers in tagged.items():
        if tag == "default":
            draft.leave("tags: default; requests without a label may go to every target")
            continue
        if not settings.get("enable_tag_filtering"):
            draft.leave(f"tags: {tag}; they had no effect without enable_tag_filtering")
            continue
        table = draft.table("labels", draft.free("labels", tag))
        table.values["stay"] = list(dict.fromkeys(providers))
        header = "send X-Freehold-Label instead of x-litellm-tags, or give it to a key."
        table.remarks.append(f"The tag {tag}: {header}")
        untagged = {d.provider for d in deployments if tag not in as_texts(d.params.get("tags"))}
        if mixed := ", ".join(sorted(untagged & set(providers))):
            draft.leave(f"tags: {tag} allows all models of {mixed}, as a label names providers")


def _take_routes(draft: GatewayDraft, deployments: Sequence[Deployment], settings: Mapping[str, Any]) -> None:
    groups: dict[str, list[Deployment]] = {}
    for each in sorted(deployments, key=lambda d: d.order):
        groups.setdefault(each.group, []).append(each)
    after = _fallbacks(settings)
    always = as_texts(settings.get("default_fallbacks"))
    for group, members in groups.items():
        named = [*after.get(group, ()), *always]
        for fallback in named:
            if fallback not in groups:
                draft.leave(f"fallbacks: {group} to {fallback}, which model_list does not have")
        targets = [d.model for d in members]
        targets += [d.model for name in named for d in groups.get(name, ())]
        _route(draft, group, list(dict.fromkeys(targets)), members, settings)
        if len(members) > 1 and not any(d.order for d in members):
            spread = f"the spread of {group} over {len(members)} deployments"
            draft.leave(f"{spread}: they are tried in order")
    for alias, group in as_table(settings.get("model_group_alias")).items():
        members = groups.get(as_text(group if not isinstance(group, dict) else group.get("model")), [])
        if members:
            _route(draft, str(alias), [d.model for d in members], members, settings)
        else:
            draft.leave(f"model_group_alias: {alias}, which leads to nothing in model_list")


def _fallbacks(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the groups to ask after each; those for a larger window last, as a route finds that by itself."""
    fallbacks: dict[str, list[str]] = {}
    for key in ("fallbacks", "context_window_fallbacks"):
        for each in as_rows(settings.get(key)):
            for group, names in each.items():
                fallbacks.setdefault(str(group), []).extend(as_texts(names))
    return fallbacks


def _route(
    draft: GatewayDraft,
    group: str,
    targets: list[str],
    members: Sequence[Deployment],
    settings: Mapping[str, Any],
) -> None:
    name = draft.free("routes", group)
    while name in draft.sections["models"]:  # requests name both
        name += "-route"
    if name != group:
        draft.leave(f"the name {group}: here it is {name}")
    route = draft.table("routes", name).values
    route["targets"] = targets
    params = {**settings, **members[0].params}
    timeout = as_seconds(params.get("timeout") or settings.get("request_timeout"))
    first = as_seconds(params.get("stream_timeout"))
    if timeout:
        route["timeout"] = duration(timeout)
    if first or (timeout and timeout < 30):
        route["first_token"] = duration(min(first or timeout, timeout or first))
    retries = params.get("max_retries", settings.get("num_retries"))
    if isinstance(retries, int) and retries >= 0:
        route["retries"] = min(retries, 10)
    breaker: dict[str, Any] = {}
    if isinstance(fails := settings.get("allowed_fails"), int) and 0 <= fails < 1000:
        breaker["failures"] = fails + 1  # LiteLLM leaves a deployment alone after more than are allowed
    if cooldown := as_seconds(settings.get("cooldown_time")):
        breaker["cooldown"] = duration(cooldown)
    if breaker:
        route["breaker"] = breaker


# --- what is left ------------------------------------------------------------------------------------


def _leave_rest(draft: GatewayDraft, config: Mapping[str, Any]) -> None:
    """List every setting that has no counterpart, without its value, which may be a secret."""
    taken = {*_ROUTING, *_LISTS, "model_group_alias", "enable_tag_filtering", "guardrails"}
    for section in ("litellm_settings", "router_settings", "general_settings"):
        for key in as_table(config.get(section)):
            if section == "general_settings" or key not in taken:
                meaning = _MEANING.get(str(key), "")
                draft.leave(f"{section}: {key}" + (f": {meaning}" if meaning else ""))
    known = ("model_list", "litellm_settings", "router_settings", "general_settings", "guardrails")
    for key in config:
        if key not in known:
            draft.leave(str(key))


# --- LiteLLM's guardrails as labels -----------------------------------------------------------------
# What a filter looks for sets a label that keeps the request in the house.
# A filter blocks or masks; a label decides where the request may be, and the text stays as it is.

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
    table.remarks += [
        f"For {', '.join(names)}: what is found keeps the request on owned machines; it is refused",
        "where a route has none. Nothing is masked.",
    ]


def _guardrails(
    config: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each guardrail's name and settings, in today's form and in the one of litellm_settings."""
    for each in as_rows(config.get("guardrails")):
        yield str(each.get("guardrail_name", "unnamed")), as_table(each.get("litellm_params"))
    for each in as_rows(settings.get("guardrails")):
        for name, guard in each.items():
            kinds = guard.get("callbacks", []) if isinstance(guard, dict) else []
            for kind in kinds if isinstance(kinds, list) else []:
                yield str(name), {"guardrail": str(kind)}


def _patterns(draft: GatewayDraft, name: str, params: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return a filter's own expressions, those that RE2 takes, and whether it has ready-made ones."""
    custom, prebuilt = [], False
    for each in as_rows(params.get("patterns")):
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


# --- LiteLLM's names of providers -------------------------------------------------------------------
# And how each is written in gateway.toml: kind, address, the variable of its key.
# Addresses as the sellers' documentation gives them for OpenAI's clients (2026-11).


class Seller(NamedTuple):
    """`url` "": the kind's own, or what the deployment says."""

    kind: str
    url: str
    variable: str  # that LiteLLM reads where a deployment has no key; "": it needs none


COMPATIBLE = "openai-compatible"
SELLERS: Mapping[str, Seller] = {
    "openai": Seller("openai", "", "OPENAI_API_KEY"),
    "text-completion-openai": Seller("openai", "", "OPENAI_API_KEY"),
    "anthropic": Seller("anthropic", "", "ANTHROPIC_API_KEY"),
    "gemini": Seller("gemini", "", "GEMINI_API_KEY"),
    "mistral": Seller("mistral", "", "MISTRAL_API_KEY"),
    "deepseek": Seller("deepseek", "", "DEEPSEEK_API_KEY"),
    "azure": Seller(COMPATIBLE, "", "AZURE_API_KEY"),
    "groq": Seller(COMPATIBLE, "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "together_ai": Seller(COMPATIBLE, "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "openrouter": Seller(COMPATIBLE, "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "fireworks_ai": Seller(COMPATIBLE, "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "xai": Seller(COMPATIBLE, "https://api.x.ai/v1", "XAI_API_KEY"),
    "perplexity": Seller(COMPATIBLE, "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "deepinfra": Seller(COMPATIBLE, "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "cerebras": Seller(COMPATIBLE, "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "nvidia_nim": Seller(COMPATIBLE, "https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "sambanova": Seller(COMPATIBLE, "https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "moonshot": Seller(COMPATIBLE, "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    "cohere_chat": Seller(COMPATIBLE, "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    **dict.fromkeys(("ollama", "ollama_chat"), Seller(COMPATIBLE, "http://localhost:11434/v1", "")),
    "llamafile": Seller(COMPATIBLE, "http://127.0.0.1:8080/v1", ""),
    **dict.fromkeys(
        ("hosted_vllm", "vllm", "openai_like", "custom_openai", "litellm_proxy", "lm_studio", "xinference"),
        Seller(COMPATIBLE, "", ""),
    ),
}
ADDED = {  # what an address of LiteLLM's lacks here
    "anthropic": "/v1",
    "gemini": "/v1beta",
    "ollama": "/v1",
    "ollama_chat": "/v1",
    "azure": "/openai/v1",
}


def seller_of(model: str) -> tuple[str, str]:
    """Split `groq/llama-3` into LiteLLM's provider and the model; a name without a provider is guessed by its maker."""
    prefix, slash, rest = model.partition("/")
    if slash and rest:
        return prefix, rest
    makers = {"claude": "anthropic", "gemini": "gemini", "mistral": "mistral", "deepseek": "deepseek"}
    return next((name for begins, name in makers.items() if model.startswith(begins)), "openai"), model
