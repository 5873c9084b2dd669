// Tiles of a blocked buffer to transformed points: of the input (overlapping tiles) and of the gradient (the
// outputs' adjoint). Included by kernel_table.h; called by convolve.cpp and parameter_sums.cpp.
#pragma once
#include "tables.h"

namespace rdk::RDK_ISA {

// Column by column first, each once for the two tiles that share it, then along the rows of each tile. The next tile's
// lines are fetched while this one's are stored: a store waits long for a line that is not there.
template <int MR, int MC>
static void input_transform(const float* source, Grid grid, Tiles tiles, Points v) {
  constexpr int TR = MR + 2, TC = MC + 2;
  Vec columns[kMaxStripTiles * MC + 2][TR];
  for (int block = 0; block < grid.blocks; ++block) {
    for (int number = 0; number < tiles.count; ++number) {
      const Strip strip = tiles.strips[number];
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        const float* corner = source + block * grid.block + strip.offset - grid.row - grid.pixel + lane;
        for (int c = 0; c < strip.tiles * MC + 2; ++c) {
          Vec d[TR];
          for (int r = 0; r < TR; ++r) d[r] = held(load(corner + r * grid.row + c * grid.pixel));
          Winograd<MR>::input(d, columns[c]);
        }
        float* out = v.data + block * v.block + strip.first * kBlock + lane;
        for (int tile = 0; tile < strip.tiles; ++tile, out += kBlock) {
          for (int r = 0; r < TR; ++r) {
            Vec d[TC], points[TC];
            for (int c = 0; c < TC; ++c) d[c] = held(columns[tile * MC + c][r]);
            Winograd<MC>::input(d, points);
            for (int c = 0; c < TC; ++c) {
              store(out + r * v.row + c * v.point, points[c]);
              __builtin_prefetch(out + r * v.row + c * v.point + kBlock, 1);
            }
          }
        }
      }
    }
  }
}

template <int MR, int MC>
static void gradient_transform(const float* source, Grid grid, Tiles tiles, Points w) {
  constexpr int TR = MR + 2, TC = MC + 2;
  for (int block = 0; block < grid.blocks; ++block) {
    for (int number = 0; number < tiles.count; ++number) {
      const Strip strip = tiles.strips[number];
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        const float* corner = source + block * grid.block + strip.offset + lane;
        float* out = w.data + block * w.block + strip.first * kBlock + lane;
        for (int tile = 0; tile < strip.tiles; ++tile, out += kBlock, corner += MC * grid.pixel) {
          Vec columns[MC][TR];
          for (int c = 0; c < MC; ++c) {
            Vec y[MR];
            for (int r = 0; r < MR; ++r) y[r] = held(load(corner + r * grid.row + c * grid.pixel));
            Winograd<MR>::gradient(y, columns[c]);
          }
          for (int r = 0; r < TR; ++r) {
            Vec y[MC], points[TC];
            for (int c = 0; c < MC; ++c) y[c] = held(columns[c][r]);
            Winograd<MC>::gradient(y, points);
            for (int c = 0; c < TC; ++c) {
              store(out + r * w.row + c * w.point, points[c]);
              __builtin_prefetch(out + r * w.row + c * w.point + kBlock, 1);
            }
          }
        }
      }
    }
  }
}

}  // namespace rdk::RDK_ISA
