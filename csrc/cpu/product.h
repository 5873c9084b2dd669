// The small matrix products at every point: outputs from inputs and filters, and sums of weight gradients from
// inputs and gradients. Included by kernel_table.h; called by convolve.cpp and parameter_sums.cpp, fma_flops
// by bindings.cpp.
#pragma once
#include "tables.h"

namespace rdk::RDK_ISA {

// R tiles x NV vectors of outputs over `depth` channels; meanwhile `ahead` is fetched into the cache, `pace` floats per
// channel, and so are the tiles' next 16 channels, the last time those of `v_next`: they lie in as many lines as there
// are tiles, too scattered for the processor to foresee.
template <int R, int NV>
static void product_step(const float* v, int64_t v_block, const float* u, int64_t u_row, int depth, float* m,
                         int64_t m_block, bool accumulate, const float* ahead, int pace, const float* v_next) {
  Vec sum[R][NV];
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[r][j] = zero();
  for (int base = 0; base < depth; base += kBlock, v += v_block) {
    const int end = depth - base < kBlock ? depth - base : kBlock;
    const float* soon = base + kBlock < depth ? v + v_block : v_next;
#pragma GCC unroll 2
    for (int k = 0; k < end; ++k, u += u_row, ahead += pace) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(soon + k * kBlock), _MM_HINT_T0);
      Vec filter[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) filter[j] = load(u + j * kLanes);
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
        Vec x = broadcast(v[r * kBlock + k]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) sum[r][j] = fma(x, filter[j], sum[r][j]);
      }
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < NV; ++j) {
    float* out = m + j * kLanes / kBlock * m_block + j * kLanes % kBlock;
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      Vec total = accumulate ? add(load(out + r * kBlock), sum[r][j]) : sum[r][j];
      store(out + r * kBlock, total);
    }
  }
}

using Step = void (*)(const float*, int64_t, const float*, int64_t, int, float*, int64_t, bool, const float*, int,
                      const float*);

template <int NV, int... R>
struct Steps {
  static constexpr Step table[] = {product_step<R, NV>...};
};
#if defined(RDK_SIXTEEN_LANES)
using PairSteps = Steps<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>;
using SingleSteps = Steps<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>;
#else
using PairSteps = Steps<2, 1, 2, 3, 4, 5, 6>;
using SingleSteps = PairSteps;  // two vectors are one block here
#endif

// One panel of filters (`width` outputs wide) against `count` tiles, in even steps.
static void product_panel(const ProductArgs& args, const float* v, const float* u, int width, int depth, float* m,
                          int count, bool accumulate, const float* ahead) {
  const int steps = (count + kRowTiles - 1) / kRowTiles;
  const int tiles = count / steps, longer = count % steps;
  const bool pair = kLanes == kBlock && width == 2 * kBlock;
  // all steps together fetch the panel of the next product: a burst would stall on the third-level cache
  const int pace = (2 * kBlock + steps - 1) / steps;
  const int outputs = pair ? 2 * kBlock : kBlock;
  for (int column = 0; column < width; column += outputs) {
    int tile = 0;
    for (int step = 0; step < steps; ++step) {
      const int rows = tiles + (step < longer ? 1 : 0);
      const Step multiply = pair ? PairSteps::table[rows - 1] : SingleSteps::table[rows - 1];
      const float* fetch = ahead + static_cast<int64_t>(step) * depth * pace;
      const int next = step + 1 < steps ? tile + rows : 0;
      multiply(v + tile * kBlock, args.v.block, u + column, width, depth,
               m + column / kBlock * args.m.block + tile * kBlock, args.m.block, accumulate, fetch, pace,
               v + next * kBlock);
      tile = next;
    }
  }
}

