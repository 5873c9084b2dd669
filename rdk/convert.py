"""From plain PyTorch modules to recurrent ones and back; called by users (rdk.from_module, rdk.to_modules)."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from rdk import checks
from rdk.modules import Recurrent, RecurrentConv, RecurrentLinear, RecurrentResidual, StageParameters


class _Layer(NamedTuple):
    """One stage found in a plain module, with the name under which its product was found."""

    name: str
    product: nn.Conv2d | nn.Linear
    norm: nn.Module | None
    relu: bool
    skip: int | None

    def shape(self) -> tuple[object, ...]:
        """All but values and names: equal for layers that can be iterations of one stage."""
        product = self.product
        norm, bias, dilation = self.norm is not None, product.bias is not None, getattr(product, "dilation", None)
        return tuple(product.weight.shape), dilation, bias, norm, self.relu, self.skip


def from_module(block: nn.Module | Sequence[nn.Module], iterations: int | None = None, **settings: Any) -> Recurrent:
    """The recurrent module that repeats `block`.

    Args:
        block: nn.Sequential(Conv2d, [BatchNorm2d], ReLU), a BasicBlock (two convolutions, norms or none, an identity
            shortcut), an nn.Sequential of BasicBlocks, or nn.Sequential(Linear, [BatchNorm1d], ReLU). A list of n such
            blocks gives the untied twin.
        iterations: how often the block is applied; for a list its length, and may be left out.
        settings: checkpoint, memory_budget and backend, as for the modules.

    Returns:
        RecurrentConv, RecurrentResidual or RecurrentLinear. Weights and biases are the block's own parameter objects; a
        BatchNorm is the block's own for iteration 0 and a copy of it for each later one.

    Raises:
        TypeError: `block` is no module and no list of them, or a setting is unknown.
        ValueError: a layer does not fit (its name is in the message), or the result does not agree with the block on a
            small input, in evaluation or in training mode; both are tried on copies with random parameters.
    """
    blocks, tied = _blocks(block)
    iterations = checks.integer(iterations)
    if iterations is None:
        if tied:
            raise ValueError("rdk.from_module: iterations is missing; say how often the block is to be applied.")
        iterations = len(blocks)
    if not tied and iterations != len(blocks):
        raise ValueError(
            f"rdk.from_module: a list of blocks is applied once each, so iterations must be {len(blocks)}, got {iterations}."
        )
    unknown = set(settings) - {"checkpoint", "memory_budget", "backend"}
    if unknown:
        raise TypeError(
            f"rdk.from_module: unknown setting {sorted(unknown)[0]!r}; expected checkpoint, memory_budget or backend."
        )
    layers = [_layers(one) for one in blocks]
    module = _empty(layers[0], iterations, tied, settings)
    for number, others in enumerate(layers):
        if [layer.shape() for layer in others] != [layer.shape() for layer in layers[0]]:
            raise ValueError(f"rdk.from_module: block {number} of the list is not built like block 0.")
    _share(module, layers, iterations, tied)
    for part in module.modules():
        if not isinstance(part, _BatchNorm):  # those are the user's, and may be frozen
            part.training = blocks[0].training
    for one in blocks:
        _check_agreement(one)
    return module


def _blocks(block: object) -> tuple[list[nn.Module], bool]:
    """The blocks of from_module's argument, and whether it is one block rather than a list."""
    tied = isinstance(block, nn.Module) and not isinstance(block, nn.ModuleList)
    if not tied and not isinstance(block, Iterable):
        raise TypeError(f"rdk.from_module: expected an nn.Module or a list of them, got {_described(block)}.")
    blocks: list[Any] = [block] if tied else list(block)  # type: ignore[call-overload]
    if not blocks:
        raise ValueError("rdk.from_module: the list of blocks is empty; give at least one block.")
    for number, one in enumerate(blocks):
        if not isinstance(one, nn.Module):
            raise TypeError(f"rdk.from_module: block {number} of the list must be an nn.Module, got {_described(one)}.")
    return blocks, tied


def _described(value: object) -> str:
    return f"the class {value.__name__}; call it first" if isinstance(value, type) else type(value).__name__


def _check_parts(block: nn.Module) -> None:
    """Refuses parts whose tensors are not there or come from code that rdk would not run."""
    for name, part in block.named_modules():
        tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if any(is_lazy(tensor) for tensor in tensors):
            what = "is not initialised yet; run the block once"
        elif is_parametrized(part):
            what = "is parametrized, which rdk would not compute anew; take that off first (remove_parametrizations)"
        elif part._forward_pre_hooks or part._forward_hooks or part._backward_pre_hooks or part._backward_hooks:
            what = "has a hook, which rdk would never run; take it off first (prune.remove, remove_weight_norm)"
        elif any(tensor.is_meta for tensor in tensors):
            what = "is on the meta device and holds no values; give it some first (to_empty, load_state_dict)"
        else:
            continue
        raise ValueError(f"rdk.from_module: layer {name or type(part).__name__!r} {what}.")


