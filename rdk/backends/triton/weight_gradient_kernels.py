"""The Triton kernels of weight gradients, @triton.jit only; called by launch.py, compiled ahead of time by build.py.

Maps are (P, C) as in kernels.py, one per iteration of a run.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from rdk.backends.triton.kernels import GEOMETRY, normalise, pointers, relu, row_and_column, short


@triton.jit(
    do_not_specialize=[*GEOMETRY, "grad_stride", "x_stride", "affine_stride", "iterations", "chunk", "carry"],
    do_not_specialize_on_alignment=["grad_ptr", "grad_last_ptr", "x_ptr", "x_first_ptr", "affine_ptr", "partial_ptr"],
)
def weight_gradient_kernel(
    grad_ptr,  # iteration i: (P, C) at i * grad_stride elements; with grad_last_ptr the last iteration's is there
    grad_stride,
    grad_last_ptr,
    x_ptr,  # iteration i: (P, C) at i * x_stride; with x_first_ptr iteration 0 is there and i > 0 at (i - 1) * x_stride
    x_stride,
    x_first_ptr,
    affine_ptr,  # iteration i: (3, C) at i * affine_stride: x is normalised on load, with X_RELU also rectified
    affine_stride,
    partial_ptr,  # (splits, C, TAPS * C) float32
    iterations,
    chunk,  # pixels per split, a multiple of BLOCK_P
    carry,  # nonzero: adds to the partial sums that stand there
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
    X_RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """partial[split, k, (tap, c)] += sum over iterations and the split's pixels of grad[p, k] * x[p + tap, c].

    One program owns BLOCK_K output channels by BLOCK_N columns (tap, c) of one split: no atomics, one fixed order.
    """
    COLUMNS: tl.constexpr = TAPS * C
    K_TILES: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    N_TILES: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    ONE_TAP: tl.constexpr = C % BLOCK_N == 0
    tile = tl.program_id(0) % (K_TILES * N_TILES)
    split = tl.program_id(0) // (K_TILES * N_TILES)
    k = tile % K_TILES * BLOCK_K + tl.arange(0, BLOCK_K)
    n_first = tile // K_TILES * BLOCK_N
    n = n_first + tl.arange(0, BLOCK_N)
    c = n % C
    if ONE_TAP:  # a scalar tap: masks by row only
        tap = n_first // C
        c = n_first % C + tl.arange(0, BLOCK_N)
    else:
        tap = n // C
    dy = (tap // 3 - 1) * dilation
    dx = (tap % 3 - 1) * dilation
    local = tl.arange(0, BLOCK_P)
    start = split * chunk
    end = tl.minimum(start + chunk, pixels)
    blocks = chunk // BLOCK_P

    partials = partial_ptr + split.to(tl.int64) * (C * COLUMNS) + (k[:, None] * COLUMNS + n[None, :])
    keep_partials = (k < C)[:, None] & (n < COLUMNS)[None, :]
    accumulator = tl.load(partials, mask=keep_partials & (carry != 0), other=0.0)
    for step in range(iterations * blocks):
        iteration = step // blocks
        first = start + (step - iteration * blocks) * BLOCK_P
        p = first + local
        inside = p < end
        grads = grad_ptr + iteration.to(tl.int64) * grad_stride
        if grad_last_ptr is not None:
            grads = tl.where(iteration == iterations - 1, grad_last_ptr, grads)
        base = x_ptr + iteration.to(tl.int64) * x_stride
        if x_first_ptr is not None:
            base = tl.where(iteration == 0, x_first_ptr, base - x_stride)
        keep_grad = inside[:, None]
        if C % BLOCK_K != 0:
            keep_grad = keep_grad & (k < C)[None, :]
        grad = tl.load(pointers(grads, first, local, k, C, ALIGNED), mask=keep_grad, other=0.0)
        if TAPS == 9:
            y, x = row_and_column(p, height, width, height_magic, height_shift, width_magic, width_shift)
            if ONE_TAP:
                on = inside & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                keep = on[:, None]
                base += (dy * width + dx).to(tl.int64) * C
                columns = c
            else:
                row = y[:, None] + dy[None, :]
                column = x[:, None] + dx[None, :]
                keep = inside[:, None] & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                columns = (dy * width + dx) * C + c
                if COLUMNS % BLOCK_N != 0:
                    keep = keep & (n < COLUMNS)[None, :]
        else:
            keep = inside[:, None]
            columns = c
            if COLUMNS % BLOCK_N != 0:
                keep = keep & (n < COLUMNS)[None, :]
        operand = tl.load(pointers(base, first, local, columns, C, ALIGNED), mask=keep, other=0.0)
        if affine_ptr is not None:
            value = normalise(operand.to(tl.float32), affine_ptr + iteration.to(tl.int64) * affine_stride, c, C)
            if X_RELU:
                value = relu(value)
            operand = tl.where(keep, value, 0.0).to(operand.dtype)
        if WIDEN:
            operand = operand.to(tl.float32)
            grad = grad.to(tl.float32)
        grad = short(grad, PRECISION)
        operand = short(operand, PRECISION)
        accumulator = tl.dot(tl.trans(grad), operand, accumulator, input_precision=PRECISION)
    tl.store(partials, accumulator, mask=keep_partials)


@triton.jit(do_not_specialize=["splits", "stride_k", "stride_c", "stride_y", "stride_x"])
def weight_gradient_reduce_kernel(
    partial_ptr,  # (splits, C, TAPS * C) float32
    out_ptr,  # (C, C, 3, 3) or (C, C), any strides
    splits,
    stride_k,
    stride_c,
    stride_y,
    stride_x,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums the splits in their order."""
    COUNT: tl.constexpr = C * TAPS * C
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    on = index < COUNT
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(partial_ptr + tl.cast(split, tl.int64) * COUNT + index, mask=on, other=0.0)
    k = index // (TAPS * C)
    tap = index // C % TAPS
    offset = k * stride_k + index % C * stride_c + tap // 3 * stride_y + tap % 3 * stride_x
    tl.store(out_ptr + offset, total.to(out_ptr.dtype.element_ty), mask=on)
