"""The Python API of choosing: advice, licence verdicts, fit, hardware.

Puts the catalogue, the store's files, this machine and the user's facts together for the advisor, which knows
none of them by itself. Adds no rule of its own; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from freehold.base import catalog
from freehold.base.config import Settings, load_settings
from freehold.base.errors import FreeholdError, ModelNotFound, UsageError
from freehold.base.options import check, option

USUAL_ROOM = 8192  # tokens of a conversation that hardware is sized for by default
_PANEL_BITS = 8.5  # of a weight of a tower, as it is packed
MOST_DOLLARS = 1_000_000_000  # of a budget a month

if TYPE_CHECKING:
    from freehold.base.catalog.model import Model, Structure
    from freehold.choose.advisor.advice import Advice, Download, Placer, Starter
    from freehold.choose.advisor.anatomy import Anatomy
    from freehold.choose.advisor.finders import Beside
    from freehold.choose.advisor.fit import Fit, Misfit, Place
    from freehold.choose.advisor.places import Load, Sizing
    from freehold.choose.advisor.verdict import Facts, Verdict
    from freehold.run.store import Listed, ModelRef


@dataclass(frozen=True, slots=True)
class AdviceOptions:
    """Conditions of `advise` and where the model is to run; the verb's options too."""

    country_not: tuple[str, ...] = option(
        (), "Exclude models made in this country, such as CN; repeatable.", metavar="CC"
    )
    min_context: int = option(0, "Minimum context in tokens: 32k, 1m.", form="amount", shown=False)
    max_params: float = option(
        0.0, "Maximum parameters: 8b, 270m.", name="max-size", form="billions", shown=False
    )
    min_speed: float | None = option(
        None, "Minimum tokens a second; default: the task's own.", least=0, most=1e6
    )
    languages: tuple[str, ...] = option(
        (), "Language of the texts: de, fr, ja; mul: many; repeatable.", name="language", metavar="CC"
    )
    cheapest: bool = option(False, "Rank the cheapest first among models not shown to be worse.")
    sees: bool = option(False, "Only models that read pictures.")
    held: bool = option(False, "Only installed models.", name="installed")
    on: str = option("", "2xh100, rtx4090, m3-max:64; default: this machine.", metavar="HARDWARE")
    engine: str = option("", "With --on: vllm, sglang, llama.cpp, ...", metavar="NAME")
    budget: float | None = option(
        None, "Maximum rent a month.", least=0, most=MOST_DOLLARS, metavar="DOLLARS"
    )
    users_at_once: int | None = option(None, "Concurrent users.", name="users", least=1, most=4096)

    def __post_init__(self) -> None:
        check(self)


def advise(
    task: str,
    *,
    facts: Facts | None = None,
    country_not: Sequence[str] = (),
    min_context: int = 0,
    max_params: float = 0.0,
    min_speed: float | None = None,
    on: str = "",
    engine: str = "",
    budget: float | None = None,
    held: bool = False,
    users: int | None = None,
    cheapest: bool = False,
    languages: Sequence[str] = (),
    sees: bool = False,
    settings: Settings | None = None,
) -> Advice:
    """Rank the catalogue's models for `task`, a question in a few words or a task's id, under conditions, in a place.

    Other conditions in the question (languages, hardware, users, context, budget) apply unless an argument sets them.
    The result's `asked` lists which words were understood, which were ignored, and where they differ from arguments.

    `facts`: your facts for the licence check, which needs a purpose, here or in config.toml under [company].
    `min_context`: tokens. `max_params`: billions. `min_speed`: tokens per second; None: the task's own minimum. `on`:
    hardware such as "2xh100", with `engine`. `budget`: maximum rent per month in dollars. Without `on` and `budget`:
    this machine. `held`: only installed models. `users`: concurrent users. `cheapest`: rank the cheapest first among
    models that are not shown to be worse than the best. `languages`: ISO 639 codes. `sees`: only vision models; on this
    machine, those that Freehold's engine supports. Raises UsageError for a question without a task, and for unknown
    hardware or engines.
    """
    from freehold.base.catalog.questions import question
    from freehold.choose.advisor.advice import AdviceRequest, join
    from freehold.choose.advisor.advice import advise as answered
    from freehold.choose.advisor.places import Load

    AdviceOptions(  # refuses what the command line refuses, in the same words
        min_context=min_context,
        max_params=max_params,
        min_speed=min_speed,
        budget=budget,
        users_at_once=users,
    )
    settings = settings or load_settings()
    conditions = join(
        question(task),
        on=on,
        users=users,
        context=min_context,
        max_params=max_params,
        budget=budget,
        country_not=country_not,
        languages=languages,
        cheapest=cheapest,
        sees=sees,
    )
    company = facts or company_facts(settings, {})
    company = replace(company, purpose=company.purpose or conditions.purpose)
    request = AdviceRequest(
        task=conditions.task,
        facts=company if company.purpose else None,
        country_not=conditions.country_not,
        min_context=conditions.context,
        max_params=conditions.max_params,
        min_speed=min_speed,
        held=files_held(settings) if held else None,
        reads=conditions.reads,
        languages=conditions.languages,
        cheapest=conditions.cheapest,
    )
    load = Load(conditions.users, conditions.task.prompt, conditions.task.answer)
    placer = _placer(settings, conditions.on, engine, conditions.budget, request.speed, load)
    if "image" in conditions.reads and not conditions.on and conditions.budget is None:
        placer = _seeing(placer)
    advice = answered(request, catalog.models(), placer, lambda: _rented(request.speed, load))
    advice = replace(advice, asked=conditions)
    finds = conditions.task.finder or (conditions.task.reranker and not advice.picks)
    return replace(advice, beside=_beside(advice, settings)) if finds else advice


