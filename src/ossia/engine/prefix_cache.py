"""What is kept of sequences for those that begin alike: a tree of blocks of the full group, and at
some of its nodes, the checkpoints, the blocks of the sliding group that a sequence needs to go on
from there.

A node's place is its chained hash: from the root of a salt, each block is looked up among its
parent's children by its tokens, and the dictionary that finds it by their hash also compares them.
So what is reused was computed from the same tokens under the same salt, never only from the same
hash. Sharing ends on block boundaries: a sequence writes into its own blocks only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from ossia.engine.block_pool import BlockPool

_ANY_TEXT = "surrogatepass"  # a salt may come from a client's JSON, which can hold half characters


class Node:
    """One full block: keys and values of `tokens` behind those of its ancestors. A root has no
    block and stands for the empty prefix of its salt.
    """

    __slots__ = (
        "block",
        "children",
        "depth",
        "is_cached",
        "num_users",
        "parent",
        "sliding_blocks",
        "tokens",
    )

    def __init__(self, parent: Node | None, tokens: bytes, block: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.depth: int = parent.depth + 1 if parent else 0
        """Blocks from the root to here."""
        self.children: dict[bytes, Node] = {}
        self.num_users = 0
        """Sequences that have it in their table. Who uses a node uses its ancestors."""
        self.is_cached = True
        """Whether it can be found; False once evicted or dropped."""
        self.sliding_blocks: tuple[int, ...] | None = None
        """Of a checkpoint: those that a query right behind the node sees, in their order."""


@dataclass(frozen=True)
class Prefix:
    """How a sequence's tokens begin, as far as the cache knows them."""

    nodes: tuple[Node, ...] = ()
    """To be reused: they end at a checkpoint."""
    num_known: int = 0
    """Blocks that are known altogether; those beyond `nodes` must be computed again, for want of
    what sliding layers see."""

    @property
    def num_idle(self) -> int:
        """Nodes that no sequence uses yet."""
        return sum(not node.num_users for node in self.nodes)


