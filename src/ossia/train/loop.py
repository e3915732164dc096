"""The training loop: batches in, parameters changed in place; one report per step.

A checkpoint holds all that the rest of the run depends on, so that a resumed run takes the same
steps bit for bit.
"""

from __future__ import annotations

import ctypes
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ossia.errors import TrainingError
from ossia.kernels.torch import CrossEntropy, Routing, TorchKernels
from ossia.model.transformer import Architecture, forward, prepare_weights
from ossia.train.data import Batch
from ossia.train.files import replacing
from ossia.train.optimizer import Muon
from ossia.train.parameters import Parameters
from ossia.train.recipe import Optimization, Stage, StageRecipe

DIVERGED = 1.5, 0.5
"""After the warm-up, a loss above the stage's first one times this, plus this, is no longer
training. The second part is for stages that begin well: their single steps differ by that much."""

RECENT = 10
"""Steps whose mean loss is looked at for that."""

CHECKPOINT_FORMAT = 1
"""Goes up when the order of the optimizers' parameters does not stay."""

SHARES_EVERY = 20
"""Steps between two records of the experts' shares."""


@dataclass
class Progress:
    """Where a run is. Its owner is the loop; it is saved with the parameters."""

    stage: str = ""
    step: int = 0
    """Steps of this stage."""
    seconds: float = 0.0
    """Wall-clock time of all stages and sessions so far."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """One per step, of all stages."""
    begins: dict[str, int] = field(default_factory=dict)
    """Where in `losses` each stage begins."""
    shares: list[tuple[int, float, float]] = field(default_factory=list)
    """Now and then: the steps so far, and the least and the greatest share of an expert."""

    def enter(self, stage: Stage) -> None:
        """Begin a stage, or go on with it."""
        if self.stage != stage:
            self.stage, self.step = str(stage), 0
            self.begins[self.stage] = len(self.losses)

    @property
    def first_loss(self) -> float:
        """Of this stage; infinite before there is one."""
        begin = self.begins.get(self.stage, 0)
        return self.losses[begin] if len(self.losses) > begin else math.inf

    def recent_loss(self, loss: float) -> float:
        """The mean of the stage's last steps, of which `loss` is the newest."""
        begin = max(self.begins.get(self.stage, 0), len(self.losses) - RECENT + 1)
        losses = [*self.losses[begin:], loss]
        return sum(losses) / len(losses)


@dataclass(frozen=True)
class StepReport:
    """What one step did."""

    stage: str
    step: int
    total: int
    loss: float
    """Per weighted token, in nats; without the balance loss."""
    learning_rate: float
    """Of the matrices."""
    gradient_norm: float
    tokens: int
    seconds: float
    expert_shares: tuple[float, float]
    """Of the least and the most used expert over all layers; 1 = an even share."""


@dataclass(frozen=True)
class _Part:
    """What one shard contributes to a step."""

    loss: float
    gradients: tuple[torch.Tensor, ...]
    counts_LE: torch.Tensor
    """Tokens that chose each expert, by layer."""


@dataclass(frozen=True)
class Sums:
    """Over all shards of a step."""

    loss: float
    gradient_norm: float
    counts_LE: torch.Tensor


