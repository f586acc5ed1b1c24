"""Own the language models you use: choose one, load it, chat with it, stream, score.

    import freehold

    with freehold.load("qwen2.5-coder:0.5b", pull=True) as llm:
        print(llm.chat("Reverse a string in Python.").text)

This is the whole public API; everything else may move. Names are imported on first use, so that
`import freehold` costs a few milliseconds.
Path: freehold.load -> local.load -> engine
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from freehold.base.platforms import check_system as _check_system
from freehold.base.version import __version__ as __version__

_check_system()

if TYPE_CHECKING:
    from freehold.adapt.fuse import fuse
    from freehold.base.errors import FreeholdError
    from freehold.base.types import (
        Audio,
        ChatModel,
        Chunk,
        Completion,
        Format,
        Image,
        Message,
        SamplingParams,
        Segment,
        TokenLogprob,
        Tool,
        ToolCall,
        Transcript,
        Usage,
        Word,
    )
    from freehold.choose.advisor.cost import cost
    from freehold.choose.choosing import advise, fit, license
    from freehold.outgrow.capacity.measuring import deploy_bench
    from freehold.outgrow.planning.options import plan_deployment
    from freehold.run.local import LLM, load
    from freehold.run.local.asynchronous import AsyncLLM
    from freehold.run.local.runnable import list, pull
    from freehold.run.local.speech import Speech, load_speech
    from freehold.run.store import Listed, ModelRef
    from freehold.serve.documents.local import Collection
    from freehold.serve.fake import FakeModel
    from freehold.serve.http.inside import DeployedLLM, deploy
    from freehold.serve.reports.capacity import deploy_capacity

__all__ = [
    "LLM",
    "AsyncLLM",
    "Audio",
    "ChatModel",
    "Chunk",
    "Collection",
    "Completion",
    "DeployedLLM",
    "FakeModel",
    "Format",
    "FreeholdError",
    "Image",
    "Listed",
    "Message",
    "ModelRef",
    "SamplingParams",
    "Segment",
    "Speech",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Transcript",
    "Usage",
    "Word",
    "advise",
    "cost",
    "deploy",
    "deploy_bench",
    "deploy_capacity",
    "fit",
    "fuse",
    "license",
    "list",
    "load",
    "load_speech",
    "plan_deployment",
    "pull",
]

_HOMES = {
    "freehold.run.local": ("LLM", "load"),
    "freehold.run.local.asynchronous": ("AsyncLLM",),
    "freehold.run.local.runnable": ("list", "pull"),
    "freehold.run.local.speech": ("Speech", "load_speech"),
    "freehold.outgrow.capacity.measuring": ("deploy_bench",),
    "freehold.serve.reports.capacity": ("deploy_capacity",),
    "freehold.serve.http.inside": ("DeployedLLM", "deploy"),
    "freehold.run.store": ("Listed", "ModelRef"),
    "freehold.choose.advisor.cost": ("cost",),
    "freehold.outgrow.planning.options": ("plan_deployment",),
    "freehold.choose.choosing": ("advise", "fit", "license"),
    "freehold.adapt.fuse": ("fuse",),
    "freehold.base.errors": ("FreeholdError",),
    "freehold.serve.documents.local": ("Collection",),
    "freehold.serve.fake": ("FakeModel",),
    "freehold.base.types": (
        "Audio",
        "ChatModel",
        "Chunk",
        "Completion",
        "Format",
        "Image",
        "Message",
        "SamplingParams",
        "Segment",
        "TokenLogprob",
        "Tool",
        "ToolCall",
        "Transcript",
        "Usage",
        "Word",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'freehold' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> Sequence[str]:
    return sorted([*__all__, "__version__"])
