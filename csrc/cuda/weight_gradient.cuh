// The weight gradient of a 3x3 convolution over a run of iterations: one GEMM with the pixels as K; launched by
// weight_gradient_bf16.cu and weight_gradient_fp16.cu.
//
// A tile is 64 output by 64 input channels and all nine taps; a consumer warpgroup holds the three taps of one filter
// row. Both operands lie as [channel / 8][position][8], so positions are K and the taps are shifted starts of the same
// map, as in the forward pass. The positions of all pairs are split over blocks; each block adds to a partial sum of
// its own, and the caller adds these up in order: no atomics.
#pragma once

#include "finish.cuh"
#include "params.h"
#include "plan.h"
#include "ring.cuh"

namespace rdk::cuda {

template <class T>
struct WeightGradientKernel {
  struct Memory {  // addresses in shared memory
    uint32_t ring, buffer_bytes, full, empty;
    int grad_slots;

    RDK_DEVICE Memory(const WeightGradientParams& p) {
      const WeightGradientLayout layout = weight_gradient_layout(p.slots, p.buffers);
      ring = shared_base();
      buffer_bytes = static_cast<uint32_t>(layout.buffer_bytes);
      full = ring + static_cast<uint32_t>(layout.barriers);
      empty = full + 8 * kWeightGradientMaxBuffers;
      grad_slots = odd_slots(kWeightGradientPositions);
    }
    RDK_DEVICE uint32_t grad(int buffer) const { return ring + static_cast<uint32_t>(buffer) * buffer_bytes; }
    RDK_DEVICE uint32_t state(int buffer) const {
      return grad(buffer) + static_cast<uint32_t>(kRows / 8 * grad_slots * kUnit);
    }
  };

  // What a block has to do: blocks of positions first … last-1 (numbered over all pairs) of one tile.
  struct Work {
    int out_channel, in_channel, first, last;

    RDK_DEVICE Work(const WeightGradientParams& p) {
      const int tiles = p.channel_tiles * p.channel_tiles;
      const int tile = block_index() % tiles;
      const int split = block_index() / tiles;
      out_channel = tile / p.channel_tiles * kRows;
      in_channel = tile % p.channel_tiles * kRows;
      first = weight_gradient_share(p.pairs * p.blocks_per_pair, p.splits, split);
      last = weight_gradient_share(p.pairs * p.blocks_per_pair, p.splits, split + 1);
    }
  };

  static RDK_DEVICE void kernel(const WeightGradientParams& p) {
    const Memory memory(p);
    if (thread_index() == 0) {
      for (int buffer = 0; buffer < p.buffers; ++buffer) {
        mbarrier_init(memory.full + 8 * buffer, kWarpgroup);
        mbarrier_init(memory.empty + 8 * buffer, 3 * kWarpgroup / 32);
      }
      fence_mbarrier_init();
    }
    barrier_sync(0, kWeightGradientThreads);
    const Work work(p);
    if (thread_index() < kWarpgroup) {
      fewer_registers<kWeightGradientProducerRegisters>();
      produce(p, memory, work);
    } else {
      more_registers<kWeightGradientConsumerRegisters>();
      consume(p, memory, work);
    }
  }

  static RDK_DEVICE const void* grad_of(const WeightGradientParams& p, int pair) {
    return pair == 0 ? p.grad_first : halves_at(p.grad, (pair - 1) * p.grad_stride);
  }
  static RDK_DEVICE const void* state_of(const WeightGradientParams& p, int pair) {
    return pair == p.pairs - 1 ? p.state_last : halves_at(p.state, pair * p.state_stride);
  }

  static RDK_DEVICE void produce(const WeightGradientParams& p, const Memory& memory, const Work& work) {
    Filling ring{memory.full, memory.empty, p.buffers};
    for (int block = work.first; block < work.last; ++block) {
      const int pair = block / p.blocks_per_pair;
      const int position = (block - pair * p.blocks_per_pair) * kWeightGradientPositions;
      ring.begin();
      const uint32_t grad = memory.grad(ring.turn.buffer), state = memory.state(ring.turn.buffer);
      gather(p, grad, memory.grad_slots, grad_of(p, pair), position, kWeightGradientPositions, work.out_channel);
      gather(p, state, p.slots, state_of(p, pair), position - p.grid.halo(), p.slots, work.in_channel);
      ring.end();
    }
    ring.finish();
  }

