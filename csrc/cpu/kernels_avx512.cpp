// The kernels compiled for AVX-512; isa.cpp hands this table out where the processor has it, and convolve.cpp,
// backward.cpp and bindings*.cpp call its entries.
// No header of PyTorch or the standard library with inline functions may come in here: the linker could keep this copy.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define RDK_ISA avx512
#define RDK_ISA_NAME "avx512"
#define RDK_SIXTEEN_LANES
#include "vector_avx512.h"
#include "winograd.h"
#include "kernel_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const rdk::Kernels* rdk::avx512::kernels() { return &kTable; }
#else
const rdk::Kernels* rdk::avx512::kernels() { return nullptr; }
#endif
