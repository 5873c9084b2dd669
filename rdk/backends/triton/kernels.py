"""The Triton kernel of convolutions and what others share with it, @triton.jit only; called by launch.py, compiled by build.py.

Maps are dense (P, C) arrays: P pixels of all images row by row, C channels innermost. A linear layer is the same with TAPS = 1.
Offsets within a tile are int32 on top of an int64 base, so that a map may pass 2**31 elements. What a launch does not use is
None or a constexpr and costs nothing.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

GEOMETRY = ["pixels", "height", "width", "height_magic", "height_shift", "width_magic", "width_shift", "dilation"]


@triton.jit
def _divide(value, magic, shift):
    """value // d for 0 <= value < 2**31, with magic = ceil(2**(31 + shift) / d) and shift = ceil(log2(d))."""
    return (tl.umulhi((value * 2).to(tl.uint32), magic.to(tl.uint32)) >> shift).to(tl.int32)


@triton.jit
def row_and_column(p, height, width, height_magic, height_shift, width_magic, width_shift):
    """Row and column of pixel p inside its image."""
    line = _divide(p, width_magic, width_shift)
    return line - _divide(line, height_magic, height_shift) * height, p - line * width


@triton.jit
def relu(value):
    """Keeps NaN, as PyTorch's does."""
    return tl.where(value <= 0, 0.0, value)


