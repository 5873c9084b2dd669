"""Runs of iterations on the cpu backend: plans, whole calls, parts of iterations, slices of the batch; called by cpu, cpu_norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rdk.backends.base import Call, Needs, ParameterGradients, Problem, StageSpec, Store
from rdk.backends.layout import empty_outside, outside

# The tuning numbers of the C++ stand in csrc/cpu/tables.h, these here:
# multiply-adds of one operator call, as a direct convolution has them: Python looks for an interrupt between two calls
SLICE_PRODUCTS = 2 * 10**10
# bytes of transformed filters that an untied run holds at a time; at least those of one iteration
UNTIED_FILTER_BYTES = 64 << 20
# bytes of sums of weight gradients up to which every worker has its own; beyond, all work on one group together
SUM_BYTES = 128 << 20
# pixels that a worker should have at least
WORKER_PIXELS = 64


class Plan(NamedTuple):
    """What csrc/cpu/plan.cpp decides for one shape; floats are counts of float32."""

    stages: list[int]  # dilation, relu, skip or -1 for each stage
    workers: int
    group: int
    forward_floats: int  # per worker
    forward_iterations: int  # of one run at most; few where a large map is walked down in bands
    backward_floats: int
    backward_iterations: int
    gradient_floats: int  # sums of the weight gradients of all stages
    filter_floats: tuple[int, ...]  # transformed filter of each stage

    @property
    def sum_copies(self) -> int:
        """How many sums of weight gradients are held: one per worker, or one for all."""
        return self.workers if self.workers * self.gradient_floats * 4 <= SUM_BYTES else 1


def plan_of(problem: Problem) -> Plan:
    """The plan of a call's stages, with the threads that PyTorch had when the call was made."""
    return plan_for(
        problem.shape, problem.stages, problem.precision, problem.threads, problem.inject, problem.return_states
    )


