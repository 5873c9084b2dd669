// Sums of weight gradients at the Winograd points, and of bias gradients; called by backward.cpp and
// backward_bands.cpp.
#include "parameter_sums.h"

#include <algorithm>

namespace rdk {

void add_weight_sums(const Group& group, const StagePlan& stage, const float* input, const float* grad, float* sums) {
  const Plan& plan = group.plan;
  const Geometry& geometry = plan.geometry;
  const Grid grid = make_grid(geometry, stage.dilation);
  Space& shared = group.crew.spaces[0];
  const int64_t total = group.images * stage.tiles();
  const int64_t pieces = (total + plan.chunk - 1) / plan.chunk, size = (total + pieces - 1) / pieces;
  Chunk chunk;
  for (int64_t first = 0; first < total; first += size) {
    const int64_t count = std::min(size, total - first);
    make_chunk(plan, stage, first, first + count, chunk);
    const Points v = make_points(plan, stage, shared.a, count), w = make_points(plan, stage, shared.b, count);
    const int workers = group.crew.size;
    group.crew.each(workers, [&](int64_t number, Space& space) {
      Stopwatch watch(space, kTransformIn);
      for (Chunk::Part part : chunk.parts) {
        const int begin = static_cast<int>(number * part.strips / workers);
        part.strips = static_cast<int>((number + 1) * part.strips / workers) - begin;
        part.first_strip += begin;
        group.kernels.input_transform[part.kind](input, grid, chunk.tiles(part), part_of(v, part));
        group.kernels.gradient_transform[part.kind](grad, grid, chunk.tiles(part), part_of(w, part));
      }
    });
    group.crew.each(workers, [&](int64_t number, Space& space) {
      Stopwatch watch(space, kWeightProduct);
      const int points = stage.filter_points();
      const int begin = static_cast<int>(number * points / workers),
                end = static_cast<int>((number + 1) * points / workers);
      group.kernels.weight_product(
          {v, w, sums, geometry.filter_point(), geometry.blocks, begin, end - begin, chunk.ranges.data()});
    });
  }
}

void add_bias_sums(const Group& group, float* grad, double* sums) {
  const Geometry& geometry = group.plan.geometry;
  group.crew.each(geometry.blocks, [&](int64_t block, Space& space) {
    Stopwatch watch(space, kMove);
    for (int image = 0; image < group.images; ++image)
      group.kernels.sum_pixels(
          {nullptr, 0, 0, 0, grad + image * geometry.image() + geometry.origin() + block * geometry.block(),
           geometry.block(), geometry.row(), kBlock, geometry.height, geometry.width},
          sums + block * kBlock);
  });
}

}  // namespace rdk
