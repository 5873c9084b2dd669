"""The state of PyTorch around a call and its backward: threads, autocast, default dtype, transforms, hooks on saved tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend, threads
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import prune

import rdk
from rdk import preview
from rdk.testing import assert_close, plain_eager, relative, step, upstream


def two_part_step(module: Any, x: Tensor, forward: Any, backward: Any) -> dict[str, Tensor]:
    """A training step whose forward and backward run each in a context of its own."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    with forward:
        y = module(x)
    with backward:
        y.backward(upstream(y.shape, y.dtype))
    found = {"output": y.detach(), "input gradient": x.grad}
    return found | {f"gradient of {name}": p.grad.clone() for name, p in module.named_parameters()}


# ---- threads


@needs_cpu_backend
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("counts", [(4, 1), (1, 4)])
def test_threads_may_change_between_forward_and_backward(norm: str | None, counts: tuple[int, int]) -> None:
    """What a budget allows depends on the threads: the backward must go by those that its forward had."""
    torch.manual_seed(0)
    module = rdk.RecurrentConv(16, 12, backend="cpu", norm=norm)
    x = torch.randn(4, 16, 16, 16)
    with threads(4):
        module.memory_budget = rdk.plan(module, tuple(x.shape), checkpoint=3).bytes_peak
    kept = []
    for count in counts:
        with threads(count):
            kept.append(rdk.plan(module, tuple(x.shape)).states)
    assert kept[0] != kept[1]  # else this test would show nothing
    expected = two_part_step(copy.deepcopy(module), x, threads(counts[0]), threads(counts[0]))
    got = two_part_step(copy.deepcopy(module), x, threads(counts[0]), threads(counts[1]))
    assert_close(got, expected, 2e-4)  # the gradient of a bias before a norm is rounding alone


def test_a_backward_that_gets_other_maps_than_were_kept_says_so() -> None:
    module = rdk.RecurrentConv(8, 9, checkpoint=3, backend="eager")

    def halved(saved: Tensor) -> Tensor:
        return saved[:1] if saved.dim() == 5 else saved

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, halved):
        y = module(torch.randn(2, 8, 16, 16))
    with pytest.raises(RuntimeError, match="the forward kept 1 maps and the backward plans with 3"):
        y.sum().backward()


# ---- autocast


@pytest.mark.parametrize("checkpoint", ["sqrt", 1])
@pytest.mark.parametrize("kind", ["conv", "norm", "linear"])
def test_a_backward_under_autocast_has_the_bits_of_one_without(kind: str, checkpoint: Any) -> None:
    """A float32 island inside autocast: its backward runs where loss.backward() is called, maybe inside autocast."""
    torch.manual_seed(0)
    off = torch.autocast("cpu", enabled=False)
    if kind == "linear":
        module: Any = rdk.RecurrentLinear(16, 6, checkpoint=checkpoint, backend="eager")
        x = torch.randn(5, 16)
    else:
        norm = "batch" if kind == "norm" else None
        module = rdk.RecurrentConv(16, 6, checkpoint=checkpoint, backend="eager", norm=norm)
        x = torch.randn(2, 16, 8, 8)
    expected = two_part_step(copy.deepcopy(module), x, off, off)
    got = two_part_step(copy.deepcopy(module), x, off, torch.autocast("cpu", dtype=torch.bfloat16))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


# ---- default dtype


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@needs_cpu_backend
@pytest.mark.parametrize("norm", [None, "batch"])
def test_default_dtype_of_the_process_does_not_matter(norm: str | None, double_by_default: None) -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentConv(16, 3, backend="cpu", norm=norm, dtype=torch.float32)
    x = torch.randn(4, 16, 16, 16, dtype=torch.float32)
    expected = step(plain_eager(module), x)
    assert_close(step(module, x), expected, 2e-4)


# ---- torch.func and forward-mode derivatives


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("frozen", [True, False])
def test_forward_mode_derivative_is_eagers(backend: str, frozen: bool) -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentConv(64, 5, backend=backend).requires_grad_(not frozen)
    x, tangent = torch.randn(2, 64, 16, 16), torch.randn(2, 64, 16, 16)
    plain = rdk.to_modules(module)
    expected = torch.func.jvp(plain, (x,), (tangent,))[1]
    assert relative(torch.func.jvp(module, (x,), (tangent,))[1], expected) < 1e-5
    with torch.no_grad(), forward_ad.dual_level():
        found = forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent))).tangent
        assert found is not None and relative(found, expected) < 1e-5


def test_gradients_of_each_sample() -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentConv(16, 3)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, values, (sample.unsqueeze(0),)).square().sum()

    x = torch.randn(3, 16, 24, 24)
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for number in range(3):
        module.zero_grad()
        module(x[number : number + 1]).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert relative(found[name][number], parameter.grad) < 1e-4


@pytest.mark.parametrize(
    "kw, error, words",
    [
        ({"checkpoint": "sqrt"}, ValueError, "such a call keeps every state"),
        ({"backend": "cpu"}, rdk.BackendError, "a transform of torch.func or a forward-mode derivative is under way"),
    ],
)
def test_what_a_transform_cannot_have_is_refused(kw: dict[str, Any], error: type[Exception], words: str) -> None:
    module = rdk.RecurrentConv(16, 5, **kw)
    with pytest.raises(error, match=words):
        torch.func.jvp(module, (torch.randn(1, 16, 24, 24),), (torch.randn(1, 16, 24, 24),))


