"""The loading of plain state_dicts in every order and state in which they come; each against the network they came from."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdk
from rdk.keys import _in_order

DEPTH = 12  # beyond ten, the order by name is no longer the order by number


def settled(module: nn.Module) -> nn.Module:
    """The module in evaluation mode with statistics of its own in every norm."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.mark.parametrize("kw", [{"tied": False}, {"norm": "batch"}, {"tied": False, "norm": "batch"}])
@pytest.mark.parametrize("prefix", ["", "body."])
def test_a_dict_sorted_by_name_loads_as_the_dict_in_order(kw: dict[str, Any], prefix: str) -> None:
    torch.manual_seed(0)
    module = settled(rdk.RecurrentConv(4, DEPTH, **kw))
    plain = {prefix + key: value for key, value in rdk.to_modules(module).state_dict().items()}  # type: ignore[arg-type]
    assert list(plain) != sorted(plain)
    for given in (plain, dict(sorted(plain.items())), dict(reversed(plain.items()))):
        other = rdk.RecurrentConv(4, DEPTH, **kw)
        target = nn.ModuleDict({"body": other}) if prefix else other
        target.load_state_dict(given)
        assert all(torch.equal(value, module.state_dict()[key]) for key, value in other.state_dict().items())


def test_numbers_anywhere_in_a_name_are_numbers() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.ModuleDict({f"conv{c}": nn.Conv2d(4, 4, 3) for c in (9, 10)}) for _ in range(11)))
    module = rdk.RecurrentResidual(4, 11, blocks=1, bias=True, tied=False)
    module.load_state_dict(dict(sorted(blocks.state_dict().items())))
    for t in range(11):
        assert torch.equal(module.stages[0].weight[t], blocks[t]["conv9"].weight)
        assert torch.equal(module.stages[1].weight[t], blocks[t]["conv10"].weight)


@pytest.mark.parametrize(
    "names",
    [
        ["stem", "body", "head", "again"],
        ["conv1", "dilated1", "conv2", "dilated2"],
        ["b.0.out", "b.0.into", "b.1.out", "b.1.into", "a"],
        ["layers.1", "last", "layers.2", "layer", "layers.10"],
        [""],
    ],
)
def test_names_in_order_keep_the_order_of_the_dict(names: list[str]) -> None:
    assert _in_order(names) == names


def test_only_numbers_change_places() -> None:
    assert _in_order(["l10.b", "l10.a", "x", "l2.b", "l2.a"]) == ["l2.b", "l2.a", "x", "l10.b", "l10.a"]


@pytest.mark.parametrize("kw", [{"tied": False}, {"norm": "batch"}, {"tied": False, "norm": "batch"}])
@pytest.mark.parametrize("keep_vars", [False, True])
def test_assigned_iterations_share_no_storage(kw: dict[str, Any], keep_vars: bool) -> None:
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), *([nn.BatchNorm2d(4)] if "norm" in kw else []))
    module = rdk.RecurrentConv(4, 3, **kw)
    module.load_state_dict(plain.state_dict(keep_vars=keep_vars), assign=True)
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    assert len({tensor.data_ptr() for _, tensor in tensors}) == len(tensors)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in module.parameters())
    first = module.stages[0].weight if module.tied else module.stages[0].weight[0]
    assert first.data_ptr() == plain[0].weight.data_ptr()  # the first use is the very tensor, as assign=True promises


def test_layers_that_differ_in_their_entries_are_no_tied_network() -> None:
    bare, biased = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3)
    biased.weight.data.copy_(bare.weight)
    for plain in (nn.Sequential(bare, biased), nn.Sequential(biased, bare)):
        with pytest.raises(RuntimeError, match="Missing key"):
            rdk.RecurrentConv(4, 2).load_state_dict(plain.state_dict())


def test_an_unrolled_network_on_the_meta_device_loads() -> None:
    plain = nn.Sequential(*(nn.Conv2d(4, 4, 3, device="meta") for _ in range(4)))
    module = rdk.RecurrentResidual(4, 2, blocks=1, bias=True, device="meta")
    assert not any(module.load_state_dict(plain.state_dict(), assign=True))
    wider = nn.Sequential(nn.Conv2d(4, 4, 3, device="meta"), nn.Conv2d(5, 5, 3, device="meta"))
    with pytest.raises(RuntimeError, match="Missing key"):
        rdk.RecurrentConv(4, 2, device="meta").load_state_dict(wider.state_dict())


def test_a_dict_without_the_counters_of_its_norms_loads() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    kept: dict[str, Tensor] = {key: v for key, v in plain.state_dict().items() if "num_batches" not in key}
    module = rdk.RecurrentConv(4, 2, norm="batch")
    assert not any(module.load_state_dict(kept))
    assert torch.equal(module.stages[0].weight, plain[0].weight)
    del kept["1.running_var"]
    with pytest.raises(RuntimeError, match="Missing key"):
        rdk.RecurrentConv(4, 2, norm="batch").load_state_dict(kept)


def test_what_is_no_tensor_is_left_to_load_state_dict() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        rdk.RecurrentConv(4, 2).load_state_dict({"weight": 3, "bias": None})


def test_what_a_subclass_adds_does_not_hinder_plain_keys() -> None:
    class Scaled(rdk.RecurrentConv):
        def __init__(self, channels: int, iterations: int) -> None:
            super().__init__(channels, iterations)
            self.scale = nn.Parameter(torch.ones(1))

    plain = rdk.to_modules(rdk.RecurrentConv(4, 3))
    module = Scaled(4, 3)
    missing, unexpected = module.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["scale"] and unexpected == []
    assert torch.equal(module.stages[0].weight, plain.layers[0].weight)


def test_a_copy_loads_when_the_original_is_gone() -> None:
    plain = rdk.to_modules(rdk.RecurrentConv(4, 3))
    module = rdk.RecurrentConv(4, 3)
    copied = copy.copy(module)
    del module
    gc.collect()
    copied.load_state_dict(plain.state_dict())
    assert torch.equal(copied.stages[0].weight, plain.layers[0].weight)


def test_a_plain_network_may_call_its_list_stages() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])

    plain, module = Plain(), rdk.RecurrentConv(4, 3, tied=False)
    module.load_state_dict(plain.state_dict())
    assert torch.equal(module.stages[0].weight[2], plain.stages[2].weight)
