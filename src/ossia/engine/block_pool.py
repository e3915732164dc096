"""The blocks of one cache group: which are free, and how many hold each of the others."""

from __future__ import annotations

from collections import Counter


class BlockPool:
    """A stack of free blocks, and a count of the tables and cache entries that name each."""

    def __init__(self, num_blocks: int) -> None:
        # The lowest on top, and the last freed first again: memory that was never needed stays
        # untouched, and what was just used is still in the processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self.ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free block, for one holder."""
        assert self._free, "admission and sizing promise that a step never runs out of blocks"
        block = self._free.pop()
        self.ref_counts[block] = 1
        return block

    def share(self, block: int) -> None:
        """Count one more holder of a block that is not free."""
        assert self.ref_counts[block], "a free block cannot be shared"
        self.ref_counts[block] += 1

    def release(self, block: int) -> None:
        """Count one holder less; without any the block is free."""
        self.ref_counts[block] -= 1
        if not self.ref_counts[block]:
            self._free.append(block)

    def check_integrity(self, named: Counter[int]) -> None:
        """`named` counts the holders of each block."""
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert set(self._free).isdisjoint(named), "a block is both free and held"
        assert len(self._free) + len(named) == len(self.ref_counts), "a block is lost"
        for block, count in enumerate(self.ref_counts):
            assert named[block] == count, f"block {block}: {named[block]} holders, count {count}"
