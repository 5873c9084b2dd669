"""The Triton kernels of BatchNorm around the convolutions, @triton.jit only; called by launch.py, compiled ahead by build.py.

Statistics travel as one row per pixel tile, merged in a fixed order; maps are (P, C) as in kernels.py.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from rdk.backends.triton.kernels import norm_gradient, normalise, pointers, relu, store_sums


@triton.jit
def _sum_of_tiles(ptr, stride, tiles, c, C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum over tiles of ptr[tile * stride + c], in a fixed order."""
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        keep = (tile < tiles)[:, None] & (c < C)[None, :]
        total += tl.sum(tl.load(ptr + tile.to(tl.int64)[:, None] * stride + c[None, :], mask=keep, other=0.0), axis=0)
    return total


@triton.jit(
    do_not_specialize=["tiles", "tile_pixels", "pixels", "eps"],
    do_not_specialize_on_alignment=["mean_ptr", "variance_ptr", "weight_ptr", "bias_ptr", "affine_ptr"],
)
def norm_statistics_kernel(
    statistics_ptr,  # (tiles, 2, C) mean and M2 of each tile, or None: mean and variance are given
    mean_ptr,  # row r: (C,) at r * C; written where statistics_ptr is given, else read
    variance_ptr,  # biased
    weight_ptr,  # row r: (C,) at r * C
    bias_ptr,
    affine_ptr,  # row r: (3, C) receives mean, weight / sqrt(variance + eps), bias
    tiles,
    tile_pixels,
    pixels,
    eps,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merges the tiles' statistics (Chan, Golub & LeVeque 1979) and prepares the norm; one program per row and channels."""
    C_TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    row = (tl.program_id(0) // C_TILES).to(tl.int64)
    c = tl.program_id(0) % C_TILES * BLOCK_C + tl.arange(0, BLOCK_C)
    on = c < C
    if statistics_ptr is not None:
        # deviations from the first tile's mean: sums stay small where the mean is large
        origin = tl.load(statistics_ptr + c, mask=on, other=0.0)
        drift = tl.zeros((BLOCK_C,), dtype=tl.float32)
        for start in range(0, tiles, BLOCK_T):
            tile = start + tl.arange(0, BLOCK_T)
            keep = (tile < tiles)[:, None] & on[None, :]
            count = tl.minimum(pixels - tile * tile_pixels, tile_pixels).to(tl.float32)
            source = statistics_ptr + tile.to(tl.int64)[:, None] * (2 * C) + c[None, :]
            apart = tl.load(source, mask=keep, other=0.0) - origin[None, :]
            drift += tl.sum(tl.where(keep, apart * count[:, None], 0.0), axis=0)
        mean = origin + drift / pixels.to(tl.float32)
        total = tl.zeros((BLOCK_C,), dtype=tl.float32)
        for start in range(0, tiles, BLOCK_T):
            tile = start + tl.arange(0, BLOCK_T)
            keep = (tile < tiles)[:, None] & on[None, :]
            count = tl.minimum(pixels - tile * tile_pixels, tile_pixels).to(tl.float32)
            source = statistics_ptr + tile.to(tl.int64)[:, None] * (2 * C) + c[None, :]
            apart = tl.load(source, mask=keep, other=0.0) - mean[None, :]
            within = tl.load(source + C, mask=keep, other=0.0)
            total += tl.sum(tl.where(keep, within + apart * apart * count[:, None], 0.0), axis=0)
        variance = total / pixels.to(tl.float32)
        tl.store(mean_ptr + row * C + c, mean, mask=on)
        tl.store(variance_ptr + row * C + c, variance, mask=on)
    else:
        mean = tl.load(mean_ptr + row * C + c, mask=on, other=0.0)
        variance = tl.load(variance_ptr + row * C + c, mask=on, other=0.0)
    weight = tl.load(weight_ptr + row * C + c, mask=on, other=0.0)
    bias = tl.load(bias_ptr + row * C + c, mask=on, other=0.0)
    target = affine_ptr + row * (3 * C) + c
    tl.store(target, mean, mask=on)
    tl.store(target + C, weight / tl.sqrt(variance + eps), mask=on)
    tl.store(target + 2 * C, bias, mask=on)


@triton.jit(
    do_not_specialize=["pixels"],
    do_not_specialize_on_alignment=["z_ptr", "affine_ptr", "add_a_ptr", "add_b_ptr", "out_ptr"],
)
def finish_stage_kernel(
    z_ptr,  # (P, C) the sum before the norm
    affine_ptr,  # (3, C)
    add_a_ptr,  # (P, C) inject and skip, or None
    add_b_ptr,
    out_ptr,  # (P, C)
    pixels,
    C: tl.constexpr,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """From the sum before the norm to the stage's result, for a result that is needed as a map."""
    OUT_TILES: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    first = tl.program_id(0) // OUT_TILES * BLOCK_P
    local = tl.arange(0, BLOCK_P)
    k = tl.program_id(0) % OUT_TILES * BLOCK_K + tl.arange(0, BLOCK_K)
    keep = (first + local < pixels)[:, None] & (k < C)[None, :]
    z = tl.load(pointers(z_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    value = normalise(z, affine_ptr, k, C)
    if add_a_ptr is not None:
        value += tl.load(pointers(add_a_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    if add_b_ptr is not None:
        value += tl.load(pointers(add_b_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    if RELU:
        value = relu(value)
    tl.store(pointers(out_ptr, first, local, k, C, ALIGNED), value.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit(
    do_not_specialize=["pixels", "accumulate"],
    do_not_specialize_on_alignment=["grad_ptr", "z_ptr", "affine_ptr", "sums_ptr"],
)
def gradient_sums_kernel(
    grad_ptr,  # (P, C)
    z_ptr,  # (P, C) or None
    affine_ptr,  # (3, C), with z_ptr
    sums_ptr,  # (tiles, 1 or 2, C) see store_sums
    pixels,
    accumulate,
    C: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sums of a gradient that no kernel of ours wrote: the one that enters a run."""
    OUT_TILES: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    tile = tl.program_id(0) // OUT_TILES
    first = tile * BLOCK_P
    local = tl.arange(0, BLOCK_P)
    k = tl.program_id(0) % OUT_TILES * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = first + local < pixels
    keep = inside[:, None] & (k < C)[None, :]
    value = tl.load(pointers(grad_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    store_sums(value, inside, first, local, k, keep, tile, sums_ptr, z_ptr, affine_ptr, accumulate, C, ALIGNED)


@triton.jit(
    do_not_specialize=["tiles", "pixels", "eps", "accumulate"],
    do_not_specialize_on_alignment=[
        "affine_ptr", "variance_ptr", "coefficient_ptr", "grad_weight_ptr", "grad_bias_ptr", "grad_conv_bias_ptr",
    ],
)  # fmt: skip
def merge_gradient_sums_kernel(
    sums_ptr,  # (tiles, 1 or 2, C): see store_sums
    affine_ptr,  # (3, C), or None without a norm
    variance_ptr,  # (C,)
    coefficient_ptr,  # (4, C) receives what norm_gradient needs
    grad_weight_ptr,  # (C,) float32, receive the norm's gradients
    grad_bias_ptr,
    grad_conv_bias_ptr,  # (C,) float32, receives the convolution's bias gradient, or None
    tiles,
    pixels,
    eps,
    accumulate,  # nonzero: the convolution's bias gradient is added to what stands there
    C: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over tiles, and from them the gradients of a norm's and a convolution's vectors.

    With batch statistics the gradient before the norm sums to zero, so that the convolution's bias has gradient zero.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    on = c < C
    if affine_ptr is None:
        to_bias = _sum_of_tiles(sums_ptr, C, tiles, c, C, BLOCK_T, BLOCK_C)
    else:
        grad_sum = _sum_of_tiles(sums_ptr, 2 * C, tiles, c, C, BLOCK_T, BLOCK_C)
        product_sum = _sum_of_tiles(sums_ptr + C, 2 * C, tiles, c, C, BLOCK_T, BLOCK_C)
        mean = tl.load(affine_ptr + c, mask=on, other=0.0)
        scale = tl.load(affine_ptr + C + c, mask=on, other=0.0)
        variance = tl.load(variance_ptr + c, mask=on, other=1.0)
        inverse = 1.0 / tl.sqrt(variance + eps)
        tl.store(grad_weight_ptr + c, product_sum * inverse, mask=on)
        tl.store(grad_bias_ptr + c, grad_sum, mask=on)
        through_z = tl.zeros((BLOCK_C,), dtype=tl.float32)
        constant = tl.zeros((BLOCK_C,), dtype=tl.float32)
        to_bias = scale * grad_sum
        if TRAINING:
            count = pixels.to(tl.float32)
            through_z = -scale * inverse * inverse * (product_sum / count)
            constant = -scale * (grad_sum / count)
            to_bias = tl.zeros((BLOCK_C,), dtype=tl.float32)
        tl.store(coefficient_ptr + c, scale, mask=on)
        tl.store(coefficient_ptr + C + c, through_z, mask=on)
        tl.store(coefficient_ptr + 2 * C + c, constant, mask=on)
        tl.store(coefficient_ptr + 3 * C + c, mean, mask=on)
    if grad_conv_bias_ptr is not None:
        before = tl.load(grad_conv_bias_ptr + c, mask=on & (accumulate != 0), other=0.0)
        tl.store(grad_conv_bias_ptr + c, before + to_bias, mask=on)


@triton.jit(
    do_not_specialize=["pixels"],
    do_not_specialize_on_alignment=["grad_ptr", "z_ptr", "coefficient_ptr", "out_ptr"],
)
def norm_gradient_kernel(
    grad_ptr,  # (P, C) the gradient after the norm
    z_ptr,  # (P, C) the sum before the norm
    coefficient_ptr,  # (4, C)
    out_ptr,  # (P, C)
    pixels,
    C: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradient before a norm as a map, where nine reads of two maps would cost more than this pass."""
    OUT_TILES: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    first = tl.program_id(0) // OUT_TILES * BLOCK_P
    local = tl.arange(0, BLOCK_P)
    k = tl.program_id(0) % OUT_TILES * BLOCK_K + tl.arange(0, BLOCK_K)
    keep = (first + local < pixels)[:, None] & (k < C)[None, :]
    grad = tl.load(pointers(grad_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    z = tl.load(pointers(z_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    value = norm_gradient(grad, z, coefficient_ptr, k, C)
    tl.store(pointers(out_ptr, first, local, k, C, ALIGNED), value.to(out_ptr.dtype.element_ty), mask=keep)
