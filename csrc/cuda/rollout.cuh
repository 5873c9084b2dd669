// Iterations of several convolutions of few maps, spread over all multiprocessors; launched by rollout_bf16.cu and
// rollout_fp16.cu.
//
// A block computes N output channels of one or two patches of 8 x 8 pixels, in every step of the launch: its filters of
// all stages stay in shared memory, the maps pass through L2, and a barrier of the grid separates the steps. Pixels are
// the rows of a product, output channels its columns. Two warpgroups take every other slab of 16 input channels each:
// they fetch it with its halo, multiply, and each finishes one half of the channels.
#pragma once

#include "finish.cuh"
#include "grid_barrier.cuh"
#include "params.h"
#include "rollout_plan.h"

namespace rdk::cuda {

template <class T, int N>
struct RolloutKernel {
  static constexpr RolloutTile tile{N};
  static constexpr PackedWeights packed{N};
  static constexpr int kSums = N / 2;          // of a thread
  static constexpr int kFinished = kSums / 2;  // that it finishes: two rows of N / 2 columns
  static constexpr int kWords = kFinished / 2;

  struct Memory {  // addresses in shared memory
    uint32_t weights, stage_bytes, patch, exchange, pixels, barrier;

    RDK_DEVICE Memory(const RolloutParams& p) {
      const RolloutLayout layout = rollout_layout(tile, p.channels, p.stages, p.dilation, p.slots);
      weights = shared_base();
      stage_bytes = static_cast<uint32_t>(layout.stage_bytes);
      patch = weights + static_cast<uint32_t>(layout.patch);
      exchange = weights + static_cast<uint32_t>(layout.exchange);
      pixels = weights + static_cast<uint32_t>(layout.pixels);
      barrier = weights + static_cast<uint32_t>(layout.barrier);
    }
    // the table of where the block's patches lie in global memory
    RDK_DEVICE uint32_t pixels_of(int number, int slots) const {
      return pixels + static_cast<uint32_t>(4 * number * slots);
    }
  };

  // The slabs of input channels that this warpgroup takes: group, group + 2, … in four portions.
  struct Slabs {
    int group, count;

    RDK_DEVICE Slabs(const RolloutParams& p)
        : group(thread_index() / kWarpgroup), count((p.channels / kChannelStep + 1 - group) / 2) {}
    RDK_DEVICE int begin(int portion) const { return group + 2 * (count * portion / kRolloutPortions); }
    RDK_DEVICE int end(int portion) const { return begin(portion + 1); }
  };

  static RDK_DEVICE void kernel(const RolloutParams& p) {
    const Memory memory(p);
    const int group = block_index() % p.groups;
    const int first_patch = block_index() / p.groups, patch_step = block_count() / p.groups;
    if (thread_index() == 0) load_weights(p, memory, group);
    for (int patch = first_patch, number = 0; patch < p.all_patches; patch += patch_step, ++number)
      place(p, memory, patch, number);
    barrier_sync(0, kRolloutThreads);
    mbarrier_wait(memory.barrier, 0);
    GridBarrier barrier{p.arrivals};
    const void* before = nullptr;  // the input of the stage before
    const void* from = p.input;
    for (int step = 0, stage = 0, iteration = 0, kept = 0; step < p.stage_count; ++step) {
      if (step > 0) barrier.wait(kRolloutThreads);
      void* to = halves_at(p.workspace, step % 2 * p.map_elements);
      const bool ends = stage + 1 == p.stages;
      if (ends && (p.keep[iteration / 32] >> (iteration % 32) & 1)) {
        to = halves_at(p.kept, kept++ * p.kept_stride);
      } else if (step + 1 == p.stage_count) {
        to = p.output;
      }
      for (int patch = first_patch, number = 0; patch < p.all_patches; patch += patch_step, ++number) {
        if (number > 0) barrier_sync(0, kRolloutThreads);  // the sums of the patch before have been exchanged
        convolve(p, memory, group, patch, number, stage, from, before, to);
      }
      before = from;
      from = to;
      stage = ends ? 0 : stage + 1;
      iteration += ends;
    }
  }

