"""rdk.functional.recurrent: every option and schedule against plain float64 PyTorch, layouts, and bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rdk
from rdk import arguments, functional
from rdk.functional import Stage, recurrent
from rdk.testing import UNIT, assert_close, peak_bytes, plain_eager, relative, step, upstream


def hand_written(module: Any, x: torch.Tensor, inject: torch.Tensor | None = None) -> torch.Tensor:
    """The formulas of the README, from nothing but torch.nn.functional."""
    for t in range(module.iterations):
        entered = []
        for s, stage in enumerate(module.functional_stages()):
            entered.append(x)
            weight = stage.weight if isinstance(stage.weight, torch.Tensor) else stage.weight[t]
            bias = stage.bias if stage.bias is None or isinstance(stage.bias, torch.Tensor) else stage.bias[t]
            if weight.dim() == 2:
                z = x @ weight.T + (0 if bias is None else bias)
            else:
                z = nn.functional.conv2d(x, weight, bias, padding=stage.dilation, dilation=stage.dilation)
            if stage.norm is not None:
                norm = stage.norm[t]
                axes = [d for d in range(z.dim()) if d != 1]
                shape = [1, -1, *[1] * (z.dim() - 2)]
                mean = z.mean(axes) if norm.training else norm.running_mean
                variance = z.var(axes, unbiased=False) if norm.training else norm.running_var
                z = (z - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
                z = z * norm.weight.view(shape) + norm.bias.view(shape)
            if s == 0 and inject is not None:
                z = z + inject
            if stage.skip is not None:
                z = z + entered[stage.skip]
            x = z.clamp_min(0) if stage.relu else z
    return x


MODULES: list[tuple[type, dict[str, Any]]] = [
    (rdk.RecurrentConv, {}),
    (rdk.RecurrentConv, {"bias": False, "dilation": 2}),
    (rdk.RecurrentConv, {"tied": False}),
    (rdk.RecurrentConv, {"norm": "batch"}),
    (rdk.RecurrentConv, {"norm": "batch", "tied": False, "bias": False}),
    (rdk.RecurrentResidual, {}),
    (rdk.RecurrentResidual, {"blocks": 1, "bias": True, "dilation": [3, 1]}),
    (rdk.RecurrentResidual, {"recall": True}),
    (rdk.RecurrentResidual, {"recall": True, "blocks": 1, "norm": "batch", "bias": True}),
    (rdk.RecurrentResidual, {"norm": "batch"}),
    (rdk.RecurrentResidual, {"norm": "batch", "tied": False}),
    (rdk.RecurrentLinear, {}),
    (rdk.RecurrentLinear, {"norm": "batch", "tied": False}),
]
IDS = [f"{cls.__name__}-{'-'.join(f'{k}={v}' for k, v in kw.items()) or 'plain'}" for cls, kw in MODULES]


def state_for(module: Any, n: int = 2, h: int = 5, w: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if isinstance(module, rdk.RecurrentLinear):
        return torch.randn(n * h, module.features, generator=generator, dtype=torch.float64)
    return torch.randn(n, module.channels, h, w, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("cls,kw", MODULES, ids=IDS)
@pytest.mark.parametrize("training", [True, False])
def test_plain_path_computes_the_formulas(cls: type, kw: dict[str, Any], training: bool) -> None:
    torch.manual_seed(0)
    module = cls(5, 3, **kw, backend="eager").double().train(training)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    x = state_for(module)
    inject = torch.randn_like(x)
    expected = hand_written(copy.deepcopy(module), x, inject)
    assert relative(module(x, inject=inject), expected) < 1e-13


@pytest.mark.parametrize("cls,kw", MODULES, ids=IDS)
@pytest.mark.parametrize("checkpoint", [0, 1, 2, 4, 6, 50, "sqrt", "none"])
@pytest.mark.parametrize("return_states", [False, True])
def test_every_schedule_gives_plain_autograds_gradients(
    cls: type, kw: dict[str, Any], checkpoint: Any, return_states: bool
) -> None:
    torch.manual_seed(1)
    module = cls(4, 7, **kw, checkpoint=checkpoint, backend="eager").double()
    x = state_for(module)
    inject = torch.randn_like(x)
    expected = step(plain_eager(module), x, inject, return_states=return_states)
    got = step(module, x, inject, return_states=return_states)
    assert_close(got, expected, 1e-11)


@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 6),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    iterations=st.integers(1, 9),
    states=st.integers(0, 9),
    dilation=st.integers(1, 3),
    blocks=st.integers(1, 2),
    recall=st.booleans(),
    tied=st.booleans(),
    channels_last=st.booleans(),
    with_inject=st.booleans(),
)
def test_any_shape_and_schedule(
    n: int,
    channels: int,
    height: int,
    width: int,
    iterations: int,
    states: int,
    dilation: int,
    blocks: int,
    recall: bool,
    tied: bool,
    channels_last: bool,
    with_inject: bool,
) -> None:
    torch.manual_seed(iterations)
    module = rdk.RecurrentResidual(
        channels,
        iterations,
        blocks=blocks,
        recall=recall,
        tied=tied,
        dilation=dilation,
        checkpoint=states,
        backend="eager",
        dtype=torch.float64,
    )
    x = torch.randn(n, channels, height, width, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    inject = torch.randn(n, channels, height, width, dtype=torch.float64) if with_inject else None
    expected = step(plain_eager(module), x, inject)
    assert_close(step(module, x, inject), expected, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kw", [{}, {"norm": "batch"}, {"recall": True}])
@pytest.mark.parametrize("checkpoint", ["none", 2])
def test_error_is_at_most_1_5_times_eagers(dtype: torch.dtype, kw: dict[str, Any], checkpoint: Any) -> None:
    torch.manual_seed(2)
    module = rdk.RecurrentResidual(8, 4, **kw, checkpoint=checkpoint, backend="eager").to(dtype)
    x = torch.randn(3, 8, 7, 6).to(dtype)
    exact = copy.deepcopy(plain_eager(module)).double()
    reference = step(exact, x.double())
    eager = step(plain_eager(module), x)
    if checkpoint == "none":  # the operator itself, which the plain path goes around
        call = arguments.prepare(x, module.functional_stages(), 4, 0, None, False, "none", None, "test")
        mine = {"output": functional._operator(call, functional.decide(call, "eager", "test")).detach()}
    else:
        mine = step(module, x)
    for name in mine:
        if name == "output":  # gradients pass through ReLU masks that rounding may flip: compared in float64 elsewhere
            allowed = max(1.5 * relative(eager[name], reference[name]), 4 * UNIT[dtype])
            assert relative(mine[name], reference[name]) <= allowed
        assert mine[name].isfinite().all()


@pytest.mark.parametrize("checkpoint", ["auto", 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_of_the_input_is_kept(checkpoint: Any, channels_last: bool) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    module = rdk.RecurrentConv(4, 3, checkpoint=checkpoint, backend="eager")
    x = torch.randn(2, 4, 5, 6).to(memory_format=form).requires_grad_()
    y = module(x)
    assert y.is_contiguous(memory_format=form)
    y.sum().backward()
    if checkpoint != "auto":
        assert x.grad is not None and x.grad.stride() == x.stride()


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g[:1, :1, :1, :1].expand_as(g),
        lambda g: torch.cat([g, g], 1)[:, ::2],
        lambda g: g.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
        lambda g: g.contiguous(memory_format=torch.channels_last),
    ],
    ids=["expanded", "sliced", "permuted", "channels_last"],
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_upstream_gradient_of_any_strides(change: Any, channels_last: bool, norm: str | None) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    module = rdk.RecurrentResidual(6, 4, blocks=1, checkpoint=2, backend="eager", norm=norm).double()
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64).to(memory_format=form)
    grad = change(torch.randn(3, 6, 5, 4, dtype=torch.float64))
    before = grad.clone()
    results = []
    for one in (module, plain_eager(module)):
        leaf = x.clone().requires_grad_()
        one(leaf).backward(grad)
        results.append([leaf.grad, *(p.grad for p in one.parameters())])
    for got, expected in zip(*results, strict=True):
        assert relative(got, expected) < 1e-11
    assert torch.equal(grad, before)


@pytest.mark.parametrize("checkpoint", ["auto", 2])
def test_nothing_given_is_written_to(checkpoint: Any) -> None:
    module = rdk.RecurrentResidual(4, 5, recall=True, checkpoint=checkpoint, backend="eager")
    tensors = [torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last) for _ in range(3)]
    copies = [tensor.clone() for tensor in tensors]
    parameters = [p.clone() for p in module.parameters()]
    x, inject, grad = tensors
    module(x.requires_grad_(), inject=inject.requires_grad_()).backward(grad)
    for now, before in zip([*tensors, *module.parameters()], [*copies, *parameters], strict=True):
        assert torch.equal(now, before)


def test_plain_inference_holds_no_more_than_the_loop_it_stands_for() -> None:
    module, x = rdk.RecurrentConv(64, 3, backend="eager"), torch.randn(4, 64, 32, 32)
    weight, bias = module.stages[0].weight, module.stages[0].bias

    def loop(state: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            state = torch.relu(nn.functional.conv2d(state, weight, bias, padding=1))  # type: ignore[arg-type]
        return state

    with torch.no_grad():
        assert torch.equal(module(x), loop(x))
        peaks = [peak_bytes(lambda network=network: network(x)) for network in (module, loop)]
    assert peaks[0] <= peaks[1]


@pytest.mark.parametrize("training", [True, False])
def test_what_the_hook_of_a_norm_keeps_stays_as_it_was(training: bool) -> None:
    module = rdk.RecurrentConv(4, 2, norm="batch", backend="eager").train(training)
    seen: list[torch.Tensor] = []
    for norm in module.stages[0].norm:  # type: ignore[union-attr]
        norm.register_forward_hook(lambda norm, given, out: seen.append(out))
    with torch.no_grad():
        module(torch.randn(3, 4, 6, 5))
    assert len(seen) == 2 and all(bool((out < 0).any()) for out in seen)


def test_gradients_are_wanted_or_not() -> None:
    module = rdk.RecurrentResidual(4, 5, checkpoint=2, backend="eager").double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    expected = step(plain_eager(module), x)
    y = module(x)  # the input wants none
    y.backward(upstream(y.shape, y.dtype))
    for name, parameter in module.named_parameters():
        assert relative(parameter.grad, expected[f"gradient of {name}"]) < 1e-12
    module.zero_grad()
    module.requires_grad_(False)
    module.stages[1].weight.requires_grad_(True)
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y.backward(upstream(y.shape, y.dtype))
    assert relative(leaf.grad, expected["input gradient"]) < 1e-12
    assert [p.grad is not None for p in module.parameters()] == [False, True, False, False]


def test_a_graph_kept_by_retain_graph_gives_the_same_gradients_again() -> None:
    module = rdk.RecurrentConv(4, 9, checkpoint=3, backend="eager")
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    y = module(x)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)


@pytest.mark.parametrize("checkpoint", ["none", 2, "sqrt"])
def test_recomputed_states_have_the_bits_of_the_forward(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdk.backends import eager

    seen: dict[int, list[torch.Tensor]] = {}
    original = eager.EagerBackend._iteration

    def record(self: Any, call: Any, state: Any, iteration: int, *rest: Any, **kw: Any) -> Any:
        seen.setdefault(iteration, []).append(state.clone())
        return original(self, call, state, iteration, *rest, **kw)

    monkeypatch.setattr(eager.EagerBackend, "_iteration", record)
    for norm in (None, "batch"):
        seen.clear()
        module = rdk.RecurrentResidual(16, 6, norm=norm, checkpoint=2, backend="eager")
        module(torch.randn(2, 16, 9, 7, requires_grad=True)).sum().backward()
        assert max(len(states) for states in seen.values()) > 1
        for states in seen.values():
            assert all(torch.equal(states[0], other) for other in states)


def test_linear_takes_any_leading_dimensions() -> None:
    module = rdk.RecurrentLinear(6, 4).double()
    x, inject = torch.randn(2, 3, 5, 6).double(), torch.randn(2, 3, 5, 6).double()
    flat = module(x.view(-1, 6), inject=inject.view(-1, 6))
    assert relative(module(x, inject=inject), flat.view_as(x)) < 1e-15
    assert module(x[0, 0, 0]).shape == (6,)
    assert module(x, return_states=True).shape == (4, 2, 3, 5, 6)


def test_empty_and_smallest_inputs() -> None:
    module = rdk.RecurrentConv(3, 4, checkpoint=2)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    assert module(x, iterations=0) is x
    assert module(x, iterations=0, return_states=True).shape == (0, 2, 3, 5, 5)
    empty = torch.empty(0, 3, 5, 5, requires_grad=True)
    y = module(empty)
    y.sum().backward()
    assert y.shape == empty.shape and empty.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    assert module(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)
    assert rdk.RecurrentConv(3, 4)(torch.randn(5, 5, 3, 2).permute(3, 2, 0, 1)).shape == (2, 3, 5, 5)


def test_stages_of_different_kinds_share_one_call() -> None:
    """A tied and an untied stage, one with a bias and one without, the last one linear."""
    w = [torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    stages = [Stage(w[0], b), Stage(w[1:], relu=False, skip=1)]
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    leaves = [x, b, *w]
    results = []
    for checkpoint in ("none", 1):
        y = recurrent(x, stages, 3, checkpoint=checkpoint, backend="eager")
        results.append([y, *torch.autograd.grad(y, leaves, upstream(y.shape, y.dtype))])
    h = x
    for t in range(3):
        h = torch.relu(nn.functional.conv2d(h, w[0], b, padding=1))
        h = nn.functional.conv2d(h, w[1 + t], padding=1) + h
    for plain, checkpointed in zip(*results, strict=True):
        assert relative(checkpointed, plain) < 1e-12
    assert relative(results[0][0], h) < 1e-13


# all that `sound` is for, and the call that says when it is not
SOUND: list[tuple[rdk.RecurrentConv | rdk.RecurrentResidual | rdk.RecurrentLinear, torch.Tensor]] = [
    (rdk.RecurrentResidual(4, 3), torch.randn(2, 4, 5, 6)),
    (rdk.RecurrentConv(8, 3, dilation=2, bias=False), torch.randn(2, 8, 5, 6, requires_grad=True)),
    (rdk.RecurrentResidual(6, 2, recall=True).requires_grad_(False), torch.randn(1, 6, 9, 7)),
    (rdk.RecurrentConv(4, 3).double(), torch.randn(2, 4, 50, 60).double()),
    (rdk.RecurrentLinear(6, 3), torch.randn(2, 6)),
]


@pytest.mark.parametrize("module,x", SOUND)
def test_a_sound_call_is_prepared_as_with_all_checks(module: Any, x: torch.Tensor) -> None:
    stages = module.functional_stages()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            sound = arguments.sound(x, stages, 3, 0)
            assert sound is not None and sound[1] == x.numel() * sum(s.weight[0].numel() for s in stages)
            quick = arguments.prepare_sound(x, sound[0], 3)
            checked = arguments.prepare(x, stages, 3, 0, None, False, "auto", None, "test")
        assert quick._replace(weights=[], biases=[]) == checked._replace(weights=[], biases=[])
        assert all(a is b for a, b in zip(quick.weights, checked.weights, strict=True))
        assert all(a is b for a, b in zip(quick.biases, checked.biases, strict=True))


def test_a_sound_call_skips_the_checks_and_gives_eagers_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be wrong and nothing special is asked for. Anything else meets the checks first."""
    module, x = rdk.RecurrentResidual(4, 3), torch.randn(2, 4, 5, 6)
    expected = module(x, return_states=True)[-1]
    normed = rdk.RecurrentConv(4, 3, norm="batch").eval()
    large = torch.randn(2, 4, 50, 60)
    large_expected = plain_eager(module)(large)

    def refuse(*given: Any, **settings: Any) -> None:
        raise RuntimeError("the checks were called")

    monkeypatch.setattr(arguments, "prepare", refuse)
    assert torch.equal(module(x), expected)
    assert torch.equal(module(x, start=2), expected)
    assert relative(module(large), large_expected) < 1e-5
    with rdk.use_backend("eager"):
        assert torch.equal(module(large), large_expected)
    assert module(x, iterations=0) is x
    stage = module.functional_stages()[0]
    wrong: list[Stage] = [
        stage._replace(relu=1),
        stage._replace(skip=1),
        stage._replace(dilation=0),
        stage._replace(dilation=True),
    ]  # type: ignore[arg-type]
    checked: list[Callable[[], Any]] = [
        *(lambda stages=[stage]: recurrent(x, stages, 3) for stage in wrong),
        lambda: recurrent(x, [stage, stage._replace(bias=torch.zeros(4))], 3),
        lambda: recurrent(x, (), 3),
        lambda: recurrent(x, [tuple(stage)], 3),  # type: ignore[list-item]
        lambda: module(x, return_states=True),
        lambda: module(x, return_states=None),
        lambda: module(x, return_states=0),
        lambda: module(x, inject=x),
        lambda: module(x, iterations=-1),
        lambda: module(x, start=-1),
        lambda: module(x.double()),
        lambda: module(x.to("meta")),
        lambda: module(x[:, :3]),
        lambda: module(x[0]),
        lambda: module(nn.Parameter(x)),
        lambda: normed(x),
        lambda: rdk.RecurrentConv(4, 3, device="meta")(x),
        lambda: rdk.RecurrentConv(4, 3, tied=False)(x),
        lambda: rdk.RecurrentConv(4, 3, checkpoint="sqrt")(x),
        lambda: rdk.RecurrentConv(4, 3, memory_budget=1 << 20)(x),
    ]
    for call in checked:
        with pytest.raises(RuntimeError, match="the checks were called"):
            call()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="the checks were called"):
        module(x)


def test_budget_too_small_names_the_smallest_that_fits() -> None:
    module = rdk.RecurrentConv(4, 20, memory_budget=10, backend="eager")
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    with pytest.raises(rdk.BudgetError, match="memory_budget is 10 bytes") as caught:
        module(x)
    smallest = int(str(caught.value).split(" is ")[2].split(" bytes")[0])
    module.memory_budget = smallest
    module(x).sum().backward()
    module.memory_budget = smallest - 1
    with pytest.raises(rdk.BudgetError):
        module(x)


def test_autocast_is_no_advice_where_a_tensor_has_float64() -> None:
    module, x = rdk.RecurrentConv(4, 2), torch.randn(1, 4, 5, 5, dtype=torch.float64)
    words = r"the input has dtype torch.float64, the weight has torch.\w+. Convert one of them.$"
    with pytest.raises(TypeError, match=words):
        module(x)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=words):
        module(x)
    with pytest.raises(TypeError, match="or run under torch.autocast"):
        module(x.half())
