"""Words a layout as flags: what every driver's plan does alike.

A driver asks for a flag with its reason; a flag that the user gave replaces it, and one that this version of the
engine does not have is left out. The result is checked against the schema once more.

Which parser of tool calls and of reasoning an engine takes for a model's family is in parsers.toml: each name is in its
engine's registry; which family it fits is the name's plain meaning, so a plan that takes one says so.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from freehold.base.catalog.model import Stretch
from freehold.base.catalog.quants import draft_of
from freehold.base.errors import FreeholdError, UsageError
from freehold.outgrow import flags as schema
from freehold.outgrow.contract import (
    DeployedModel,
    DeployPlan,
    EngineName,
    Layout,
    Listens,
    PlannedFlag,
    PlanRequest,
)
from freehold.outgrow.planning.eyes import beyond_context
from freehold.outgrow.planning.layout import Wanted, Wishes, attention, stretch_of

# --- parsers by family -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParserNames:
    """What one engine calls the parsers of one family; "" where it has none."""

    tool: str = ""
    reasoning: str = ""
    template: str = ""  # among the engine's examples, where the model's own template has no tools


@dataclass(frozen=True, slots=True)
class _Family:
    key: str
    names: re.Pattern[str]
    families: frozenset[str]
    architectures: frozenset[str]
    engines: dict[str, ParserNames]


def family(names: Iterable[str], catalogued: str, architecture: str) -> str:
    """Return the key of a model's family: by the catalogue's word, else by its names, else by its architecture.

    "" where none fits. A fine-tune has its base's architecture and may speak otherwise: its name goes first.
    """
    spelled = [re.sub(r"[\s_:/]+", "-", name.lower()) for name in names if name]
    known = _families()
    by_word = (f.key for f in known if catalogued and catalogued in f.families)
    # A word of the name starts with the pattern: qwen3-8b, org-qwen3-8b, but not myqwen3.
    starts = [(name, at) for name in spelled for at in (0, *(m.end() for m in re.finditer("-", name)))]
    by_name = (f.key for f in known if any(f.names.match(name, at) for name, at in starts))
    by_shape = (f.key for f in known if architecture and architecture in f.architectures)
    return next(by_name, "") or next(by_word, "") or next(by_shape, "")


def parser_names(family: str, engine: str) -> ParserNames:
    """Return an engine's names for a family; both "" where nothing is known."""
    return next((f.engines.get(engine, ParserNames()) for f in _families() if f.key == family), ParserNames())


@cache
def _families() -> tuple[_Family, ...]:
    text = resources.files("freehold.outgrow.planning").joinpath("parsers.toml").read_text(encoding="utf-8")
    return tuple(
        _Family(
            raw["key"],
            re.compile(raw["names"]),
            frozenset(raw.get("families", ())),
            frozenset(raw.get("architectures", ())),
            {name: ParserNames(*raw[name]) for name in ("vllm", "sglang", "trtllm")},
        )
        for raw in tomllib.loads(text)["family"]
    )


# --- flags -----------------------------------------------------------------------------------------

AT_THE_HUB = (
    "{source} comes from the hub: its parsers are guessed from its family's name, and its files are not checked for "
    "custom code; a local folder settles both, and the engine stays offline"
)
GUESSED = "by its family {family}: a name's plain meaning; the model's card decides"
_UNITS = {unit: 1000**n for n, unit in enumerate("kmgt", 1)} | {
    unit: 1 << 10 * n for n, unit in enumerate("KMGT", 1)
}
# Of a count that a flag gives: bytes of a cache are the largest, and 256 TiB beyond any device's.
MOST = 1 << 48
DRAIN_S = 60  # an engine waits this long for its answers: twice our server's own drain


