"""The engine: token ids in, token ids out: sequences, cache blocks, scheduler, sampler and the step loop."""

from freehold.run.engine.encoder import Encoder
from freehold.run.engine.engine import Engine
from freehold.run.engine.sequence import Generation, TokenOut

__all__ = ["Encoder", "Engine", "Generation", "TokenOut"]
