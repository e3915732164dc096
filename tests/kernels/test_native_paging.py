"""Experts paged from their file: never other bits, whatever the budget and whether a file is behind
the weights at all; hits and misses those of a least-recently-used list kept here; memory bounded.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("ossia.kernels._native")

from native_runs import Prepared, in_chunks, random_documents, small_model
from ossia.errors import UsageError
from ossia.kernels.interface import Part, part_shapes
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.native import NativeKernels
from ossia.model.checkpoint import open_checkpoint
from ossia.model.writer import write_checkpoint
from random_models import tiny_config

EXPERTS, PER_TOKEN, WIDTH = 24, 3, 512
EXPERT_BYTES = 3 * WIDTH * WIDTH * 17 // 32
"""Of `layers()`: about 100 pages, so that those shared with a neighbour count little."""
LARGEST_GROUP, RESERVE = 16, 16
"""As pager.cc has them: experts taken at once, and the share of the budget kept free."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model in a mapped file, 12 experts a layer, an expert of about 25 KB."""
    model = small_model(num_local_experts=12, num_experts_per_tok=3)
    folder = tmp_path_factory.mktemp("paging") / "model"
    return open_checkpoint(write_checkpoint(folder, model.config, model.part))


def budgets(config):
    one = 3 * config.hidden_size * config.intermediate_size * 17 // 32
    return 1, one, 2 * one, 5 * one, config.num_local_experts * one, 1 << 62


@pytest.mark.parametrize("in_file", [True, False], ids=["mapped", "in memory"])
@pytest.mark.parametrize("exact", [True, False])
def test_the_same_bits_at_every_budget(checkpoint, exact, in_file):
    source = checkpoint if in_file else small_model(num_local_experts=12, num_experts_per_tok=3)
    documents = random_documents(source, (30, 9))
    lengths = [len(document) for document in documents]
    whole = Prepared.of(source, exact=exact)
    prefilled = whole.uncached(documents)  # all 12 experts are active at once
    decoded = whole.in_steps(documents, in_chunks(lengths, 1))
    for budget in budgets(source.config):
        paged = Prepared.of(source, exact=exact, expert_bytes=budget)
        for _ in range(2):  # the second time after everything was let go once
            for actual, expected in zip(paged.uncached(documents), prefilled, strict=True):
                np.testing.assert_array_equal(actual, expected)
        steps = paged.in_steps(documents, in_chunks(lengths, 1))
        for actual, expected in zip(steps, decoded, strict=True):
            np.testing.assert_array_equal(actual, expected)
        counts = paged.kernels.paged_experts()
        assert counts["misses"] > 0 and counts["hits"] + counts["misses"] > 0


# -- Layers whose routing the test decides -----------------------------------------------------


