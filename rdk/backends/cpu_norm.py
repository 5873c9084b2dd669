"""BatchNorm on the cpu backend where the batch's statistics or tapes are wanted: stage by stage over whole maps; called by cpu.

Statistics join all images after every convolution, so a group of images cannot run ahead to the next stage. The convolutions
are those of cpu_runs, one stage at a time; a stage's sum, taped or not, is a whole channels_last map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rdk.backends.base import Call, Needs, ParameterGradients, Problem, StageSpec, Store
from rdk.backends.cpu_runs import Plan, filters_of, gradients_like, plan_for, plan_of, slices
from rdk.backends.eager import norm_backward


def stage_plan(problem: Problem, stage: int, mask: bool = False) -> Plan:
    """The plan of one stage alone, whose backward may add a skip's gradient; `mask`: its input is a ReLU's output."""
    spec = StageSpec(dilation=problem.stages[stage].dilation, relu=mask)
    return plan_for(problem.shape, (spec,), problem.precision, problem.threads, state_grads=True)


def workspace_bytes(problem: Problem) -> int:
    """Beside what the convolutions hold: a stage's sum and result, open skips, inject in channels_last and, in the
    backward, the stages' inputs built again and the gradients under way."""
    whole = plan_of(problem)
    plans = [stage_plan(problem, stage) for stage in range(len(problem.stages))]
    filters = 2 * sum(whole.filter_floats)
    floats = filters + max(plan.workers * plan.forward_floats for plan in plans)
    maps = 6 + (1 if problem.inject else 0)
    if problem.needs_grad:
        sums = sum(plan.sum_copies * plan.gradient_floats for plan in plans)
        floats = max(floats, filters + sums + max(plan.workers * plan.backward_floats for plan in plans))
        maps += 2 + len(problem.stages)
    return 4 * floats + maps * problem.map_bytes


def stage_filters(call: Call, iteration: int, transposed: bool) -> Sequence[Tensor]:
    """The transformed filter of every stage of an iteration."""
    plan, key = plan_of(call.problem), ("stage filters", transposed)
    if call.problem.tied and key in call.prepared:
        kept: Sequence[Tensor] = call.prepared[key]
        return kept
    made = filters_of(call, plan, iteration, iteration + 1, transposed)
    parts: Sequence[Tensor] = made.split(list(plan.filter_floats))
    if call.problem.tied:
        call.prepared[key] = parts
    return parts


def finish_stage(
    call: Call,
    iteration: int,
    stage: int,
    z: Tensor,
    inputs: Mapping[int, Tensor],
    out: Tensor | None = None,
    measure: bool = False,
) -> Tensor:
    """From a stage's convolution to its result: norm, inject, skip, ReLU. inputs: those of the stages that a skip asks for.
    measure: the batch's statistics are z's own, and written."""
    spec, row = call.problem.stages[stage], call.index(iteration, stage)
    result = torch.empty_like(z) if out is None else out
    inject = call.inject_inside() if stage == 0 else None
    skip = None if spec.skip is None else inputs[spec.skip]
    torch.ops.rdk.cpu_finish(
        z, call.means, call.variances, row, measure, call.norm_weights[row], call.norm_biases[row], call.eps[row],
        inject, skip, spec.relu, result,
    )  # fmt: skip
    return result


def forward(call: Call, state: Tensor, first: int, last: int, store: Store, tape_only: bool = False) -> Tensor:
    """Backend.forward; with tape_only the last stage's result is left out."""
    stages = call.problem.stages
    count = len(stages)
    plans = [stage_plan(call.problem, stage) for stage in range(count)]
    last_use = {spec.skip: stage for stage, spec in enumerate(stages) if spec.skip is not None}
    for iteration in range(first, last):
        filters = stage_filters(call, iteration, transposed=False)
        tapes = store.tapes_of(iteration, count)
        inputs: dict[int, Tensor] = {}  # a map goes when no later skip adds it
        for stage in range(count):
            if stage in last_use:
                inputs[stage] = state
            z = torch.empty_like(state) if tapes is None else tapes[stage]
            _convolve(call, plans[stage], iteration, stage, state, filters[stage], z)
            at_end = stage + 1 == count
            if tape_only and at_end:
                return z
            out = z if tapes is None else None
            if at_end and (kept := store.state_after(iteration)) is not None:
                out = kept
            state = finish_stage(call, iteration, stage, z, inputs, out, store.record_statistics)
            skip = stages[stage].skip
            if skip is not None and last_use[skip] == stage:
                del inputs[skip]
    return state


def _convolve(call: Call, plan: Plan, iteration: int, stage: int, state: Tensor, filters: Tensor, z: Tensor) -> None:
    bias = [call.biases[call.parameter_index(iteration, stage)]] if call.biases else []
    for images in slices(call.problem, plan, 1):
        torch.ops.rdk.cpu_forward(
            state, None, filters, bias, None, plan.stages, call.problem.precision, 1, 1,
            z, None, [-1], None, [-1], *images, plan.workers,
        )  # fmt: skip


