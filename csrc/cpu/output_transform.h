// Transformed points to pixels, with everything that follows a convolution: bias, norm, inject, skip, ReLU or its
// mask. Included by kernel_table.h; called by convolve.cpp.
#pragma once

namespace rdk::RDK_ISA {

struct ChannelConstants {
  Vec bias, mean, scale, shift;
};

template <int MR, int MC>
static void output_transform(const OutputArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  const Grid& grid = args.grid;
  const Epilogue& epilogue = args.epilogue;
  for (int block = 0; block < grid.blocks; ++block) {
    for (int number = 0; number < args.tiles.count; ++number) {
      const Strip& strip = args.tiles.strips[number];
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        const int64_t channel = (args.first_block + block) * static_cast<int64_t>(kBlock) + lane;
        ChannelConstants constants{};
        if (epilogue.bias) constants.bias = load(epilogue.bias + channel);
        if (epilogue.mean) {
          constants.mean = load(epilogue.mean + channel);
          constants.scale = load(epilogue.scale + channel);
          constants.shift = load(epilogue.shift + channel);
        }
        int64_t corner = (args.first_block + block) * grid.block + strip.offset + lane;
        const float* m = args.points.data + block * args.points.block + strip.first * kBlock + lane;
        for (int tile = 0; tile < strip.tiles; ++tile, m += kBlock, corner += MC * grid.pixel) {
          Vec columns[TC][MR];
          for (int c = 0; c < TC; ++c) {
            Vec points[TR];
            for (int r = 0; r < TR; ++r) points[r] = load(m + r * args.points.row + c * args.points.point);
            Winograd<MR>::output(points, columns[c]);
          }
          const int cols = strip.cols - tile * MC < MC ? strip.cols - tile * MC : MC;
          for (int r = 0; r < MR && r < strip.rows; ++r) {
            Vec points[TC], y[MC];
            for (int c = 0; c < TC; ++c) points[c] = columns[c][r];
            Winograd<MC>::output(points, y);
            const int64_t row = corner + r * grid.row;
            for (int c = 0; c < MC; ++c) {
              if (c >= cols) break;
              const int64_t pixel = row + c * grid.pixel;
              Vec z = y[c];
              if (epilogue.bias) z = add(z, constants.bias);
              if (epilogue.mean) z = fma(sub(z, constants.mean), constants.scale, constants.shift);
              for (int a = 0; a < kMaxAddends && epilogue.addends[a]; ++a)
                z = add(z, load(epilogue.addends[a] + pixel));
              if (epilogue.relu) z = relu(z);
              if (epilogue.mask) z = where_positive(load(epilogue.mask + pixel), z);
              store(args.target + pixel, z);
            }
          }
        }
      }
    }
  }
}

}  // namespace rdk::RDK_ISA
