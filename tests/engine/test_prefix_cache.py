"""What the prefix cache finds, keeps and gives up, by hand-made cases on the block manager."""

from __future__ import annotations

import pytest

from engine.fakes import tiny_model, tiny_plan
from ossia.engine.block_manager import BlockManager
from ossia.engine.config import EnginePlan
from ossia.engine.prefix_cache import Node, Prefix

BLOCK = 4  # and a window of 10: what a query at a block's start sees lies in 3 blocks


class Cache:
    """A block manager that computes whole texts, one letter for each block."""

    def __init__(self, **config: object) -> None:
        self.plan: EnginePlan = tiny_plan(**config)
        self.blocks = BlockManager(self.plan)
        self.num_sequences = 0

    def find(self, text: str, salt: str = "") -> Prefix:
        return self.blocks.find(salt, _blocks(text))

    def begin(
        self, text: str, salt: str = "", *, checkpoints: tuple[int, ...] = (), reuse: bool = True
    ) -> str:
        """Compute a text block by block; the request's id."""
        self.num_sequences += 1
        name = f"s{self.num_sequences}"
        prefix = self.find(text, salt) if reuse else None
        start = self.blocks.admit(name, len(text) * BLOCK, prefix) // BLOCK
        for num_blocks in range(start + 1, len(text) + 1):
            self.blocks.extend(name, num_blocks * BLOCK)
            self.blocks.keep(name, salt, _blocks(text), num_blocks)
            if num_blocks in checkpoints:
                self.blocks.checkpoint(name, num_blocks)
            self.blocks.forget(name, num_blocks * BLOCK)
            self.blocks.check_integrity()
        return name

    def end(self, name: str, **how: bool) -> None:
        self.blocks.release(name, **how)
        self.blocks.check_integrity()

    def run(self, text: str, salt: str = "", **how: object) -> None:
        self.end(self.begin(text, salt, **how))  # type: ignore[arg-type]

    def table(self, name: str) -> list[int]:
        return self.blocks.full.tables[name].held()


def _blocks(text: str) -> list[bytes]:
    return [letter.encode() * BLOCK * 4 for letter in text]


def found(prefix: Prefix) -> tuple[int, int]:
    return len(prefix.nodes), prefix.num_known


def test_reuse_goes_to_the_deepest_checkpoint_that_the_tokens_share():
    cache = Cache()
    cache.run("abcdefgh", checkpoints=(2, 5, 8))
    assert found(cache.find("abcdefgh")) == (8, 8)
    assert found(cache.find("abcdefghi")) == (8, 8)
    assert found(cache.find("abcdefgX")) == (5, 7)
    assert found(cache.find("abcdX")) == (2, 4)
    assert found(cache.find("abX")) == (2, 2)
    assert found(cache.find("aX")) == (0, 1)
    assert found(cache.find("Xbcdefgh")) == (0, 0)
    assert found(cache.find("")) == (0, 0)


def test_the_same_blocks_behind_others_are_not_the_same():
    cache = Cache()
    cache.run("aab", checkpoints=(1, 2, 3))
    assert found(cache.find("ab")) == (1, 1)
    assert found(cache.find("b")) == (0, 0)
    assert found(cache.find("aaab")) == (2, 2)


def test_another_salt_finds_nothing():
    cache = Cache()
    cache.run("abc", salt="one", checkpoints=(1, 2, 3))
    for salt in ("", "two", "one ", "One", "\ud800"):
        assert found(cache.find("abc", salt)) == (0, 0)
        cache.run("abc", salt=salt, checkpoints=(3,))
    assert found(cache.find("abc", "one")) == (3, 3)
    cache.blocks.cache.clear()
    assert cache.blocks.cache.roots == {}
    cache.blocks.check_integrity()


class SameHash(bytes):
    """Keys whose hashes are all equal."""

    def __hash__(self) -> int:
        return 1


