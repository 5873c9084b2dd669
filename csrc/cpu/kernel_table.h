// The table of one instruction set; included last by kernels_avx512.cpp and kernels_avx2.cpp.
#pragma once
#include "filter_transform.h"
#include "maps.h"
#include "norm.h"
#include "output_transform.h"
#include "product.h"
#include "tile_transforms.h"

namespace rdk::RDK_ISA {

#define RDK_EACH_KIND(f) {f<2, 2>, f<3, 3>, f<3, 4>, f<4, 3>, f<4, 4>}

static const Kernels kTable = {
    RDK_ISA_NAME,
    kRowTiles,
    RDK_EACH_KIND(input_transform),
    RDK_EACH_KIND(gradient_transform),
    RDK_EACH_KIND(output_transform),
    RDK_EACH_KIND(filter_transform),
    RDK_EACH_KIND(weight_gradient),
    product,
    weight_product,
    move_map<LoadPixels>,
    store_map,
    move_map<AddPixels>,
    add_blocked,
    sum_pixels,
    finish_pixels,
    pixel_moments,
    fma_flops,
};

}  // namespace rdk::RDK_ISA
