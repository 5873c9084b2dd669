"""Lets the modules load the state_dict of their plain PyTorch twins; called by modules before they load."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any, cast

from torch import Tensor, nn


def translate_plain_keys(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Renames the entries of a plain network (nn.Conv2d, a BasicBlock, rdk.to_modules(module), …) to the module's own.

    Products (4-d or 2-d weights) and norms (1-d weights with running statistics) are taken in the order in which the plain
    network registers them, once per stage or once per iteration and stage: in the order of the dict, but names that differ
    first in a number go by the number, since a dict may come sorted by name (safetensors). Where they do not fit the
    module, nothing is renamed and load_state_dict reports the keys that are missing and unexpected, as for any module.
    """
    found = {key: state_dict[key] for key in state_dict if key.startswith(prefix)}
    own = set(_own_keys(module, prefix))
    if not found or own & set(found) or not all(isinstance(value, Tensor) for value in found.values()):
        return
    stages, iterations = len(cast(nn.ModuleList, module.stages)), cast(int, module.iterations)
    products, norms = _groups(found)
    renamed: dict[str, Tensor] = {}
    if not _rename(products, renamed, f"{prefix}stages.", stages, iterations, bool(module.tied), norm=False):
        return
    if module.norm is not None or norms:
        if module.norm is None or not _rename(norms, renamed, f"{prefix}stages.", stages, iterations, False, norm=True):
            return
    # PyTorch fills in the counter of a norm for a dict that lacks it
    if not {key for key in own if not key.endswith(".num_batches_tracked")} <= set(renamed):
        return
    for key in found:
        del state_dict[key]
    state_dict.update(renamed)


def _own_keys(module: nn.Module, prefix: str) -> list[str]:
    """Keys of the stages; what a subclass adds beside them is its own affair."""
    names = [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]
    return [prefix + name for name in names if name.startswith("stages.")]


def _groups(found: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The entries of one plain layer each, products and norms apart, in order of registration."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in found.items():
        layer, _, entry = key.rpartition(".")
        layers.setdefault(layer, {})[entry] = value
    ordered = [layers[name] for name in _in_order(list(layers))]
    products = [entries for entries in ordered if "weight" in entries and entries["weight"].dim() in (2, 4)]
    norms = [entries for entries in ordered if "running_mean" in entries]
    return (products, norms) if len(products) + len(norms) == len(layers) else ([], [])


def _in_order(names: list[str]) -> list[str]:
    """The names with those that agree up to a number sorted by it, among the places that they hold together.

    Names whose numbers ascend already stay as they are: conv1, dilated1, conv2, dilated2 is not regrouped.
    """
    split = [re.split(r"(\d+)", name) for name in names]  # text, number, text, …
    for depth in range(1, max(map(len, split)), 2):
        places: dict[tuple[str, ...], list[int]] = {}
        for place, parts in enumerate(split):
            if len(parts) > depth:
                places.setdefault(tuple(parts[:depth]), []).append(place)
        for together in places.values():
            by_number = sorted((split[place] for place in together), key=lambda parts: int(parts[depth]))
            for place, parts in zip(together, by_number, strict=True):
                split[place] = parts
    return ["".join(parts) for parts in split]


def _rename(
    layers: list[dict[str, Tensor]],
    renamed: dict[str, Tensor],
    prefix: str,
    stages: int,
    iterations: int,
    tied: bool,
    norm: bool,
) -> bool:
    """Adds the module's names for the layers; False where their number does not fit.

    A tied module takes one layer per stage, or one per iteration and stage if all iterations hold equal values (the twin
    repeats shared layers); one layer per stage serves every iteration of an untied or normalised module.
    """
    if len(layers) not in (stages, stages * iterations) or not layers:
        return False
    if tied:
        if not all(_equal(layer, layers[number % stages]) for number, layer in enumerate(layers)):
            return False
        for stage, layer in enumerate(layers[:stages]):
            renamed.update({f"{prefix}{stage}.{entry}": value for entry, value in layer.items()})
        return True
    for iteration in range(iterations):
        for stage in range(stages):
            number = iteration * stages + stage
            for entry, value in layers[number % len(layers)].items():
                name = f"norm.{iteration}.{entry}" if norm else f"{entry}.{iteration}"
                # load_state_dict(assign=True) keeps the very tensor, and iterations must not share one
                renamed[f"{prefix}{stage}.{name}"] = value if number < len(layers) else value.detach().clone()
    return True


def _equal(layer: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two layers have the same entries with the same values; on the meta device, which has none, the same shapes."""
    if layer is other:
        return True
    if {key: (v.shape, v.dtype) for key, v in layer.items()} != {key: (v.shape, v.dtype) for key, v in other.items()}:
        return False
    return all(v.is_meta or other[key].is_meta or v.equal(other[key].to(v.device)) for key, v in layer.items())
