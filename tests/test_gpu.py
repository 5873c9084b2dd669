"""What only a GPU can tell of the triton and cuda backends: graphs, streams, devices, maps past 2**31 elements, equal bits.

The cuda backend's kernels have never run on one. What needs none also runs on the CPU: in eager, and over the stand-in of
csrc/cuda.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuda_build
import pytest
import torch
from test_cuda_backend import C, R, replaced_by
from torch import Tensor

from rdk import dispatch
from rdk.backends.cuda import CudaBackend
from rdk.backends.cuda_kernels import Kernels
from rdk.testing import UNIT, plain_eager, relative, step

BFLOAT16 = torch.bfloat16


def available(name: str) -> str:
    """The name of the backend; skips the test, with the reason, where it is not available."""
    found = dispatch.backend_named(name)
    reason = found if isinstance(found, str) else found.unavailable()
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend on a GPU."""
    return available(request.param)


@pytest.fixture(
    params=["eager", "stand-in", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("triton", "cuda"))]
)
def anywhere(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A backend and its device; "stand-in" is the cuda backend on the CPU, as if on 4 multiprocessors."""
    if request.param == "eager":
        yield "eager", "cpu"
    elif request.param == "stand-in":
        torch.ops.load_library(str(cuda_build.standin_library()))
        with replaced_by(CudaBackend(Kernels(cuda_build.NAMESPACE, "cpu", multiprocessors=4))):
            yield "cuda", "cpu"
    else:
        yield available(request.param), "cuda"


def pair(cls: type, channels: int, n: int, backend: str, device: str = "cuda", **kw: Any) -> tuple[Any, Any]:
    """A module on the backend and its plain twin, channels_last on the device."""
    torch.manual_seed(3)
    module = cls(channels, n, **kw).to(device).to(memory_format=torch.channels_last)
    twin = plain_eager(module)
    module.backend = backend
    return module, twin


def half_input(*shape: int, device: str = "cuda") -> Tensor:
    return torch.randn(shape, device=device, dtype=BFLOAT16).to(memory_format=torch.channels_last)


def assert_right(got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """As near to float64 as eager in bfloat16, or nearly."""
    assert got.dtype == BFLOAT16
    assert relative(got.cpu(), exact.cpu()) <= max(1.5 * relative(eager, exact), 4 * UNIT[BFLOAT16])


# ---- also on the CPU


def settled(module: Any) -> Any:
    """The module in inference, with running statistics and an affine that differ from channel to channel."""
    for norm in (norm for stage in module.stages for norm in stage.norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 1)
        norm.bias.data.normal_()
    return module.eval()


@pytest.mark.parametrize("cls, channels", [(C, 64), (R, 80)])
@pytest.mark.parametrize("inject", [False, True])
def test_batchnorm_in_inference(anywhere: tuple[str, str], cls: type, channels: int, inject: bool) -> None:
    """A norm with known statistics is a scale and a shift: of the cuda backend, inside the convolution."""
    backend, device = anywhere
    torch.manual_seed(3)
    module = settled(cls(channels, 3, norm="batch", bias=True)).to(BFLOAT16)
    x, u = torch.randn(2, channels, 9, 7).to(BFLOAT16), torch.randn(2, channels, 9, 7).to(BFLOAT16)
    twin = plain_eager(module)
    with torch.no_grad():
        eager = twin(x, inject=u if inject else None)
        exact = twin.double()(x.double(), inject=u.double() if inject else None)
        module = module.to(device)
        module.backend = backend
        got = module(x.to(device), inject=u.to(device) if inject else None)
    assert_right(got, eager, exact)


CASES: dict[str, dict[str, Any]] = {
    "one convolution": {"cls": C},
    "untied": {"cls": C, "tied": False},
    "residual": {"cls": R},
    "recall": {"cls": R, "recall": True},
    "norm": {"cls": R, "norm": "batch"},
}


@pytest.mark.parametrize("name", CASES)
def test_equal_bits_from_two_runs(anywhere: tuple[str, str], name: str) -> None:
    backend, device = anywhere
    kw = dict(CASES[name])
    module, _ = pair(kw.pop("cls"), 32, 3, backend, device, **kw)
    module = module.to(BFLOAT16)
    x = half_input(3, 32, 9, 8, device=device)
    u = half_input(3, 32, 9, 8, device=device) if kw.get("recall") else None
    before = {key: buffer.clone() for key, buffer in module.named_buffers()}
    first = step(module, x, u)
    module.load_state_dict(before, strict=False)
    again = step(module, x, u)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def whole_numbers(*shape: int, often: float) -> Tensor:
    """-1, 0 or 1; `often` says how often not 0."""
    return torch.randint(0, 2, shape).mul(2).sub(1).mul(torch.rand(shape) < often).double()


@pytest.mark.parametrize(
    "channels, batch, size",
    [
        (32, 3, 7),
        *(pytest.param(*case, marks=pytest.mark.gpu) for case in [(64, 40, 28), (128, 64, 13), (512, 32, 16)]),
    ],
)
def test_whole_numbers_come_out_exact(anywhere: tuple[str, str], channels: int, batch: int, size: int) -> None:
    """Products and sums of small whole numbers have no rounding but that of the result: every bit of output and gradients is
    known, on tensor cores too."""
    backend, device = anywhere
    torch.manual_seed(3)
    x, upstream = (whole_numbers(batch, channels, size, size + 1, often=0.6) for _ in range(2))
    weight, bias = whole_numbers(channels, channels, 3, 3, often=8 / channels), whole_numbers(channels, often=0.6)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = torch.relu(torch.conv2d(*leaves, padding=1))
    assert out.max() <= 256  # whole numbers of bfloat16
    expected = [out.detach(), *torch.autograd.grad(out, leaves, upstream)]
    module = C(channels, 1).to(device, BFLOAT16)
    module.stages[0].weight.data.copy_(weight)
    module.stages[0].bias.data.copy_(bias)
    module.backend = backend
    leaf = x.to(device, BFLOAT16).to(memory_format=torch.channels_last).requires_grad_()
    got = module(leaf)
    got.backward(upstream.to(device, BFLOAT16))
    found = [got.detach(), leaf.grad, module.stages[0].weight.grad, module.stages[0].bias.grad]
    for name, one, other in zip(("output", "input", "weight", "bias"), found, expected, strict=True):
        assert torch.equal(one.cpu(), other.to(BFLOAT16)), name


def test_equal_bits_from_two_roll_outs(anywhere: tuple[str, str]) -> None:
    """Few maps over all multiprocessors: on the cuda backend the blocks of a launch wait for each other."""
    backend, device = anywhere
    module, _ = pair(R, 32, 12, backend, device)
    module = module.to(BFLOAT16)
    x = half_input(1, 32, 16, 16, device=device)
    with torch.no_grad():
        first, again = module(x, return_states=True), module(x, return_states=True)
        assert torch.equal(first, again) and torch.equal(first[-1], module(x))


# ---- graphs


def warmed(run: Any) -> None:
    """Runs twice beside the current stream, as a capture asks for: compiles, and warms the allocator."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.gpu
@pytest.mark.parametrize("cls, kw", [(R, {}), (R, {"norm": "batch"}), (C, {})])
def test_a_step_under_a_cuda_graph(backend: str, cls: type, kw: dict[str, Any]) -> None:
    module, _ = pair(cls, 64, 3, backend, **kw)
    module = module.bfloat16()
    x = half_input(4, 64, 12, 12)
    leaf = x.clone().requires_grad_()
    upstream = torch.randn_like(x)

    def forget() -> None:
        leaf.grad = None
        module.zero_grad(set_to_none=True)

    def once() -> None:
        forget()
        module(leaf).backward(upstream)

    warmed(once)
    forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(leaf)
        y.backward(upstream)
    with torch.no_grad():
        leaf.copy_(half_input(4, 64, 12, 12))
    graph.replay()
    captured = y.clone(), leaf.grad.clone(), module.stages[0].weight.grad.clone()
    again = leaf.detach().clone().requires_grad_()
    module.zero_grad(set_to_none=True)
    out = module(again)
    out.backward(upstream)
    live = out, again.grad, module.stages[0].weight.grad
    assert all(torch.equal(a, b) for a, b in zip(captured, live, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "cls, channels, shape, kw",
    [
        (R, 128, (1, 128, 32, 32), {}),  # of the cuda backend, a cooperative launch
        (R, 128, (200, 128, 13, 13), {}),
        (C, 64, (200, 64, 28, 28), {}),
        (R, 64, (4, 64, 12, 12), {"norm": "batch"}),
    ],
)
def test_inference_under_a_cuda_graph(
    backend: str, cls: type, channels: int, shape: tuple[int, ...], kw: dict[str, Any]
) -> None:
    """Replayed twice, with other contents of the input: what a launch counts up begins at zero each time."""
    module, _ = pair(cls, channels, 10, backend, **kw)
    module = module.bfloat16().eval()
    x = half_input(*shape)
    with torch.no_grad():
        warmed(lambda: module(x, return_states=True))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = module(x, return_states=True)
        for _ in range(2):
            x.copy_(half_input(*shape))
            graph.replay()
            assert torch.equal(captured, module(x, return_states=True))


# ---- streams and devices


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 64, 9, 9), (1, 64, 32, 32)])
def test_any_stream_and_any_device(backend: str, shape: tuple[int, ...]) -> None:
    module, twin = pair(C, 64, 20, backend)
    module, twin = module.bfloat16(), twin.bfloat16()
    x = half_input(*shape)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        y = module(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        eager, exact = twin(x), plain_eager(twin).double()(x.double())
    assert_right(y, eager, exact)
    trained = step(module, x)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = step(module, x)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(trained[key], beside[key]) for key in trained)
    if torch.cuda.device_count() > 1 and (backend != "cuda" or torch.cuda.get_device_capability(1) == (9, 0)):
        with torch.no_grad(), torch.cuda.device(0):
            other = module.to("cuda:1")(x.to("cuda:1"))
        assert other.device == torch.device("cuda:1")
        assert_right(other, eager, exact)


