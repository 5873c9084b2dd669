// Iterations of residual blocks with two maps of a grid held in shared memory; launched by residual_bf16.cu and
// residual_fp16.cu.
//
// One block is one grid: a whole map, or the rows and columns of it modulo a common divisor of the dilations, which no
// convolution mixes. Each convolution reads one map and writes the other, whose old contents are its skip. The weights
// of all stages stream through a ring, a row of the filter for 16 input channels at a time. One thread feeds the ring,
// three warps carry maps between global and shared memory, two warpgroups multiply.
#pragma once

#include "finish.cuh"
#include "fragments.cuh"
#include "params.h"
#include "plan.h"
#include "ring.cuh"

namespace rdk::cuda {

template <class T, int M, int N1, int N2>
struct ResidualKernel {
  static constexpr ResidualTile tile{M, N1, N2};
  static constexpr PackedWeights packed{tile.rows()};
  static constexpr int kCarriers = kWarpgroup - 32;  // threads
  static constexpr int kConsumers = 2 * kWarpgroup;
  // named barriers; 0 is everybody's
  static constexpr int kStepBarrier = 1;    // carriers and consumers: the maps have changed
  static constexpr int kInjectBarrier = 2;  // carriers and consumers: the inject lies in the map to be written
  static constexpr int kCarrierBarrier = 3;

  struct Memory {  // addresses in shared memory
    uint32_t maps, map_bytes, ring, buffer_bytes, trash, full, empty;

    RDK_DEVICE Memory(const ResidualParams& p) {
      const ResidualLayout layout = residual_layout(tile, p.grid, p.slots, p.channels, p.buffers);
      maps = shared_base();
      map_bytes = static_cast<uint32_t>(layout.map_bytes);
      ring = maps + static_cast<uint32_t>(layout.ring);
      buffer_bytes = static_cast<uint32_t>(layout.buffer_bytes);
      trash = maps + static_cast<uint32_t>(layout.trash);
      full = maps + static_cast<uint32_t>(layout.barriers);
      empty = full + 8 * kResidualMaxBuffers;
    }
    RDK_DEVICE uint32_t map(int number) const { return maps + static_cast<uint32_t>(number) * map_bytes; }
    RDK_DEVICE uint32_t buffer(int number) const { return ring + static_cast<uint32_t>(number) * buffer_bytes; }
  };

  static RDK_DEVICE void kernel(const ResidualParams& p) {
    const Memory memory(p);
    if (thread_index() == 0) {
      for (int buffer = 0; buffer < p.buffers; ++buffer) {
        mbarrier_init(memory.full + 8 * buffer, 1);
        mbarrier_init(memory.empty + 8 * buffer, kConsumers / 32);
      }
      fence_mbarrier_init();
    }
    for (uint32_t offset = thread_index() * kUnit; offset < 2 * memory.map_bytes; offset += kResidualThreads * kUnit) {
      store_shared(memory.maps + offset, Unit{});
    }
    fence_async_proxy();
    barrier_sync(0, kResidualThreads);
    if (thread_index() < kWarpgroup) {
      fewer_registers<kResidualCarrierRegisters>();
      if (thread_index() == 0) feed(p, memory);
      if (thread_index() >= 32) carry(p, memory);
    } else {
      more_registers<kResidualConsumerRegisters>();
      consume(p, memory);
    }
  }

  // ---- the ring of weights

  static RDK_DEVICE void feed(const ResidualParams& p, const Memory& memory) {
    const int units = p.channels / kChannelStep * 3;  // one buffer each
    Turn turn;
    turn.parity = 1;
    for (int item = block_index(); item < p.images * p.grids.count(); item += block_count()) {
      for (int step = 0, stage = 0; step < p.stage_count; ++step, stage = stage + 1 == p.stages ? 0 : stage + 1) {
        const char* weights = static_cast<const char*>(p.stage[stage].weights);
        for (int unit = 0; unit < units; ++unit, turn.advance(p.buffers)) {
          const uint32_t full = memory.full + 8 * turn.buffer;
#if !defined(RDK_BREAK_RESIDUAL_EMPTY)
          mbarrier_wait(memory.empty + 8 * turn.buffer, turn.parity);
#endif
          mbarrier_arrive_expecting(full, static_cast<int>(memory.buffer_bytes));
          bulk_copy(memory.buffer(turn.buffer), weights + static_cast<int64_t>(unit) * memory.buffer_bytes,
                    static_cast<int>(memory.buffer_bytes), full);
        }
      }
    }
  }