def test_explain_names_the_transform() -> None:
    module = rdk.RecurrentConv(64, 5)
    seen = []

    def run(x: Tensor) -> Tensor:
        seen.append(preview.explain(module, x))
        return module(x)

    torch.func.vmap(run)(torch.randn(2, 1, 64, 16, 16))
    assert seen[0].forward.startswith("eager") and "torch.func" in seen[0].reasons["cpu"]


# ---- hooks on saved tensors


@pytest.mark.parametrize("kw", [{"checkpoint": 2}, {"norm": "batch"}, {"checkpoint": "sqrt", "norm": "batch"}])
@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_cpu_backend)])
def test_saved_maps_may_come_back_in_another_layout(backend: str, kw: dict[str, Any]) -> None:
    """As after torch.autograd.graph.save_on_cpu(pin_memory=True), which brings back contiguous tensors."""
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(16, 5, backend=backend, **kw)
    x = torch.randn(2, 16, 16, 16)
    expected = step(copy.deepcopy(module), x)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved.contiguous().clone()):
        got = step(copy.deepcopy(module), x)
    assert_close(got, expected, 1e-5)


# ---- norms whose flags were changed


def blocks(norm: nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), norm, nn.ReLU())


def test_norm_that_is_told_not_to_track_does_not() -> None:
    module = rdk.RecurrentConv(16, 3, norm="batch")
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module(torch.randn(4, 16, 24, 24))
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_norm_without_bias_is_called_as_it_is() -> None:
    norm = nn.BatchNorm2d(16)
    norm.bias = None
    module = rdk.from_module(blocks(norm), 3)
    x = torch.randn(4, 16, 24, 24)
    assert "bias=False" in rdk.explain(module, x).reasons["cpu"]
    expected = x
    plain = copy.deepcopy(module)
    for _ in range(3):
        expected = blocks_of(plain)(expected)
    assert relative(module(x), expected) < 1e-5


def blocks_of(module: Any) -> nn.Sequential:
    stage = module.stages[0]
    conv = nn.Conv2d(16, 16, 3, padding=1)
    conv.load_state_dict({"weight": stage.weight.detach(), "bias": stage.bias.detach()})
    return nn.Sequential(conv, stage.norm[0], nn.ReLU())


@pytest.mark.parametrize("kw", [{}, {"tied": False}])
def test_forward_mode_derivative_inside_a_compiled_function(kw: dict[str, Any]) -> None:
    module = rdk.RecurrentConv(4, 3, **kw)
    x, tangent = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)

    def derivative(a: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(module, (a,), (tangent,))[1]

    torch.compiler.reset()
    compiled = torch.compile(derivative, backend="aot_eager")(x)
    expected = torch.func.jvp(rdk.to_modules(module), (x,), (tangent,))[1]
    assert relative(compiled, expected) < 1e-5
    torch.compiler.reset()


@needs_cpu_backend
def test_torch_jit_trace_records_pytorchs_operators() -> None:
    module = rdk.RecurrentConv(32, 10)
    x = torch.randn(2, 32, 24, 24)
    assert rdk.explain(module, x).forward == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that it takes for constants
        traced = torch.jit.trace(module, (x,), check_trace=False)
    assert "rdk::" not in str(traced.inlined_graph)
    other = torch.randn(3, 32, 24, 24)
    assert relative(traced(other), module(other)) < 1e-5


@pytest.mark.slow
@needs_cpu_backend
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_an_exported_program_holds_our_operator_or_with_eager_pytorchs_alone(backend: str, tmp_path: Path) -> None:
    module = rdk.RecurrentResidual(16, 3, norm="batch", recall=True, backend=backend).eval()
    x, inject = torch.randn(2, 3, 16, 12, 12).unbind()
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(module, (x,), {"inject": inject}, dynamic_shapes={"x": batch, "inject": batch})
    torch.export.save(exported, tmp_path / "module.pt2")
    loaded = torch.export.load(tmp_path / "module.pt2")
    ours = {str(node.target) for node in loaded.graph.nodes if str(node.target).startswith("rdk")}
    assert ours == ({"rdk.recurrent_fwd.default"} if backend == "cpu" else set())
    other, its_inject = torch.randn(2, 5, 16, 12, 12).unbind()
    assert relative(loaded.module()(other, inject=its_inject), module(other, inject=its_inject)) < 1e-6


def test_norm_with_hooks_is_called_as_it_is() -> None:
    module = rdk.RecurrentConv(8, 3, norm="batch", backend="auto").eval()
    x, called = torch.randn(2, 8, 40, 40), []
    handle = module.stages[0].norm[1].register_forward_hook(lambda *args: called.append(1))
    module(x)
    assert called == [1] and "a norm has hooks" in rdk.explain(module, x).reasons["cpu"]
    handle.remove()
    prune.l1_unstructured(module.stages[0].norm[0], "weight", 0.5)
    with torch.no_grad():
        module.stages[0].norm[0].weight_orig.mul_(3)
    state = x
    for norm in module.stages[0].norm:
        state = torch.relu(norm(torch.conv2d(state, module.stages[0].weight, module.stages[0].bias, padding=1)))
    assert relative(module(x), state) < 1e-5
