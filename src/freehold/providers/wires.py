"""Which wire a provider of a kind speaks. Each is imported when it is first asked for, and shared.

Path: upstream.py -> wire_of -> openai/wire.py, anthropic/wire.py and the others
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from freehold.providers.contract import Kind, Wire

_WIRES: Mapping[Kind, tuple[str, str]] = {
    "openai": ("openai.wire", "OpenAIWire"),
    "openai-compatible": ("compatible", "CompatibleWire"),
    "mistral": ("mistral", "MistralWire"),
    "deepseek": ("deepseek", "DeepSeekWire"),
    "anthropic": ("anthropic.wire", "AnthropicWire"),
    "gemini": ("gemini.wire", "GeminiWire"),
}


@cache
def wire_of(kind: Kind) -> Wire:
    """Return the wire of a kind of provider."""
    module, name = _WIRES[kind]
    return getattr(import_module(f"freehold.providers.{module}"), name)()
