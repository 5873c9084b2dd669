"""from_module, to_modules and the loading of plain state_dicts, each against the plain network's own output."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rdk
from rdk.testing import assert_close, relative, step


class BasicBlock(nn.Module):
    """He et al. (2016), as people write it."""

    def __init__(self, width: int, norm: bool = False, dilation: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=bias)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        if norm:
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv1(x)
        z = self.conv2(torch.relu(self.bn1(z) if hasattr(self, "bn1") else z))
        return torch.relu((self.bn2(z) if hasattr(self, "bn2") else z) + self.shortcut(x))


def conv_relu(width: int = 4, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU())


BLOCKS: list[tuple[Any, type]] = [
    (lambda: conv_relu(), rdk.RecurrentConv),
    (lambda: conv_relu(norm=True), rdk.RecurrentConv),
    (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", dilation=2, bias=False), nn.ReLU(True)),
        rdk.RecurrentConv,
    ),
    (lambda: BasicBlock(4), rdk.RecurrentResidual),
    (lambda: BasicBlock(4, norm=True), rdk.RecurrentResidual),
    (lambda: nn.Sequential(BasicBlock(4), BasicBlock(4, dilation=2, bias=True)), rdk.RecurrentResidual),
    (lambda: nn.Sequential(nn.Sequential(BasicBlock(4, norm=True)), BasicBlock(4, norm=True)), rdk.RecurrentResidual),
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), rdk.RecurrentLinear),
    (lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU()), rdk.RecurrentLinear),
]


def input_for(module: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (6, 4) if isinstance(module, rdk.RecurrentLinear) else (2, 4, 6, 5)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("make,cls", BLOCKS)
@pytest.mark.parametrize("training", [True, False])
def test_a_repeated_block(make: Any, cls: type, training: bool) -> None:
    torch.manual_seed(0)
    block = make().double().train(training)
    twin = copy.deepcopy(block)
    before = copy.deepcopy(block.state_dict())
    module = rdk.from_module(block, 3, checkpoint=1, backend="eager")
    assert type(module) is cls and module.training == training and module.checkpoint == 1
    assert block.training == training
    assert all(torch.equal(now, before[name]) for name, now in block.state_dict().items())
    x = input_for(module)
    expected = x
    norms = [copy.deepcopy(twin) for _ in range(3)]  # a norm of its own for each iteration
    for t in range(3):
        expected = norms[t](expected)
    assert relative(module(x), expected) < 1e-12


def test_parameters_are_shared_and_norms_copied() -> None:
    block = BasicBlock(4, norm=True)
    module = rdk.from_module(block, 3)
    assert module.stages[0].weight is block.conv1.weight and module.stages[1].weight is block.conv2.weight
    norms = module.stages[1].norm
    assert norms[0] is block.bn2 and norms[1] is not block.bn2
    assert norms[1].weight is not block.bn2.weight and torch.equal(norms[1].weight, block.bn2.weight)


def test_a_list_of_blocks_gives_the_untied_twin() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(BasicBlock(4, norm=True), BasicBlock(4, norm=True)).double() for _ in range(3)]
    twins = copy.deepcopy(blocks)
    for given in (blocks, nn.ModuleList(blocks)):
        module = rdk.from_module(given, 3)
        assert not module.tied and module.stages[2].weight[1] is blocks[1][1].conv1.weight
        assert module.stages[3].norm[2] is blocks[2][1].bn2
    x = expected = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    for twin in twins:
        expected = twin(expected)
    assert relative(module(x), expected) < 1e-12
    assert rdk.from_module(blocks).iterations == 3


class Halving(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(x)


class NormAfterRelu(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn2(self.conv2(self.bn1(torch.relu(self.conv1(x))))) + x)


class NormBeforeConv(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(self.bn2(torch.relu(self.conv1(self.bn1(x))))) + x)


class Leaky(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = nn.functional.leaky_relu(self.bn1(self.conv1(x)), 0.3)
        return torch.relu(self.bn2(self.conv2(z)) + x)


class Capped(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(nn.functional.relu6(self.conv1(x))) + x)


class Dropping(BasicBlock):
    """Drops so seldom that a comparison of outputs would seldom see it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), 1e-9, self.training)


