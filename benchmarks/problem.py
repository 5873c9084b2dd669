"""A case's tensors: weights that keep the state alive, inputs, float64 answers; for suites, dispatch, profile, conftest, judge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.workloads import Case
from rdk.testing import UNIT

CHECKED_IMAGES = 4
LEAST_ADDED = 24  # iterations: see _initialise

Product = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Precision:
    """A dtype together with PyTorch's switch for float32 products: fp32, tf32, bf16 or fp16."""

    name: str
    dtype: torch.dtype
    tf32: bool = False

    @property
    def unit(self) -> float:
        """The unit of rounding of one product's inputs."""
        if self.tf32:
            return 2.0**-11
        return UNIT[self.dtype]

    def apply(self) -> None:
        """Sets PyTorch's own switches; everything timed follows them. cuDNN may try its algorithms, as a careful user lets it.

        The older names of the TF32 switches: torch.compile reads them, and they raise once the newer ones were set.
        """
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32),
        Precision("tf32", torch.float32, tf32=True),
        Precision("bf16", torch.bfloat16),
        Precision("fp16", torch.float16),
    )
}


class Oracle(nn.Module):
    """The loop that a user would write with nn.Conv2d (or nn.Linear) and nn.BatchNorm2d, and nothing of rdk: float64 answers come
    from it, and PyTorch's contenders run it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.products = nn.ModuleList(_product_of(case) for _ in range(case.stages))
        count = case.convolutions if case.norm else 0
        norm = nn.BatchNorm1d if case.kind == "linear" else nn.BatchNorm2d
        self.norms = nn.ModuleList(norm(case.channels) for _ in range(count))

    @property
    def layers(self) -> list[Product]:
        """The convolutions, or the linear layer."""
        return cast(list[Product], list(self.products))

    def iteration(self, x: Tensor, t: int, inject: Tensor | None = None) -> Tensor:
        """One pass through the stages: (N, C, H, W), or (N, C), to the same."""
        if self.case.kind != "residual":
            return torch.relu(self.product(x, 0, t))
        first = 0
        if self.case.recall:
            x = self.product(x, 0, t)
            x = x if inject is None else x + inject
            first = 1
        for stage in range(first, first + 4, 2):
            z = torch.relu(self.product(x, stage, t))
            x = torch.relu(self.product(z, stage + 1, t) + x)
        return x

    def product(self, x: Tensor, stage: int, t: int) -> Tensor:
        z: Tensor = self.products[stage](x)
        return self.norms[t * self.case.stages + stage](z) if self.case.norm else z

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        for t in range(self.case.iterations):
            x = self.iteration(x, t, inject)
        return x


def _product_of(case: Case) -> Product:
    if case.kind == "linear":
        return nn.Linear(case.channels, case.channels)
    return nn.Conv2d(
        case.channels, case.channels, 3, padding=case.dilation, dilation=case.dilation, bias=case.kind == "conv"
    )


def gradient_names(network: nn.Module, case: Case) -> dict[str, Tensor]:
    """The parameters of an Oracle or of an rdk module under one set of names."""
    if isinstance(network, Oracle):
        layers = network.layers
        found = {f"weight {s}": layer.weight for s, layer in enumerate(layers)}
        found |= {f"bias {s}": layer.bias for s, layer in enumerate(layers) if layer.bias is not None}
        for number, norm in enumerate(network.norms):
            found |= {f"norm {name} {number}": parameter for name, parameter in norm.named_parameters()}
        return found
    stages: Any = network.stages
    found = {f"weight {s}": stage.weight for s, stage in enumerate(stages)}
    found |= {f"bias {s}": stage.bias for s, stage in enumerate(stages) if stage.bias is not None}
    if case.norm:
        for number in range(case.convolutions):
            norm = stages[number % case.stages].norm[number // case.stages]
            found |= {f"norm weight {number}": norm.weight, f"norm bias {number}": norm.bias}
    return found


@torch.no_grad()
def _initialise(network: Oracle, x: Tensor) -> None:
    """Weights under which the state neither dies out nor overflows in any number of iterations (zeros would run faster).

    PyTorch's own initialisation shrinks a map about sixfold per convolution. Here one convolution keeps its input's size (He
    et al. 2015); each residual branch adds 1/(2n) of it, and not less than 1/(2 * LEAST_ADDED), or bfloat16 would round a long
    roll-out's steps away (in 1,000 iterations the state grows beyond float16 then, and only beyond that); a tied plain
    convolution is scaled by its own growth under repetition, measured on one image, and its bias adds 1/n per iteration.
    """
    case = network.case
    for stage, layer in enumerate(network.layers):
        gain = (2 / (case.taps * case.channels)) ** 0.5
        closes_block = case.kind == "residual" and (stage - case.recall) % 2 == 1
        if case.recall and stage == 0:
            gain *= 0.5
        elif closes_block and not case.norm:
            gain /= 2 * min(case.iterations, LEAST_ADDED)
        nn.init.normal_(layer.weight, std=gain)
        if layer.bias is not None:
            nn.init.normal_(layer.bias, std=1 / case.iterations)
    if case.kind != "residual" and not case.norm:
        network.layers[0].weight /= _growth(network.layers[0], x[:1])


def _growth(layer: Product, x: Tensor) -> float:
    """The factor by which relu(layer(·)) without bias multiplies a state that it was applied to many times."""
    layer = copy.deepcopy(layer)
    layer.bias = None
    rates = []
    for _ in range(24):
        y = torch.relu(layer(x))
        rates.append(float(y.norm() / x.norm()))
        x = y / rates[-1]
    return sum(rates[-8:]) / 8


class Problem:
    """The tensors of one case at one precision on one device. Every contender copies its parameters from `network`."""

    def __init__(self, case: Case, precision: Precision, device: torch.device, seed: int = 0) -> None:
        self.case, self.precision, self.device = case, precision, device
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Oracle(case)
            drawn = torch.randn(case.shape, generator=generator).relu_()
            _initialise(network, drawn)
        self.network = network.to(device, precision.dtype)
        self.x = drawn.to(device, precision.dtype)
        self.inject: Tensor | None = None
        if case.recall:
            self.inject = torch.randn(case.shape, generator=generator).to(device, precision.dtype)
        self.upstream = torch.randn(case.shape, generator=generator).to(device, precision.dtype)

    @cached_property
    def checked(self) -> list[int]:
        """The images whose results are compared: a few, from both ends and the middle; all where a norm mixes the batch."""
        count = self.case.batch
        if self.case.norm or count <= CHECKED_IMAGES:
            return list(range(count))
        return sorted({0, 1, count // 2, count - 1})

    @cached_property
    def check_upstream(self) -> Tensor:
        """The upstream gradient of the check: zero but for the checked images, so that parameter gradients are theirs alone."""
        masked = torch.zeros_like(self.upstream)
        masked[self.checked] = self.upstream[self.checked]
        return masked

    def answers(self, training: bool) -> dict[str, Tensor]:
        """The float64 results on the checked images: output and, for training, every gradient."""
        network = Oracle(self.case).to(self.device, torch.float64)
        network.load_state_dict(self.network.state_dict())
        network.train(training)
        images = self.checked
        x = self.x[images].double().requires_grad_(training)
        inject = None if self.inject is None else self.inject[images].double().requires_grad_(training)
        # each product runs only a few times here: trying algorithms would take longer
        torch.backends.cudnn.benchmark = False
        with torch.set_grad_enabled(training):
            output = network(x, inject)
        found = {"output": output.detach()}
        if training:
            output.backward(self.upstream[images].double())
        torch.backends.cudnn.benchmark = True
        if training:
            found["input gradient"] = _gradient(x)
            if inject is not None:
                found["inject gradient"] = _gradient(inject)
            for name, parameter in gradient_names(network, self.case).items():
                found[f"gradient of {name}"] = _gradient(parameter)
        return found


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


class Prepared:
    """One network ready to run a problem: its leaves, and the functions that are timed. Made by the contenders."""

    def __init__(
        self,
        problem: Problem,
        network: nn.Module,
        call: Callable[..., Tensor],
        training: bool,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.problem, self.network, self.call = problem, network.train(training), call
        self.wants_gradients = training
        if problem.x.dim() != 4:
            memory_format = torch.contiguous_format  # only maps have another
        self.x = problem.x.clone(memory_format=memory_format).requires_grad_(training)
        self.inject = None
        if problem.inject is not None:
            self.inject = problem.inject.clone(memory_format=memory_format).requires_grad_(training)
        self.upstream = problem.upstream.clone(memory_format=memory_format)
        self.parameters = list(network.parameters())
        self.step: Callable[[], Tensor] = self._once  # a contender may put a CUDA graph's replay here

    @property
    def is_replay(self) -> bool:
        return self.step != self._once

    def run(self) -> Tensor:
        """What is timed: inference without a graph, or forward and backward down to the input with gradients written anew."""
        return self.step()

    def _once(self) -> Tensor:
        if not self.wants_gradients:
            with torch.no_grad():
                return self._output()
        self.forget_gradients()
        output = self._output()
        output.backward(self.upstream)
        return output

    def _output(self) -> Tensor:
        return self.call(self.x) if self.inject is None else self.call(self.x, inject=self.inject)

    def forget_gradients(self) -> None:
        for leaf in (self.x, self.inject, *self.parameters):
            if leaf is not None:
                leaf.grad = None

    def answers(self, whole: bool = False) -> dict[str, Tensor]:
        """What Problem.answers gives, from the very function that is timed; `whole`: of all images, under the whole upstream."""
        images = slice(None) if whole else self.problem.checked
        self.upstream.copy_(self.problem.upstream if whole else self.problem.check_upstream)
        try:
            found = {"output": self.run().detach()[images].clone()}
        finally:
            self.upstream.copy_(self.problem.upstream)
        if not self.wants_gradients:
            return found
        found["input gradient"] = _gradient(self.x)[images].clone()
        if self.inject is not None:
            found["inject gradient"] = _gradient(self.inject)[images].clone()
        for name, parameter in gradient_names(self.network, self.problem.case).items():
            found[f"gradient of {name}"] = _gradient(parameter).clone()
        return found
