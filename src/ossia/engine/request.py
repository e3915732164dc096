"""What goes into the engine (`Request`) and what comes out (`TokenOutput`): token ids only.

Every request ends in exactly one output that has a `finish_reason`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ossia.engine.constraint import TokenConstraint
from ossia.errors import RequestError


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """A stop token was drawn; it is the last of the token ids."""
    LENGTH = "length"
    """`max_tokens`, or the model's context, was reached."""
    DEADLINE = "deadline"
    """`deadline_s` had passed; `diagnostics` says how far the request had come."""
    CANCELLED = "cancelled"
    NAN = "nan"
    """No token can be drawn: the logits hold NaN or allow none."""
    ERROR = "error"
    """The step failed; `diagnostics` says what happened."""

    @property
    def failed(self) -> bool:
        """Whether the model or the engine broke down: what came before is no result."""
        return self in (FinishReason.NAN, FinishReason.ERROR)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. In which order stands at `kernels.interface.SamplingBatch`."""

    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None
    """None = drawn freshly per request; the engine reports nothing random otherwise."""
    max_tokens: int | None = None
    """None = up to the model's context."""
    stop_token_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    """Alternatives per position, 0 to 20; needs `logprobs`."""

    def __post_init__(self) -> None:
        checks: tuple[tuple[bool, str, object], ...] = (
            (
                0 <= self.temperature <= 100,
                "temperature must lie between 0 and 100",
                self.temperature,
            ),
            (0 < self.top_p <= 1, "top_p must lie above 0 and at most at 1", self.top_p),
            (
                all(value == value for value in self.logit_bias.values()),
                "logit_bias must hold numbers, not NaN",
                self.logit_bias,
            ),
            (self.top_k >= 0, "top_k must be 0 (off) or positive", self.top_k),
            (0 <= self.min_p <= 1, "min_p must lie between 0 and 1", self.min_p),
            (
                0 < self.repetition_penalty <= 100,
                "repetition_penalty must lie above 0 and at most at 100",
                self.repetition_penalty,
            ),
            (
                -100 <= self.presence_penalty <= 100,
                "presence_penalty must lie between -100 and 100",
                self.presence_penalty,
            ),
            (
                -100 <= self.frequency_penalty <= 100,
                "frequency_penalty must lie between -100 and 100",
                self.frequency_penalty,
            ),
            (
                self.seed is None or 0 <= self.seed < 2**64,
                "seed must be an integer from 0 to 2^64 - 1",
                self.seed,
            ),
            (
                self.max_tokens is None or self.max_tokens >= 1,
                "max_tokens must be at least 1",
                self.max_tokens,
            ),
            (
                0 <= self.top_logprobs <= 20,
                "top_logprobs must lie between 0 and 20",
                self.top_logprobs,
            ),
            (
                self.logprobs or not self.top_logprobs,
                "top_logprobs needs logprobs=True",
                self.top_logprobs,
            ),
        )  # NaN fails every comparison and is refused with them
        for holds, expected, value in checks:
            if not holds:
                raise RequestError(f"{expected}; got {value!r}.")


@dataclass(frozen=True)
class Request:
    request_id: str
    prompt_ids: tuple[int, ...]
    constraint: TokenConstraint | None = field(default=None, kw_only=True)
    """What the answer may be; it serves this request alone."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    """The higher goes first, and is preempted last; within one, first come, first served."""
    deadline_s: float | None = None
    """Seconds from its submission after which the request is ended; looked at between steps."""
    cache_salt: str = ""
    """Only requests of the same salt share cached keys and values, so that nobody can find out by
    time or by `cached_tokens` what another has asked."""
    checkpoints: tuple[int, ...] = ()
    """Numbers of prompt tokens after which another prompt may go on differently, such as the ends
    of messages: prompts that begin alike up to there need not compute it again. Of those that are
    new to the cache the first and the last few are kept."""


@dataclass(frozen=True)
class TokenOutput:
    """New tokens of one request since its last output."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """One per token when asked for: the log-probability under the unmodified distribution."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    """One per token when asked for: (token id, log-probability), the most probable first."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the cache, the same in all outputs of a
    request that has begun to run."""
    diagnostics: tuple[str, ...] = ()
    finish_reason: FinishReason | None = None


def join_outputs(outputs: Sequence[TokenOutput]) -> TokenOutput:
    """Consecutive outputs of one request, at least one, as a single output."""
    if len(outputs) == 1:
        return outputs[0]
    return TokenOutput(
        request_id=outputs[0].request_id,
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        logprobs=tuple(value for output in outputs for value in output.logprobs),
        top_logprobs=tuple(row for output in outputs for row in output.top_logprobs),
        cached_tokens=max(output.cached_tokens for output in outputs),
        diagnostics=tuple(text for output in outputs for text in output.diagnostics),
        finish_reason=outputs[-1].finish_reason,
    )