def _layers(block: nn.Module) -> list[_Layer]:
    """The stages of one block, in order."""
    _check_parts(block)
    found: list[_Layer] = []
    _collect(block, "", found)
    if not found:
        raise ValueError(f"rdk.from_module: {type(block).__name__} holds no Conv2d and no Linear layer.")
    return found


def _collect(block: nn.Module, name: str, found: list[_Layer]) -> None:
    if isinstance(block, (nn.Conv2d, nn.Linear)):
        _check_product(block, name)
        found.append(_Layer(name or type(block).__name__, block, None, False, None))
    elif isinstance(block, _BatchNorm):
        if not found or found[-1].relu or found[-1].norm is not None:
            raise ValueError(f"rdk.from_module: layer {name!r} ({type(block).__name__}) does not follow a convolution.")
        found[-1] = found[-1]._replace(norm=block)
    elif isinstance(block, nn.ReLU):
        if not found:
            raise ValueError(f"rdk.from_module: layer {name!r} (ReLU) comes before the first convolution.")
        found[-1] = found[-1]._replace(relu=True)
    elif isinstance(block, nn.Identity):
        pass
    elif isinstance(block, nn.Sequential):
        for key, child in block.named_children():
            _collect(child, f"{name}.{key}" if name else key, found)
    else:
        found += _basic_block(block, name, len(found))


def _basic_block(block: nn.Module, name: str, first: int) -> list[_Layer]:
    """The two stages of a BasicBlock with an identity shortcut."""
    if not any(True for _ in block.children()):
        raise ValueError(
            f"rdk.from_module: layer {name or type(block).__name__!r} ({type(block).__name__}) does not fit; a repeated layer is "
            f"a Conv2d or Linear, a BatchNorm, a ReLU or a BasicBlock."
        )
    products: list[tuple[str, nn.Conv2d]] = []
    norms: list[nn.Module] = []
    for key, child in block.named_children():
        path = f"{name}.{key}" if name else key
        if isinstance(child, nn.Conv2d):
            _check_product(child, path)
            products.append((path, child))
        elif isinstance(child, _BatchNorm):
            norms.append(child)
        elif not isinstance(child, (nn.ReLU, nn.Identity)) and not (
            isinstance(child, nn.Sequential) and len(child) == 0
        ):
            raise ValueError(
                f"rdk.from_module: layer {path!r} ({type(child).__name__}) does not fit; a block may hold Conv2d, "
                f"BatchNorm2d, ReLU and an identity shortcut."
            )
    if len(products) != 2 or len(norms) not in (0, 2):
        raise ValueError(
            f"rdk.from_module: layer {name or type(block).__name__!r} has {len(products)} convolutions and {len(norms)} "
            f"norms; a BasicBlock has 2 and 0 or 2."
        )
    pair: list[nn.Module | None] = [*norms] if norms else [None, None]
    (name_a, conv_a), (name_b, conv_b) = products
    return [_Layer(name_a, conv_a, pair[0], True, None), _Layer(name_b, conv_b, pair[1], True, first)]


def _check_product(layer: nn.Conv2d | nn.Linear, name: str) -> None:
    def refuse(what: str) -> ValueError:
        return ValueError(f"rdk.from_module: layer {name or type(layer).__name__!r} {what}.")

    if not layer.weight.is_floating_point():
        raise refuse(f"has weights of {layer.weight.dtype}; expected a floating-point type")
    if isinstance(layer, nn.Linear):
        if layer.in_features != layer.out_features:
            raise refuse(
                f"maps {layer.in_features} features to {layer.out_features}; a repeated layer keeps their number"
            )
        return
    if layer.in_channels != layer.out_channels:
        raise refuse(f"maps {layer.in_channels} channels to {layer.out_channels}; a repeated layer keeps their number")
    if layer.kernel_size != (3, 3):
        raise refuse(f"has a kernel of {layer.kernel_size}; expected (3, 3)")
    if layer.stride != (1, 1):
        raise refuse(f"has stride {layer.stride}; expected (1, 1)")
    if layer.dilation[0] != layer.dilation[1]:
        raise refuse(f"has dilation {layer.dilation}; expected the same in both directions")
    if layer.padding not in (layer.dilation, "same"):
        raise refuse(f"has padding {layer.padding}; expected its dilation {layer.dilation}, which keeps the map's size")
    if layer.groups != 1:
        raise refuse(f"has {layer.groups} groups; expected 1")
    if layer.padding_mode != "zeros":
        raise refuse(f"pads with {layer.padding_mode!r}; expected 'zeros'")


