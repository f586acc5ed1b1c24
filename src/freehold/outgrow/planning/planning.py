"""Decides what every engine is given: sizes, context, streams, cache, quantisation; and what one may expect.

    layout = laid_out(request, traits, wishes)    # Layout; raises UsageError with what would fit

advisor.roofline's arithmetic says what fits and how fast it is on accelerators; on processors memory alone decides.
Knows no flag of any engine: each driver words a Layout in its own.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from freehold.base.catalog.hardware import Device, Rig
from freehold.base.errors import UsageError
from freehold.choose.advisor import engines, roofline
from freehold.choose.advisor.anatomy import Anatomy, in_quant
from freehold.choose.advisor.engines import UpstreamEngine
from freehold.outgrow.capacity.engine import EngineLimits, cache_tokens, predicted
from freehold.outgrow.capacity.simulation import simulate
from freehold.outgrow.capacity.trace import RequestTrace, TracedRequest
from freehold.outgrow.contract import DeployedModel, Layout, ParallelSizes, PlanRequest
from freehold.outgrow.planning.layout import (
    COPIES,
    GIB,
    USUAL,
    WANTED_STREAMS,
    EngineTraits,
    Wishes,
    attention,
    candidates,
    check_context,
    heads_of,
    large_step,
    misfit,
    on_processors,
    sequence_bytes,
    usual_streams,
    value_width,
    weight_bytes,
)

_FP8 = 8.9  # of CUDA: the compute capability from which devices multiply FP8
_HALVE = ("vllm", "sglang")  # load F32 as F16 unless --dtype says otherwise
_BLOCK = 16  # tokens of a page of the cache
_FEW = 4  # conversations of the usual length: fewer serve hardly anyone
_SPARE = 0.02  # of a device's memory, left alone beside what other programs have taken
# The load by which a layout is chosen: simulated requests, all there at once, on each way to spread a model. A busy
# hour of chats: enough requests that memory decides, of the lengths that providers report most.
REQUESTS, PROMPT, ANSWER = 64, 1024, 256  # for each device; tokens
NEAR = 1.05  # within this of the least time, fewer devices a replica are taken: they fail apart


def laid_out(request: PlanRequest, traits: EngineTraits, wishes: Wishes) -> Layout:
    """Return the layout. Raises UsageError for what does not fit, with what would."""
    model, device = request.model, request.nodes.rig.device
    if device.kind == "cpu":
        if not traits.cpu:
            raise misfit(request, traits, f"{traits.title} needs GPUs")
        return on_processors(request, traits, wishes)
    if model.anatomy.quant == "F32" and traits.engine in _HALVE:
        model = replace(model, anatomy=in_quant(model.anatomy, "F16"))
        request = replace(request, model=model)
    engine = engines.engine(traits.engine)
    if not engine.runs_on(device):
        raise misfit(request, traits, f"{engine.title} does not run on {device.title}")
    context = wishes.context or request.context
    check_context(model, context)
    _check_devices(request, wishes)
    for cache_type in _cache_types(request, wishes):
        for quantise, anatomy in _weights(model.anatomy, traits, wishes, engine, device):
            space = _Space(request, traits, wishes, engine, anatomy, quantise, cache_type)
            if sizes := space.best():
                return space.layout(sizes)
    raise misfit(
        request, traits, _why_not(request, engine, context), *_shorter(request, traits, wishes, engine)
    )


def _check_devices(request: PlanRequest, wishes: Wishes) -> None:
    """Raise UsageError where the replicas and sizes that were asked for take more devices than there are."""
    nodes, sizes, replicas = request.nodes, wishes.sizes, max(request.replicas, 1)
    have = nodes.rig.count * nodes.count
    each = max(sizes.tensor, 1) * max(sizes.pipeline, 1) * max(sizes.data, 1)
    if each * replicas <= have:
        return
    fewer = f"--replicas {have // each}, or " if replicas > 1 and each <= have else ""
    raise UsageError(
        f"{replicas} {'replica' if replicas == 1 else 'replicas'} of {each} {'device' if each == 1 else 'devices'}: "
        f"{nodes.rig.name if nodes.count == 1 else f'{nodes.count} x {nodes.rig.name}'} has {have}",
        f"{fewer}--on {Rig(nodes.rig.device, each * replicas).name}",
    )


def _cache_types(request: PlanRequest, wishes: Wishes) -> tuple[str, ...]:
    """Return the cache types to try: as asked, else as the model, then eight bits for a context that was asked for."""
    if cache_type := wishes.cache_type or request.cache_type:
        return (cache_type,)
    device = request.nodes.rig.device
    narrow = device.fp8 or device.capability >= _FP8
    return ("", "fp8") if narrow and (request.context or wishes.context) else ("",)


def _weights(
    anatomy: Anatomy, traits: EngineTraits, wishes: Wishes, engine: UpstreamEngine, device: Device
) -> list[tuple[str, Anatomy]]:
    """Return the weights to try: as they are, then rounded to FP8 where engine and device can."""
    wide = anatomy.quant in ("BF16", "F16")
    if wishes.quantisation:
        fp8 = wide and wishes.quantisation.startswith("fp8")
        return [("", in_quant(anatomy, "FP8") if fp8 else anatomy)]
    rounds = traits.fp8_while_loading and wide and bool(device.fp8 or device.capability)
    rounds = rounds and engine.reads("FP8", device)
    return [("", anatomy), *([("fp8", in_quant(anatomy, "FP8"))] if rounds else [])]


def _shorter(
    request: PlanRequest, traits: EngineTraits, wishes: Wishes, engine: UpstreamEngine
) -> tuple[str, ...]:
    """Return the longest context that would fit instead of the one that was asked for."""
    if not (request.context or wishes.context):
        return ()
    free = replace(request, context=0, streams=0)
    for quantise, anatomy in _weights(
        request.model.anatomy, traits, wishes, engine, request.nodes.rig.device
    ):
        space = _Space(free, traits, replace(wishes, context=0, streams=0), engine, anatomy, quantise, "")
        if sizes := space.best():
            return (f"--context {space.longest(sizes)} fits",)
    return ()


def _why_not(request: PlanRequest, engine: UpstreamEngine, context: int) -> str:
    model, rig = request.model, request.nodes.rig
    if not engine.reads(model.anatomy.quant, rig.device):
        known = model.anatomy.quant in engine.quants
        where = f" on {rig.device.title}" if known else ""
        return f"{engine.title} has no kernels for {model.anatomy.quant}{where}"
    placed = roofline.place(model.anatomy, Rig(rig.device), engine, context or USUAL)
    count = rig.count * request.nodes.count // max(request.replicas, 1)
    need = (placed.weights + placed.sequence) / GIB
    have = count * (placed.room + placed.weights) / GIB
    tokens = f"a conversation of {context:,} tokens" if context else "one conversation"
    each = f" in each of {request.replicas} replicas" if request.replicas > 1 else ""
    if need <= have:
        return f"no split of its heads over {count} devices leaves memory for {tokens}{each}"
    return f"it needs {need:.1f} GiB with {tokens}; {count} x {rig.device.title} have {have:.1f} for it{each}"


@dataclass(frozen=True, slots=True)
class _Space:
    """Accelerators with one choice of weights and cache type: what fits there."""

    request: PlanRequest
    traits: EngineTraits
    wishes: Wishes
    engine: UpstreamEngine
    anatomy: Anatomy
    quantise: str
    cache_type: str

    @property
    def asked_context(self) -> int:
        return self.wishes.context or self.request.context

    @property
    def asked_streams(self) -> int:
        return self.wishes.streams or self.request.streams

    @property
    def share(self) -> float:
        """Share of a device that the engine may take: less where others have taken some."""
        nodes = self.request.nodes
        left = nodes.free - _SPARE if nodes.free < 1 else 1
        usual = min(self.engine.memory_share[nodes.rig.device.kind], left)
        return self.wishes.memory_share or max(round(usual, 2), 0.0)

    def best(self) -> ParallelSizes | None:
        """Return the sizes to take: of those with room for several conversations the ones that serve a load soonest."""
        if not self.engine.reads(self.anatomy.quant, self.request.nodes.rig.device):
            return None
        devices, across = self._share_of_a_replica()
        if not devices:
            return None
        wanted = self.wishes.sizes
        ways = candidates(self.request.model, devices, across, wanted, copies=self.traits.kv_copies)
        ways = tuple(w for w in ways if w.devices <= devices * across)
        comfortable = [w for w in ways if self.streams_of(w) >= (self.asked_streams or WANTED_STREAMS)]
        fitting = comfortable or [w for w in ways if self.streams_of(w) >= 1]
        if not fitting:
            return None
        if wanted.any:
            return fitting[0]
        # A pipeline's stages wait for each other, and another node is slower to reach.
        return self._soonest([w for w in fitting if w.pipeline == 1] or fitting[:1])

    def _soonest(self, ways: list[ParallelSizes]) -> ParallelSizes:
        """Return the way on which all replicas answer a simulated load first; by sizes where no speed is known."""
        if len(ways) == 1:
            return ways[0]
        took = {w: self._seconds(w) for w in ways}
        known = {w: s for w, s in took.items() if s is not None}
        if len(known) < len(ways) or self.anatomy.role not in ("generator", ""):
            return max(ways, key=lambda w: w.tensor) if self.request.replicas else ways[0]
        near = [w for w, s in known.items() if s <= NEAR * min(known.values())]
        return min(near, key=lambda w: (w.devices, known[w]))

    def _seconds(self, sizes: ParallelSizes) -> float | None:
        """Return the seconds until a replica has answered all of its share of the load; None: no speed is known."""
        nodes = self.request.nodes
        context = self.asked_context or self.longest(sizes)
        answer = max(min(ANSWER, context // 5), 1)
        prompt = max(min(PROMPT, context - answer - 1), 1)
        model, device = self.request.model, nodes.rig.device
        room = cache_tokens(model, sizes, self.room(sizes), prompt + answer, self.cache_type)
        limits = EngineLimits(streams=self.streams(sizes), room=room, chunk=large_step(device) or 2048)
        rig, about = Rig(device, sizes.devices), {"model": model.name}
        try:
            played = predicted(
                self.anatomy, sizes, rig, self.engine, limits, prompt=prompt, answer=answer, about=about
            )
        except UsageError:
            return None
        share = REQUESTS * nodes.rig.count * nodes.count // self._replicas(sizes)
        requests = (TracedRequest(0.0, prompt, answer),) * min(share, self.asked_streams or share)
        run = simulate(RequestTrace(requests, "a busy hour"), played)
        return float(run.latency.max()) if len(run.latency) else None

    def _replicas(self, sizes: ParallelSizes) -> int:
        """Return the replicas of these sizes: as asked, else as many as the hardware holds."""
        nodes = self.request.nodes
        across = -(-sizes.devices // nodes.rig.count)
        most = nodes.count // across if across > 1 else nodes.rig.count // sizes.devices * nodes.count
        return self.request.replicas or max(most, 1)

    def _share_of_a_replica(self) -> tuple[int, int]:
        """Return the devices of a node that a replica may take, and the nodes; several replicas share nodes evenly."""
        rig, nodes, replicas = self.request.nodes.rig, self.request.nodes.count, self.request.replicas
        if replicas <= nodes:
            return rig.count, nodes // replicas if replicas else nodes
        return rig.count // -(-replicas // nodes), 1

    def streams_of(self, sizes: ParallelSizes) -> int:
        """Return how many conversations fit that are as long as was asked for, of the usual length otherwise."""
        tokens = self.asked_context or min(self.anatomy.context or USUAL, USUAL)
        return self.holds(sizes, tokens)

    def holds(self, sizes: ParallelSizes, tokens: int) -> int:
        """Return how many conversations of `tokens` fit at a time."""
        each = self.sequence(sizes, tokens)
        return max(int(self.room(sizes) // each), 0) * sizes.data if each else self.engine.streams

    def streams(self, sizes: ParallelSizes) -> int:
        """Return the requests at a time: as asked, else the engine's default, each with a block of the cache at least.

        Those for which the cache has no room wait for it, however many are let in.
        """
        if self.asked_streams:
            return self.asked_streams
        usual = usual_streams(self.engine, self.request.nodes.rig.device) * sizes.data
        return max(min(usual, self.holds(sizes, _BLOCK)), 1)

    def room(self, sizes: ParallelSizes) -> float:
        """Return the bytes that weights leave on each device."""
        device = self.request.nodes.rig.device
        usable = self.share * device.memory_bytes - self.engine.reserve_gib * GIB
        return usable - self.held(sizes)

    def held(self, sizes: ParallelSizes) -> float:
        """Return the bytes of weights on each device."""
        return weight_bytes(roofline.stored(self.anatomy, self.engine), sizes)

    def sequence(self, sizes: ParallelSizes, tokens: int) -> float:
        """Return the bytes that a sequence takes on each device."""
        width = value_width(self.cache_type)
        return sequence_bytes(self.request.model, sizes, tokens, width)

    def longest(self, sizes: ParallelSizes) -> int:
        """Return the longest conversation that fits, up to the model's own context."""
        lengths, room = range(1, (self.anatomy.context or 1 << 17) + 1), self.room(sizes)
        return bisect_left(lengths, True, key=lambda tokens: self.sequence(sizes, tokens) > room)

    def layout(self, sizes: ParallelSizes) -> Layout:
        """Return the layout of the sizes."""
        nodes, model = self.request.nodes, self.request.model
        context = self.asked_context or self.longest(sizes)
        room, usual = self.room(sizes), min(context, USUAL)
        held = self.holds(sizes, usual)
        across = -(-sizes.devices // nodes.rig.count)
        speed = self._speed(sizes, usual)
        unsure = not model.heads and sizes.tensor > max(model.kv_heads, 1)
        note = f"its number of query heads is not published; {sizes.tensor} may not divide it"
        return Layout(
            sizes=sizes,
            replicas=self._replicas(sizes),
            across=across,
            context=context,
            streams=self.streams(sizes),
            memory_share=self.share,
            cache_bytes=int(room),
            cache_type=self.cache_type,
            cache_tokens=cache_tokens(model, sizes, room, usual, self.cache_type),
            quantise=self.quantise,
            memory_bytes=round(self.share * nodes.rig.device.memory_bytes * sizes.devices),
            decode=speed.answer,
            prefill=speed.prompt,
            basis=f"{self.engine.title}: published figures of {nodes.rig.device.title}, and rows measured by others",
            why={**self._why(context, held, usual), **_why_sizes(sizes, model, across)},
            warning=_useless(held, usual, self.asked_streams),
            notes=(note,) if unsure else (),
        )

    def _why(self, context: int, held: int, usual: int) -> dict[str, str]:
        """Return why context, streams, cache and weights are what they are."""
        whole = context == self.anatomy.context
        longest = "the model's own context" if whole else "the longest that fits beside the weights"
        wanted = self.wishes.cache_type or self.request.cache_type
        by_default = (
            f"the engine's default; its cache holds {_conversations(held, usual)} at a time, the others wait"
        )
        return {
            "context": "asked for" if self.asked_context else longest,
            "streams": "asked for" if self.asked_streams else by_default,
            "cache_type": "asked for" if wanted else f"16 bits leave no memory for {context:,} tokens",
            "quantise": "16 bits do not fit on these devices; the engine rounds while it loads",
        }

    def _speed(self, sizes: ParallelSizes, context: int) -> roofline.Single:
        """Return one stream's speeds: a pipeline's stages work after each other, data's beside each other."""
        apart = attention(sizes)
        rig = replace(self.request.nodes.rig, count=sizes.tensor * apart)
        return roofline.single_stream(self.anatomy, rig, self.engine, context, apart=apart)


def _conversations(count: int, tokens: int) -> str:
    return f"{count:,} {'conversation' if count == 1 else 'conversations'} of {tokens:,} tokens"


def _useless(held: int, tokens: int, fixed: int) -> str:
    """Return a warning where the cache holds so few conversations that hardly anyone is served."""
    if fixed or held >= _FEW:
        return ""
    return (
        f"its cache holds {_conversations(held, tokens)} at a time: more or larger devices, or a smaller copy "
        "of the weights (--quant), serve more"
    )


def _why_sizes(sizes: ParallelSizes, model: DeployedModel, across: int) -> dict[str, str]:
    """Return why the sizes are what they are."""
    each = model.experts // sizes.expert if sizes.expert else 0
    parts = "parts of the layers, for memory"
    apart = "attention is data-parallel, each group with its own sequences: latents cannot be split"
    return {
        "tensor": f"shares out {heads_of(model)} over the devices of a node",
        "pipeline": f"{across} nodes take a part of the layers each" if across > 1 else parts,
        "data": apart if attention(sizes) > 1 else COPIES,
        "expert": f"each device holds {each} of {model.experts} experts whole",
    }
