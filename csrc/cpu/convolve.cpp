// Cuts a convolution into chunks of tiles: input transform, product, output transform; moves groups in and out.
// Called by forward.cpp, backward.cpp, forward_bands.cpp, backward_bands.cpp, band_walk.h and parameter_sums.cpp.
#include "convolve.h"

#include <algorithm>
#include <cstring>

#include "tables.h"

namespace rdk {
namespace {

int64_t clamp(int64_t value, int64_t most) { return value < 0 ? 0 : value < most ? value : most; }

template <class Move>
void move_group(const Group& group, const MapView& map, float* buffer, Move move) {
  const Geometry& geometry = group.plan.geometry;
  const int bands = group.images < group.crew.size ? std::min(group.crew.size, geometry.height) : 1;
  group.crew.each(static_cast<int64_t>(group.images) * bands, [&](int64_t number, Space& space) {
    Stopwatch watch(space, kMove);
    const int64_t image = number / bands, band = number % bands;
    const int first = static_cast<int>(band * geometry.height / bands);
    const int last = static_cast<int>((band + 1) * geometry.height / bands);
    move(MapArgs{map.data + (group.first_image + image) * map.n + first * map.h, map.c, map.h, map.w,
                 buffer + image * geometry.image() + geometry.origin() + first * geometry.row(), geometry.block(),
                 geometry.row(), geometry.channels, last - first, geometry.width, map.streamed});
  });
}

// A row of tiles of one sub-grid of one image. Walked without a division: there are many, of few tiles.
class Line {
 public:
  int row, height, width;  // which row of tiles; pixels of the sub-grid

  Line(const Geometry& geometry, const StagePlan& stage, int64_t number)
      : row(static_cast<int>(number % stage.rows.tiles())), geometry_(geometry), stage_(stage) {
    number /= stage.rows.tiles();
    grid_col_ = static_cast<int>(number % stage.grid_cols);
    number /= stage.grid_cols;
    grid_row_ = static_cast<int>(number % stage.grid_rows);
    image_ = number / stage.grid_rows;
    measure();
  }

  void advance() {
    if (++row < stage_.rows.tiles()) return;
    row = 0;
    if (++grid_col_ == stage_.grid_cols) {
      grid_col_ = 0;
      if (++grid_row_ == stage_.grid_rows) {
        grid_row_ = 0;
        ++image_;
      }
    }
    if (stage_.dilation > 1) measure();
  }

  // floats from the start of the group's buffer to the sub-grid's first pixel
  int64_t corner() const {
    return image_ * geometry_.image() + geometry_.origin() + grid_row_ * geometry_.row() + grid_col_ * kBlock;
  }

 private:
  void measure() {
    height = (geometry_.height - grid_row_ + stage_.dilation - 1) / stage_.dilation;
    width = (geometry_.width - grid_col_ + stage_.dilation - 1) / stage_.dilation;
  }

