"""The training loop: batches in, parameters changed in place; one report per step.

The rate's decay starts when the clock, or the number of steps, says so; from then on the number of
steps is fixed. A checkpoint holds all that the rest of the run depends on, so that a resumed run
takes the same steps bit for bit.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ossia.errors import TrainingError
from ossia.kernels.torch import Routing, TorchKernels
from ossia.model.transformer import Architecture, forward, prepare_weights
from ossia.train.data import Batch
from ossia.train.optimizer import Muon
from ossia.train.parameters import Parameters
from ossia.train.recipe import Optimization, Schedule

DIVERGED = 1.5
"""A loss this many times above the first one, after the warm-up, is no longer training."""

ROUNDED_STEP_COST = 1.15
"""A step on rounded weights takes this much longer; known before the first one is run."""


@dataclass
class Progress:
    """Where a run is. Its owner is the loop; it is saved with the parameters."""

    step: int = 0
    seconds: float = 0.0
    """Wall-clock time of all sessions so far."""
    decay_from: int | None = None
    total: int | None = None
    """Steps in all, once known."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)

    def decayed(self) -> float:
        """0 before the decay, 1 at its end."""
        if self.decay_from is None or self.total is None:
            return 0.0
        length = max(1, self.total - self.decay_from)
        return min(1.0, max(0.0, (self.step - self.decay_from) / length))

    @property
    def finished(self) -> bool:
        return self.total is not None and self.step >= self.total


@dataclass(frozen=True)
class StepReport:
    """What one step did."""

    step: int
    total: int | None
    loss: float
    """Per weighted token, in nats; without the balance loss."""
    learning_rate: float
    """Of the matrices."""
    tokens: int
    seconds: float
    expert_shares: tuple[float, float]
    """Of the least and the most used expert over all layers; 1 = an even share."""
    rounded: bool


@dataclass(frozen=True)
class _Part:
    """What one shard contributes to a step."""

    loss: float
    gradients: tuple[torch.Tensor, ...]
    routing: list[Routing]


