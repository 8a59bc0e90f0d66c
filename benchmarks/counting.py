"""Kernels, bytes and blocking copies of PyTorch code, counted without a GPU.

A device tensor is a fake one: it has a shape and a CUDA device, but no memory. Host tensors are real, so code that
draws numbers runs as it is. Each operation that computes on the device counts as one kernel, which reads its inputs and
writes its outputs once. This is exact for elementwise operations and a lower limit for others. Operations inside a
backward pass cannot be counted in this way, since autograd needs a real device for its threads.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geokr.encoder import to_unit, unit_scale
from geokr.loading.device import send, send_batch
from geokr.loading.loader import Batch
from geokr.pretraining.augment import draw_maps
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.learner import Learner, train_step
from geokr.pretraining.optimiser import make_optimiser
from geokr.pretraining.render import InputFormat, make_input_format, render

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
ALLOCATIONS = ("aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view", "aten::lift", "aten::set_")
"""Beginnings of the names of operations that launch no kernel, besides views."""


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs device code on fake CUDA tensors, and counts what it would do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.pinned: list[torch.Tensor] = []
        """Tensors in pinned host memory."""
        self.kernels: list[tuple[str, int]] = []
        """Name of each kernel's operation, and the bytes that it reads and writes."""
        self.blocking: list[str] = []
        """Operations for which the host waits for all kernels before them."""
        self._no_driver = mock.patch.object(torch.cuda, "_lazy_init", return_value=None)

    def __enter__(self) -> "Counter":
        self._no_driver.start()
        # Lists become host tensors first, whose copies to the device are then seen here.
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch._C._set_only_lift_cpu_tensors(False)
        self._no_driver.stop()

    @property
    def moved_bytes(self) -> int:
        return sum(size for _, size in self.kernels)

    def on_device(self, values: torch.Tensor) -> torch.Tensor:
        """A device tensor like a real one."""
        with self.fake:
            return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=CUDA)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        match func:
            case aten.is_pinned.default:
                return self._is_pinned(args[0])
            case aten._pin_memory.default | aten.pin_memory.default:
                self.pinned.append(copied := args[0].clone())
                return copied
            case torch.ops.prim.device.default:
                return func(*args, **kwargs)
        fakes = [value for value in inputs if isinstance(value, FakeTensor)]
        if not fakes and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            return func(*args, **kwargs)
        name = func._schema.name
        if func is aten._local_scalar_dense.default or func is aten.nonzero.default:
            self.blocking.append(name)
        if func is aten._local_scalar_dense.default:
            return 1.0
        with self.fake:
            result = func(*args, **kwargs)
        flags = [value for value in args if isinstance(value, bool)]  # copy_ takes non_blocking by position
        outputs = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        self._count(name, func, inputs, outputs, True in (kwargs.get("non_blocking"), *flags))
        return result

    def _count(
        self, name: str, func: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor], non_blocking: bool
    ) -> None:
        # Operations take single numbers from the host as arguments of their kernels, without a copy.
        copies = name in ("aten::copy_", "aten::_to_copy")
        host = [value for value in inputs if value.device.type == "cpu" and (value.ndim or copies)]
        to_host = any(value.device.type == "cpu" for value in outputs)
        if to_host or any(not (non_blocking and self._is_pinned(value)) for value in host):
            self.blocking.append(name)
        if host or to_host or func.is_view or name.startswith(ALLOCATIONS):
            return
        unique = {id(value): value for value in [*inputs, *outputs]}
        self.kernels.append((name, sum(_size(value) for value in unique.values())))

    def _is_pinned(self, values: torch.Tensor) -> bool:
        return any(values is tensor for tensor in self.pinned)


def _size(values: torch.Tensor) -> int:
    """Bytes of a tensor in memory: an expanded dimension counts once."""
    size = values.element_size()
    for length, stride in zip(values.shape, values.stride(), strict=True):
        size *= length if stride else 1
    return size


def count_step(learner: Learner, batch: Batch) -> Counter:
    """Count a step of a learner, whose state is lost, on a batch in pinned host memory. Its backward pass is left out:
    parameters get gradients that are not computed."""
    counter = Counter()
    for network in learner.objective.networks.values():
        _move_network(network, counter)
    for field in fields(learner):
        if isinstance(values := getattr(learner, field.name), torch.Tensor):
            setattr(learner, field.name, counter.on_device(values))
    learner.form = _move_fields(learner.form, counter)
    learner.process = replace(learner.process, device=CUDA)
    learner.optimiser = make_optimiser(learner.student, learner.config)
    counter.pinned = [
        values for field in fields(batch) if isinstance(values := getattr(batch, field.name), torch.Tensor)
    ]

    def backward(*arguments: Any, **options: Any) -> None:
        for parameter in learner.student.parameters():
            parameter.grad = counter.on_device(parameter.detach())

    with mock.patch.object(torch.Tensor, "backward", backward), counter:
        train_step(learner, send_batch(batch, CUDA))
    return counter


def count_view(config: TrainConfig, tiles: int, side: int) -> Counter:
    """Count a view of uint8 tiles, written in bf16. side: of a tile, px."""
    counter, bands = Counter(), len(config.bands)
    plain, unit = [0.0] * bands, [1.0] * bands
    form = make_input_format(config.image_size, plain, unit, torch.bfloat16, torch.device("cpu"), config.channels_last)
    form = _move_fields(form, counter)
    scale = [counter.on_device(values) for values in unit_scale([0.0] * bands, [255.0] * bands)]
    image = counter.on_device(torch.empty(tiles, bands, side, side, dtype=torch.uint8, device="meta"))
    with counter:
        render(to_unit(image, *scale), send(draw_maps(tiles, config, unit, seed=0), CUDA), form)
    return counter


def _move_fields(form: InputFormat, counter: Counter) -> InputFormat:
    values = {field.name: getattr(form, field.name) for field in fields(form)}
    moved: dict[str, Any] = {
        name: counter.on_device(value) for name, value in values.items() if isinstance(value, torch.Tensor)
    }
    return replace(form, **moved)


def _move_network(network: nn.Module, counter: Counter) -> None:
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = counter.on_device(parameter.detach())
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = counter.on_device(buffer)
