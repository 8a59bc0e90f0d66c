"""Batches on the device: copied from pinned memory on a stream of their own, one ahead of the step that needs them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from geokr.loading.loader import Batch


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy values from host memory to the device. The host does not wait for a GPU, neither before nor after."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # returns the same tensor if it is pinned already
    return values.to(device, non_blocking=True)


def send_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy all tensors of a batch to the device."""
    return replace(batch, **{name: send(values, device) for name, values in batch.arrays().items()})


def device_batches(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Iterate over batches on the device. A GPU copies the next batch while it computes the step of the last one."""
    if device.type != "cuda":
        for batch in batches:
            yield send_batch(batch, device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = send_batch(batch, device)
        done = stream.record_event()
        if ahead is not None:
            yield _take(*ahead, device)
        ahead = copied, done
    if ahead is not None:
        yield _take(*ahead, device)


def _take(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """Let the current stream, but not the host, wait for the copies, and keep their memory until it has used them."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for values in batch.arrays().values():
        values.record_stream(current)
    return batch
