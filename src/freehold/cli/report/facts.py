"""A model's facts as `models` and `show` print them: values, units, sources, age.

Knows wording; the facts are the catalogue's.
"""

from __future__ import annotations

from datetime import date

from freehold.base import catalog
from freehold.base.catalog.model import STALE_DAYS, Model
from freehold.base.errors import ModelNotFound
from freehold.base.layers import LayerSpec
from freehold.serve.reports.plain import DEEP


def size(model: Model) -> str:
    """Return the parameters as text: 8B, 30B-A3B, 135M."""
    if not model.params_b:
        return ""
    total = _billions(model.params_b)
    return f"{total}-A{_billions(model.active_b)}" if 0 < model.active_b < model.params_b else total


def short_licence(model: Model) -> str:
    """Return the licence's id for a column."""
    return model.licence.removeprefix("LicenseRef-").removeprefix("scancode-") or "unknown"


def age(model: Model, today: date) -> str:
    """Return the age of facts that should be checked again; empty for fresh ones."""
    days = model.age_days(today)
    return f"{days} days old" if days > STALE_DAYS else ""


def tokens(count: int) -> str:
    """Return a context as text: 128k, 1M, or the number."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "k"), (10**6, "M"), (10**3, "k")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count:,}" if count else ""


def facts_lines(model: Model, today: date) -> list[tuple[str, str]]:
    """Return a model's facts as rows; unknown facts are left out, except the licence."""
    old = age(model, today)
    checked = f"checked {model.checked.isoformat()}" + (f", {old}: check them again" if old else "")
    experts = f"{model.experts} experts" if model.experts else ""
    used = f", {model.experts_per_token} per token" if model.experts_per_token else ""
    rows = [
        ("family", f"{model.family}, {model.released}" if model.released else model.family),
        ("lab", f"{model.lab} ({model.country})" if model.country else model.lab),
        ("weights", ", ".join(s for s in (size(model), model.tier, experts + used) if s)),
        *_counted(model),
        ("reads", ", ".join(model.modalities)),
        ("makes", _makes(model)),
        ("languages", _languages(model)),
        ("thinking", model.thinking),
        ("tools", "yes" if model.tools else ""),
        ("terms", model.licence_url),
        ("", "gated: the licence has to be accepted on its page" if model.gated else ""),
        *_lineage(model),
        *(("layers" if not i else "", _group(g)) for i, g in enumerate(model.layers)),
        *_cache(model),
        *_scores(model),
        ("about", model.note),
        *(
            ("not known" if not i else "", f"{key}: looked for in {source}")
            for i, (key, source) in enumerate(model.not_published)
        ),
        ("facts", "; ".join(model.sources)),
        ("", checked),
    ]
    return [(k, v) for k, v in rows if v]


def _counted(model: Model) -> list[tuple[str, str]]:
    """Return the counted weights: all, those for text, and their published precision."""
    if not model.parameters:
        return [("", f"published in {model.native}")] if model.native else []
    text = f", of them {model.text_parameters:,} for text" if model.text_parameters else ""
    precision = f", published in {model.native}" if model.native else ""
    return [("", f"{model.parameters:,} counted{text}{precision}")]


def _makes(model: Model) -> str:
    """Return the output of a model that makes no answers; empty for a generator."""
    vectors = f"vectors of {model.dimensions:,} dimensions" if model.dimensions else "vectors"
    others = {"reranker": "scores of pairs of texts", "transcriber": "transcripts of recordings"}
    return (others | {"embedder": vectors}).get(model.role, "")


def _languages(model: Model) -> str:
    named = " ".join(model.languages)
    more = model.languages_stated > len(model.languages)
    return f"{named} (named, of {model.languages_stated} claimed)" if more else named


def _billions(count: float) -> str:
    short = float(f"{count:.3g}") if count < 10 else count  # 7.57B of 7.5673, but 120.6B as it is called
    return f"{short:g}B" if count >= 0.5 else f"{short * 1000:g}M"


def _lineage(model: Model) -> list[tuple[str, str]]:
    rows = []
    for parent in model.base:
        try:
            licence = short_licence(catalog.model(parent))
        except ModelNotFound:
            licence = "unknown"
        rows.append(("made from" if not rows else "", f"{parent} (licence: {licence})"))
    return rows


def _group(g: LayerSpec) -> str:
    heads = f"{g.kv_heads} x {g.head_dim}" + (f" and {g.value_width}" if g.value_width != g.head_dim else "")
    words = {
        "full": f"attention, keys and values of {heads}",
        "window": f"attention over the last {g.window:,} tokens, keys and values of {heads}",
        "latent": f"latent attention, {g.latent} + {g.rope} values per token",
        "compressed": f"compressed attention, one entry of {heads} for {g.stride} tokens",
        "mamba2": f"Mamba, a state of {g.state:,} values",
        "deltanet": "gated DeltaNet" + (f", a state of {g.state:,} values" if g.state else ""),
        "linear": f"linear attention, a state of {g.state:,} values" if g.state else "linear attention",
        "shortconv": "short convolution",
        "plain": "without a memory of the sequence",
    }
    index = f" and {g.index} to choose by" if g.index else ""
    return f"{g.count} x {words[g.kind]}{index}"


def _cache(model: Model) -> list[tuple[str, str]]:
    from freehold.run.store.space import human  # the store costs `models` more than its whole answer

    if not model.cache_known:
        return []
    first, deep = model.bytes_per_token(0), model.bytes_per_token(DEEP)
    basis = "" if model.layers else ", as published"
    beyond = f", {deep:,} once the windows are full" if deep != first else ""
    rows = [("cache", f"{first:,} bytes a token at 16 bits{beyond}{basis}")]
    if model.context:
        rows.append(("", f"{human(model.cache_bytes(model.context))} at {tokens(model.context)} tokens"))
    if model.state_bytes:
        rows.append(("", f"{human(model.state_bytes)} of state for each sequence"))
    return rows


def _scores(model: Model) -> list[tuple[str, str]]:
    by_source: dict[str, list[str]] = {}
    for s in model.scores:
        how = f" ({s.setting})" if s.setting else ""
        by_source.setdefault(s.source, []).append(f"{s.benchmark} {s.value:g}{how}")
    rows = [f"{source}: {', '.join(names)}" for source, names in by_source.items()]
    return [("published" if not i else "", row) for i, row in enumerate(rows)]
