// Asks the processor, at run time, for the instruction sets that the kernel files were compiled for; called by
// bindings.cpp and tests/check_runs.cpp.
#include "isa.h"

#include <cstring>

namespace rdk {

const Kernels* find_kernels(const char* wanted) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool any = std::strcmp(wanted, "auto") == 0;
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (any || std::strcmp(wanted, "avx512") == 0)) return avx512::kernels();
  if (has_avx2 && (any || std::strcmp(wanted, "avx2") == 0)) return avx2::kernels();
#else
  (void)wanted;
#endif
  return nullptr;
}

}  // namespace rdk
