"""Bytes that plain PyTorch holds at its peak beside states and tapes, its convolutions' own included; for the planner, called by
eager and preview."""

from __future__ import annotations

from functools import lru_cache

import torch

from rdk.backends.base import Problem

# maps that plain autograd holds at its peak beside those it keeps: a sum, its gradient, copies in the other memory layout
PLAIN_MAPS = 4
# elements of one image up to which PyTorch leaves a float32 convolution to its own columns
COLUMNS_ELEMENTS = 20480
# oneDNN pads channels to multiples of this
BLOCK = 16
# float32 sums of a half-typed weight gradient at most, where threads can share them out by blocks of channels, and threads for
# one more; measured with 1 to 64 threads
SHARED_SUMS, THREADS_OF_A_SUM = 4, 16


def peak_bytes(problem: Problem) -> int:
    """A stage's input, sum and result, or their gradients, and a copy of input and output in the other memory layout;
    the open skips and their gradients; with norm the stages' inputs built again; for half types the inject's gradient summed in
    float32. Beside maps: what `_product_bytes` counts, and, for half types, parameter gradients summed in float32."""
    stages = len(problem.stages)
    maps = 5 + (2 if any(stage.skip is not None for stage in problem.stages) else 0) + (stages if problem.norm else 0)
    sums = 0
    if problem.dtype.itemsize < 4:
        maps += 4 // problem.dtype.itemsize if problem.inject else 0
        weight = problem.channels**2 * (9 if problem.kind == "conv" else 1)
        sums = 4 * weight * stages * (1 if problem.tied else problem.iterations)
    return maps * problem.map_bytes + _product_bytes(problem) + sums


def plain_bytes(problem: Problem) -> int:
    """As peak_bytes, where autograd differentiates the plain loop."""
    maps = PLAIN_MAPS - (2 if _columns_bytes(problem) else 0)  # columns are of any layout: no copies
    return maps * problem.map_bytes + _product_bytes(problem)


def _product_bytes(problem: Problem) -> int:
    """Products with the weight in PyTorch's own layout, and, on a CPU, what PyTorch's convolution holds inside."""
    item, channels = problem.dtype.itemsize, problem.channels
    if problem.kind == "linear":
        return 3 * channels**2 * item
    columns = _columns_bytes(problem)
    if columns:
        return 18 * channels**2 * item + columns
    if problem.device.type != "cpu":
        return 27 * channels**2 * item
    padded = -(-channels // BLOCK) * BLOCK
    weight = 9 * padded**2 * item
    if item == 4:
        return 3 * weight
    threads = problem.threads
    sums = threads if padded == BLOCK else min(threads, SHARED_SUMS + threads // THREADS_OF_A_SUM)
    image = padded * (problem.shape[2] + 2) * (problem.shape[3] + 2) * item
    return (2 + 2 * sums) * weight + 2 * threads * image  # a thread's input and gradient, channels outermost


def _columns_bytes(problem: Problem) -> int:
    """Each pixel's nine inputs side by side, where PyTorch's convolution makes them: of the whole batch, but where every
    convolution is dilated of one image."""
    if problem.kind == "linear" or problem.device.type != "cpu" or takes_onednn(problem):
        return 0
    whole = any(stage.dilation == 1 for stage in problem.stages)
    return 9 * problem.map_bytes // (1 if whole else max(problem.shape[0], 1))


def takes_onednn(problem: Problem) -> bool:
    """Whether PyTorch hands a convolution on the CPU to oneDNN, which is on by default, and not to its own columns.

    Source: ConvParams::use_mkldnn of PyTorch's aten/src/ATen/native/Convolution.cpp.
    """
    if problem.dtype == torch.float32:
        elements = problem.map_bytes // problem.dtype.itemsize
        return torch.backends.mkldnn.is_available() and (problem.shape[0] > 1 or elements > COLUMNS_ELEMENTS)
    return _onednn_has(problem.dtype)


@lru_cache(maxsize=None)
def _onednn_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in a half type on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
