// The fused convolution: a persistent implicit GEMM over the padded position space; launched by conv_bf16.cu and
// conv_fp16.cu.
//
// Output channels are rows of wgmma, positions its columns. A buffer of the ring is one slab of 16 input channels: the
// tile's positions with their halo, gathered once and read nine times at shifted starts, and the nine taps' weights.
#pragma once

#include "finish.cuh"
#include "fragments.cuh"
#include "params.h"
#include "plan.h"
#include "ring.cuh"

namespace rdk::cuda {

template <class T, int M, int N>
struct ConvKernel {
  static constexpr ConvTile tile{M, N};
  static constexpr PackedWeights packed{tile.rows()};

  struct Memory {  // addresses in shared memory
    uint32_t ring, buffer_bytes, staging, positions, full, empty;

    RDK_DEVICE Memory(const ConvParams& p) {
      const ConvLayout layout = conv_layout(tile, p.slots, p.buffers);
      ring = shared_base();
      buffer_bytes = static_cast<uint32_t>(layout.buffer_bytes);
      staging = ring + static_cast<uint32_t>(layout.staging);
      positions = ring + static_cast<uint32_t>(layout.positions);
      full = ring + static_cast<uint32_t>(layout.barriers);
      empty = full + 8 * kConvMaxBuffers;
    }
    RDK_DEVICE uint32_t activations(int buffer) const { return ring + static_cast<uint32_t>(buffer) * buffer_bytes; }
    RDK_DEVICE uint32_t weights(int buffer) const {
      return activations(buffer) + buffer_bytes - static_cast<uint32_t>(packed.slab_bytes());
    }
  };

  static RDK_DEVICE void kernel(const ConvParams& p) {
    const Memory memory(p);
    if (thread_index() == 0) {
      for (int buffer = 0; buffer < p.buffers; ++buffer) {
        mbarrier_init(memory.full + 8 * buffer, kWarpgroup + 1);  // every producer thread, and the bulk copy's bytes
        mbarrier_init(memory.empty + 8 * buffer, 2 * kWarpgroup / 32);
      }
      fence_mbarrier_init();
    }
    barrier_sync(0, kConvThreads);
    if (thread_index() < kWarpgroup) {
      fewer_registers<kConvProducerRegisters>();
      produce(p, memory);
    } else {
      more_registers<kConvConsumerRegisters>();
      consume(p, memory);
    }
  }

  static RDK_DEVICE void produce(const ConvParams& p, const Memory& memory) {
    const int thread = thread_index();
    const int slabs = p.channels / kChannelStep;
    Filling ring{memory.full, memory.empty, p.buffers};
    for (int t = block_index(); t < p.tiles; t += block_count()) {
      const int column = p.by_row_tiles.quotient(t);
      const int first = column * tile.positions() - p.grid.halo();
      const int block = t - column * p.row_tiles;
      barrier_sync(1, kWarpgroup);  // nobody reads the table of the tile before
      for (int slot = thread; slot < p.slots; slot += kWarpgroup) {
        const int pixel = pixel_of_position(first + slot, p.images, p.grid, p.by_period, p.by_pitch);
        store_shared_word(memory.positions + 4 * slot, static_cast<uint32_t>(pixel));
      }
      barrier_sync(1, kWarpgroup);
      for (int slab = 0; slab < slabs; ++slab) {
        ring.begin();
        const int buffer = ring.turn.buffer;
        if (thread == 0) {
          const int64_t offset = (static_cast<int64_t>(block) * slabs + slab) * packed.slab_bytes();
          mbarrier_arrive_expecting(memory.full + 8 * buffer, packed.slab_bytes());
          bulk_copy(memory.weights(buffer), static_cast<const char*>(p.weights) + offset, packed.slab_bytes(),
                    memory.full + 8 * buffer);
        }
        gather(p, memory, slab, buffer);
        ring.end();
      }
    }
    ring.finish();
  }

  // 16 channels of every slot; two neighbouring lanes take the 32 contiguous bytes of one pixel.
  static RDK_DEVICE void gather(const ConvParams& p, const Memory& memory, int slab, int buffer) {
    const int half = thread_index() % 2;
    const uint32_t to = map_address(memory.activations(buffer), p.slots, half, 0);
    const int64_t channel = slab * kChannelStep + half * 8;
    for (int slot = thread_index() / 2; slot < p.slots; slot += kWarpgroup / 2) {
      const int pixel = static_cast<int>(load_shared_word(memory.positions + 4 * slot));
      const int64_t offset = static_cast<int64_t>(pixel < 0 ? 0 : pixel) * p.channels + channel;
      copy_async(to + kUnit * slot, halves_at(p.input, offset), pixel >= 0);
    }
  }

