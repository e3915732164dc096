"""How much a turn may think before it answers, and what leads it on to its answer then.

The model is not asked again: its message is ended and the header of the answer put behind it, both
legal Harmony, and it goes on from there. Where that happens depends on its tokens alone, never on
when they arrive.
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.errors import RequestError
from ossia.harmony.messages import Channel, Role
from ossia.harmony.tokenizer import Tokenizer


@dataclass(frozen=True)
class Budget:
    """Bounds on a turn's tokens besides `max_tokens`. Raises RequestError for negative ones."""

    reasoning: int | None = None
    """Tokens of analysis after which the turn goes on with its answer (at the end of a character,
    hence up to three more); None = no bound."""
    answer_reserve: int = 0
    """Tokens of `max_tokens` that are kept for the answer while there is none; 0 = none. A tool
    call in progress is never cut for them."""

    def __post_init__(self) -> None:
        for name, value in (("reasoning", self.reasoning), ("answer", self.answer_reserve)):
            if value is not None and value < 0:
                raise RequestError(f"A budget of tokens must not be negative; {name}: {value}.")

    @property
    def leads_on(self) -> bool:
        """Whether a turn may be led on to its answer."""
        return self.reasoning is not None or self.answer_reserve > 0

    def check(self, max_tokens: int | None) -> None:
        """Raises RequestError when the reserve leaves nothing of `max_tokens` to think with."""
        if max_tokens is not None and 0 < max_tokens <= self.answer_reserve:
            raise RequestError(
                f"{self.answer_reserve} tokens cannot be reserved for the answer: max_tokens is "
                f"{max_tokens}."
            )


def lead_to_answer(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What ends a message of the assistant and begins its answer."""
    control = tokenizer.control
    return (
        control.end,
        control.start,
        *tokenizer.encode(Role.ASSISTANT),
        control.channel,
        *tokenizer.encode(Channel.FINAL),
        control.message,
    )