class Layers:
    """MoE layers in one mapped file. A token is given by the experts that it shall go to: it is 1
    in their columns, and the router passes the first columns through.
    """

    def __init__(self, path: Path, count: int, budget: int | None) -> None:
        self.kernels = NativeKernels(num_threads=1, expert_bytes=budget)
        self.dims = tiny_config(
            num_local_experts=EXPERTS,
            num_experts_per_tok=PER_TOKEN,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
        ).dims()
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(mapped, np.uint8)
        self.weights = self.prepared(self.kernels, count)

    def prepared(self, kernels: NativeKernels, count: int):
        self._at = 0
        return [kernels.prepare(Part.MOE, self._tensors(), self.dims) for _ in range(count)]

    def _tensors(self):
        found = {}
        for name, shape in part_shapes(Part.MOE, self.dims).items():
            if name in ("gate_up", "down"):
                groups = (*shape[:-1], shape[-1] // 32)
                found[name] = Mxfp4Tensor(self._take((*groups, 16)), self._take(groups))
            elif name == "router":
                found[name] = np.eye(*shape, dtype=ml_dtypes.bfloat16)
            else:
                found[name] = np.full(shape, name == "norm", ml_dtypes.bfloat16)
        return found

    def _take(self, shape):
        begin, self._at = self._at, self._at + int(np.prod(shape))
        return self._bytes[begin : self._at].reshape(shape)

    def run(self, layer: int, tokens: list[list[int]]) -> np.ndarray:
        table = np.zeros((len(tokens), WIDTH), np.float32)
        for token, experts in enumerate(tokens):
            table[token, experts] = 1
        dims = tiny_config(vocab_size=len(tokens), hidden_size=WIDTH).dims()
        rows = self.kernels.prepare(Part.EMBEDDING, {"weight": table}, dims)
        x = self.kernels.embed(np.arange(len(tokens), dtype=np.int32), rows)
        return self.kernels.to_host(self.kernels.moe(x, self.weights[layer])).copy()


def write_layers(path: Path, count: int) -> None:
    """Blocks at random, every scale 2^-7, on the disk and not in the page cache."""
    rng = np.random.default_rng(0)
    pairs = EXPERTS * WIDTH * WIDTH // 32
    with path.open("wb") as file:
        for _ in range(count):
            for groups in (2 * pairs, pairs):
                file.write(rng.bytes(16 * groups))
                file.write(np.full(groups, 120, np.uint8).tobytes())
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def random_steps(rng, layers, steps, most_tokens):
    """(layer, experts of each token), layer after layer."""
    for step in range(steps):
        tokens = int(rng.integers(1, most_tokens + 1))
        yield (
            step % layers,
            [rng.choice(EXPERTS, PER_TOKEN, replace=False).tolist() for _ in range(tokens)],
        )


class LeastRecentlyUsed:
    """What the pager should find in its hot set; the list's last is the most recently used."""

    def __init__(self, budget: int) -> None:
        self.capacity = budget - budget // RESERVE
        self.group = min(max(budget // 2 // EXPERT_BYTES, 1), LARGEST_GROUP)
        self.hot: list[tuple[int, int]] = []
        self.hits = self.misses = self._before = 0

    def run(self, layer: int, tokens: list[list[int]]) -> None:
        active = sorted({expert for experts in tokens for expert in experts})
        for at in range(0, len(active), self.group):
            named = [(layer, expert) for expert in active[at : at + self.group]]
            hits = sum(key in self.hot for key in named)
            self.hits, self.misses = self.hits + hits, self.misses + len(named) - hits
            self.hot = [key for key in self.hot if key not in named] + named
            kept = max(self.capacity // EXPERT_BYTES, len(named) + self._before)
            self.hot = self.hot[-kept:]
            self._before = len(named)


@pytest.mark.parametrize("experts", [0.5, 1, 2.5, 7, 20, 40, 47.9, 60])
@pytest.mark.parametrize("most_tokens", [1, 12], ids=["decode", "prefill"])
def test_hits_and_misses_are_those_of_least_recently_used(tmp_path, experts, most_tokens):
    write_layers(tmp_path / "experts", 2)
    budget = int(experts * EXPERT_BYTES)
    layers, model = Layers(tmp_path / "experts", 2, budget), LeastRecentlyUsed(budget)
    whole = Layers(tmp_path / "experts", 2, None)
    for layer, tokens in random_steps(np.random.default_rng(1), 2, 40, most_tokens):
        np.testing.assert_array_equal(layers.run(layer, tokens), whole.run(layer, tokens))
        model.run(layer, tokens)
        assert layers.kernels.paged_experts() == {
            "hits": model.hits,
            "misses": model.misses,
            "bytes_read": model.misses * EXPERT_BYTES,
        }
    assert model.misses and (model.hits or experts < 20)


# -- Memory ------------------------------------------------------------------------------------


def resident_bytes(path: Path) -> int:
    """Of the mappings of a file in this process."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split(maxsplit=5)
        if not name.endswith(":"):
            ours = bool(rest) and rest[-1] == str(path)
        elif ours and name == "Rss:":
            total += int(rest[0]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no smaps on this system")
@pytest.mark.parametrize("experts", [1, 6, 18])
@pytest.mark.parametrize("most_tokens", [1, 6], ids=["decode", "prefill"])
def test_mapped_experts_stay_within_the_budget(tmp_path, experts, most_tokens):
    path = tmp_path / "experts"
    write_layers(path, 3)
    layers = Layers(path, 3, experts * EXPERT_BYTES)
    budget = max(experts, 2) * EXPERT_BYTES  # the one at work, and the one read meanwhile
    # Pages shared with a neighbour stay: two for each of four ranges of every expert.
    shared = 3 * EXPERTS * 4 * 2 * mmap.PAGESIZE
    assert budget + shared < path.stat().st_size / 2, "the bound would hold by itself"
    for layer, tokens in random_steps(np.random.default_rng(2), 3, 60, most_tokens):
        layers.run(layer, tokens)
    deadline = time.monotonic() + 5  # the helper may still be at it
    while resident_bytes(path) > budget + shared and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 0 < resident_bytes(path) <= budget + shared
    everything = [list(range(e, e + PER_TOKEN)) for e in range(0, EXPERTS, PER_TOKEN)]
    whole = Layers(path, 3, None)
    for layer in range(3):
        np.testing.assert_array_equal(layers.run(layer, everything), whole.run(layer, everything))


def test_kernels_outlive_the_weights_that_they_paged(tmp_path):
    """What lay where those were is not touched by letting them go."""
    write_layers(tmp_path / "experts", 1)
    layers = Layers(tmp_path / "experts", 1, 8 * EXPERT_BYTES)
    layers.run(0, [[0, 1, 2], [3, 4, 5]])
    kernels = layers.kernels
    size = len(layers._bytes)
    del layers
    taken = [np.full(size, 7, np.uint8) for _ in range(4)]
    again = Layers(tmp_path / "experts", 1, None)
    again.kernels = kernels
    again.weights = again.prepared(kernels, 1)
    for first in range(0, EXPERTS, PER_TOKEN):
        again.run(0, [list(range(first, first + PER_TOKEN))])
    assert all((array == 7).all() for array in taken)


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan"), 2**63, 10**30, True, "6GB"], ids=repr)
def test_budgets_that_are_no_number_of_bytes_are_refused(budget):
    words = rf"expert_bytes .* whole number of bytes, from 1 to {2**63 - 1}; got {budget!r}\.$"
    with pytest.raises(UsageError, match=words.replace("+", r"\+")) as caught:
        NativeKernels(num_threads=1, expert_bytes=budget)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [1, np.int64(1), 2**63 - 1], ids=repr)
def test_budgets_at_the_limits_are_taken(budget):
    assert NativeKernels(num_threads=1, expert_bytes=budget).paged_experts()["misses"] == 0