@lru_cache(maxsize=1024)
def plan_for(
    shape: tuple[int, ...],
    specs: tuple[StageSpec, ...],
    precision: str,
    threads: int,
    inject: bool = False,
    state_grads: bool = False,
) -> Plan:
    """inject, state_grads: whether there is one, and, in the backward, whether gradients of the states come in."""
    stages: list[int] = []
    for spec in specs:
        stages += [spec.dilation, int(spec.relu), -1 if spec.skip is None else spec.skip]
    workers = max(1, min(threads, shape[0] * shape[2] * shape[3] // WORKER_PIXELS))
    group, forward, forward_most, backward, backward_most, gradient, *filters = torch.ops.rdk.cpu_plan(
        shape, stages, precision, workers, inject, state_grads
    )
    return Plan(stages, workers, group, forward, forward_most, backward, backward_most, gradient, tuple(filters))


def workspace_bytes(problem: Problem) -> int:
    """Beside the maps that pass from run to run: nothing here grows with the batch, the iterations or the height of maps."""
    plan = plan_of(problem)
    filters = sum(plan.filter_floats)
    if problem.tied:
        held = 2 * filters  # the forward's stay for recomputation while the backward's are used
    else:
        held = max(filters, min(filters * problem.iterations, UNTIED_FILTER_BYTES // 4)) + filters
    floats = held + plan.workers * plan.forward_floats
    if problem.needs_grad:
        padded = -(-problem.channels // 16) * 16
        sums = plan.gradient_floats + 2 * len(problem.stages) * padded
        floats = max(floats, held + plan.workers * plan.backward_floats + plan.sum_copies * sums)
    maps = 2 if problem.needs_grad else 1  # the gradient before and after a run; the state before it
    return 4 * floats + maps * problem.map_bytes


def slices(problem: Problem, plan: Plan, iterations: int) -> Iterator[tuple[int, int]]:
    """Ranges of images, whole rounds of groups each, for one operator call apiece."""
    round_images = plan.group * plan.workers
    step = max(1, SLICE_PRODUCTS // max(_products(problem, plan, iterations), 1)) * round_images
    for first in range(0, problem.shape[0], step):
        yield first, min(problem.shape[0], first + step)


def _products(problem: Problem, plan: Plan, iterations: int) -> int:
    """Multiply-adds of one round of groups in a direct convolution."""
    images, channels, height, width = problem.shape
    round_images = min(images, plan.group * plan.workers)
    return 9 * channels**2 * height * width * round_images * len(plan.filter_floats) * iterations


def empty_maps(count: int, like: Tensor) -> Tensor:
    """As layout.empty_maps, in memory that stays with the process."""
    maps: Tensor = torch.ops.rdk.cpu_maps(like, count)
    return maps


def is_whole(problem: Problem, plan: Plan, first: int, last: int, backward: bool = False) -> bool:
    """Whether iterations first … last-1 are a whole call that one operator may take: tied, in one part and one slice."""
    count = last - first
    if not problem.tied or count < problem.iterations:
        return False
    if count > (plan.backward_iterations if backward else plan.forward_iterations):
        return False
    images, channels, height, width = problem.shape
    products = 9 * channels**2 * height * width * images * len(plan.filter_floats) * count
    return products * (2 if backward else 1) <= SLICE_PRODUCTS


def filters_of(call: Call, plan: Plan, first: int, last: int, transposed: bool) -> Tensor:
    """Transformed filters of iterations first … last-1; those of a tied call are made once and kept for the call."""
    problem = call.problem
    weights = call.weights
    if not problem.tied:
        count = len(problem.stages)
        weights = weights[first * count : last * count]
        return _transform(weights, problem, plan, transposed)
    key = ("filters", transposed)
    if key not in call.prepared:
        call.prepared[key] = _transform(weights, problem, plan, transposed)
    kept: Tensor = call.prepared[key]
    return kept


def _transform(weights: Sequence[Tensor], problem: Problem, plan: Plan, transposed: bool) -> Tensor:
    made: Tensor = torch.ops.rdk.cpu_filters(list(weights), problem.shape, plan.stages, problem.precision, transposed)
    return made


def parts(problem: Problem, plan: Plan, first: int, last: int, backward: bool = False) -> Iterator[tuple[int, int]]:
    """Iterations that run in one go, about as many in each: at most what one operator call may take of one round of groups and,
    untied, of transformed filters; of a large map, those whose windows are held together."""
    step = max(1, SLICE_PRODUCTS // _products(problem, plan, 2 if backward else 1))
    step = min(step, plan.backward_iterations if backward else plan.forward_iterations)
    if not problem.tied:
        step = min(step, max(1, UNTIED_FILTER_BYTES // (4 * sum(plan.filter_floats))))
    count = last - first
    number = -(-count // step)
    for part in range(number):
        yield first + part * count // number, first + (part + 1) * count // number


def norm_constants(call: Call) -> Tensor:
    """(3, n * stages, C): means, scales and shifts of z -> (z - mean) * scale + shift, from the statistics in force."""
    if "norm constants" not in call.prepared:
        eps = torch.tensor(list(call.eps), dtype=torch.float64, device="cpu").unsqueeze(1)
        deviation = (call.variances.double() + eps).sqrt()
        scales = (torch.stack(list(call.norm_weights)).double() / deviation).float()
        call.prepared["norm constants"] = torch.stack([call.means, scales, torch.stack(list(call.norm_biases))])
    constants: Tensor = call.prepared["norm constants"]
    return constants


def forward(call: Call, state: Tensor, first: int, last: int, store: Store) -> Tensor:
    """Backend.forward for stages whose norm, if any, reads given statistics and tapes nothing."""
    problem = call.problem
    plan = plan_of(problem)
    if is_whole(problem, plan, first, last) and last not in store.slot_of:
        norm = norm_constants(call) if problem.norm else None
        state_slots, tape_slots = _slots(problem, store, first, last)
        whole: Tensor = torch.ops.rdk.cpu_whole_forward(
            state, call.inject, call.weights, call.biases, norm, plan.stages, problem.precision, last,
            store.states, state_slots, store.tapes, tape_slots, plan.workers,
        )  # fmt: skip
        return whole
    own: Tensor | None = None
    for begin, end in parts(problem, plan, first, last):
        state_slots, tape_slots = _slots(problem, store, begin, end)
        last_slot = state_slots[-1]
        if last_slot < 0 and own is None:
            own = empty_outside(state.shape, like=state)
        out = own if last_slot < 0 else None  # also where the part begins: a map is read before it is written
        stages_of_last = len(problem.stages)
        _run(call, plan, state, begin, end, stages_of_last, out, store.states, state_slots, store.tapes, tape_slots)
        if out is None:
            assert store.states is not None
            out = store.states[last_slot]
        state = out
    return state


def _slots(problem: Problem, store: Store, first: int, last: int) -> tuple[list[int], list[int]]:
    """The place of every state and every tape of iterations first … last-1 in the store's maps, or -1."""
    count = len(problem.stages)
    states = [store.slot_of.get(position, -1) for position in range(first + 1, last + 1)]
    tapes = [-1] * ((last - first) * count)
    if store.tapes is not None:
        for iteration in range(max(first, store.tape_first), last):
            for stage in range(count - 1):
                place = (iteration - store.tape_first) * (count - 1) + stage
                tapes[(iteration - first) * count + stage] = place
    return states, tapes


def tape(call: Call, state: Tensor, iteration: int, tapes: Tensor) -> None:
    """Backend.tape without norm: every stage's output but the last's."""
    plan = plan_of(call.problem)
    count = len(call.problem.stages)
    slots = [*range(count - 1), -1]
    _run(call, plan, state, iteration, iteration + 1, count - 1, None, None, [-1], tapes, slots)


def _run(
    call: Call,
    plan: Plan,
    state: Tensor,
    begin: int,
    end: int,
    stages_of_last: int,
    out: Tensor | None,
    states: Tensor | None,
    state_slots: list[int],
    tapes: Tensor | None,
    tape_slots: list[int],
) -> None:
    problem = call.problem
    count = len(problem.stages)
    rows = slice(begin * count, end * count)
    biases = list(call.biases) if problem.tied else list(call.biases)[rows]
    norm = norm_constants(call)[:, rows] if problem.norm else None
    filters = filters_of(call, plan, begin, end, transposed=False)
    for images in slices(problem, plan, end - begin):
        torch.ops.rdk.cpu_forward(
            state, call.inject, filters, biases, norm, plan.stages, problem.precision, end - begin, stages_of_last,
            out, states, state_slots, tapes, tape_slots, *images, plan.workers,
        )  # fmt: skip


def gradients_like(parameters: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """Room for the gradients of parameters, empty for one that nobody wants."""
    return [
        torch.empty_like(parameter) if need else parameter.new_empty(0)
        for parameter, need in zip(parameters, wanted, strict=True)
    ]


class RunGradients:
    """The backward of one call without norm. Weight gradients are summed at the Winograd points until finish()."""

    def __init__(self, call: Call, needs: Needs) -> None:
        self.call, self.needs, self.problem = call, needs, call.problem
        self.plan = plan_of(call.problem)
        self.sums: tuple[Tensor, Tensor] | None = None  # of weights at the points, and of biases
        self.inject_sum: Tensor | None = None
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
        if self.inject_sum is None and self.needs.inject and self.call.inject is not None:
            self.inject_sum = torch.zeros_like(self.call.inject)
        if is_whole(self.problem, self.plan, first, last, backward=True):
            return self._whole(state, states, tapes, grad, state_grads)
        maps, tied = self.problem.tape_maps, self.problem.tied
        found = (
            parts(self.problem, self.plan, first, last, backward=True)
            if tied
            else ((t, t + 1) for t in range(first, last))
        )
        own: Tensor | None = None
        for begin, end in reversed(list(found)):
            a, b = begin - first, end - first
            entering = state if a == 0 else states[a - 1]  # type: ignore[index]
            between = None if states is None else states[a : b - 1]
            part_tapes = None if tapes is None else tapes[a * maps : b * maps]
            own = grad = self._run(begin, end, entering, between, part_tapes, grad, state_grads, own)
            if not tied:
                self._collect(begin)
        return outside(grad, like=state) if first == 0 and self.needs.state else grad

    def _whole(
        self, state: Tensor, states: Tensor | None, tapes: Tensor | None, grad: Tensor, state_grads: Tensor | None
    ) -> Tensor:
        """As run, over all iterations, and what _collect does after it."""
        call, needs, problem, plan = self.call, self.needs, self.problem, self.plan
        found, *rest = torch.ops.rdk.cpu_whole_backward(
            grad, state, states, tapes, state_grads, self.inject_sum, call.weights, call.biases, plan.stages,
            problem.precision, problem.iterations, needs.state, needs.weights, needs.biases, plan.sum_copies,
            plan.workers,
        )  # fmt: skip
        count = len(self.weights)
        self._take(0, rest[:count], rest[count:])
        return found if needs.state else grad.new_zeros(()).expand(grad.shape)

    def _run(
        self,
        first: int,
        last: int,
        state: Tensor,
        states: Tensor | None,
        tapes: Tensor | None,
        grad: Tensor,
        state_grads: Tensor | None,
        room: Tensor | None,
    ) -> Tensor:
        """As run, in one part. room: where the result may go, also `grad` itself: a group is read before it is written."""
        problem, plan = self.problem, self.plan
        index = self.call.parameter_index(first, 0)
        stages = range(index, index + len(problem.stages))
        wants_weight = [int(self.needs.weights[i]) for i in stages]
        wants_bias = [int(bool(self.call.biases) and self.needs.biases[i]) for i in stages]
        wants_input = first > 0 or self.needs.state
        if wants_input and room is None:
            room = empty_outside(state.shape, like=state)
        out = room if wants_input else None
        if self.sums is None:
            floats = plan.gradient_floats if any(self.needs.weights) else 0
            self.sums = torch.ops.rdk.cpu_zero_sums(plan.sum_copies, floats, len(problem.stages), problem.channels)
        if state_grads is not None:
            state_grads = state_grads[max(first - 1, 0) : last - 1]
        filters = filters_of(self.call, plan, first, last, transposed=True)
        for images in slices(problem, plan, 2 * (last - first)):
            torch.ops.rdk.cpu_backward(
                grad, out, state, states, tapes, state_grads, self.inject_sum, filters, plan.stages, problem.precision,
                last - first, first == 0, wants_weight, wants_bias, *self.sums, *images,
                plan.workers,
            )  # fmt: skip
        return grad.new_zeros(()).expand(grad.shape) if out is None else out

    def _collect(self, iteration: int) -> None:
        """Parameter gradients of the stages from their sums, which start again from zero where an iteration is still to come."""
        call, needs, problem = self.call, self.needs, self.problem
        assert self.sums is not None
        first = call.parameter_index(iteration, 0)
        stages = slice(first, first + len(problem.stages))
        weights = gradients_like(call.weights[stages], needs.weights[stages])
        biases = gradients_like(call.biases[stages], needs.biases[stages])
        torch.ops.rdk.cpu_parameter_gradients(
            *self.sums, weights, biases, problem.shape, self.plan.stages, problem.precision
        )
        self._take(first, weights, biases)
        if iteration > 0:
            for sums in self.sums:
                sums.zero_()

    def _take(self, first: int, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        """Gradients of stages from `first` on, those that are wanted."""
        for found, gradients, wanted in (
            (self.weights, weights, self.needs.weights),
            (self.biases, biases, self.needs.biases),
        ):
            for stage, gradient in enumerate(gradients):
                if wanted[first + stage]:
                    found[first + stage] = gradient

    def finish(self) -> ParameterGradients:
        if self.problem.tied and self.sums is not None:
            self._collect(0)
        return ParameterGradients(self.inject_sum, self.weights, self.biases, [], [])
