"""The parts that layers are made of: each declares its weights in both file formats and composes its forward pass.

Those that most families share are taken from here; a rarer mixer, and experts, from their files.
"""

from freehold.run.models.parts.attention import Attention
from freehold.run.models.parts.ends import DecoderEnds
from freehold.run.models.parts.mlp import GatedMlp, PlainMlp
from freehold.run.models.parts.norms import NO_NORM, RMS, NormForm, Read

__all__ = ["NO_NORM", "RMS", "Attention", "DecoderEnds", "GatedMlp", "NormForm", "PlainMlp", "Read"]
