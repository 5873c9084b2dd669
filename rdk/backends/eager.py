"""The eager backend: plain PyTorch, everywhere; `plain` is called by functional, the Backend protocol by recompute, and parts of
both by the cuda backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rdk.backends import eager_workspace
from rdk.backends.base import Call, Gradients, Needs, ParameterGradients, Problem, StageSpec, Store
from rdk.backends.layout import empty_maps

aten = torch.ops.aten
# values of a state below which autograd takes longer over a ReLU in place than a second map does
SMALL_STATE = 1 << 16


def plain(
    x: Tensor,
    inject: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[Callable[[Tensor], Tensor]],
    stages: Sequence[StageSpec],
    iterations: int,
    return_states: bool,
    in_place: bool = True,
) -> Tensor:
    """The definition of right: the loop that a user would write, differentiated by autograd any number of times.

    Lists are as in Call; `norms` are called as they are, one per iteration and stage. Returns the last state, or all.
    `in_place`: a ReLU writes into the convolution's result, which needs no second map and, but for small states, less time.
    """
    state, states, count = x, [], len(stages)
    tied = len(weights) == count
    # a norm's hook may hold what the ReLU is given
    activate = torch.relu_ if in_place and not norms else torch.relu
    for iteration in range(iterations):
        first = iteration * count
        entered: list[Tensor] = []
        for number, (dilation, relu, skip, _) in enumerate(stages):
            index = number if tied else first + number
            entered.append(state)
            z = _product(state, weights[index], biases[index] if biases else None, dilation)
            if norms:
                z = norms[first + number](z)
            if number == 0 and inject is not None:
                z = z + inject
            if skip is not None:
                z = z + entered[skip]
            state = activate(z) if relu else z
        if return_states:
            states.append(state)
    if not return_states:
        return state
    return torch.stack(states) if states else x.new_empty((0, *x.shape))


def _product(state: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """conv3x3(state; weight) + bias for a 4-d weight (C, C, 3, 3), state @ weightᵀ + bias for a 2-d one."""
    if weight.dim() == 2:
        return F.linear(state, weight, bias)
    return F.conv2d(state, weight, bias, 1, dilation, dilation)


class EagerBackend:
    """Runs of iterations in plain PyTorch without autograd, for every schedule but plain autograd's own."""

    name = "eager"
    empty_maps = staticmethod(empty_maps)

    def unavailable(self) -> str | None:
        return None

    def supports(self, problem: Problem) -> str | None:
        return None

    def workspace_bytes(self, problem: Problem) -> int:
        return eager_workspace.peak_bytes(problem)

    def any_layout(self, problem: Problem) -> bool:
        return False

    def forward(self, call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
        for iteration in range(first, last):
            tapes = store.tapes_of(iteration, call.problem.tape_maps)
            state = self._iteration(call, state, iteration, tapes, store.record_statistics)
            kept = store.state_after(iteration)
            if kept is not None:
                state = kept.copy_(state)
        return state

    def tape(self, call: Call, state: Tensor, iteration: int, tapes: Tensor) -> None:
        self._iteration(call, state, iteration, tapes, record_statistics=False, tape_only=True)

    def gradients(self, call: Call, needs: Needs) -> Gradients:
        return EagerGradients(call, needs)

    def _iteration(
        self,
        call: Call,
        state: Tensor,
        iteration: int,
        tapes: Tensor | None,
        record_statistics: bool,
        tape_only: bool = False,
    ) -> Tensor:
        stages = call.problem.stages
        entered: dict[int, Tensor] = {}
        for number, stage in enumerate(stages):
            if any(later.skip == number for later in stages):
                entered[number] = state
            at_end = number == len(stages) - 1
            if tape_only and at_end and not stage.norm:
                return state
            index = call.parameter_index(iteration, number)
            bias = call.biases[index] if call.biases else None
            z = _product(state, call.weights[index], bias, stage.dilation)
            if stage.norm:
                if record_statistics:
                    _measure(call, iteration, number, z)
                if tapes is not None:
                    tapes[number].copy_(z)
                if tape_only and at_end:
                    return z
            state = finish_stage(call, iteration, number, z, entered)
            if tapes is not None and not stage.norm and not at_end:
                state = tapes[number].copy_(state)
        return state


def _measure(call: Call, iteration: int, number: int, z: Tensor) -> None:
    """Mean and biased variance of z over all but its channels, in float32 at least (Welford, as torch.var_mean)."""
    wide = z if z.dtype in (torch.float32, torch.float64) else z.float()
    dimensions = (0, 2, 3) if z.dim() == 4 else (0,)
    variance, mean = torch.var_mean(wide, dimensions, correction=0)
    row = call.index(iteration, number)
    call.means[row].copy_(mean)
    call.variances[row].copy_(variance)


def finish_stage(call: Call, iteration: int, number: int, z: Tensor, entered: dict[int, Tensor]) -> Tensor:
    """From the convolution's result to the stage's: norm, inject, skip, ReLU. May write into z unless there is a norm."""
    stage = call.problem.stages[number]
    if stage.norm:
        row = call.index(iteration, number)
        z = aten.native_batch_norm(
            z,
            call.norm_weights[row],
            call.norm_biases[row],
            call.means[row],
            call.variances[row],
            False,
            0.0,
            call.eps[row],
        )[0]
    if number == 0 and call.inject is not None:
        z = z.add_(call.inject)
    if stage.skip is not None:
        z = z.add_(entered[stage.skip])
    return z.relu_() if stage.relu else z


def norm_backward(call: Call, needs: Needs, row: int, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a norm's input, weight and bias, from the statistics in force in its forward; `row` of the call's lists."""
    mean, variance, inverse = (rows[row] for rows in _statistics_of_rows(call))
    grads = aten.native_batch_norm_backward(
        grad, z, call.norm_weights[row], mean, variance, mean, inverse,
        call.problem.norm_training, call.eps[row], [True, needs.norm_weights[row], needs.norm_biases[row]],
    )  # fmt: skip
    return cast("tuple[Tensor, Tensor, Tensor]", grads)


def _statistics_of_rows(call: Call) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Means, variances and inverse deviations of every row; for a backward, when all are known."""
    if "statistics of rows" not in call.prepared:
        if len(set(call.eps)) == 1:
            spread = call.variances + call.eps[0]
        else:
            spread = torch.stack([variance + eps for variance, eps in zip(call.variances, call.eps, strict=True)])
        parts = (call.means, call.variances, spread.rsqrt())
        call.prepared["statistics of rows"] = tuple(part.unbind(0) for part in parts)
    rows: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]] = call.prepared["statistics of rows"]
    return rows


