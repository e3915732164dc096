"""Who holds which block of the key-value cache, for its two groups: full-attention layers keep a
sequence's blocks to its end, sliding layers give them back as soon as the window has passed. What
sequences leave behind is kept in the prefix cache until its room is needed.

Blocks come when positions do. Whether the full group has enough is for the scheduler to ask before
it extends a table; the sliding group is sized for every possible step (`engine.config.plan`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ossia.engine.block_pool import BlockPool
from ossia.engine.config import EnginePlan, blocks_seen
from ossia.engine.prefix_cache import Node, Prefix, PrefixCache
from ossia.kernels.interface import NO_BLOCK


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
    nodes: list[Node] = field(default_factory=list[Node])
    """Of the full group: the nodes of the prefix cache whose blocks are the first of this table."""

    def held(self) -> list[int]:
        return self.blocks[self.first : self.end].tolist()


class CacheGroup:
    """Pool and tables of the layers that see the same positions: all, or the last `window`."""

    def __init__(self, num_blocks: int, block_size: int, window: int | None) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: dict[str, BlockTable] = {}
        self._block_size = block_size
        self._window = window

    def open(self, request_id: str, max_blocks: int, shared: tuple[int, ...], end: int) -> None:
        """A table that begins with the blocks `shared`, the last of them at entry `end - 1`."""
        assert request_id not in self.tables
        blocks = np.full(max_blocks, NO_BLOCK, np.int32)
        first = end - len(shared)
        blocks[first:end] = shared
        for block in shared:
            self.pool.share(block)
        self.tables[request_id] = BlockTable(blocks, first, end)

    def extend(self, table: BlockTable, num_blocks: int) -> None:
        """Have a block for every entry below `num_blocks` that is not yet forgotten."""
        for entry in range(table.end, num_blocks):
            table.blocks[entry] = self.pool.take()
        table.end = max(table.end, num_blocks)

    def shrink(self, table: BlockTable, num_blocks: int) -> None:
        """Give back the entries from `num_blocks` on, which must be the table's own."""
        for entry in range(num_blocks, table.end):
            self.pool.release(int(table.blocks[entry]))
            table.blocks[entry] = NO_BLOCK
        table.end = min(table.end, num_blocks)

    def first_seen(self, position: int) -> int:
        """The first entry that a query at `position` sees."""
        if self._window is None:
            return 0
        return max(position - self._window + 1, 0) // self._block_size

    def forget(self, request_id: str, position: int) -> None:
        """Release the blocks that a query at the start of `position`'s block, or any later one, no
        longer sees: that start may become a checkpoint.
        """
        table = self.tables[request_id]
        first_seen = self.first_seen(position - position % self._block_size)
        while table.first < min(first_seen, table.end):
            self.pool.release(int(table.blocks[table.first]))
            table.blocks[table.first] = NO_BLOCK
            table.first += 1

    def close(self, request_id: str) -> BlockTable:
        table = self.tables.pop(request_id)
        for block in table.held():
            self.pool.release(block)
        return table

    def check_integrity(self, cached: Counter[int]) -> None:
        """`cached` counts what the prefix cache holds of this group."""
        named = cached.copy()
        for request_id, table in self.tables.items():
            assert 0 <= table.first <= table.end <= len(table.blocks), request_id
            held = table.held()
            assert NO_BLOCK not in held, f"{request_id}: a hole in the table"
            assert (table.blocks[: table.first] == NO_BLOCK).all(), request_id
            assert (table.blocks[table.end :] == NO_BLOCK).all(), request_id
            named.update(held)
        self.pool.check_integrity(named)


