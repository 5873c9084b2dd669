"""The cpu backend: Winograd convolutions in C++ that transform a weight once for all iterations; called by dispatch, recompute."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rdk import env, extension
from rdk.backends import cpu_norm, cpu_runs
from rdk.backends.base import Call, Gradients, Needs, Problem, Store


class CpuBackend:
    """float32 convolutions on x86 with AVX-512 or AVX2; everything else is refused with a reason."""

    name = "cpu"
    empty_maps = staticmethod(cpu_runs.empty_maps)

    def unavailable(self) -> str | None:
        return _unavailable()

    def supports(self, problem: Problem) -> str | None:
        if problem.device.type != "cpu":
            return f"it takes tensors of the CPU, and the state is on {problem.device}"
        if problem.kind != "conv":
            return "it has no kernel for linear stages, which PyTorch's matrix product runs"
        if problem.dtype != torch.float32:
            return f"it computes in float32 only, and this call is in {str(problem.dtype).removeprefix('torch.')}"
        if problem.precision == "exact":
            return 'the cpu precision "exact" asks for eager\'s own arithmetic'
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        """Transformed filters and sums of weight gradients, two buffers of transformed tiles and a group's maps per worker;
        the gradients that pass from run to run. With norm also whole maps: see cpu_norm."""
        if problem.norm and (problem.norm_training or problem.needs_grad):
            return cpu_norm.workspace_bytes(problem)
        return cpu_runs.workspace_bytes(problem)

    def any_layout(self, problem: Problem) -> bool:
        """Groups are moved in and out by the strides; the passes of a BatchNorm in training go over channels_last maps."""
        return not problem.norm

    def forward(self, call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
        if call.problem.norm and (store.record_statistics or store.tapes is not None or call.problem.norm_training):
            return cpu_norm.forward(call, state, first, last, store)
        return cpu_runs.forward(call, state, first, last, store)

    def tape(self, call: Call, state: Tensor, iteration: int, tapes: Tensor) -> None:
        if call.problem.norm:
            store = Store(tape_first=iteration, tapes=tapes)
            cpu_norm.forward(call, state, iteration, iteration + 1, store, tape_only=True)
        else:
            cpu_runs.tape(call, state, iteration, tapes)

    def gradients(self, call: Call, needs: Needs) -> Gradients:
        if call.problem.norm:
            return cpu_norm.NormGradients(call, needs)
        return cpu_runs.RunGradients(call, needs)


@lru_cache(maxsize=1)
def _unavailable() -> str | None:
    reason = extension.load("cpu")
    if reason:
        return reason
    wanted = env.read("RDK_CPU_ISA")
    if wanted == "none":
        return "RDK_CPU_ISA=none"
    if not torch.ops.rdk.cpu_use_isa(wanted):
        return f"this processor lacks {'AVX2' if wanted in ('auto', 'avx2') else 'AVX-512'}"
    torch.ops.rdk.cpu_keep_scratch(_kept_bytes())
    return None


def _kept_bytes() -> int:
    """Working memory that is kept from call to call at most."""
    value = env.read("RDK_CPU_KEPT_MIB")
    if not value.isdecimal():
        raise ValueError(
            f"rdk: the environment variable RDK_CPU_KEPT_MIB is {value!r}; expected a whole number of MiB, 0 or more. "
            f"Unset it or set one."
        )
    return int(value) << 20


BACKEND = CpuBackend()