@triton.jit
def short(value, PRECISION: tl.constexpr):
    """An operand for the tensor cores: float32 rounded to TF32's ten bits, since they cut off what is left of the others."""
    if PRECISION == "tf32":
        rounded = ((value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)  # a NaN of ones alone would carry into the sign
    return value


@triton.jit
def normalise(value, affine_ptr, c, C: tl.constexpr):
    """(value - mean) * scale + beta by channel c; the mean goes first, so that a large one cancels exactly."""
    on = c < C
    mean = tl.load(affine_ptr + c, mask=on, other=0.0)
    scale = tl.load(affine_ptr + C + c, mask=on, other=0.0)
    beta = tl.load(affine_ptr + 2 * C + c, mask=on, other=0.0)
    return tl.fma(value - mean[None, :], scale[None, :], beta[None, :])


@triton.jit
def norm_gradient(grad, z, coefficient_ptr, c, C: tl.constexpr):
    """The gradient before a norm, a * grad + b * (z - mean) + d by channel c."""
    on = c < C
    a = tl.load(coefficient_ptr + c, mask=on, other=0.0)
    b = tl.load(coefficient_ptr + C + c, mask=on, other=0.0)
    d = tl.load(coefficient_ptr + 2 * C + c, mask=on, other=0.0)
    mean = tl.load(coefficient_ptr + 3 * C + c, mask=on, other=0.0)
    return tl.fma(grad, a[None, :], tl.fma(z - mean[None, :], b[None, :], d[None, :]))


@triton.jit
def pointers(ptr, first, local, c, C: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to pixels first + local, channels c, of a map."""
    found = ptr + first.to(tl.int64) * C + (local[:, None] * C + c[None, :])
    if ALIGNED:  # the launcher saw that every row starts at a multiple of 16 bytes
        found = tl.multiple_of(found, (16, 16))
    return found


@triton.jit
def store_sums(
    value, inside, first, local, k, keep, tile, sums_ptr, z_ptr, affine_ptr, accumulate,
    C: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Sums over a tile's pixels of a gradient and, with z, of gradient * (z - mean): (tiles, 1 or 2, C)."""
    on = k < C
    rows: tl.constexpr = 1 if z_ptr is None else 2
    value = tl.where(inside[:, None], value, 0.0)
    target = sums_ptr + tile.to(tl.int64) * rows * C + k
    before = tl.load(target, mask=on & (accumulate != 0), other=0.0)
    tl.store(target, before + tl.sum(value, axis=0), mask=on)
    if z_ptr is not None:
        z = tl.load(pointers(z_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
        mean = tl.load(affine_ptr + k, mask=on, other=0.0)
        tl.store(target + C, tl.sum(value * (z - mean[None, :]), axis=0), mask=on)


@triton.jit
def _finish_tile(
    value, tile, first, local, inside, k,
    x_ptr, out_ptr, z_ptr, coefficient_ptr, dz_ptr, bias_ptr, pre_norm_ptr, statistics_ptr, out_affine_ptr, add_a_ptr,
    add_b_ptr, mask_ptr, mask_affine_ptr, sums_ptr, sums_z_ptr, sums_affine_ptr, accumulate, pixels,
    C: tl.constexpr, RELU: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """All that rides on a convolution, for output channels k of a tile: see conv3x3_kernel's arguments."""
    on_k = k < C
    keep = inside[:, None] & on_k[None, :]
    kind = out_ptr.dtype.element_ty
    if dz_ptr is not None:  # each program leaves its own part of what all of them built on load
        grad = tl.load(pointers(x_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
        z = tl.load(pointers(z_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
        dz = norm_gradient(grad, z, coefficient_ptr, k, C)
        tl.store(pointers(dz_ptr, first, local, k, C, ALIGNED), dz.to(kind), mask=keep)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + k, mask=on_k, other=0.0).to(tl.float32)[None, :]
    if pre_norm_ptr is not None or statistics_ptr is not None or out_affine_ptr is not None:
        value = value.to(kind).to(tl.float32)
    if pre_norm_ptr is not None:
        tl.store(pointers(pre_norm_ptr, first, local, k, C, ALIGNED), value.to(kind), mask=keep)
    if statistics_ptr is not None:
        count = tl.minimum(pixels - first, BLOCK_P).to(tl.float32)
        mean = tl.sum(tl.where(inside[:, None], value, 0.0), axis=0) / count
        deviation = tl.where(inside[:, None], value - mean[None, :], 0.0)
        target = statistics_ptr + tile.to(tl.int64) * (2 * C) + k
        tl.store(target, mean, mask=on_k)
        tl.store(target + C, tl.sum(deviation * deviation, axis=0), mask=on_k)
    if out_affine_ptr is not None:
        value = normalise(value, out_affine_ptr, k, C)
    if add_a_ptr is not None:
        value += tl.load(pointers(add_a_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    if add_b_ptr is not None:
        value += tl.load(pointers(add_b_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
    if RELU:
        value = relu(value)
    if mask_ptr is not None:
        mask = tl.load(pointers(mask_ptr, first, local, k, C, ALIGNED), mask=keep, other=0.0).to(tl.float32)
        if mask_affine_ptr is not None:
            mask = normalise(mask, mask_affine_ptr, k, C).to(kind).to(tl.float32)
        value = tl.where(mask <= 0, 0.0, value)
    value = value.to(kind)
    tl.store(pointers(out_ptr, first, local, k, C, ALIGNED), value, mask=keep)
    if sums_ptr is not None:
        store_sums(
            value.to(tl.float32), inside, first, local, k, keep, tile, sums_ptr, sums_z_ptr, sums_affine_ptr, accumulate,
            C, ALIGNED,
        )  # fmt: skip


_SCALARS = [*GEOMETRY, "accumulate"]
_POINTERS = [
    "x_ptr", "weight_ptr", "out_ptr", "affine_ptr", "z_ptr", "coefficient_ptr", "dz_ptr", "bias_ptr", "pre_norm_ptr",
    "statistics_ptr", "out_affine_ptr", "add_a_ptr", "add_b_ptr", "mask_ptr", "mask_affine_ptr", "sums_ptr", "sums_z_ptr",
    "sums_affine_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=_SCALARS, do_not_specialize_on_alignment=_POINTERS)
def conv3x3_kernel(
    x_ptr,  # (P, C) the input; a pre-norm map with affine_ptr; a gradient
    weight_ptr,  # (C out, TAPS, C in), in TF32 of ten bits: see prepared.py
    out_ptr,  # (P, C)
    affine_ptr,  # (3, C) mean, scale, beta: the input is normalised on load, with X_RELU also rectified
    z_ptr,  # (P, C), with coefficient_ptr (4, C): x is the gradient after a norm and is taken through it on load
    coefficient_ptr,
    dz_ptr,  # (P, C) receives that gradient before the norm
    bias_ptr,  # (C,)
    pre_norm_ptr,  # (P, C) receives the sum before the norm
    statistics_ptr,  # (tiles, 2, C) receives mean and M2 of the sum as it is stored
    out_affine_ptr,  # (3, C) normalises the sum
    add_a_ptr,  # (P, C) maps added: inject and skip, or gradients
    add_b_ptr,
    mask_ptr,  # (P, C) the result is zero where this is not positive; with mask_affine_ptr where it is not once normalised
    mask_affine_ptr,
    sums_ptr,  # (tiles, 1 or 2, C) see store_sums
    sums_z_ptr,
    sums_affine_ptr,
    accumulate,  # nonzero: sums are added to those that stand there
    pixels,
    height,
    width,
    height_magic,
    height_shift,
    width_magic,
    width_shift,
    dilation,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    FLIP: tl.constexpr,  # weights come last tap first
    X_RELU: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,  # the interpreter multiplies float32 only
    ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PARTS: tl.constexpr,  # 1 or 2: in how many parts the epilogue takes the output channels
):
    """Implicit GEMM: out[p, k] = sum over taps and c of x[p + tap, c] * weight[k, tap, c], and all that can ride on it.

    One program computes BLOCK_P pixels by BLOCK_K output channels; neighbours in the grid share the pixels.
    """
    OUT_TILES: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0) // OUT_TILES
    k_first = tl.program_id(0) % OUT_TILES * BLOCK_K
    k = k_first + tl.arange(0, BLOCK_K)
    first = tile * BLOCK_P
    local = tl.arange(0, BLOCK_P)
    inside = first + local < pixels
    # bit t of a pixel: tap t lies on the map
    bits = inside.to(tl.int32)
    if TAPS == 9:
        y, x = row_and_column(first + local, height, width, height_magic, height_shift, width_magic, width_shift)
        columns = (x >= dilation).to(tl.int32) + 2 + 4 * (x + dilation < width).to(tl.int32)
        bits = tl.where(y >= dilation, columns, 0) + columns * 8 + tl.where(y + dilation < height, columns * 64, 0)
        bits = tl.where(inside, bits, 0)

    accumulator = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    for step in range(TAPS * CHUNKS):
        tap = step % TAPS
        c = step // TAPS * BLOCK_C + tl.arange(0, BLOCK_C)
        shift = 0
        weight_tap = tap
        if TAPS == 9:
            shift = ((tap // 3 - 1) * width + tap % 3 - 1) * dilation
            if FLIP:
                weight_tap = TAPS - 1 - tap
        on = ((bits >> tap) & 1) != 0
        on = on[:, None]
        keep_x = on
        if C % BLOCK_C != 0:
            keep_x = on & (c < C)[None, :]
        operand = tl.load(pointers(x_ptr, first + shift, local, c, C, ALIGNED), mask=keep_x, other=0.0)
        if affine_ptr is not None:
            value = normalise(operand.to(tl.float32), affine_ptr, c, C)
            if X_RELU:
                value = relu(value)
            operand = tl.where(on, value, 0.0).to(operand.dtype)  # padding is zero after the norm
        if coefficient_ptr is not None:
            z = tl.load(pointers(z_ptr, first + shift, local, c, C, ALIGNED), mask=keep_x, other=0.0)
            value = norm_gradient(operand.to(tl.float32), z.to(tl.float32), coefficient_ptr, c, C)
            operand = tl.where(on, value, 0.0).to(operand.dtype)
        weights = weight_ptr + ((k[:, None] * TAPS + weight_tap) * C + c[None, :])
        if ALIGNED:
            weights = tl.multiple_of(weights, (16, 16))
        if C % BLOCK_C != 0 or C % BLOCK_K != 0:
            weight = tl.load(weights, mask=(k < C)[:, None] & (c < C)[None, :], other=0.0)
        else:
            weight = tl.load(weights)
        if WIDEN:
            operand = operand.to(tl.float32)
            weight = weight.to(tl.float32)
        operand = short(operand, PRECISION)
        accumulator = tl.dot(operand, tl.trans(weight), accumulator, input_precision=PRECISION)

    if PARTS == 1:
        _finish_tile(
            accumulator, tile, first, local, inside, k,
            x_ptr, out_ptr, z_ptr, coefficient_ptr, dz_ptr, bias_ptr, pre_norm_ptr, statistics_ptr, out_affine_ptr, add_a_ptr,
            add_b_ptr, mask_ptr, mask_affine_ptr, sums_ptr, sums_z_ptr, sums_affine_ptr, accumulate, pixels,
            C, RELU, ALIGNED, BLOCK_P,
        )  # fmt: skip
    else:  # half of the channels at a time, for the registers' sake
        halves = tl.permute(tl.reshape(accumulator, (BLOCK_P, 2, BLOCK_K // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        k = k_first + tl.arange(0, BLOCK_K // 2)
        _finish_tile(
            left, tile, first, local, inside, k,
            x_ptr, out_ptr, z_ptr, coefficient_ptr, dz_ptr, bias_ptr, pre_norm_ptr, statistics_ptr, out_affine_ptr, add_a_ptr,
            add_b_ptr, mask_ptr, mask_affine_ptr, sums_ptr, sums_z_ptr, sums_affine_ptr, accumulate, pixels,
            C, RELU, ALIGNED, BLOCK_P,
        )  # fmt: skip
        _finish_tile(
            right, tile, first, local, inside, k + BLOCK_K // 2,
            x_ptr, out_ptr, z_ptr, coefficient_ptr, dz_ptr, bias_ptr, pre_norm_ptr, statistics_ptr, out_affine_ptr, add_a_ptr,
            add_b_ptr, mask_ptr, mask_affine_ptr, sums_ptr, sums_z_ptr, sums_affine_ptr, accumulate, pixels,
            C, RELU, ALIGNED, BLOCK_P,
        )  # fmt: skip
