"""LangChain's own tests of a chat model, asked of a server: runs in the environment that has them, not in ours.

FREEHOLD_URL and FREEHOLD_MODEL say whom to ask, FREEHOLD_API whether by chat completions or by responses.
Path: test_langchain.py copies it -> pytest in .peers/langchain
"""

from __future__ import annotations

import os

from langchain_openai import ChatOpenAI  # type: ignore[import-not-found]
from langchain_tests.integration_tests import ChatModelIntegrationTests  # type: ignore[import-not-found]


class TestFreehold(ChatModelIntegrationTests):
    """What a text model can do; it sees no pictures, and hears nothing."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {
            "model": os.environ["FREEHOLD_MODEL"],
            "base_url": os.environ["FREEHOLD_URL"],
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 200,
            # The smallest coder tells one joke without end; what is cut off is not JSON.
            "extra_body": {"repetition_penalty": 1.15, "penalty_window": 0},
            "max_retries": 0,
            "stream_usage": True,
            "use_responses_api": os.environ["FREEHOLD_API"] == "responses",
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["FREEHOLD_MODEL"]
