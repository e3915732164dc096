"""Settings of a turn that are allowed and known not to do gpt-oss good, each told in one sentence.

Both kinds make it loop: near-greedy sampling, when it thinks for long (OpenAI recommends a
temperature of 1), and penalties, which take from it the words and control tokens that its format
and its own reasoning repeat.
"""

from __future__ import annotations

from collections.abc import Iterator

from ossia.engine.request import SamplingParams
from ossia.harmony.messages import Conversation, Effort, SystemContent

_NEARLY_GREEDY = 0.2
"""Below this temperature; a bound of judgement, not a measured one."""


def sampling_advice(sampling: SamplingParams, conversation: Conversation) -> Iterator[str]:
    """What to know about these settings, nothing for the recommended ones."""
    if sampling.temperature < _NEARLY_GREEDY and _effort(conversation) is Effort.HIGH:
        yield (
            f"A temperature of {sampling.temperature:g} at high effort is known to make gpt-oss "
            "repeat itself; 1 is recommended."
        )
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    used = [name for name, value in neutral.items() if getattr(sampling, name) != value]
    if used:
        yield (
            f"A penalty ({', '.join(used)}) also weighs on the tokens of the Harmony format, which "
            "is known to make gpt-oss loop or break it; leave it off."
        )


def _effort(conversation: Conversation) -> Effort | None:
    """That of the last system message that names one."""
    named = [
        part.reasoning_effort
        for message in conversation.messages
        for part in message.content
        if isinstance(part, SystemContent) and part.reasoning_effort is not None
    ]
    return named[-1] if named else None