  static RDK_DEVICE void consume(const ConvParams& p, const Memory& memory) {
    const int group = thread_index() / kWarpgroup - 1;
    const int slabs = p.channels / kChannelStep;
    const int first_row = M == 2 ? group * kRows : 0;  // of the tile, that this warpgroup computes
    const int first_position = M == 2 ? 0 : group * N;
    const uint64_t a_fields = descriptor(0, packed.along_k(), packed.along_m());
    const uint64_t b_fields = descriptor(0, static_cast<uint32_t>(kUnit * p.slots), 8 * kUnit);
    Turn turn;
    for (int t = block_index(); t < p.tiles; t += block_count()) {
      const int column = p.by_row_tiles.quotient(t);
      const int channel = (t - column * p.row_tiles) * tile.rows() + first_row;
      float sums[N / 2];
      fill_rows(sums, bias_of_rows(p.bias, channel, p.channels));
      for (int slab = 0; slab < slabs; ++slab) {
        mbarrier_wait(memory.full + 8 * turn.buffer, turn.parity);
        uint32_t a = descriptor_start(memory.weights(turn.buffer) + static_cast<uint32_t>(first_row * kUnit));
        const uint32_t b = descriptor_start(map_address(memory.activations(turn.buffer), p.slots, 0, first_position));
        wgmma_fence();
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          const auto shift = static_cast<uint32_t>(p.grid.tap(tap / 3, tap % 3, p.grid.dilation));
          wgmma<T, N>(sums, a_fields | a, b_fields | (b + shift));
          a += static_cast<uint32_t>(packed.tap_bytes()) >> 4;
        }
        wgmma_commit();
        if (slab > 0) {  // the products of the buffer before are done
          wgmma_wait<1>();
          release(memory.empty, turn.before(p.buffers));
        }
        turn.advance(p.buffers);
      }
      wgmma_wait<0>();
      release(memory.empty, turn.before(p.buffers));
      finish(p, memory, sums, group, column * tile.positions() + first_position, channel, column);
    }
  }

  // Sums to halves through this warpgroup's own staging map, then 16 bytes at a time to global memory.
  static RDK_DEVICE void finish(const ConvParams& p, const Memory& memory, const float (&sums)[N / 2], int group,
                                int first_position, int first_channel, int column) {
    const uint32_t staging = memory.staging + static_cast<uint32_t>(group * tile.staging_bytes());
    barrier_sync(2 + group, kWarpgroup);  // the tile before has left the staging map
    store_fragments<T, false, N>(sums, map_address(staging, tile.staging_slots(), stored_chunk(), stored_position()), 0,
                                 0);
#if !defined(RDK_BREAK_CONV_STAGING)
    barrier_sync(2 + group, kWarpgroup);
#endif
    const int thread = thread_index() % kWarpgroup;
    const int chunk = thread % 8;
    const int channel = first_channel + 8 * chunk;
    if (channel < p.channels) {
      const Eight scale = per_channel(p.scale, channel, 1.0f);
      const Eight shift = per_channel(p.shift, channel, 0.0f);
      constexpr int kStep = kWarpgroup / 8;  // slots from a thread's one to its next
      static_assert(N % (kStep * kConvUnitsAtOnce) == 0);
#pragma unroll 1
      for (int first = thread / 8; first < N; first += kStep * kConvUnitsAtOnce) {
        int64_t offset[kConvUnitsAtOnce];
        Unit inject[kConvUnitsAtOnce] = {}, skip[kConvUnitsAtOnce] = {}, mask[kConvUnitsAtOnce] = {};
#pragma unroll
        for (int i = 0; i < kConvUnitsAtOnce; ++i) {
          const int position = first_position + first + i * kStep;
          const int pixel = pixel_of_position(position, p.images, p.grid, p.by_period, p.by_pitch);
          offset[i] = pixel < 0 ? -1 : static_cast<int64_t>(pixel) * p.channels + channel;
        }
        load_units(inject, p.inject, offset);
        load_units(skip, p.skip, offset);
        load_units(mask, p.mask, offset);
#pragma unroll
        for (int i = 0; i < kConvUnitsAtOnce; ++i) {
          if (offset[i] < 0) continue;
          Eight z = widen<T>(load_shared(map_address(staging, tile.staging_slots(), chunk, first + i * kStep)));
          if (p.scale != nullptr) {
#pragma unroll
            for (int j = 0; j < 8; ++j) z.value[j] = z.value[j] * scale.value[j] + shift.value[j];
          }
          if (p.inject != nullptr) add_unit<T>(z, inject[i]);
          if (p.skip != nullptr) add_unit<T>(z, skip[i]);
          if (p.relu) clamp_negative(z);
          if (p.mask != nullptr) apply_mask<T>(z, mask[i]);
          store_global(halves_at(p.output, offset[i]), narrow<T>(z));
        }
      }
    }
    if (p.statistics != nullptr) measure(p, staging, group, first_position, channel, column);
  }

