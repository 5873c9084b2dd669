"""Keeps a module's stages from call to call while all that they are made of stays: making them takes as long as a tiny call.
Called by modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from rdk.arguments import KeptStages, Stage

Entries = dict[str, Any]


class Source(NamedTuple):
    """A part of a module's stages, its own dictionaries (an attribute of a module takes long to find), and what they held."""

    part: nn.Module
    parameters: Entries
    modules: Entries
    weight: Tensor
    bias: Tensor | None


class Kept(NamedTuple):
    """The stages, and what they were made of."""

    stages: KeptStages
    container: nn.Module
    parts: Entries  # of the container
    sources: list[Source]


class Keeper:
    """One module's; a deep copy or a pickle of the module begins with an empty one."""

    def __init__(self) -> None:
        # one tuple, so that a thread never sees the stages of another's sources
        self.kept: Kept | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Keeper, ()

    def get(self, container: nn.Module) -> KeptStages | None:
        """The stages kept, where they are what would be made of the container's parts again; else None."""
        kept = self.kept
        if kept is None:
            return None
        stages, known, parts, sources = kept
        if container is not known or len(parts) != len(sources):
            return None
        try:
            for number, part in enumerate(parts.values()):
                source, parameters, modules, weight, bias = sources[number]
                if (
                    part is not source
                    or parameters["weight"] is not weight
                    or parameters["bias"] is not bias
                    or modules["norm"] is not None
                ):
                    return None
        except KeyError:  # a weight that a hook or a parametrization computes is no parameter of this name
            return None
        return stages

    def keep(self, container: nn.Module, stages: Sequence[Stage]) -> None:
        """Keeps the stages made of the container's parts, where tied parameters are all that these hold."""
        self.kept = None
        parts: Entries = container._modules
        sources: list[Source] = []
        for part in parts.values():
            parameters, modules = part._parameters, part._modules
            weight, bias = parameters.get("weight"), parameters.get("bias")
            if type(weight) is not nn.Parameter or modules["norm"] is not None:
                return
            if bias is None and part.bias is not None:
                return
            sources.append(Source(part, parameters, modules, weight, bias))
        self.kept = Kept(KeptStages(stages), container, parts, sources)
