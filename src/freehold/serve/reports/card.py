"""The card of a model, in the store or in the catalogue: the record, the catalogue's facts, the file's metadata.

And all facts about it: the card, the licence's verdict, quality by task, speed here, and what is not known. Knows where
each fact comes from; adds none of its own and knows no wording beyond the sources' names.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base import catalog
from freehold.base.catalog.model import Structure
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.choose.advisor.quality import Evidence, Scale, rounded
from freehold.choose.choosing import company_facts, refusal, weighed
from freehold.run.formats import GGUFFile, ModelFile, SafetensorsFile, open_model_file
from freehold.run.store import Listed, Store
from freehold.run.store.eyes import beside, hears, misfit
from freehold.run.store.overlays import Overlay
from freehold.run.store.parameters import sampling_defaults
from freehold.serve.reports.plain import facts_json, reason_json

if TYPE_CHECKING:
    from freehold.adapt.evals.trial import Kept
    from freehold.base.catalog import Model
    from freehold.choose.advisor.calibration import Run
    from freehold.choose.advisor.fit import Fit, Misfit
    from freehold.choose.advisor.quality import Quality
    from freehold.choose.advisor.verdict import Verdict
    from freehold.run.models.binding.bind import Source
    from freehold.run.models.family import Family

UNREAD = "it does not load: "  # begins a note
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"  # in GGUF files


def describe(store: Store, model: str, *, disk: bool = True) -> dict[str, Any]:
    """Return the card of `model` as plain values; raise ModelNotFound for one that is unknown. `disk`: as `show`."""
    from freehold.run.models.family import TEXT_ALONE

    try:
        listed = store.show(model, disk=disk)
    except ModelNotFound:
        return _from_catalogue(model)
    overlay = store.overlays.find(listed.name) if listed.base else None
    card = {**listed.as_json(), **_known(listed), "descent": _descent(listed)}
    if listed.state in ("ready", "changed"):
        with open_model_file(listed.path) as file:
            card |= file_facts(file) | sight(listed, file) | hearing(listed, file)
            if card["sees"]:
                card["notes"] = [note for note in card["notes"] if note != TEXT_ALONE]
            if card["model"] and not catalog.model(card["model"]).may_have(card["parameters"]):
                card |= {"model": "", "note": "", "catalogue": None}
            if not card["licence"] and isinstance(file, GGUFFile):
                card["licence"] = file.metadata.get_str("general.license", "")
    return card | _own(card, overlay) if overlay else card


def _descent(listed: Listed) -> list[dict[str, Any]]:
    """Return the stages of a model that `quantize` or `fuse` made, the oldest first; none of others."""
    if not listed.path or not listed.source.startswith("file:"):
        return []
    from freehold.adapt.stages import descent

    with suppress(FreeholdError):  # a damaged receipt, or another program's
        return descent(Path(listed.path))
    return []


def _own(card: Mapping[str, Any], overlay: Overlay) -> dict[str, Any]:
    """Return what a model made from another says itself, over its base's card."""
    read = overlay.read
    origin = f"PARAMETER of {overlay.name}"
    sampling = {name: {"value": value, "origin": origin} for name, value in read.sampling.items()}
    limit = {} if read.max_tokens is None else {"max_tokens": {"value": read.max_tokens, "origin": origin}}
    own: dict[str, Any] = {
        "system": overlay.system,
        "messages": len(overlay.messages),
        "adapter": overlay.adapter_name,
        "sampling": {**card.get("sampling", {}), **sampling, **limit},
        "notes": [*card.get("notes", ()), *overlay.notes],
    }
    if read.stop:
        own["stop"] = list(read.stop)
    if overlay.template:
        own["template"] = f"TEMPLATE of {overlay.name}"
    if overlay.licence:
        own["licence"] = "; ".join(text.strip().partition("\n")[0] for text in overlay.licence)
    return own