  static RDK_DEVICE void load_weights(const RolloutParams& p, const Memory& memory, int group) {
    mbarrier_init(memory.barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expecting(memory.barrier, p.stages * static_cast<int>(memory.stage_bytes));
    for (int stage = 0; stage < p.stages; ++stage) {
      const int64_t offset = static_cast<int64_t>(group) * memory.stage_bytes;
      bulk_copy(memory.weights + static_cast<uint32_t>(stage) * memory.stage_bytes,
                static_cast<const char*>(p.stage[stage].weights) + offset, static_cast<int>(memory.stage_bytes),
                memory.barrier);
    }
  }

  static RDK_DEVICE void place(const RolloutParams& p, const Memory& memory, int patch, int number) {
    const int pitch = patch_pitch(p.dilation), slots = patch_slots(p.dilation);
    const uint32_t table = memory.pixels_of(number, slots);
    for (int slot = thread_index(); slot < slots; slot += kRolloutThreads) {
      const int pixel = p.patches.pixel(patch, slot / pitch - p.dilation, slot % pitch - p.dilation);
      store_shared_word(table + static_cast<uint32_t>(4 * slot), static_cast<uint32_t>(pixel));
    }
  }

  // One stage of one patch.
  static RDK_DEVICE void convolve(const RolloutParams& p, const Memory& memory, int group, int patch, int number,
                                  int stage, const void* from, const void* before, void* to) {
    const Slabs slabs(p);
    for (int portion = 0; portion < kRolloutPortions; ++portion) {
      for (int slab = slabs.begin(portion); slab < slabs.end(portion); slab += 2) fetch(p, memory, number, slab, from);
      copy_async_commit();
    }
    const void* inject = stage == 0 ? p.inject : nullptr;
    const void* skip = p.stage[stage].skip ? before : nullptr;
    // a thread's two rows lie 8 apart, one pixel below the other
    const int warp = thread_index() % kWarpgroup / 32, lane = thread_index() % 32;
    const int channel = group * N + slabs.group * (N / 2) + lane % 4 * 2;
    int64_t offset[2];  // elements of a map, -1: outside
    for (int row = 0; row < 2; ++row) {
      const int64_t pixel = p.patches.pixel(patch, 2 * warp + row, lane / 4);
      offset[row] = pixel < 0 ? -1 : pixel * p.channels + channel;
    }
    uint32_t injected[kWords] = {}, skipped[kWords] = {};  // asked for now, needed after the products
    if (inject != nullptr) load_words(p, injected, inject, offset, channel);
    if (skip != nullptr) load_words(p, skipped, skip, offset, channel);

    float sums[kSums];
    fill(sums, p.stage[stage].bias, slabs.group, channel, p.channels);
    const uint32_t weights = memory.weights + static_cast<uint32_t>(stage) * memory.stage_bytes;
#pragma unroll 1
    for (int portion = 0; portion < kRolloutPortions; ++portion) {
      wait_for_portion(portion);
#if !defined(RDK_BREAK_ROLLOUT_FENCE)
      fence_async_proxy();
#endif
      barrier_sync(1 + slabs.group, kWarpgroup);
#pragma unroll 1
      for (int slab = slabs.begin(portion); slab < slabs.end(portion); slab += 2)
        multiply(p, memory, weights, slab, p.stage[stage].dilation, sums);
    }
    wgmma_wait<0>();
    float own[kFinished];
    exchange(memory, sums, own);
    finish(p, own, injected, skipped, p.stage[stage].relu, offset, channel, to);
  }

  // 16 channels of a patch with its halo; two neighbouring lanes take the 32 contiguous bytes of one pixel.
  static RDK_DEVICE void fetch(const RolloutParams& p, const Memory& memory, int number, int slab, const void* from) {
    const int thread = thread_index() % kWarpgroup, half = thread % 2;
    const int slots = patch_slots(p.dilation);
    const uint32_t table = memory.pixels_of(number, slots);
    const uint32_t to = map_address(memory.patch, p.slots, 2 * slab + half, 0);
    for (int slot = thread / 2; slot < slots; slot += kWarpgroup / 2) {
      const int pixel = static_cast<int>(load_shared_word(table + static_cast<uint32_t>(4 * slot)));
#if defined(RDK_BREAK_ROLLOUT_PADS)
      const bool inside = true;
#else
      const bool inside = pixel >= 0;
#endif
      const int64_t offset = static_cast<int64_t>(pixel < 0 ? 0 : pixel) * p.channels + slab * kChannelStep + half * 8;
      copy_async(to + static_cast<uint32_t>(kUnit * slot), halves_at(from, offset), inside);
    }
  }

  static RDK_DEVICE void wait_for_portion(int portion) {
    static_assert(kRolloutPortions == 4);
    if (portion == 0) {
      copy_async_wait<3>();
    } else if (portion == 1) {
      copy_async_wait<2>();
    } else if (portion == 2) {
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
  }

  // The half that this warpgroup finishes begins with the bias, the other with zeros. channel: of the own half's first
  // sum.
  static RDK_DEVICE void fill(float (&sums)[kSums], const float* bias, int group, int channel, int channels) {
#pragma unroll
    for (int i = 0; i < kFinished; i += 4) {
      const bool real = bias != nullptr && channel + 2 * i < channels;
      const float values[2] = {real ? bias[channel + 2 * i] : 0.0f, real ? bias[channel + 2 * i + 1] : 0.0f};
#pragma unroll
      for (int j = i; j < i + 4; ++j) {
        sums[j] = group == 0 ? values[j % 2] : 0.0f;
        sums[kFinished + j] = group == 1 ? values[j % 2] : 0.0f;
      }
    }
  }

  // Adds nine taps of 16 input channels to the sums. A row of 8 pixels is a core matrix, the next lies a pitch further.
  static RDK_DEVICE void multiply(const RolloutParams& p, const Memory& memory, uint32_t weights, int slab,
                                  int dilation, float (&sums)[kSums]) {
    const uint32_t pitch = static_cast<uint32_t>(patch_pitch(p.dilation));
#if defined(RDK_BREAK_ROLLOUT_STRIDES)
    const uint64_t a_fields = descriptor(0, kUnit * pitch, static_cast<uint32_t>(kUnit * p.slots));
#else
    const uint64_t a_fields = descriptor(0, static_cast<uint32_t>(kUnit * p.slots), kUnit * pitch);
#endif
    const uint64_t b_fields = descriptor(0, packed.along_k(), packed.along_m());
    // descriptors' low words in units of 16 bytes
    const uint32_t a =
        descriptor_start(map_address(memory.patch, p.slots, 2 * slab, patch_tap(0, 0, dilation, p.dilation)));
    uint32_t b = descriptor_start(weights + static_cast<uint32_t>(slab * packed.slab_bytes()));
    const uint32_t column_step = static_cast<uint32_t>(dilation), row_step = column_step * pitch;
    wgmma_fence();
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      wgmma<T, N>(sums, a_fields | (a + (tap / 3) * row_step + (tap % 3) * column_step), b_fields | b);
      b += static_cast<uint32_t>(packed.tap_bytes()) >> 4;
    }
    wgmma_commit();
    wgmma_wait<kGroupsUnderWay>();
  }

  // Each warpgroup hands the other's half of the columns over and receives its own.
  static RDK_DEVICE void exchange(const Memory& memory, const float (&sums)[kSums], float (&own)[kFinished]) {
    const int group = thread_index() / kWarpgroup;
    const uint32_t thread = static_cast<uint32_t>(thread_index() % kWarpgroup * kUnit);
    const auto area = [&](int of_group, int unit) {
      return memory.exchange + static_cast<uint32_t>((of_group * (kFinished / 4) + unit) * kWarpgroup * kUnit) + thread;
    };
#pragma unroll
    for (int unit = 0; unit < kFinished / 4; ++unit) {
      Unit given;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float first = sums[4 * unit + i], second = sums[kFinished + 4 * unit + i];
        own[4 * unit + i] = group == 0 ? first : second;
        given.word[i] = float_to_word(group == 0 ? second : first);
      }
      store_shared(area(1 - group, unit), given);
    }
#if !defined(RDK_BREAK_ROLLOUT_EXCHANGE)
    barrier_sync(0, kRolloutThreads);  // and every product has read the patch: it may be replaced
#endif
#pragma unroll
    for (int unit = 0; unit < kFinished / 4; ++unit) {
      const Unit received = load_shared(area(group, unit));
#pragma unroll
      for (int i = 0; i < 4; ++i) own[4 * unit + i] += word_to_float(received.word[i]);
    }
  }