class Trainer:
    """Parameters, their optimizers and the progress of one run."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        optimization: Optimization,
        dtype: torch.dtype,
        workers: Executor | None = None,
    ) -> None:
        """`workers`: what runs side by side; threads when left out."""
        self.parameters = parameters
        self.optimization = optimization
        self.progress = Progress()
        self._architecture = Architecture.of(parameters.config)
        self._dtype = dtype
        self._workers = workers or ThreadPoolExecutor(
            initializer=torch.set_num_threads, initargs=(1,)
        )
        matrices = sorted(parameters.matrices(), key=torch.numel)
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            # Two halves of like cost: they run side by side, one thread each.
            Muon(matrices[0::2], lr=optimization.matrix_lr),
            Muon(matrices[1::2], lr=optimization.matrix_lr),
            torch.optim.AdamW(
                parameters.others(),
                lr=optimization.other_lr,
                betas=optimization.adam_betas,
                weight_decay=0.0,
            ),
        )

    def run(
        self,
        stage: Stage,
        recipe: StageRecipe,
        batches_at: Callable[[int], Sequence[Batch]],
        *,
        report: Callable[[StepReport], None] = lambda _: None,
        save: Callable[[], None] = lambda: None,
        save_every_seconds: float = 60.0,
    ) -> bool:
        """Train to the end of a stage; `batches_at` gives the shards of a step by its number.

        True when the end was reached; False when Ctrl-C stopped it after a whole step. `save` is
        called now and then and at either end.

        Raises TrainingError, naming the step, when the loss or the gradient is not finite or the
        loss has diverged; what `save` wrote before then stays.
        """
        progress = self.progress
        progress.enter(stage)
        keep_freed_memory()
        saved = time.monotonic()
        stop = False
        with _interruptible() as interrupted, _one_thread():
            while progress.step < recipe.steps and not stop:
                started = time.monotonic()
                done = self.step(recipe, batches_at(progress.step))
                progress.seconds += time.monotonic() - started
                report(done)
                due = time.monotonic() - saved > save_every_seconds
                stop, due = self._agree(interrupted.is_set(), due)
                if due:
                    save()
                    saved = time.monotonic()
        save()
        return progress.step >= recipe.steps

    def step(self, recipe: StageRecipe, shards: Sequence[Batch]) -> StepReport:
        """One update of all parameters from batches that run side by side."""
        started = time.monotonic()
        progress = self.progress
        factor = learning_rate_factor(recipe, progress.step)
        sums = self._sum_gradients(shards, rounded=progress.stage == Stage.QUANTIZE)
        self._check(recipe, sums.loss, sums.gradient_norm)
        list(self._workers.map(partial(_update, factor=factor), self._optimizers))
        tokens = sum(shard.inputs.num_tokens for shard in shards)
        shares = _expert_shares(sums.counts_LE)
        progress.step += 1
        progress.tokens += tokens
        progress.losses.append(sums.loss)
        if len(progress.losses) % SHARES_EVERY == 1:
            progress.shares.append((len(progress.losses), *shares))
        return StepReport(
            stage=progress.stage,
            step=progress.step,
            total=recipe.steps,
            loss=sums.loss,
            learning_rate=self.optimization.matrix_lr * factor,
            gradient_norm=sums.gradient_norm,
            tokens=tokens,
            seconds=time.monotonic() - started,
            expert_shares=shares,
        )

    # ---- what ShardedTrainer does otherwise ----------------------------------------------------

    def _agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: is it set in any process?"""
        return flags

    def _sum_gradients(self, shards: Sequence[Batch], *, rounded: bool) -> Sums:
        """Sets the gradient of every parameter."""
        total_weight = sum(float(shard.weights_R.sum()) for shard in shards)
        run = partial(self._gradients, total_weight=total_weight, rounded=rounded)
        parts = list(self._workers.map(run, shards))
        gradients = parts[0].gradients
        for part in parts[1:]:
            torch._foreach_add_(gradients, part.gradients)  # type: ignore[attr-defined]
        for weight, gradient in zip(self.parameters.tensors.values(), gradients, strict=True):
            weight.grad = gradient
        return Sums(
            loss=sum(part.loss for part in parts),
            gradient_norm=torch.stack([g.norm() for g in gradients]).norm().item(),
            counts_LE=torch.stack([part.counts_LE for part in parts]).sum(0),
        )

    # ---- one shard -----------------------------------------------------------------------------

    def _gradients(self, shard: Batch, total_weight: float, rounded: bool) -> _Part:
        """Forward and backward of one shard, in its own thread; touches nothing shared."""
        kernels = TorchKernels(dtype=self._dtype, record_routing=True, widen_logits=False)
        weights = prepare_weights(
            self._architecture, kernels, self.parameters.source(rounded=rounded)
        )
        logits = forward(self._architecture, kernels, weights, shard.inputs)
        loss, objective = self._losses(logits, kernels.routing, shard, total_weight)
        gradients = torch.autograd.grad(
            objective, list(self.parameters.tensors.values()), materialize_grads=True
        )
        return _Part(loss.item(), gradients, counts_by_layer(kernels.routing))

    def _losses(
        self, logits: torch.Tensor, routing: list[Routing], shard: Batch, total_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A shard's part of the step's loss, and with it that of the balance loss: what is
        minimised."""
        targets_R = torch.from_numpy(shard.targets_R).to(logits.device)
        weights_R = torch.from_numpy(shard.weights_R / total_weight).to(logits.device)
        loss: torch.Tensor = CrossEntropy.apply(logits, targets_R, weights_R)  # type: ignore[assignment]
        share = float(shard.weights_R.sum()) / total_weight
        balance = self.optimization.balance_weight * share * balance_loss(routing)
        return loss, loss + balance

    def _check(self, recipe: StageRecipe, loss: float, gradient_norm: float) -> None:
        progress = self.progress
        first = progress.first_loss if progress.step > recipe.warmup_steps else math.inf
        recent = progress.recent_loss(loss)
        if not math.isfinite(loss):
            what = f"the loss is not finite ({loss:.3g})"
        elif not math.isfinite(gradient_norm):
            what = f"the gradient is not finite (its norm is {gradient_norm:.3g})"
        elif recent > DIVERGED[0] * first + DIVERGED[1]:
            what = (
                f"the loss has diverged ({recent:.3g} after {first:.3g} at the stage's beginning)"
            )
        else:
            return
        raise TrainingError(
            f"Step {progress.step + 1} of {progress.stage}: {what}. The last checkpoint is from "
            "before; resume it with a lower learning rate, or start over."
        )

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Everything that the rest of the run depends on, and `extra`; replaces `path` whole.

        Raises TrainingError when the disk does not take it; what was at `path` stays.
        """
        write_checkpoint(path, self._state(extra))

    def _state(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "progress": asdict(self.progress),
            "parameters": {key: t.detach() for key, t in self.parameters.tensors.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "extra": extra,
        }

    def restore(self, path: Path) -> None:
        """Raises TrainingError when `path` is no checkpoint, or one of another architecture."""
        state = load_checkpoint(path)
        ours = {key: tuple(value.shape) for key, value in self.parameters.tensors.items()}
        theirs = {key: tuple(value.shape) for key, value in state["parameters"].items()}
        if ours != theirs:
            raise TrainingError(
                f"{path}: the checkpoint is of another architecture than the recipe; resume with "
                "the recipe that made it, or start over in another folder."
            )
        self.progress = Progress(**state["progress"])
        self.progress.shares = [(n, low, high) for n, low, high in self.progress.shares]
        self._adopt(state["parameters"], state["optimizers"])

    def _adopt(
        self, parameters: dict[str, torch.Tensor], optimizers: Sequence[dict[str, Any]]
    ) -> None:
        with torch.no_grad():
            for key, value in parameters.items():
                self.parameters.tensors[key].copy_(value)
        for optimizer, saved in zip(self._optimizers, optimizers, strict=True):
            optimizer.load_state_dict(saved)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    with replacing(path) as (unfinished,):
        try:
            torch.save(state, unfinished)
        except RuntimeError as error:  # torch's writer on a full disk
            raise OSError(f"the checkpoint: {str(error).splitlines()[0]}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote. Raises TrainingError for anything else."""
    try:
        state = torch.load(path, weights_only=True)
        written = state.get("format")
        _ = state["progress"], state["parameters"], state["optimizers"], state["extra"]
    except FileNotFoundError:
        raise TrainingError(f"{path}: there is no checkpoint to resume from.") from None
    except Exception as error:  # torch.load raises whatever its parts raise
        raise TrainingError(f"{path}: this is not a checkpoint of a training run.") from error
    if written != CHECKPOINT_FORMAT:
        raise TrainingError(
            f"{path}: this checkpoint is of another version of Ossia (format {written}, expected "
            f"{CHECKPOINT_FORMAT}); go on with that version, or start over in another folder."
        )
    return state


def _update(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def learning_rate_factor(recipe: StageRecipe, step: int) -> float:
    """Of the rates at a step of a stage, counted from 0: a linear warm-up, then linear from
    `rate_from` to `rate_to`, which the step after the last would have."""
    warmup = recipe.warmup_steps
    if step < warmup:
        return recipe.rate_from * (step + 1) / warmup
    done = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.rate_from + (recipe.rate_to - recipe.rate_from) * done


def balance_loss(routing: list[Routing]) -> torch.Tensor:
    """Sum over layers of E · Σ_e (share of the assignments of e) · (mean probability of e): the
    number of layers when even. Source: Fedus et al., Switch Transformer (arXiv 2101.03961),
    equation 4.
    """
    layers = [
        len(r.counts_E) * (r.counts_E / r.counts_E.sum() * r.probabilities_TE.mean(0)).sum()
        for r in routing
    ]
    return torch.stack(layers).sum()


def counts_by_layer(routing: list[Routing]) -> torch.Tensor:
    """[L, E]: tokens that chose each expert."""
    return torch.stack([layer.counts_E for layer in routing])


def _expert_shares(counts_LE: torch.Tensor) -> tuple[float, float]:
    shares = counts_LE / counts_LE.sum(-1, keepdim=True) * counts_LE.shape[-1]
    return shares.min().item(), shares.max().item()


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's own threads wait for one another by spinning, a hundred times a step, which is slow
    wherever something else runs too; the workers keep the cores busy without them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
        torch.mm(matrix, matrix)
        return time.perf_counter() - started

    # In turns, and the best of each: whatever else the machine does must not decide.
    times = [(seconds(torch.bfloat16), seconds(torch.float32)) for _ in range(12)]
    return "bfloat16" if min(t[0] for t in times) < min(t[1] for t in times) else "float32"
