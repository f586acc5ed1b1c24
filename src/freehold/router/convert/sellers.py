"""LiteLLM's names of providers, and how each is written in gateway.toml: kind, address, the variable of its key.

Addresses as the sellers' documentation gives them for OpenAI's clients (2026-11). Knows no configuration.
Path: convert/litellm.py -> SELLERS -> Seller
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Seller(NamedTuple):
    """`url` "": the kind's own, or what the deployment says."""

    kind: str
    url: str
    variable: str  # that LiteLLM reads where a deployment has no key; "": it needs none


COMPATIBLE = "openai-compatible"
SELLERS: Mapping[str, Seller] = {
    "openai": Seller("openai", "", "OPENAI_API_KEY"),
    "text-completion-openai": Seller("openai", "", "OPENAI_API_KEY"),
    "anthropic": Seller("anthropic", "", "ANTHROPIC_API_KEY"),
    "gemini": Seller("gemini", "", "GEMINI_API_KEY"),
    "mistral": Seller("mistral", "", "MISTRAL_API_KEY"),
    "deepseek": Seller("deepseek", "", "DEEPSEEK_API_KEY"),
    "azure": Seller(COMPATIBLE, "", "AZURE_API_KEY"),
    "groq": Seller(COMPATIBLE, "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "together_ai": Seller(COMPATIBLE, "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "openrouter": Seller(COMPATIBLE, "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "fireworks_ai": Seller(COMPATIBLE, "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "xai": Seller(COMPATIBLE, "https://api.x.ai/v1", "XAI_API_KEY"),
    "perplexity": Seller(COMPATIBLE, "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "deepinfra": Seller(COMPATIBLE, "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "cerebras": Seller(COMPATIBLE, "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "nvidia_nim": Seller(COMPATIBLE, "https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "sambanova": Seller(COMPATIBLE, "https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "moonshot": Seller(COMPATIBLE, "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    "cohere_chat": Seller(COMPATIBLE, "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    "ollama": Seller(COMPATIBLE, "http://localhost:11434/v1", ""),
    "ollama_chat": Seller(COMPATIBLE, "http://localhost:11434/v1", ""),
    "hosted_vllm": Seller(COMPATIBLE, "", ""),
    "vllm": Seller(COMPATIBLE, "", ""),
    "openai_like": Seller(COMPATIBLE, "", ""),
    "custom_openai": Seller(COMPATIBLE, "", ""),
    "litellm_proxy": Seller(COMPATIBLE, "", ""),
    "lm_studio": Seller(COMPATIBLE, "", ""),
    "llamafile": Seller(COMPATIBLE, "http://127.0.0.1:8080/v1", ""),
    "xinference": Seller(COMPATIBLE, "", ""),
}
ADDED = {  # what an address of LiteLLM's lacks here
    "anthropic": "/v1",
    "gemini": "/v1beta",
    "ollama": "/v1",
    "ollama_chat": "/v1",
    "azure": "/openai/v1",
}


def seller_of(model: str) -> tuple[str, str]:
    """Split `groq/llama-3` into LiteLLM's provider and the model; a name without a provider is guessed by its maker."""
    prefix, slash, rest = model.partition("/")
    if slash and rest:
        return prefix, rest
    makers = {"claude": "anthropic", "gemini": "gemini", "mistral": "mistral", "deepseek": "deepseek"}
    return next((name for begins, name in makers.items() if model.startswith(begins)), "openai"), model
