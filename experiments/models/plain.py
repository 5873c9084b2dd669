"""The internal module in plain PyTorch, by hand, with states and n at call time; built by network.internal_module for model.plain.

rdk.to_modules has neither, and is made from the module that this one is the reference of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PlainModule(nn.Module):
    """`iterations` times: one convolution or linear layer with ReLU, or BasicBlocks. Call and result are as an rdk module's.

    layers: one per stage when tied, else one per iteration and stage, iteration-major; norms: one per iteration and stage.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        iterations: int,
        *,
        tied: bool,
        bias: bool,
        norm: str | None = None,
        dilation: int | Sequence[int] = 1,
        recall: bool = False,
    ) -> None:
        super().__init__()
        self.iterations, self.tied, self.kind, self.recall = iterations, tied, kind, recall
        self.count = int(recall) + 4 if kind == "residual" else 1
        dilations = [dilation] * self.count if isinstance(dilation, int) else list(dilation)
        layers, norms = [], []
        for iteration in range(iterations):
            for stage in range(self.count):
                if iteration == 0 or not tied:
                    layers.append(_layer(kind, width, bias, dilations[stage]))
                if norm == "batch":
                    norms.append(nn.BatchNorm1d(width) if kind == "linear" else nn.BatchNorm2d(width))
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)

    def forward(
        self,
        x: Tensor,
        *,
        iterations: int | None = None,
        inject: Tensor | None = None,
        return_states: bool = False,
    ) -> Tensor:
        states = []
        for iteration in range(self.iterations if iterations is None else iterations):
            x = self._residual(x, iteration, inject) if self.kind == "residual" else self._single(x, iteration, inject)
            states.append(x)
        return torch.stack(states) if return_states else x

    def _stage(self, x: Tensor, iteration: int, stage: int) -> Tensor:
        z = self.layers[stage if self.tied else iteration * self.count + stage](x)
        return self.norms[iteration * self.count + stage](z) if len(self.norms) else z

    def _single(self, x: Tensor, iteration: int, inject: Tensor | None) -> Tensor:
        z = self._stage(x, iteration, 0)
        return torch.relu(z if inject is None else z + inject)

    def _residual(self, x: Tensor, iteration: int, inject: Tensor | None) -> Tensor:
        first = 0
        if self.recall:
            x, first = self._stage(x, iteration, 0) + (0 if inject is None else inject), 1
        for stage in range(first, self.count, 2):
            z = self._stage(x, iteration, stage)
            if stage == 0 and inject is not None:
                z = z + inject
            x = torch.relu(self._stage(torch.relu(z), iteration, stage + 1) + x)
        return x


def _layer(kind: str, width: int, bias: bool, dilation: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, width, bias=bias)
    return nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=bias)