def _seeing(placer: Placer) -> Placer:
    """Return a placer on this machine that refuses models whose towers our engine does not compute."""
    from freehold.choose.advisor.advice import Placement, Refusal

    def place(model: Model, room: int) -> Placement | Refusal:
        if "image" in model.modalities and not refusal(model.structure) and (why := blind(model.structure)):
            return Refusal("engine", why)
        return placer(model, room)

    return place


def starters(settings: Settings, count: int = 3) -> tuple[Starter, ...]:
    """Return up to `count` models to begin with, best first: they chat, run well here and can be fetched here.

    That is what `advise("chat")` ranks at 10 tokens a second or more, of the models that are here, that the package
    index has, and, where it can be reached, the hub. Where none is so fast, the fastest ones. Empty where none runs at
    all. Takes a second or two: the machine is measured if it never was, and the hub is waited for two seconds.
    """
    from freehold.choose.advisor.advice import starters as chosen

    download = _downloads(settings)
    if not any(download(m) for m in catalog.models() if m.name):
        return ()
    return chosen(advise("chat", min_speed=0, settings=settings), download, count)


def _downloads(settings: Settings) -> Callable[[Model], Download | None]:
    """Return what says of a model of the catalogue where its file can be had from here; None: nowhere."""
    from importlib.util import find_spec

    from freehold.choose.advisor.advice import Download
    from freehold.choose.advisor.anatomy import from_catalogue
    from freehold.choose.advisor.engines import quant_of
    from freehold.run.store.sources import hub_reachable

    held, hub = files_held(settings), hub_reachable(settings)
    index = not settings.offline and find_spec("pip") is not None
    known: dict[str, Download | None] = {}

    def download(model: Model) -> Download | None:
        if model.id not in known:
            known[model.id] = look(model)
        return known[model.id]

    def look(model: Model) -> Download | None:
        if model.id in held:
            return Download(held[model.id].weight_bytes, "here")
        with suppress(FreeholdError):
            entry = catalog.find(model.name)
            source = "hub" if hub and entry.hub_repo else "package index" if index and entry.packages else ""
            size = entry.bytes or from_catalogue(model, quant_of(model)).weight_bytes
            return Download(size, source) if source else None
        return None

    return download


def fit(
    model: str,
    context: int | None = None,
    *,
    quant: str = "",
    on: str = "",
    engine: str = "",
    settings: Settings | None = None,
) -> Fit | Misfit:
    """Predict whether a model fits and how fast it is, on this machine or on other hardware: `on="2xh100"`.

    Sizes come from the file of an installed model (or from `quant`, another quantisation of it), otherwise from
    published facts. Raises ModelNotFound with the nearest names, UsageError for an unknown quantisation, hardware or
    engine.
    """
    from freehold.choose.advisor.fit import fit as fitted
    from freehold.choose.advisor.fit import place_on

    settings = settings or load_settings()
    place = place_on(catalog.rig(on), engine) if on else here(settings)
    return fitted(weighed(settings, model, quant), place, context)