# ---- 64-bit offsets

LARGE = [
    (C, {}, (9000, 64, 64, 64)),  # 2.36e9 elements; of the cuda backend, conv and weight_gradient
    (C, {}, (45000, 64, 28, 28)),  # resident, forward and in reverse
    (R, {"blocks": 1}, (75000, 64, 22, 22)),  # residual
]


def large_input(shape: tuple[int, ...]) -> Tensor:
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB")
    x = half_input(*shape)
    assert x.numel() > 2**31
    return x


@pytest.mark.gpu
@pytest.mark.parametrize("cls, kw, shape", LARGE)
def test_maps_past_two_to_the_thirty_one_elements(
    backend: str, cls: type, kw: dict[str, Any], shape: tuple[int, ...]
) -> None:
    module, twin = pair(cls, 64, 2, backend, **kw)
    module, twin = module.bfloat16(), twin.bfloat16()
    x = large_input(shape)
    border = 2**31 // x[0].numel()  # the image that the element lies in
    with torch.no_grad():
        y = module(x)
        exact = plain_eager(twin).double()
        for first in (0, border - 1, len(x) - 2):
            part = x[first : first + 2]
            assert_right(y[first : first + 2], twin(part), exact(part.double()))


@pytest.mark.gpu
@pytest.mark.parametrize("cls, kw, shape", LARGE)
def test_gradients_of_maps_past_two_to_the_thirty_one_elements(
    backend: str, cls: type, kw: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """Only the last images have a gradient, so that theirs is the weight's: reads that wrap around find other maps."""
    module, twin = pair(cls, 64, 1, backend, **kw)
    module, twin = module.bfloat16(), twin.bfloat16()
    x = large_input(shape)
    upstream = torch.zeros_like(x)
    upstream[-2:] = half_input(2, *shape[1:])
    module(x).backward(upstream)
    twin(x[-2:]).backward(upstream[-2:])
    for (name, got), (_, expected) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        assert relative(got.grad, expected.grad) < 5e-2, name
