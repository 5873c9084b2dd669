// The one-dimensional Winograd transforms F(2,3), F(3,3) and F(4,3) on vectors; included by kernels_avx2.cpp and
// kernels_avx512.cpp, called by tile_transforms.h, output_transform.h and filter_transform.h.
//
// Points (Toom-Cook, after Lavin & Gray 2016): F(2,3) 0, ±1, ∞; F(4,3) 0, ±5/8, ±3/2, ∞; F(3,3) the same but 0, so
// that tiles of both sizes share one filter.
// input:    rows are the coefficients of M(x)/(x - p), the last of M(x), with M the product over the finite points
// filter:   rows are [1, p, p²] / N(p) with N(p) the product of p - q over the other points
// output:   columns are the powers of p; gradient is its adjoint, weight_gradient that of filter
#pragma once

namespace rdk::RDK_ISA {

template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  RDK_INLINE void input(const Vec* d, Vec* v) {
    v[0] = sub(d[2], d[0]);
    v[1] = add(d[2], d[1]);
    v[2] = sub(d[2], d[1]);
    v[3] = sub(d[3], d[1]);
  }
  RDK_INLINE void filter(const Vec* g, Vec* u) {
    Vec half = broadcast(0.5f), even = mul(half, add(g[0], g[2])), odd = mul(half, g[1]);
    u[0] = sub(zero(), g[0]);
    u[1] = add(even, odd);
    u[2] = sub(even, odd);
    u[3] = g[2];
  }
  RDK_INLINE void output(const Vec* m, Vec* y) {
    y[0] = add(m[0], add(m[1], m[2]));
    y[1] = add(sub(m[1], m[2]), m[3]);
  }
  RDK_INLINE void gradient(const Vec* y, Vec* w) {
    w[0] = y[0];
    w[1] = add(y[0], y[1]);
    w[2] = sub(y[0], y[1]);
    w[3] = y[1];
  }
  RDK_INLINE void weight_gradient(const Vec* u, Vec* g) {
    Vec half = broadcast(0.5f), even = mul(half, add(u[1], u[2]));
    g[0] = sub(even, u[0]);
    g[1] = mul(half, sub(u[1], u[2]));
    g[2] = add(even, u[3]);
  }
};

template <>
struct Winograd<4> {
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
  static constexpr float n0 = 1.0f / (a2 * b2), na = 1.0f / (2 * a2 * (a2 - b2)), nb = 1.0f / (2 * b2 * (b2 - a2));
  RDK_INLINE void input(const Vec* d, Vec* v) {
    Vec va2 = broadcast(a2), vb2 = broadcast(b2), sum = broadcast(a2 + b2), product = broadcast(a2 * b2);
    Vec even_a = fnma(vb2, d[2], d[4]), odd_a = fnma(vb2, d[1], d[3]);
    Vec even_b = fnma(va2, d[2], d[4]), odd_b = fnma(va2, d[1], d[3]);
    v[0] = fma(product, d[0], fnma(sum, d[2], d[4]));
    v[1] = fma(broadcast(a), odd_a, even_a);
    v[2] = fnma(broadcast(a), odd_a, even_a);
    v[3] = fma(broadcast(b), odd_b, even_b);
    v[4] = fnma(broadcast(b), odd_b, even_b);
    v[5] = fma(product, d[1], fnma(sum, d[3], d[5]));
  }
  RDK_INLINE void filter(const Vec* g, Vec* u) {
    Vec even_a = mul(broadcast(na), fma(broadcast(a2), g[2], g[0])), odd_a = mul(broadcast(na * a), g[1]);
    Vec even_b = mul(broadcast(nb), fma(broadcast(b2), g[2], g[0])), odd_b = mul(broadcast(nb * b), g[1]);
    u[0] = mul(broadcast(n0), g[0]);
    u[1] = add(even_a, odd_a);
    u[2] = sub(even_a, odd_a);
    u[3] = add(even_b, odd_b);
    u[4] = sub(even_b, odd_b);
    u[5] = g[2];
  }
  RDK_INLINE void output(const Vec* m, Vec* y) {
    Vec even_a = add(m[1], m[2]), odd_a = sub(m[1], m[2]), even_b = add(m[3], m[4]), odd_b = sub(m[3], m[4]);
    y[0] = add(m[0], add(even_a, even_b));
    y[1] = fma(broadcast(a), odd_a, mul(broadcast(b), odd_b));
    y[2] = fma(broadcast(a2), even_a, mul(broadcast(b2), even_b));
    y[3] = fma(broadcast(a2 * a), odd_a, fma(broadcast(b2 * b), odd_b, m[5]));
  }
  RDK_INLINE void gradient(const Vec* y, Vec* w) {
    Vec even_a = fma(broadcast(a2), y[2], y[0]), odd_a = fma(broadcast(a2 * a), y[3], mul(broadcast(a), y[1]));
    Vec even_b = fma(broadcast(b2), y[2], y[0]), odd_b = fma(broadcast(b2 * b), y[3], mul(broadcast(b), y[1]));
    w[0] = y[0];
    w[1] = add(even_a, odd_a);
    w[2] = sub(even_a, odd_a);
    w[3] = add(even_b, odd_b);
    w[4] = sub(even_b, odd_b);
    w[5] = y[3];
  }
  RDK_INLINE void weight_gradient(const Vec* u, Vec* g) {
    Vec even_a = mul(broadcast(na), add(u[1], u[2])), odd_a = mul(broadcast(na * a), sub(u[1], u[2]));
    Vec even_b = mul(broadcast(nb), add(u[3], u[4])), odd_b = mul(broadcast(nb * b), sub(u[3], u[4]));
    g[0] = fma(broadcast(n0), u[0], add(even_a, even_b));
    g[1] = add(odd_a, odd_b);
    g[2] = fma(broadcast(a2), even_a, fma(broadcast(b2), even_b, u[5]));
  }
};

