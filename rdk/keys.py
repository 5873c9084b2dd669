"""Lets the modules load the state_dict of their plain PyTorch twins; registered by modules as a load_state_dict pre-hook."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, cast

from torch import Tensor, nn

NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def translate_plain_keys(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Renames the entries of a plain network (nn.Conv2d, a BasicBlock, rdk.to_modules(module), …) to the module's own.

    Products (4-d or 2-d weights) and norms (1-d weights with running statistics) are taken in the order in which the plain
    network registers them, once per stage or once per iteration and stage. Where that does not fit the module, nothing is
    renamed and load_state_dict reports the keys that are missing and unexpected, as for any module.
    """
    found = {key: state_dict[key] for key in state_dict if key.startswith(prefix)}
    own = set(_own_keys(module, prefix))
    if not found or own & set(found):
        return
    products, norms = _groups(found)
    stages, iterations = len(cast(nn.ModuleList, module.stages)), cast(int, module.iterations)
    renamed: dict[str, Tensor] = {}
    if not _rename(products, renamed, f"{prefix}stages.", stages, iterations, bool(module.tied), norm=False):
        return
    if module.norm is not None or norms:
        if module.norm is None or not _rename(norms, renamed, f"{prefix}stages.", stages, iterations, False, norm=True):
            return
    if not own <= set(renamed):
        return
    for key in found:
        del state_dict[key]
    state_dict.update(renamed)


def _own_keys(module: nn.Module, prefix: str) -> list[str]:
    return [prefix + name for name, _ in [*module.named_parameters(), *module.named_buffers()]]


def _groups(found: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The entries of one plain layer each, products and norms apart, in order of registration."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in found.items():
        layer, _, entry = key.rpartition(".")
        layers.setdefault(layer, {})[entry] = value
    products = [entries for entries in layers.values() if "weight" in entries and entries["weight"].dim() in (2, 4)]
    norms = [entries for entries in layers.values() if "running_mean" in entries]
    return (products, norms) if len(products) + len(norms) == len(layers) else ([], [])


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
        for number, layer in enumerate(layers[stages:]):
            if any(not value.equal(layers[number % stages][entry]) for entry, value in layer.items()):
                return False
        for stage, layer in enumerate(layers[:stages]):
            renamed.update({f"{prefix}{stage}.{entry}": value for entry, value in layer.items()})
        return True
    for iteration in range(iterations):
        for stage in range(stages):
            layer = layers[(iteration * stages + stage) % len(layers)]
            for entry, value in layer.items():
                name = f"norm.{iteration}.{entry}" if norm else f"{entry}.{iteration}"
                renamed[f"{prefix}{stage}.{name}"] = value
    return True
