// Cuts a convolution into chunks of tiles: input transform, product, output transform; moves groups in and out.
#include "convolve.h"

#include <algorithm>
#include <cstring>

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
                 geometry.row(), geometry.channels, last - first, geometry.width});
  });
}

}  // namespace

void make_runs(const Plan& plan, const StagePlan& stage, const TileClass& tiles, int64_t first, int64_t last,
               std::vector<Run>& runs) {
  const Geometry& geometry = plan.geometry;
  const int dilation = stage.dilation, size_r = kTileRows[tiles.kind], size_c = kTileCols[tiles.kind];
  runs.clear();
  int64_t tile = first;
  while (tile < last) {
    int64_t rest = tile;
    const int col = static_cast<int>(rest % tiles.cols);
    rest /= tiles.cols;
    const int row = static_cast<int>(rest % tiles.rows);
    rest /= tiles.rows;
    const int grid_col = static_cast<int>(rest % stage.grid_cols);
    rest /= stage.grid_cols;
    const int grid_row = static_cast<int>(rest % stage.grid_rows);
    const int64_t image = rest / stage.grid_rows;
    const int count = static_cast<int>(std::min<int64_t>({tiles.cols - col, kMaxRunTiles, last - tile}));
    const int sub_row = tiles.first_row + row * size_r, sub_col = tiles.first_col + col * size_c;
    const int height = (geometry.height - grid_row + dilation - 1) / dilation;
    const int width = (geometry.width - grid_col + dilation - 1) / dilation;
    const int64_t offset = image * geometry.image() + geometry.origin() +
                           (grid_row + static_cast<int64_t>(dilation) * sub_row) * geometry.row() +
                           (grid_col + static_cast<int64_t>(dilation) * sub_col) * kBlock;
    runs.push_back({offset, static_cast<int32_t>(tile - first), count,
                    static_cast<int32_t>(clamp(height - sub_row, size_r)),
                    static_cast<int32_t>(clamp(width - sub_col, static_cast<int64_t>(count) * size_c))});
    tile += count;
  }
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
  for (const TileClass& tiles : stage.classes) {
    const int64_t total = group.images * stage.tiles(tiles), chunk = chunk_tiles(group, total);
    group.crew.each((total + chunk - 1) / chunk, [&](int64_t number, Space& space) {
      thread_local std::vector<Run> runs;
      const int64_t first = number * chunk, last = std::min(total, first + chunk);
      make_runs(plan, stage, tiles, first, last, runs);
      const Tiles range{runs.data(), static_cast<int32_t>(runs.size())};
      const int64_t block = (last - first) * kBlock;
      const int64_t point = (static_cast<int64_t>(geometry.blocks) * (last - first) | 1) * kBlock;
      const Points v{space.a, point, block}, m{space.b, point, block};
      Stopwatch watch(space, kTransformIn);
      group.kernels.input_transform[tiles.kind](source, grid, range, v);
      const int pairs = (geometry.blocks + 1) / 2;
      for (int pair = 0; pair < pairs; pair += kPassPairs) {
        const int count = std::min(kPassPairs, pairs - pair);
        Grid part = grid;
        part.blocks = std::min(2 * count, geometry.blocks - 2 * pair);
        watch.next(kProduct);
        group.kernels.product({v, m, filter + tiles.filter_offset, geometry.filter_point(), geometry.channels,
                               geometry.blocks, pair, count, tiles.points(), static_cast<int32_t>(last - first)});
        watch.next(kTransformOut);
        group.kernels.output_transform[tiles.kind]({m, part, range, target, 2 * pair, epilogue});
      }
    });
  }
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
    float* base = workspace + worker * worker_floats;
    spaces[worker].a = base;
    spaces[worker].b = base + plan.points_floats;
    // the borders must be zero, and no kernel writes to them
    std::memset(buffer_of(plan, worker), 0, sizeof(float) * buffers * plan.group * plan.geometry.image());
  };
  if (workers == 1)
    prepare(0);
  else
    run_parallel(parallel, workers, prepare);
}

}  // namespace rdk
