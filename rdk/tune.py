"""`python -m rdk.tune`: times the tiles of the triton backend on the present GPU and writes the fastest into its configurations.

    --output PATH    the file to write (default: the package's own configurations.json)
    --channels, --pixels, --dtypes   the problems to tune for
    --minutes M      begin no problem after that time (default: no limit); what was measured is written, what is left is said

Nothing is tuned while a user's program runs: this is the only place. A tile is timed only after its result was compared with
PyTorch's own, and kept only if every launch that takes its tile compiles, fits the device and spills no register.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rdk.backends.layout import channels_last
from rdk.backends.triton import configurations
from rdk.backends.triton.configurations import ConvTile, Device, Entry, WeightGradientTile
from rdk.backends.triton.setting import Setting, arithmetic_of, make_setting

if TYPE_CHECKING:  # both import triton, which is not needed to say that there is no GPU
    from rdk.backends.triton.build import Built
    from rdk.backends.triton.launch import Launch

Tile = ConvTile | WeightGradientTile
Compiler = Callable[["Launch"], "Built"]  # ahead of time, for the device that is tuned
Timer = Callable[[Callable[[], None]], float]  # a function's median time in milliseconds

CONV_TILES = [
    ConvTile(pixels, out, block_in, warps, stages, parts)
    for pixels, out, warps, parts in (
        (64, 64, 4, 1), (128, 64, 4, 1), (128, 64, 8, 1), (256, 64, 8, 2), (64, 128, 4, 1), (128, 128, 8, 2), (128, 256, 8, 2),
    )
    for block_in in (32, 64)
    for stages in (2, 3, 4)
]  # fmt: skip
WEIGHT_GRADIENT_TILES = [
    WeightGradientTile(out, columns, pixels, warps, stages)
    for out, columns, warps in ((64, 64, 4), (64, 128, 4), (64, 256, 8), (128, 128, 8), (128, 256, 8))
    for pixels in (32, 64)
    for stages in (2, 3, 4)
]
# the relative L2 distance from PyTorch's result at which a tile counts as wrong
TOLERANCE = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class TuningProblem(NamedTuple):
    """One convolution to choose tiles for."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    precision: str  # "tf32" or "ieee" for float32


class Bench(NamedTuple):
    """What tiles are tried with."""

    own: Device
    device: torch.device
    timer: Timer
    compiler: Compiler
    shared_limit: int  # bytes of shared memory that one program may have
    report: Callable[[str], None]


class Outcome(NamedTuple):
    """The fastest tile of a problem and every time, in milliseconds; None stands for a tile that did not run or was wrong."""

    entry: Entry
    times: dict[Tile, float | None]


