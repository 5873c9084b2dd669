// What the kernels ask of the machine: barriers, copies, wgmma, conversions; each a thin name for PTX. Included by
// every kernel. With RDK_STANDIN the same names are implemented on the CPU (standin/primitives.h), so that a test can
// run the kernels' own source.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace rdk::cuda {

struct BF16 {};
struct FP16 {};

struct Unit {  // 16 bytes: 8 halves
  uint32_t word[4];
};
struct Pair {
  float low, high;
};

}  // namespace rdk::cuda

#if defined(RDK_STANDIN)
#include "standin/primitives.h"
#else

#include <cuda_runtime.h>

#if defined(RDK_CUDA_TRAP_SPINS)
#include <cstdio>
#endif

#define RDK_DEVICE __device__ __forceinline__
#define RDK_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define RDK_PARAMS const __grid_constant__

namespace rdk::cuda {

RDK_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
RDK_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
RDK_DEVICE int block_count() { return static_cast<int>(gridDim.x); }

RDK_DEVICE uint32_t shared_base() {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory));
}

// Hides a value's origin from the compiler, which else keeps every sum with it in a register of its own.
RDK_DEVICE void opaque(uint32_t& value) { asm volatile("" : "+r"(value)); }

template <int N>
RDK_DEVICE void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
RDK_DEVICE void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- memory

RDK_DEVICE Unit load_shared(uint32_t address) {
  Unit u;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(u.word[0]), "=r"(u.word[1]), "=r"(u.word[2]), "=r"(u.word[3])
               : "r"(address));
  return u;
}
RDK_DEVICE void store_shared(uint32_t address, const Unit& u) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(u.word[0]), "r"(u.word[1]),
               "r"(u.word[2]), "r"(u.word[3])
               : "memory");
}
RDK_DEVICE uint32_t load_shared_word(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}
RDK_DEVICE void store_shared_word(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

RDK_DEVICE Unit load_global(const void* address) {
  Unit u;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(u.word[0]), "=r"(u.word[1]), "=r"(u.word[2]), "=r"(u.word[3])
               : "l"(address));
  return u;
}
RDK_DEVICE void store_global(void* address, const Unit& u) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(u.word[0]), "r"(u.word[1]),
               "r"(u.word[2]), "r"(u.word[3])
               : "memory");
}
RDK_DEVICE uint32_t load_global_word(const void* address) {
  uint32_t word;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(word) : "l"(address));
  return word;
}
RDK_DEVICE void store_global_word(void* address, uint32_t word) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(address), "r"(word) : "memory");
}
RDK_DEVICE Pair load_global_pair(const float* address) {
  Pair pair;
  asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(pair.low), "=f"(pair.high) : "l"(address));
  return pair;
}
RDK_DEVICE void store_global_pair(float* address, const Pair& pair) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(pair.low), "f"(pair.high) : "memory");
}

// One unit from global to shared memory behind the thread's back; zeros where it is not `valid` (nothing is read then).
RDK_DEVICE void copy_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
RDK_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
RDK_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- barriers

#if defined(RDK_CUDA_TRAP_SPINS)
// Called after each try of a wait: stops the kernel at the 2^28th, which is seconds later (docs/cuda.md).
RDK_DEVICE void count_try(uint32_t& tries, const char* what, uint32_t number, uint64_t address) {
  if (++tries < 1u << 28) return;
  printf(
      "rdk: block %d, thread %d: expected %s %u at 0x%llx, and 2^28 tries did not see it; "
      "look for an arrival or a copy that is missing\n",
      block_index(), thread_index(), what, number, static_cast<unsigned long long>(address));
  __trap();
}
#endif

RDK_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Shared memory written by this thread becomes visible to the copy engine and to wgmma.
RDK_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

RDK_DEVICE void mbarrier_init(uint32_t address, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}
// Initialised barriers become visible to other threads, and to the copy engine.
RDK_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  fence_async_proxy();
}
RDK_DEVICE void mbarrier_arrive(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}
RDK_DEVICE void mbarrier_arrive_expecting(uint32_t address, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
}
RDK_DEVICE bool mbarrier_test(uint32_t address, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n .reg .pred complete;\n"
      " mbarrier.test_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
      " selp.b32 %0, 1, 0, complete;\n}"
      : "=r"(done)
      : "r"(address), "r"(parity)
      : "memory");
  return done != 0;
}
RDK_DEVICE void mbarrier_wait(uint32_t address, uint32_t parity) {
#if defined(RDK_CUDA_TRAP_SPINS)
  uint32_t tries = 0;  // by test_wait: try_wait sleeps for as long as the machine likes, so that tries are no time
  while (!mbarrier_test(address, parity)) count_try(tries, "the end of an mbarrier's phase of parity", parity, address);
#else
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n .reg .pred complete;\n"
        " mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        " selp.b32 %0, 1, 0, complete;\n}"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
  }