class NormGradients:
    """The backward of one call with norm, stage by stage over whole maps."""

    def __init__(self, call: Call, needs: Needs) -> None:
        self.call, self.needs, self.problem = call, needs, call.problem
        self.sums: dict[tuple[str, int], Tensor] = {}
        self.stage_sums: dict[int, tuple[Tensor, Tensor]] = {}  # of a weight at the points, and of its bias
        self.weights: list[Tensor | None] = [None] * len(call.weights)
        self.biases: list[Tensor | None] = [None] * len(call.biases)

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
        assert tapes is not None
        count = len(self.problem.stages)
        for iteration in range(last - 1, first - 1, -1):
            at = iteration - first
            tape = tapes[at * count : (at + 1) * count]
            if at == 0:
                entering = state
            elif states is not None:
                entering = states[at - 1]
            else:
                entering = finish_stage(self.call, iteration - 1, count - 1, tapes[at * count - 1], {})
            state_grad = state_grads[iteration - 1] if state_grads is not None and iteration > 0 else None
            grad = self._reverse_iteration(iteration, entering, tape, grad, state_grad)
            if not self.problem.tied:
                self._collect(iteration)
        return grad

    def _reverse_iteration(
        self, iteration: int, entering: Tensor, tape: Tensor, grad: Tensor, state_grad: Tensor | None
    ) -> Tensor:
        stages = self.problem.stages
        filters = stage_filters(self.call, iteration, transposed=True)
        inputs = {0: entering}
        for stage in range(len(stages) - 1):
            inputs[stage + 1] = finish_stage(self.call, iteration, stage, tape[stage], inputs)
        addends: dict[int, Tensor] = {} if state_grad is None else {0: state_grad}
        for stage in range(len(stages) - 1, -1, -1):
            skip = stages[stage].skip
            if skip is not None:
                addends[skip] = addends[skip] + grad if skip in addends else grad
            if stage == 0 and self.needs.inject:
                self._add("inject", 0, grad)
            grad = self._reverse_norm(iteration, stage, tape[stage], grad)
            addend = addends.pop(stage, None)
            grad = self._reverse_stage(iteration, stage, inputs.pop(stage), filters[stage], grad, addend)
        return grad

    def _reverse_norm(self, iteration: int, stage: int, z: Tensor, grad: Tensor) -> Tensor:
        row = self.call.index(iteration, stage)
        grad_z, grad_weight, grad_bias = norm_backward(self.call, self.needs, row, z, grad)
        if self.needs.norm_weights[row]:
            self._add("norm_weights", row, grad_weight)
        if self.needs.norm_biases[row]:
            self._add("norm_biases", row, grad_bias)
        return grad_z

    def _reverse_stage(
        self, iteration: int, stage: int, entering: Tensor, filters: Tensor, grad: Tensor, addend: Tensor | None
    ) -> Tensor:
        problem, call = self.problem, self.call
        index = call.parameter_index(iteration, stage)
        wants_input = iteration > 0 or stage > 0 or self.needs.state
        masked = problem.stages[stage - 1].relu and (iteration > 0 or stage > 0)
        plan = stage_plan(problem, stage, masked)
        out = torch.empty_like(entering) if wants_input else None
        if index not in self.stage_sums:
            floats = plan.gradient_floats if self.needs.weights[index] else 0
            self.stage_sums[index] = torch.ops.rdk.cpu_zero_sums(plan.sum_copies, floats, 1, problem.channels)
        wants_bias = bool(call.biases) and self.needs.biases[index]
        addends = None if addend is None else addend.unsqueeze(0)
        for images in slices(problem, plan, 2):
            torch.ops.rdk.cpu_backward(
                grad, out, entering, None, None, addends, None, filters, plan.stages, problem.precision, 1, out is None,
                [int(self.needs.weights[index])], [int(wants_bias)], *self.stage_sums[index], *images, plan.workers,
            )  # fmt: skip
        return grad.new_zeros(()).expand(grad.shape) if out is None else out

    def _add(self, name: str, index: int, value: Tensor) -> None:
        if (name, index) in self.sums:
            self.sums[name, index].add_(value)
        else:
            self.sums[name, index] = value.clone() if name == "inject" else value

    def _collect(self, iteration: int) -> None:
        """Gradients of the weights and biases of an iteration's stages (of all, when tied) from their sums."""
        problem, needs = self.problem, self.needs
        for stage in range(len(problem.stages)):
            index = self.call.parameter_index(iteration, stage)
            sums, one = self.stage_sums.pop(index), slice(index, index + 1)
            weights = gradients_like(self.call.weights[one], needs.weights[one])
            biases = gradients_like(self.call.biases[one], needs.biases[one])
            stages = stage_plan(problem, stage).stages
            torch.ops.rdk.cpu_parameter_gradients(*sums, weights, biases, problem.shape, stages, problem.precision)
            if needs.weights[index]:
                self.weights[index] = weights[0]
            if biases and needs.biases[index]:
                self.biases[index] = biases[0]

    def finish(self) -> ParameterGradients:
        call = self.call
        if self.problem.tied:
            self._collect(0)

        def collect(name: str, like: Sequence[Tensor]) -> list[Tensor | None]:
            found = (self.sums.get((name, index)) for index in range(len(like)))
            return [None if s is None else torch.empty_like(t).copy_(s) for s, t in zip(found, like, strict=True)]

        inject = None if call.inject is None else collect("inject", [call.inject])[0]
        norm_weights, norm_biases = collect("norm_weights", call.norm_weights), collect("norm_biases", call.norm_biases)
        return ParameterGradients(inject, self.weights, self.biases, norm_weights, norm_biases)