  // 64 channels of `count` positions from `first` on; 8 neighbouring lanes take the 128 contiguous bytes of one pixel.
  static RDK_DEVICE void gather(const WeightGradientParams& p, uint32_t to, int slots, const void* map, int first,
                                int count, int channels_from) {
    const int chunk = thread_index() % 8;
    const int channel = channels_from + 8 * chunk;
    for (int slot = thread_index() / 8; slot < count; slot += kWarpgroup / 8) {
      const int pixel = pixel_of_position(first + slot, p.images, p.grid, p.by_period, p.by_pitch);
      const bool valid = pixel >= 0 && channel < p.channels;
      const int64_t offset = valid ? static_cast<int64_t>(pixel) * p.channels + channel : 0;
      copy_async(map_address(to, slots, chunk, slot), halves_at(map, offset), valid);
    }
  }

  static RDK_DEVICE void consume(const WeightGradientParams& p, const Memory& memory, const Work& work) {
    const int row = thread_index() / kWarpgroup - 1;  // of the filter
    float left[kRows / 2] = {}, middle[kRows / 2] = {}, right[kRows / 2] = {};
    // positions are K and lie 16 bytes apart: 8 of them are 128 bytes along K, a chunk of channels is one along M or N
    const uint64_t a_fields = descriptor(0, 8 * kUnit, static_cast<uint32_t>(kUnit * memory.grad_slots));
#if defined(RDK_BREAK_WEIGHT_GRADIENT_STRIDES)
    const uint64_t b_fields = descriptor(0, static_cast<uint32_t>(kUnit * p.slots), 8 * kUnit);
#else
    const uint64_t b_fields = descriptor(0, 8 * kUnit, static_cast<uint32_t>(kUnit * p.slots));
#endif
    uint32_t tap[3];  // of that row
#pragma unroll
    for (int column = 0; column < 3; ++column)
      tap[column] = static_cast<uint32_t>(p.grid.tap(row, column, p.grid.dilation));
    Turn turn;
    int block = work.first;
    do {  // the plan leaves no block without work; a loop that might not run would make ptxas serialise the products
      mbarrier_wait(memory.full + 8 * turn.buffer, turn.parity);
      uint32_t a = descriptor_start(memory.grad(turn.buffer));
      uint32_t b = descriptor_start(memory.state(turn.buffer));
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kWeightGradientPositions / 16; ++k) {
        wgmma<T, kRows, true>(left, a_fields | a, b_fields | (b + tap[0]));
        wgmma<T, kRows, true>(middle, a_fields | a, b_fields | (b + tap[1]));
        wgmma<T, kRows, true>(right, a_fields | a, b_fields | (b + tap[2]));
        a += 16;
        b += 16;
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (block > work.first) release(memory.empty, turn.before(p.buffers));
      turn.advance(p.buffers);
    } while (++block < work.last);
    wgmma_wait<0>();
    release(memory.empty, turn.before(p.buffers));
    float* partial = p.partials + static_cast<int64_t>(block_index()) * kTaps * kRows * kRows + 3 * row * kRows * kRows;
    add_partial(partial, left, p.accumulate);
    add_partial(partial + kRows * kRows, middle, p.accumulate);
    add_partial(partial + 2 * kRows * kRows, right, p.accumulate);
  }

  // A thread's sums lie in pairs; of what is there already, eight pairs are asked for before the first is needed.
  static RDK_DEVICE void add_partial(float* partial, const float (&sums)[kRows / 2], int accumulate) {
    const int thread = thread_index() % kWarpgroup;
    const auto at = [&](int i) { return partial + fragment_row(thread, i) * kRows + fragment_column(thread, i); };
#pragma unroll
    for (int first = 0; first < kRows / 2; first += 16) {
      Pair before[8] = {};
      if (accumulate) {
#pragma unroll
        for (int i = 0; i < 8; ++i) before[i] = load_global_pair(at(first + 2 * i));
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float* own = sums + first + 2 * i;
        store_global_pair(at(first + 2 * i), {before[i].low + own[0], before[i].high + own[1]});
      }
    }
  }
};

template <class T>
RDK_KERNEL(kWeightGradientThreads)
weight_gradient_kernel(RDK_PARAMS WeightGradientParams p) {
  WeightGradientKernel<T>::kernel(p);
}

// Starts the kernel; returns nullptr or what went wrong.
template <class T>
const char* launch_weight_gradient(const WeightGradientParams& p, void* stream) {
  const int blocks = p.splits * p.channel_tiles * p.channel_tiles;
  return launch(weight_gradient_kernel<T>, blocks, kWeightGradientThreads,
                weight_gradient_layout(p.slots, p.buffers).total, stream, p);
}

}  // namespace rdk::cuda