#endif
}
// One bulk copy to shared memory; its bytes count against the barrier's expected ones.
RDK_DEVICE void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// ---- between blocks

// What this thread has seen and done in global memory comes before what others see of it after their own fence.
RDK_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
RDK_DEVICE void count_up(uint32_t* counter) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
RDK_DEVICE void wait_for_count(const uint32_t* counter, uint32_t at_least) {
#if defined(RDK_CUDA_TRAP_SPINS)
  uint32_t tries = 0;
#endif
  uint32_t count = 0;
  do {
#if defined(RDK_CUDA_TRAP_SPINS)
    count_try(tries, "a count of arrivals of", at_least, reinterpret_cast<uint64_t>(counter));
#endif
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  } while (count < at_least);
}

// ---- halves

template <class T>
RDK_DEVICE uint32_t pack(float low, float high);
template <>
RDK_DEVICE uint32_t pack<BF16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
RDK_DEVICE uint32_t pack<FP16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
// with negative values made zero; NaN stays NaN
template <class T>
RDK_DEVICE uint32_t pack_relu(float low, float high);
template <>
RDK_DEVICE uint32_t pack_relu<BF16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
RDK_DEVICE uint32_t pack_relu<FP16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <class T>
RDK_DEVICE Pair unpack(uint32_t word);
template <>
RDK_DEVICE Pair unpack<BF16>(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
template <>
RDK_DEVICE Pair unpack<FP16>(uint32_t word) {
  Pair pair;
  asm("{\n .reg .f16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;\n}"
      : "=f"(pair.low), "=f"(pair.high)
      : "r"(word));
  return pair;
}
RDK_DEVICE float word_to_float(uint32_t word) { return __uint_as_float(word); }
RDK_DEVICE uint32_t float_to_word(float value) { return __float_as_uint(value); }

// Four (two) 8x8 matrices of halves, transposed on the way: lane l gives the address of row l % 8 of matrix l / 8.
RDK_DEVICE void store_matrices_transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}
RDK_DEVICE void store_matrices_transposed(uint32_t address, uint32_t a, uint32_t b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b)
               : "memory");
}
// Reads what store_matrices_transposed wrote, in the same words.
RDK_DEVICE void load_matrices_transposed(uint32_t address, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(address)
               : "memory");
}
RDK_DEVICE void load_matrices_transposed(uint32_t address, uint32_t& a, uint32_t& b) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(a), "=r"(b)
               : "r"(address)
               : "memory");
}

// ---- products of a warpgroup: wgmma.cuh has the multiplication itself

RDK_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
RDK_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
RDK_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// ---- launch

// Starts the kernel on the stream; returns nullptr, or CUDA's own message. `together`: all blocks run at the same time,
// or the launch is refused.
template <class Params>
const char* launch(void (*kernel)(Params), int blocks, int threads, int shared_bytes, void* stream,
                   const Params& params, bool together = false) {
  const void* function = reinterpret_cast<const void*>(kernel);
  // the same limit each time: it is the kernel's, and another thread may be about to launch it with other bytes
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error == cudaSuccess) {
    void* arguments[] = {const_cast<Params*>(&params)};
    const auto bytes = static_cast<size_t>(shared_bytes);
    const auto on = static_cast<cudaStream_t>(stream);
    error = together ? cudaLaunchCooperativeKernel(function, dim3(blocks), dim3(threads), arguments, bytes, on)
                     : cudaLaunchKernel(function, dim3(blocks), dim3(threads), arguments, bytes, on);
  }
  if (error == cudaSuccess) return nullptr;
  (void)cudaGetLastError();  // reported here: left set, it would be blamed on whatever PyTorch launches next
  return cudaGetErrorString(error);
}

}  // namespace rdk::cuda

#include "wgmma.cuh"

#endif
