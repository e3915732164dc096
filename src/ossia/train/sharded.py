"""Training on several devices: `Trainer` with parameters that FSDP2 shards over the processes.

Each process runs the forward pass on its own shards of the batch; a layer's parameters are gathered
when it runs and freed after it. One more surprise: gradients are summed, not averaged as FSDP does
by itself, so that the steps are those that one process takes.

Legend: L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from ossia.errors import UnsupportedError
from ossia.kernels.interface import Part, Weight
from ossia.kernels.torch import TorchKernels
from ossia.model.inputs import ForwardInput
from ossia.model.transformer import Architecture, LayerWeights, layer_forward
from ossia.train.data import Batch
from ossia.train.distributed import World
from ossia.train.loop import Sums, Trainer, counts_by_layer, write_checkpoint
from ossia.train.optimizer import orthogonalize
from ossia.train.parameters import Parameters, layer_of
from ossia.train.recipe import Optimization


class ShardedTrainer(Trainer):
    """Trains as `Trainer` does. Every process makes one and calls the same methods in the same
    order; checkpoints are whole, and can be gone on with by any number of processes."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        optimization: Optimization,
        dtype: torch.dtype,
        world: World,
    ) -> None:
        self._world = world
        self._model = _Model(parameters, world.device)
        _shard(self._model, world)
        super().__init__(
            Parameters(parameters.config, {k: self._model.tensor(k) for k in parameters.tensors}),
            optimization=optimization,
            dtype=dtype,
            workers=_InOrder(),
        )

    def _agree(self, *flags: bool) -> tuple[bool, ...]:
        return self._world.any(*flags)

    def _sum_gradients(self, shards: Sequence[Batch], *, rounded: bool) -> Sums:
        world, config = self._world, self.parameters.config
        world.check_shards(len(shards))
        total_weight = sum(float(shard.weights_R.sum()) for shard in shards)
        losses = [0.0] * len(shards)
        counts_LE = torch.zeros(config.num_hidden_layers, config.num_local_experts)
        for i in range(world.rank, len(shards), world.size):
            kernels = TorchKernels(
                world.device, self._dtype, record_routing=True, widen_logits=False
            )
            logits, _ = self._model(kernels, shards[i].inputs, rounded)
            loss, objective = self._losses(logits, kernels.routing, shards[i], total_weight)
            objective.backward()
            losses[i] = loss.item()
            counts_LE += counts_by_layer(kernels.routing).cpu()
        norms = [_local(weight.grad).norm() for weight in self.parameters.tensors.values()]
        square = torch.stack(norms).square().sum().item()
        # One exchange; a loss stands in its shard's place, so that all add them in one order.
        total = world.sum([square, *losses, *counts_LE.flatten().tolist()])
        return Sums(
            loss=sum(total[1 : 1 + len(shards)]),
            gradient_norm=total[0] ** 0.5,
            counts_LE=torch.tensor(total[1 + len(shards) :]).view_as(counts_LE),
        )

    def save(self, path, extra) -> None:
        """As of `Trainer`; gathers every tensor, and the first process writes."""
        state = _whole(self._state(extra), keep=self._world.is_first)
        self._world.first(lambda: write_checkpoint(path, state))

    def _adopt(
        self, parameters: Mapping[str, Tensor], optimizers: Sequence[dict[str, Any]]
    ) -> None:
        ours = self.parameters.tensors
        super()._adopt(
            {key: _part_of(value, ours[key]) for key, value in parameters.items()},
            [_part_of_state(o, s) for o, s in zip(self._optimizers, optimizers, strict=True)],
        )


