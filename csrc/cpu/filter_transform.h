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

// What lies side by side in a weight: its taps (contiguous), as they are or turned by half a turn; its inputs
// (channels_last); or its outputs: the inputs of the weight that it is the transposed of.
enum SideBySide { kTaps, kTurnedTaps, kOutputs, kInputs, kNothing };

RDK_INLINE SideBySide side_by_side(const FilterArgs& args) {
  if (args.row == 3 * args.col && args.col == 1) return kTaps;
  if (args.row == 3 * args.col && args.col == -1) return kTurnedTaps;
  return args.output == 1 ? kOutputs : args.input == 1 ? kInputs : kNothing;
}

// The taps of one input and a block of outputs, 16 outputs of each tap side by side: moved between here and the weights
// in vectors along whatever lies side by side there. `Inputs` at a time: 16 where that is the inputs, else one.
template <int Inputs>
class Taps {
 public:
  explicit Taps(const FilterArgs& args) : args_(args), side_by_side_(side_by_side(args)) {}

  float* at(int r, int s, int input) {
    return moved(side_by_side_ == kTurnedTaps ? 8 - 3 * r - s : 3 * r + s, input % Inputs);
  }

  // input: the first of those moved
  template <class Move>
  void move(int block, int input) {
    const int left = args_.outputs - block * kBlock, outputs = left < kBlock ? left : kBlock;
    float* weight = args_.weight + block * static_cast<int64_t>(kBlock) * args_.output + input * args_.input;
    if constexpr (Inputs > 1)
      move_inputs<Move>(weight, outputs, args_.inputs - input);
    else if (side_by_side_ == kTaps || side_by_side_ == kTurnedTaps)
      move_taps<Move>(side_by_side_ == kTaps ? weight : weight - 8, outputs);
    else if (side_by_side_ == kOutputs)
      move_outputs<Move>(weight, outputs);
    else
      move_values<Move>(weight, outputs);
  }

  void clear() {
    for (int i = 0; i < 9 * Inputs * kBlock; i += kLanes) store(values_ + i, zero());
  }

 private:
  float* moved(int tap, int input) { return values_ + (tap * Inputs + input) * kBlock; }
  int64_t tap_offset(int tap) const { return tap / 3 * args_.row + tap % 3 * args_.col; }

  template <class Move>
  void move_taps(float* first, int outputs) {
    for (int o = 0; o < outputs; ++o) __builtin_prefetch(first + o * args_.output + kInputsAhead * args_.input);
    for (int lane = 0; lane < kBlock; lane += kLanes)
      for (int tap = 0; tap < 9; tap += kLanes)
        Move::turned(first + lane * args_.output + tap, args_.output, moved(tap, 0) + lane, up_to_lanes(outputs - lane),
                     up_to_lanes(9 - tap));
  }

  template <class Move>
  void move_outputs(float* weight, int outputs) {
    for (int tap = 0; tap < 9; ++tap) {
      float* first = weight + tap_offset(tap);
      __builtin_prefetch(first + kInputsAhead * args_.input);
      for (int lane = 0; lane < outputs; lane += kLanes)
        Move::some(first + lane, moved(tap, 0) + lane, up_to_lanes(outputs - lane));
    }
  }

  template <class Move>
  void move_inputs(float* weight, int outputs, int inputs) {
    for (int tap = 0; tap < 9; ++tap) {
      float* first = weight + tap_offset(tap);
      for (int o = 0; o < outputs; ++o) __builtin_prefetch(first + o * args_.output + kBlock);
      for (int lane = 0; lane < kBlock; lane += kLanes)
        for (int input = 0; input < kBlock; input += kLanes)
          Move::turned(first + lane * args_.output + input, args_.output, moved(tap, input) + lane,
                       up_to_lanes(outputs - lane), up_to_lanes(inputs - input));
    }
  }

  template <class Move>
  void move_values(float* weight, int outputs) {
    for (int tap = 0; tap < 9; ++tap)
      for (int o = 0; o < outputs; ++o) Move::one(weight[o * args_.output + tap_offset(tap)], moved(tap, 0)[o]);
  }

  const FilterArgs& args_;
  const SideBySide side_by_side_;
  alignas(64) float values_[9 * Inputs * kBlock] = {};  // [tap][input][16 outputs]
};

// 16 outputs at a time; lanes and channels beyond the weight's are zero.
template <int MR, int MC, int Inputs>
static void transform_filters(const FilterArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  for (int block = args.first_block; block < args.end_block; ++block) {
    const Packed packed(args.blocks, block);
    Taps<Inputs> taps(args);
    for (int input = 0; input < args.blocks * kBlock; ++input) {
      if (input % Inputs == 0) {
        if (input + Inputs > args.inputs) taps.clear();
        if (input < args.inputs) taps.template move<LoadPixels>(block, input);
      }
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec columns[3][TR];
        for (int s = 0; s < 3; ++s) {
          Vec g[3];
          for (int r = 0; r < 3; ++r) g[r] = load(taps.at(r, s, input) + lane);
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
static void filter_transform(const FilterArgs& args) {
  (side_by_side(args) == kInputs ? transform_filters<MR, MC, kBlock> : transform_filters<MR, MC, 1>)(args);
}

template <int MR, int MC, int Inputs>
static void transform_gradients(const FilterArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  for (int block = args.first_block; block < args.end_block; ++block) {
    const Packed packed(args.blocks, block);
    Taps<Inputs> taps(args);
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
          for (int r = 0; r < 3; ++r) store(taps.at(r, s, input) + lane, g[r]);
        }
      }
      const int moved = input % Inputs;
      if (moved + 1 == Inputs || input + 1 == args.inputs) taps.template move<StorePixels>(block, input - moved);
    }
  }
}

template <int MR, int MC>
static void weight_gradient(const FilterArgs& args) {
  (side_by_side(args) == kInputs ? transform_gradients<MR, MC, kBlock> : transform_gradients<MR, MC, 1>)(args);
}

}  // namespace rdk::RDK_ISA
