"""The backward of a call, run by run; called by the backend in __init__.py, calls launch.

Input gradients run stage by stage; ReLU masks, skip and state gradients ride on the convolution that writes a gradient, and so
do the sums over pixels from which bias and BatchNorm gradients come. Weight gradients gather a few iterations and are one
product per stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rdk.backends.base import Call, Needs, ParameterGradients
from rdk.backends.layout import channels_last, empty_maps
from rdk.backends.triton import launch, prepared
from rdk.backends.triton.launch import NormGradient, Operand, Series, Sums
from rdk.backends.triton.setting import built_inputs, setting_of


class Run(NamedTuple):
    """What is known of iterations first … last-1: see Gradients.run."""

    first: int
    last: int
    state: Tensor
    states: Tensor | None
    tapes: Tensor | None
    state_grads: Tensor | None


class TritonGradients:
    """Gradients of one call; sums are float32 and in a fixed order."""

    def __init__(self, call: Call, needs: Needs) -> None:
        self.call, self.needs = call, needs
        self.problem = call.problem
        self.stages = call.problem.stages
        self.setting = setting_of(call.problem)
        self.affines = prepared.affines(call, self.setting) if self.problem.norm else None
        self.partials: dict[int, Tensor] = {}  # by weight: split sums, carried over the runs
        self.weight_grads: dict[int, Tensor] = {}
        self.bias_tiles: dict[int, Tensor] = {}  # by bias: per-tile sums, carried over the runs, without a norm
        self.bias_grads: dict[int, Tensor] = {}  # float32
        self.inject_grad: Tensor | None = None
        rows = (len(call.norm_weights), self.setting.channels)
        self.norm_weight_grads, self.norm_bias_grads = call.means.new_empty(rows), call.means.new_empty(rows)

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
        run = Run(first, last, state, states, tapes, state_grads)
        grad = channels_last(grad)
        length = self.setting.run_length(self.problem.iterations)
        sums = None
        for end in range(last, first, -length):
            grad, sums = self._reverse_block(run, max(first, end - length), end, grad, sums)
        return grad

    def finish(self) -> ParameterGradients:
        call = self.call
        for index, partial in self.partials.items():
            self.weight_grads[index] = self._reduced(index, partial)
        self.partials.clear()
        for index, tiles in self.bias_tiles.items():
            self.bias_grads[index] = self._merged_bias(tiles)
        inject = None
        if self.inject_grad is not None and call.inject is not None:
            inject = torch.empty_like(call.inject).copy_(self.inject_grad)
        biases = [self.bias_grads.get(index) for index in range(len(call.biases))]
        return ParameterGradients(
            inject=inject,
            weights=[self.weight_grads.get(index) for index in range(len(call.weights))],
            biases=_in_dtype(biases, call.biases),
            norm_weights=self._rows(self.norm_weight_grads, call.norm_weights, self.needs.norm_weights),
            norm_biases=self._rows(self.norm_bias_grads, call.norm_biases, self.needs.norm_biases),
        )

    @staticmethod
    def _rows(table: Tensor, like: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        if not any(wanted):
            return [None] * len(like)
        return _in_dtype(list(table.unbind(0)), like)

    # inputs of the stages

    def _entering(self, run: Run, iteration: int) -> Operand:
        """The state that enters an iteration of the run."""
        if iteration == run.first:
            return Operand(run.state)
        if run.states is not None:
            return Operand(run.states[iteration - run.first - 1])
        return self._rebuilt_state(run, iteration - 1)

    def _rebuilt_state(self, run: Run, iteration: int) -> Operand:
        """The state after an iteration from its tape: to be normalised on load, as a map where an inject is added."""
        number = len(self.stages) - 1
        z = self._tape(run, iteration, number)
        affine = self._affine(iteration, number)
        operand = Operand(z, affine, self.stages[number].relu)
        if number == 0 and self.call.inject is not None:
            out = empty_maps(1, z)[0]
            inject = self.call.inject_inside()
            launch.finish_stage(self.setting, z, affine, out, inject, None, operand.relu).run()
            operand = Operand(out)
        return operand

    def _tape(self, run: Run, iteration: int, number: int) -> Tensor:
        assert run.tapes is not None
        return run.tapes[(iteration - run.first) * self.problem.tape_maps + number]

    def _affine(self, iteration: int, number: int) -> Tensor:
        assert self.affines is not None
        return self.affines[self.call.index(iteration, number)]

    def _inputs(self, run: Run, iteration: int, built: dict[int, Tensor], slot: int) -> list[Operand]:
        """The input of every stage of an iteration; what no norm on load can give is built into slot `slot` of `built`."""
        inputs = [self._entering(run, iteration)]
        sources = {stage.skip for stage in self.stages}
        assert 0 not in sources or inputs[0].affine is None, "a state that a skip adds is never rebuilt from tapes"
        for number, stage in enumerate(self.stages[:-1]):
            z = self._tape(run, iteration, number)
            if not stage.norm:
                inputs.append(Operand(z))
                continue
            affine = self._affine(iteration, number)
            inject = self.call.inject_inside() if number == 0 else None
            skip = inputs[stage.skip].map if stage.skip is not None else None
            if inject is None and skip is None and number + 1 not in sources:
                inputs.append(Operand(z, affine, stage.relu))
                continue
            out = built[number + 1][slot]
            launch.finish_stage(self.setting, z, affine, out, inject, skip, stage.relu).run()
            inputs.append(Operand(out))
        return inputs

    # one block of iterations

    def _reverse_block(
        self, run: Run, first: int, last: int, grad: Tensor, sums: Sums | None
    ) -> tuple[Tensor, Sums | None]:
        """Iterations first … last-1 of a run; grad and its sums, where known, are those of the last sum of iteration last-1."""
        count, norm = last - first, self.problem.norm
        products = [empty_maps(count, grad) for _ in self.stages]  # gradients of the convolutions' results
        built: dict[int, Tensor] = {}
        for number in built_inputs(self.problem):
            built[number] = empty_maps(count, grad)
        last_grad = grad
        for iteration in range(last - 1, first - 1, -1):
            slot = iteration - first
            inputs = self._inputs(run, iteration, built, slot)
            skipped: dict[int, Tensor] = {}
            for number in range(len(self.stages) - 1, -1, -1):
                stage = self.stages[number]
                if stage.skip is not None:
                    skipped[stage.skip] = skipped[stage.skip] + grad if stage.skip in skipped else grad
                if number == 0 and self.needs.inject:
                    self._add_to_inject(grad)
                through_norm = self._vectors(run, iteration, number, grad, sums, products[number][slot])
                to, wanted, mask = self._previous(run, iteration, number, inputs)
                out = None
                if to is not None and to[0] >= first and not norm:
                    out = products[to[1]][to[0] - first]
                sums = self._sums_for(run, to)
                state_grad = None
                if number == 0 and iteration > 0 and run.state_grads is not None:
                    state_grad = run.state_grads[iteration - 1]
                if wanted:
                    grad = self._input_gradient(
                        iteration, number, grad, through_norm, out, skipped.pop(number, None), state_grad, mask, sums
                    )
                else:
                    if through_norm is not None:
                        self._norm_gradient(grad, through_norm)
                    grad = torch.zeros_like(grad)
        self._weight_gradients(run, first, last, products, built, None if norm else last_grad)
        return grad, sums

    def _previous(
        self, run: Run, iteration: int, number: int, inputs: Sequence[Operand]
    ) -> tuple[tuple[int, int] | None, bool, Operand | None]:
        """Where a stage's input came from (iteration, stage), whether its gradient is wanted, and the mask of its ReLU."""
        if number > 0:
            return (iteration, number - 1), True, inputs[number] if self.stages[number - 1].relu else None
        if iteration > 0:
            return (iteration - 1, len(self.stages) - 1), True, inputs[0] if self.stages[-1].relu else None
        return None, self.needs.state, None

    def _sums_for(self, run: Run, to: tuple[int, int] | None) -> Sums | None:
        """The sums that the gradient of stage `to` needs, where its tape is at hand; None: nobody asks, or the next run will."""
        if to is None or to[0] < run.first:
            return None
        iteration, number = to
        if self.problem.norm:
            return Sums(self._new_sums(2), self._tape(run, iteration, number), self._affine(iteration, number))
        index = self.call.parameter_index(iteration, number)
        if not self.call.biases or not self.needs.biases[index]:
            return None
        accumulate = index in self.bias_tiles
        if not accumulate:
            self.bias_tiles[index] = self._new_sums(1)
        return Sums(self.bias_tiles[index], accumulate=accumulate)

    def _new_sums(self, rows: int) -> Tensor:
        return self.call.means.new_empty((self.setting.tiles, rows, self.setting.channels), dtype=torch.float32)

    def _vectors(
        self, run: Run, iteration: int, number: int, grad: Tensor, sums: Sums | None, into: Tensor
    ) -> NormGradient | None:
        """Bias and norm gradients of a stage from its gradient's sums; with a norm, what takes the gradient through it."""
        if sums is None:
            sums = self._sums_for(run, (iteration, number))
            if sums is not None:
                launch.gradient_sums(self.setting, grad, sums).run()
        if not self.problem.norm:
            return None
        assert sums is not None
        row, index = self.call.index(iteration, number), self.call.parameter_index(iteration, number)
        coefficients = self.call.means.new_empty((4, self.setting.channels))
        accumulate, bias_grad = index in self.bias_grads, None
        if self.call.biases and self.needs.biases[index]:
            if not accumulate:
                self.bias_grads[index] = self.call.means.new_empty(self.setting.channels)
            bias_grad = self.bias_grads[index]
        launch.merge_gradient_sums(
            self.setting, sums, self.call.variances[row], coefficients, self.norm_weight_grads[row],
            self.norm_bias_grads[row], bias_grad, accumulate, self.call.eps[row], self.problem.norm_training,
        ).run()  # fmt: skip
        return NormGradient(self._tape(run, iteration, number), coefficients, into)

    def _input_gradient(
        self,
        iteration: int,
        number: int,
        grad: Tensor,
        through_norm: NormGradient | None,
        out: Tensor | None,
        skip_grad: Tensor | None,
        state_grad: Tensor | None,
        mask: Operand | None,
        sums: Sums | None,
    ) -> Tensor:
        """The gradient of the sum that a stage's input came from."""
        if through_norm is not None and not self._on_load():
            grad, through_norm = self._norm_gradient(grad, through_norm), None
        target = empty_maps(1, grad)[0] if out is None else out
        launch.conv3x3(
            self.setting,
            self.stages[number].dilation,
            Operand(grad),
            prepared.transposed_weight(self.call, self.call.parameter_index(iteration, number)),
            target,
            flip=True,
            through_norm=through_norm,
            add_a=skip_grad,
            add_b=state_grad,
            mask=mask,
            sums=sums,
        ).run()
        return target

    def _on_load(self) -> bool:
        return self.problem.map_bytes <= self.setting.numbers.norm_gradient_on_load_bytes

    def _norm_gradient(self, grad: Tensor, through_norm: NormGradient) -> Tensor:
        """The gradient before the norm as a map."""
        assert through_norm.into is not None
        launch.norm_gradient(self.setting, grad, through_norm.z, through_norm.coefficients, through_norm.into).run()
        return through_norm.into

    def _add_to_inject(self, grad: Tensor) -> None:
        if self.inject_grad is None:
            self.inject_grad = grad.to(torch.float32, copy=True)
        else:
            self.inject_grad.add_(grad)

    # weight gradients

    def _weight_gradients(
        self,
        run: Run,
        first: int,
        last: int,
        products: Sequence[Tensor],
        built: dict[int, Tensor],
        last_grad: Tensor | None,
    ) -> None:
        """One product per stage for a block of iterations; one per iteration where each has its own weight.

        last_grad: the gradient of the block's last sum, which lies outside `products` unless a norm made it anew.
        """
        for number in range(len(self.stages)):
            grads = Series(products[number])
            if last_grad is not None and number == len(self.stages) - 1:
                grads = Series(products[number], last=last_grad)
            for start, end, inputs in self._series_of_inputs(run, first, last, number, built):
                if self.problem.tied:
                    self._weight_gradient(
                        start, end, number, grads.part(start - first, end - first, last - first), inputs
                    )
                    continue
                for iteration in range(start, end):
                    one = grads.part(iteration - first, iteration + 1 - first, last - first)
                    of_it = inputs.part(iteration - start, iteration + 1 - start, end - start)
                    self._weight_gradient(iteration, iteration + 1, number, one, of_it)

    def _series_of_inputs(
        self, run: Run, first: int, last: int, number: int, built: dict[int, Tensor]
    ) -> list[tuple[int, int, Series]]:
        """The input of a stage over iterations first … last-1, in as few series as their places in memory allow."""
        maps, stages = self.problem.tape_maps, len(self.stages)
        if number > 0:
            if number in built:
                return [(first, last, Series(built[number]))]
            assert run.tapes is not None
            start = (first - run.first) * maps + number - 1
            tapes = run.tapes[start : (last - 1 - run.first) * maps + number : maps]
            if not self.problem.norm:
                return [(first, last, Series(tapes))]
            assert self.affines is not None
            row = self.call.index(first, number - 1)
            affines = self.affines[row : self.call.index(last - 1, number - 1) + 1 : stages]
            return [(first, last, Series(tapes, affines=affines, relu=self.stages[number - 1].relu))]
        head = [(first, first + 1, Series(run.state[None]))] if first == run.first else []
        start = first + len(head)
        if start == last:
            return head
        if run.states is not None:
            states = run.states[start - run.first - 1 : last - run.first - 1]
            return [(first, last, Series(states, first=run.state))] if head else [(first, last, Series(states))]
        if stages == 1 and self.call.inject is not None:  # rebuilt with the inject added: one by one
            return head + [(t, t + 1, Series(self._entering(run, t).map[None])) for t in range(start, last)]
        assert run.tapes is not None and self.affines is not None
        tapes = run.tapes[(start - run.first) * maps - 1 : (last - 1 - run.first) * maps : maps]
        affines = self.affines[self.call.index(start, 0) - 1 : self.call.index(last - 1, 0) : stages]
        return [*head, (start, last, Series(tapes, affines=affines, relu=self.stages[-1].relu))]

    def _weight_gradient(self, first: int, last: int, number: int, grads: Series, inputs: Series) -> None:
        index = self.call.parameter_index(first, number)
        if not self.needs.weights[index]:
            return
        carry = index in self.partials
        if not carry:
            shape = (self.setting.splits, self.setting.channels, self.setting.columns)
            self.partials[index] = self.call.means.new_empty(shape, dtype=torch.float32)
        launch.weight_gradient(
            self.setting, self.stages[number].dilation, grads, inputs, self.partials[index], last - first, carry
        ).run()
        if not self.problem.tied:
            self.weight_grads[index] = self._reduced(index, self.partials.pop(index))

    def _reduced(self, index: int, partial: Tensor) -> Tensor:
        out = torch.empty_like(self.call.weights[index])
        launch.weight_gradient_reduce(self.setting, partial, out).run()
        return out

    def _merged_bias(self, tiles: Tensor) -> Tensor:
        out = tiles.new_empty(self.setting.channels)
        launch.merge_gradient_sums(
            self.setting, Sums(tiles), None, None, None, None, out, accumulate=False, eps=0.0, training=False
        ).run()
        return out


def _in_dtype(totals: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    """Float32 totals in the dtype and with the strides of what they are the gradients of; no two share memory."""
    present = [(total, torch.empty_like(to)) for total, to in zip(totals, like, strict=True) if total is not None]
    if present:
        torch._foreach_copy_([out for _, out in present], [total for total, _ in present])
    results = iter([out for _, out in present])
    return [None if total is None else next(results) for total in totals]
