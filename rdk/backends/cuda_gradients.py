"""The backward of the cuda backend: forward kernels in reverse, one product per run for the weights; called by cuda."""

from __future__ import annotations

import torch
from torch import Tensor

from rdk.backends.base import Call, Needs, ParameterGradients
from rdk.backends.cuda_kernels import Kernels, sum_of_partials
from rdk.backends.eager import EagerGradients
from rdk.backends.layout import aligned, empty_maps

LONGEST_RUN = 8  # iterations whose gradients a resident backward holds at once: so many maps (csrc/cuda/tables.h)


class CudaGradients(EagerGradients):
    """Gradients of one call. Norms are reversed as in eager, everything else by the kernels."""

    def __init__(self, call: Call, needs: Needs, kernels: Kernels) -> None:
        super().__init__(call, needs)
        self.kernels = kernels
        self.partials: dict[int, Tensor] = {}
        self.resident = kernels.not_resident(call.problem) is None

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
        state, grad = aligned(state), aligned(grad)
        if states is not None:
            states = aligned(states)
        if self.call.problem.norm:
            return super().run(first, last, state, states, tapes, grad, state_grads)
        entering = [state, *(states if states is not None else [])]
        added = list(aligned(state_grads)) if state_grads is not None else []
        if not self.resident:
            tape_maps = self.call.problem.tape_maps
            for iteration in range(last - 1, first - 1, -1):
                offset = iteration - first
                tape = list(tapes[offset * tape_maps : (offset + 1) * tape_maps]) if tapes is not None else []
                grad = self._reverse_stages(iteration, [entering[offset], *tape], grad, added)
            return grad
        for end in range(last, first, -LONGEST_RUN):
            start = max(end - LONGEST_RUN, first)
            grad = self._reverse_resident(start, end, entering[start - first : end - first], grad, added)
        return grad

    # ---- the gradient map stays in shared memory

    def _reverse_resident(
        self, first: int, last: int, entering: list[Tensor], grad: Tensor, added: list[Tensor]
    ) -> Tensor:
        """Reverses iterations first … last-1, entered by `entering`: one launch for the gradients of the sums, one product
        for that of the weight."""
        length = last - first
        relu = self.call.problem.stages[0].relu
        to_input = first > 0 or self.needs.state
        iterations = length if to_input else length - 1
        grads = [grad]
        out: Tensor | None = None
        if iterations > 0:
            kept = empty_maps(length - 1, grad) if length > 1 else None
            out = empty_maps(1, grad)[0] if to_input else None
            # the network's input has neither a ReLU nor a gradient of its own
            reversed_iterations = list(range(last - 1, last - 1 - iterations, -1))
            masks = [entering[t - first] for t in reversed_iterations if t > 0] if relu else []
            adds = [added[t - 1] for t in reversed_iterations if t > 0] if added else []
            keep = range(length - 1)
            self.kernels.resident(
                self.call, grad, iterations, transposed=True, add=adds, mask=masks, keep=keep, kept=kept, out=out
            )
            if kept is not None:
                grads += list(kept)
        self._parameters(0, grads, entering[::-1])
        if self.needs.inject:
            for one in grads:
                self._add("inject", 0, one)
        return torch.zeros_like(grad) if out is None else out

    # ---- one launch per convolution

    def _reverse_stages(self, iteration: int, inputs: list[Tensor], grad: Tensor, added: list[Tensor]) -> Tensor:
        """Reverses one iteration whose stages have `inputs`; grad is that of the last sum, before its ReLU."""
        problem = self.call.problem
        skipped: dict[int, Tensor] = {}
        for number in range(len(problem.stages) - 1, -1, -1):
            stage = problem.stages[number]
            if stage.skip is not None:
                skipped[stage.skip] = skipped[stage.skip] + grad if stage.skip in skipped else grad
            if number == 0 and self.needs.inject:
                self._add("inject", 0, grad)
            index = self.call.parameter_index(iteration, number)
            self._parameters(index, [grad], [inputs[number]])
            if number == 0 and iteration == 0 and not self.needs.state:
                return torch.zeros_like(grad)
            # the ReLU that made this stage's input: the stage before, or the last stage of the iteration before
            masked = problem.stages[number - 1].relu and (number > 0 or iteration > 0)
            grad = self.kernels.conv(
                self.call,
                index,
                stage.dilation,
                grad,
                empty_maps(1, grad)[0],
                transposed=True,
                inject=added[iteration - 1] if number == 0 and iteration > 0 and added else None,
                skip=skipped.pop(number, None),
                mask=inputs[number] if masked else None,
            )
        return grad

    def _reverse_product(self, iteration: int, number: int, entering: Tensor, grad: Tensor, want_input: bool) -> Tensor:
        """With a norm: the product alone, between steps that eager takes."""
        index = self.call.parameter_index(iteration, number)
        grad = aligned(grad.contiguous(memory_format=torch.channels_last))
        self._parameters(index, [grad], [entering])
        if not want_input:
            return grad.new_zeros(grad.shape)
        dilation = self.call.problem.stages[number].dilation
        return self.kernels.conv(self.call, index, dilation, grad, empty_maps(1, grad)[0], transposed=True)

    def _parameters(self, index: int, grads: list[Tensor], entering: list[Tensor]) -> None:
        """Adds what the gradients of sums, each with the map that entered its convolution, give weight and bias `index`."""
        call = self.call
        if self.needs.weights[index]:
            number = index % len(call.problem.stages)
            dilation = call.problem.stages[number].dilation
            partials = self.kernels.weight_gradient(grads, entering, dilation, self.partials.get(index))
            if call.problem.tied:
                self.partials[index] = partials
            else:  # no other iteration adds to it
                self._add("weights", index, sum_of_partials(partials, call.problem.channels))
        if call.biases and self.needs.biases[index]:
            for grad in grads:
                self._add("biases", index, grad.sum((0, 2, 3), dtype=torch.float32))

    def finish(self) -> ParameterGradients:
        while self.partials:
            index, partials = self.partials.popitem()
            self._add("weights", index, sum_of_partials(partials, self.call.problem.channels))
        return super().finish()
