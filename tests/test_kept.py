"""Stages kept from call to call are those that would be made anew, whatever happens to the module in between."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rdk
from rdk.kept import Keeper

X = torch.randn(2, 4, 5, 6)


def made_anew(module: Any) -> list[Any]:
    twin = copy.copy(module)
    twin._kept = Keeper()
    return list(twin.functional_stages())


def assert_fresh(module: Any) -> None:
    found = module.functional_stages()
    for stage, expected in zip(found, made_anew(module), strict=True):
        for field, value in expected._asdict().items():
            ours = getattr(stage, field)
            # a computed weight is another tensor each time
            assert ours is value or (torch.is_tensor(value) and torch.equal(ours, value)), field
            assert type(ours) is type(value)


def with_warnings_off(change: Callable[[Any], Any], module: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        change(module)


def other_stage(module: Any) -> None:
    module.stages[1] = rdk.RecurrentResidual(4, 3, bias=True).stages[0]


def other_list(module: Any) -> None:
    module.stages = nn.ModuleList(reversed(list(module.stages)))


def other_norm(module: Any) -> None:
    module.stages[0].norm = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)])


def weights_as_a_function(module: Any) -> None:
    """torch.func.functional_call puts tensors in the parameters' places while it lasts."""
    state = {name: tensor.detach() + 1 for name, tensor in module.named_parameters()}
    inside = torch.func.functional_call(module, state, (X,))
    assert not torch.equal(inside, module(X))
    expected = copy.deepcopy(module)
    expected.load_state_dict(state)
    assert torch.equal(inside, expected(X))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another weight": lambda m: setattr(m.stages[0], "weight", nn.Parameter(torch.randn(4, 4, 3, 3))),
    "another bias": lambda m: setattr(m.stages[0], "bias", nn.Parameter(torch.randn(4))),
    "no bias": lambda m: setattr(m.stages[0], "bias", None),
    "parametrized": lambda m: parametrizations.weight_norm(m.stages[2], "weight"),
    "parametrized bias": lambda m: parametrize.register_parametrization(m.stages[2], "bias", nn.Softplus()),
    "weight_norm": lambda m: nn.utils.weight_norm(m.stages[0]),
    "pruned": lambda m: prune.l1_unstructured(m.stages[3], "weight", 0.5),
    "pruned bias": lambda m: prune.l1_unstructured(m.stages[3], "bias", 0.5),
    "another stage": other_stage,
    "another list": other_list,
    "a norm": other_norm,
    "another dtype": lambda m: m.double(),
    "assigned": lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
    "functional_call": weights_as_a_function,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(4, 3, bias=True)
    module(X)
    assert module._kept.kept is not None and module.functional_stages() is module.functional_stages()
    with_warnings_off(change, module)
    assert_fresh(module)
    assert_fresh(module)  # and once more, from what was kept then


@pytest.mark.parametrize("kw", [{"tied": False}, {"norm": "batch"}])
def test_lists_and_norms_are_not_kept(kw: dict[str, Any]) -> None:
    module = rdk.RecurrentConv(4, 3, **kw)
    module(X)
    assert module._kept.kept is None


def test_data_of_another_shape_or_dtype_gets_its_sentence() -> None:
    """The very parameter, which no identity tells from before."""
    module = rdk.RecurrentConv(4, 3)
    module(X)
    module.stages[0].weight.data = torch.randn(5, 5, 3, 3)
    with pytest.raises(ValueError, match="the input has 4 channels, the layer was built for 5"):
        module(X)
    module.stages[0].weight.data = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match="the weight has torch.float64"):
        module(X)
    module.double()
    assert module(X.double()).dtype == torch.float64


def test_copies_and_pickles_keep_nothing_of_the_original() -> None:
    module = rdk.RecurrentResidual(4, 3)
    expected = module(X)
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    others = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(stream, weights_only=False),
    ]
    for other in others:
        assert other._kept.kept is None and torch.equal(other(X), expected)
        assert other.functional_stages()[0].weight is other.stages[0].weight
    shared = copy.copy(module)
    shared.stages = copy.deepcopy(module.stages)
    with torch.no_grad():
        shared.stages[0].weight.zero_()
    # PyTorch's own copy shares what modules are registered
    assert not torch.equal(shared(X), expected) and torch.equal(module(X), shared(X))


def test_a_compiled_module_sees_a_change() -> None:
    module = rdk.RecurrentConv(4, 3, checkpoint=1)
    module(X)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compiled(X)
    module.stages[0].weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    torch.testing.assert_close(compiled(X), module(X))