// F(4,3) without the point 0: the input takes the factor p that the products over the other points then lack.
template <>
struct Winograd<3> {
  using All = Winograd<4>;
  static constexpr float a = All::a, b = All::b, a2 = All::a2, b2 = All::b2;
  RDK_INLINE void input(const Vec* d, Vec* v) {
    Vec va2 = broadcast(a2), vb2 = broadcast(b2);
    Vec odd_a = mul(broadcast(a), fnma(vb2, d[1], d[3])), even_a = fnma(vb2, d[0], d[2]);
    Vec odd_b = mul(broadcast(b), fnma(va2, d[1], d[3])), even_b = fnma(va2, d[0], d[2]);
    v[0] = fma(va2, even_a, odd_a);
    v[1] = sub(mul(va2, even_a), odd_a);
    v[2] = fma(vb2, even_b, odd_b);
    v[3] = sub(mul(vb2, even_b), odd_b);
    v[4] = fma(broadcast(a2 * b2), d[0], fnma(broadcast(a2 + b2), d[2], d[4]));
  }
  RDK_INLINE void filter(const Vec* g, Vec* u) {
    Vec all[6];
    All::filter(g, all);
    for (int point = 0; point < 5; ++point) u[point] = all[point + 1];
  }
  RDK_INLINE void output(const Vec* m, Vec* y) {
    Vec even_a = add(m[0], m[1]), odd_a = sub(m[0], m[1]), even_b = add(m[2], m[3]), odd_b = sub(m[2], m[3]);
    y[0] = add(even_a, even_b);
    y[1] = fma(broadcast(a), odd_a, mul(broadcast(b), odd_b));
    y[2] = fma(broadcast(a2), even_a, fma(broadcast(b2), even_b, m[4]));
  }
  RDK_INLINE void gradient(const Vec* y, Vec* w) {
    Vec even_a = fma(broadcast(a2), y[2], y[0]), odd_a = mul(broadcast(a), y[1]);
    Vec even_b = fma(broadcast(b2), y[2], y[0]), odd_b = mul(broadcast(b), y[1]);
    w[0] = add(even_a, odd_a);
    w[1] = sub(even_a, odd_a);
    w[2] = add(even_b, odd_b);
    w[3] = sub(even_b, odd_b);
    w[4] = y[2];
  }
  RDK_INLINE void weight_gradient(const Vec* u, Vec* g) {
    const Vec all[6] = {zero(), u[0], u[1], u[2], u[3], u[4]};
    All::weight_gradient(all, g);
  }
};

}  // namespace rdk::RDK_ISA
