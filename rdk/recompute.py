"""Runs a schedule: the forward that keeps its states and the backward that computes the others again; called by ops."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from rdk.backends.base import Backend, Call, Gradients, Needs, ParameterGradients, Store
from rdk.backends.layout import aligned, channels_last, empty_maps, empty_outside, outside
from rdk.checkpoint import Schedule, kept_maps, kept_positions, kept_states, segment_bounds, split


def forward(backend: Backend, call: Call, x: Tensor, schedule: Schedule | None) -> tuple[Tensor, Tensor | None]:
    """All iterations. Returns the output (last state, or every state) in the layout of x, and the kept maps, if there are any.

    Without a schedule nothing is kept.
    """
    problem = call.problem
    n = problem.iterations
    any_layout = backend.any_layout(problem)
    state = x if any_layout else _taken(x)
    store = Store(record_statistics=problem.norm_training)
    kept: Tensor | None = None
    if schedule and (count := kept_maps(problem, schedule)):
        kept = backend.empty_maps(count, state)
        states = kept_states(problem, schedule)
        if states:
            store.positions = kept_positions(n, schedule)[:states]
            store.states = kept if states == count else kept[:states]
        if schedule.taped and problem.tape_maps:
            store.tape_first, store.tapes = n - schedule.taped, kept[states:]
    if problem.return_states:
        shape = (n, *x.shape)
        store.positions, store.states = range(1, n + 1), empty_outside(shape, x) if any_layout else empty_maps(n, x)
    last = backend.forward(call, state, 0, n, store)
    out = store.states if problem.return_states and store.states is not None else last
    return out if any_layout else outside(out, like=x), kept


def backward(
    backend: Backend,
    call: Call,
    schedule: Schedule,
    x: Tensor,
    out: Tensor,
    kept: Tensor | None,
    grad_out: Tensor,
    needs: Needs,
) -> tuple[Tensor, ParameterGradients]:
    """The gradient of x, in its layout, and those of the parameters. Writes into no argument."""
    problem = call.problem
    expected, got = kept_maps(problem, schedule), 0 if kept is None else kept.shape[0]
    if got != expected:
        raise RuntimeError(
            f"rdk: the forward kept {got} maps and the backward plans with {expected}: a hook on saved tensors "
            f"changed them, or rdk was replaced between the two. Run the forward again."
        )
    if kept is not None:  # a hook on saved tensors may have brought them back in another layout
        kept = channels_last(kept)
    if backend.any_layout(problem):
        reversal = _Reversal(backend, call, schedule, x, out, kept, needs)
        grad = reversal.run(grad_out)
    else:
        reversal = _Reversal(backend, call, schedule, _taken(x), _taken(out), kept, needs)
        grad = outside(reversal.run(_taken(grad_out)), like=x)
    return grad, reversal.gradients.finish()


def _taken(maps: Tensor) -> Tensor:
    """Maps as a backend of one layout takes them."""
    return aligned(channels_last(maps))


class _Reversal:
    """One backward: the taped part, then the segments, last first.

    The gradient under way is an attribute, not an argument: a caller's frame would keep the one that it passed on alive.
    """

    def __init__(
        self,
        backend: Backend,
        call: Call,
        schedule: Schedule,
        x: Tensor,
        out: Tensor,
        kept: Tensor | None,
        needs: Needs,
    ) -> None:
        self.backend, self.call, self.schedule = backend, call, schedule
        self.problem = call.problem
        self.gradients: Gradients = backend.gradients(call, needs)
        self.x, self.out = x, out
        count = kept_states(self.problem, schedule)
        self.kept_states, self.kept_tapes = kept, None
        if kept is not None and self.problem.tape_maps:
            self.kept_states, self.kept_tapes = kept[:count], kept[count:]
        positions = kept_positions(self.problem.iterations, schedule)[:count]
        self.slot_of = {position: slot for slot, position in enumerate(positions)}
        self.state_grads: Tensor | None = None

    def run(self, grad_out: Tensor) -> Tensor:
        n, start = self.problem.iterations, self.problem.iterations - self.schedule.taped
        if self.problem.return_states:
            self.state_grads = grad_out
            self.grad = self._before_relu(grad_out[n - 1], self.out[n - 1])
        else:
            self.grad = self._before_relu(grad_out, self.out)
        del grad_out
        if self.schedule.taped:
            self._reverse_run(start, n, self._state(start), self._known_states(start, n), self.kept_tapes)
        bounds = segment_bounds(n, self.schedule)
        if self.problem.tape_maps == 0 and start == len(bounds) - 1 > 0:  # every state is known: one run, no tape
            self._reverse_run(0, start, self.x, self._known_states(0, start), None)
        else:
            for first, last in reversed(list(zip(bounds, bounds[1:], strict=False))):
                self._reverse_segment(first, last, self._state(first), self.schedule.slots)
        return self.grad

    def _before_relu(self, grad: Tensor, state: Tensor) -> Tensor:
        if not self.problem.stages[-1].relu:
            return grad
        return cast(Tensor, torch.ops.aten.threshold_backward(grad, state, 0))

    def _state(self, iteration: int) -> Tensor:
        if iteration == 0:
            return self.x
        if self.problem.return_states:
            return self.out[iteration - 1]
        assert self.kept_states is not None
        return self.kept_states[self.slot_of[iteration]]

    def _known_states(self, first: int, last: int) -> Tensor | None:
        """The states that enter iterations first+1 … last-1, all of them kept or returned."""
        if last - first < 2:
            return None
        if self.problem.return_states:
            return self.out[first : last - 1]
        slot, maps, count = self.slot_of.get(first + 1), self.kept_states, last - first - 1
        if slot is None or maps is None:
            return None
        return maps if slot == 0 and len(maps) == count else maps[slot : slot + count]

    def _reverse_run(self, first: int, last: int, state: Tensor, states: Tensor | None, tapes: Tensor | None) -> None:
        self.grad = self.gradients.run(first, last, state, states, tapes, self.grad, self.state_grads)

    def _reverse_segment(self, first: int, last: int, state: Tensor, slots: int) -> None:
        """Revolve (Griewank & Walther 2000) over iterations first … last-1, entered by `state`."""
        length = last - first
        if length == 1:
            self._reverse_iteration(first, state)
        elif slots >= length - 1:
            self._reverse_with_all_states(first, last, state)
        elif slots == 0:
            for iteration in range(last - 1, first, -1):
                self._reverse_iteration(iteration, self.backend.forward(self.call, state, first, iteration, Store()))
            self._reverse_iteration(first, state)
        else:
            middle = first + split(length, slots)
            self._reverse_segment(
                middle, last, self.backend.forward(self.call, state, first, middle, Store()), slots - 1
            )
            self._reverse_segment(first, middle, state, slots)

    def _reverse_with_all_states(self, first: int, last: int, state: Tensor) -> None:
        """The segment's states are computed once and held together."""
        length = last - first
        states = self.backend.empty_maps(length - 1, state)
        store = Store(positions=range(first + 1, last), states=states)
        self.backend.forward(self.call, state, first, last - 1, store)
        if self.problem.tape_maps == 0:
            self._reverse_run(first, last, state, states, None)
            return
        for iteration in range(last - 1, first, -1):
            self._reverse_iteration(iteration, states[iteration - first - 1])
        self._reverse_iteration(first, state)

    def _reverse_iteration(self, iteration: int, state: Tensor) -> None:
        tapes = None
        if self.problem.tape_maps:
            tapes = self.backend.empty_maps(self.problem.tape_maps, state)
            self.backend.tape(self.call, state, iteration, tapes)
        self._reverse_run(iteration, iteration + 1, state, None, tapes)
