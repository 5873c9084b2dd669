// Iterations of one convolution with the map of an image held in shared memory, forward or in reverse; launched by
// resident_bf16.cu and resident_fp16.cu.
//
// One block is one image (a persistent loop where there are more). Map and weights lie in shared memory for all
// iterations; two warpgroups hold the sums of the whole image in registers, so that every read ends before any write
// and the map is replaced in place. Its empty borders are written once and never again: their rows of a store go to a
// trash line.
#pragma once

#include "finish.cuh"
#include "fragments.cuh"
#include "params.h"
#include "plan.h"

namespace rdk::cuda {

template <class T, int N1, int N2>
struct ResidentKernel {
  static constexpr int kPositions = N1 + N2;  // of one warpgroup
  static constexpr PackedWeights packed{kRows};

  struct Memory {  // addresses in shared memory
    uint32_t map, weights, trash, barrier;

    RDK_DEVICE Memory(const ResidentParams& p) {
      const ResidentLayout layout = resident_layout(p.slots, p.channels);
      map = shared_base();
      weights = map + static_cast<uint32_t>(layout.weights);
      trash = map + static_cast<uint32_t>(layout.trash) + static_cast<uint32_t>(thread_index() * kUnit);
      barrier = map + static_cast<uint32_t>(layout.barrier);
    }
  };

  // The 16-byte units of an image as a thread meets them: 8 channels of a pixel, then the same of the pixel `step`
  // further on; from the `round`-th on.
  struct Walk {
    int pixel, step, pixels, chunk, slot, x, width, dilation;
    int step_rows, step_columns;

    RDK_DEVICE Walk(const ResidentParams& p, int round = 0) {
      const int chunks = p.channels / 8;
      chunk = thread_index() % chunks;
      step = kResidentThreads / chunks;
      pixels = thread_index() < step * chunks ? p.grid.height * p.grid.width : 0;  // 6 chunks leave 4 threads idle
      width = p.grid.width;
      dilation = p.grid.dilation;
      step_rows = p.by_width.quotient(step);
      step_columns = step - step_rows * width;
      pixel = thread_index() / chunks + round * step;
      const int y = p.by_width.quotient(pixel);
      x = pixel - y * width;
      slot = resident_first_slot(p.grid) + y * p.grid.pitch() + x;
    }
    RDK_DEVICE bool inside() const { return pixel < pixels; }
    RDK_DEVICE void advance() {
      pixel += step;
      x += step_columns;
      slot += step + step_rows * dilation;
      if (x >= width) {
        x -= width;
        slot += dilation;
      }
    }
  };

  static RDK_DEVICE void kernel(const ResidentParams& p) {
    const Memory memory(p);
    if (thread_index() == 0) {
      mbarrier_init(memory.barrier, 1);
      fence_mbarrier_init();
      mbarrier_arrive_expecting(memory.barrier, resident_weight_bytes(p.channels));
      for (int slab = 0; slab < p.channels / kChannelStep; ++slab) {
        const int offset = slab * packed.slab_bytes();
        bulk_copy(memory.weights + static_cast<uint32_t>(offset), static_cast<const char*>(p.weights) + offset,
                  packed.slab_bytes(), memory.barrier);
      }
    }
    for (int unit = thread_index(); unit < p.channels / 8 * p.slots; unit += kResidentThreads) {
      store_shared(memory.map + static_cast<uint32_t>(unit * kUnit), Unit{});
    }
    const int group = thread_index() / kWarpgroup;
    const int first = group * kPositions;
    const uint32_t redirected1 = redirected_rows(p, first, N1);
    const uint32_t redirected2 = redirected_rows(p, first + N1, N2);
    const Pair bias = bias_of_rows(p.bias, 0, p.channels);
    barrier_sync(0, kResidentThreads);
    mbarrier_wait(memory.barrier, 0);
    for (int image = block_index(); image < p.images; image += block_count()) {
      const int64_t start = static_cast<int64_t>(image) * p.grid.height * p.grid.width * p.channels;
      load(p, memory, start);
      synchronize_for_products();
      int kept = 0;
      for (int iteration = 0; iteration < p.iterations; ++iteration) {
        const bool keep_before = iteration > 0 && kept_after(p, iteration - 1);
        void* keep = keep_before ? halves_at(p.kept, (kept++) * p.kept_stride + start) : nullptr;
        iterate(p, memory, first, bias, redirected1, redirected2, keep);
        finish(p, memory, iteration, start);
        synchronize_for_products();
      }
      if (p.iterations > 0 && kept_after(p, p.iterations - 1))
        write_out(p, memory, halves_at(p.kept, kept * p.kept_stride + start));
      if (p.output != nullptr) write_out(p, memory, halves_at(p.output, start));
      barrier_sync(0, kResidentThreads);  // all have read the map before the next image replaces it
    }
  }

