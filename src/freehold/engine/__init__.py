"""The engine: token ids in, token ids out: sequences, cache blocks, scheduler, sampler and the step loop."""

from freehold.engine.encoder import Encoder
from freehold.engine.engine import Engine
from freehold.engine.generation import Generation
from freehold.engine.sequence import TokenOut

__all__ = ["Encoder", "Engine", "Generation", "TokenOut"]
