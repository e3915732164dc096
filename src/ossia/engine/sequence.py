"""A request on its way through the engine: its tokens so far, how many of them have run, and how it
ended.

Tokens that have not run are called pending: the whole prompt at first, less what the cache knows of
it; then always the one token drawn last; all of them again when the sequence was preempted. The
scheduler needs no other notion of prefill and decode.
"""

from __future__ import annotations

import secrets
from array import array
from math import isfinite

from ossia.engine.config import EnginePlan
from ossia.engine.request import FinishReason, Request
from ossia.errors import RequestError


class Sequence:
    """Mutable; owned by the scheduler once submitted."""

    __slots__ = (
        "_block_tokens",
        "checkpoints",
        "deadline",
        "finish_reason",
        "follows",
        "max_length",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_once_computed",
        "output_ids",
        "rank",
        "request",
        "seed",
    )

    def __init__(self, request: Request, *, seed: int, max_length: int) -> None:
        self.request = request
        self.seed = seed
        self.max_length = max_length
        """Prompt and answer together can get this long and no longer."""
        self.output_ids: list[int] = []
        self.num_computed_tokens = 0
        """Tokens whose keys and values stand in the cache."""
        self.finish_reason: FinishReason | None = None

        self.rank: tuple[int, int] = (0, 0)
        """Minus the priority, and the number of its arrival: the lowest goes first."""
        self.deadline: float | None = None
        """On the clock of the engine."""
        self.num_cached_tokens: int | None = None
        """Of the prompt, when it first ran; None before that."""
        self.num_once_computed = 0
        """Tokens that had run when it was last preempted."""
        self.checkpoints: list[int] = []
        """Numbers of blocks, ascending: where the cache is still to keep what others need to go on
        from there."""
        self.follows: tuple[Sequence, int] | None = None
        """A running sequence, and how many of its blocks this one waits for."""
        self._block_tokens: list[bytes] = []

    @classmethod
    def of(cls, request: Request, plan: EnginePlan) -> Sequence:
        """Raises RequestError for what the engine could never serve."""
        _check(request, plan)
        _check_constraint(request, plan)
        sampling = request.sampling
        room = plan.context - len(request.prompt_ids)
        return cls(
            request,
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            max_length=len(request.prompt_ids) + min(room, sampling.max_tokens or room),
        )

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def num_pending(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def max_positions(self) -> int:
        """Cache positions it can need: the last token drawn is never run."""
        return self.max_length - 1

    def token_ids(self, start: int, end: int) -> list[int]:
        """Tokens [start, end) of prompt and answer together."""
        num_prompt = len(self.request.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt]
        prompt = list(self.request.prompt_ids[start:end])
        return prompt + self.output_ids[: max(end - num_prompt, 0)]

    def block_tokens(self, num_blocks: int, block_size: int) -> list[bytes]:
        """The tokens of at least the first `num_blocks` blocks, as int32 bytes: the keys of the
        prefix cache. Not to be changed.
        """
        known = self._block_tokens
        if len(known) < num_blocks:
            start = len(known) * block_size
            ids = array("i", self.token_ids(start, num_blocks * block_size))
            packed, step = ids.tobytes(), block_size * ids.itemsize
            known += [packed[at : at + step] for at in range(0, len(packed), step)]
        return known

    def append(self, token_id: int) -> None:
        """Take the token just drawn; sets `finish_reason` when it is the last."""
        self.output_ids.append(token_id)
        constraint = self.request.constraint
        if constraint is not None:
            constraint.follow(token_id)
        if token_id in self.request.sampling.stop_token_ids or (
            constraint is not None and constraint.finished
        ):
            self.finish_reason = FinishReason.STOP
        elif self.num_tokens >= self.max_length:
            self.finish_reason = FinishReason.LENGTH

    @property
    def capped_by_context(self) -> bool:
        """Whether the context, not `max_tokens`, sets `max_length`."""
        max_tokens = self.request.sampling.max_tokens
        return max_tokens is None or self.num_prompt_tokens + max_tokens > self.max_length


def _check(request: Request, plan: EnginePlan) -> None:
    sampling, num_prompt = request.sampling, len(request.prompt_ids)
    name = f"Request {request.request_id!r}"
    if not num_prompt:
        raise RequestError(f"{name} has an empty prompt; at least one token is needed.")
    if num_prompt >= plan.context:
        limited = (
            ""
            if plan.context == plan.model_context
            else f" The model itself allows {plan.model_context}: raise max_model_len or the cache "
            "size."
        )
        raise RequestError(
            f"The prompt has {num_prompt} tokens; the context holds {plan.context} and needs room "
            f"for at least one token of the answer. Shorten the prompt.{limited}"
        )
    if request.deadline_s is not None and not (
        isfinite(request.deadline_s) and request.deadline_s > 0
    ):
        raise RequestError(
            f"{name}: deadline_s must be a positive number of seconds; got {request.deadline_s!r}."
        )
    for position in request.checkpoints:
        if type(position) is not int or not 0 <= position <= num_prompt:
            raise RequestError(
                f"{name}: checkpoints must lie between 0 and the {num_prompt} tokens of the "
                f"prompt; got {position!r}."
            )
    for what, ids in (
        ("prompt_ids", request.prompt_ids),
        ("stop_token_ids", sampling.stop_token_ids),
        ("logit_bias", sampling.logit_bias),
    ):
        for token_id in ids:
            if type(token_id) is not int or not 0 <= token_id < plan.vocab_size:
                raise RequestError(
                    f"{name}: {what} must hold token ids, integers from 0 to "
                    f"{plan.vocab_size - 1}; got {token_id!r}."
                )


def _check_constraint(request: Request, plan: EnginePlan) -> None:
    constraint, name = request.constraint, f"Request {request.request_id!r}"
    if constraint is None:
        return
    if constraint.vocab_size != plan.vocab_size:
        raise RequestError(
            f"{name}: its constraint is made for {constraint.vocab_size} tokens; the model knows "
            f"{plan.vocab_size}."
        )
    if constraint.num_accepted:
        raise RequestError(f"{name}: its constraint has served another request; make a new one.")
