"""The modules as drop-ins: initialisation, state_dict both ways, copies, hooks, repr, iterations at call time."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rdk
from rdk.testing import relative


def test_initialised_as_the_plain_layers() -> None:
    for make, plain in [
        (lambda: rdk.RecurrentConv(6, 3), lambda: nn.Conv2d(6, 6, 3)),
        (lambda: rdk.RecurrentLinear(6, 3), lambda: nn.Linear(6, 6)),
    ]:
        torch.manual_seed(0)
        module = make()
        torch.manual_seed(0)
        layer = plain()
        assert torch.equal(module.stages[0].weight, layer.weight) and torch.equal(module.stages[0].bias, layer.bias)
    untied = rdk.RecurrentConv(6, 3, tied=False)
    assert len({w.sum().item() for w in untied.stages[0].weight}) == 3


def names(module: nn.Module) -> list[str]:
    return sorted(module.state_dict())


def test_state_dict_can_be_read_by_a_person() -> None:
    assert names(rdk.RecurrentConv(2, 5)) == ["stages.0.bias", "stages.0.weight"]
    assert names(rdk.RecurrentResidual(2, 5)) == [f"stages.{s}.weight" for s in range(4)]
    assert names(rdk.RecurrentResidual(2, 5, recall=True)) == [f"stages.{s}.weight" for s in range(5)]
    untied = names(rdk.RecurrentConv(2, 2, tied=False))
    assert untied == ["stages.0.bias.0", "stages.0.bias.1", "stages.0.weight.0", "stages.0.weight.1"]
    normed = names(rdk.RecurrentConv(2, 2, norm="batch", bias=False))
    entries = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
    assert normed == [f"stages.0.norm.{t}.{entry}" for t in range(2) for entry in entries] + ["stages.0.weight"]


def test_norms_are_real_children() -> None:
    module = rdk.RecurrentConv(4, 3, norm="batch")
    assert [type(m) for m in module.stages[0].norm] == [nn.BatchNorm2d] * 3
    assert type(rdk.RecurrentLinear(4, 3, norm="batch").stages[0].norm[0]) is nn.BatchNorm1d


@pytest.mark.parametrize("kw", [{}, {"tied": False}, {"norm": "batch"}])
def test_copies_compute_the_same(kw: dict[str, Any]) -> None:
    module = rdk.RecurrentResidual(4, 3, **kw, checkpoint=2).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = module(x)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    # with the same schedule, so that it runs on the same backend
    loaded = rdk.RecurrentResidual(4, 3, **kw, checkpoint=2).eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(twin(x), expected)
    assert copy.deepcopy(module).checkpoint == 2


def test_dtype_device_and_memory_format_move_as_for_any_module() -> None:
    module = rdk.RecurrentResidual(8, 3, norm="batch")
    half = copy.deepcopy(module).half()
    x = torch.randn(2, 8, 6, 6)
    y = half(x.half())
    assert y.dtype == torch.float16 and relative(y, module(x)) < 2e-2
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    assert last.stages[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert relative(last.eval()(x), module.eval()(x)) < 1e-5
    assert module.double()(x.double()).dtype == torch.float64
    assert rdk.RecurrentConv(4, 3, device="meta")(torch.empty(2, 4, 5, 5, device="meta")).shape == (2, 4, 5, 5)
    assert rdk.RecurrentConv(4, 3, dtype=torch.bfloat16).stages[0].weight.dtype == torch.bfloat16


def test_weight_gradients_have_the_strides_of_the_weight() -> None:
    for checkpoint in ("auto", 1):
        module = rdk.RecurrentConv(8, 3, checkpoint=checkpoint, backend="eager").to(memory_format=torch.channels_last)
        module(torch.randn(2, 8, 5, 5)).sum().backward()
        weight = module.stages[0].weight
        if checkpoint != "auto":  # with "auto" PyTorch's own accumulation decides
            assert weight.grad.stride() == weight.stride()


def test_hooks_fire_on_the_module() -> None:
    module, seen = rdk.RecurrentConv(4, 3), []
    module.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    module.register_full_backward_hook(lambda m, gi, go: seen.append(gi[0].shape))
    module(torch.randn(2, 4, 5, 5, requires_grad=True)).sum().backward()
    assert seen == [(2, 4, 5, 5)] * 2


def test_repr_shows_the_settings() -> None:
    shown = repr(rdk.RecurrentResidual(8, 3, recall=True, norm="batch", dilation=2, tied=False, checkpoint="sqrt"))
    for part in ("8, iterations=3, blocks=2", "recall=True", "norm='batch'", "dilation=2", "tied=False", "'sqrt'"):
        assert part in shown
    assert "RecurrentConv(\n  4, iterations=5, bias=True, backend='eager'" in repr(
        rdk.RecurrentConv(4, 5, backend="eager")
    )
    assert "4, iterations=5, bias=False, memory_budget=9" in repr(
        rdk.RecurrentLinear(4, 5, bias=False, memory_budget=9)
    )


@pytest.mark.parametrize("kw", [{}, {"tied": False}, {"norm": "batch"}, {"norm": "batch", "tied": False}])
@pytest.mark.parametrize("checkpoint", ["auto", 1])
def test_start_continues_a_run(kw: dict[str, Any], checkpoint: Any) -> None:
    module = rdk.RecurrentResidual(4, 5, **kw, checkpoint=checkpoint, backend="eager").double().eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    states = module(x, return_states=True)
    halfway = module(x, iterations=2)
    assert relative(halfway, states[1]) < 1e-14
    assert relative(module(halfway, iterations=3, start=2), states[4]) < 1e-13
    assert relative(module(x), states[-1]) < 1e-14


def test_iterations_at_call_time() -> None:
    module = rdk.RecurrentConv(4, 3)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(module(x, iterations=5), module(module(x), iterations=2))


def test_untied_iterations_that_did_not_run_get_no_gradient() -> None:
    for checkpoint in ("auto", 1):
        module = rdk.RecurrentConv(4, 5, tied=False, norm="batch", checkpoint=checkpoint, backend="eager")
        module(torch.randn(2, 4, 5, 5), iterations=2, start=1).sum().backward()
        for t in range(5):
            ran = t in (1, 2)
            for parameter in (module.stages[0].weight[t], module.stages[0].norm[t].weight):
                assert (parameter.grad is not None) == ran


def test_states_are_differentiable_in_each() -> None:
    module = rdk.RecurrentConv(3, 4, checkpoint=1, backend="eager").double()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    for t in range(4):
        (through_states,) = torch.autograd.grad(module(x, return_states=True)[t].sum(), x)
        (direct,) = torch.autograd.grad(module(x, iterations=t + 1).sum(), x)
        assert relative(through_states, direct) < 1e-13


def test_plain_autograd_passes_gradcheck_and_gradgradcheck() -> None:
    for cls, kw in [
        (rdk.RecurrentConv, {"norm": "batch"}),
        (rdk.RecurrentResidual, {"recall": True}),
        (rdk.RecurrentLinear, {"tied": False}),
    ]:
        torch.manual_seed(0)
        module = cls(2, 2, **kw, backend="eager", checkpoint="none").double()
        shape = (3, 2) if cls is rdk.RecurrentLinear else (2, 2, 3, 2)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        inject = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.0
        assert torch.autograd.gradcheck(lambda a, b: module(a, inject=b), (x, inject))
        assert torch.autograd.gradgradcheck(lambda a, b: module(a, inject=b), (x, inject), atol=1e-4)


@pytest.mark.parametrize("kw", [{}, {"norm": "batch"}, {"recall": True}])
def test_checkpointed_backward_passes_gradcheck(kw: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = rdk.RecurrentResidual(2, 4, blocks=1, **kw, checkpoint=1, backend="eager").double()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: module(a, return_states=True), (x,))


def pruned(part: nn.Module, name: str) -> None:
    prune.l1_unstructured(part, name, 0.5)


class EverySecond(prune.BasePruningMethod):
    """A user's own method, of a module that is not PyTorch's."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