static void product(const ProductArgs& args) {
  const int64_t padded = (args.channels + kBlock - 1) / kBlock * kBlock;
  for (int point = 0; point < args.points; ++point) {
    const TileRange range = args.ranges[point];
    if (range.count == 0) continue;
    const float* filters = args.u + point * args.u_point;
    for (int base = 0; base < args.channels; base += kDepth) {
      const int depth = args.channels - base < kDepth ? args.channels - base : kDepth;
      const float* v = args.v.data + point * args.v.point + base / kBlock * args.v.block + range.first * kBlock;
      for (int q = 0; q < args.pairs; ++q) {
        const int pair = args.first_pair + q;
        const int width = 2 * pair + 1 < args.blocks ? 2 * kBlock : kBlock;
        const float* u = filters + pair * padded * 2 * kBlock + base * static_cast<int64_t>(width);
        // the panel that follows in this order: of the next pair, of the next partial sum, or of the next point
        const float* ahead = u + padded * width;
        if (q + 1 == args.pairs) {
          ahead = base + kDepth < args.channels
                      ? filters + args.first_pair * padded * 2 * kBlock + (base + kDepth) * 2 * kBlock
                      : filters + args.u_point + args.first_pair * padded * 2 * kBlock;
        }
        float* m = args.m.data + point * args.m.point + 2 * q * args.m.block + range.first * kBlock;
        product_panel(args, v, u, width, depth, m, range.count, base > 0, ahead);
      }
    }
  }
}

// One tile of a weight step.
template <int R, int NV>
RDK_INLINE void weight_tile(const float* v, const float* w, int64_t w_block, Vec (&sum)[R][NV]) {
  Vec grad[NV];
#pragma GCC unroll 2
  for (int j = 0; j < NV; ++j) grad[j] = load(w + j * kLanes / kBlock * w_block + j * kLanes % kBlock);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Vec x = broadcast(v[r]);
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[r][j] = fma(x, grad[j], sum[r][j]);
  }
}

// R channels of v x NV vectors of w, summed over the tiles and then added to u: sums of sums err less than one long
// sum. The first tiles fetch the lines of u that the next step adds to.
template <int R, int NV>
static void weight_step(const float* v, const float* w, int64_t w_block, int tiles, float* u, int64_t u_row) {
  Vec sum[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[r][j] = broadcast(0.0f);
  const float* ahead = u + R * u_row;
  const int fetching = tiles < R * NV ? tiles : R * NV;
#pragma GCC unroll 2
  for (int tile = 0; tile < fetching; ++tile, v += kBlock, w += kBlock, ahead += kLanes) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    weight_tile<R, NV>(v, w, w_block, sum);
  }
#pragma GCC unroll 2
  for (int tile = fetching; tile < tiles; ++tile, v += kBlock, w += kBlock) weight_tile<R, NV>(v, w, w_block, sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      float* to = u + r * u_row + j * kLanes;
      store(to, add(load(to), sum[r][j]));
    }
}

static void weight_product(const WeightProductArgs& args) {
  const int64_t padded = args.blocks * static_cast<int64_t>(kBlock);
  for (int point = args.first_point; point < args.first_point + args.points; ++point) {
    const TileRange range = args.ranges[point];
    const float* v = args.v.data + point * args.v.point + range.first * kBlock;
    const float* w = args.w.data + point * args.w.point + range.first * kBlock;
    float* u = args.u + point * args.u_point;
    for (int block = 0; block < args.blocks; block += 2) {
      const int width = block + 1 < args.blocks ? 2 * kBlock : kBlock;
      const bool pair = kLanes == kBlock && width == 2 * kBlock;
      for (int input = 0; input < args.blocks; ++input) {
        for (int column = 0; column < width; column += pair ? 2 * kBlock : kBlock) {
          for (int row = 0; row < kBlock; row += kWeightRows) {
            float* target = u + block * kBlock * padded + (input * kBlock + row) * static_cast<int64_t>(width) + column;
            const float* x = v + input * args.v.block + row;
            const float* grad = w + (block + column / kBlock) * args.w.block;
            if (pair || kLanes < kBlock) {
              weight_step<kWeightRows, 2>(x, grad, args.w.block, range.count, target, width);
            } else {
              weight_step<kWeightRows, 1>(x, grad, args.w.block, range.count, target, width);
            }
          }
        }
      }
    }
  }
}

static double fma_flops(int64_t steps) {
  Vec sum[12];
  for (int i = 0; i < 12; ++i) sum[i] = broadcast(static_cast<float>(i));
  Vec factor = broadcast(0.999f), term = broadcast(0.001f);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = fma(sum[i], factor, term);
  }
  for (int i = 1; i < 12; ++i) sum[0] = add(sum[0], sum[i]);
  float lanes[kLanes];
  store(lanes, sum[0]);
  // the result depends on the sums, so that they are computed
  return static_cast<double>(steps) * 12 * 2 * kLanes + (lanes[0] > 1e30f ? 1 : 0);
}

}  // namespace rdk::RDK_ISA