  // ---- maps between global and shared memory

  static RDK_DEVICE void carry(const ResidualParams& p, const Memory& memory) {
    for (int item = block_index(); item < p.images * p.grids.count(); item += block_count()) {
      const SubGrid sub = p.grids.grid(item);
      int source = 0;
      load(p, memory.map(0), p.input, sub);
      clear_outside(p, memory, sub);
      fence_async_proxy();
      synchronize_step();
      int kept = 0, iteration = 0, stage = 0;  // of this step
      for (int step = 0; step < p.stage_count; ++step) {
        const bool inject = p.inject != nullptr && stage == 0;
        if (inject) load_begin(p, memory.map(source ^ 1), p.inject, sub);
        if (step > 0) keep_before(p, memory.map(source), sub, iteration, stage, kept);
        if (inject) {
#if !defined(RDK_BREAK_RESIDUAL_ARRIVAL)
          copy_async_wait<0>();
#endif
          barrier_sync(kInjectBarrier, kCarriers + kConsumers);
        }
        synchronize_step();
        source ^= 1;
        if (++stage == p.stages) stage = 0, ++iteration;
      }
      keep_before(p, memory.map(source), sub, iteration, stage, kept);
      if (p.output != nullptr) store(p, memory.map(source), p.output, sub);
      barrier_sync(kCarrierBarrier, kCarriers);  // the map has been read before the next grid replaces it
    }
  }

  static RDK_DEVICE void synchronize_step() {
#if !defined(RDK_BREAK_RESIDUAL_BARRIER)
    barrier_sync(kStepBarrier, kCarriers + kConsumers);
#endif
  }

  // Calls visit(inside, slot offset in bytes, element offset) for this carrier's units of 8 channels; those that are
  // not inside belong to the largest grid, but not to this one.
  template <class Visit>
  static RDK_DEVICE void each_unit(const ResidualParams& p, const SubGrid& sub, const Visit& visit) {
    const int thread = thread_index() - 32;
    const int chunks = p.channels / 8;
    const int step = kCarriers / chunks;  // pixels at once
    if (thread >= step * chunks) return;
    const int chunk = thread % chunks;
    for (int pixel = thread / chunks; pixel < p.grid.height * p.grid.width; pixel += step) {
      const int y = p.by_width.quotient(pixel);
      const int x = pixel - y * p.grid.width;
      const uint32_t slot = map_address(0, p.slots, chunk, resident_first_slot(p.grid) + y * p.grid.pitch() + x);
      visit(y < sub.height && x < sub.width, slot, p.grids.pixel(sub, y, x) * p.channels + 8 * chunk);
    }
  }

  static RDK_DEVICE void load_begin(const ResidualParams& p, uint32_t map, const void* from, const SubGrid& sub) {
    each_unit(p, sub, [&](bool inside, uint32_t slot, int64_t offset) {
      if (inside) copy_async(map + slot, halves_at(from, offset), true);
    });
    copy_async_commit();
  }
  static RDK_DEVICE void load(const ResidualParams& p, uint32_t map, const void* from, const SubGrid& sub) {
    load_begin(p, map, from, sub);
    copy_async_wait<0>();
  }
  // A grid of one row or column less than the largest has empty positions where another may have left pixels.
  static RDK_DEVICE void clear_outside(const ResidualParams& p, const Memory& memory, const SubGrid& sub) {
#if !defined(RDK_BREAK_RESIDUAL_EDGES)
    each_unit(p, sub, [&](bool inside, uint32_t slot, int64_t) {
      if (inside) return;
      store_shared(memory.map(0) + slot, Unit{});
      store_shared(memory.map(1) + slot, Unit{});
    });
#endif
  }
  static RDK_DEVICE void store(const ResidualParams& p, uint32_t map, void* to, const SubGrid& sub) {
    each_unit(p, sub, [&](bool inside, uint32_t slot, int64_t offset) {
      if (inside) store_global(halves_at(to, offset), load_shared(map + slot));
    });
  }

