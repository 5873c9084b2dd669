// Where things lie: the padded position space, shared-memory addresses, wgmma descriptors, packed weights. Called by
// kernels, launchers and tests.
#pragma once

#include <cstdint>

#include "tables.h"

#if defined(__CUDACC__)
#define RDK_BOTH __host__ __device__
#else
#define RDK_BOTH
#endif

namespace rdk::cuda {

inline constexpr int kUnit = 16;  // bytes: 8 halves, one chunk of channels of a position

RDK_BOTH constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }
RDK_BOTH constexpr int ceil_div(int value, int step) { return (value + step - 1) / step; }

// n / divisor for 0 <= n < 2^31 by one multiplication (Granlund & Montgomery 1994).
struct Divider {
  uint64_t multiplier;
  int32_t divisor;
  int32_t shift;

  static constexpr Divider by(int divisor) {
    int log = 0;
    while ((int64_t{1} << log) < divisor) ++log;
    return {((uint64_t{1} << (31 + log)) + divisor - 1) / static_cast<uint64_t>(divisor), divisor, 31 + log};
  }
  RDK_BOTH constexpr int quotient(int n) const {
    return static_cast<int>((static_cast<uint64_t>(n) * multiplier) >> shift);
  }
};

// All images of a batch in one line of positions: rows of `pitch` = width + dilation, `dilation` empty rows after each
// image. A tap (r, s) of position q reads position q + (r - 1) * dilation * pitch + (s - 1) * dilation: the empty
// columns serve as right border of their row and left border of the next, the empty rows as lower and upper border. No
// tap of a pixel ever meets another pixel than its own neighbour.
struct PaddedGrid {
  int height, width, dilation;

  RDK_BOTH constexpr int pitch() const { return width + dilation; }
  RDK_BOTH constexpr int period() const { return (height + dilation) * pitch(); }
  RDK_BOTH constexpr int halo() const { return dilation * pitch() + dilation; }
  // Whether two halos of a chunk of channels fit in shared memory. Plans ask it first: else 32 bits may not hold a
  // halo.
  RDK_BOTH constexpr bool halo_fits() const {
    return dilation <= kSharedBytes && (dilation * (int64_t{width} + dilation) + dilation) * 2 * kUnit <= kSharedBytes;
  }
  // how far tap (r, s) lies behind tap (0, 0); dilation: the convolution's, where it is smaller than the grid's
  RDK_BOTH constexpr int tap(int r, int s, int dilation) const { return (r * pitch() + s) * dilation; }
  // positions from the first to the last pixel of one image
  RDK_BOTH constexpr int span() const { return (height - 1) * pitch() + width; }
};

// Pixel number (image * height + y) * width + x of position q, or -1 where q is empty or outside the batch.
RDK_BOTH constexpr int pixel_of_position(int q, int images, const PaddedGrid& grid, const Divider& by_period,
                                         const Divider& by_pitch) {
  if (q < 0) return -1;
  const int image = by_period.quotient(q);
  const int inside = q - image * by_period.divisor;
  const int y = by_pitch.quotient(inside);
  const int x = inside - y * by_pitch.divisor;
  if (image >= images || y >= grid.height || x >= grid.width) return -1;
  return (image * grid.height + y) * grid.width + x;
}

// One of the grids that SubGrids cuts maps into: its image, its first row and column there, its size.
struct SubGrid {
  int image, top, left, height, width;
};

// Maps cut into `split` x `split` grids each, rows and columns modulo `split`. A convolution whose dilation is a
// multiple of `split`, padded by its dilation, never mixes them.
struct SubGrids {
  int height, width, split;  // of the whole map

  // grids of one map that have a pixel
  RDK_BOTH constexpr int across() const { return split < width ? split : width; }
  RDK_BOTH constexpr int count() const { return (split < height ? split : height) * across(); }
  RDK_BOTH constexpr SubGrid grid(int item) const {
    const int image = item / count(), inside = item % count();
    const int top = inside / across(), left = inside % across();
    return {image, top, left, ceil_div(height - top, split), ceil_div(width - left, split)};
  }
  // pixel number (image * height + row) * width + column of pixel (y, x) of a grid
  RDK_BOTH constexpr int64_t pixel(const SubGrid& sub, int y, int x) const {
    return (static_cast<int64_t>(sub.image) * height + sub.top + y * split) * width + sub.left + x * split;
  }
};