def file_facts(file: ModelFile) -> dict[str, Any]:
    """Return the facts of the model file: sizes, types, context, template, sampling defaults."""
    from freehold.choose.advisor.file_anatomy import of_expert
    from freehold.run.models.families import naming

    tensors = file.tensors.values()
    by_type = Counter[str]()
    for tensor in tensors:
        by_type[tensor.type.name] += tensor.nbytes
    total = sum(by_type.values()) or 1
    architecture, context, template = (
        _gguf_facts(file) if isinstance(file, GGUFFile) else _directory_facts(file)
    )
    refused = refusal(Structure(architecture, experts=any(of_expert(t.name) for t in tensors)))
    read = _read(file)
    notes = (f"{UNREAD}{read.message}",) if isinstance(read, FreeholdError) else _notes(read)
    output = file.tensors.get(_OUTPUT)
    families = [f for f in naming(architecture) if f.gguf_architecture == architecture]
    speech = any(f.prefix is not None for f in families)
    chats = not speech and not any(f.encoder for f in families)
    return {
        "architecture": architecture,
        "runs": not refused and not isinstance(read, FreeholdError),
        "refused": refused,
        "parameters": sum(math.prod(t.shape) for t in tensors),
        "output_parameters": math.prod(output.shape) if output and _EMBEDDING in file.tensors else 0,
        "quantisation": [
            {"type": t, "bytes": n, "share": round(n / total, 4)} for t, n in by_type.most_common()
        ],
        "context": context if isinstance(read, FreeholdError) else read.cfg.context,
        "notes": list(notes),
        "template": template
        if chats
        else f"none: {'a speech' if speech else 'an embedding'} model has no chat",
        "sampling": {k: {"value": v, "origin": o} for k, (v, o) in sampling_defaults(file).items() if chats},
    }


# --- whether a model reads pictures ------------------------------------------------------------------


def sight(listed: Listed, file: ModelFile) -> dict[str, Any]:
    """Return whether a model reads pictures (`sees`), its tower's bytes (`eyes_bytes`), and why not (`blind`).

    `blind` is empty for a model of text alone, and for one that is refused altogether.
    """
    from freehold.run.models.binding.bind import family_of, gguf_family

    try:
        if (isinstance(file, GGUFFile) and _hears_alone(listed)) or hears(listed):
            why, size = "", 0
        elif isinstance(file, GGUFFile):
            why, size = _gguf_blind(listed, file, gguf_family(file.metadata)[0]), listed.eyes_bytes
        else:
            why, size = _folder_blind(file, family_of(file.config)[0])
    except FreeholdError:
        return {"sees": False, "blind": ""}
    sees = bool(size) and not why
    return {"sees": sees, "eyes_bytes": size, "blind": why, **(_tokens(listed) if sees else {})}


def _hears_alone(listed: Listed) -> bool:
    """Tell whether the file beside a GGUF holds a tower of sounds and none of pictures."""
    from freehold.run.models.binding.towers import read_tower

    if listed.eyes is None:
        return False
    with suppress(FreeholdError), open_model_file(listed.eyes) as opened:
        return read_tower(opened) is None and read_tower(opened, hears=True) is not None
    return False


def hearing(listed: Listed, file: ModelFile) -> dict[str, Any]:
    """Return whether a model reads sounds in a chat (`hears`), what its tower of them takes, and why not (`deaf`).

    `deaf` is empty for a model without such a tower, and for one that is refused altogether.
    """
    from freehold.run.models.binding.bind import family_of, gguf_family
    from freehold.run.models.sight import sound_need

    path = listed.eyes if isinstance(file, GGUFFile) else listed.path
    try:
        family = (gguf_family(file.metadata) if isinstance(file, GGUFFile) else family_of(file.config))[0]
    except FreeholdError:
        return {"hears": False, "deaf": ""}
    try:
        need = None if path is None else sound_need(path)
    except FreeholdError as e:
        return {"hears": False, "deaf": e.message}
    if need is None:
        kind = (
            str(getattr(file, "config", {}).get("model_type", "")) if not isinstance(file, GGUFFile) else ""
        )
        stated = bool(kind) and bool(file.config.get("audio_config"))  # type: ignore[union-attr]
        return {
            "hears": False,
            "deaf": f"the audio encoder of {kind} is not supported yet" if stated else "",
        }
    if need.name not in family.towers:
        return {
            "hears": False,
            "deaf": f"its audio encoder is not supported with {family.gguf_architecture}",
        }
    return {
        "hears": True,
        "deaf": "",
        "ears_bytes": need.weights,
        "sound_seconds": need.seconds,
        "sound_tokens": need.tokens,
    }