class EagerGradients:
    """Gradients of one call in plain PyTorch; parameter gradients of half types are summed in float32."""

    def __init__(self, call: Call, needs: Needs) -> None:
        self.call, self.needs = call, needs
        self.sums: dict[tuple[str, int], Tensor] = {}

    def run(
        self,
        first: int,
        last: int,
        state: Tensor,
        states: Tensor | None,
        tapes: Tensor | None,
        grad: Tensor,
        state_grads: Tensor | None,
    ) -> Tensor:
        problem = self.call.problem
        tape_maps = problem.tape_maps
        for iteration in range(last - 1, first - 1, -1):
            offset = iteration - first
            tape = list(tapes[offset * tape_maps : (offset + 1) * tape_maps]) if tapes is not None else []
            if offset == 0:
                entering = state
            elif states is not None:
                entering = states[offset - 1]
            else:
                assert tapes is not None
                entering = self._rebuild_state(iteration - 1, tapes[offset * tape_maps - 1])
            grad = self._reverse_iteration(iteration, entering, tape, grad)
            if iteration > 0:
                if state_grads is not None:
                    grad = grad.add_(state_grads[iteration - 1])
                if problem.stages[-1].relu:
                    grad = aten.threshold_backward(grad, entering, 0)
        return grad

    def _rebuild_state(self, iteration: int, z: Tensor) -> Tensor:
        """The state after an iteration whose last stage adds no skip, from that stage's pre-norm map."""
        return finish_stage(self.call, iteration, len(self.call.problem.stages) - 1, z, {})

    def _inputs(self, iteration: int, entering: Tensor, tape: list[Tensor]) -> list[Tensor]:
        """The input of every stage of an iteration."""
        if not self.call.problem.norm:
            return [entering, *tape]
        inputs = [entering]
        for number in range(len(tape) - 1):
            inputs.append(finish_stage(self.call, iteration, number, tape[number], dict(enumerate(inputs))))
        return inputs

    def _reverse_iteration(self, iteration: int, entering: Tensor, tape: list[Tensor], grad: Tensor) -> Tensor:
        stages = self.call.problem.stages
        inputs = self._inputs(iteration, entering, tape)
        skipped: dict[int, Tensor] = {}
        for number in range(len(stages) - 1, -1, -1):
            stage = stages[number]
            # grad is that of the sum before this stage's ReLU
            if stage.skip is not None:
                skipped[stage.skip] = skipped[stage.skip] + grad if stage.skip in skipped else grad
            if number == 0 and self.needs.inject:
                self._add("inject", 0, grad)
            if stage.norm:
                grad = self._reverse_norm(iteration, number, tape[number], grad)
            want_input = iteration > 0 or number > 0 or self.needs.state
            grad = self._reverse_product(iteration, number, inputs[number], grad, want_input)
            if number in skipped and want_input:
                grad = grad.add_(skipped.pop(number))
            if number > 0 and stages[number - 1].relu:
                grad = aten.threshold_backward(grad, inputs[number], 0)
        return grad

    def _reverse_norm(self, iteration: int, number: int, z: Tensor, grad: Tensor) -> Tensor:
        row = self.call.index(iteration, number)
        grad_z, grad_weight, grad_bias = norm_backward(self.call, self.needs, row, z, grad)
        if self.needs.norm_weights[row]:
            self._add("norm_weights", row, grad_weight)
        if self.needs.norm_biases[row]:
            self._add("norm_biases", row, grad_bias)
        return grad_z

    def _reverse_product(self, iteration: int, number: int, entering: Tensor, grad: Tensor, want_input: bool) -> Tensor:
        index = self.call.parameter_index(iteration, number)
        weight = self.call.weights[index]
        want_weight = self.needs.weights[index]
        want_bias = bool(self.call.biases) and self.needs.biases[index]
        if weight.dim() == 2:
            grad_weight = grad.t() @ entering if want_weight else None
            grad_bias = grad.sum(0) if want_bias else None
            grad_input = grad @ weight if want_input else grad.new_zeros(grad.shape)
        else:
            dilation = self.call.problem.stages[number].dilation
            pair = [dilation, dilation]
            mask = [want_input, want_weight, want_bias]
            grad_input, grad_weight, grad_bias = aten.convolution_backward(
                grad, entering, weight, [weight.shape[0]], [1, 1], pair, pair, False, [0, 0], 1, mask
            )
            if not want_input:
                grad_input = grad.new_zeros(grad.shape)
        if grad_weight is not None and want_weight:
            self._add("weights", index, grad_weight)
        if grad_bias is not None and want_bias:
            self._add("biases", index, grad_bias)
        return grad_input

    def _add(self, name: str, index: int, value: Tensor) -> None:
        key = (name, index)
        if key in self.sums:
            self.sums[key].add_(value)
        elif value.dtype in (torch.float32, torch.float64):
            self.sums[key] = value.clone() if name == "inject" else value
        else:
            self.sums[key] = value.float()

    def finish(self) -> ParameterGradients:
        call = self.call

        def collect(name: str, like: Sequence[Tensor]) -> list[Tensor | None]:
            # each sum goes when it is copied: all of them and all copies would be held at once
            return [_shaped(self.sums.pop((name, index), None), tensor) for index, tensor in enumerate(like)]

        inject = None if call.inject is None else _shaped(self.sums.pop(("inject", 0), None), call.inject)
        return ParameterGradients(
            inject=inject,
            weights=collect("weights", call.weights),
            biases=collect("biases", call.biases),
            norm_weights=collect("norm_weights", call.norm_weights),
            norm_biases=collect("norm_biases", call.norm_biases),
        )


def _shaped(total: Tensor | None, like: Tensor) -> Tensor | None:
    """A sum in the dtype and with the strides of the tensor it is the gradient of."""
    return None if total is None else torch.empty_like(like).copy_(total)


BACKEND = EagerBackend()
