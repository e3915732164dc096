"""Ossia: gpt-oss on your own hardware. `load(model)` gives an `LLM` that chats and generates.

What is exported here is the public API; everything else may change. Names are imported when they
are first used, so that `import ossia` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ossia.agent.events import (
        Diagnostic,
        PreambleDelta,
        ReasoningDelta,
        TextDelta,
        TokenLogprob,
        ToolCall,
        ToolCallEvent,
        Turn,
        TurnEnd,
        TurnEvent,
        TurnFinish,
        TurnLogprobs,
        Usage,
    )
    from ossia.agent.watchdog import RepetitionLimits
    from ossia.engine.config import EngineConfig
    from ossia.engine.request import FinishReason, SamplingParams
    from ossia.errors import OssiaError
    from ossia.harmony.messages import Conversation, Effort, Message, Role, Tool
    from ossia.llm import LLM, Completion, CompletionChunk, load

__version__ = "0.1.0"

_HOMES = {
    "ossia.agent.events": (
        "Diagnostic",
        "PreambleDelta",
        "ReasoningDelta",
        "TextDelta",
        "TokenLogprob",
        "ToolCall",
        "ToolCallEvent",
        "Turn",
        "TurnEnd",
        "TurnEvent",
        "TurnFinish",
        "TurnLogprobs",
        "Usage",
    ),
    "ossia.agent.watchdog": ("RepetitionLimits",),
    "ossia.engine.config": ("EngineConfig",),
    "ossia.engine.request": ("FinishReason", "SamplingParams"),
    "ossia.errors": ("OssiaError",),
    "ossia.harmony.messages": ("Conversation", "Effort", "Message", "Role", "Tool"),
    "ossia.llm": ("LLM", "Completion", "CompletionChunk", "load"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Completion",
    "CompletionChunk",
    "Conversation",
    "Diagnostic",
    "Effort",
    "EngineConfig",
    "FinishReason",
    "LLM",
    "Message",
    "OssiaError",
    "PreambleDelta",
    "ReasoningDelta",
    "RepetitionLimits",
    "Role",
    "SamplingParams",
    "TextDelta",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallEvent",
    "Turn",
    "TurnEnd",
    "TurnEvent",
    "TurnFinish",
    "TurnLogprobs",
    "Usage",
    "load",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'ossia' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
