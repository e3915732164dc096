"""The arrays of a step against a plain construction, one token at a time."""

import numpy as np
import pytest

from engine.fakes import request, tiny_plan
from ossia.engine.model_runner import forward_input, sampling_batch
from ossia.engine.scheduler import ScheduledChunk, SchedulerOutput
from ossia.engine.sequence import Sequence
from ossia.kernels.interface import NO_BLOCK

BLOCK = 4


def chunk(
    sequence: Sequence, start: int, num_tokens: int, full: list[int], sliding: list[int]
) -> ScheduledChunk:
    return ScheduledChunk(
        sequence=sequence,
        start=start,
        num_tokens=num_tokens,
        num_samples=int(start + num_tokens == sequence.num_tokens),
        full_blocks=np.array(full, np.int32),
        sliding_blocks=np.array(sliding, np.int32),
    )


def sequence(name: str, prompt: list[int], output: list[int], **sampling: object) -> Sequence:
    made = Sequence.of(request(name, prompt, **sampling), tiny_plan())
    for token in output:
        made.append(token)
    return made


@pytest.fixture
def step() -> SchedulerOutput:
    """A decoding sequence with a freed sliding block, a chunk in the middle of a prompt, and one
    that ends a prompt; block tables of unequal length with room to grow."""
    decoding = sequence("d", [10, 11, 12, 13, 14, 15, 16, 17], [20, 21], seed=3, temperature=0.5)
    middle = sequence("m", list(range(30, 60)), [])
    last = sequence("l", [70, 71, 72], [], seed=4, logprobs=True, top_logprobs=2)
    return SchedulerOutput(
        (
            chunk(decoding, 9, 1, [7, 3, 9, -1, -1], [-1, 5, 6, -1, -1]),
            chunk(middle, 5, 9, [1, 2, 4, 8, -1, -1, -1], [0, 1, 2, 3, -1, -1, -1]),
            chunk(last, 0, 3, [5], [4]),
        )
    )


def test_rows_positions_and_slots(step: SchedulerOutput):
    inputs = forward_input(step, BLOCK)
    expected: dict[str, list[int]] = {"ids": [], "positions": [], "full": [], "sliding": []}
    for c in step.chunks:
        tokens = [*c.sequence.request.prompt_ids, *c.sequence.output_ids]
        for position in range(c.start, c.start + c.num_tokens):
            expected["ids"].append(tokens[position])
            expected["positions"].append(position)
            for name, table in (("full", c.full_blocks), ("sliding", c.sliding_blocks)):
                expected[name].append(int(table[position // BLOCK]) * BLOCK + position % BLOCK)
    assert inputs.full is not None
    assert inputs.sliding is not None
    assert inputs.ids_T.tolist() == expected["ids"]
    assert inputs.positions_T.tolist() == expected["positions"]
    assert inputs.full.slot_mapping_T.tolist() == expected["full"]
    assert inputs.sliding.slot_mapping_T.tolist() == expected["sliding"]
    assert inputs.cu_seqlens_S1.tolist() == [0, 1, 10, 13]
    assert inputs.logit_rows.tolist() == [0, 12]
    assert inputs.num_tokens == step.num_tokens == 13


def test_block_tables_are_padded_and_cut_to_the_longest_chunk(step: SchedulerOutput):
    inputs = forward_input(step, BLOCK)
    assert inputs.full is not None
    assert inputs.sliding is not None
    assert inputs.full.block_tables_SB.tolist() == [
        [7, 3, 9, NO_BLOCK],
        [1, 2, 4, 8],
        [5, NO_BLOCK, NO_BLOCK, NO_BLOCK],
    ]
    assert inputs.sliding.block_tables_SB.tolist() == [
        [NO_BLOCK, 5, 6, NO_BLOCK],
        [0, 1, 2, 3],
        [4, NO_BLOCK, NO_BLOCK, NO_BLOCK],
    ]


def test_everything_is_int32(step: SchedulerOutput):
    inputs = forward_input(step, BLOCK)
    assert inputs.full is not None
    assert inputs.sliding is not None
    arrays = [
        inputs.ids_T,
        inputs.positions_T,
        inputs.cu_seqlens_S1,
        inputs.logit_rows,
        *vars(inputs.full).values(),
        *vars(inputs.sliding).values(),
    ]
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    nothing_drawn = forward_input(SchedulerOutput(step.chunks[1:2]), BLOCK)
    assert nothing_drawn.logit_rows.dtype == np.int32
    assert nothing_drawn.logit_rows.shape == (0,)


def test_sampling_has_one_entry_per_drawing_row(step: SchedulerOutput):
    batch = sampling_batch(step)
    assert batch.temperature == [0.5, 1.0]
    assert batch.seed == [3, 4]
    assert batch.position == [10, 3]  # where the drawn tokens will stand
    assert batch.top_logprobs == [-1, 2]
    assert [list(ids) for ids in batch.prompt_ids] == [list(range(10, 18)), [70, 71, 72]]
    assert [list(ids) for ids in batch.output_ids] == [[20, 21], []]
    assert batch.masks_SW is None
    for values in vars(batch).values():
        assert values is None or len(values) == 2