def _tokens(listed: Listed) -> dict[str, int]:
    """Return how many tokens a picture becomes; zeros where the tower does not say."""
    from freehold.run.models.sight import tower_need

    need = None
    with suppress(FreeholdError):
        need = tower_need(listed.eyes or listed.path)
    return {"least_tokens": need.least if need else 0, "most_tokens": need.most if need else 0}


def _gguf_blind(listed: Listed, file: GGUFFile, family: Family) -> str:
    """Return why a GGUF reads no pictures; empty with a tower that it may be joined with, and where none is due."""
    from freehold.run.models.towers import registered

    if listed.eyes is not None:
        return misfit(listed.path, listed.eyes) or _unread(listed.eyes, family)
    name = listed.base or listed.name
    if listed.eyes_left_out:
        return f"its vision encoder was left out; freehold pull {name} --eyes downloads it"
    if any(tensor.startswith("v.") for tensor in file.tensors):
        return "its vision encoder is inside the model file, which is not supported; use a model with an mmproj file"
    if listed.owner == "user" and (why := beside(listed.path).why):
        return why
    template = file.metadata.get_str("tokenizer.chat_template", "")
    sights = (tower for tower in registered() if not tower.hears)
    if not any(tower.name in family.towers and tower.mark in template for tower in sights):
        return ""  # a family has models of text alone too: the template of the others has a picture's mark
    if listed.owner == "freehold":
        return f"its vision encoder was not downloaded; freehold pull {name} --eyes looks for one"
    return "there is no vision encoder (mmproj file) beside it"


def _unread(mmproj: Path, family: Family) -> str:
    """Return why a tower that fits a model's file cannot be joined with its family; empty: it can."""
    from freehold.run.models.binding.towers import read_tower

    try:
        with open_model_file(mmproj) as opened:
            source = read_tower(opened)
    except FreeholdError as e:
        return e.message
    if source is None or source.tower.name not in family.towers:
        return f"{mmproj.name} is an encoder that is not supported with {family.gguf_architecture}"
    return ""


def _folder_blind(file: SafetensorsFile, family: Family) -> tuple[str, int]:
    """Return why a folder of safetensors reads no pictures, and the bytes of its tower."""
    from freehold.run.models.binding.towers import read_tower

    try:
        source = read_tower(file)
    except FreeholdError as e:
        return e.message, 0
    if source is None or source.tower.name not in family.towers:
        kind = str(file.config.get("model_type", ""))
        why = f"the vision encoder of {kind} is not supported yet"
        return why if file.config.get("vision_config") else "", 0
    return "", sum(tensor.nbytes for name, tensor in file.tensors.items() if source.tower.hf_name(name))


def _notes(source: Source) -> tuple[str, ...]:
    """Return a model's notes, and that it drafts by itself if it does."""
    return (*source.notes, *(("its own head drafts tokens: --draft",) if source.drafter else ()))


def _read(file: ModelFile) -> Source | FreeholdError:
    """Return what loading would find: the context, notes on parts left out and on what is not stated; or its error."""
    from freehold.run.models.binding.bind import read_source

    try:
        return read_source(file)
    except FreeholdError as e:
        return e


def _gguf_facts(file: GGUFFile) -> tuple[str, int, str]:
    context = file.metadata.get_int(f"{file.architecture}.context_length", 0)
    has_template = bool(file.metadata.get_str("tokenizer.chat_template", ""))
    return file.architecture, context, "file: tokenizer.chat_template" if has_template else "none in the file"


def _directory_facts(file: Any) -> tuple[str, int, str]:
    if file.chat_template:
        template = "chat_template.jinja"
    else:
        config = json.loads(file.tokenizer_config.read_bytes()) if file.tokenizer_config else {}
        template = (
            "tokenizer_config.json: chat_template" if config.get("chat_template") else "none in the folder"
        )
    context = file.config.get("max_position_embeddings", 0)
    return str(file.config.get("model_type", "")), context if isinstance(context, int) else 0, template


