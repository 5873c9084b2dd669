"""`python -m benchmarks.cpu_micro`: where the time of the cpu backend goes: transforms, and products against the machine's peak.

    --threads T, --repeats R

The peak is that of independent fused multiply-adds of the same instruction set, measured before and after each shape, because a
shared machine drifts; times are the least of R runs.
"""

from __future__ import annotations

import argparse
import time

import torch

import rdk
from benchmarks.workloads import CPU_SHAPES
from rdk import dispatch

PHASES = ("input transform", "product", "output transform", "weight product", "moves")
PEAK_STEPS = 5_000_000


def peak_flops() -> float:
    """Floating-point operations per second of one thread that does nothing else."""
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        flops = float(torch.ops.rdk.cpu_fma_flops(PEAK_STEPS))
        best = max(best, flops / (time.perf_counter() - start))
    return best


def product_flops(module: rdk.RecurrentConv, shape: torch.Size) -> float:
    """Floating-point operations of the products at the Winograd points in one forward: two per multiply-add."""
    n, c, _, _ = shape
    precision = dispatch.precision_of(torch.device("cpu"), torch.float32)
    points = int(torch.ops.rdk.cpu_tile_points(shape, [1, 1, -1], precision))
    return 2.0 * n * c * c * points * module.iterations


def measure(module: rdk.RecurrentConv, x: torch.Tensor, training: bool, repeats: int) -> tuple[float, list[int]]:
    """Seconds and ticks by phase of the fastest run."""
    best, ticks = float("inf"), [0]
    for _ in range(repeats + 1):
        torch.ops.rdk.cpu_clock()
        start = time.perf_counter()
        if training:
            y = module(x.detach().requires_grad_())
            y.backward(y.detach())
        else:
            with torch.no_grad():
                module(x)
        seconds = time.perf_counter() - start
        found = torch.ops.rdk.cpu_clock()
        if seconds < best:
            best, ticks = seconds, found
    return best, ticks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    reason = dispatch.unavailable("cpu")
    if reason:
        raise SystemExit(f"the cpu backend is not available here: {reason}")
    torch.set_num_threads(arguments.threads)
    print("shares: " + ", ".join(PHASES) + "; GFLOP/s of the products while they run, per thread, against the peak")
    for case in CPU_SHAPES:
        module = rdk.RecurrentConv(case.channels, case.iterations, backend="cpu")
        x = torch.randn(case.shape).to(memory_format=torch.channels_last)
        before = peak_flops()
        for training in (False, True):
            seconds, ticks = measure(module, x, training, arguments.repeats)
            total = sum(ticks)
            shares = " ".join(f"{tick / total:.2f}" for tick in ticks)
            line = f"{case.description}, {'step' if training else 'forward'}: {seconds * 1e3:.1f} ms, shares {shares}"
            if not training:
                # all workers' ticks together are the call's seconds times the threads
                busy = seconds * arguments.threads * ticks[1] / total
                rate = product_flops(module, x.shape) / busy
                peak = max(before, peak_flops())
                line += f", products {rate / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s ({rate / peak:.0%})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
