"""The one shape of all networks here: layers, a module applied n times, layers; built by each family, used by engine, analyses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rdk
from experiments.models.plain import PlainModule
from experiments.settings import Model

RDK_MODULES = {"conv": rdk.RecurrentConv, "residual": rdk.RecurrentResidual, "linear": rdk.RecurrentLinear}


class DepthNet(nn.Module):
    """stem → internal module, n times → head.

    Args:
        stem, head: the layers outside; head ends in what makes the outputs, everything before its last layer is `features`.
        internal: an rdk module or its plain twin; None for the ResNets, whose stem and head are the whole network.
        inject: for recall networks, the convolution of the image that is added at every iteration.

    State dicts name the parts: stem.*, internal.*, head.*; those of the plain twin load into the rdk form.
    """

    def __init__(
        self, stem: nn.Module, internal: nn.Module | None, head: nn.Sequential, inject: nn.Module | None = None
    ):
        super().__init__()
        self.stem, self.internal, self.head, self.inject = stem, internal, head, inject

    @property
    def iterations(self) -> int:
        return 1 if self.internal is None else int(self.internal.iterations)  # type: ignore[arg-type]

    def states(self, x: Tensor, iterations: int | None = None) -> Tensor:
        """x: (N, C, H, W). The internal state after every iteration, (n, N, …)."""
        h = self.stem(x)
        return h[None] if self.internal is None else self._iterate(h, x, iterations, return_states=True)

    def outputs(self, x: Tensor, iterations: int | None = None) -> Tensor:
        """The head's output after every iteration, (n, N, …): what the test-time halting rules look at."""
        states = self.states(x, iterations)
        return self.head(states.flatten(0, 1)).unflatten(0, states.shape[:2])

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, (N, …)."""
        return self.head[:-1](self.states(x)[-1])

    def forward(self, x: Tensor, iterations: int | None = None) -> Tensor:
        h = self.stem(x)
        return self.head(h if self.internal is None else self._iterate(h, x, iterations))

    def _iterate(self, h: Tensor, x: Tensor, iterations: int | None, **more: Any) -> Tensor:
        assert self.internal is not None
        inject = None if self.inject is None else self.inject(x)
        return self.internal(h, iterations=iterations, inject=inject, **more)


def internal_module(model: Model, kind: str, width: int, iterations: int, **stage: Any) -> nn.Module:
    """The internal module in rdk's form, or in plain PyTorch with model.plain. kind: conv, residual or linear."""
    if model.plain:
        return PlainModule(kind, width, iterations, tied=model.recurrent, **stage)
    module = RDK_MODULES[kind](width, iterations, tied=model.recurrent, backend=model.backend, **stage)
    module.checkpoint = model.checkpoint
    return module


def memory_format(net: DepthNet, wanted: bool) -> DepthNet:
    """The network with its convolutions in channels_last, if wanted."""
    return net.to(memory_format=torch.channels_last) if wanted else net