class _InOrder(Executor):
    """One thing after another, for each may talk to the other processes."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


# ---- the modules that FSDP shards ----------------------------------------------------------------


class _Unit(nn.Module):
    """Parameters that FSDP gathers and frees together: whole inside `forward`, sharded outside."""

    def __init__(self, parameters: Parameters, layer: int | None, device: torch.device) -> None:
        super().__init__()
        self._config = parameters.config
        self.architecture = Architecture.of(parameters.config)
        self._keys = [key for key in parameters.tensors if layer_of(key) == layer]
        for key in self._keys:
            value = nn.Parameter(parameters.tensors[key].detach().to(device))
            self.register_parameter(_attribute(key), value)

    def own(self) -> Parameters:
        return Parameters(self._config, {k: getattr(self, _attribute(k)) for k in self._keys})


class _Layer(_Unit):
    def __init__(self, parameters: Parameters, layer: int, device: torch.device) -> None:
        super().__init__(parameters, layer, device)
        self._layer = layer

    def forward(
        self, kernels: TorchKernels, x: Tensor, inputs: ForwardInput, rounded: bool
    ) -> tuple[Tensor, Tensor]:
        """x, and what the balance loss reads: FSDP has to know of all that gradients come in by."""
        source = self.own().source(rounded=rounded)
        attention, moe = (
            kernels.prepare(part, source(part, self._layer), self.architecture.dims)
            for part in (Part.ATTENTION, Part.MOE)
        )
        weights = LayerWeights(attention, moe)
        x = layer_forward(self.architecture, kernels, weights, self._layer, x, inputs)
        return x, kernels.routing[-1].probabilities_TE


class _Model(_Unit):
    """Embedding and head are its own."""

    def __init__(self, parameters: Parameters, device: torch.device) -> None:
        super().__init__(parameters, None, device)
        count = parameters.config.num_hidden_layers
        self.layers = nn.ModuleList(_Layer(parameters, n, device) for n in range(count))

    def forward(
        self, kernels: TorchKernels, inputs: ForwardInput, rounded: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """`model.transformer.forward`, layer by layer: the logits; the routers' probabilities."""
        source = self.own().source(rounded=rounded)
        embedding: Weight = kernels.prepare(
            Part.EMBEDDING, source(Part.EMBEDDING, None), self.architecture.dims
        )
        head: Weight = kernels.prepare(Part.HEAD, source(Part.HEAD, None), self.architecture.dims)
        x = kernels.embed(inputs.ids_T, embedding)
        probabilities: list[Tensor] = []
        for layer in self.layers:
            x, probabilities_TE = layer(kernels, x, inputs, rounded)
            probabilities.append(probabilities_TE)
        return kernels.logits(x, head, inputs.logit_rows), probabilities

    def tensor(self, key: str) -> Tensor:
        layer = layer_of(key)
        return getattr(self if layer is None else self.layers[layer], _attribute(key))


def _shard(model: _Model, world: World) -> None:
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UnsupportedError(
            f"Training on several processes needs PyTorch 2.9 or newer; this is "
            f"{torch.__version__}."
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    for unit in (*model.layers, model):  # the root last: it takes what is left
        sharded = fully_shard(unit, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def _attribute(key: str) -> str:
    return key.replace(".", "-")  # a module's names hold no dots


# ---- tensors of which each process holds a part --------------------------------------------------


@orthogonalize.register
def _orthogonalize_sharded(matrix: DTensor) -> Tensor:
    """Stacks are sharded between their matrices, so that each process has whole ones; a single
    matrix is gathered, and every process does the same work on it."""
    if matrix.ndim > 2:
        return DTensor.from_local(
            orthogonalize(matrix.to_local()),
            matrix.device_mesh,
            matrix.placements,
            run_check=False,
            shape=matrix.shape,
            stride=matrix.stride(),
        )
    return _part_of(orthogonalize(matrix.full_tensor()), matrix)


def _part_of(whole: Tensor, like: Tensor) -> Tensor:
    """`whole`, which every process has, sharded as `like` is: nothing is sent."""
    assert isinstance(like, DTensor)
    replicated = DTensor.from_local(
        whole.to(like.device), like.device_mesh, [Replicate()], run_check=False
    )
    return replicated.redistribute(placements=like.placements)


def _part_of_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state with its tensors sharded as their parameters are."""
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        i: {
            name: _part_of(value, parameters[i]) if value.shape == parameters[i].shape else value
            for name, value in values.items()
        }
        for i, values in saved["state"].items()
    }
    return {**saved, "state": state}


def _whole(value: Any, *, keep: bool) -> Any:
    """Gathers the tensors in nested dicts and lists, and forgets them where they are not kept."""
    if isinstance(value, DTensor):
        gathered = value.full_tensor()
        return gathered.cpu() if keep else None
    if isinstance(value, dict):
        return {key: _whole(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item, keep=keep) for item in value]
    return value


def _local(value: Tensor | None) -> Tensor:
    assert isinstance(value, DTensor)
    return value.to_local()
