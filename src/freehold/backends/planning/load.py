"""The load by which a layout is chosen: simulated requests, all there at once, on each way to spread a model.

Path: planning.laid_out -> seconds -> predicting.replica -> simulation.simulate
"""

from __future__ import annotations

from freehold.advisor.engines import UpstreamEngine
from freehold.advisor.roofline import Work
from freehold.backends.capacity.predicting import cache_tokens, replica
from freehold.backends.capacity.simulation import simulate
from freehold.backends.capacity.steptime import EngineLimits
from freehold.backends.capacity.trace import RequestTrace, TracedRequest
from freehold.backends.contract import DeployedModel, ParallelSizes
from freehold.backends.planning.layout import large_step
from freehold.catalog.hardware import Device
from freehold.errors import UsageError

# A busy hour of chats: enough requests that memory decides, of the lengths that providers report most.
REQUESTS, PROMPT, ANSWER = 64, 1024, 256  # for each device; tokens
NEAR = 1.05  # within this of the least time, fewer devices a replica are taken: they fail apart


def seconds(
    model: DeployedModel,
    work: Work,
    sizes: ParallelSizes,
    device: Device,
    engine: UpstreamEngine,
    *,
    requests: int,
    streams: int,
    cache_bytes: float,
    cache_type: str,
    context: int,
) -> float | None:
    """Return the seconds until a replica has answered all of its share of the requests; None: no speed is known."""
    answer = max(min(ANSWER, context // 5), 1)
    prompt = max(min(PROMPT, context - answer - 1), 1)
    room = cache_tokens(model, sizes, cache_bytes, prompt + answer, cache_type)
    limits = EngineLimits(streams=streams, room=room, chunk=large_step(device) or 2048)
    try:
        played = replica(model, work, sizes, device, engine, limits, prompt=prompt, answer=answer)
    except UsageError:
        return None
    trace = RequestTrace(tuple(TracedRequest(0.0, prompt, answer) for _ in range(requests)), "a busy hour")
    run = simulate(trace, played)
    return float(run.latency.max()) if len(run.latency) else None