def hardware(
    model: str,
    *,
    users: int = 1,
    context: int | None = None,
    prompt: int = 1000,
    max_tokens: int = 300,
    min_speed: float | None = None,
    quant: str = "",
    engine: str = "",
) -> Sizing:
    """Say which hardware a model of the catalogue needs for this many users, and why other hardware does not suffice.

    `context`: tokens of each conversation, 8,192 or the model's own if that is less; `prompt`, `max_tokens`: tokens
    of a request and of its answer; `min_speed`: tokens a second of each user. Raises ModelNotFound with the nearest
    names, UsageError for numbers that cannot be and for an unknown quantisation or engine.
    """
    from freehold.base.catalog import quants
    from freehold.choose.advisor import engines, places
    from freehold.choose.advisor.places import Load

    for what, number in (("users", users), ("prompt", prompt), ("max_tokens", max_tokens)):
        if not 1 <= number <= 10_000_000:
            raise UsageError(f"{what} = {number:,} is not within 1..10,000,000")
    known = catalog.model(model)
    least = max(USUAL_ROOM, prompt + max_tokens)
    room = context or (min(least, known.context) if known.context else least)
    if known.role == "generator" and prompt + max_tokens > room:  # of others `size` says why not
        raise UsageError(
            f"{prompt:,} + {max_tokens:,} tokens a request are more than a context of {room:,}",
            "a shorter --prompt, or a longer --context",
        )
    return places.size(
        known,
        Load(users, prompt, max_tokens),
        context=room,
        pace=places.PACE if min_speed is None else min_speed,
        quant=quants.mix(quant).name if quant else "",
        engine=engines.engine(engine).name if engine else "",
        refuses=refusal,
    )


def license(
    name: str = "", *, merge: Sequence[str] = (), taught_by: Sequence[str] = (), **facts: Any
) -> Verdict:
    """Check a model or a licence against your facts: `license("qwen3:8b", purpose="commercial")`.

    Facts are the fields of advisor.verdict.Facts; they override config.toml's [company]. `merge`: other models that are
    merged into yours. `taught_by`: models whose outputs train yours; `name` is then optional. Not legal advice. Raises
    ModelNotFound for an unknown name, UsageError for an unknown fact.
    """
    from freehold.choose.advisor.lineage import OWN
    from freehold.choose.advisor.verdict import from_table, verdict

    settings = load_settings()
    from_table(facts, "license")  # names an unknown fact
    company = replace(from_table(settings.company, "config.toml: [company]"), **facts)
    if not name and (merge or not taught_by):
        raise UsageError("license needs a name", "a model's, a licence's, or taught_by")
    return verdict(name or OWN, company, _names(merge), _names(taught_by))


def company_facts(settings: Settings, facts: Mapping[str, Any]) -> Facts:
    """Return the facts of config.toml's [company], overridden by those given that are not None. Raises UsageError."""
    from freehold.choose.advisor.verdict import from_table

    stated = {name: value for name, value in facts.items() if value is not None}
    return replace(from_table(settings.company, f"{settings.home / 'config.toml'}: [company]"), **stated)


