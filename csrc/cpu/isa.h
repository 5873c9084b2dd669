// Which instruction set runs; called by bindings.cpp and tests/check_runs.cpp.
#pragma once
#include "kernels.h"

namespace rdk {

// The kernels of "avx512" or "avx2", or of the better one for "auto"; null where this machine lacks it.
const Kernels* find_kernels(const char* wanted);

}  // namespace rdk