def test_tokens_are_compared_and_not_only_their_hashes():
    cache = Cache().blocks
    keys = [SameHash(bytes([n]) * 16) for n in range(3)]
    cache.admit("a", 40)
    cache.extend("a", 8)
    cache.keep("a", "", [keys[0], keys[1]], 2)
    cache.checkpoint("a", 2)
    assert found(cache.find("", [keys[0], keys[1]])) == (2, 2)
    assert found(cache.find("", [keys[0], keys[2]])) == (0, 1)
    assert found(cache.find("", [keys[2], keys[1]])) == (0, 0)


def test_what_is_reused_is_shared_and_what_follows_is_not():
    cache = Cache()
    first = cache.begin("abcdef", checkpoints=(4,))
    second = cache.begin("abcdXY")
    assert cache.table(first)[:4] == cache.table(second)[:4]
    assert not set(cache.table(first)[4:]) & set(cache.table(second)[4:])
    near = cache.blocks.sliding.tables
    assert near[second].first == 3 and near[first].first == 3
    assert not set(near[first].held()) & set(near[second].held()[1:])
    cache.end(first)
    cache.end(second)


def test_two_that_compute_the_same_end_up_with_one_copy():
    cache = Cache()
    free = cache.blocks.full.pool.num_free
    first = cache.begin("abcd")
    second = cache.begin("abcd", reuse=False)
    assert cache.table(first) == cache.table(second)
    assert cache.blocks.full.pool.num_free == free - 4
    cache.end(first)
    assert cache.blocks.num_available == free - 4
    cache.end(second)
    assert cache.blocks.num_available == free


def test_the_least_recently_used_is_evicted_first_and_its_end_before_its_beginning():
    cache = Cache(cache_tokens=40)  # 10 blocks
    cache.run("abc", checkpoints=(1, 2, 3))
    cache.run("xyz", checkpoints=(1, 2, 3))
    cache.run("ab")  # used once more; "c" is now the oldest
    last = cache.begin("12345", reuse=False)  # one more than are free
    assert found(cache.find("abc")) == (2, 2)
    assert found(cache.find("xyz")) == (3, 3)
    assert cache.blocks.cache.num_evicted_blocks == 1
    cache.end(last)
    cache.run("6789", reuse=False)  # then z, y, x, and the 5 of "12345" is younger than they
    assert found(cache.find("xyz")) == (0, 0)
    assert found(cache.find("ab")) == (1, 1)
    assert found(cache.find("12345")) == (0, 5)


def test_what_a_sequence_uses_is_never_evicted():
    cache = Cache(cache_tokens=40)
    cache.run("abc", checkpoints=(3,))
    user = cache.begin("abcd")
    cache.run("123456", reuse=False)
    cache.run("7890", reuse=False)
    assert cache.blocks.cache.num_evicted_blocks == 4
    assert cache.blocks.find("", _blocks("abcd")).num_known == 4
    cache.end(user)


def test_an_evicted_block_takes_its_checkpoint_with_it():
    cache = Cache(cache_tokens=40)
    cache.run("abc", checkpoints=(3,))
    cache.run("1234567890", reuse=False)
    assert cache.blocks.cache.checkpoints == {}
    assert cache.blocks.sliding.pool.num_free == cache.plan.num_sliding_blocks


def test_checkpoints_give_way_when_a_step_needs_their_blocks():
    cache = Cache(max_checkpoints=2, max_num_seqs=1, max_num_batched_tokens=4, cache_tokens=800)
    pool = cache.blocks.sliding.pool
    assert cache.plan.num_sliding_blocks == (4 + 1) + 1 + 2 * 3
    for text in ("abcd", "efgh", "ijkl", "mnop"):
        cache.run(text, checkpoints=(4,))
    found_now = [len(cache.find(text).nodes) for text in ("abcd", "efgh", "ijkl", "mnop")]
    assert found_now == sorted(found_now) and found_now[-2:] == [4, 4]  # the oldest went
    assert found_now[0] == 0 and cache.blocks.cache.num_evicted_checkpoints
    assert pool.num_free + 3 * len(cache.blocks.cache.checkpoints) == len(pool.ref_counts)


