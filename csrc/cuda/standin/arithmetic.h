// What the files of the arithmetic program share: how a check fails, and the checks of plans. Included by
// arithmetic.cpp and arithmetic_plans.cpp.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "../plan.h"
#include "../rollout_plan.h"

namespace rdk::cuda::arithmetic {

inline const char* under_test = "";

inline void expect(bool holds, const char* what, long a = 0, long b = 0, long c = 0) {
  if (holds) return;
  std::printf("%s: %s (%ld, %ld, %ld)\n", under_test, what, a, b, c);
  std::exit(1);
}

// How far a tap lies from the middle one.
inline int tap_of(const PaddedGrid& grid, int r, int s) { return grid.tap(r, s, grid.dilation) - grid.halo(); }

void conv_plans();
void wide_halos();
void resident_plans();
void residual_plans();
void weight_gradient_plans();
void rollout_plans();

}  // namespace rdk::cuda::arithmetic
