"""Random problems for the cpu backend and their float64 reference under the backend's own ReLU masks; used by test_cpu_*.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from rdk import checkpoint, dispatch, recompute
from rdk.backends import cpu_norm, cpu_runs
from rdk.backends.base import Call, Needs, ParameterGradients, Problem, StageSpec, Store
from rdk.backends.layout import channels_last, empty_maps

needs_cpu_backend = pytest.mark.skipif(
    dispatch.unavailable("cpu") is not None, reason=f"no cpu backend here: {dispatch.unavailable('cpu')}"
)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Runs the cpu backend's kernels for `name`; skips the test where this processor lacks it."""
    if not torch.ops.rdk.cpu_use_isa(name):
        torch.ops.rdk.cpu_use_isa("auto")
        pytest.skip(f"this processor lacks {name}")
    cpu_runs.plan_for.cache_clear()
    try:
        yield
    finally:
        torch.ops.rdk.cpu_use_isa("auto")
        cpu_runs.plan_for.cache_clear()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Case:
    """One call of the backend, without a module around it."""

    call: Call
    x: Tensor


def make_case(
    shape: tuple[int, int, int, int],
    specs: tuple[StageSpec, ...],
    iterations: int,
    *,
    tied: bool = True,
    bias: bool = True,
    inject: bool = False,
    training: bool = False,
    needs_grad: bool = True,
    precision: str = "fast",
    seed: int = 0,
) -> Case:
    """Kaiming weights, normal biases, and statistics of about the right size where a norm reads them."""
    make = torch.Generator().manual_seed(seed)
    _, channels, _, _ = shape
    count = len(specs)
    entries = count if tied else count * iterations
    rows = count * iterations if specs[0].norm else 0

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=make)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=make) + 0.5

    problem = Problem(
        "conv", specs, shape, torch.float32, torch.device("cpu"), iterations, tied, bias, inject,
        training and rows > 0, needs_grad, False, precision,
    )  # fmt: skip
    gain = (2.0 / (9 * channels)) ** 0.5
    call = Call(
        problem=problem,
        inject=normal(*shape) if inject else None,
        weights=[normal(channels, channels, 3, 3) * gain for _ in range(entries)],
        biases=[0.1 * normal(channels) for _ in range(entries)] if bias else [],
        norm_weights=[uniform(channels) for _ in range(rows)],
        norm_biases=[0.1 * normal(channels) for _ in range(rows)],
        eps=[1e-5] * rows,
        means=0.1 * normal(rows, channels),
        variances=uniform(rows, channels),
    )
    return Case(call, channels_last(normal(*shape)))


@st.composite
def cases(draw: Any, norm: bool = False) -> Case:
    """Any channels, any map, any stage list of the contract."""
    shape = (
        draw(st.integers(1, 5)),
        draw(st.sampled_from([1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 70, 144])),
        draw(st.integers(1, 19)),
        draw(st.integers(1, 19)),
    )
    if norm and shape[0] * shape[2] * shape[3] < 4:
        shape = (4, *shape[1:])  # a variance of two values is mostly rounding
    count = draw(st.integers(1, 4))
    specs = []
    for number in range(count):
        skip = draw(st.none() | st.integers(0, number))
        specs.append(StageSpec(draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.booleans()), skip, norm))
    return make_case(
        shape,
        tuple(specs),
        draw(st.integers(1, 4)),
        tied=draw(st.booleans()),
        bias=draw(st.booleans()),
        inject=draw(st.booleans()),
        training=norm and draw(st.booleans()),
        precision=draw(st.sampled_from(["fast", "fast", "accurate"])),
        seed=draw(st.integers(0, 1000)),
    )


def run_forward(case: Case, positions: range | tuple[int, ...] = (), taped: bool = False) -> tuple[Tensor, Store]:
    """The last state, and the store with the states and tapes asked for."""
    problem, n = case.call.problem, case.call.problem.iterations
    store = Store(record_statistics=problem.norm_training)
    if len(positions):
        store.positions, store.states = positions, empty_maps(len(positions), case.x)
    if taped and problem.tape_maps:
        store.tapes = empty_maps(n * problem.tape_maps, case.x)
    return dispatch.get("cpu").forward(case.call, case.x, 0, n, store), store


