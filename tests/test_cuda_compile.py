"""What nvcc makes of every kernel for sm_90a: registers, spills, wgmma instructions, shared memory. The code is read, not run."""

from __future__ import annotations

import re
import runpy
import shutil
from typing import Any

import cuda_build
import pytest
import setuptools
import torch
from torch.utils import cpp_extension

# mangled name begins with the length of the kernel's: template arguments follow as Li<number>E
WIDTHS = {
    "conv": re.compile(r"conv_kernel\w*?Li(\d+)ELi(\d+)E"),
    "resident": re.compile(r"resident_kernel\w*?Li(\d+)ELi(\d+)E"),
    "residual": re.compile(r"residual_kernel\w*?Li\d+ELi(\d+)ELi(\d+)E"),
    "rollout": re.compile(r"rollout_kernel\w*?Li()(\d+)E"),
}
# highest register in the code of a warpgroup that asked for this many, or of all threads
MOST_REGISTERS = {"conv": 232, "resident": 255, "residual": 208, "rollout": 128, "weight_gradient": 152}
# warpgroups and the registers of tables.h that each asks for while the kernel runs; out of those that it was started with, or it
# waits for ever
ASKED = {
    "conv": [(1, "kConvProducerRegisters"), (2, "kConvConsumerRegisters")],
    "residual": [(1, "kResidualCarrierRegisters"), (2, "kResidualConsumerRegisters")],
    "weight_gradient": [(1, "kWeightGradientProducerRegisters"), (3, "kWeightGradientConsumerRegisters")],
}
KERNELS = {"conv": 6, "resident": 3, "residual": 7, "rollout": 3, "weight_gradient": 1}


def widths_of(stem: str, name: str) -> list[int]:
    """Columns of the products that a kernel should contain, one entry for each wgmma instruction."""
    if stem == "weight_gradient":  # 128 positions in steps of 16, three taps
        return [64] * 24
    found = WIDTHS[stem].search(name)
    assert found is not None, name
    if stem in ("conv", "rollout"):
        return [int(found[2])] * 9  # the taps are unrolled
    first, second = int(found[1]), int(found[2])
    tiles = [first, second] if second else [first]  # taps and slabs are loops
    return tiles * 3 if stem == "residual" else tiles  # the taps of a row are unrolled


@pytest.mark.parametrize(
    "source",
    [pytest.param(s, marks=pytest.mark.slow) if s.endswith("fp16.cu") else s for s in cuda_build.KERNELS],
)
def test_kernel_compiles_as_planned(source: str) -> None:
    stem = source.rsplit("_", 1)[0]
    cubin, report = cuda_build.compiled_kernel(source)
    assert not re.search(r"C75\d\d", report), report  # serialised products, ignored register requests
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(frames) == KERNELS[stem]
    assert all(frame == ("0", "0", "0") for frame in frames), report
    started = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    assert len(started) == KERNELS[stem]
    if stem in ASKED:
        tables = (cuda_build.SOURCE / "tables.h").read_text()
        asked = [(groups, int(re.findall(rf"{name} = (\d+);", tables)[0])) for groups, name in ASKED[stem]]
        warpgroups = sum(groups for groups, _ in asked)
        assert min(started) * warpgroups >= sum(groups * registers for groups, registers in asked), (started, asked)
    assert not re.search(r"[1-9]\d* bytes smem", report), "shared memory is asked for at the launch, by the plan"

    kernels = cuda_build.machine_code(cubin)
    assert len(kernels) == KERNELS[stem]
    for name, code in kernels.items():
        products = [int(width) for width in re.findall(r"HGMMA\.64x(\d+)x16", code)]
        assert sorted(products) == sorted(widths_of(stem, name)), name
        highest = max(int(number) for number in re.findall(r"\bR(\d+)\b", code))
        assert highest < MOST_REGISTERS[stem], name
        assert not re.search(r"\b(LDL|STL)\b", code), name
        half = "BF16" if source.endswith("bf16.cu") else ""
        assert len(re.findall(rf"HGMMA\.64x\d+x16\.F32{'.' + half if half else ' '}", code)) == len(products), name


def test_setup_builds_for_sm_90a_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever architectures the environment names, as many images for GPUs do: wgmma exists on sm_90a only."""
    if shutil.which("nvcc") is None or torch.version.cuda is None:
        pytest.skip("setup.py leaves the CUDA library out where there is no nvcc, or PyTorch has no CUDA")
    monkeypatch.chdir(cuda_build.ROOT)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path("setup.py")
    flags = {module.name: module.extra_compile_args["nvcc"] for module in given["ext_modules"]}["rdk._cuda"]
    flags = flags + cpp_extension._get_cuda_arch_flags(flags)
    assert [flag for flag in flags if "arch" in flag] == ["-gencode=arch=compute_90a,code=sm_90a"]


@pytest.mark.parametrize(("mode", "built"), [("cuda", ["rdk._cuda"]), ("auto", ["rdk._cpu", "rdk._cuda"]), ("off", [])])
def test_setup_builds_what_it_is_asked_for(mode: str, built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("nvcc") is None or torch.version.cuda is None:
        pytest.skip("setup.py leaves the CUDA library out where there is no nvcc, or PyTorch has no CUDA")
    monkeypatch.chdir(cuda_build.ROOT)
    monkeypatch.setenv("RDK_BUILD", mode)
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    info = runpy.run_path("setup.py")["info"]
    assert [module.name for module in given["ext_modules"]] == built
    left_out = {"_cpu", "_cuda"} - {name[4:] for name in built}
    assert info["left_out"].keys() == left_out and all(f"RDK_BUILD={mode}" in why for why in info["left_out"].values())


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_grid_barrier_orders_memory(half: str) -> None:
    """Fence, arrival, spin, fence; the second discards L1, and maps are fetched past it."""
    for name, code in cuda_build.machine_code(cuda_build.compiled_kernel(f"rollout_{half}.cu")[0]).items():
        order = re.findall(r"MEMBAR\.\S*GPU|REDG\S*GPU|LDG\S*STRONG\.GPU|CCTL\.IVALL|LDGSTS\S*128", code)
        barrier = [re.split(r"[.]", word)[0] for word in order if "LDGSTS" not in word]
        assert barrier == ["MEMBAR", "CCTL", "REDG", "LDG", "MEMBAR", "CCTL"], name
        copies = [word for word in order if "LDGSTS" in word]
        assert copies and all("BYPASS" in word for word in copies), name


@pytest.mark.slow
def test_waits_end_where_that_was_asked_for() -> None:
    """RDK_CUDA_TRAP_SPINS prints and traps at every wait; without it, no kernel does either."""
    for stem in KERNELS:
        for flags in ([], ["-DRDK_CUDA_TRAP_SPINS"]):
            cubin, _ = cuda_build.compiled_kernel(f"{stem}_bf16.cu", *flags)
            assert (b"vprintf" in cubin.read_bytes()) == bool(flags)
            for name, code in cuda_build.machine_code(cubin).items():
                assert ("BPT.TRAP" in code) == bool(flags), name


def test_every_half_type_has_every_kernel() -> None:
    assert {*cuda_build.KERNELS} == {f"{stem}_{half}.cu" for stem in KERNELS for half in ("bf16", "fp16")}