  // Writes the map that the step before (iteration, stage) made, where somebody asked for it. `kept`: states so far.
  static RDK_DEVICE void keep_before(const ResidualParams& p, uint32_t map, const SubGrid& sub, int iteration,
                                     int stage, int& kept) {
    if (stage == 0) {
      const int finished = iteration - 1;
      if (p.keep[finished / 32] >> (finished % 32) & 1) store(p, map, halves_at(p.kept, kept++ * p.kept_stride), sub);
    } else if (p.tapes != nullptr && iteration >= p.tape_first) {
      const int64_t tape = static_cast<int64_t>(iteration - p.tape_first) * (p.stages - 1) + stage - 1;
      store(p, map, halves_at(p.tapes, tape * p.tape_stride), sub);
    }
  }

  // ---- products

  static RDK_DEVICE void consume(const ResidualParams& p, const Memory& memory) {
    const int group = thread_index() / kWarpgroup - 1;
    const int first_row = M == 2 ? group * kRows : 0;
    const int first_position = M == 2 ? 0 : group * (N1 + N2);
#if defined(RDK_BREAK_RESIDUAL_PADS)
    const int beyond = 1;
#else
    const int beyond = 0;
#endif
    Turn turn;
    Pair bias = bias_of_rows(p.stage[0].bias, first_row, p.channels);
    for (int item = block_index(); item < p.images * p.grids.count(); item += block_count()) {
      const SubGrid sub = p.grids.grid(item);
      const uint32_t redirected1 = rows_outside(first_position, N1, p.grid.pitch(), sub.height, sub.width + beyond);
      const uint32_t redirected2 =
          rows_outside(first_position + N1, N2, p.grid.pitch(), sub.height, sub.width + beyond);
      synchronize_step();
      int source = 0;
      for (int step = 0, stage = 0; step < p.stage_count; ++step, source ^= 1) {
        const int next = stage + 1 == p.stages || step + 1 == p.stage_count ? 0 : stage + 1;
        float sums1[N1 / 2];
        float sums2[N2 > 0 ? N2 / 2 : 1];
        fill_rows(sums1, bias);
        if constexpr (N2 > 0) fill_rows(sums2, bias);
        bias = bias_of_rows(p.stage[next].bias, first_row, p.channels);  // arrives while the products run
        multiply(p, memory, memory.map(source), p.stage[stage].dilation, first_row, first_position, turn, sums1, sums2);
        const bool inject = p.inject != nullptr && stage == 0;
        if (inject) barrier_sync(kInjectBarrier, kCarriers + kConsumers);
        if (first_row + thread_index() % kWarpgroup / 32 * 16 < p.channels) {  // else: rows that only fill up the 64
          uint32_t address = map_address(memory.map(source ^ 1), p.slots, first_row / 8 + stored_chunk(),
                                         resident_first_slot(p.grid) + first_position + stored_position());
          uint32_t trash = memory.trash + static_cast<uint32_t>((thread_index() - kWarpgroup) * kUnit);
          opaque(address);
          opaque(trash);
          const bool add = inject || p.stage[stage].skip;
          if (p.stage[stage].relu) {
            write<true>(sums1, sums2, add, address, redirected1, redirected2, trash);
          } else {
            write<false>(sums1, sums2, add, address, redirected1, redirected2, trash);
          }
        }
#if !defined(RDK_BREAK_RESIDUAL_FENCE)
        fence_async_proxy();
#endif
        synchronize_step();
        stage = next;
      }
    }
  }

