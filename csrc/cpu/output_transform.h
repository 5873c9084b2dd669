// Transformed points to pixels, with everything that follows a convolution: bias, norm, inject, skip, ReLU or its
// mask. Included by kernel_table.h; called by convolve.cpp.
#pragma once

namespace rdk::RDK_ISA {

// An epilogue, and its constants for the lanes from `channel` on.
struct Finish {
  const Epilogue epilogue;
  Vec bias = zero(), mean = zero(), scale = zero(), shift = zero();

  Finish(const Epilogue& given, int64_t channel) : epilogue(given) {
    if (epilogue.bias) bias = load(epilogue.bias + channel);
    if (epilogue.mean) {
      mean = load(epilogue.mean + channel);
      scale = load(epilogue.scale + channel);
      shift = load(epilogue.shift + channel);
    }
  }

  // M pixels side by side, the first `pixel` floats from the start of a buffer, `step` apart; beyond the edge of the
  // map too, where nothing is stored: the buffers reach as far as the tiles
  template <int M>
  __attribute__((always_inline)) void apply(Vec* z, int64_t pixel, int64_t step) const {
    if (epilogue.bias) {
#pragma GCC unroll 4
      for (int c = 0; c < M; ++c) z[c] = add(z[c], bias);
    }
    if (epilogue.mean) {
#pragma GCC unroll 4
      for (int c = 0; c < M; ++c) z[c] = fma(sub(z[c], mean), scale, shift);
    }
    for (int a = 0; a < kMaxAddends && epilogue.addends[a]; ++a) {
      const float* addend = epilogue.addends[a] + pixel;
#pragma GCC unroll 4
      for (int c = 0; c < M; ++c) z[c] = add(z[c], load(addend + c * step));
    }
    if (epilogue.relu) {
#pragma GCC unroll 4
      for (int c = 0; c < M; ++c) z[c] = relu(z[c]);
    }
    if (epilogue.mask) {
      const float* mask = epilogue.mask + pixel;
#pragma GCC unroll 4
      for (int c = 0; c < M; ++c) z[c] = where_positive(load(mask + c * step), z[c]);
    }
  }
};

template <int MR, int MC>
static void output_transform(const OutputArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  const Grid grid = args.grid;
  const Points points = args.points;
  for (int block = 0; block < grid.blocks; ++block) {
    const int64_t channel = (args.first_block + block) * static_cast<int64_t>(kBlock);
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      const Finish finish(args.epilogue, channel + lane);
      for (int number = 0; number < args.tiles.count; ++number) {
        const Strip strip = args.tiles.strips[number];
        int64_t corner = (args.first_block + block) * grid.block + strip.offset + lane;
        const float* m = points.data + block * points.block + strip.first * kBlock + lane;
        for (int left = strip.cols; left > 0; left -= MC, m += kBlock, corner += MC * grid.pixel) {
          Vec columns[TC][MR];
          const float* from = m;
#pragma GCC unroll 1
          for (int c = 0; c < TC; ++c, from += points.point) {
            Vec d[TR];
#pragma GCC unroll 6
            for (int r = 0; r < TR; ++r) d[r] = load(from + r * points.row);
            Winograd<MR>::output(d, columns[c]);
          }
          float* target = args.target + corner;
#pragma GCC unroll 1
          for (int r = 0; r < strip.rows; ++r, target += grid.row) {
            Vec d[TC], z[MC];
#pragma GCC unroll 6
            for (int c = 0; c < TC; ++c) d[c] = columns[c][r];
            Winograd<MC>::output(d, z);
            finish.apply<MC>(z, corner + r * grid.row, grid.pixel);
#pragma GCC unroll 4
            for (int c = 0; c < MC; ++c)
              if (c < left) store(target + c * grid.pixel, z[c]);
          }
        }
      }
    }
  }
}

}  // namespace rdk::RDK_ISA