def needs_all(call: Call) -> Needs:
    rows = [True] * len(call.norm_weights)
    return Needs(True, call.inject is not None, [True] * len(call.weights), [True] * len(call.biases), rows, rows)


def run_step(
    case: Case, grad_out: Tensor, kind: str = "none", amount: int = 0
) -> tuple[Tensor, Tensor, ParameterGradients]:
    """Output, input gradient and parameter gradients of one training step under a schedule."""
    schedule = checkpoint.resolve(case.call.problem, kind, amount, 0)
    backend = dispatch.get("cpu")
    out, kept = recompute.forward(backend, case.call, case.x, schedule)
    # what the forward derived from the lists is not there in a real backward
    call = replace(case.call, prepared={})
    grad, rest = recompute.backward(backend, call, schedule, case.x, out, kept, grad_out, needs_all(call))
    return out, grad, rest


def masks_of(case: Case) -> list[Tensor]:
    """1 where a stage's result is above zero, for every stage of every iteration, as the backend itself computes it."""
    problem, n, count = case.call.problem, case.call.problem.iterations, len(case.call.problem.stages)
    _, store = run_forward(case, range(1, n + 1), taped=True)
    masks: list[Tensor] = []
    for iteration in range(n):
        assert store.states is not None
        inputs = {0: case.x if iteration == 0 else store.states[iteration - 1]}
        for stage in range(count - 1):
            assert store.tapes is not None
            tape = store.tapes[iteration * problem.tape_maps + stage]
            result = cpu_norm.finish_stage(case.call, iteration, stage, tape, inputs) if problem.norm else tape
            inputs[stage + 1] = result
        results = [*[inputs[stage] for stage in range(1, count)], store.states[iteration]]
        masks += [(result > 0).double() for result in results]
    return masks


def reference_step(case: Case, grad_out: Tensor, masks: list[Tensor] | None) -> dict[str, Tensor]:
    """Output and all gradients in float64 with the given masks in place of ReLU's own (None: ReLU itself)."""
    call, problem = case.call, case.call.problem

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().double().contiguous().requires_grad_()

    x, inject = leaf(case.x), None if call.inject is None else leaf(call.inject)
    weights, biases = [leaf(w) for w in call.weights], [leaf(b) for b in call.biases]
    scales, shifts = [leaf(w) for w in call.norm_weights], [leaf(b) for b in call.norm_biases]
    state = x
    for iteration in range(problem.iterations):
        inputs = []
        for stage, spec in enumerate(problem.stages):
            inputs.append(state)
            index, row = call.parameter_index(iteration, stage), call.index(iteration, stage)
            bias = biases[index] if biases else None
            z = F.conv2d(state, weights[index], bias, padding=spec.dilation, dilation=spec.dilation)
            if spec.norm:
                given = (
                    (None, None) if problem.norm_training else (call.means[row].double(), call.variances[row].double())
                )
                z = F.batch_norm(z, *given, scales[row], shifts[row], problem.norm_training, 0.0, call.eps[row])
            if stage == 0 and inject is not None:
                z = z + inject
            if spec.skip is not None:
                z = z + inputs[spec.skip]
            if spec.relu:
                z = F.relu(z) if masks is None else z * masks[row]
            state = z
    state.backward(grad_out.double())
    found = {"output": state.detach(), "input gradient": x.grad}
    if inject is not None:
        found["inject gradient"] = inject.grad
    for name, leaves in [("weight", weights), ("bias", biases), ("norm weight", scales), ("norm bias", shifts)]:
        found |= {f"gradient of {name} {i}": tensor.grad for i, tensor in enumerate(leaves)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def named(out: Tensor, grad: Tensor, rest: ParameterGradients) -> dict[str, Tensor]:
    """A step of the backend under the names of reference_step."""
    found = {"output": out, "input gradient": grad}
    if rest.inject is not None:
        found["inject gradient"] = rest.inject
    parts = [
        ("weight", rest.weights),
        ("bias", rest.biases),
        ("norm weight", rest.norm_weights),
        ("norm bias", rest.norm_biases),
    ]
    for name, tensors in parts:
        found |= {f"gradient of {name} {i}": tensor for i, tensor in enumerate(tensors) if tensor is not None}
    return found
