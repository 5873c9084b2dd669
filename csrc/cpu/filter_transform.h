// 3x3 filters to transformed points, packed for the product, and the adjoint for their gradients.
#pragma once

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

// 16 outputs at a time; lanes and channels beyond the weight's are zero.
template <int MR, int MC>
static void filter_transform(const FilterArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  for (int block = args.first_block; block < args.end_block; ++block) {
    const Packed packed(args.blocks, block);
    const int left = args.outputs - block * kBlock, outputs = left < kBlock ? left : kBlock;
    for (int input = 0; input < args.blocks * kBlock; ++input) {
      float taps[9][kBlock] = {};
      if (input < args.inputs) {
        for (int o = 0; o < outputs; ++o) {
          const float* g = args.weight + (block * kBlock + o) * args.output + input * args.input;
          for (int r = 0; r < 3; ++r)
            for (int s = 0; s < 3; ++s) taps[3 * r + s][o] = g[r * args.row + s * args.col];
        }
      }
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec columns[3][TR];
        for (int s = 0; s < 3; ++s) {
          Vec g[3] = {load(taps[s] + lane), load(taps[3 + s] + lane), load(taps[6 + s] + lane)};
          Winograd<MR>::filter(g, columns[s]);
        }
        float* u = args.u + packed.offset + input * packed.row + lane;
        for (int r = 0; r < TR; ++r) {
          Vec g[3] = {columns[0][r], columns[1][r], columns[2][r]}, points[TC];
          Winograd<MC>::filter(g, points);
          for (int c = 0; c < TC; ++c) store(u + (r * TC + c) * args.u_point, points[c]);
        }
      }
    }
  }
}

template <int MR, int MC>
static void filter_gradient(const FilterArgs& args) {
  constexpr int TR = MR + 2, TC = MC + 2;
  for (int block = args.first_block; block < args.end_block; ++block) {
    const Packed packed(args.blocks, block);
    const int left = args.outputs - block * kBlock, outputs = left < kBlock ? left : kBlock;
    for (int input = 0; input < args.inputs; ++input) {
      float taps[9][kBlock];
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        const float* u = args.u + packed.offset + input * packed.row + lane;
        Vec rows[TR][3];
        for (int r = 0; r < TR; ++r) {
          Vec points[TC];
          for (int c = 0; c < TC; ++c) {
            points[c] = load(u + (r * TC + c) * args.u_point);
            for (int copy = 1; copy < args.copies; ++copy)
              points[c] = add(points[c], load(u + copy * args.copy_stride + (r * TC + c) * args.u_point));
          }
          Winograd<MC>::filter_gradient(points, rows[r]);
        }
        for (int s = 0; s < 3; ++s) {
          Vec points[TR], g[3];
          for (int r = 0; r < TR; ++r) points[r] = rows[r][s];
          Winograd<MR>::filter_gradient(points, g);
          for (int r = 0; r < 3; ++r) store(taps[3 * r + s] + lane, g[r]);
        }
      }
      for (int o = 0; o < outputs; ++o) {
        float* g = args.weight + (block * kBlock + o) * args.output + input * args.input;
        for (int r = 0; r < 3; ++r)
          for (int s = 0; s < 3; ++s) g[r * args.row + s * args.col] = taps[3 * r + s][o];
      }
    }
  }
}

}  // namespace rdk::RDK_ISA