@dataclass(slots=True)
class Wording:
    """A command line as it grows."""

    request: PlanRequest
    schema: schema.FlagSchema
    own: Mapping[str, PlannedFlag]
    flags: list[PlannedFlag] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: object = None, reason: str = "") -> None:
        """Add a flag, unless the user gave it or this version lacks it. Value True: a switch."""
        spec = self.schema.find(name)
        if spec is None or spec.name in self.own:
            return
        self.flags.append(PlannedFlag(name, None if value is True or value is None else str(value), reason))

    def _given(self, name: str) -> PlannedFlag | None:
        spec = self.schema.find(name)
        return self.own.get(spec.name) if spec else None

    def value(self, name: str) -> str:
        """Return what the user gave a flag; "" for nothing."""
        flag = self._given(name)
        return "" if flag is None else flag.value or ""

    def number(self, name: str) -> int:
        """Return a count that the user gave; 0 for none. Raises UsageError below 1."""
        value = self.value(name)
        if value in ("", "auto", "-1", "None"):
            return 0
        # As engines write it: 4096, 4k (thousands), 4K (1024s).
        scale = _UNITS.get(value[-1], 1)
        number = float(value[:-1] if value[-1] in _UNITS else value) * scale
        if not 1 <= number <= MOST:
            raise UsageError(
                f"{name} {value[:40]}: not within 1 to {MOST:,}", "leave it out for the plan's own choice"
            )
        return int(number)

    def off(self, name: str) -> bool | None:
        """Return whether an on-off flag was given, and how; None: it was not."""
        flag = self._given(name)
        return None if flag is None else not flag.name.startswith("--no-")

    def wishes(self, flags: Mapping[str, str]) -> Wishes:
        """Return what the user's flags fix. Raises UsageError.

        `flags`: an engine's names, where it has any, of tensor, apart (data-parallel attention), pipeline, data and
        expert, in the order in which a plan lists them, and of context, streams, cache_type, cache_bytes, memory_share,
        quantisation.
        """

        def number(what: str) -> int:
            return self.number(flags[what]) if what in flags else 0

        if self._is_switch(flags["expert"]):
            expert = self.off(flags["expert"])
        else:
            expert = number("expert") > 1 if number("expert") else None
        cache_type = self.value(flags["cache_type"])
        wide = cache_type in ("", "auto", "bf16", "bfloat16", "float16")
        return Wishes(
            sizes=Wanted(number("tensor"), number("pipeline"), number("data"), expert),
            context=number("context"),
            streams=number("streams"),
            cache_type="" if wide else "fp8" if cache_type.startswith("fp8") else cache_type,
            cache_bytes=number("cache_bytes"),
            memory_share=self._share(flags["memory_share"]),
            quantisation=self.value(flags["quantisation"]) if "quantisation" in flags else "",
        )

    def _share(self, name: str) -> float:
        """Return a share of memory that the user gave; 0 for none. Raises UsageError for what is not one."""
        value = self.value(name)
        number = float(value) if value else 0.0
        if value and not 0 < number <= 1:
            raise UsageError(f"{name} {value} is not a share", "give more than 0 and at most 1")
        return number

    def _is_switch(self, name: str) -> bool:
        spec = self.schema.find(name)
        return spec is not None and not spec.takes_value

    def sizes(self, flags: Mapping[str, str], layout: Layout, without: str = "") -> None:
        """Add how the model is spread, by an engine's names (see `wishes`), all but `without`.

        Where it has a flag by which groups attend apart, its tensor size counts the devices of all of them.
        """
        sizes, apart = layout.sizes, attention(layout.sizes) if "apart" in flags else 1
        values = {
            "tensor": sizes.tensor * apart,
            "apart": apart,
            "pipeline": sizes.pipeline,
            "data": sizes.data,
            "expert": sizes.expert,
        }
        for what, name in flags.items():
            if what != without and values.get(what, 1) > 1:
                value = True if self._is_switch(name) else values[what]
                self.add(name, value, layout.why["data" if what == "apart" else what])

    def cache_type(self, name: str, layout: Layout, fp8: str = "fp8") -> None:
        """Add the type of cached values, where it is not the model's. `fp8`: the engine's word for eight bits."""
        if layout.cache_type:
            value = fp8 if layout.cache_type == "fp8" else layout.cache_type
            spec = self.schema.find(name)
            if spec is not None and (problem := spec.wrong(value)):
                raise UsageError(f"--cache-type of {self.schema.title}: {problem}", "leave it out")
            self.add(name, value, layout.why.get("cache_type", "asked for"))

    def listens(self, address: Listens, socket: str = "") -> None:
        """Add where the engine listens. `socket`: its flag for a Unix socket."""
        if address.socket is not None:
            self.add(socket, address.socket, "a socket in a folder that only you may enter: no port")
            return
        self.add("--host", address.host, "only this machine can reach it; clients use Freehold's server")
        self.add("--port", address.port or "{port}", "as asked for" if address.port else "free at the start")

    def stretched(self, layout: Layout) -> Stretch | None:
        """Return how the context is stretched beyond config.json's, with a note; None where it is not."""
        stretch = stretch_of(self.request.model, layout.context)
        if stretch is not None and stretch.kind == "yarn":
            own = self.request.model.anatomy.context
            self.notes.append(
                f"YaRN scales short texts too, which may lower quality; without --context the limit is {own:,} tokens"
            )
        return stretch

    def override(self, flag: str, layout: Layout) -> None:
        """Add a flag that overrides config.json, where the context is stretched."""
        if stretch := self.stretched(layout):
            rope = {"rope_type": stretch.kind, "rope_theta": stretch.theta, "factor": stretch.factor}
            rope["original_max_position_embeddings"] = stretch.original
            scaled = {"rope_parameters": rope} if stretch.kind != "none" else {}
            keys = json.dumps({**scaled, "max_position_embeddings": stretch.context})
            self.add(flag, keys, "config.json has a shorter context: the scaling is its card's")

    def parsers(self, engine: str, tool: str, reasoning: str, *, switch: str = "") -> None:
        """Add the parsers of the model's family, where its template takes tools and it may think.

        `switch`: a flag that tool calls need besides.
        """
        model = self.request.model
        names = parser_names(model.family, engine)
        reason = GUESSED.format(family=model.family)
        chosen = [f for f in (tool, reasoning) if self.value(f)]
        if switch and (self.value(tool) or (names.tool and model.tools is not False)):
            self.add(switch, True, "lets a model choose among a request's tools")
        if names.tool and model.tools is not False:
            self.add(tool, names.tool, reason)
        if names.reasoning and model.thinks is not False:
            self.add(reasoning, names.reasoning, reason)
        if model.here and model.family and len(chosen) < 2 and any(f.reason == reason for f in self.flags):
            self.notes.append(f"parsers were chosen {reason}")
        if names.template and names.tool and model.tools is not False and not self.value("--chat-template"):
            self.notes.append(
                f"tool calls need {names.template} of the engine's files: --engine-flag=--chat-template=FILE"
            )
        if not model.family and model.tools is not False and not chosen:
            self.notes.append(f"no tool parser is known for {model.name}: give {tool} if it calls tools")

    def drafts(self, words: Callable[[str], str], option: str) -> None:
        """Note a draft that is published for the model. `words`: its flags by its repository; "": its own layers."""
        model = self.request.model
        own = any(part.role == "drafts" for part in model.anatomy.parts)
        other = draft_of(model.base) if model.base else ""
        if (own or other) and not self.value(option):
            what = f"{other} can draft tokens for it (EAGLE-3)"
            if own:
                what = "its own layers can draft tokens (MTP)"
            self.notes.append(f"{what}, which is faster for few users: {words('' if own else other)}")

    def sees(self, layout: Layout, sizes: str = "") -> None:
        """Note what a user should know of pictures. `sizes`: the flag by which the engine resizes them otherwise."""
        self.notes += filter(None, [beyond_context(self.request, layout.context)])
        if sizes and self.value(sizes):
            self.notes.append(f"{sizes} changes how many tokens a picture becomes: counts are the engine's")

    def plan(self, engine: EngineName, command: Sequence[str], layout: Layout, **own: Any) -> DeployPlan:
        """Return the plan, with the user's own flags at the end. `own`: what else it has, as DeployPlan.of takes it."""
        facts, model = self.request.engine, self.request.model
        notes = [*layout.notes, *self.notes]
        if facts.version and schema.number(facts.version) != schema.number(self.schema.version):
            notes.insert(0, f"flags were checked against {self.schema.title}, not {facts.version}")
        if model.template is False:
            notes.append(f"{model.name} has no chat template: chats need --engine-flag=--chat-template=FILE")
        return DeployPlan.of(
            self.request,
            layout,
            engine=engine,
            schema=self.schema.title,
            command=tuple(command),
            flags=(*self.flags, *self.own.values()),
            notes=tuple(dict.fromkeys(notes)),
            **own,
        )