def _known(listed: Listed) -> dict[str, Any]:
    for name in (listed.name, *listed.aliases):
        with suppress(ModelNotFound):
            known = catalog.model(name)
            return {"model": known.id, "note": _note(name), "catalogue": facts_json(known, date.today())}
    return {"model": "", "note": "", "catalogue": None}


def _note(name: str) -> str:
    with suppress(ModelNotFound):
        return catalog.find(name).note
    return ""


def _from_catalogue(text: str) -> dict[str, Any]:
    known = catalog.model(text)
    entry = catalog.find(known.name) if known.name else None
    hub = f"hub: {entry.hub_repo}:{entry.hub_quant}".removesuffix(":") if entry and entry.hub_repo else ""
    index = f"package index: {entry.packages[0]}" if entry and entry.packages else ""
    elsewhere = f"hub: {known.id}" if known.hub and not hub and not index else ""
    refused = refusal(known.structure)
    return {
        "name": known.name or known.id,
        "state": "not held",
        "model": known.id,
        "note": entry.note if entry else "",
        "architecture": known.architecture,
        "runs": not refused,
        "refused": refused,
        "parameters": known.parameters or round(known.params_b * 1e9),
        "context": known.context,
        "bytes": entry.bytes if entry else 0,
        "licence": known.licence,
        "source": ", ".join(s for s in (hub, index, elsewhere) if s),
        "catalogue": facts_json(known, date.today()),
    }


# --- all facts -------------------------------------------------------------------------------------

SCHEMA = 1
_CONTEXT = 4096  # tokens, at which a model is placed here


@dataclass(frozen=True, slots=True)
class SpeedHere:
    """The predicted speed of a model here, and its latest measured runs."""

    foreseen: Fit | Misfit | None
    measured: tuple[Run, ...]
    crowded: int = 0  # runs timed beside others' load, which are left out

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        from freehold.choose.advisor.fit import Fit

        f = self.foreseen
        shown: dict[str, Any] = {
            "fits": None if f is None else isinstance(f, Fit),
            "reason": "" if f is None or isinstance(f, Fit) else f.reason,
        }
        if isinstance(f, Fit):
            shown |= {"context": f.context, "memory": f.memory.total, "longest": f.longest, "basis": f.basis}
            shown |= {"decode": f.decode.as_json(), "prefill": f.prefill and f.prefill.as_json()}
        runs = [
            {"kind": r.kind, "depth": r.depth, "measured": r.measured, "predicted": r.told, "at": r.at}
            for r in self.measured
        ]
        return {**shown, "measured": runs}


@dataclass(frozen=True, slots=True)
class WhyReport:
    """Everything about one model. `quality`: tasks that share a benchmark, with the result there."""

    card: dict[str, Any]
    verdict: Verdict | None
    quality: list[tuple[list[str], Quality]]
    own: list[Kept]
    here: SpeedHere
    unknown: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return it as --json has it."""
        ruled = self.verdict
        return {
            "schema": SCHEMA,
            "model": self.card,
            "licence": ruled and {"answer": ruled.answer, "reasons": [reason_json(r) for r in ruled.reasons]},
            "quality": [
                {"tasks": names, "benchmark": q.benchmark, "basis": q.basis, "evidence": q.evidence}
                | q.range.as_json()
                for names, q in self.quality
            ],
            "own": [asdict(k) for k in self.own],
            "here": self.here.as_json(),
            "unknown": self.unknown,
        }


def why_report(settings: Settings, model: str, company: Mapping[str, Any], *, disk: bool = True) -> WhyReport:
    """Collect what is known of a model. `company`: the user's facts; `disk`: whether it may be a path.

    Raises ModelNotFound.
    """
    from freehold.run.store import Store

    card = describe(Store(settings), model, disk=disk)
    known = _catalogued(card)
    ruled = _verdict(known, card, settings, company)
    quality = quality_by_task(known, weighed(settings, card["name"]).quant if known else "")
    here = _speed_here(settings, card)
    own = _own_results(settings, card)
    return WhyReport(card, ruled, quality, own, here, _unknown(card, known, quality, here, own))


def _catalogued(card: dict[str, Any]) -> Model | None:
    try:
        return catalog.model(card["model"]) if card.get("model") else None
    except ModelNotFound:
        return None


def _verdict(
    known: Model | None, card: dict[str, Any], settings: Settings, company: Mapping[str, Any]
) -> Verdict | None:
    """Return the verdict on the model, or on the licence its file names; None where neither is known."""
    from freehold.choose.advisor.verdict import verdict

    facts = company_facts(settings, company)
    try:
        return verdict(known or card["licence"], facts) if known or card["licence"] else None
    except ModelNotFound:
        return None


def quality_by_task(known: Model | None, quant: str) -> list[tuple[list[str], Quality]]:
    """Return a model's quality in a quantisation by task, tasks with one benchmark together."""
    qualities: dict[str, tuple[list[str], Quality]] = {}
    for scales in _scales(catalog.stamp()) if known else ():
        task = scales[0].task
        quality = next((q for scale in scales if known and (q := scale.of(known))), None)
        if quality and known:
            quality = rounded(quality, quant, known)
            below = f" (below its bar of {task.bar:g})" if quality.range.low < task.bar else ""
            qualities.setdefault(quality.benchmark, ([], quality))[0].append(task.id + below)
    return list(qualities.values())