class Trainer:
    """Parameters, their optimizers and the progress of one run."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        optimization: Optimization,
        schedule: Schedule,
        dtype: torch.dtype,
    ) -> None:
        self.parameters = parameters
        self.optimization = optimization
        self.schedule = schedule
        self.progress = Progress()
        self._architecture = Architecture.of(parameters.config)
        self._dtype = dtype
        self._workers = ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,))
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(parameters.matrices(), lr=optimization.matrix_lr),
            torch.optim.AdamW(
                parameters.others(),
                lr=optimization.other_lr,
                betas=optimization.adam_betas,
                weight_decay=0.0,
            ),
        )

    def run(
        self,
        batches_at: Callable[[Progress], Sequence[Batch]],
        *,
        seconds: float | None = None,
        steps: int | None = None,
        report: Callable[[StepReport], None] = lambda _: None,
        save: Callable[[], None] = lambda: None,
        save_every_seconds: float = 60.0,
    ) -> bool:
        """Train to the end of `steps`, or of `seconds` of wall-clock time (all sessions counted).

        True when the end was reached; False when Ctrl-C stopped it after a whole step. `save` is
        called now and then and at either end.

        Raises TrainingError, naming the step, when the loss is not finite or has diverged; what
        `save` wrote before then stays.
        """
        progress = self.progress
        if steps is not None and progress.total is None:
            progress.total = steps
            progress.decay_from = round(steps * (1 - self.schedule.decay_share))
        keep_freed_memory()
        saved = time.monotonic()
        with _interruptible() as interrupted:
            while not progress.finished and not interrupted.is_set():
                started = time.monotonic()
                done = self.step(batches_at(progress))
                progress.seconds += time.monotonic() - started
                if seconds is not None:
                    self._plan(seconds)
                report(done)
                if time.monotonic() - saved > save_every_seconds:
                    save()
                    saved = time.monotonic()
        save()
        return progress.finished

    def _plan(self, seconds: float) -> None:
        """Fix the number of steps once the clock says that the decay has to begin."""
        progress, share = self.progress, self.schedule.decay_share
        if progress.total is not None or progress.seconds < seconds * (1 - share):
            return
        rounded_share = 1 - self.schedule.quantize_from
        cost = 1 + (ROUNDED_STEP_COST - 1) * rounded_share
        left = max(0.0, seconds - progress.seconds)
        progress.decay_from = progress.step
        progress.total = progress.step + int(left / (progress.seconds / progress.step * cost))

    def step(self, shards: Sequence[Batch]) -> StepReport:
        """One update of all parameters from batches that run side by side."""
        started = time.monotonic()
        progress, schedule = self.progress, self.schedule
        decayed = progress.decayed()
        rounded = decayed > schedule.quantize_from
        factor = min(1.0, (progress.step + 1) / schedule.warmup_steps) * (1 - decayed)

        total_weight = sum(float(shard.weights_R.sum()) for shard in shards)
        run = partial(self._gradients, total_weight=total_weight, rounded=rounded)
        parts = list(self._workers.map(run, shards))
        value = sum(part.loss for part in parts)
        self._check(value)
        for i, weight in enumerate(self.parameters.tensors.values()):
            weight.grad = torch.stack([part.gradients[i] for part in parts]).sum(0)
        rates = (self.optimization.matrix_lr, self.optimization.other_lr)
        for optimizer, rate in zip(self._optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens = sum(shard.inputs.num_tokens for shard in shards)
        progress.step += 1
        progress.tokens += tokens
        progress.losses.append(value)
        return StepReport(
            step=progress.step,
            total=progress.total,
            loss=value,
            learning_rate=rates[0] * factor,
            tokens=tokens,
            seconds=time.monotonic() - started,
            expert_shares=_expert_shares([part.routing for part in parts]),
            rounded=rounded,
        )

    def _gradients(self, shard: Batch, total_weight: float, rounded: bool) -> _Part:
        """Forward and backward of one shard, in its own thread; touches nothing shared."""
        kernels = TorchKernels(dtype=self._dtype, record_routing=True)
        weights = prepare_weights(
            self._architecture, kernels, self.parameters.source(rounded=rounded)
        )
        logits = forward(self._architecture, kernels, weights, shard.inputs)
        loss = _cross_entropy(logits, shard) / total_weight
        share = float(shard.weights_R.sum()) / total_weight
        balance = self.optimization.balance_weight * share * balance_loss(kernels.routing)
        gradients = torch.autograd.grad(
            loss + balance, list(self.parameters.tensors.values()), materialize_grads=True
        )
        return _Part(loss.item(), gradients, kernels.routing)

    def _check(self, loss: float) -> None:
        progress = self.progress
        first = progress.losses[0] if progress.step > self.schedule.warmup_steps else math.inf
        if not math.isfinite(loss) or loss > DIVERGED * first:
            what = "is not finite" if not math.isfinite(loss) else "has diverged"
            raise TrainingError(
                f"Step {progress.step + 1}: the loss {what} ({loss:.3g}). The last checkpoint is "
                "from before; resume it with a lower learning rate, or start over."
            )

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Everything that the rest of the run depends on, and `extra`; replaces `path` whole."""
        state = {
            "progress": asdict(self.progress),
            "parameters": {key: t.detach() for key, t in self.parameters.tensors.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "extra": extra,
        }
        unfinished = path.with_suffix(".partial")
        try:
            torch.save(state, unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        self.progress = Progress(**state["progress"])
        with torch.no_grad():
            for key, value in state["parameters"].items():
                self.parameters.tensors[key].copy_(value)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `Trainer.save` wrote. Raises TrainingError for anything else."""
    try:
        return torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: there is no checkpoint to resume from.") from None
    except Exception as error:  # torch.load raises whatever its parts raise
        raise TrainingError(f"{path}: this is not a checkpoint of a training run.") from error


def balance_loss(routing: list[Routing]) -> torch.Tensor:
    """Mean over layers of E · Σ_e (share of the assignments of e) · (mean probability of e): 1 when
    even. Source: Fedus et al., Switch Transformer (arXiv 2101.03961), equation 4.
    """
    layers = [
        len(r.counts_E) * (r.counts_E / r.counts_E.sum() * r.probabilities_TE.mean(0)).sum()
        for r in routing
    ]
    return torch.stack(layers).mean()


def _expert_shares(shards: Sequence[Sequence[Routing]]) -> tuple[float, float]:
    counts_LE = sum(torch.stack([layer.counts_E for layer in shard]) for shard in shards)
    assert isinstance(counts_LE, torch.Tensor)
    shares = counts_LE / counts_LE.sum(-1, keepdim=True) * counts_LE.shape[-1]
    return shares.min().item(), shares.max().item()


def _cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum over the rows, by their weights."""
    losses = F.cross_entropy(logits, torch.from_numpy(batch.targets_R), reduction="none")
    return (losses * torch.from_numpy(batch.weights_R)).sum()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a step is finished and saved; a second one
    interrupts at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread may handle signals
        return

    def handle(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def keep_freed_memory() -> None:
    """glibc gives large freed blocks back to the kernel, and every step then pays for the page
    faults of getting them again: a third of a step's time at this size (benchmarks/LOG.md). Other C
    libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4  # <malloc.h>
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def fastest_dtype() -> str:
    """bfloat16 where this machine multiplies it faster than float32, as with AVX-512 BF16 or AMX;
    float32 elsewhere, where bfloat16 is emulated."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype)
        torch.mm(matrix, matrix)  # the first product sets things up
        started = time.perf_counter()
        for _ in range(4):
            torch.mm(matrix, matrix)
        return time.perf_counter() - started

    return "bfloat16" if seconds(torch.bfloat16) < seconds(torch.float32) else "float32"