def _names(names: Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def here(settings: Settings, *, measure: bool = True) -> Place:
    """Return this machine with our own engine, which says by its registry what it does not run.

    `measure`: a machine of which little is measured is measured once more.
    """
    from freehold.choose.advisor.fit import place_here

    return place_here(settings, refusal, measure=measure)


def refusal(structure: Structure) -> str:
    """Return why our engine does not run a model of such a structure; empty: it does."""
    from freehold.run.models.binding.bind import refusal as registered

    return registered(structure)


def blind(structure: Structure) -> str:
    """Return why our engine computes no tower of pictures for a model of such a structure; empty: it does."""
    from freehold.run.models.families import naming

    name = structure.architecture
    families = [f for f in naming(name) if name in (f.gguf_architecture, *f.model_types)]
    if any(family.towers and family.experts == structure.experts for family in families):
        return ""
    return f"Freehold's engine does not read pictures with the architecture {name or 'of this model'} yet"


def with_tower(anatomy: Anatomy, ref: ModelRef | Listed) -> Anatomy:
    """Return the sizes of a stored model with those of its tower; as they are where it reads text alone."""
    from freehold.run.models.families import naming
    from freehold.run.models.sight import tower_need

    whole = ref.path.is_dir() or ref.path.suffix == ".safetensors" or ref.kind == "ggml"
    path = ref.eyes or (ref.path if whole else None)
    if path is None:
        return anatomy
    with suppress(FreeholdError, OSError):
        need = tower_need(path)
        if need and any(need.name in family.towers for family in naming(anatomy.architecture)):
            return replace(anatomy, tower=need)
    return anatomy


def with_published_tower(anatomy: Anatomy, model: Model) -> Anatomy:
    """Return published sizes with a tower's, of a model that sees or hears where our engine computes that; as int8."""
    from freehold.base.layers import TowerNeed
    from freehold.base.serving import FEATURE_BYTES

    if (
        not ("image" in model.modalities or model.role == "transcriber")
        or blind(model.structure)
        or any(p.role == "towers" for p in anatomy.parts)
    ):
        return anatomy
    weights = model.parameters - model.text_parameters if model.text_parameters else 0
    name = "whisper" if model.role == "transcriber" else ""
    return replace(anatomy, tower=TowerNeed(max(round(weights * _PANEL_BITS / 8), 0), FEATURE_BYTES, name))


def weighed(settings: Settings, model: str, quant: str = "") -> Anatomy:
    """Weigh a model: by its file if the store has one, in `quant` if that differs; otherwise by published sizes."""
    from freehold.choose.advisor.anatomy import from_catalogue, in_quant
    from freehold.choose.advisor.engines import quant_of
    from freehold.choose.advisor.file_anatomy import from_file
    from freehold.run.store import Store

    try:
        ref = Store(settings).resolve(model)
        held = with_tower(from_file(ref.path, ref.rounding), ref)
    except ModelNotFound:
        known = catalog.model(model)  # raises with the nearest names
        return with_published_tower(from_catalogue(known, quant or quant_of(known)), known)
    return held if quant.upper() in ("", held.quant.upper()) else in_quant(held, quant)


def files_held(settings: Settings) -> dict[str, Anatomy]:
    """Return the sizes of the models on this machine, each by its file, by the catalogue's id.

    Left out are names that it does not know, and files that cannot be read or be what their name says.
    """
    from freehold.choose.advisor.file_anatomy import from_file
    from freehold.run.store import Store

    anatomies: dict[str, Anatomy] = {}
    for listed in Store(settings).list():
        for name in (listed.name, *listed.aliases):
            with suppress(FreeholdError, OSError):
                known = catalog.model(name)
                if listed.state != "ready" or known.id in anatomies:
                    continue
                held = from_file(listed.path, listed.rounding)
                if known.may_have(held.weights):
                    anatomies[known.id] = held
    return anatomies


def _rented(speed: float, load: Load) -> Placer:
    """Return a placer over all hardware that is rented out, cheapest first."""
    from freehold.choose.advisor import places

    return places.on_rigs(places.rented_for(MOST_DOLLARS), "", speed, load)


def _beside(advice: Advice, settings: Settings) -> Beside:
    """Choose what finds the texts for the first pick, where that one runs; here, where there is none."""
    from freehold.choose.advisor.finders import beside
    from freehold.choose.advisor.fit import OURS
    from freehold.run.models.binding.bind import refusal

    place = advice.picks[0].placement if advice.picks else None
    codes = advice.request.languages
    if place is None or place.engine == OURS:
        return beside(catalog.models(), codes, memory=here(settings).free, refuses=refusal)
    return beside(catalog.models(), codes, memory=catalog.rig(place.where).memory_bytes)


def _placer(
    settings: Settings, hardware: str, engine: str, budget: float | None, speed: float, load: Load
) -> Placer:
    from freehold.choose.advisor import places

    if budget is not None and not 0 <= budget <= MOST_DOLLARS:
        raise UsageError(f"a budget of {budget:g} dollars a month is not within 0..{MOST_DOLLARS:,}")
    if hardware:
        rig = catalog.rig(hardware)
        month = places.month_of(rig)
        if budget is not None and month > budget:
            rent_text = f"${month:,.0f} a month" if rig.rent else "not known to be rented out"
            raise UsageError(
                f"{rig.name} is {rent_text}, beyond a budget of {budget:g}", "leave out one of the two"
            )
        return places.on_rigs([rig], engine, speed, load, refusal)
    if budget is not None:
        return places.on_rigs(places.rented_for(budget), engine, speed, load, refusal)
    if engine not in ("", "freehold"):
        raise UsageError(
            f"the engine {engine} needs named hardware: --on", "here it is Freehold's own engine"
        )
    return places.here(here(settings), files_held(settings), load)
