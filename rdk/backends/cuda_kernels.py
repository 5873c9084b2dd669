"""The compiled CUDA kernels as Python functions: plans, packed weights, launches; called by cuda and cuda_gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdk.backends.base import Call, Problem
from rdk.backends.layout import empty_maps

# as in csrc/cuda/tables.h; tests/test_cuda_kernels.py holds the two equal
CHANNEL_STEP = 16  # channels come in multiples of it
MAX_CHANNELS = 1024
ROWS = 64  # output channels of one product; a resident map has no more
TAPS = 9
MAX_POSITIONS = 2**31 - 2**16  # counted in 32 bits, and a tile reaches beyond the last
MAX_LAUNCH_ITERATIONS = 1024  # of a kernel that runs whole iterations
MAX_STAGES = 16  # of one iteration, where a launch runs whole iterations of several stages


class ConvPlan(NamedTuple):
    """How the fused convolution cuts a problem: see csrc/cuda/plan.h."""

    buffers: int  # of the ring in shared memory; 0 where the map's halo does not fit
    rows: int  # output channels of a tile
    positions: int  # of a tile
    groups: int  # rows of the statistics
    tiles: int
    blocks: int


class WeightGradientPlan(NamedTuple):
    """How the weight gradient is split: see csrc/cuda/plan.h."""

    buffers: int  # of the ring in shared memory; 0 where the map's halo does not fit
    splits: int
    channel_tiles: int


class ResidentPlan(NamedTuple):
    """How maps stay in shared memory over iterations: see resident_plan and residual_plan in csrc/cuda/plan.h."""

    refusal: str  # empty where they do
    rows: int  # output channels of a tile
    positions: int  # of a tile
    turns: int  # images, or grids of them, that one block takes one after another


class RolloutPlan(NamedTuple):
    """How few images are spread over all multiprocessors: see csrc/cuda/rollout_plan.h."""

    refusal: str  # empty where they are
    rows: int  # output channels of one block


class Kernels:
    """One compiled library. `namespace` is where it registered its operators, `device_type` the tensors it takes."""

    def __init__(self, namespace: str = "rdk", device_type: str = "cuda", multiprocessors: int | None = None) -> None:
        self.namespace, self.device_type = namespace, device_type
        self._multiprocessors = multiprocessors
        self.conv_plan = lru_cache(maxsize=1024)(self._conv_plan)
        self.weight_gradient_plan = lru_cache(maxsize=1024)(self._weight_gradient_plan)
        self.resident_plan = lru_cache(maxsize=1024)(self._resident_plan)
        self.residual_plan = lru_cache(maxsize=1024)(self._residual_plan)
        self.rollout_plan = lru_cache(maxsize=1024)(self._rollout_plan)

    @property
    def ops(self) -> Any:
        return getattr(torch.ops, self.namespace)

    def multiprocessors(self, device: torch.device) -> int:
        """Multiprocessors of the device."""
        if self._multiprocessors is not None:
            return self._multiprocessors
        return torch.cuda.get_device_properties(device).multi_processor_count

    # ---- plans

    def _conv_plan(self, shape: tuple[int, ...], dilation: int, multiprocessors: int) -> ConvPlan:
        n, c, h, w = shape
        return ConvPlan(*self.ops.cuda_conv_plan(n, c, h, w, dilation, multiprocessors))

    def _weight_gradient_plan(self, shape: tuple[int, ...], dilation: int, multiprocessors: int) -> WeightGradientPlan:
        n, c, h, w = shape
        return WeightGradientPlan(*self.ops.cuda_weight_gradient_plan(n, c, h, w, dilation, multiprocessors))

    def _resident_plan(self, shape: tuple[int, ...], dilation: int, multiprocessors: int) -> ResidentPlan:
        n, c, h, w = shape
        return ResidentPlan(*self.ops.cuda_resident_plan(n, c, h, w, dilation, multiprocessors))

    def _residual_plan(self, shape: tuple[int, ...], dilations: tuple[int, ...], multiprocessors: int) -> ResidentPlan:
        n, c, h, w = shape
        return ResidentPlan(*self.ops.cuda_residual_plan(n, c, h, w, dilations, multiprocessors))

    def _rollout_plan(
        self, shape: tuple[int, ...], dilation: int, stages: int, iterations: int, multiprocessors: int
    ) -> RolloutPlan:
        n, c, h, w = shape
        return RolloutPlan(*self.ops.cuda_rollout_plan(n, c, h, w, dilation, stages, iterations, multiprocessors))

    def not_resident(self, problem: Problem) -> str | None:
        """Why the map cannot stay in shared memory over the iterations; None where it can."""
        if len(problem.stages) > 1:
            return "the resident kernel runs modules of one convolution"
        if not problem.tied:
            return "the resident kernel runs tied weights"
        if problem.norm:
            return "the resident kernel has no BatchNorm"
        dilation = problem.stages[0].dilation
        return self.resident_plan(problem.shape, dilation, self.multiprocessors(problem.device)).refusal or None

    def not_residual(self, problem: Problem) -> str | None:
        """Why two maps of a grid cannot stay in shared memory over the stages and iterations; None where they can."""
        return _not_a_chain(problem, "residual") or self._residual_plan_of(problem).refusal or None

    def _residual_plan_of(self, problem: Problem) -> ResidentPlan:
        dilations = tuple([stage.dilation for stage in problem.stages])
        return self.residual_plan(problem.shape, dilations, self.multiprocessors(problem.device))

    def not_rollout(self, problem: Problem) -> str | None:
        """Why the iterations do not run over all multiprocessors in one launch; None where they do."""
        if problem.needs_grad:
            return "the roll-out kernel runs inference"
        return _not_a_chain(problem, "roll-out") or self._rollout_plan_of(problem).refusal or None

    def _rollout_plan_of(self, problem: Problem) -> RolloutPlan:
        dilation = max(stage.dilation for stage in problem.stages)
        multiprocessors = self.multiprocessors(problem.device)
        return self.rollout_plan(problem.shape, dilation, len(problem.stages), problem.iterations, multiprocessors)

    # ---- what a call derives once from its parameters

    def packed(self, call: Call, index: int, rows: int, transposed: bool) -> Tensor:
        """Weight `index` as the kernels read it, `transposed` for the gradient of the input."""
        key = ("packed", index, rows, transposed)
        if key not in call.prepared:
            packed = self.ops.cuda_pack(call.weights[index], rows, transposed)
            if not call.problem.tied:
                return packed  # type: ignore[no-any-return]
            call.prepared[key] = packed
        return call.prepared[key]  # type: ignore[no-any-return]

    def bias(self, call: Call, index: int) -> Tensor | None:
        """Bias `index` in float32."""
        if not call.biases:
            return None
        key = ("bias", index)
        if key not in call.prepared:
            call.prepared[key] = call.biases[index].float().contiguous()
        return call.prepared[key]  # type: ignore[no-any-return]

    def affine(self, call: Call, index: int) -> tuple[Tensor, Tensor]:
        """Norm `index` with known statistics as z * scale + shift, (C,) each in float32."""
        if "affine" not in call.prepared:
            call.prepared["affine"] = affine_of_norms(call)
        scale, shift = call.prepared["affine"]
        return scale[index], shift[index]

    # ---- launches

    def conv(
        self,
        call: Call,
        index: int,
        dilation: int,
        state: Tensor,
        out: Tensor,
        *,
        transposed: bool = False,
        bias: Tensor | None = None,
        affine: tuple[Tensor, Tensor] | None = None,
        inject: Tensor | None = None,
        skip: Tensor | None = None,
        mask: Tensor | None = None,
        relu: bool = False,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """Writes conv3x3(state; weight `index`), (N, C, H, W), with all that follows it into out and returns out."""
        multiprocessors = self.multiprocessors(state.device)
        plan = self.conv_plan(tuple(state.shape), dilation, multiprocessors)
        weights = self.packed(call, index, plan.rows, transposed)
        scale, shift = affine or (None, None)
        self.ops.cuda_conv(
            state, weights, bias, scale, shift, inject, skip, mask, dilation, relu, multiprocessors, out, statistics
        )
        return out

    def resident(
        self,
        call: Call,
        state: Tensor,
        iterations: int,
        *,
        transposed: bool = False,
        add: Sequence[Tensor] = (),
        mask: Sequence[Tensor] = (),
        keep: Sequence[int] = (),
        kept: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:
        """Runs `iterations` iterations in one launch: forward, or in reverse with `transposed`.

        add and mask hold one map per iteration, or nothing. kept (len(keep), N, C, H, W) receives the maps after the iterations
        in `keep`, out the last.
        """
        stage = call.problem.stages[0]
        self.ops.cuda_resident(
            state,
            self.packed(call, 0, ROWS, transposed),
            None if transposed else self.bias(call, 0),
            None if transposed else call.inject_inside(),
            list(add),
            list(mask),
            stage.dilation,
            stage.relu and not transposed,
            iterations,
            list(keep),
            self.multiprocessors(state.device),
            kept,
            out,
        )

    def residual(
        self,
        call: Call,
        state: Tensor,
        stage_count: int,
        *,
        keep: Sequence[int] = (),
        kept: Tensor | None = None,
        tape_first: int,
        tapes: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:
        """Runs `stage_count` stages in one launch: those of whole iterations, or all but the very last.

        kept (len(keep), N, C, H, W) receives the maps after the iterations in `keep`, tapes
        (iterations from tape_first on * (stages - 1), N, C, H, W) those after every stage that does not end an iteration.
        """
        self.ops.cuda_residual(
            state,
            *self._chain(call, self._residual_plan_of(call.problem).rows),
            stage_count,
            list(keep),
            tape_first,
            self.multiprocessors(state.device),
            kept,
            tapes,
            out,
        )

    def rollout(
        self,
        call: Call,
        state: Tensor,
        iterations: int,
        *,
        keep: Sequence[int] = (),
        kept: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:
        """Runs `iterations` over all multiprocessors in one launch.

        kept (len(keep), N, C, H, W) receives the maps after the iterations in `keep`, out the last unless it is kept.
        """
        rows = self._rollout_plan_of(call.problem).rows
        self.ops.cuda_rollout(
            state,
            *self._chain(call, rows),
            iterations,
            list(keep),
            self.multiprocessors(state.device),
            empty_maps(2, state),  # states pass through them from stage to stage
            state.new_empty(1, dtype=torch.int32),
            kept,
            out,
        )

    def _chain(self, call: Call, rows: int) -> tuple[Any, ...]:
        """A call's stages as both operators take them: weights in blocks of `rows`, biases, inject, dilations, ReLUs, skips."""
        stages = call.problem.stages
        return (
            [self.packed(call, number, rows, transposed=False) for number in range(len(stages))],
            [self.bias(call, number) for number in range(len(stages))] if call.biases else [],
            call.inject_inside(),
            [stage.dilation for stage in stages],
            [stage.relu for stage in stages],
            [stage.skip is not None for stage in stages],
        )

    def weight_gradient(
        self, grads: Sequence[Tensor], states: Sequence[Tensor], dilation: int, partials: Tensor | None
    ) -> Tensor:
        """Adds the weight gradient of len(grads) convolutions to partials, which are made where they are None."""
        multiprocessors = self.multiprocessors(grads[0].device)
        accumulate = partials is not None
        if partials is None:
            plan = self.weight_gradient_plan(tuple(grads[0].shape), dilation, multiprocessors)
            shape = (plan.splits, plan.channel_tiles, plan.channel_tiles, TAPS, ROWS, ROWS)
            partials = grads[0].new_empty(shape, dtype=torch.float32)
        self.ops.cuda_weight_gradient(list(grads), list(states), dilation, accumulate, multiprocessors, partials)
        return partials


