"""The kernels' own source on the CPU stand-in (csrc/cuda/standin): exact on small integers, and wrong when broken on purpose.

Every case runs twice: asynchronous copies and products are done as soon as they are issued, then as late as waits allow.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import cuda_build
import pytest

CASES = {
    "conv": ["conv", "conv_wide", "conv_fp16", "conv_statistics", "conv_affine"],
    "resident": ["resident_1", "resident_2", "resident_5", "resident_inject", "resident_dilated", "resident_many"],
    "reverse": ["reverse_1", "reverse_2", "reverse_5"],
    "residual": [
        "residual_1",
        "residual_2",
        "residual_5",
        "residual_dilated",
        "residual_uneven",
        "residual_recall",
        "residual_mixed",
        "residual_many",
        "residual_tape",
    ],
    "rollout": [
        "rollout_1",
        "rollout_2",
        "rollout_5",
        "rollout_dilated",
        "rollout_recall",
        "rollout_maze",
        "rollout_images",
        "rollout_wide",
    ],
    "weight_gradient": [
        "weight_gradient_1",
        "weight_gradient_2",
        "weight_gradient_5",
        "weight_gradient_ring",
        "weight_gradient_widest",
        "weight_gradient_widest_dilated",
    ],
}
# many blocks at once, which take ThreadSanitizer minutes; smaller ones of the same kind remain
WITHOUT_SANITIZER = {"residual_dilated", "rollout_recall", "rollout_maze", "rollout_wide"}
RACE = ("expected", "wgmma reads what thread")  # wrong elements or unfenced operands: a matter of timing
# a macro that breaks a kernel, a case that must notice, and how; not by a deadlock, which a busy machine may feign
CONTROLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CONV_FENCE": ("conv_wide", ("without fence.proxy.async",)),
    "CONV_EMPTY": ("conv_wide", (*RACE, "more arrivals at the mbarrier")),
    "CONV_STAGING": ("conv_wide", ("expected",)),
    "RESIDENT_FENCE": ("resident_2", ("without fence.proxy.async",)),
    "RESIDENT_BARRIER": ("resident_2", RACE),
    "RESIDENT_PADS": ("resident_2", ("expected",)),
    "RESIDENT_STRIDES": ("resident_2", ("expected",)),
    "RESIDENT_GROUPS": ("resident_2", ("too many groups are under way",)),
    "RESIDUAL_FENCE": ("residual_1", ("without fence.proxy.async",)),
    "RESIDUAL_BARRIER": ("residual_1", RACE),
    "RESIDUAL_EMPTY": ("residual_1", (*RACE, "more arrivals at the mbarrier")),
    "RESIDUAL_PADS": ("residual_1", ("expected",)),
    "RESIDUAL_STRIDES": ("residual_1", ("expected",)),
    "RESIDUAL_EDGES": ("residual_uneven", ("expected",)),  # pixels of the grid before, where this one has none
    "RESIDUAL_ARRIVAL": ("residual_uneven", ("expected",)),  # the inject is added before its copies are waited for
    "ROLLOUT_WAIT": ("rollout_2", ("expected", "without release and acquire")),  # the maps between blocks: a race
    "ROLLOUT_RELEASE": ("rollout_2", ("without release and acquire",)),
    "ROLLOUT_ACQUIRE": ("rollout_2", ("without release and acquire",)),
    "ROLLOUT_FENCE": ("rollout_2", ("without fence.proxy.async",)),
    "ROLLOUT_EXCHANGE": ("rollout_2", RACE),  # between two warpgroups
    "ROLLOUT_PADS": ("rollout_2", ("expected",)),
    "ROLLOUT_STRIDES": ("rollout_2", ("wgmma reads what thread",)),  # the table of pixels behind the patch
    "WEIGHT_GRADIENT_STRIDES": ("weight_gradient_1", ("a weight gradient is wrong",)),
    "WEIGHT_GRADIENT_FENCE": ("weight_gradient_1", ("without fence.proxy.async",)),
}


def run(program: Path, cases: list[str], *options: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *options, *cases], capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("kernel", CASES)
def test_exact(kernel: str, late: bool) -> None:
    done = run(cuda_build.check_program(), CASES[kernel], *(["--late"] if late else []))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": exact") == len(CASES[kernel])


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_the_roll_out_over_a_whole_chip(late: bool) -> None:
    """128 blocks at once, as W4r would take them on 132 multiprocessors; every state is compared."""
    done = run(
        cuda_build.check_program(), ["rollout_chip"], "--watchdog", "120", *(["--late"] if late else []), timeout=600
    )
    assert done.returncode == 0 and "rollout_chip: exact" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("broken", CONTROLS)
def test_broken_kernel_is_noticed(broken: str) -> None:
    case, signs = CONTROLS[broken]
    program = cuda_build.check_program(broken)
    found = []
    for option in ([], ["--late"]) * 5:  # a race may stay hidden in one run
        found.append(run(program, [case], "--watchdog", "5", *option))
        if found[-1].returncode == 1 and any(sign in found[-1].stdout for sign in signs):
            return
    pytest.fail(f"ten runs of {case} with {broken} broken did not say {signs}: {[done.stdout for done in found]}")


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("kernel", CASES)
def test_no_data_race(kernel: str, late: bool) -> None:
    program = cuda_build.check_program(None, "-fsanitize=thread", "-g")
    cases = [case for case in CASES[kernel] if case not in WITHOUT_SANITIZER]
    done = run(program, cases, "--watchdog", "120", *(["--late"] if late else []), timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]
    assert "WARNING" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["RESIDENT_BARRIER", "RESIDUAL_BARRIER", "ROLLOUT_WAIT"])
def test_race_is_noticed(broken: str) -> None:
    """Kernels whose barriers still count right, so that nothing but the race can end the run."""
    program = cuda_build.check_program(broken, "-fsanitize=thread", "-g")
    # the stand-in itself may meet the race first: it knows who wrote what since the last fence
    met = ("ThreadSanitizer: data race", "wgmma reads what thread", "without release and acquire")
    found = []
    for option in ([], ["--late"]) * 5:  # a race may stay hidden in one run
        done = run(program, [CONTROLS[broken][0]], "--watchdog", "60", *option, timeout=600)
        found.append(done.stdout + done.stderr[:1000])
        if done.returncode != 0 and any(sign in done.stdout + done.stderr for sign in met):
            return
    pytest.fail(f"ten runs with {broken} broken showed no race: {found}")


def test_deadlock_is_noticed() -> None:
    """A consumer that never hands its buffers back: the watchdog names where the producers wait."""
    done = run(cuda_build.check_program("CONV_RELEASE"), ["conv_wide"], "--watchdog", "1", timeout=60)
    assert done.returncode == 1 and "deadlock" in done.stdout and "mbarrier" in done.stdout, done.stdout


def test_blocks_that_do_not_run_together_are_noticed() -> None:
    """A barrier of the grid in an ordinary launch, where a block may begin when another has ended."""
    done = run(cuda_build.check_program("ROLLOUT_TOGETHER"), ["rollout_2"], "--watchdog", "1", timeout=60)
    assert done.returncode == 1 and "deadlock in block 0" in done.stdout, done.stdout
