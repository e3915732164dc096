"""Which tokens run next: waiting and running sequences → `SchedulerOutput`, and the tokens drawn →
`TokenOutput`s.

Requests are admitted first come, first served, each with its whole worst case reserved, so nothing
is ever preempted and nothing starves. Within a step decoding goes before prompts: a long prompt
cannot hold up the answers that are being written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ossia.engine.block_manager import BlockManager
from ossia.engine.config import EnginePlan
from ossia.engine.request import FinishReason, TokenOutput
from ossia.engine.sequence import Sequence
from ossia.kernels.interface import SampledTokens


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Consecutive tokens of one sequence that run in this step."""

    sequence: Sequence
    """Read only; its tokens and sampling parameters."""
    start: int
    """Position of the first token."""
    num_tokens: int
    num_samples: int
    """The last so many rows of the chunk give logits from which a token is drawn: 0 while the
    prompt goes on after the chunk, else 1."""
    full_blocks: np.ndarray
    """Block table of the full group, int32; covers all positions of the chunk."""
    sliding_blocks: np.ndarray
    """The same of the sliding group; `NO_BLOCK` where the window has passed."""

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """The decision for one step; the model runner needs nothing else."""

    chunks: tuple[ScheduledChunk, ...]
    """In the order of the rows of the step; empty when nothing can run."""

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    """Owner of all sequences between submission and their terminal output."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self.blocks = BlockManager(plan)
        # Dicts for their order: first come, first served, and removal from the middle.
        self.waiting: dict[str, Sequence] = {}
        self.running: dict[str, Sequence] = {}
        self.num_prefill_tokens = 0
        self.num_decode_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting[sequence.request_id] = sequence

    def schedule(self) -> SchedulerOutput:
        """Decide the next step and hold the blocks that it needs."""
        self._admit()
        budget = self._plan.max_num_batched_tokens
        chunks: list[ScheduledChunk] = []
        # sorted() is stable: those with one pending token first, then the prompts by age.
        for sequence in sorted(self.running.values(), key=lambda s: s.num_pending > 1):
            num_tokens = min(sequence.num_pending, budget)
            if not num_tokens:
                break
            budget -= num_tokens
            chunks.append(self._chunk(sequence, num_tokens))
        return SchedulerOutput(tuple(chunks))

    def update(self, step: SchedulerOutput, sampled: SampledTokens) -> list[TokenOutput]:
        """Take what the step computed and drew; the outputs of the sequences that drew a token."""
        outputs: list[TokenOutput] = []
        row = 0
        for chunk in step.chunks:
            sequence = chunk.sequence
            sequence.num_computed_tokens = chunk.end
            self.num_prefill_tokens += max(
                min(chunk.end, sequence.num_prompt_tokens) - chunk.start, 0
            )
            if chunk.num_samples:
                outputs.append(self._take_token(sequence, sampled, row))
                row += 1
            if sequence.finish_reason is None:
                self.blocks.forget(sequence.request_id, sequence.num_computed_tokens)
        return outputs

    def end(
        self, request_ids: Iterable[str], reason: FinishReason, *diagnostics: str
    ) -> list[TokenOutput]:
        """End requests, waiting or running, from outside; ids that have already ended are passed
        over, because a cancellation may cross the last token.
        """
        return [
            self._finish(sequence, reason, diagnostics=diagnostics)
            for request_id in request_ids
            if (sequence := self.waiting.get(request_id) or self.running.get(request_id))
        ]

    def check_integrity(self) -> None:
        """Assert, between steps, that sequences and blocks agree."""
        self.blocks.check_integrity()
        assert self.blocks.full.tables.keys() == self.running.keys()
        assert self.waiting.keys().isdisjoint(self.running)
        assert len(self.running) <= self._plan.max_num_seqs
        block_size, window = self._plan.block_size, self._plan.window
        for request_id, sequence in self.running.items():
            position = sequence.num_computed_tokens
            end = -(-position // block_size)
            first_seen = max(position - window + 1, 0) // block_size
            assert sequence.finish_reason is None and sequence.num_pending > 0
            assert self.blocks.full.tables[request_id].end == end
            assert self.blocks.sliding.tables[request_id].end == end
            assert self.blocks.sliding.tables[request_id].first == min(first_seen, end)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._plan.max_num_seqs:
            sequence = next(iter(self.waiting.values()))
            if not self.blocks.can_admit(sequence.max_positions):
                return  # never past the first in the queue: a large request must not starve
            del self.waiting[sequence.request_id]
            self.running[sequence.request_id] = sequence
            self.blocks.admit(sequence.request_id, sequence.max_positions)

    def _chunk(self, sequence: Sequence, num_tokens: int) -> ScheduledChunk:
        start = sequence.num_computed_tokens
        self.blocks.extend(sequence.request_id, start + num_tokens)
        return ScheduledChunk(
            sequence=sequence,
            start=start,
            num_tokens=num_tokens,
            num_samples=1 if num_tokens == sequence.num_pending else 0,
            full_blocks=self.blocks.full.tables[sequence.request_id].blocks,
            sliding_blocks=self.blocks.sliding.tables[sequence.request_id].blocks,
        )

    def _take_token(self, sequence: Sequence, sampled: SampledTokens, row: int) -> TokenOutput:
        token_id = sampled.ids[row]
        if token_id < 0:
            constraint = sequence.request.constraint
            failure = constraint.failure if constraint is not None else None
            return self._finish(
                sequence,
                FinishReason.ERROR,
                diagnostics=(
                    failure
                    or f"No token could be drawn at position {sequence.num_tokens}: the logits "
                    "hold NaN or allow no token.",
                ),
            )
        sequence.append(token_id)
        self.num_decode_tokens += 1
        logprob = sampled.logprobs[row]
        tokens = TokenOutput(
            sequence.request_id,
            token_ids=(token_id,),
            logprobs=() if logprob is None else (logprob,),
            top_logprobs=(tuple(sampled.top_logprobs[row]),)
            if sequence.request.sampling.top_logprobs
            else (),
        )
        if sequence.finish_reason is None:
            return tokens
        return self._finish(sequence, sequence.finish_reason, tokens=tokens)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        tokens: TokenOutput | None = None,
        diagnostics: tuple[str, ...] = (),
    ) -> TokenOutput:
        """The one terminal output of a sequence; it leaves the scheduler and its blocks return."""
        request_id = sequence.request_id
        sequence.finish_reason = reason
        if self.waiting.pop(request_id, None) is None:
            del self.running[request_id]
            self.blocks.release(request_id)
        if reason is FinishReason.LENGTH and sequence.capped_by_context:
            diagnostics += (
                f"The context of {self._plan.context} tokens is full: "
                f"{sequence.num_prompt_tokens} of prompt, {len(sequence.output_ids)} of answer.",
            )
        return replace(
            tokens or TokenOutput(request_id), diagnostics=diagnostics, finish_reason=reason
        )
