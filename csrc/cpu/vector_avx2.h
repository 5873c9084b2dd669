// Vectors of 8 floats in AVX2 registers; included by kernels_avx2.cpp before the kernels.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace rdk::RDK_ISA {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kRowTiles = 6;    // 6 x 2 accumulators, 2 filter vectors, 1 broadcast
constexpr int kWeightRows = 4;  // divides a block of 16

#define RDK_INLINE static inline __attribute__((always_inline))

RDK_INLINE __m256i part(int lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
RDK_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
RDK_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
RDK_INLINE void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }  // past the caches; p on a vector's boundary
RDK_INLINE Vec load_part(const float* p, int lanes) { return _mm256_maskload_ps(p, part(lanes)); }
RDK_INLINE void store_part(float* p, Vec v, int lanes) { _mm256_maskstore_ps(p, part(lanes), v); }
// keeps a value in its register: the compiler would read it from memory again for every use, one load and one
// micro-operation each
RDK_INLINE Vec held(Vec v) {
  asm("" : "+x"(v));
  return v;
}
RDK_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
RDK_INLINE Vec zero() { return _mm256_setzero_ps(); }
RDK_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
RDK_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
RDK_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
RDK_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
RDK_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
// rows become columns
RDK_INLINE void transpose(Vec* rows) {
  Vec pairs[8];
  for (int i = 0; i < 8; i += 4) {
    const Vec low = _mm256_unpacklo_ps(rows[i], rows[i + 1]), high = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    const Vec low_next = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]),
              high_next = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
    pairs[i] = _mm256_shuffle_ps(low, low_next, 0x44);
    pairs[i + 1] = _mm256_shuffle_ps(low, low_next, 0xee);
    pairs[i + 2] = _mm256_shuffle_ps(high, high_next, 0x44);
    pairs[i + 3] = _mm256_shuffle_ps(high, high_next, 0xee);
  }
  // pairs[4 * g + k] holds columns k and 4 + k of rows 4 * g … 4 * g + 3
  for (int k = 0; k < 4; ++k) {
    rows[k] = _mm256_permute2f128_ps(pairs[k], pairs[4 + k], 0x20);
    rows[4 + k] = _mm256_permute2f128_ps(pairs[k], pairs[4 + k], 0x31);
  }
}
// the second operand is returned where one is NaN, as torch.relu does
RDK_INLINE Vec relu(Vec a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }
// a where not (by <= 0), else 0, as threshold_backward does
RDK_INLINE Vec where_positive(Vec by, Vec a) {
  return _mm256_and_ps(_mm256_cmp_ps(by, _mm256_setzero_ps(), _CMP_NLE_UQ), a);
}

}  // namespace rdk::RDK_ISA
