// Vectors of 16 floats in AVX-512 registers; included by kernels_avx512.cpp before the kernels.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace rdk::RDK_ISA {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kRowTiles = 14;   // 14 x 2 accumulators, 2 filter vectors, 1 broadcast
constexpr int kWeightRows = 8;  // channels of v per step of the weight product

#define RDK_INLINE static inline __attribute__((always_inline))

RDK_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
RDK_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
RDK_INLINE void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }  // past the caches; p on a vector's boundary
RDK_INLINE Vec load_part(const float* p, int lanes) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), p);
}
RDK_INLINE void store_part(float* p, Vec v, int lanes) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << lanes) - 1), v);
}
// keeps a value in its register: the compiler would read it from memory again for every use, one load and one
// micro-operation each
RDK_INLINE Vec held(Vec v) {
  asm("" : "+v"(v));
  return v;
}
RDK_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
RDK_INLINE Vec zero() { return _mm512_setzero_ps(); }
RDK_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
RDK_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
RDK_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
RDK_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
RDK_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
// rows become columns (masked forms: see relu)
RDK_INLINE void transpose(Vec* rows) {
  constexpr __mmask16 kAll = 0xffff;
  constexpr __mmask8 kPairs = 0xff;
  __m512d pairs[16];
  for (int i = 0; i < 16; i += 4) {
    const Vec low = _mm512_maskz_unpacklo_ps(kAll, rows[i], rows[i + 1]),
              high = _mm512_maskz_unpackhi_ps(kAll, rows[i], rows[i + 1]);
    const Vec low_next = _mm512_maskz_unpacklo_ps(kAll, rows[i + 2], rows[i + 3]),
              high_next = _mm512_maskz_unpackhi_ps(kAll, rows[i + 2], rows[i + 3]);
    pairs[i] = _mm512_maskz_unpacklo_pd(kPairs, _mm512_castps_pd(low), _mm512_castps_pd(low_next));
    pairs[i + 1] = _mm512_maskz_unpackhi_pd(kPairs, _mm512_castps_pd(low), _mm512_castps_pd(low_next));
    pairs[i + 2] = _mm512_maskz_unpacklo_pd(kPairs, _mm512_castps_pd(high), _mm512_castps_pd(high_next));
    pairs[i + 3] = _mm512_maskz_unpackhi_pd(kPairs, _mm512_castps_pd(high), _mm512_castps_pd(high_next));
  }
  // pairs[4 * g + k] holds columns k, 4 + k, 8 + k and 12 + k of rows 4 * g … 4 * g + 3
  for (int k = 0; k < 4; ++k) {
    const __m512d even_top = _mm512_maskz_shuffle_f64x2(kPairs, pairs[k], pairs[4 + k], 0x88),
                  odd_top = _mm512_maskz_shuffle_f64x2(kPairs, pairs[k], pairs[4 + k], 0xdd),
                  even_bottom = _mm512_maskz_shuffle_f64x2(kPairs, pairs[8 + k], pairs[12 + k], 0x88),
                  odd_bottom = _mm512_maskz_shuffle_f64x2(kPairs, pairs[8 + k], pairs[12 + k], 0xdd);
    rows[k] = _mm512_castpd_ps(_mm512_maskz_shuffle_f64x2(kPairs, even_top, even_bottom, 0x88));
    rows[4 + k] = _mm512_castpd_ps(_mm512_maskz_shuffle_f64x2(kPairs, odd_top, odd_bottom, 0x88));
    rows[8 + k] = _mm512_castpd_ps(_mm512_maskz_shuffle_f64x2(kPairs, even_top, even_bottom, 0xdd));
    rows[12 + k] = _mm512_castpd_ps(_mm512_maskz_shuffle_f64x2(kPairs, odd_top, odd_bottom, 0xdd));
  }
}
// the second operand is returned where one is NaN, as torch.relu does
// (masked form: the plain one warns of an uninitialised variable in GCC 12)
RDK_INLINE Vec relu(Vec a) { return _mm512_maskz_max_ps(static_cast<__mmask16>(-1), _mm512_setzero_ps(), a); }
// a where not (by <= 0), else 0, as threshold_backward does
RDK_INLINE Vec where_positive(Vec by, Vec a) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(by, _mm512_setzero_ps(), _CMP_NLE_UQ), a);
}

}  // namespace rdk::RDK_ISA
