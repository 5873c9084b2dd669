"""The table of tiles: which entry serves a problem, and the arithmetic of settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdk.backends.triton import configurations
from rdk.backends.triton.configurations import ConvTile, Entry
from rdk.backends.triton.setting import divisor, make_setting


@given(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_division_by_multiplication(value: int, d: int) -> None:
    magic, shift = divisor(d)
    assert magic < 2**32 and shift < 32
    for number in (value, value // d * d, max(value // d * d - 1, 0), 2**31 - 1):
        assert (2 * number * magic >> 32) >> shift == number // d


def test_the_file_is_what_its_writer_writes() -> None:
    """So that a tuned device changes its own lines only."""
    assert configurations.path().read_text(encoding="utf-8") == configurations.as_text(configurations.devices())


def test_a_device_is_found_by_name_then_by_capability_then_by_default() -> None:
    assert configurations.device_named("NVIDIA H200", (9, 0)).name == "NVIDIA H200"
    assert configurations.device_named("NVIDIA H100 80GB HBM3", (9, 0)).name == "NVIDIA H200"
    assert configurations.device_named("NVIDIA A100-SXM4-80GB", (8, 0)).name == "default"
    assert configurations.device_named("NVIDIA B200", (10, 0)).name == "default"


def test_the_nearest_entry_serves() -> None:
    def entry(channels: int, pixels: int) -> Entry:
        return Entry("half", channels, pixels, "arithmetic", ConvTile(channels, 64, 64, 4, 3))

    entries = (entry(64, 65536), entry(64, 4096), entry(256, 65536))
    assert configurations.nearest(entries, "half", 64, 50_000) is entries[0]
    assert configurations.nearest(entries, "half", 96, 4000) is entries[1]
    assert configurations.nearest(entries, "half", 512, 10**6) is entries[2]


def test_of_entries_as_near_that_of_most_channels_serves() -> None:
    """A linear layer of 1024 features on 8192 rows is as far from 128 channels on 4096 pixels as from 256 on 65536."""
    h200 = configurations.device_named("NVIDIA H200", (9, 0))
    for entries in (h200.conv, h200.conv[::-1]):
        assert configurations.nearest(entries, "half", 1024, 8192).channels == 256


@pytest.mark.parametrize(
    "device", [d for d in configurations.devices() if d.name != "interpreter"], ids=lambda d: d.name
)
@pytest.mark.parametrize(
    "dtype,precision", [(torch.bfloat16, "exact"), (torch.float32, "tf32"), (torch.float32, "ieee")]
)
def test_every_device_serves_every_problem(device: configurations.Device, dtype: torch.dtype, precision: str) -> None:
    for channels in (1, 3, 17, 64, 300, 4096):
        for shape in ((1, channels, 1, 1), (128, channels, 28, 28), (7, channels)):
            setting = make_setting(device, shape, dtype, precision, 132)
            widest = max(16, 2 * channels)
            assert setting.conv.block_out <= widest and setting.conv.block_in <= widest
            assert 1 <= setting.splits <= -(-setting.pixels // setting.weight_gradient.block_pixels)
            assert setting.split_chunk % setting.weight_gradient.block_pixels == 0
            assert (setting.splits - 1) * setting.split_chunk < setting.pixels <= setting.splits * setting.split_chunk
            assert 1 <= setting.run_length(10) <= 10 and setting.run_length(1) == 1


@pytest.mark.parametrize("channels,dtype", [(300, torch.bfloat16), (301, torch.float32), (150, torch.float16)])
def test_rows_of_no_multiple_of_16_bytes_take_small_tiles(channels: int, dtype: torch.dtype) -> None:
    device = configurations.device_named("NVIDIA H200", (9, 0))
    small, whole = (make_setting(device, (128, c, 16, 16), dtype, "tf32", 132) for c in (channels, 304))
    assert small.conv.block_pixels * small.conv.block_out <= 64 * 64 < whole.conv.block_pixels * whole.conv.block_out
    assert small.weight_gradient.block_out * small.weight_gradient.block_columns <= 64 * 64
    assert small.conv.block_in <= 32 and small.weight_gradient.block_pixels <= 32


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 7"):
        configurations.parse({"format": 7, "devices": []})


def test_blocks_of_gradients_hold_a_bounded_number_of_pixels() -> None:
    device = configurations.device_named("NVIDIA H200", (9, 0))
    big = make_setting(device, (128, 64, 28, 28), torch.bfloat16, "exact", 132)
    small = make_setting(device, (50, 64, 9, 9), torch.bfloat16, "exact", 132)
    assert big.run_length(64) == 1 and small.run_length(64) == 8
    changed = replace(big, numbers=replace(big.numbers, run_pixels=10**9))
    assert changed.run_length(64) == big.numbers.run_iterations


def test_a_capability_of_rocm_is_not_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    """An MI210 says (9, 0), as an H200 does; its shared memory is less than a third of that."""
    assert configurations.device_named("an unknown card", (9, 0)).name == "NVIDIA H200"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert configurations.device_named("AMD Instinct MI210", (9, 0)).name == "default"