  static RDK_DEVICE bool kept_after(const ResidentParams& p, int iteration) {
    return p.keep[iteration / 32] >> (iteration % 32) & 1;
  }

  // What every thread stored is seen by the products of all.
  static RDK_DEVICE void synchronize_for_products() {
#if !defined(RDK_BREAK_RESIDENT_FENCE)
    fence_async_proxy();
#endif
    barrier_sync(0, kResidentThreads);
  }

  // Bit j: the row that this lane stores in step j belongs to no pixel.
  static RDK_DEVICE uint32_t redirected_rows(const ResidentParams& p, int first, int count) {
#if defined(RDK_BREAK_RESIDENT_PADS)
    const int width = p.grid.pitch();
#else
    const int width = p.grid.width;
#endif
    return rows_outside(first, count, p.grid.pitch(), p.grid.height, width);
  }

  static RDK_DEVICE void load(const ResidentParams& p, const Memory& memory, int64_t start) {
    for (Walk walk(p); walk.inside(); walk.advance()) {
      const int64_t offset = start + static_cast<int64_t>(walk.pixel) * p.channels + 8 * walk.chunk;
      copy_async(map_address(memory.map, p.slots, walk.chunk, walk.slot), halves_at(p.input, offset), true);
    }
    copy_async_commit();
    copy_async_wait<0>();
  }

  static RDK_DEVICE void write_out(const ResidentParams& p, const Memory& memory, void* to) {
    for (Walk walk(p); walk.inside(); walk.advance()) write_unit(p, memory, to, walk);
  }
  static RDK_DEVICE void write_unit(const ResidentParams& p, const Memory& memory, void* to, const Walk& walk) {
    store_global(halves_at(to, static_cast<int64_t>(walk.pixel) * p.channels + 8 * walk.chunk),
                 load_shared(map_address(memory.map, p.slots, walk.chunk, walk.slot)));
  }

  // One convolution of the whole map, in place. While the tensor cores work, the map that they read is written to
  // `keep` (null: it isn't), a ninth of it after each tap.
  static RDK_DEVICE void iterate(const ResidentParams& p, const Memory& memory, int first, const Pair& bias,
                                 uint32_t redirected1, uint32_t redirected2, void* keep) {
    float sums1[N1 / 2];
    float sums2[N2 > 0 ? N2 / 2 : 1];
    fill_rows(sums1, bias);
    if constexpr (N2 > 0) fill_rows(sums2, bias);
    const uint64_t a_fields = descriptor(0, packed.along_k(), packed.along_m());
#if defined(RDK_BREAK_RESIDENT_STRIDES)
    const uint64_t b_fields = descriptor(0, 8 * kUnit, static_cast<uint32_t>(kUnit * p.slots));
#else
    const uint64_t b_fields = descriptor(0, static_cast<uint32_t>(kUnit * p.slots), 8 * kUnit);
#endif
    const int slabs = p.channels / kChannelStep;
    const int share = ceil_div(ceil_div(p.grid.height * p.grid.width, kResidentThreads / (p.channels / 8)), kTaps);
    // a descriptor's low word in units of 16 bytes: start and the offset along K
    const uint32_t b = descriptor_start(map_address(memory.map, p.slots, 0, first));
    const uint32_t a = descriptor_start(memory.weights);
#pragma unroll 1
    for (int tap = 0; tap < kTaps; ++tap) {
      uint32_t shifted = b + static_cast<uint32_t>(p.grid.tap(tap / 3, tap % 3, p.grid.dilation));
      uint32_t weights = a + static_cast<uint32_t>(tap * packed.tap_bytes() >> 4);
      opaque(shifted);
      opaque(weights);
#pragma unroll 1
      for (int slab = 0; slab < slabs; ++slab) {
        wgmma_fence();
        wgmma<T, N1>(sums1, a_fields | weights, b_fields | shifted);
        if constexpr (N2 > 0) wgmma<T, N2>(sums2, a_fields | weights, b_fields | (shifted + N1));
        wgmma_commit();
#if !defined(RDK_BREAK_RESIDENT_GROUPS)
        wgmma_wait<kGroupsUnderWay>();
#endif
        weights += static_cast<uint32_t>(packed.slab_bytes() >> 4);
        shifted += static_cast<uint32_t>(2 * p.slots);
      }
      if (keep != nullptr) {
        Walk walk(p, tap * share);
#pragma unroll 1
        for (int i = 0; i < share && walk.inside(); ++i, walk.advance()) write_unit(p, memory, keep, walk);
      }
    }
    wgmma_wait<0>();
#if !defined(RDK_BREAK_RESIDENT_BARRIER)
    barrier_sync(0, kResidentThreads);  // every read of the old map has ended
#endif
    if (thread_index() % kWarpgroup / 32 * 16 >= p.channels) return;  // rows that only fill up the 64
    opaque(redirected1);
    opaque(redirected2);
    uint32_t address =
        map_address(memory.map, p.slots, stored_chunk(), resident_first_slot(p.grid) + first + stored_position());
    opaque(address);
    const bool relu = p.relu && p.inject == nullptr;
    if (relu) {
      store_fragments<T, true, N1>(sums1, address, redirected1, memory.trash);
      if constexpr (N2 > 0) store_fragments<T, true, N2>(sums2, address + N1 * kUnit, redirected2, memory.trash);
    } else {
      store_fragments<T, false, N1>(sums1, address, redirected1, memory.trash);
      if constexpr (N2 > 0) store_fragments<T, false, N2>(sums2, address + N1 * kUnit, redirected2, memory.trash);
    }
  }

