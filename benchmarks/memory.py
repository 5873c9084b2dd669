"""Peak memory of one step: PyTorch's own counts, on a GPU from its allocator, on a CPU from its profiler; called by measure."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from rdk import testing


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that tensors held at once during run(), beyond what they held before it."""
    if device.type != "cuda":
        return testing.peak_bytes(run)
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
