"""Who holds which block, by hand-made cases; random work is in test_random_work.py."""

import numpy as np
import pytest

from engine.fakes import tiny_plan
from ossia.engine.block_manager import BlockManager
from ossia.kernels.interface import NO_BLOCK


def held(table: np.ndarray) -> list[int]:
    return [index for index, block in enumerate(table.tolist()) if block != NO_BLOCK]


def test_blocks_come_when_positions_do():
    blocks = BlockManager(tiny_plan())  # blocks of 4
    blocks.admit("a", 50)
    assert held(blocks.full.tables["a"].blocks) == []
    for end, count in ((1, 1), (4, 1), (5, 2), (8, 2), (9, 3)):
        blocks.extend("a", end)
        assert held(blocks.full.tables["a"].blocks) == list(range(count))
        assert held(blocks.sliding.tables["a"].blocks) == list(range(count))
        blocks.check_integrity()


def test_sliding_blocks_go_as_soon_as_no_later_query_sees_them():
    plan = tiny_plan(max_num_batched_tokens=100)  # window 10, blocks of 4
    blocks = BlockManager(plan)
    blocks.admit("a", 100)
    blocks.extend("a", 100)
    for position in range(101):
        blocks.forget("a", position)
        blocks.check_integrity()
        # The query at the start of the block, q, sees q - 9 … q; a block stays if any of it is
        # seen. Where the query at `position` sees less, the start could still be a checkpoint.
        start = position // 4 * 4
        seen = {key // 4 for key in range(max(start - 9, 0), 100)}
        assert held(blocks.sliding.tables["a"].blocks) == sorted(seen)
        assert held(blocks.full.tables["a"].blocks) == list(range(25))
    blocks.release("a")
    assert blocks.full.pool.num_free == plan.num_full_blocks
    assert blocks.sliding.pool.num_free == plan.num_sliding_blocks
    blocks.check_integrity()


def test_what_is_missing_is_what_extending_takes():
    blocks = BlockManager(tiny_plan(cache_tokens=80))  # 20 blocks
    blocks.admit("a", 41)
    assert blocks.num_available == 20
    for end in (3, 4, 20, 20, 41):
        missing, before = blocks.num_missing("a", end), blocks.num_available
        blocks.extend("a", end)
        assert before - missing == blocks.num_available
        assert blocks.num_missing("a", end) == 0
    assert blocks.num_available == 20 - 11
    blocks.release("a")
    assert blocks.num_available == 20


def test_freed_blocks_are_the_next_to_be_used():
    blocks = BlockManager(tiny_plan())
    for round_ in range(50):
        blocks.admit(str(round_), 12)
        blocks.extend(str(round_), 12)
        assert set(blocks.full.tables[str(round_)].blocks.tolist()) == {0, 1, 2}
        blocks.release(str(round_))


@pytest.mark.parametrize("fault", ["leak", "double free", "shared", "hole"])
def test_the_integrity_check_finds(fault: str):
    blocks = BlockManager(tiny_plan(cache_tokens=80))
    for name in ("a", "b"):
        blocks.admit(name, 12)
        blocks.extend(name, 12)
    blocks.check_integrity()
    table = blocks.full.tables["a"]
    match fault:
        case "leak":
            del blocks.full.tables["a"], blocks.sliding.tables["a"]
        case "double free":
            blocks.full.pool.release(int(table.blocks[0]))
        case "shared":
            table.blocks[0] = blocks.full.tables["b"].blocks[0]
        case _:
            table.blocks[1] = NO_BLOCK
    with pytest.raises(AssertionError):
        blocks.check_integrity()