  // Added maps and masks, where there are any: a pass over the new map, 16 bytes at a time.
  static RDK_DEVICE void finish(const ResidentParams& p, const Memory& memory, int iteration, int64_t start) {
    const bool last = iteration == p.iterations - 1;
    const void* add = last ? p.add_last : p.add != nullptr ? halves_at(p.add, iteration * p.add_stride) : nullptr;
    const void* mask = last ? p.mask_last : p.mask != nullptr ? halves_at(p.mask, iteration * p.mask_stride) : nullptr;
    if (p.inject == nullptr && add == nullptr && mask == nullptr) return;
    barrier_sync(0, kResidentThreads);
    Walk walk(p);
#pragma unroll 1
    while (walk.inside()) {
      uint32_t address[kResidentUnitsAtOnce];
      int64_t offset[kResidentUnitsAtOnce];  // -1: beyond the image
      Unit injected[kResidentUnitsAtOnce] = {}, added[kResidentUnitsAtOnce] = {}, masking[kResidentUnitsAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kResidentUnitsAtOnce; ++i, walk.advance()) {
        const int64_t inside = static_cast<int64_t>(walk.pixel) * p.channels + 8 * walk.chunk;
        address[i] = map_address(memory.map, p.slots, walk.chunk, walk.slot);
        offset[i] = walk.inside() ? start + inside : -1;
      }
      load_units(injected, p.inject, offset);
      load_units(added, add, offset);
      load_units(masking, mask, offset);
#pragma unroll
      for (int i = 0; i < kResidentUnitsAtOnce; ++i) {
        if (offset[i] < 0) continue;
        Eight z = widen<T>(load_shared(address[i]));
        if (p.inject != nullptr) add_unit<T>(z, injected[i]);
        if (add != nullptr) add_unit<T>(z, added[i]);
        if (p.relu) clamp_negative(z);
        if (mask != nullptr) apply_mask<T>(z, masking[i]);
        store_shared(address[i], narrow<T>(z));
      }
    }
  }
};

template <class T, int N1, int N2>
RDK_KERNEL(kResidentThreads)
resident_kernel(RDK_PARAMS ResidentParams p) {
  ResidentKernel<T, N1, N2>::kernel(p);
}

// Starts the kernel whose tile the plan chose; returns nullptr or what went wrong.
template <class T>
const char* launch_resident(const ResidentParams& p, ResidentTile tile, int blocks, void* stream) {
  const int bytes = resident_layout(p.slots, p.channels).total;
#define RDK_LAUNCH(N1, N2)            \
  if (tile.n1 == N1 && tile.n2 == N2) \
    return launch(resident_kernel<T, N1, N2>, blocks, kResidentThreads, bytes, stream, p);
  RDK_RESIDENT_TILES(RDK_LAUNCH)
#undef RDK_LAUNCH
  return "no kernel was built for this tile; tables.h and the plan disagree";
}

}  // namespace rdk::cuda