class BlockManager:
    """Both groups together and the prefix cache, by request id."""

    def __init__(self, plan: EnginePlan) -> None:
        self._block_size = plan.block_size
        self._keeps_prefixes = plan.prefix_cache
        self.full = CacheGroup(plan.num_full_blocks, plan.block_size, window=None)
        self.sliding = CacheGroup(plan.num_sliding_blocks, plan.block_size, window=plan.window)
        self.cache = PrefixCache(
            self.full.pool,
            self.sliding.pool,
            blocks_seen=blocks_seen(plan.window, plan.block_size),
        )

    @property
    def num_available(self) -> int:
        """Blocks of the full group that no sequence holds: free, or only in the prefix cache."""
        return self.full.pool.num_free + len(self.cache.idle)

    def num_missing(self, request_id: str, end: int) -> int:
        """Blocks of the full group that `extend` to `end` would take."""
        missing = -(-end // self._block_size) - self.full.tables[request_id].end
        return missing if missing > 0 else 0

    def blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self._block_size)

    def admit(self, request_id: str, max_length: int, prefix: Prefix | None = None) -> int:
        """Open tables for at most `max_length` positions that begin with what is reused. Returns
        how many positions that are; no further block is taken yet.
        """
        nodes = prefix.nodes if prefix is not None else ()
        seen = nodes[-1].sliding_blocks or () if nodes else ()
        most = self.blocks_for(max_length)
        self.full.open(request_id, most, tuple(node.block for node in nodes), len(nodes))
        self.sliding.open(request_id, most, seen, len(nodes))
        self.full.tables[request_id].nodes = list(nodes)
        for node in nodes:
            self.cache.use(node)
        if nodes:
            self.cache.touch(nodes[-1])
        return len(nodes) * self._block_size

    def extend(self, request_id: str, end: int) -> None:
        """Have blocks for the positions below `end` in both groups, at the cost of what the prefix
        cache keeps. In the full group so many must be available.
        """
        num_blocks = self.blocks_for(end)
        full, sliding = self.full.tables[request_id], self.sliding.tables[request_id]
        if num_blocks > full.end:
            self.cache.free_full_blocks(num_blocks - full.end)
            self.full.extend(full, num_blocks)
        if num_blocks > sliding.end:
            self.cache.free_sliding_blocks(num_blocks - sliding.end)
            self.sliding.extend(sliding, num_blocks)

    def shrink(self, request_id: str, end: int) -> None:
        """Undo `extend` beyond the positions below `end`."""
        for group in (self.full, self.sliding):
            group.shrink(group.tables[request_id], self.blocks_for(end))

    def find(self, salt: str, blocks: Iterable[bytes]) -> Prefix:
        """How much of a sequence that begins with the tokens `blocks` can be reused."""
        return self.cache.find(salt, blocks) if self._keeps_prefixes else Prefix()

    def keep(self, request_id: str, salt: str, blocks: list[bytes], num_blocks: int) -> None:
        """Make the first `num_blocks` blocks, which have been computed from the tokens `blocks`,
        known to the prefix cache. A block whose tokens are known there already is given back for
        the one that is.
        """
        table = self.full.tables[request_id]
        nodes, pool = table.nodes, self.full.pool
        if not self._keeps_prefixes or (nodes and not nodes[-1].is_cached):
            return  # what was before them has been dropped
        for entry in range(len(nodes), num_blocks):
            block = int(table.blocks[entry])
            parent = nodes[-1] if nodes else None
            node = self.cache.insert(salt, parent, blocks[entry], block)
            self.cache.use(node)
            nodes.append(node)
            if node.block != block:
                pool.share(node.block)
                table.blocks[entry] = node.block
                pool.release(block)

    def checkpoint(self, request_id: str, num_blocks: int) -> None:
        """Let others go on behind the first `num_blocks` blocks of a sequence, which have been
        computed; the sliding group must not have forgotten what is seen from there.
        """
        nodes = self.full.tables[request_id].nodes
        if not 0 < num_blocks <= len(nodes) or not nodes[-1].is_cached:
            return
        table = self.sliding.tables[request_id]
        first = self.sliding.first_seen(num_blocks * self._block_size)
        if first == num_blocks:
            return  # nothing is seen: every node will do
        assert first >= table.first, "a checkpoint comes too late"
        seen = tuple(table.blocks[first:num_blocks].tolist())
        self.cache.add_checkpoint(nodes[num_blocks - 1], seen)

    def forget(self, request_id: str, position: int) -> None:
        """Give back what no query from `position`'s block on sees."""
        self.sliding.forget(request_id, position)

    def release(self, request_id: str, *, is_sound: bool = True) -> None:
        """Give back everything that the request holds. Unless `is_sound` the prefix cache forgets
        what it has of the request, also what others share.
        """
        nodes = self.full.tables[request_id].nodes
        self.cache.leave(nodes)
        if nodes and nodes[0].is_cached and not is_sound:
            self.cache.drop(nodes[0])
        for group in (self.full, self.sliding):
            group.close(request_id)

    def check_integrity(self) -> None:
        """Assert that every block is in exactly one place, or shared and counted."""
        cache, tables = self.cache, self.full.tables
        self.full.check_integrity(Counter(node.block for node in cache.nodes()))
        self.sliding.check_integrity(
            Counter(block for node in cache.checkpoints for block in node.sliding_blocks or ())
        )
        assert tables.keys() == self.sliding.tables.keys()
        for request_id, table in tables.items():
            assert table.first == 0 and len(table.nodes) <= table.end
            for group in (self.full, self.sliding):  # what it may still write into is its own
                own: list[int] = (
                    group.tables[request_id].blocks[len(table.nodes) : table.end].tolist()
                )
                assert all(group.pool.ref_counts[block] == 1 for block in own if block >= 0)
            known = [node.block for node in table.nodes]
            assert table.blocks[: len(known)].tolist() == known, "a node has another block"
            for parent, node in zip(table.nodes, table.nodes[1:], strict=False):
                assert node.parent is parent, "a table does not follow the tree"
        cache.check_integrity([table.nodes for table in tables.values()])