// Maps cut into patches of 8 x 8 pixels, the last of a row or column reaching beyond the map.
struct Patches {
  int height, width;  // of a map

  RDK_BOTH constexpr int across() const { return ceil_div(width, kPatch); }
  RDK_BOTH constexpr int count() const { return ceil_div(height, kPatch) * across(); }  // of one map
  // pixel number (image * height + row) * width + column of pixel (y, x) of a patch, -1 outside the map; y and x may
  // reach into its neighbours
  RDK_BOTH constexpr int pixel(int patch, int y, int x) const {
    const int image = patch / count(), inside = patch % count();
    const int row = inside / across() * kPatch + y, column = inside % across() * kPatch + x;
    if (row < 0 || row >= height || column < 0 || column >= width) return -1;
    return (image * height + row) * width + column;
  }
};

// Shared-memory maps are [channel / 8][slot][8] halves: a chunk holds `slots` units of 16 bytes.
RDK_BOTH constexpr uint32_t map_address(uint32_t base, int slots, int chunk, int slot) {
  return base + kUnit * static_cast<uint32_t>(chunk * slots + slot);
}
// 8 lanes that store the 8 chunks of one slot meet different banks when the chunk stride is odd in units;
RDK_BOTH constexpr int odd_slots(int slots) { return slots | 1; }
// 8 lanes that store 2 chunks of 4 slots do when it is 4 modulo 8.
RDK_BOTH constexpr int slab_slots(int slots) { return round_up(slots - 4, 8) + 4; }

// Where a descriptor says that a matrix starts, in units of 16 bytes: 18 bits of the address, since in a cluster the
// higher ones name the block. Steps in the same units may be added to it.
RDK_BOTH constexpr uint32_t descriptor_start(uint32_t address) { return (address & 0x3ffff) >> 4; }

// The 64-bit matrix descriptor of wgmma without swizzle: addresses and offsets in units of 16 bytes.
// `along_k` steps 8 elements along K, `along_mn` 8 rows along M or N, whichever of the two is contiguous in a core
// matrix.
RDK_BOTH constexpr uint64_t descriptor(uint32_t address, uint32_t along_k, uint32_t along_mn) {
  return static_cast<uint64_t>(descriptor_start(address)) | static_cast<uint64_t>(along_k >> 4) << 16 |
         static_cast<uint64_t>(along_mn >> 4) << 32;
}

// Weights are packed for the copy engine as [slab of 64 * m rows][k / 16][tap][k / 8 % 2][row / 8][row % 8][k % 8].
struct PackedWeights {
  int rows;  // 64 * m
  RDK_BOTH constexpr uint32_t along_k() const { return static_cast<uint32_t>(rows * kUnit); }
  RDK_BOTH constexpr uint32_t along_m() const { return 8 * kUnit; }
  RDK_BOTH constexpr int tap_bytes() const { return 2 * rows * kUnit; }
  RDK_BOTH constexpr int slab_bytes() const { return kTaps * tap_bytes(); }
  // element index of (row, k, tap) with `slabs` = channels / 16
  RDK_BOTH constexpr int64_t index(int row, int k, int tap, int slabs) const {
    const int64_t block = (static_cast<int64_t>(row / rows) * slabs + k / 16) * kTaps + tap;
    return ((block * 2 + k / 8 % 2) * rows + row % rows) * 8 + k % 8;
  }
};

// Row and column of accumulator `index` of `thread` (0 … 127) in a wgmma result of 64 rows.
RDK_BOTH constexpr int fragment_row(int thread, int index) {
  return thread / 32 * 16 + thread % 32 / 4 + index / 2 % 2 * 8;
}
RDK_BOTH constexpr int fragment_column(int thread, int index) { return index / 4 * 8 + thread % 4 * 2 + index % 2; }

}  // namespace rdk::cuda