def pruned_by_hand(part: nn.Module, name: str) -> None:
    EverySecond.apply(part, name)


def normed(part: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(part, name)


def spectral(part: nn.Module, name: str) -> None:
    nn.utils.spectral_norm(part, name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("apply", [pruned, pruned_by_hand, normed, spectral, nn.utils.parametrizations.weight_norm])
def test_weights_computed_from_others_follow_them(apply: Any, tied: bool) -> None:
    """prune, weight_norm and spectral_norm compute a weight in a hook before each call; a stage is never called."""
    torch.manual_seed(0)
    module = rdk.RecurrentConv(4, 3, tied=tied).double()
    stage = module.stages[0]
    if tied:
        apply(stage, "weight")
    else:
        for name in ("0", "1", "2"):
            apply(stage.weight, name)
    with pytest.raises(ValueError, match="computed from other parameters"):
        rdk.to_modules(module)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    module(x).sum().backward()
    behind = [parameter for name, parameter in module.named_parameters() if "bias" not in name]
    assert behind and all(parameter.grad is not None for parameter in behind)
    before = module(x)
    with torch.no_grad():
        for parameter in behind:
            parameter.add_(torch.randn_like(parameter))
    after = module.eval()(x)  # in evaluation spectral_norm keeps its vectors
    state = x
    for iteration in range(3):
        weight = stage.weight if tied else getattr(stage.weight, str(iteration))
        bias = stage.bias if tied else stage.bias[iteration]
        state = torch.relu(torch.conv2d(state, weight, bias, padding=1))
    assert relative(after, before) > 1e-2 and relative(after, state) < 1e-12


def test_parameters_of_a_computed_weight_are_reset_as_pytorchs_are() -> None:
    module = rdk.RecurrentConv(4, 2)
    nn.utils.parametrizations.weight_norm(module.stages[0], "weight")
    before = module.stages[0].bias.clone()
    module.reset_parameters()
    assert not torch.equal(module.stages[0].bias, before)