  // Sum 4 * j + 2 * row + i is channel 8 * j + i of that row: word 2 * j + row holds both.
  template <class Visit>
  static RDK_DEVICE void each_word(const RolloutParams& p, const int64_t (&offset)[2], int channel,
                                   const Visit& visit) {
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const int row = word % 2, further = word / 2 * 8;
      if (offset[row] >= 0 && channel + further < p.channels) visit(word, offset[row] + further);
    }
  }
  static RDK_DEVICE void load_words(const RolloutParams& p, uint32_t (&words)[kWords], const void* map,
                                    const int64_t (&offset)[2], int channel) {
    each_word(p, offset, channel, [&](int word, int64_t at) { words[word] = load_global_word(halves_at(map, at)); });
  }

  static RDK_DEVICE void finish(const RolloutParams& p, const float (&own)[kFinished],
                                const uint32_t (&injected)[kWords], const uint32_t (&skipped)[kWords], bool relu,
                                const int64_t (&offset)[2], int channel, void* to) {
    each_word(p, offset, channel, [&](int word, int64_t at) {
      const Pair inject = unpack<T>(injected[word]), skip = unpack<T>(skipped[word]);
      const float low = own[2 * word] + inject.low + skip.low, high = own[2 * word + 1] + inject.high + skip.high;
      store_global_word(halves_at(to, at), relu ? pack_relu<T>(low, high) : pack<T>(low, high));
    });
  }
};

template <class T, int N>
RDK_KERNEL(kRolloutThreads)
rollout_kernel(RDK_PARAMS RolloutParams p) {
  RolloutKernel<T, N>::kernel(p);
}

// Starts the kernel whose tile the plan chose, all blocks at the same time; returns nullptr or what went wrong.
template <class T>
const char* launch_rollout(const RolloutParams& p, RolloutTile tile, int blocks, void* stream) {
  const int bytes = rollout_layout(tile, p.channels, p.stages, p.dilation, p.slots).total;
#if defined(RDK_BREAK_ROLLOUT_TOGETHER)
  const bool together = false;
#else
  const bool together = true;
#endif
#define RDK_LAUNCH(N) \
  if (tile.n == N) return launch(rollout_kernel<T, N>, blocks, kRolloutThreads, bytes, stream, p, together);
  RDK_ROLLOUT_TILES(RDK_LAUNCH)
#undef RDK_LAUNCH
  return "no kernel was built for this tile; tables.h and the plan disagree";
}

}  // namespace rdk::cuda