  // Count, mean and sum of squared deviations of each channel over this warpgroup's positions. 16 threads share a
  // chunk: each takes the mean of its own positions first, then the deviations from it; the 16 are merged in order
  // (Chan et al. 1979).
  static RDK_DEVICE void measure(const ConvParams& p, uint32_t staging, int group, int first_position, int channel,
                                 int column) {
    const int thread = thread_index() % kWarpgroup;
    const int chunk = thread % 8;
    Eight mean = {}, squares = {};
    int count = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (int slot = thread / 8; slot < N; slot += kWarpgroup / 8) {
        if (pixel_of_position(first_position + slot, p.images, p.grid, p.by_period, p.by_pitch) < 0) continue;
        const Eight z = widen<T>(load_shared(map_address(staging, tile.staging_slots(), chunk, slot)));
        if (pass == 0) {
          ++count;
#pragma unroll
          for (int i = 0; i < 8; ++i) mean.value[i] += (z.value[i] - mean.value[i]) / static_cast<float>(count);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float deviation = z.value[i] - mean.value[i];
            squares.value[i] += deviation * deviation;
          }
        }
      }
    }
    barrier_sync(2 + group, kWarpgroup);  // the staging map has been read: it now takes 17 words per thread
    const uint32_t own = staging + static_cast<uint32_t>(thread * 17 * 4);
    store_shared_word(own, float_to_word(static_cast<float>(count)));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      store_shared_word(own + 4 + 4 * i, float_to_word(mean.value[i]));
      store_shared_word(own + 36 + 4 * i, float_to_word(squares.value[i]));
    }
    barrier_sync(2 + group, kWarpgroup);
    if (thread >= kRows) return;
    const int merged = channel - 8 * chunk + thread;  // this thread's channel, merged over the 16 threads of its chunk
    float total = 0.0f, center = 0.0f, spread = 0.0f;
    for (int other = thread / 8; other < kWarpgroup; other += 8) {
      const uint32_t from = staging + static_cast<uint32_t>(other * 17 * 4);
      const float n = word_to_float(load_shared_word(from));
      if (n == 0.0f) continue;
      const float delta = word_to_float(load_shared_word(from + 4 + 4 * (thread % 8))) - center;
      total += n;
      center += delta * (n / total);
      spread +=
          word_to_float(load_shared_word(from + 36 + 4 * (thread % 8))) + delta * delta * n * ((total - n) / total);
    }
    if (merged >= p.channels) return;
    const int row = M == 2 ? column : 2 * column + group;
    float* to = p.statistics + static_cast<int64_t>(row) * 3 * p.channels + merged;
    to[0] = total;
    to[p.channels] = center;
    to[2 * p.channels] = spread;
  }
};

template <class T, int M, int N>
RDK_KERNEL(kConvThreads)
conv_kernel(RDK_PARAMS ConvParams p) {
  ConvKernel<T, M, N>::kernel(p);
}

// Starts the kernel whose tile the plan chose; returns nullptr or what went wrong.
template <class T>
const char* launch_conv(const ConvParams& p, ConvTile tile, int blocks, void* stream) {
  const int bytes = conv_layout(tile, p.slots, p.buffers).total;
#define RDK_LAUNCH(M, N) \
  if (tile.m == M && tile.n == N) return launch(conv_kernel<T, M, N>, blocks, kConvThreads, bytes, stream, p);
  RDK_CONV_TILES(RDK_LAUNCH)
#undef RDK_LAUNCH
  return "no kernel was built for this tile; tables.h and the plan disagree";
}

}  // namespace rdk::cuda