class SkippedAtRandom(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training and random.random() < 1e-9 else super().forward(x)


class ScaledBranch(BasicBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.scale * self.conv2(torch.relu(self.conv1(x))) + x)


class FixedSize(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.view(2, -1, 32, 32))


class Masked(BasicBlock):
    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(width)
        self.register_buffer("mask", torch.ones(width, 1, 1, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.mask


def silent(block: Any) -> Any:
    """The block with a residual branch that ends in zero, as zero_init_residual makes it."""
    nn.init.zeros_(block.bn2.weight)
    return block


def with_hook(apply: Any) -> nn.Sequential:
    block = conv_relu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        apply(block[0])
    return block


def integer_block() -> nn.Sequential:
    block = conv_relu()
    block[0].weight = nn.Parameter(torch.ones(4, 4, 3, 3, dtype=torch.int8), requires_grad=False)
    return block


class WithDropout(BasicBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop = nn.Dropout(0.5)


REFUSED: list[tuple[Any, str]] = [
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.ReLU()), r"layer '0' has stride \(2, 2\)"),
    (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()), "layer '0' maps 4 channels to 8"),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.ReLU()), r"layer '0' has a kernel of \(5, 5\)"),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), r"layer '0' has padding \(0, 0\)"),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU()), "layer '0' has 2 groups"),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), "pads with 'reflect'"),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), "layer '0' does not fit"),
    (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)), r"layer '0' \(ReLU\) comes before"),
    (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU()), "layer '0' maps 4 features to 5"),
    (lambda: nn.Sequential(*conv_relu(), *conv_relu()), "layer '2' does not fit"),
    (lambda: nn.Sequential(BasicBlock(4), BasicBlock(4, norm=True)), "layer '0.conv1' has no BatchNorm"),
    (lambda: WithDropout(4), r"layer 'drop' \(Dropout\) does not fit"),
    (lambda: Halving(4), "Halving computes something else than its layers 'conv1', 'conv2'"),
    (lambda: NormAfterRelu(4, norm=True), "NormAfterRelu computes something else"),
    (lambda: NormBeforeConv(4, norm=True), "NormBeforeConv computes something else"),
    (lambda: silent(Leaky(4, norm=True)), "Leaky computes something else"),
    (lambda: [BasicBlock(4, norm=True), silent(Leaky(4, norm=True))], "Leaky computes something else"),
    (lambda: Capped(4), "Capped computes something else"),
    (lambda: ScaledBranch(4), "ScaledBranch computes something else"),
    (lambda: Masked(4), "Masked computes something else"),
    (lambda: Masked(4, torch.bool), "Masked computes something else"),
    (lambda: Masked(4, torch.int64), "Masked computes something else"),
    (lambda: Dropping(4), "Dropping draws random numbers in training mode"),
    (lambda: SkippedAtRandom(4).eval(), "SkippedAtRandom draws random numbers in training mode"),
    (lambda: FixedSize(4), r"FixedSize raises RuntimeError on a torch.float64 input of shape \(2, 4, 5, 6\)"),
    (lambda: with_hook(lambda c: prune.l1_unstructured(c, "weight", 0.5)), "layer '0' has a hook"),
    (lambda: with_hook(nn.utils.weight_norm), "layer '0' has a hook"),
    (lambda: with_hook(lambda c: c.register_forward_hook(print)), "layer '0' has a hook"),
    (lambda: with_hook(lambda c: c.register_full_backward_hook(print)), "layer '0' has a hook"),
    (lambda: with_hook(lambda c: c.register_full_backward_pre_hook(print)), "layer '0' has a hook"),
    (lambda: with_hook(nn.utils.parametrizations.weight_norm), "layer '0' is parametrized"),
    (lambda: conv_relu().to("meta"), "layer '0' is on the meta device"),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4).to("meta"), nn.ReLU()), "layer '1' is on"),
    (lambda: nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.ReLU()), "layer '0' is not initialised yet"),
    (integer_block, "layer '0' has weights of torch.int8"),
    (lambda: nn.Identity(), "holds no Conv2d and no Linear"),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU()), r"layer '1' \(GELU\) does not fit"),
    (lambda: [conv_relu(), conv_relu(norm=True)], "block 1 of the list is not built like block 0"),
    (list, "list of blocks is empty"),
]


