"""Who holds which block of the key-value cache, for its two groups: full-attention layers keep a
sequence's blocks to its end, sliding layers give them back as soon as the window has passed.

Only the full group limits admission: the sliding group is sized for every possible step
(`engine.config.plan`), and a sequence enters only when the full group can hold it to its longest
possible end. So no step can run out of blocks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ossia.engine.config import EnginePlan
from ossia.kernels.interface import NO_BLOCK


class BlockPool:
    """The blocks of one group: a stack of free ones and a count of the tables that name each."""

    def __init__(self, num_blocks: int) -> None:
        # The lowest on top, and the last freed first again: memory that was never needed stays
        # untouched, and what was just used is still in the processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self.ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        assert self._free, "admission and sizing promise that a step never runs out of blocks"
        block = self._free.pop()
        self.ref_counts[block] = 1
        return block

    def release(self, block: int) -> None:
        self.ref_counts[block] -= 1
        if not self.ref_counts[block]:
            self._free.append(block)

    def check_integrity(self, named: Counter[int]) -> None:
        """`named` counts the tables that name each block."""
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert set(self._free).isdisjoint(named), "a block is both free and in a table"
        assert len(self._free) + len(named) == len(self.ref_counts), "a block is lost"
        for block, count in enumerate(self.ref_counts):
            assert named[block] == count, f"block {block}: {named[block]} tables, count {count}"


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence in one group: entry i holds positions [i · block_size,
    (i + 1) · block_size).
    """

    blocks: np.ndarray
    """int32, one entry per block of the longest possible sequence; `NO_BLOCK` outside
    [first, end)."""
    first: int = 0
    end: int = 0

    @property
    def num_held(self) -> int:
        return self.end - self.first


class CacheGroup:
    """Pool and tables of the layers that see the same positions: all, or the last `window`."""

    def __init__(self, num_blocks: int, block_size: int, window: int | None) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: dict[str, BlockTable] = {}
        self._block_size = block_size
        self._window = window

    def open(self, request_id: str, max_blocks: int) -> None:
        assert request_id not in self.tables
        self.tables[request_id] = BlockTable(np.full(max_blocks, NO_BLOCK, np.int32))

    def extend(self, request_id: str, end: int) -> None:
        """Have a block for every position below `end` that is not yet forgotten."""
        table = self.tables[request_id]
        while table.end * self._block_size < end:
            table.blocks[table.end] = self.pool.take()
            table.end += 1

    def forget(self, request_id: str, position: int) -> None:
        """Release the blocks that a query at `position`, or any later one, no longer sees."""
        if self._window is None:
            return
        table = self.tables[request_id]
        first_seen = max(position - self._window + 1, 0) // self._block_size
        while table.first < min(first_seen, table.end):
            self.pool.release(int(table.blocks[table.first]))
            table.blocks[table.first] = NO_BLOCK
            table.first += 1

    def close(self, request_id: str) -> None:
        table = self.tables.pop(request_id)
        for block in table.blocks[table.first : table.end].tolist():
            self.pool.release(block)

    def check_integrity(self) -> None:
        named: Counter[int] = Counter()
        for request_id, table in self.tables.items():
            assert 0 <= table.first <= table.end <= len(table.blocks), request_id
            held = table.blocks[table.first : table.end].tolist()
            assert NO_BLOCK not in held, f"{request_id}: a hole in the table"
            assert (table.blocks[: table.first] == NO_BLOCK).all(), request_id
            assert (table.blocks[table.end :] == NO_BLOCK).all(), request_id
            named.update(held)
        self.pool.check_integrity(named)


class BlockManager:
    """Both groups together, by request id."""

    def __init__(self, plan: EnginePlan) -> None:
        self._block_size = plan.block_size
        self.full = CacheGroup(plan.num_full_blocks, plan.block_size, window=None)
        self.sliding = CacheGroup(plan.num_sliding_blocks, plan.block_size, window=plan.window)

    def can_admit(self, max_length: int) -> bool:
        """Whether a sequence of at most `max_length` positions fits beside all that the admitted
        ones may still ask for.
        """
        promised = sum(len(table.blocks) - table.num_held for table in self.full.tables.values())
        return self._blocks_for(max_length) <= self.full.pool.num_free - promised

    def admit(self, request_id: str, max_length: int) -> None:
        """Promise blocks for `max_length` positions; none is taken yet."""
        for group in (self.full, self.sliding):
            group.open(request_id, self._blocks_for(max_length))

    def extend(self, request_id: str, end: int) -> None:
        """Have blocks for the positions below `end` in both groups."""
        for group in (self.full, self.sliding):
            group.extend(request_id, end)

    def forget(self, request_id: str, position: int) -> None:
        """Give back what the next query, at `position`, no longer sees."""
        for group in (self.full, self.sliding):
            group.forget(request_id, position)

    def release(self, request_id: str) -> None:
        """Give back everything that the request holds or was promised."""
        for group in (self.full, self.sliding):
            group.close(request_id)

    def check_integrity(self) -> None:
        """Assert that every block is in exactly one place and that all promises can be kept."""
        self.full.check_integrity()
        self.sliding.check_integrity()
        assert self.full.tables.keys() == self.sliding.tables.keys()
        assert all(table.first == 0 for table in self.full.tables.values())
        assert self.can_admit(0), "more blocks are promised than there are"

    def _blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self._block_size)
