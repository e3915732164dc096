"""The processes that train one model together, as torchrun starts them, or this one alone.

What is to be done once (files, the vocabulary, the export) the first process does through
`World.first`: all get its result or its error, so that all take the same way and none waits for one
that is gone. All see the same folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ossia.errors import OssiaError, TrainingError, UnsupportedError

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: longer than anything that the first does alone, such as
to learn a vocabulary or to write a large checkpoint. One that ends is noticed at once."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    launched: bool = False
    """Started by torchrun, be it as the only one: the model is sharded."""

    @property
    def is_first(self) -> bool:
        """The one that prints, and writes files."""
        return self.rank == 0

    def first(self, do: Callable[[], T]) -> T:
        """What `do` returns in the first process, which alone runs it; its error is raised in
        all."""
        if not self.launched:
            return do()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = do()
            except Exception as error:
                dist.broadcast_object_list([None, _portable(error)], src=0, device=CPU)
                raise
        dist.broadcast_object_list(outcome, src=0, device=CPU)
        result, error = outcome
        if error is not None:
            raise error
        return result

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: is it set in any process?"""
        if not self.launched:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in found)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Over the processes, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.launched:
            dist.all_reduce(total)
        return total.tolist()

    def check_shards(self, shards: int) -> None:
        """Raises TrainingError when the shards of a batch are not the same number for each."""
        if shards % self.size:
            raise TrainingError(
                f"{self.size} processes cannot share the recipe's {shards} shards evenly; start "
                f"as many as divide {shards} (torchrun --nproc-per-node), or change shards in "
                "the recipe."
            )


ALONE = World()


@contextmanager
def join() -> Iterator[World]:
    """The processes that torchrun started; this one alone when none did.

    An error inside ends every process. The first one to fail raises it; in the others, which fail
    of the same or because of that one, it becomes SystemExit, so that it is told once.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    world, store = _connect()
    try:
        yield world
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        if not _first_to_fail(store):
            raise SystemExit(130 if interrupted else 1) from error
        if interrupted or not _is_lost_contact(error):
            raise
        raise TrainingError(
            f"Process {world.rank} of {world.size} lost the others ({_reason(error)}); see what "
            "ended them, then go on from the last checkpoint with --resume."
        ) from error
    dist.destroy_process_group()


def _connect() -> tuple[World, Store]:
    device, backend = CPU, "gloo"
    if torch.cuda.is_available():
        local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= count:
            raise TrainingError(
                f"Process {local + 1} of this machine has no GPU of its own: expected "
                f"--nproc-per-node {count} or fewer; or hide the GPUs (CUDA_VISIBLE_DEVICES=) to "
                "train on the CPU."
            )
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    if not dist.is_available():
        raise UnsupportedError(
            "This build of PyTorch has no torch.distributed; train in one process, without "
            "torchrun."
        )
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
        dist.init_process_group(
            backend,
            store=PrefixStore("ossia", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"The processes of the run cannot find one another ({_reason(error)}); "
            "start them with torchrun, which sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."
        ) from error
    return World(rank, size, device, launched=True), store


def _reason(error: Exception) -> str:
    """The first sentence of torch's message, without the place in its source."""
    return re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0]).split(". ")[0].rstrip(".")


def _first_to_fail(store: Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store went with the process that held it
        return True


def _portable(error: Exception) -> Exception:
    """An error that another process can read."""
    if isinstance(error, OssiaError | OSError | MemoryError):
        return error
    return TrainingError(f"{type(error).__name__}: {error}")


def _is_lost_contact(error: BaseException) -> bool:
    """Of a collective operation; gloo raises plain RuntimeErrors."""
    if isinstance(error, OssiaError):
        return False
    words = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in words for w in ("gloo", "nccl", "peer"))
    )
