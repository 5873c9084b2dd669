// The names of primitives.cuh on the CPU; included by it under RDK_STANDIN, in tests only.
#pragma once

#include <cstring>
#include <type_traits>

#include "machine.h"

// as on the device, and so that no kernel shares a function with one that was broken on purpose
#define RDK_DEVICE inline __attribute__((always_inline))
#define RDK_KERNEL(threads) void
#define RDK_PARAMS const

namespace rdk::cuda {

RDK_DEVICE int thread_index() { return standin::self().thread; }
RDK_DEVICE int block_index() { return standin::self().block->index; }
RDK_DEVICE int block_count() { return standin::self().block->count; }
RDK_DEVICE uint32_t shared_base() { return standin::kSharedStart; }
RDK_DEVICE void opaque(uint32_t&) {}
template <int N>
void more_registers() {}
template <int N>
void fewer_registers() {}

RDK_DEVICE Unit load_shared(uint32_t address) {
  Unit unit;
  standin::read_shared(address, &unit, 16, 16);
  return unit;
}
RDK_DEVICE void store_shared(uint32_t address, const Unit& unit) { standin::write_shared(address, &unit, 16, 16); }
RDK_DEVICE uint32_t load_shared_word(uint32_t address) {
  uint32_t word;
  standin::read_shared(address, &word, 4, 4);
  return word;
}
RDK_DEVICE void store_shared_word(uint32_t address, uint32_t word) { standin::write_shared(address, &word, 4, 4); }

RDK_DEVICE Unit load_global(const void* address) {
  Unit unit;
  standin::read_global(address, &unit, 16);
  return unit;
}
RDK_DEVICE void store_global(void* address, const Unit& unit) { standin::write_global(address, &unit, 16); }
RDK_DEVICE uint32_t load_global_word(const void* address) {
  uint32_t word;
  standin::read_global(address, &word, 4);
  return word;
}
RDK_DEVICE void store_global_word(void* address, uint32_t word) { standin::write_global(address, &word, 4); }
RDK_DEVICE Pair load_global_pair(const float* address) {
  Pair pair;
  standin::read_global(address, &pair, 8);
  return pair;
}
RDK_DEVICE void store_global_pair(float* address, const Pair& pair) { standin::write_global(address, &pair, 8); }
RDK_DEVICE void copy_async(uint32_t to, const void* from, bool valid) { standin::copy_async(to, from, valid); }
RDK_DEVICE void copy_async_commit() { standin::copy_async_commit(); }
template <int N>
void copy_async_wait() {
  standin::copy_async_wait(N);
}

RDK_DEVICE void barrier_sync(int id, int threads) { standin::barrier_sync(id, threads); }
RDK_DEVICE void fence_async_proxy() { standin::fence_async_proxy(); }
RDK_DEVICE void mbarrier_init(uint32_t address, int arrivals) { standin::mbarrier_init(address, arrivals); }
RDK_DEVICE void fence_mbarrier_init() {}
RDK_DEVICE void mbarrier_arrive(uint32_t address) { standin::mbarrier_arrive(address, 0); }
RDK_DEVICE void mbarrier_arrive_expecting(uint32_t address, int bytes) { standin::mbarrier_arrive(address, bytes); }
RDK_DEVICE bool mbarrier_test(uint32_t address, uint32_t parity) { return standin::mbarrier_test(address, parity); }
RDK_DEVICE void mbarrier_wait(uint32_t address, uint32_t parity) { standin::mbarrier_wait(address, parity); }
RDK_DEVICE void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  standin::bulk_copy(to, from, bytes, barrier);
}

RDK_DEVICE void fence_device() { standin::fence_device(); }
RDK_DEVICE void count_up(uint32_t* counter) { standin::count_up(counter); }
RDK_DEVICE void wait_for_count(const uint32_t* counter, uint32_t at_least) {
  standin::wait_for_count(counter, at_least);
}

template <class T>
uint32_t pack(float low, float high) {
  constexpr bool bf16 = std::is_same_v<T, BF16>;
  return standin::float_to_half(low, bf16) | static_cast<uint32_t>(standin::float_to_half(high, bf16)) << 16;
}
template <class T>
uint32_t pack_relu(float low, float high) {
  return pack<T>(low < 0.0f ? 0.0f : low, high < 0.0f ? 0.0f : high);
}
template <class T>
Pair unpack(uint32_t word) {
  constexpr bool bf16 = std::is_same_v<T, BF16>;
  return {standin::half_to_float(static_cast<uint16_t>(word), bf16),
          standin::half_to_float(static_cast<uint16_t>(word >> 16), bf16)};
}
RDK_DEVICE float word_to_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
RDK_DEVICE uint32_t float_to_word(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

RDK_DEVICE void store_matrices_transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t words[4] = {a, b, c, d};
  standin::store_matrices_transposed(address, words, 4);
}
RDK_DEVICE void store_matrices_transposed(uint32_t address, uint32_t a, uint32_t b) {
  const uint32_t words[2] = {a, b};
  standin::store_matrices_transposed(address, words, 2);
}
RDK_DEVICE void load_matrices_transposed(uint32_t address, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  uint32_t words[4];
  standin::load_matrices_transposed(address, words, 4);
  a = words[0], b = words[1], c = words[2], d = words[3];
}
RDK_DEVICE void load_matrices_transposed(uint32_t address, uint32_t& a, uint32_t& b) {
  uint32_t words[2];
  standin::load_matrices_transposed(address, words, 2);
  a = words[0], b = words[1];
}

RDK_DEVICE void wgmma_fence() { standin::wgmma_fence(); }
RDK_DEVICE void wgmma_commit() { standin::wgmma_commit(); }
template <int N>
void wgmma_wait() {
  standin::wgmma_wait(N);
}
template <class T, int N, bool Transposed = false>
void wgmma(float (&sums)[N / 2], uint64_t a, uint64_t b) {
  standin::wgmma(N, std::is_same_v<T, BF16>, Transposed, sums, a, b);
}

template <class Params>
const char* launch(void (*kernel)(Params), int blocks, int threads, int shared_bytes, void*, const Params& params,
                   bool together = false) {
  if (blocks < 1) return "a launch has at least one block";
  if (shared_bytes > kSharedBytes) return "more shared memory than a block may have";
  return standin::run_grid([&] { kernel(params); }, blocks, threads, shared_bytes, together);
}

}  // namespace rdk::cuda
