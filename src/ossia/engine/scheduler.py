"""Which tokens run next: waiting and running sequences → `SchedulerOutput`, and the tokens drawn →
`TokenOutput`s.

A sequence takes blocks as it grows. When they run out, what only the prefix cache holds is evicted;
then the most junior running sequence is preempted: it gives up its blocks, keeps its tokens and
runs them again later. The most senior one can always go on, so there is no deadlock. Within a step
decoding goes before prompts: a long prompt cannot hold up the answers that are being written.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count, groupby, takewhile

import numpy as np

from ossia.engine.block_manager import BlockManager
from ossia.engine.config import EnginePlan
from ossia.engine.prefix_cache import Prefix
from ossia.engine.request import FinishReason, TokenOutput
from ossia.engine.sequence import Sequence
from ossia.kernels.interface import SampledTokens

_MOST_TOLD_CHECKPOINTS = 8
"""Of the checkpoints that a request names: so many are kept."""
_SOUND_ENDS = frozenset(
    (FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.DEADLINE)
)
"""After any other, what the request has computed is in doubt: who shared the keys and values of a
step that failed, or gave NaN, would fail too."""


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

    def __init__(self, plan: EnginePlan, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._clock = clock
        self.blocks = BlockManager(plan)
        # The most senior first. Dicts for their order and for removal from the middle.
        self.waiting: dict[str, Sequence] = {}
        self.running: dict[str, Sequence] = {}
        self._arrivals = count()
        self._deadlines: dict[str, float] = {}
        self._step: dict[str, int] = {}
        """Tokens of each sequence in the step that is being decided."""
        self.num_prefill_tokens = 0
        self.num_decode_tokens = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_recomputed_tokens = 0
        self.num_preemptions = 0
        self.num_deadline_ends = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        sequence.rank = (-sequence.request.priority, next(self._arrivals))
        if sequence.deadline is not None:
            self._deadlines[sequence.request_id] = sequence.deadline
        _insert(self.waiting, sequence)

    def schedule(self) -> SchedulerOutput:
        """Decide the next step and hold the blocks that it needs."""
        self._admit()
        self._step = {}
        reading: list[Sequence] = []
        for sequence in tuple(self.running.values()):
            if sequence.num_pending == 1:
                self._take(sequence, 1)
            else:
                reading.append(sequence)
        budget = self._plan.max_num_batched_tokens - len(self._step)
        for _, alike in groupby(reading, lambda sequence: sequence.request.priority):
            for sequence, num_tokens in _shares(list(alike), budget):
                self._take(sequence, num_tokens)
                budget -= num_tokens
        return SchedulerOutput(
            tuple(self._chunk(self.running[name], n) for name, n in self._step.items())
        )

    def update(self, step: SchedulerOutput, sampled: SampledTokens) -> list[TokenOutput]:
        """Take what the step computed and drew; the outputs of the sequences that drew a token."""
        outputs: list[TokenOutput] = []
        block_size = self._plan.block_size
        row = 0
        for chunk in step.chunks:
            sequence, start, end = chunk.sequence, chunk.start, chunk.end
            sequence.num_computed_tokens = end
            if start < sequence.num_prompt_tokens:
                self.num_prefill_tokens += min(end, sequence.num_prompt_tokens) - start
            if start < sequence.num_once_computed:
                self.num_recomputed_tokens += min(end, sequence.num_once_computed) - start
            enters_block = end // block_size > start // block_size
            if enters_block:
                self._keep(sequence, end // block_size)
            if chunk.num_samples:
                outputs.append(self._take_token(sequence, sampled, row))
                row += 1
            if enters_block and sequence.finish_reason is None:
                self.blocks.forget(sequence.request_id, end)
        return outputs

    def retract(self, step: SchedulerOutput) -> None:
        """Give back the blocks of a step that was interrupted; it will be decided anew."""
        for chunk in step.chunks:
            self.blocks.shrink(chunk.sequence.request_id, chunk.start)

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

    def end_late(self) -> list[TokenOutput]:
        """End the requests whose deadline has passed."""
        if not self._deadlines:
            return []
        now, outputs = self._clock(), list[TokenOutput]()
        for request_id in [name for name, deadline in self._deadlines.items() if deadline <= now]:
            sequence = self.waiting.get(request_id) or self.running[request_id]
            diagnostic = (
                f"The deadline of {sequence.request.deadline_s:g} s has passed: "
                f"{len(sequence.output_ids)} tokens of the answer had been drawn."
            )
            outputs += self.end([request_id], FinishReason.DEADLINE, diagnostic)
        self.num_deadline_ends += len(outputs)
        return outputs

    def check_integrity(self) -> None:
        """Assert, between steps, that sequences and blocks agree."""
        self.blocks.check_integrity()
        full, sliding = self.blocks.full, self.blocks.sliding
        assert full.tables.keys() == self.running.keys()
        assert self.waiting.keys().isdisjoint(self.running)
        assert self._deadlines.keys() <= self.waiting.keys() | self.running.keys()
        assert len(self.running) <= self._plan.max_num_seqs
        for queue in (self.waiting, self.running):
            ranks = [sequence.rank for sequence in queue.values()]
            assert ranks == sorted(ranks), "a junior goes before a senior"
        assert not any(sequence.num_computed_tokens for sequence in self.waiting.values())
        block_size = self._plan.block_size
        for request_id, sequence in self.running.items():
            position = sequence.num_computed_tokens
            table, near = full.tables[request_id], sliding.tables[request_id]
            assert sequence.finish_reason is None and sequence.num_pending > 0
            assert table.end == near.end == self.blocks.blocks_for(position)
            first_seen = sliding.first_seen(position - position % block_size)
            assert near.first == min(first_seen, near.end)
            known = sequence.block_tokens(len(table.nodes), block_size)
            assert all(node.tokens == known[i] for i, node in enumerate(table.nodes))
            if self._plan.prefix_cache and all(node.is_cached for node in table.nodes[-1:]):
                assert len(table.nodes) == position // block_size

    # -- Admission and preemption --------------------------------------------------------------

    def _admit(self) -> None:
        """Let sequences in, the most senior first. None goes past one for which there is no room:
        a large request must not starve. One that waits for another's prefix is passed.
        """
        while (sequence := self._next_waiting()) is not None:
            juniors = [other for other in self.running.values() if other.rank[0] > sequence.rank[0]]
            if len(self.running) - len(juniors) >= self._plan.max_num_seqs:
                return
            # At least one token must run, or there would be nothing to draw from.
            most = (sequence.num_tokens - 1) // self._plan.block_size
            blocks = sequence.block_tokens(most, self._plan.block_size)[:most]
            prefix = self.blocks.find(sequence.request.cache_salt, blocks)
            if self._follow(sequence, blocks, len(prefix.nodes)):
                continue
            if not self._make_room(sequence, prefix, juniors):
                return
            self._start(sequence, prefix)

    def _next_waiting(self) -> Sequence | None:
        """The most senior that does not wait for another's prefix."""
        waiting = self.waiting.values()
        return next((each for each in waiting if not self._is_following(each)), None)

    def _make_room(self, sequence: Sequence, prefix: Prefix, juniors: list[Sequence]) -> bool:
        """Whether there is room for a sequence, if need be after preempting running ones of lower
        priority; when that would not do, none is.
        """
        held = sum(self.blocks.full.tables[junior.request_id].end for junior in juniors)
        if not self._fits(sequence, prefix, juniors, held):
            return False
        while juniors and (
            len(self.running) >= self._plan.max_num_seqs
            or not self._fits(sequence, prefix, [], held=0)
        ):
            self._preempt(juniors.pop())
        return self._fits(sequence, prefix, [], held=0)

    def _fits(self, sequence: Sequence, prefix: Prefix, juniors: list[Sequence], held: int) -> bool:
        """Whether the blocks suffice for all pending tokens of the running sequences, less
        `juniors` that hold `held` blocks, and of this one, and for its first tokens of answer.
        """
        staying = [other for other in self.running.values() if other not in juniors]
        if not staying:
            return True  # alone it fits: the context is not longer than the cache
        promised = sum(
            self.blocks.num_missing(other.request_id, other.num_tokens) for other in staying
        )
        room = self.blocks.num_available + held - promised - prefix.num_idle
        needed = self.blocks.blocks_for(sequence.num_tokens) + 1
        needed = min(needed, self.blocks.blocks_for(sequence.max_positions))
        return needed - len(prefix.nodes) <= room

    def _start(self, sequence: Sequence, prefix: Prefix) -> None:
        del self.waiting[sequence.request_id]
        _insert(self.running, sequence)
        num_cached = self.blocks.admit(sequence.request_id, sequence.max_positions, prefix)
        sequence.num_computed_tokens = num_cached
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = num_cached
            self.num_cached_tokens += num_cached
            self.num_prompt_tokens += sequence.num_prompt_tokens
        sequence.checkpoints = self._due_checkpoints(sequence, prefix)

    def _due_checkpoints(self, sequence: Sequence, prefix: Prefix) -> list[int]:
        """Where the cache is to keep what others need to go on, as numbers of blocks."""
        block_size, start = self._plan.block_size, len(prefix.nodes)
        told = sorted({position // block_size for position in sequence.request.checkpoints})
        told = [num_blocks for num_blocks in told if num_blocks > start]
        # The first, which other conversations share, and the last, near which this one goes on: all
        # those of a long history would push out everyone else's.
        due = {*told[:1], *told[1:][1 - _MOST_TOLD_CHECKPOINTS :]}
        # The last boundary from which the same prompt, too, has a token left to draw from.
        due.add((sequence.num_prompt_tokens - 1) // block_size)
        # What was known before and is computed again now will be asked for once more.
        due.add(prefix.num_known)
        return sorted(num_blocks for num_blocks in due if num_blocks > start)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it waits, before all that came after it, to run again
        from what the prefix cache then still has of it.
        """
        del self.running[sequence.request_id]
        self._step.pop(sequence.request_id, None)
        self._release(sequence)
        sequence.num_once_computed = max(sequence.num_once_computed, sequence.num_computed_tokens)
        sequence.num_computed_tokens = 0
        _insert(self.waiting, sequence)
        self.num_preemptions += 1

    def _is_following(self, sequence: Sequence) -> bool:
        """Whether the one that it follows is still on its way to where the two part."""
        if sequence.follows is None:
            return False
        leader, num_blocks = sequence.follows
        on_its_way = leader.num_computed_tokens < num_blocks * self._plan.block_size
        if leader.request_id in self.running and leader.finish_reason is None and on_its_way:
            return True
        sequence.follows = None
        return False

    def _follow(self, sequence: Sequence, blocks: list[bytes], num_cached: int) -> bool:
        """Have a sequence wait for a running one that is about to compute more of the same tokens
        than the cache holds, and have that one leave a checkpoint where the two part.
        """
        if not self._plan.prefix_cache:
            return False
        block_size, best = self._plan.block_size, num_cached
        for other in self.running.values():
            if (
                other.num_pending == 1
                or other.request.cache_salt != sequence.request.cache_salt
                or other.rank[0] > sequence.rank[0]
            ):
                continue
            theirs = other.block_tokens(other.num_tokens // block_size, block_size)
            pairs = zip(blocks, theirs, strict=False)
            num_alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            if num_alike > best and num_alike * block_size > other.num_computed_tokens:
                best, sequence.follows = num_alike, (other, num_alike)
        if sequence.follows is None:
            return False
        leader, num_blocks = sequence.follows
        if num_blocks not in leader.checkpoints:
            insort(leader.checkpoints, num_blocks)
        return True

    # -- A step --------------------------------------------------------------------------------

    def _take(self, sequence: Sequence, num_tokens: int) -> None:
        """Have so many tokens of a running sequence in this step, if need be at the cost of more
        junior ones; fewer, or none, when it is itself the most junior and blocks have run out.
        """
        request_id = sequence.request_id
        if request_id not in self.running or not num_tokens:
            return  # preempted in this very step
        start = sequence.num_computed_tokens
        missing = self.blocks.num_missing(request_id, start + num_tokens)
        if not missing:
            self._step[request_id] = num_tokens
            return
        while missing > self.blocks.num_available:
            junior = next(reversed(self.running.values()))
            if junior is sequence:
                held = self.blocks.full.tables[request_id].end + self.blocks.num_available
                num_tokens = held * self._plan.block_size - start
                break
            self._preempt(junior)
        if num_tokens > 0:
            self.blocks.extend(request_id, start + num_tokens)
            self._step[request_id] = num_tokens

    def _chunk(self, sequence: Sequence, num_tokens: int) -> ScheduledChunk:
        start = sequence.num_computed_tokens
        return ScheduledChunk(
            sequence=sequence,
            start=start,
            num_tokens=num_tokens,
            num_samples=1 if start + num_tokens == sequence.num_tokens else 0,
            full_blocks=self.blocks.full.tables[sequence.request_id].blocks,
            sliding_blocks=self.blocks.sliding.tables[sequence.request_id].blocks,
        )

    # -- After a step --------------------------------------------------------------------------

    def _keep(self, sequence: Sequence, num_blocks: int) -> None:
        """Let the prefix cache know what was computed, and leave the checkpoints that are due."""
        request_id, salt = sequence.request_id, sequence.request.cache_salt
        tokens = sequence.block_tokens(num_blocks, self._plan.block_size)
        self.blocks.keep(request_id, salt, tokens, num_blocks)
        while sequence.checkpoints and sequence.checkpoints[0] <= num_blocks:
            self.blocks.checkpoint(request_id, sequence.checkpoints.pop(0))

    def _release(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Give back the blocks of a sequence; what was computed last becomes a checkpoint."""
        if is_sound:
            num_blocks = sequence.num_computed_tokens // self._plan.block_size
            self.blocks.checkpoint(sequence.request_id, num_blocks)
        self.blocks.release(sequence.request_id, is_sound=is_sound)

    def _take_token(self, sequence: Sequence, sampled: SampledTokens, row: int) -> TokenOutput:
        token_id = sampled.ids[row]
        if token_id < 0:
            constraint = sequence.request.constraint
            failure = constraint.failure if constraint is not None else None
            return self._finish(
                sequence,
                FinishReason.NAN if failure is None else FinishReason.ERROR,
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
            cached_tokens=sequence.num_cached_tokens or 0,
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
        self._deadlines.pop(request_id, None)
        if self.waiting.pop(request_id, None) is None:
            del self.running[request_id]
            self._release(sequence, is_sound=reason in _SOUND_ENDS)
        if reason is FinishReason.LENGTH and sequence.capped_by_context:
            diagnostics += (
                f"The context of {self._plan.context} tokens is full: "
                f"{sequence.num_prompt_tokens} of prompt, {len(sequence.output_ids)} of answer.",
            )
        return replace(
            tokens or TokenOutput(request_id, cached_tokens=sequence.num_cached_tokens or 0),
            diagnostics=diagnostics,
            finish_reason=reason,
        )


def _insert(queue: dict[str, Sequence], sequence: Sequence) -> None:
    """Put a sequence where its rank belongs."""
    is_last = not queue or next(reversed(queue.values())).rank < sequence.rank
    queue[sequence.request_id] = sequence
    if not is_last:
        ordered = sorted(queue.values(), key=lambda each: each.rank)
        queue.clear()
        queue.update((each.request_id, each) for each in ordered)


def _shares(reading: list[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """How the tokens of a step are divided among sequences of one priority, given the oldest first.

    The oldest gets half, and what is left over; the rest goes to the others, the shortest first. So
    a short prompt is not held up by long ones, nor a long one by many short ones: each becomes the
    oldest in its turn.
    """
    oldest, *others = reading
    first = min(oldest.num_pending, (budget + 1) // 2)
    left, shares = budget - first, list[tuple[Sequence, int]]()
    for sequence in sorted(others, key=lambda each: each.num_pending):
        shares.append((sequence, min(sequence.num_pending, left)))
        left -= shares[-1][1]
    return [(oldest, min(oldest.num_pending, first + left)), *shares]