  const Geometry& geometry_;
  const StagePlan& stage_;
  int grid_row_, grid_col_;
  int64_t image_;
};

}  // namespace

void make_chunk(const Plan& plan, const StagePlan& stage, int64_t first, int64_t last, Chunk& chunk) {
  const Geometry& geometry = plan.geometry;
  const Cover &rows = stage.rows, &cols = stage.cols;
  chunk.strips.clear();
  chunk.parts.clear();
  int32_t numbered = 0, starts[5] = {};
  const int64_t first_line = first / cols.tiles(), last_line = (last - 1) / cols.tiles();
  const Line from(geometry, stage, first_line);
  // large before small rows, and within them the small columns outermost: large rows, large columns and all of both
  // are then each one range
  for (int part = 0; part < 4; ++part) {
    const bool small_rows = part >= 2, small_cols = part == 0 || part == 3;
    const int size_r = rows.size - small_rows, size_c = cols.size - small_cols;
    const int begin_row = small_rows ? rows.large : 0, end_row = small_rows ? rows.tiles() : rows.large;
    const int begin_col = small_cols ? cols.large : 0, end_col = small_cols ? cols.tiles() : cols.large;
    const int first_strip = static_cast<int>(chunk.strips.size());
    if (begin_row < end_row && begin_col < end_col) {
      Line line = from;
      for (int64_t number = first_line; number <= last_line; ++number, line.advance()) {
        if (line.row < begin_row || line.row >= end_row) continue;
        const int64_t start = number * cols.tiles();
        int col = std::max(begin_col, static_cast<int>(clamp(first - start, cols.tiles())));
        const int end = std::min(end_col, static_cast<int>(clamp(last - start, cols.tiles())));
        const int sub_row = rows.start(line.row);
        const int64_t edge = line.corner() + stage.dilation * static_cast<int64_t>(sub_row) * geometry.row();
        for (int count; col < end; col += count) {
          count = std::min(end - col, kMaxStripTiles);
          const int sub_col = cols.start(col);
          chunk.strips.push_back(
              {edge + stage.dilation * static_cast<int64_t>(sub_col) * kBlock, numbered, count,
               static_cast<int32_t>(clamp(line.height - sub_row, size_r)),
               static_cast<int32_t>(clamp(line.width - sub_col, static_cast<int64_t>(count) * size_c))});
          numbered += count;
        }
      }
    }
    starts[part + 1] = numbered;
    const int strips = static_cast<int>(chunk.strips.size()) - first_strip;
    if (strips) chunk.parts.push_back({kind_of(size_r, size_c), small_rows, small_cols, first_strip, strips});
  }
  // the first row and column of points belong to the large tiles
  chunk.ranges.clear();
  for (int row = 0; row < rows.size + 2; ++row)
    for (int col = 0; col < cols.size + 2; ++col) {
      const int begin = col == 0 ? 1 : 0, end = row == 0 ? 2 : col == 0 ? 3 : 4;
      chunk.ranges.push_back({starts[begin], starts[end] - starts[begin]});
    }
}

Points make_points(const Plan& plan, const StagePlan& stage, float* data, int64_t count) {
  const int64_t point = (static_cast<int64_t>(plan.geometry.blocks) * count | 1) * kBlock;
  return {data, (stage.cols.size + 2) * point, point, count * kBlock};
}

Points part_of(Points points, const Chunk::Part& part) {
  points.data += part.first_row * points.row + part.first_col * points.point;
  return points;
}

Grid make_grid(const Geometry& geometry, int dilation) {
  return {geometry.block(), dilation * geometry.row(), static_cast<int64_t>(dilation) * kBlock, geometry.blocks};
}

int64_t chunk_tiles(const Group& group, int64_t total) {
  const int64_t pieces = std::max<int64_t>((total + group.plan.chunk - 1) / group.plan.chunk, group.crew.size);
  return std::max<int64_t>(1, (total + pieces - 1) / pieces);
}

void convolve(const Group& group, const StagePlan& stage, const float* filter, const float* source, float* target,
              const Epilogue& epilogue) {
  const Plan& plan = group.plan;
  const Geometry& geometry = plan.geometry;
  const Grid grid = make_grid(geometry, stage.dilation);
  const int64_t total = group.images * stage.tiles(), size = chunk_tiles(group, total);
  group.crew.each((total + size - 1) / size, [&](int64_t number, Space& space) {
    thread_local Chunk chunk;
    const int64_t first = number * size, last = std::min(total, first + size);
    Stopwatch watch(space, kTransformIn);
    make_chunk(plan, stage, first, last, chunk);
    const Points v = make_points(plan, stage, space.a, last - first),
                 m = make_points(plan, stage, space.b, last - first);
    for (const Chunk::Part& part : chunk.parts)
      group.kernels.input_transform[part.kind](source, grid, chunk.tiles(part), part_of(v, part));
    const int pairs = (geometry.blocks + 1) / 2;
    for (int pair = 0; pair < pairs; pair += plan.pass_pairs) {
      const int count = std::min(plan.pass_pairs, pairs - pair);
      Grid pass = grid;
      pass.blocks = std::min(2 * count, geometry.blocks - 2 * pair);
      watch.next(kProduct);
      group.kernels.product({v, m, filter, geometry.filter_point(), geometry.channels, geometry.blocks, pair, count,
                             stage.filter_points(), chunk.ranges.data()});
      watch.next(kTransformOut);
      for (const Chunk::Part& part : chunk.parts)
        group.kernels.output_transform[part.kind](
            {part_of(m, part), pass, chunk.tiles(part), target, 2 * pair, epilogue});
    }
  });
}

void load_group(const Group& group, const MapView& map, float* buffer) {
  move_group(group, map, buffer, group.kernels.load_map);
}

void store_group(const Group& group, const MapView& map, float* buffer) {
  move_group(group, map, buffer, group.kernels.store_map);
}

void add_group_to(const Group& group, const MapView& map, float* buffer) {
  move_group(group, map, buffer, group.kernels.add_to_map);
}

void Workforce::start(const Plan& plan) {
  spaces.assign(workers, Space{});
  auto prepare = [&](int worker) {
    spaces[worker].a = workspace + worker * 2 * plan.points_floats;
    spaces[worker].b = spaces[worker].a + plan.points_floats;
    // the borders must be zero, and no kernel writes to them
    std::memset(buffer_of(plan, worker), 0, sizeof(float) * buffer_floats);
  };
  if (workers == 1)
    prepare(0);
  else
    run_parallel(parallel, workers, prepare);
}

}  // namespace rdk
