// One convolution over a group of blocked images, and the moves between maps and groups. Included by forward.h,
// backward.h, parameter_sums.h, band_walk.h and bindings.h; called by forward.cpp, backward.cpp, their bands, and
// parameter_sums.cpp.
#pragma once
#include <cstdint>
#include <vector>

#include "crew.h"
#include "plan.h"

namespace rdk {

// A stack of images in memory; null data stands for none.
struct MapView {
  float* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;  // strides
  bool streamed = false;               // stored past the caches: read again only much later
};

struct Group {
  const Kernels& kernels;
  const Plan& plan;
  Crew crew;
  int64_t first_image;
  int images;
};

// Tiles that are transformed together, sorted by kind so that the tiles of every point stand side by side.
struct Chunk {
  struct Part {
    Kind kind;
    int first_row, first_col;  // of the filter's points
    int first_strip, strips;
  };
  std::vector<Strip> strips;
  std::vector<Part> parts;
  std::vector<TileRange> ranges;  // per point of the filter
  Tiles tiles(const Part& part) const { return {strips.data() + part.first_strip, part.strips}; }
};

// Tiles first … last-1 of a stage, counted over all images of a group.
void make_chunk(const Plan& plan, const StagePlan& stage, int64_t first, int64_t last, Chunk& chunk);

// Transformed tiles of a chunk of `count` tiles from `data` on; and as a part of the chunk sees them.
Points make_points(const Plan& plan, const StagePlan& stage, float* data, int64_t count);
Points part_of(Points points, const Chunk::Part& part);

Grid make_grid(const Geometry& geometry, int dilation);

// Tiles that one worker transforms at a time: the plan's chunk, or an even share where that is less.
int64_t chunk_tiles(const Group& group, int64_t total);

// target = epilogue(convolution of source); both blocked, never the same buffer.
void convolve(const Group& group, const StagePlan& stage, const float* filter, const float* source, float* target,
              const Epilogue& epilogue);

void load_group(const Group& group, const MapView& map, float* buffer);
void store_group(const Group& group, const MapView& map, float* buffer);
void add_group_to(const Group& group, const MapView& map, float* buffer);

// Shares the groups of images out: whole rounds one group per worker, the rest together. body(group, buffers, copy):
// the blocked buffers of the group, and the number of the worker whose sums it may add to.
struct Workforce {
  float* workspace;  // of every worker, two buffers of transformed data; then buffer_floats of every worker
  int64_t buffer_floats;
  int workers;
  bool together;  // all workers on each group, always
  Parallel parallel;
  std::vector<Space> spaces;

  template <class F>
  void run(const Kernels& kernels, const Plan& plan, int64_t first_image, int64_t last_image, F body) {
    start(plan);
    const int64_t groups = (last_image - first_image + plan.group - 1) / plan.group;
    const int64_t rounds = workers == 1 ? groups : together ? 0 : groups / workers;
    auto group_at = [&](int64_t number, Crew crew) {
      const int64_t begin = first_image + number * plan.group;
      const int64_t left = last_image - begin;
      return Group{kernels, plan, crew, begin, static_cast<int>(left < plan.group ? left : plan.group)};
    };
    if (rounds) {
      auto alone = [&](int worker) {
        for (int64_t round = 0; round < rounds; ++round)
          body(group_at(round * workers + worker, Crew{&spaces[worker], 1, parallel}), buffer_of(plan, worker), worker);
      };
      if (workers == 1)
        alone(0);
      else
        run_parallel(parallel, workers, alone);
    }
    for (int64_t number = rounds * workers; number < groups; ++number)
      body(group_at(number, Crew{spaces.data(), workers, parallel}), buffer_of(plan, 0), 0);
  }

 private:
  float* buffer_of(const Plan& plan, int worker) const {
    return workspace + workers * 2 * plan.points_floats + worker * buffer_floats;
  }
  void start(const Plan& plan);
};

}  // namespace rdk