def test_a_checkpoint_that_is_used_is_kept_longer():
    cache = Cache(max_checkpoints=1, max_num_seqs=1, max_num_batched_tokens=4, cache_tokens=800)
    cache.run("abcd", checkpoints=(4,))
    cache.run("efgh", checkpoints=(4,))
    cache.run("abcd")
    cache.run("ijkl", checkpoints=(4,))
    kept = {text for text in ("abcd", "efgh", "ijkl") if cache.find(text).nodes}
    assert kept == {"abcd", "ijkl"}


def test_of_the_older_half_the_checkpoint_goes_that_costs_least():
    cache = Cache(max_checkpoints=40, cache_tokens=800)
    cache.run("abcdefgh", checkpoints=(3, 4, 8))
    cache.run("xyz", checkpoints=(1, 2, 3))
    tree, pool = cache.blocks.cache, cache.blocks.sliding.pool
    gone: list[str] = []
    while tree.checkpoints:
        before = list(tree.checkpoints)
        tree.free_sliding_blocks(pool.num_free + 1)
        gone += [chr(node.tokens[0]) for node in before if node not in tree.checkpoints]
    # The older three lie 3, 1 and 4 blocks behind what is above them: "d" goes. Then "c" is as far
    # from the root, and older than "h", which is 5 behind it.
    assert gone[:2] == ["d", "c"]
    assert sorted(gone) == ["c", "d", "h", "x", "y", "z"]


def test_a_failed_sequence_leaves_nothing_to_others():
    cache = Cache()
    cache.run("abc", checkpoints=(3,))
    beside = cache.begin("abcX", checkpoints=(4,))
    failed = cache.begin("abcdef", checkpoints=(6,))
    cache.end(failed, is_sound=False)
    for text in ("abc", "abcX", "abcdef"):
        assert found(cache.find(text)) == (0, 0)
    cache.blocks.extend(beside, 16)  # who shared its beginning goes on, and keeps nothing either
    cache.blocks.keep(beside, "", _blocks("abcX"), 4)
    cache.blocks.checkpoint(beside, 4)
    cache.end(beside)
    assert (
        cache.blocks.num_available == cache.plan.num_full_blocks == cache.blocks.full.pool.num_free
    )
    assert cache.blocks.sliding.pool.num_free == cache.plan.num_sliding_blocks


def test_a_model_without_sliding_layers_can_go_on_anywhere():
    plan = tiny_plan(tiny_model(sliding_layers=(False, False)))
    blocks = BlockManager(plan)
    blocks.admit("a", 40)
    blocks.extend("a", 12)
    blocks.keep("a", "", _blocks("abc"), 3)
    blocks.checkpoint("a", 2)
    assert blocks.cache.checkpoints == {}
    assert found(blocks.find("", _blocks("abX"))) == (2, 2)
    blocks.check_integrity()


def test_without_the_prefix_cache_nothing_is_kept():
    cache = Cache(prefix_cache=False)
    cache.run("abc", checkpoints=(3,))
    assert found(cache.find("abc")) == (0, 0)
    assert cache.blocks.full.pool.num_free == cache.plan.num_full_blocks


@pytest.mark.parametrize(
    "fault", ["users", "hash", "order", "evicted", "checkpoint", "block", "foreign block", "root"]
)
def test_the_integrity_check_finds(fault: str):
    cache = Cache()
    cache.run("abc", checkpoints=(3,))
    cache.begin("xyz", checkpoints=(3,))
    tree, blocks = cache.blocks.cache, cache.blocks
    a, b, c = _chain(tree.roots[""], "abc")
    match fault:
        case "users":
            b.num_users += 1
        case "hash":
            b.tokens = c.tokens
        case "order":
            del tree.idle[a]
            tree.idle = {a: None, **tree.idle}
        case "evicted":
            c.is_cached = False
        case "checkpoint":
            del tree.checkpoints[c]
        case "block":
            blocks.full.pool.release(a.block)
        case "foreign block":
            blocks.full.tables["s2"].blocks[0] = a.block
        case _:
            tree.roots["empty"] = Node(None, b"empty", -1)
    with pytest.raises(AssertionError):
        blocks.check_integrity()


def _chain(node: Node, text: str) -> list[Node]:
    chain = []
    for tokens in _blocks(text):
        node = node.children[tokens]
        chain.append(node)
    return chain