@lru_cache(maxsize=1)
def _scales(stamp: object) -> list[tuple[Scale, Scale]]:
    """Return each task's scale and its quick one; all models are read for them, so once while `stamp` is the same."""
    from freehold.base.catalog.benchmarks import tasks

    everything = catalog.models()
    evidence = Evidence(m for m in everything if m.scores)
    scales = [Scale(task, everything, evidence=evidence) for task in tasks()]
    return [(scale, scale.without_thinking()) for scale in scales]


def _untold(quality: list[tuple[list[str], Quality]]) -> list[str]:
    from freehold.base.catalog.benchmarks import tasks

    rated = {name.partition(" ")[0] for names, _ in quality for name in names}
    return [t.id for t in tasks() if t.benchmarks and t.id not in rated]


def _unknown(
    card: dict[str, Any],
    known: Model | None,
    quality: list[tuple[list[str], Quality]],
    here: SpeedHere,
    own: list[Kept],
) -> list[str]:
    from freehold.choose.advisor.fit import left_out

    gaps = []
    if known is None:
        gaps.append("lab, lineage and published results: it is not in the catalogue")
    elif not known.cache_known:
        gaps.append("its layers, so that the cache's bytes are a guess")
    if not card.get("licence") and not (known and known.licence):
        gaps.append("its licence")
    if card["state"] == "not held":
        gaps.append("digest, template and defaults of the file: it is not in the store")
    if known and not known.scores:
        gaps.append("its own benchmark results")
    elif known and known.role == "generator" and (untold := _untold(quality)):
        gaps.append(f"its quality for {', '.join(untold)}: no published result")
    if not here.measured:
        why = left_out(here.crowded) if here.crowded else "no answer was timed yet"
        gaps.append(f"its measured speed here: {why}")
    if not own:
        gaps.append("its quality on your own work: freehold advise --try samples.jsonl measures that")
    return gaps


def _own_results(settings: Settings, card: dict[str, Any]) -> list[Kept]:
    from freehold.adapt.evals.trial import kept
    from freehold.run.store import Store
    from freehold.run.store.records import digest

    try:
        return kept(settings.home, digest(Store(settings).resolve(card["name"])))
    except FreeholdError:
        return []


def _speed_here(settings: Settings, card: dict[str, Any]) -> SpeedHere:
    """Predict a model's speed here, and look up its measured runs."""
    from freehold.choose.advisor.fit import fit, model_key
    from freehold.choose.choosing import here as this_machine

    try:
        anatomy, place = weighed(settings, card["name"]), this_machine(settings)
        most = min(_CONTEXT, anatomy.context or _CONTEXT)
        past, key = place.history, model_key(anatomy)
        mine = tuple(r for r in past.runs if r.model == key) if past else ()
        return SpeedHere(fit(anatomy, place, most), mine, past.timed(key)[1] if past else 0)
    except FreeholdError:
        return SpeedHere(None, ())