def _not_a_chain(problem: Problem, kernel: str) -> str | None:
    """What keeps a kernel from running whole iterations of several stages; None where nothing does."""
    stages = problem.stages
    if not problem.tied:
        return f"the {kernel} kernel runs tied weights"
    if problem.norm:
        return f"the {kernel} kernel has no BatchNorm"
    if len(stages) > MAX_STAGES:
        return f"the {kernel} kernel runs up to {MAX_STAGES} stages, and an iteration has {len(stages)}"
    if any(stage.skip not in (None, number - 1) for number, stage in enumerate(stages)):
        return f"the {kernel} kernel adds the input of the stage before, and a skip reaches further back"
    return None


def sum_of_partials(partials: Tensor, channels: int) -> Tensor:
    """(C, C, 3, 3) in float32 from the splits' partial sums, added in order."""
    tiles = partials.shape[1]
    summed = partials.sum(0)  # (tiles out, tiles in, 9, 64 out, 64 in)
    square = summed.permute(0, 3, 1, 4, 2).reshape(tiles * ROWS, tiles * ROWS, 3, 3)
    return square[:channels, :channels]


def affine_of_norms(call: Call) -> tuple[Tensor, Tensor]:
    """Scale and shift of all norms with known statistics, (n * stages, C) each in float32: a few launches for all of them."""
    if len(set(call.eps)) == 1:
        spread = call.variances + call.eps[0]
    else:
        spread = torch.stack([variance + eps for variance, eps in zip(call.variances, call.eps, strict=True)])
    scale = torch.stack(list(call.norm_weights)).float() * spread.rsqrt()
    return scale, torch.stack(list(call.norm_biases)).float() - call.means * scale


def merge_statistics(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (C,) each, from (groups, 3, C) of counts, means and sums of squared deviations.

    Chan, Golub & LeVeque (1979), in float64 and in a fixed order.
    """
    count, mean, squares = groups.double().unbind(1)
    total = count.sum(0)
    center = (count * mean).sum(0) / total
    spread = squares.sum(0) + (count * (mean - center) ** 2).sum(0)
    return center, spread / total