def _empty(layers: list[_Layer], iterations: int, tied: bool, settings: dict[str, Any]) -> Recurrent:
    """A module of the right class and shape, without values."""
    norms = [layer.norm is not None for layer in layers]
    if any(norms) != all(norms):
        missing = layers[norms.index(False)].name
        raise ValueError(f"rdk.from_module: layer {missing!r} has no BatchNorm, others have one; give all one or none.")
    common: dict[str, Any] = {
        "norm": "batch" if norms[0] else None,
        "tied": tied,
        "bias": any(layer.product.bias is not None for layer in layers),
        "device": "meta",
        **settings,
    }
    shapes = [(layer.relu, layer.skip) for layer in layers]
    first = layers[0].product
    if len(layers) == 1 and shapes[0] == (True, None):
        if isinstance(first, nn.Linear):
            return RecurrentLinear(first.in_features, iterations, **common)
        return RecurrentConv(first.in_channels, iterations, dilation=first.dilation[0], **common)
    expected = [(True, None if number % 2 == 0 else number - 1) for number in range(len(layers))]
    if len(layers) % 2 or shapes != expected:
        odd = next(
            (layer.name for layer, want in zip(layers, expected, strict=True) if layer[3:] != want), layers[-1].name
        )
        raise ValueError(
            f"rdk.from_module: layer {odd!r} does not fit; expected one convolution (or Linear) with a ReLU, or BasicBlocks."
        )
    dilations = [layer.product.dilation[0] for layer in layers if isinstance(layer.product, nn.Conv2d)]
    assert isinstance(first, nn.Conv2d)
    return RecurrentResidual(first.in_channels, iterations, blocks=len(layers) // 2, dilation=dilations, **common)


def _share(module: Recurrent, layers: list[list[_Layer]], iterations: int, tied: bool) -> None:
    """Puts the blocks' parameters and norms into the module."""
    for number, stage in enumerate(module.stages):
        assert isinstance(stage, StageParameters)
        products = [block[number].product for block in layers]
        biases = [product.bias for product in products]
        if tied:
            stage.weight = products[0].weight  # type: ignore[assignment]
            stage.bias = biases[0]  # type: ignore[assignment]
        else:
            stage.weight = nn.ParameterList([product.weight for product in products])
            stage.bias = None if biases[0] is None else nn.ParameterList(biases)  # type: ignore[arg-type]
        if module.norm is not None:
            norms = [block[number].norm for block in layers]
            if tied:
                norms += [copy.deepcopy(norms[0]) for _ in range(iterations - 1)]
            stage.norm = nn.ModuleList(norms)  # type: ignore[arg-type]


def _check_agreement(block: nn.Module) -> None:
    """Raises ValueError unless a recurrent module computes what the block does, in evaluation and in training mode.

    Both are copies with random parameters and statistics: in a fresh block a norm hardly does anything, and a weight of
    zero hides a whole branch. They run in float64, where the smallest difference tells.
    """

    def refuse(what: str) -> ValueError:
        return ValueError(f"rdk.from_module: {type(block).__name__} {what}")

    try:
        twin = copy.deepcopy(block)
    except Exception as error:
        raise refuse(f"cannot be copied for a comparison ({type(error).__name__}: {error}).") from error
    layers, generator = _layers(twin), torch.Generator().manual_seed(0)
    weight = layers[0].product.weight
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64
    tolerance = 1e5 * torch.finfo(dtype).eps
    _randomise(twin.to(dtype), generator)
    module = _empty(layers, 1, True, {"checkpoint": "none", "backend": "eager"})
    _share(module, [layers], 1, True)
    size = 2 * max(getattr(layer.product, "dilation", (1,))[0] for layer in layers) + 3
    shape = (8, weight.shape[0]) if weight.dim() == 2 else (2, weight.shape[1], size, size + 1)
    x = _random(shape, 8.0, generator).to(weight.device, dtype)
    # in training mode a SyncBatchNorm may wait for other processes
    modes = [False] if any(isinstance(part, nn.SyncBatchNorm) for part in twin.modules()) else [False, True]
    for training in modes:
        for part in [*twin.modules(), *module.modules()]:
            part.training = training
        try:
            expected, drawn = _run(twin, x)
        except Exception as error:
            raise refuse(f"raises {type(error).__name__} on a {dtype} input of shape {shape}: {error}") from error
        where = "in training mode" if training else "in evaluation mode"
        if drawn:
            raise refuse(f"draws random numbers {where} (dropout?); rdk repeats only what is the same in every call.")
        if not isinstance(expected, Tensor) or expected.shape != x.shape:
            raise refuse("does not return a tensor of its input's shape.")
        got, _ = _run(module, x)
        difference = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
        if not difference <= tolerance:
            raise refuse(
                f"computes something else than its layers {', '.join(repr(layer.name) for layer in layers)} in order "
                f"(relative difference {difference:.1e} {where} with random parameters, at most {tolerance:.1e} allowed). "
                f"Its forward does more than rdk can repeat."
            )


def _random(shape: Sequence[int], scale: float, generator: torch.Generator) -> Tensor:
    return scale * torch.randn(tuple(shape), generator=generator, device="cpu", dtype=torch.float64)


@torch.no_grad()
def _randomise(block: nn.Module, generator: torch.Generator) -> None:
    """Gives every parameter and running statistic a random value that leaves the states' size about as it is, and every other
    buffer any: a forward that reads one does what no layer says."""
    for parameter in block.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.copy_(_random(parameter.shape, 2 / fan**0.5, generator))
    for part in block.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.copy_(_random(part.running_mean.shape, 1.0, generator))
            part.running_var.copy_(_random(part.running_var.shape, 1.0, generator).square() + 0.5)
        elif not isinstance(part, _BatchNorm):
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.layout is torch.strided and not buffer.is_quantized:
                    draw = _random(buffer.shape, 1.0, generator)
                    found = draw if buffer.is_floating_point() or buffer.is_complex() else draw > 0
                    part._buffers[name] = found.to(buffer.device, buffer.dtype)  # the old one may be expanded


def _run(module: nn.Module, x: Tensor) -> tuple[Any, bool]:
    """The module's output, and whether it drew random numbers; the generators are left as they were."""
    devices = [x.device] if x.is_cuda else []

    def states() -> list[object]:
        found = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        return [random.getstate(), *(state.tolist() for state in found)]

    before = states()
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return module(x.clone()), states() != before
    finally:
        random.setstate(before[0])  # type: ignore[arg-type]


class PlainNetwork(nn.Module):
    """The loop that a recurrent module stands for, in plain PyTorch layers; made by rdk.to_modules.

    layers: nn.Conv2d or nn.Linear, one per stage when tied, else one per iteration and stage, iteration-major.
    norms: nn.BatchNorm per iteration and stage, iteration-major, or none.
    """

    def __init__(self, module: Recurrent) -> None:
        super().__init__()
        self.iterations, self.tied = module.iterations, module.tied
        stages = module.functional_stages()
        self.relus = [stage.relu for stage in stages]
        self.skips = [stage.skip for stage in stages]
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        for iteration in range(1 if self.tied else self.iterations):
            for stage in stages:
                weight = stage.weight if isinstance(stage.weight, Tensor) else stage.weight[iteration]
                single = stage.bias is None or isinstance(stage.bias, Tensor)
                bias = stage.bias if single else stage.bias[iteration]  # type: ignore[index]
                self.layers.append(_plain_layer(weight, bias, stage.dilation))  # type: ignore[arg-type]
        self.train(module.training)
        # after train(): the norms are the module's own and keep their flags
        for iteration in range(self.iterations):
            self.norms.extend(stage.norm[iteration] for stage in stages if stage.norm is not None)

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        """x, inject: (N, C, H, W) or (N, F); returns the last state."""
        count = len(self.relus)
        for iteration in range(self.iterations):
            entered = []
            for number in range(count):
                entered.append(x)
                x = self.layers[number if self.tied else iteration * count + number](x)
                if len(self.norms):
                    x = self.norms[iteration * count + number](x)
                if number == 0 and inject is not None:
                    x = x + inject
                skip = self.skips[number]
                if skip is not None:
                    x = x + entered[skip]
                if self.relus[number]:
                    x = torch.relu(x)
        return x


def _plain_layer(weight: nn.Parameter, bias: nn.Parameter | None, dilation: int) -> nn.Module:
    for tensor in (weight, bias):
        if tensor is not None and not isinstance(tensor, nn.Parameter):
            raise ValueError(
                "rdk.to_modules: a weight or bias of the module is computed from other parameters, which plain layers would not "
                "do; take that off first (remove_parametrizations, prune.remove, remove_weight_norm)."
            )
    width = weight.shape[0]
    if weight.dim() == 2:
        layer: nn.Module = nn.Linear(width, width, bias=bias is not None, device="meta")
    else:
        layer = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def to_modules(module: Recurrent) -> PlainNetwork:
    """The plain PyTorch network that computes the same as `module` at its own number of iterations.

    It holds the very parameters and norms of the module (copy.deepcopy separates them), and the module's load_state_dict
    takes its state_dict. Raises TypeError for what is no rdk module, ValueError for weights computed from other parameters.
    """
    if not isinstance(module, Recurrent):
        raise TypeError(f"rdk.to_modules: expected an rdk module, got {type(module).__name__}.")
    return PlainNetwork(module)
