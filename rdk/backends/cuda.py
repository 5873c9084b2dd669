"""The cuda backend: kernels of csrc/cuda for sm_90a, the state in shared memory where it fits; called by dispatch and recompute.

These kernels have never run on a GPU: they compile, and their source computes right results in a stand-in on the CPU
(tests/test_cuda_standin.py). "auto" takes a backend only where measurements were recorded, so only backend="cuda" comes here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rdk import extension
from rdk.backends.base import Call, Gradients, Needs, Problem, Store
from rdk.backends.cuda_gradients import LONGEST_RUN, CudaGradients
from rdk.backends.cuda_kernels import (
    CHANNEL_STEP,
    MAX_CHANNELS,
    MAX_LAUNCH_ITERATIONS,
    MAX_POSITIONS,
    ROWS,
    TAPS,
    Kernels,
    merge_statistics,
)
from rdk.backends.eager import finish_stage
from rdk.backends.layout import aligned, empty_maps

NEVER_RUN = (
    "rdk: the kernels of backend 'cuda' have been compiled and tested in a stand-in on the CPU, but have never run on a GPU. "
    "Compare with backend='eager' before you rely on them (python -m rdk.info --check does so)."
)


class CudaBackend:
    """Runs of iterations by the kernels in csrc/cuda."""

    name = "cuda"
    empty_maps = staticmethod(empty_maps)

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def unavailable(self) -> str | None:
        reason = extension.load("cuda")
        if reason:
            return reason
        if not torch.cuda.is_available():
            return "it needs an sm_90 device (H100, H200), and PyTorch sees no GPU here"
        found = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        if (9, 0) not in found:
            capabilities = ", ".join(f"{major}.{minor}" for major, minor in found)
            return f"it needs an sm_90 device (H100, H200); the GPUs here have compute capability {capabilities}"
        return None

    def supports(self, problem: Problem) -> str | None:
        return self._wrong_kind(problem) or self._wrong_size(problem)

    def _wrong_kind(self, problem: Problem) -> str | None:
        if problem.device.type != self.kernels.device_type:
            return f"it takes {self.kernels.device_type} tensors, and the state is on {problem.device}"
        if problem.kind != "conv":
            return f"it computes 3x3 convolutions, and the stages are {problem.kind}"
        if problem.dtype not in (torch.bfloat16, torch.float16):
            return f"it computes in bfloat16 or float16, and the state is {problem.dtype}".replace("torch.", "")
        if problem.device.type == "cuda" and torch.cuda.get_device_capability(problem.device) != (9, 0):
            return f"it needs an sm_90 device, and {torch.cuda.get_device_name(problem.device)} is none"
        return None

    def _wrong_size(self, problem: Problem) -> str | None:
        n, c, h, w = problem.shape
        if c % CHANNEL_STEP or c > MAX_CHANNELS:
            return f"it takes multiples of {CHANNEL_STEP} channels up to {MAX_CHANNELS}, and the state has {c}"
        multiprocessors = self.kernels.multiprocessors(problem.device)
        for dilation in sorted({stage.dilation for stage in problem.stages}):
            if max(n, 1) * (h + dilation) * (w + dilation) > MAX_POSITIONS:
                maps = f"{n} maps of {h}x{w} with {dilation} empty rows and columns each"
                return f"it counts pixels in 32 bits, and {maps} are too many"
            fits = self.kernels.conv_plan(problem.shape, dilation, multiprocessors).buffers > 0
            if problem.needs_grad:
                fits = fits and self.kernels.weight_gradient_plan(problem.shape, dilation, multiprocessors).buffers > 0
            if not fits:
                return f"a row of {w} pixels at dilation {dilation} does not fit in shared memory with its neighbours"
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        """Maps: a stage's input and result, and a copy of input and output in the other memory layout; the open skips and their
        gradients, with norm as eager; a resident backward holds the gradients of a run; the inject with channels innermost, and
        its gradient in float32. Beside maps: weights packed for both directions, the splits of every weight's gradient in
        float32 and their sum, and the vectors of every norm."""
        stages = len(problem.stages)
        c = problem.channels
        weight = TAPS * c * c
        packed = 2 * stages * TAPS * c * -(-c // (2 * ROWS)) * 2 * ROWS * problem.dtype.itemsize
        if self.kernels.not_resident(problem) is None:
            maps = 5 + (min(LONGEST_RUN, problem.iterations) if problem.needs_grad else 0)
        else:
            maps = 5 + (2 if any(stage.skip is not None for stage in problem.stages) else 0)
            maps += stages if problem.norm else 0
        if problem.inject:
            maps += 1 + (4 // problem.dtype.itemsize if problem.needs_grad else 0)
        sums = 0
        if problem.needs_grad:
            splits = [self._split_bytes(problem, stage.dilation) for stage in problem.stages]
            sums = sum(splits) + 8 * weight if problem.tied else max(splits) + 4 * weight * problem.iterations * stages
        vectors = self._norm_bytes(problem) if problem.norm else 0
        return maps * problem.map_bytes + packed + sums + vectors

    def _split_bytes(self, problem: Problem, dilation: int) -> int:
        """The splits of one weight's gradient."""
        multiprocessors = self.kernels.multiprocessors(problem.device)
        plan = self.kernels.weight_gradient_plan(problem.shape, dilation, multiprocessors)
        return 4 * plan.splits * plan.channel_tiles**2 * TAPS * ROWS**2

    def _norm_bytes(self, problem: Problem) -> int:
        """A group's statistics of one stage; for each norm scale and shift, and both gradients, each in float32, with copies."""
        multiprocessors = self.kernels.multiprocessors(problem.device)
        groups = max(self.kernels.conv_plan(problem.shape, s.dilation, multiprocessors).groups for s in problem.stages)
        return 4 * problem.channels * (3 * groups + 8 * problem.iterations * len(problem.stages))

    def any_layout(self, problem: Problem) -> bool:
        return False

    def forward(self, call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
        warn_once(self.kernels.device_type)
        state = aligned(state)
        if self.kernels.not_rollout(call.problem) is None:
            return self._in_launches(_counted(self.kernels.rollout), call, state, first, last, store)
        if self.kernels.not_resident(call.problem) is None:
            return self._in_launches(_counted(self.kernels.resident), call, state, first, last, store)
        if self.kernels.not_residual(call.problem) is None:
            return self._forward_residual(call, state, first, last, store)
        return self._forward_staged(call, state, first, last, store)

    def tape(self, call: Call, state: Tensor, iteration: int, tapes: Tensor) -> None:
        state = aligned(state)
        if self.kernels.not_residual(call.problem) is None:
            self.kernels.residual(call, state, len(call.problem.stages) - 1, tape_first=0, tapes=tapes)
            return
        self._iteration(call, state, iteration, tapes, None, record_statistics=False, tape_only=True)

    def gradients(self, call: Call, needs: Needs) -> Gradients:
        return CudaGradients(call, needs, self.kernels)

    # ---- one launch for many iterations

    def _in_launches(
        self, launch: Callable[..., None], call: Call, state: Tensor, first: int, last: int, store: Store
    ) -> Tensor:
        """launch(call, state, start, end, keep=, kept=, out=) runs iterations start … end-1 from `state`."""
        for start in range(first, last, MAX_LAUNCH_ITERATIONS):
            end = min(start + MAX_LAUNCH_ITERATIONS, last)
            keep, kept, out = _kept_by_launch(state, start, end, store)
            launch(call, state, start, end, keep=keep, kept=kept, out=out)
            state = _last_of_launch(kept, out)
        return state

    def _forward_residual(self, call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
        stages, tape_maps = len(call.problem.stages), call.problem.tape_maps

        def launch(call: Call, state: Tensor, start: int, end: int, **kept: Any) -> None:
            tapes, tape_first = None, end
            if store.tapes is not None and store.tape_first < end:
                tape_first = max(store.tape_first, start)
                tapes = store.tapes[(tape_first - store.tape_first) * tape_maps : (end - store.tape_first) * tape_maps]
            stage_count = (end - start) * stages
            self.kernels.residual(call, state, stage_count, tape_first=tape_first - start, tapes=tapes, **kept)

        return self._in_launches(launch, call, state, first, last, store)

    # ---- one launch per convolution

    def _forward_staged(self, call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
        for iteration in range(first, last):
            tapes = store.tapes_of(iteration, call.problem.tape_maps)
            out = store.state_after(iteration)
            state = self._iteration(call, state, iteration, tapes, out, store.record_statistics)
        return state

    def _iteration(
        self,
        call: Call,
        state: Tensor,
        iteration: int,
        tapes: Tensor | None,
        out: Tensor | None,
        record_statistics: bool,
        tape_only: bool = False,
    ) -> Tensor:
        """One iteration; the state after it is written to `out` where there is one."""
        problem = call.problem
        # with a norm that is differentiated or measured, the sum before it is a result of its own
        apart = problem.norm and (problem.needs_grad or problem.norm_training)
        entered: list[Tensor] = []
        for number, stage in enumerate(problem.stages):
            at_end = number == len(problem.stages) - 1
            if tape_only and at_end and not problem.norm:
                return state
            entered.append(state)
            if apart:
                z = tapes[number] if tapes is not None else empty_maps(1, state)[0]
                self._measured_product(call, iteration, number, state, z, record_statistics)
                if tape_only and at_end:
                    return z
                state = finish_stage(call, iteration, number, z, dict(enumerate(entered)))
                if at_end and out is not None:
                    state = out.copy_(state)
                continue
            if at_end:
                to = out
            else:
                to = tapes[number] if tapes is not None else None
            state = self.kernels.conv(
                call,
                call.parameter_index(iteration, number),
                stage.dilation,
                state,
                empty_maps(1, state)[0] if to is None else to,
                bias=self.kernels.bias(call, call.parameter_index(iteration, number)),
                affine=self.kernels.affine(call, call.index(iteration, number)) if stage.norm else None,
                inject=call.inject_inside() if number == 0 else None,
                skip=None if stage.skip is None else entered[stage.skip],
                relu=stage.relu,
            )
        return state

    def _measured_product(
        self, call: Call, iteration: int, number: int, state: Tensor, z: Tensor, record_statistics: bool
    ) -> None:
        """The convolution with its bias, and the statistics of the result where they are to be recorded."""
        index = call.parameter_index(iteration, number)
        dilation = call.problem.stages[number].dilation
        groups = None
        if record_statistics:
            plan = self.kernels.conv_plan(tuple(state.shape), dilation, self.kernels.multiprocessors(state.device))
            groups = state.new_empty((plan.groups, 3, state.shape[1]), dtype=torch.float32)
        self.kernels.conv(call, index, dilation, state, z, bias=self.kernels.bias(call, index), statistics=groups)
        if groups is not None:
            row = call.index(iteration, number)
            mean, variance = merge_statistics(groups)
            call.means[row].copy_(mean)
            call.variances[row].copy_(variance)


def _counted(run: Callable[..., None]) -> Callable[..., None]:
    """A launch of iterations start … end-1 by a kernel that is told how many they are."""
    return lambda call, state, start, end, **kept: run(call, state, end - start, **kept)


def _kept_by_launch(
    state: Tensor, start: int, end: int, store: Store
) -> tuple[list[int], Tensor | None, Tensor | None]:
    """Which iterations of start … end-1 a launch keeps, counted from its own first, where to, and a map for the state after
    it unless that is kept."""
    slots = [slot for slot, position in enumerate(store.positions) if start < position <= end]
    if not slots or store.states is None:
        return [], None, empty_maps(1, state)[0]
    keep = [store.positions[slot] - start - 1 for slot in slots]
    out = None if keep[-1] == end - start - 1 else empty_maps(1, state)[0]
    return keep, store.states[slots[0] : slots[-1] + 1], out


def _last_of_launch(kept: Tensor | None, out: Tensor | None) -> Tensor:
    """The state after a launch."""
    if out is not None:
        return out
    assert kept is not None
    return kept[-1]


@lru_cache(maxsize=None)
def warn_once(device_type: str) -> None:
    """Says once that no GPU has run these kernels (the stand-in on the CPU needs no warning)."""
    if device_type == "cuda":
        warnings.warn(NEVER_RUN, stacklevel=2)


BACKEND = CudaBackend(Kernels())
