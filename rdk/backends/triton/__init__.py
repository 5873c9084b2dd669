"""The triton backend: fused implicit GEMMs on NVIDIA GPUs of capability 8.0 or newer; called by dispatch and recompute.

Importing this does not import triton; running does. With TRITON_INTERPRET=1, Triton's own switch, the same kernels run on CPU
tensors in Triton's interpreter: slow, and meant for tests.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from rdk.backends.base import Call, Gradients, Needs, Problem, Store
from rdk.backends.layout import empty_maps

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)
TF32_ON_ROCM = ("gfx942",)


def interpreting() -> bool:
    """Whether Triton's interpreter is switched on (TRITON_INTERPRET, in the words that triton accepts)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


class TritonBackend:
    """Runs of iterations by the kernels of this folder."""

    name = "triton"
    empty_maps = staticmethod(empty_maps)

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed (pip install triton; it exists for Linux)"
        if interpreting():
            return None
        if not torch.cuda.is_available():
            return (
                "PyTorch sees no GPU here; TRITON_INTERPRET=1, set before Python starts, runs its kernels on CPU tensors "
                "in Triton's interpreter (slow, for tests)"
            )
        return None

    def supports(self, problem: Problem) -> str | None:
        return _wrong_device(problem) or _wrong_size(problem)

    def workspace_bytes(self, problem: Problem) -> int:
        from rdk.backends.triton import workspace

        return workspace.peak_bytes(problem)

    def any_layout(self, problem: Problem) -> bool:
        return False

    def forward(self, call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
        from rdk.backends.triton import forward

        return forward.run(call, state, first, last, store)

    def tape(self, call: Call, state: Tensor, iteration: int, tapes: Tensor) -> None:
        from rdk.backends.triton import forward

        forward.tape(call, state, iteration, tapes)

    def gradients(self, call: Call, needs: Needs) -> Gradients:
        from rdk.backends.triton.gradient import TritonGradients

        return TritonGradients(call, needs)


def _wrong_device(problem: Problem) -> str | None:
    device = problem.device
    if device.type == "cuda":
        if interpreting():
            return f"TRITON_INTERPRET is set: Triton's interpreter runs on CPU tensors, and the state is on {device}"
        if torch.version.cuda is not None and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
            major, minor = torch.cuda.get_device_capability(device)
            return f"it needs compute capability 8.0 or newer, and {device} has {major}.{minor}"
        if torch.version.hip is not None and problem.precision == "tf32":
            architecture = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
            if architecture not in TF32_ON_ROCM:
                return (
                    f"triton has no TF32 products for {architecture}; torch.backends.cudnn.conv.fp32_precision = 'ieee' "
                    "(cuda.matmul for linear layers) asks for float32"
                )
    elif device.type != "cpu":
        return f"it runs on CUDA devices, and the state is on {device}"
    elif not interpreting():
        return "it runs on CUDA devices, and on CPU tensors only in Triton's interpreter (TRITON_INTERPRET=1)"
    if problem.dtype not in DTYPES:
        return f"it computes in float32, float16 and bfloat16, not in {str(problem.dtype).removeprefix('torch.')}"
    return None


def _wrong_size(problem: Problem) -> str | None:
    batch, channels = problem.shape[:2]
    height, width = problem.shape[2:] if problem.kind == "conv" else (1, 1)
    reach = (width + 1) * max(stage.dilation for stage in problem.stages)
    # the last split of a weight gradient counts on to a whole chunk, which may be as many pixels again
    if batch * height * width + 2 * reach >= (2**30 if problem.needs_grad else 2**31) - 2**16:
        return f"a state of {batch * height * width} pixels passes its 32-bit pixel counter"
    if (9 if problem.kind == "conv" else 1) * channels**2 >= 2**31:
        return f"the weight of {channels} channels passes its 32-bit offsets"
    if (reach + 2**10) * channels >= 2**31:
        return f"one row of {width} pixels by {channels} channels, times the dilation, passes its 32-bit offsets"
    return None


BACKEND = TritonBackend()