@pytest.mark.parametrize("make,words", REFUSED, ids=[words[:24] for _, words in REFUSED])
def test_what_does_not_fit_is_named(make: Any, words: str) -> None:
    block = make()
    with pytest.raises(ValueError, match=words):
        rdk.from_module(block, 2)


class Unused(BasicBlock):
    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__(4)
        self.register_buffer("unused", buffer)


@pytest.mark.parametrize(
    "buffer",
    [
        torch.arange(4).expand(2, 4),
        torch.ones(1).expand(4, 4),
        torch.eye(4).to_sparse(),
        torch.zeros(4, dtype=torch.complex64),
        torch.zeros(4, dtype=torch.uint8),
        torch.zeros(0),
        torch.zeros(4).to(torch.float8_e4m3fn),
    ],
    ids=["expanded integers", "expanded", "sparse", "complex", "bytes", "empty", "float8"],
)
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_a_buffer_that_is_not_read_is_no_obstacle(buffer: torch.Tensor) -> None:
    assert isinstance(rdk.from_module(Unused(buffer), 2), rdk.RecurrentResidual)


@pytest.mark.parametrize(
    "given,words",
    [
        (None, "expected an nn.Module or a list of them, got NoneType"),
        (nn.ReLU, "expected an nn.Module or a list of them, got the class ReLU; call it first"),
        ([None], "block 0 of the list must be an nn.Module, got NoneType"),
        ([conv_relu(), BasicBlock], "block 1 of the list must be an nn.Module, got the class BasicBlock"),
    ],
)
def test_what_is_no_block_is_named(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        rdk.from_module(given, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_blocks_of_every_dtype_are_compared_strictly(dtype: torch.dtype) -> None:
    class Nearly(BasicBlock):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 + 1e-6)

    module = rdk.from_module(BasicBlock(4, norm=True).to(dtype), 2)
    assert module.stages[0].weight.dtype is dtype
    with pytest.raises(ValueError, match="Nearly computes something else"):
        rdk.from_module(Nearly(4, norm=True).to(dtype), 2)


def test_a_zero_branch_and_frozen_norms_are_no_obstacle() -> None:
    block = silent(BasicBlock(4, norm=True))
    block.bn1.eval()
    module = rdk.from_module(block, 3)
    assert block.training and not block.bn1.training and block.bn2.training
    assert [norm.training for stage in module.stages for norm in stage.norm] == [False] * 3 + [True] * 3
    assert all(part.training for part in module.modules() if not isinstance(part, nn.BatchNorm2d))
    plain = rdk.to_modules(module)
    assert [norm.training for norm in plain.norms] == [False, True] * 3 and plain.training
    assert all(layer.training for layer in plain.layers)
    assert not any(layer.training for layer in rdk.to_modules(module.eval()).layers)
    assert not rdk.from_module(BasicBlock(4).eval(), 3).stages[0].training


@pytest.mark.parametrize("cls", [BasicBlock, Dropping, SkippedAtRandom])
def test_the_block_and_the_generators_are_left_alone(cls: type) -> None:
    block = cls(4, norm=True) if cls is BasicBlock else cls(4)
    before = copy.deepcopy(block.state_dict()), torch.get_rng_state(), random.getstate()
    if cls is BasicBlock:
        rdk.from_module(block, 2)
    else:
        with pytest.raises(ValueError, match="draws random numbers"):
            rdk.from_module(block, 2)
    assert torch.equal(torch.get_rng_state(), before[1]) and random.getstate() == before[2]
    assert all(torch.equal(value, before[0][name]) for name, value in block.state_dict().items())
    assert all(parameter.grad is None for parameter in block.parameters())
    assert all(part.training for part in block.modules())


def test_wrong_iterations_and_settings_are_named() -> None:
    with pytest.raises(ValueError, match="iterations must be 2, got 3"):
        rdk.from_module([conv_relu(), conv_relu()], 3)
    with pytest.raises(ValueError, match="iterations is missing"):
        rdk.from_module(conv_relu())
    with pytest.raises(TypeError, match="unknown setting 'tied'"):
        rdk.from_module(conv_relu(), 2, tied=False)


MODULES: list[tuple[type, dict[str, Any]]] = [
    (rdk.RecurrentConv, {}),
    (rdk.RecurrentConv, {"tied": False, "dilation": 2, "bias": False}),
    (rdk.RecurrentResidual, {"recall": True}),
    (rdk.RecurrentResidual, {"norm": "batch"}),
    (rdk.RecurrentResidual, {"norm": "batch", "tied": False, "blocks": 1}),
    (rdk.RecurrentLinear, {"norm": "batch"}),
]


@pytest.mark.parametrize("cls,kw", MODULES)
def test_plain_network_computes_the_same_and_its_state_dict_loads(cls: type, kw: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = cls(4, 3, **kw).double()
    plain = copy.deepcopy(rdk.to_modules(module))
    x = input_for(module)
    inject = torch.randn_like(x)
    assert not any("rdk" in type(part).__module__ for part in plain.modules() if part is not plain)
    expected = step(plain, x, inject)
    got = step(module, x, inject)
    for name in ("output", "input gradient", "inject gradient"):
        assert relative(got[name], expected[name]) < 1e-12
    other = cls(4, 3, **kw).double()
    other.load_state_dict(plain.state_dict())
    again = cls(4, 3, **kw).double()
    again.load_state_dict(module.state_dict())
    plain.eval(), other.eval(), again.eval(), module.eval()
    assert relative(other(x, inject=inject), plain(x, inject)) < 1e-12
    assert relative(again(x, inject=inject), module(x, inject=inject)) < 1e-12
    rdk.to_modules(other).load_state_dict(plain.state_dict())


def test_to_modules_shares_the_parameters() -> None:
    module = rdk.RecurrentConv(4, 3, norm="batch")
    plain = rdk.to_modules(module)
    assert plain.layers[0].weight is module.stages[0].weight and plain.norms[2] is module.stages[0].norm[2]
    with pytest.raises(TypeError, match="expected an rdk module, got Conv2d"):
        rdk.to_modules(nn.Conv2d(1, 1, 3))  # type: ignore[arg-type]


def test_state_dicts_of_what_people_wrote_before() -> None:
    x = torch.randn(2, 4, 6, 5)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    module = rdk.RecurrentConv(4, 3)
    module.load_state_dict(conv.state_dict())
    assert relative(module(x, iterations=1), torch.relu(conv(x))) < 1e-6
    block = nn.Sequential(BasicBlock(4, norm=True), BasicBlock(4, norm=True)).eval()
    residual = rdk.RecurrentResidual(4, 2, norm="batch").eval()
    residual.load_state_dict(block.state_dict())
    assert relative(residual(x), block(block(x))) < 1e-5
    unrolled = nn.Sequential(*(layer for _ in range(3) for layer in conv_relu()))
    untied = rdk.RecurrentConv(4, 3, tied=False)
    untied.load_state_dict(unrolled.state_dict())
    assert relative(untied(x), unrolled(x)) < 1e-5
    linear = nn.Linear(4, 4)
    rdk.RecurrentLinear(4, 3).load_state_dict(linear.state_dict())


def test_inside_a_larger_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), rdk.RecurrentConv(4, 3), nn.Conv2d(4, 2, 1))
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), nn.Conv2d(4, 2, 1)
    )
    network.load_state_dict(plain.state_dict())
    assert torch.equal(network[1].stages[0].weight, plain[1][0].weight)


def test_a_state_dict_that_does_not_fit_reports_its_keys() -> None:
    with pytest.raises(RuntimeError, match='Missing key.*"stages.0.weight"'):
        rdk.RecurrentConv(4, 3).load_state_dict(BasicBlock(4).state_dict())
    unrolled = nn.Sequential(*(layer for _ in range(3) for layer in conv_relu()))
    with pytest.raises(RuntimeError, match="Missing key"):  # three different weights are no tied network
        rdk.RecurrentConv(4, 3).load_state_dict(unrolled.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        rdk.RecurrentConv(4, 3).load_state_dict(nn.Conv2d(5, 5, 3).state_dict())


def test_gradients_reach_the_shared_parameters() -> None:
    torch.manual_seed(0)
    block = BasicBlock(4).double()
    module = rdk.from_module(block, 3, checkpoint=1, backend="eager")
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    got = step(module, x)
    plain = copy.deepcopy(rdk.to_modules(module))
    expected = step(plain, x)
    assert block.conv1.weight.grad is not None
    names = {f"gradient of layers.{s}.weight": f"gradient of stages.{s}.weight" for s in range(2)}
    assert_close({name: got[mine] for name, mine in names.items()}, {name: expected[name] for name in names}, 1e-12)
