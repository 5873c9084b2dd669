"""The layout of an output is that which nn.Conv2d and a ReLU give, for inputs of any strides, also under torch.compile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cpu_cases import needs_cpu_backend
from torch import Tensor, nn

import rdk

VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t,
    lambda t: t[::2],
    lambda t: t[:, :, ::2, ::2],
    lambda t: t[:, :, 1:, 1:],
    lambda t: t[:, ::2],
    lambda t: t[:, : t.shape[1] // 2],
    lambda t: t.transpose(2, 3),
    lambda t: t[:1].expand(t.shape),
    lambda t: t[:, :1].expand(t.shape),
    lambda t: t[:, :, :1].expand(t.shape),
    lambda t: t.permute(2, 3, 0, 1),
]
FORMS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_cpu_backend)])
@pytest.mark.parametrize("form", FORMS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_layout_is_that_of_conv2d(view: int, form: Any, backend: str) -> None:
    for shape in itertools.product((1, 2), (2, 6), (2, 4), (2, 4)):
        x = VIEWS[view](torch.randn(shape).to(memory_format=form))
        expected = torch.relu(nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1)(x))
        module = rdk.RecurrentConv(x.shape[1], 2, backend=backend, checkpoint=0)
        outputs = [module(x), module(x, inject=x)]
        if backend != "eager":  # which is PyTorch's own loop without a schedule
            outputs.append(rdk.RecurrentConv(x.shape[1], 2, backend=backend)(x))
        for out in outputs:
            assert out.stride() == expected.stride(), (x.shape, x.stride())


@needs_cpu_backend
def test_slice_of_a_channels_last_map_under_torch_compile() -> None:
    torch.compiler.reset()
    module = rdk.RecurrentConv(16, 5, backend="cpu")
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for batch, size in ((4, 48), (6, 48), (8, 40)):
        x = torch.randn(batch, 16, size, size).to(memory_format=torch.channels_last)
        for slice_of_x in (x[:, :, ::2, ::2], x[::2], x[..., 4:28]):
            out = module(slice_of_x)
            assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
            again = compiled(slice_of_x)
            assert again.stride() == out.stride() and torch.equal(again, out)
    torch.compiler.reset()
