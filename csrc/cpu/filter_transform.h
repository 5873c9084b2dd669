// 3x3 weights to filters at the points, packed for the product, and the adjoint: weight gradients from their sums at
// the points. Included by kernel_table.h; called by bindings_filters.cpp and tests/check_runs.cpp.
#pragma once
#include "maps.h"
#include "tables.h"

namespace rdk::RDK_ISA {

// Where (channel, block) stands in one point's packed filters, and how far apart its channels are.
struct Packed {
  int64_t offset, row;
  Packed(int blocks, int block) {
    const int pair = block / 2;
    row = 2 * pair + 1 < blocks ? 2 * kBlock : kBlock;
    offset = pair * static_cast<int64_t>(blocks) * kBlock * 2 * kBlock + block % 2 * kBlock;
  }
};

// The taps of one input and a block of outputs: 16 outputs of each tap side by side, as the weights have them or turned
// by half a turn.
class Taps {
 public:
  explicit Taps(const FilterArgs& args)
      : args_(args),
        adjacent_(args.row == 3 * args.col && (args.col == 1 || args.col == -1)),
        turned_(adjacent_ && args.col < 0) {}

  float* at(int r, int s) { return values_[turned_ ? 8 - 3 * r - s : 3 * r + s]; }

  template <class Move>
  void move(int block, int input) {
    const int left = args_.outputs - block * kBlock, outputs = left < kBlock ? left : kBlock;
    float* weight = args_.weight + block * static_cast<int64_t>(kBlock) * args_.output + input * args_.input;
    for (int o = 0; o < outputs; ++o) __builtin_prefetch(weight + o * args_.output + kInputsAhead * args_.input);
    if (adjacent_) {
      float* first = turned_ ? weight - 8 : weight;
      for (int lane = 0; lane < kBlock; lane += kLanes)
        for (int tap = 0; tap < 9; tap += kLanes)
          Move::turned(first + lane * args_.output + tap, args_.output, values_[tap] + lane,
                       up_to_lanes(outputs - lane), up_to_lanes(9 - tap));
    } else {
      for (int tap = 0; tap < 9; ++tap)
        for (int o = 0; o < outputs; ++o)
          Move::one(weight[o * args_.output + tap / 3 * args_.row + tap % 3 * args_.col], values_[tap][o]);
    }
  }

  void clear() {
    for (int tap = 0; tap < 9; ++tap)
      for (int lane = 0; lane < kBlock; lane += kLanes) store(values_[tap] + lane, zero());
  }

 private:
  const FilterArgs& args_;
  const bool adjacent_, turned_;
  alignas(64) float values_[9][kBlock] = {};
};

// 16 outputs at a time; lanes and channels beyond the weight's are zero.
template <int MR, int MC>
static void filter_transform(const FilterArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  for (int block = args.first_block; block < args.end_block; ++block) {
    const Packed packed(args.blocks, block);
    Taps taps(args);
    for (int input = 0; input < args.blocks * kBlock; ++input) {
      if (input < args.inputs) {
        taps.move<LoadPixels>(block, input);
      } else {
        taps.clear();
      }
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec columns[3][TR];
        for (int s = 0; s < 3; ++s) {
          Vec g[3] = {load(taps.at(0, s) + lane), load(taps.at(1, s) + lane), load(taps.at(2, s) + lane)};
          Winograd<MR>::filter(g, columns[s]);
        }
        float* u = args.u + packed.offset + input * packed.row + lane;
        for (int r = 0; r < TR; ++r) {
          Vec g[3] = {columns[0][r], columns[1][r], columns[2][r]}, points[TC];
          Winograd<MC>::filter(g, points);
          for (int c = 0; c < TC; ++c) {
            float* point = u + (r * TC + c) * args.u_point;
            if (kLanes == kBlock && args.streamed) {
              stream(point, points[c]);
            } else {
              store(point, points[c]);
              __builtin_prefetch(point + kInputsAhead * packed.row, 1);
            }
          }
        }
      }
    }
  }
  if (args.streamed) _mm_sfence();  // other threads see the filters once this one has joined them
}

template <int MR, int MC>
static void weight_gradient(const FilterArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  for (int block = args.first_block; block < args.end_block; ++block) {
    const Packed packed(args.blocks, block);
    Taps taps(args);
    for (int input = 0; input < args.inputs; ++input) {
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        const float* u = args.u + packed.offset + input * packed.row + lane;
        Vec rows[TR][3];
        for (int r = 0; r < TR; ++r) {
          Vec points[TC];
          for (int c = 0; c < TC; ++c) {
            const float* point = u + (r * TC + c) * args.u_point;
            points[c] = load(point);
            __builtin_prefetch(point + kInputsAhead * packed.row);
            for (int copy = 1; copy < args.copies; ++copy)
              points[c] = add(points[c], load(point + copy * args.copy_stride));
          }
          Winograd<MC>::weight_gradient(points, rows[r]);
        }
        for (int s = 0; s < 3; ++s) {
          Vec points[TR], g[3];
          for (int r = 0; r < TR; ++r) points[r] = rows[r][s];
          Winograd<MR>::weight_gradient(points, g);
          for (int r = 0; r < 3; ++r) store(taps.at(r, s) + lane, g[r]);
        }
      }
      taps.move<StorePixels>(block, input);
    }
  }
}

}  // namespace rdk::RDK_ISA
