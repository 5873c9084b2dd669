"""Keeps a module's stages from call to call while all that they are made of stays: making them takes as long as a tiny call.
Called by modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from rdk.arguments import KeptStages, Stage

Source = tuple[Tensor, Tensor | None]  # a stage's weight and bias


class Keeper:
    """One module's; a deep copy or a pickle of the module begins with an empty one."""

    def __init__(self) -> None:
        # one tuple, so that a thread never sees the stages of another's sources
        self.kept: tuple[KeptStages, list[Source]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Keeper, ()

    def get(self, parts: Collection[nn.Module]) -> KeptStages | None:
        """The stages kept, where they are what would be made of `parts` again; else None."""
        kept = self.kept
        if kept is None:
            return None
        stages, sources = kept
        if len(parts) != len(sources):
            return None
        try:
            for number, part in enumerate(parts):
                weight, bias = sources[number]
                own = part._parameters
                if own["weight"] is not weight or own["bias"] is not bias or part._modules["norm"] is not None:
                    return None
        except KeyError:  # a weight that a hook or a parametrization computes is no parameter of this name
            return None
        return stages

    def keep(self, parts: Collection[nn.Module], stages: Sequence[Stage]) -> None:
        """Keeps the stages made of `parts`, where tied parameters are all that these hold."""
        self.kept = None
        sources: list[Source] = []
        for part in parts:
            weight, bias = part._parameters.get("weight"), part._parameters.get("bias")
            if type(weight) is not nn.Parameter or part._modules["norm"] is not None:
                return
            if bias is None and part.bias is not None:
                return
            sources.append((weight, bias))
        self.kept = KeptStages(stages), sources
