"""The device of a run, and the communication between its processes when torchrun starts several."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Process:
    """This process: its rank, the number of processes, and its device."""

    rank: int
    world: int
    device: torch.device


@contextmanager
def process_group(device: str = "auto") -> Iterator[Process]:
    """Join the processes that torchrun started, or run as a single process. device: see TrainConfig.

    Raises ValueError if the device cannot be used.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        torch_device = torch.device(device)
        torch.zeros(1, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from error
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    if world > 1:
        dist.init_process_group("nccl" if torch_device.type == "cuda" else "gloo")
    try:
        yield Process(rank, world, torch_device)
    finally:
        if world > 1:
            dist.destroy_process_group()


def sum_over_ranks(values: torch.Tensor, process: Process) -> torch.Tensor:
    """Sum a tensor over all processes."""
    values = values.clone()
    if process.world > 1:
        dist.all_reduce(values)
    return values


def max_over_ranks(number: int, process: Process) -> int:
    """The maximum of a number over all processes."""
    if process.world == 1:
        return number
    numbers = torch.tensor(number, device=process.device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers)


def barrier(process: Process) -> None:
    """Wait until all processes have reached this point."""
    max_over_ranks(0, process)


def broadcast_value(value: T, process: Process) -> T:
    """The value that rank 0 passes, on all processes. It must be possible to pickle it."""
    values = [value]
    if process.world > 1:
        dist.broadcast_object_list(values, src=0, device=process.device)
    return values[0]


@torch.no_grad()
def broadcast(models: Sequence[nn.Module], process: Process) -> None:
    """Copy the weights and buffers of rank 0 to all processes, before the models are wrapped or sharded."""
    if process.world > 1:
        for model in models:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, src=0)


@torch.no_grad()
def average_buffers(models: Sequence[nn.Module], process: Process) -> None:
    """Average the batch-norm statistics of `models` over processes, so that all have the same networks."""
    buffers = [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]
    if process.world == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    parts = torch.split(flat / process.world, [buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def gather(values: torch.Tensor, process: Process) -> torch.Tensor:
    """Concatenate the rows of all processes by rank. Processes may have different numbers of rows."""
    if process.world == 1:
        return values
    longest = max_over_ranks(len(values), process)
    padded = torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(process.world)]
    dist.all_gather(parts, padded.contiguous())
    rows = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(process.world)]
    dist.all_gather(rows, torch.tensor([len(values)], device=values.device))
    return torch.cat([part[: int(count)] for part, count in zip(parts, rows, strict=True)])


def gather_features(values: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all processes by rank, with gradients. All processes have the same number of rows.

    The gradient of a process's rows is the sum of those that all processes compute for them.
    """
    if not dist.is_initialized():
        return values
    if not values.requires_grad:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(values.contiguous()))  # type: ignore[no-untyped-call]


def own_rows(values: torch.Tensor) -> torch.Tensor:
    """Where the rows of this process are among those of all processes: (n,) int64."""
    first = dist.get_rank() * len(values) if dist.is_initialized() else 0
    return torch.arange(first, first + len(values), device=values.device)


def shard_model(model: nn.Module, process: Process, dtype: torch.dtype) -> None:
    """Shard the weights of a model over the processes, block by block (FSDP2).

    A block is an element of a sequence or list among the model's parts, such as a stage of a ResNet or a layer of a
    vision transformer. Its weights are gathered while it computes, in `dtype`; each process holds its part of them,
    and sums gradients, in fp32. Batch normalisation takes its weights in fp32 only.
    """
    mesh = init_device_mesh(process.device.type, (process.world,))
    half = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    full = MixedPrecisionPolicy()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            fully_shard(module, mesh=mesh, mp_policy=full)
    parts = [child for module in model.children() for child in module.children()]
    for part in parts:
        for block in part.children() if isinstance(part, nn.Sequential | nn.ModuleList) else ():
            if len(list(block.children())) > 0:
                fully_shard(block, mesh=mesh, mp_policy=half)
    fully_shard(model, mesh=mesh, mp_policy=half, reshard_after_forward=True)


def sync_gradients(model: nn.Module, enabled: bool) -> None:
    """Set whether the next backward pass of a parallel model exchanges gradients between processes."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = enabled
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)


def unsharded(state: Any) -> Any:
    """Copy the tensors of a nested state to the host, with all parts of those that are sharded.

    All processes must call this function if tensors are sharded. Copies from a GPU go to pinned memory and may not be
    complete before the GPU is synchronised.
    """
    if isinstance(state, torch.Tensor):
        value = state.full_tensor() if isinstance(state, DTensor) else state.detach()
        return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value, non_blocking=value.is_cuda)
    if isinstance(state, dict):
        return {key: unsharded(value) for key, value in state.items()}
    return state


def local_tensor(value: torch.Tensor) -> torch.Tensor:
    """The part of a tensor on this process. Networks of one kind are sharded in the same way."""
    return value.to_local() if isinstance(value, DTensor) else value


def sharded_like(values: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """Shard a full tensor in the same way as `pattern`."""
    if not isinstance(pattern, DTensor):
        return values
    return distribute_tensor(values.to(pattern.device), pattern.device_mesh, pattern.placements)
