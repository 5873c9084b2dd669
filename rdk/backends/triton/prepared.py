"""What one call derives once from its parameters: packed weights and the vectors of every norm; used by forward and gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rdk.backends.base import Call
from rdk.backends.layout import aligned
from rdk.backends.triton import launch
from rdk.backends.triton.setting import Setting


def weight(call: Call, index: int) -> Tensor:
    """Weight `index` as (C out, TAPS, C in); no copy where it is channels_last at a multiple of 16 bytes and is not
    rounded to TF32."""
    return _kept(call, "weight", index, lambda: _packed(call, call.weights[index]))


def transposed_weight(call: Call, index: int) -> Tensor:
    """The same as (C in, TAPS, C out), for the input gradient."""
    return _kept(call, "transposed weight", index, lambda: _packed(call, call.weights[index].transpose(0, 1)))


def _packed(call: Call, tensor: Tensor) -> Tensor:
    packed = tensor.contiguous() if tensor.dim() == 2 else tensor.contiguous(memory_format=torch.channels_last)
    return rounded_to_tf32(packed) if call.problem.precision == "tf32" else aligned(packed)


def rounded_to_tf32(tensor: Tensor) -> Tensor:
    """A float32 tensor rounded to ten bits of mantissa, once for all the tiles that would do it; halves away from zero."""
    bits = tensor.view(torch.int32).add(0x1000).bitwise_and_(-0x2000)
    return torch.where(tensor == tensor, bits.view(torch.float32), tensor)  # a NaN may have carried into the sign


def _kept(call: Call, name: str, index: int, make: Callable[[], Tensor]) -> Tensor:
    """Tied weights serve every iteration and are kept; an iteration's own serve once and are not."""
    if not call.problem.tied:
        return make()
    key = (name, index)
    if key not in call.prepared:
        call.prepared[key] = make()
    kept: Tensor = call.prepared[key]
    return kept


def bias(call: Call, index: int) -> Tensor | None:
    """Bias `index`, dense."""
    return call.biases[index].contiguous() if call.biases else None


def new_affines(call: Call) -> Tensor:
    """(n * stages, 3, C) to be filled row by row, by a forward that measures its statistics."""
    rows, channels = call.means.shape
    call.prepared["affines"] = call.means.new_empty((rows, 3, channels))
    kept: Tensor = call.prepared["affines"]
    return kept


def affines(call: Call, setting: Setting) -> Tensor:
    """(n * stages, 3, C): mean, scale and beta of every norm, from statistics that are known."""
    if "affines" not in call.prepared:
        rows = new_affines(call)
        weights, biases = torch.stack(list(call.norm_weights)), torch.stack(list(call.norm_biases))
        first = 0
        # one launch for all norms of the same eps, which usually is all norms
        for last in range(1, len(call.eps) + 1):
            if last == len(call.eps) or call.eps[last] != call.eps[first]:
                some = slice(first, last)
                launch.norm_statistics(
                    setting, None, call.means[some], call.variances[some], weights[some], biases[some], rows[some],
                    call.eps[first],
                ).run()  # fmt: skip
                first = last
    kept: Tensor = call.prepared["affines"]
    return kept