class PrefixCache:
    """Owns the tree, and a reference to each block in it. Of the nodes that no sequence uses the
    least recently used goes first.
    """

    def __init__(self, full: BlockPool, sliding: BlockPool, *, blocks_seen: int) -> None:
        """`blocks_seen`: sliding blocks that a query behind a node sees, fewer near the start."""
        self._full = full
        self._sliding = sliding
        self._blocks_seen = blocks_seen
        self.roots: dict[str, Node] = {}
        # Dicts for their order, the least recently used first. A child stands before its parent,
        # so that the first has no children.
        self.idle: dict[Node, None] = {}
        """Nodes that no sequence uses."""
        self.checkpoints: dict[Node, None] = {}
        self.num_evicted_blocks = 0
        self.num_evicted_checkpoints = 0

    def find(self, salt: str, blocks: Iterable[bytes]) -> Prefix:
        """The longest known beginning of `blocks`, tokens of one block each."""
        node = self.roots.get(salt)
        if node is None:
            return Prefix()
        nodes: list[Node] = []
        num_reusable = 0
        for tokens in blocks:
            node = node.children.get(tokens)
            if node is None:
                break
            nodes.append(node)
            if node.sliding_blocks is not None or not self._blocks_seen:
                num_reusable = node.depth
        return Prefix(tuple(nodes[:num_reusable]), len(nodes))

    def insert(self, salt: str, parent: Node | None, tokens: bytes, block: int) -> Node:
        """The node of `tokens` behind `parent`, or behind the root: the one that there is already,
        or a new one for `block`.
        """
        if parent is None:
            parent = self.roots.get(salt)
            if parent is None:
                parent = self.roots[salt] = Node(None, salt.encode("utf-8", _ANY_TEXT), -1)
        assert parent.is_cached
        node = parent.children.get(tokens)
        if node is None:
            node = parent.children[tokens] = Node(parent, tokens, block)
            self._full.share(block)
            self.idle[node] = None
        return node

    def use(self, node: Node) -> None:
        """Count one more sequence that has `node` in its table."""
        if not node.num_users:
            del self.idle[node]
        node.num_users += 1

    def leave(self, nodes: Iterable[Node]) -> None:
        """Undo `use` for all nodes of a sequence, given from the root downwards."""
        for node in reversed(list(nodes)):
            node.num_users -= 1
            if not node.num_users and node.is_cached:
                self.idle[node] = None

    def add_checkpoint(self, node: Node, sliding_blocks: tuple[int, ...]) -> None:
        """Keep what the next query behind `node` sees in the sliding group."""
        assert node.is_cached and len(sliding_blocks) == min(self._blocks_seen, node.depth)
        if node.sliding_blocks is not None:
            self.touch(node)
            return
        for block in sliding_blocks:
            self._sliding.share(block)
        node.sliding_blocks = sliding_blocks
        self.checkpoints[node] = None

    def touch(self, node: Node) -> None:
        """Count a checkpoint as used just now."""
        if node in self.checkpoints:
            del self.checkpoints[node]
            self.checkpoints[node] = None

    def free_full_blocks(self, count: int) -> None:
        """Evict until the full group has so many free blocks; there must be enough idle nodes."""
        while self._full.num_free < count:
            node = next(iter(self.idle))
            assert not node.children, "a node is idle longer than its child"
            self._remove(node)
            self.num_evicted_blocks += 1

    def free_sliding_blocks(self, count: int) -> None:
        """Evict checkpoints until the sliding group has so many free blocks."""
        while self._sliding.num_free < count:
            self._drop_checkpoint(self._least_useful())
            self.num_evicted_checkpoints += 1

    def drop(self, node: Node) -> None:
        """Forget a node and all behind it, whoever uses them: their content is in doubt."""
        stack, nodes = [node], list[Node]()
        while stack:
            nodes.append(stack.pop())
            stack += nodes[-1].children.values()
        for each in reversed(nodes):  # children before their parents
            self._remove(each)

    def clear(self) -> None:
        """Forget all that no sequence uses, and all checkpoints."""
        while self.checkpoints:
            self._drop_checkpoint(next(iter(self.checkpoints)))
        while self.idle:
            self._remove(next(iter(self.idle)))

    def check_integrity(self, chains: Iterable[list[Node]]) -> None:
        """Assert that tree, orders and counts agree with the `chains` of nodes that sequences
        use.
        """
        users: dict[Node, int] = {}
        for chain in chains:
            for node in chain:
                users[node] = users.get(node, 0) + 1
        nodes = self.nodes()
        for node in nodes:
            assert node.parent and node.parent.children.get(node.tokens) is node, "a hash is wrong"
            assert node.is_cached and node.depth == node.parent.depth + 1
            assert node.num_users == users.get(node, 0), "the users of a node are miscounted"
            assert (node in self.idle) == (not node.num_users)
            assert (node in self.checkpoints) == (node.sliding_blocks is not None)
        assert len({node.block for node in nodes}) == len(nodes), "two nodes have one block"
        cached = set(nodes)
        assert self.idle.keys() <= cached, "an evicted node counts as idle"
        assert self.checkpoints.keys() <= cached, "an evicted node is a checkpoint"
        order = {node: place for place, node in enumerate(self.idle)}
        for node, place in order.items():
            parent = node.parent
            assert parent not in order or order[parent] > place, "a child outlives its parent"
            assert all(not child.num_users for child in node.children.values())
        for salt, root in self.roots.items():
            assert root.children and root.tokens.decode("utf-8", _ANY_TEXT) == salt, (
                "a root without a prefix"
            )

    def nodes(self) -> list[Node]:
        """All that can be found, parents before their children; roots are left out."""
        found = [child for root in self.roots.values() for child in root.children.values()]
        for node in found:  # grows while it is walked
            found += node.children.values()
        return found

    def _least_useful(self) -> Node:
        """Of the half of the checkpoints that was used less recently, the one behind which least
        would have to be computed again. The oldest alone would be wrong: those of a long loop of
        calls would push out the one before it, to which the conversation returns.
        """
        older = islice(self.checkpoints, (len(self.checkpoints) + 1) // 2)
        return min(older, key=_blocks_since_checkpoint)

    def _remove(self, node: Node) -> None:
        if node.sliding_blocks is not None:
            self._drop_checkpoint(node)
        parent = node.parent
        assert parent is not None and not node.children
        del parent.children[node.tokens]
        if parent.parent is None and not parent.children:
            del self.roots[parent.tokens.decode("utf-8", _ANY_TEXT)]
            parent.is_cached = False
        self.idle.pop(node, None)
        node.is_cached = False
        self._full.release(node.block)

    def _drop_checkpoint(self, node: Node) -> None:
        assert node.sliding_blocks is not None
        del self.checkpoints[node]
        for block in node.sliding_blocks:
            self._sliding.release(block)
        node.sliding_blocks = None


def _blocks_since_checkpoint(node: Node) -> int:
    """Blocks between a node and the nearest checkpoint, or root, above it."""
    above = node.parent
    while above is not None and above.sliding_blocks is None:
        above = above.parent
    return node.depth - (above.depth if above is not None else 0)
