// The wgmma instruction for every tile width in tables.h; included by primitives.cuh, called by the kernels' inner
// loops. Operand numbers in inline assembly are text, so the register lists are spelled out once and joined.
#pragma once

#define RDK_TEXT_32                                                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define RDK_TEXT_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define RDK_TEXT_16 RDK_TEXT_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define RDK_TEXT_48 \
  RDK_TEXT_32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define RDK_TEXT_64 \
  RDK_TEXT_48       \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RDK_TEXT_72 RDK_TEXT_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define RDK_TEXT_96                                                                                                  \
  RDK_TEXT_72                                                                                                        \
  ", %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, " \
  "%94, %95"
#define RDK_TEXT_100 RDK_TEXT_96 ", %96, %97, %98, %99"
#define RDK_TEXT_104 RDK_TEXT_100 ", %100, %101, %102, %103"
#define RDK_TEXT_128                                                                                         \
  RDK_TEXT_104                                                                                               \
  ", %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, " \
  "%121, %122, %123, %124, %125, %126, %127"

#define RDK_REGISTERS_4(i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define RDK_REGISTERS_8(i) RDK_REGISTERS_4(i), RDK_REGISTERS_4((i) + 4)
#define RDK_REGISTERS_32(i) \
  RDK_REGISTERS_8(i), RDK_REGISTERS_8((i) + 8), RDK_REGISTERS_8((i) + 16), RDK_REGISTERS_8((i) + 24)
#define RDK_OUT_8 RDK_REGISTERS_8(0)
#define RDK_OUT_16 RDK_OUT_8, RDK_REGISTERS_8(8)
#define RDK_OUT_32 RDK_REGISTERS_32(0)
#define RDK_OUT_48 RDK_OUT_32, RDK_REGISTERS_8(32), RDK_REGISTERS_8(40)
#define RDK_OUT_64 RDK_OUT_32, RDK_REGISTERS_32(32)
#define RDK_OUT_72 RDK_OUT_64, RDK_REGISTERS_8(64)
#define RDK_OUT_96 RDK_OUT_72, RDK_REGISTERS_8(72), RDK_REGISTERS_8(80), RDK_REGISTERS_8(88)
#define RDK_OUT_100 RDK_OUT_96, RDK_REGISTERS_4(96)
#define RDK_OUT_104 RDK_OUT_100, RDK_REGISTERS_4(100)
#define RDK_OUT_128 RDK_OUT_104, RDK_REGISTERS_8(104), RDK_REGISTERS_8(112), RDK_REGISTERS_8(120)

namespace rdk::cuda {

// d (64 x N) += a (64 x 16) * b (16 x N), both in shared memory. `Transposed`: the operands are contiguous along M and
// N instead of along K.
template <class T, int N, bool Transposed>
struct Wgmma;

// width, half type, its name in PTX, 1 for operands contiguous along M and N, number of accumulators and of the two
// operands after them
#define RDK_DEFINE_WGMMA(N, T, NAME, TRANSPOSED, COUNT, A, B)                                            \
  template <>                                                                                            \
  struct Wgmma<T, N, TRANSPOSED> {                                                                       \
    static __device__ __forceinline__ void run(float (&d)[COUNT], uint64_t a, uint64_t b) {              \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" RDK_TEXT_##COUNT \
                   "}, %" #A ", %" #B ", 1, 1, 1, " #TRANSPOSED ", " #TRANSPOSED ";"                     \
                   : RDK_OUT_##COUNT                                                                     \
                   : "l"(a), "l"(b));                                                                    \
    }                                                                                                    \
  };
#define RDK_DEFINE_WGMMAS(T, NAME)                 \
  RDK_DEFINE_WGMMA(16, T, NAME, 0, 8, 8, 9)        \
  RDK_DEFINE_WGMMA(32, T, NAME, 0, 16, 16, 17)     \
  RDK_DEFINE_WGMMA(64, T, NAME, 0, 32, 32, 33)     \
  RDK_DEFINE_WGMMA(96, T, NAME, 0, 48, 48, 49)     \
  RDK_DEFINE_WGMMA(128, T, NAME, 0, 64, 64, 65)    \
  RDK_DEFINE_WGMMA(144, T, NAME, 0, 72, 72, 73)    \
  RDK_DEFINE_WGMMA(192, T, NAME, 0, 96, 96, 97)    \
  RDK_DEFINE_WGMMA(200, T, NAME, 0, 100, 100, 101) \
  RDK_DEFINE_WGMMA(208, T, NAME, 0, 104, 104, 105) \
  RDK_DEFINE_WGMMA(256, T, NAME, 0, 128, 128, 129) \
  RDK_DEFINE_WGMMA(64, T, NAME, 1, 32, 32, 33)

RDK_DEFINE_WGMMAS(BF16, "bf16")
RDK_DEFINE_WGMMAS(FP16, "f16")

template <class T, int N, bool Transposed = false>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) {
  Wgmma<T, N, Transposed>::run(d, a, b);
}

}  // namespace rdk::cuda