  // Adds one convolution of the map at `source` to the sums.
  static RDK_DEVICE void multiply(const ResidualParams& p, const Memory& memory, uint32_t source, int dilation,
                                  int first_row, int first_position, Turn& turn, float (&sums1)[N1 / 2],
                                  float (&sums2)[N2 > 0 ? N2 / 2 : 1]) {
    const uint64_t a_fields = descriptor(0, packed.along_k(), packed.along_m());
#if defined(RDK_BREAK_RESIDUAL_STRIDES)
    const uint64_t b_fields = descriptor(0, 8 * kUnit, static_cast<uint32_t>(kUnit * p.slots));
#else
    const uint64_t b_fields = descriptor(0, static_cast<uint32_t>(kUnit * p.slots), 8 * kUnit);
#endif
    // a descriptor's low word in units of 16 bytes: the upper left tap of the first position
    const int first_slot = resident_first_slot(p.grid) + first_position - p.grid.tap(1, 1, dilation);
    uint32_t b = descriptor_start(map_address(source, p.slots, 0, first_slot));
    bool pending = false;
#pragma unroll 1
    for (int slab = 0; slab < p.channels / kChannelStep; ++slab) {
#pragma unroll 1
      for (int row = 0; row < 3; ++row) {
        mbarrier_wait(memory.full + 8 * turn.buffer, turn.parity);
        uint32_t a = descriptor_start(memory.buffer(turn.buffer) + static_cast<uint32_t>(first_row * kUnit));
        opaque(a);
        wgmma_fence();
#pragma unroll
        for (int column = 0; column < 3; ++column) {
          const uint32_t tap = b + static_cast<uint32_t>(p.grid.tap(row, column, dilation));
          const uint32_t weights = a + static_cast<uint32_t>(column * packed.tap_bytes() >> 4);
          wgmma<T, N1>(sums1, a_fields | weights, b_fields | tap);
          if constexpr (N2 > 0) wgmma<T, N2>(sums2, a_fields | weights, b_fields | (tap + N1));
        }
        wgmma_commit();
        if (pending) {  // the products of the buffer before are done
          wgmma_wait<1>();
          release(memory.empty, turn.before(p.buffers));
        }
        pending = true;
        turn.advance(p.buffers);
      }
      b += static_cast<uint32_t>(2 * p.slots);
    }
    wgmma_wait<0>();
    release(memory.empty, turn.before(p.buffers));
  }

  // The sums, with what lies in the map already where `add`, become that map.
  template <bool Relu>
  static RDK_DEVICE void write(const float (&sums1)[N1 / 2], const float (&sums2)[N2 > 0 ? N2 / 2 : 1], bool add,
                               uint32_t address, uint32_t redirected1, uint32_t redirected2, uint32_t trash) {
    if (add) {
      add_fragments<T, Relu, N1>(sums1, address, redirected1, trash);
      if constexpr (N2 > 0) add_fragments<T, Relu, N2>(sums2, address + N1 * kUnit, redirected2, trash);
    } else {
      store_fragments<T, Relu, N1>(sums1, address, redirected1, trash);
      if constexpr (N2 > 0) store_fragments<T, Relu, N2>(sums2, address + N1 * kUnit, redirected2, trash);
    }
  }
};

template <class T, int M, int N1, int N2>
RDK_KERNEL(kResidualThreads)
residual_kernel(RDK_PARAMS ResidualParams p) {
  ResidualKernel<T, M, N1, N2>::kernel(p);
}

// Starts the kernel whose tile the plan chose; returns nullptr or what went wrong.
template <class T>
const char* launch_residual(const ResidualParams& p, ResidualTile tile, int blocks, void* stream) {
  const int bytes = residual_layout(tile, p.grid, p.slots, p.channels, p.buffers).total;
#define RDK_LAUNCH(M, N1, N2)                        \
  if (tile.m == M && tile.n1 == N1 && tile.n2 == N2) \
    return launch(residual_kernel<T, M, N1, N2>, blocks, kResidualThreads, bytes, stream, p);
  RDK_RESIDUAL_TILES(RDK_LAUNCH)
#undef RDK_LAUNCH
  return "no kernel was built for this tile; tables.h and the plan disagree";
}

}  // namespace rdk::cuda