def tune(
    own: Device,
    device: torch.device,
    problems: Iterable[TuningProblem],
    timer: Timer,
    compiler: Compiler,
    shared_limit: int,
    conv_tiles: Sequence[ConvTile] = CONV_TILES,
    weight_gradient_tiles: Sequence[WeightGradientTile] = WEIGHT_GRADIENT_TILES,
    report: Callable[[str], None] = print,
    save: Callable[[Device], None] = lambda tuned: None,
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Device:
    """`own` with the entry of every problem replaced by the fastest tile measured, in both lists; `save` gets it after each.

    After `minutes`, by a `clock` in seconds, no problem is begun: `report` is told which are left.
    """
    bench = Bench(own, device, timer, compiler, shared_limit, report)
    conv, weights = list(own.conv), list(own.weight_gradient)
    problems, start = list(problems), clock()
    for number, problem in enumerate(problems):
        if minutes is not None and clock() - start >= 60 * minutes:
            left = problems[number:]
            report(f"{minutes:g} minutes are over; {len(left)} of {len(problems)} problems are left:")
            for each in left:
                report(f"  {each}")
            break
        for outcome, entries in (
            (_tune_conv(bench, problem, conv_tiles), conv),
            (_tune_weight_gradient(bench, problem, weight_gradient_tiles), weights),
        ):
            if outcome is None:
                report(f"{problem}: no tile ran, was right and can be compiled for every use; the entry stays as it is")
                continue
            report(
                f"{problem}: {outcome.entry.tile} {outcome.times[outcome.entry.tile]:.4f} ms, of {len(outcome.times)} tiles"
            )
            place = (outcome.entry.arithmetic, outcome.entry.channels, outcome.entry.pixels)
            entries[:] = [e for e in entries if (e.arithmetic, e.channels, e.pixels) != place] + [outcome.entry]
            entries.sort(key=lambda e: (e.arithmetic, e.channels, -e.pixels))
        save(replace(own, conv=tuple(conv), weight_gradient=tuple(weights)))
    return replace(own, conv=tuple(conv), weight_gradient=tuple(weights))


def _tensors(problem: TuningProblem, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random state, gradient and weight; zeros would run faster than real data."""
    generator = torch.Generator().manual_seed(0)
    channels = problem.shape[1]
    x, grad = (torch.randn(problem.shape, generator=generator).to(device, problem.dtype) for _ in range(2))
    weight = torch.randn(channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    weight = weight.to(device, problem.dtype).contiguous(memory_format=torch.channels_last)
    return channels_last(x), channels_last(grad), weight


def _setting(
    bench: Bench,
    problem: TuningProblem,
    conv: ConvTile | None = None,
    weight_gradient: WeightGradientTile | None = None,
) -> Setting:
    count = bench.own.numbers.multiprocessors
    if bench.device.type == "cuda":
        count = torch.cuda.get_device_properties(bench.device).multi_processor_count
    return make_setting(
        bench.own, problem.shape, problem.dtype, problem.precision, count, bench.device.type == "cpu", conv,
        weight_gradient,
    )  # fmt: skip


def _tune_conv(bench: Bench, problem: TuningProblem, tiles: Sequence[ConvTile]) -> Outcome | None:
    from rdk.backends.triton import launch, shipped

    x, skip, weight = _tensors(problem, bench.device)
    expected = torch.relu(F.conv2d(x.double(), weight.double(), padding=1) + skip.double())
    settings: dict[Tile, Setting] = {tile: _setting(bench, problem, conv=tile) for tile in tiles}
    times: dict[Tile, float | None] = {}
    for tile, setting in settings.items():
        out = torch.empty_like(x)
        run = launch.conv3x3(setting, 1, launch.Operand(x), weight, out, add_a=skip, relu=True).run
        times[tile] = _timed(bench, run, out, expected)
    return _fastest(bench, problem, times, settings, (*shipped.FORWARD, *shipped.BACKWARD))


def _tune_weight_gradient(bench: Bench, problem: TuningProblem, tiles: Sequence[WeightGradientTile]) -> Outcome | None:
    from rdk.backends.triton import launch, shipped

    x, grad, weight = _tensors(problem, bench.device)
    expected = torch.ops.aten.convolution_backward(
        grad.double(), x.double(), weight.double(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]
    settings: dict[Tile, Setting] = {tile: _setting(bench, problem, weight_gradient=tile) for tile in tiles}
    times: dict[Tile, float | None] = {}
    for tile, setting in settings.items():
        out = torch.empty_like(weight)
        partial = torch.empty(setting.splits, setting.channels, setting.columns, device=bench.device)
        grads, inputs = launch.Series(grad[None]), launch.Series(x[None])
        product = launch.weight_gradient(setting, 1, grads, inputs, partial, 1, carry=False)
        reduction = launch.weight_gradient_reduce(setting, partial, out)

        def run(launches: tuple[Launch, ...] = (product, reduction)) -> None:
            for each in launches:
                each.run()

        times[tile] = _timed(bench, run, out, expected)
    return _fastest(bench, problem, times, settings, shipped.WEIGHT_GRADIENT)


def _timed(bench: Bench, run: Callable[[], None], out: Tensor, expected: Tensor) -> float | None:
    """A tile's time; None where it does not compile, asks for more than the device has, or is wrong."""
    from triton.errors import TritonError

    try:
        out.fill_(torch.nan)
        run()
        # a launch does not wait, so a fault on the device shows here
        distance = (out.double() - expected).norm() / expected.norm()
        return bench.timer(run) if bool(distance <= TOLERANCE[out.dtype]) else None
    except (TritonError, RuntimeError) as error:  # a pass of the compiler that fails raises RuntimeError
        bench.report(f"  a tile does not run: {_first_line(error)}")
        return None


def _fastest(
    bench: Bench,
    problem: TuningProblem,
    times: dict[Tile, float | None],
    settings: dict[Tile, Setting],
    uses: Sequence[str],
) -> Outcome | None:
    """The fastest tile that serves every use: what is timed is one of them, and others hold more."""
    ran = {tile: time for tile, time in times.items() if time is not None}
    for tile in sorted(ran, key=lambda tile: ran[tile]):
        reason = _unfit(bench, settings[tile], problem.dtype, uses)
        if reason is None:
            batch, channels, height, width = problem.shape
            arithmetic = arithmetic_of(problem.dtype, problem.precision)
            return Outcome(Entry(arithmetic, channels, batch * height * width, "measured", tile), times)
        bench.report(f"  {tile} is left out: {reason}")
    return None


def _unfit(bench: Bench, setting: Setting, dtype: torch.dtype, uses: Sequence[str]) -> str | None:
    """Why a tile cannot serve all `uses`; None where it can."""
    from triton.errors import TritonError

    from rdk.backends.triton import shipped

    for use in uses:
        try:
            built = bench.compiler(shipped.launch_of(setting, dtype, use))
        except (TritonError, RuntimeError) as error:
            return f"{use} does not compile: {_first_line(error)}"
        if built.shared_bytes > bench.shared_limit:
            return f"{use} takes {built.shared_bytes} bytes of shared memory, of {bench.shared_limit}"
        if built.spilled or built.stack_bytes:
            return f"{use} spills registers ({built.spilled} instructions)"
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def written(devices: Sequence[Device], tuned: Device) -> str:
    """The file's text with `tuned` in the place of the device of its name, or first."""
    others = [device for device in devices if device.name != tuned.name]
    return configurations.as_text((tuned, *others))


def problems_of(channels: Iterable[int], pixels: Iterable[int], dtypes: Iterable[str]) -> list[TuningProblem]:
    """Maps of 16 × 16 with the batch that makes up the pixels, for every channel count and dtype."""
    kinds = {
        "bfloat16": (torch.bfloat16, "exact"), "float16": (torch.float16, "exact"), "tf32": (torch.float32, "tf32"),
        "float32": (torch.float32, "ieee"),
    }  # fmt: skip
    sizes = [(count, max(1, number // 256)) for count in channels for number in pixels]
    return [TuningProblem((batch, count, 16, 16), *kinds[name]) for name in dtypes for count, batch in sizes]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rdk.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=configurations.path(), metavar="PATH")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--pixels", type=int, nargs="+", default=[4096, 65536])
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "tf32"], choices=["bfloat16", "float16", "tf32", "float32"]
    )
    parser.add_argument("--minutes", type=_positive, metavar="M")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        refusal = "rdk.tune: PyTorch sees no GPU here, and tiles are chosen by timing them on one. Nothing was written."
        print(refusal, file=sys.stderr)
        return 1
    if torch.version.hip is not None:
        print("rdk.tune: tiles are compiled for NVIDIA GPUs before one is kept. Nothing was written.", file=sys.stderr)
        return 1
    from triton.runtime.driver import driver
    from triton.testing import do_bench

    from rdk.backends.triton import build

    device = torch.device("cuda", torch.cuda.current_device())
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    start = replace(configurations.device_named(name, capability), name=name, capability=capability)

    def timer(run: Callable[[], None]) -> float:
        return float(do_bench(run, return_mode="median"))

    def compiler(launch: Launch) -> Built:
        return build.compile_ahead(launch, 10 * capability[0] + capability[1])

    problems = problems_of(chosen.channels, chosen.pixels, chosen.dtypes)
    shared_limit = driver.active.utils.get_device_properties(device.index)["max_shared_mem"]

    def save(tuned: Device) -> None:
        chosen.output.write_text(written(configurations.devices(), tuned), encoding="utf-8")

    try:
        with torch.no_grad():
            tune(start, device, problems, timer, compiler, shared_limit, save=save, minutes=chosen.minutes)
    except KeyboardInterrupt:
        print("rdk.tune: stopped; the problems measured so far are written.", file=sys.stderr)
        return 130
    print(
        f"rdk.tune: wrote {chosen.output}; `python -m rdk.backends.triton.report` shows what the compiler makes of it."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
