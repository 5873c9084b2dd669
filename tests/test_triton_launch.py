"""Launches that find their compiled kernel again: kernel and arguments as by triton's own way, on a driver that only notes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# in a process of its own: the tests' process may have triton's interpreter switched on
PROGRAM = """
import torch
from triton.runtime import jit

from benchmarks.triton_host import idle_driver
from rdk.backends.triton import configurations, kernels, launch, norm_kernels, weight_gradient_kernels
from rdk.backends.triton.launch import Series, Sums
from rdk.backends.triton.setting import make_setting

raw = []
idle_driver(raw)


def launched():
    # grid and kernel of each launch so far with its arguments, tensors by their address
    found = [(what, [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in given]) for what, given in raw]
    raw.clear()
    return found


device = configurations.device_named("NVIDIA H200", (9, 0))


def a_map(dtype, shift=0):
    return torch.empty(64 * 16 + shift, dtype=dtype)[shift:].view(64, 16)


def launches(setting, dtype):
    vector, affine, two = torch.empty(16), torch.empty(3, 16), torch.empty(setting.tiles, 2, 16)
    for shift in (0, 1):
        z, out = a_map(dtype, shift), a_map(dtype)
        yield launch.finish_stage(setting, z, affine, out)
        yield launch.finish_stage(setting, z, affine, out, a_map(dtype), relu=True)
        yield launch.finish_stage(setting, z, affine, out, None, a_map(dtype), relu=True)
        sums = torch.empty(setting.tiles * 32 + shift)[shift:].view(setting.tiles, 2, 16)  # triton looks at its alignment
        for training in (True, False):
            yield launch.merge_gradient_sums(
                setting, Sums(sums, z, affine), vector, torch.empty(4, 16), vector, vector, None, False, 1e-5, training
            )
    yield launch.weight_gradient_reduce(setting, torch.empty(2, 16, 16), torch.empty(16, 16, dtype=dtype))
    partial, inputs = torch.empty(setting.splits, 16, 16), Series(a_map(dtype)[None])
    for stride in (1024, 2**33):  # of 32 and of 64 bits
        grads = Series(a_map(dtype).as_strided((1, 64, 16), (stride, 16, 1)))
        yield launch.weight_gradient(setting, 1, grads, inputs, partial, 1, False)


every = []
for dtype in (torch.bfloat16, torch.float32):
    every += launches(make_setting(device, (64, 16), dtype, "exact", 132), dtype)
for one in every:
    one.kernel[(one.grid,)](**one.arguments, **one.constants, num_warps=one.warps, num_stages=one.stages)
expected = launched()
for one in every:
    one.run()
assert launched() == expected, "a kernel found again for another launch"


def never(*arguments, **named):
    raise AssertionError("examined anew")


jit.JITFunction.run = never
for one in every:
    one.run()
assert launched() == expected and len({found[0][4] for found in expected}) > 20
for kernel in [found for module in (kernels, norm_kernels, weight_gradient_kernels) for found in vars(module).values()]:
    if isinstance(kernel, jit.JITFunction) and kernel.fn.__name__.endswith("_kernel"):
        for p in kernel.params:  # a number is known by its width alone
            assert p.is_constexpr or p.name.endswith("_ptr") or p.do_not_specialize, (kernel, p.name)
print("as triton's own:", len(expected))
"""


def test_a_kernel_found_again_is_the_one_that_triton_would_find() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("as triton's own: 26")