def opened(
    request: PlanRequest, engine: str, title: str, least: str, *, files: str = "safetensors"
) -> Wording:
    """Check the request's engine, model and flags; return an empty wording. Raises UsageError."""
    version, model = request.engine.version, request.model
    refuse_old(title, version, least)
    if model.own_code:
        raise UsageError(
            f"{model.name} needs its own Python code ({model.own_code}), which Freehold never runs",
            "use a copy without auto_map if the engine knows the architecture",
        )
    refuse_scores(model)
    if request.nodes.here and not model.here:
        raise UsageError(
            f"{model.source} is not on this machine", f"freehold pull hf://{model.source}, or --on HARDWARE"
        )
    if model.files != files:
        kinds = {"safetensors": "a folder of safetensors", "gguf": "a GGUF"}
        other = "--engine llamacpp" if model.files == "gguf" else "--engine vllm"
        raise UsageError(
            f"{title} loads {kinds[files]}, and {model.name} is {kinds[model.files]}",
            f"{other} loads it; or take {kinds[files]} of the same model{_at_the_hub(model.name, files)}",
        )
    known = schema.nearest(engine, version)
    return Wording(request, known, schema.checked(known, request.flags))


def refuse_scores(model: DeployedModel) -> None:
    """Raise UsageError for a reranker, which no deployment would ever find ready."""
    if model.anatomy.role == "reranker":
        raise UsageError(
            f"{model.name} scores pairs of texts, and a deployment gives text or vectors",
            "use a model that gives vectors: /v1/rerank orders texts by them",
        )


def _at_the_hub(name: str, files: str) -> str:
    """Return how to fetch a model's safetensors, where the catalogue knows whose they are."""
    from freehold.base import catalog

    try:
        return f": freehold pull hf://{catalog.model(name).id}" if files == "safetensors" else ""
    except FreeholdError:
        return ""


def refuse_old(title: str, version: str, least: str) -> None:
    """Refuse a version below `least`; an unknown one is taken."""
    if version and least and schema.number(version) < schema.number(least):
        raise UsageError(
            f"{title} {version} is older than {least}, below which it has holes that a gateway cannot close",
            f"install {least} or newer: --env makes one",
        )


def source(request: PlanRequest, environment: dict[str, str], notes: list[str]) -> str:
    """Return what the engine loads; a name at the hub, which a cluster fetches, leaves the hub on."""
    if not request.model.here:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            environment.pop(name, None)
        notes.append(AT_THE_HUB.format(source=request.model.source))
    return request.model.source
