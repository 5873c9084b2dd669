// One image walked down in bands: its windows in memory, and the maps that only a band of is read or written. Included
// by forward_bands.cpp and backward_bands.cpp, which say what every convolution reads, adds and stores.
#pragma once
#include <cstring>
#include <utility>
#include <vector>

#include "bands.h"
#include "convolve.h"

namespace rdk {

class BandWalk {
 public:
  // `buffers` hold the windows and `beside` further buffers, all of bands.rows rows, zero but for what an
  // earlier walk left
  BandWalk(const Group& group, const BandPlan& bands, std::vector<BandStage> stages, float* buffers)
      : order_(group.plan.geometry.height, bands.step, std::move(stages)),
        height_(group.plan.geometry.height),
        plan_(group.plan),
        group_{group.kernels, plan_, group.crew, group.first_image, 1},
        buffers_(buffers),
        firsts_(order_.convolutions() + 1, -plan_.geometry.border) {
    plan_.geometry.padded_height = bands.rows;
    for (int window = 0; window <= order_.convolutions(); ++window)
      clear(buffer(window), 0, plan_.geometry.border);  // the zeros above the map
  }

  // Down the map: the rows of `source` come into window 0, and convolution(c, first, last) makes those of window c + 1.
  // What a step stores was all read in this step or before, so that it may be stored where it came from.
  template <class F>
  void run(const MapView& source, F convolution) {
    while (!order_.finished()) {
      for (int window = 0; window <= order_.convolutions(); ++window) {
        const int first = order_.done(window), last = order_.next(window);
        if (first == last) continue;
        open(window, last);
        if (window == 0)
          load_group(group(last - first), below(source, first), rows(0, first));
        else
          convolution(window - 1, first, last);
        close(window, last);
      }
    }
  }

  const Bands& order() const { return order_; }

  // This image as a group of maps `rows` rows high, until one of other rows is asked for.
  const Group& group(int rows) {
    plan_.geometry.height = rows;
    return group_;
  }

  // A stage of the plan for rows first … last-1 of convolution `c`.
  StagePlan stage(int c, const StagePlan& whole, int first, int last) const {
    StagePlan band = whole;
    band.rows = order_.tiles(c, first, last);
    band.grid_rows = whole.grid_rows < last - first ? whole.grid_rows : last - first;
    return band;
  }

  // A window's rows from `row` on, as convolve() takes a buffer: the border above it belongs to it.
  float* rows(int window, int row) const { return from(buffer(window), row - firsts_[window]); }

  // Rows first … last-1 of a window into a map, in place of its own or added to them.
  void store(const MapView& map, int window, int first, int last) {
    store_group(group(last - first), below(map, first), rows(window, first));
  }
  void add_to(const MapView& map, int window, int first, int last) {
    add_group_to(group(last - first), below(map, first), rows(window, first));
  }

  // Rows first … last-1 of a map in buffer `number` beside the windows, with `around` rows above and below, zeros where
  // the map has none; seen from row `first` on. The group is one of these rows again.
  float* load_beside(const MapView& map, int number, int first, int last, int around) {
    float* data = buffer(order_.convolutions() + 1 + number);
    const int top = first - around, begin = top < 0 ? 0 : top, end = last + around < height_ ? last + around : height_;
    if (begin > top) clear(data, 0, begin - top);
    if (end < last + around) clear(data, end - top, plan_.geometry.padded_height);
    load_group(group(end - begin), below(map, begin), from(data, begin - top));
    group(last - first);
    return from(data, around);
  }

  // The sum of several windows' rows, in buffer `number` beside them.
  float* sum_beside(const std::vector<int>& windows, int number, int first, int last) {
    float* sum = from(buffer(order_.convolutions() + 1 + number), 0);
    const Geometry& geometry = plan_.geometry;
    const int64_t floats = (last - first) * geometry.row(), border = geometry.border * geometry.row();
    group_.crew.each(geometry.blocks, [&](int64_t block, Space& space) {
      Stopwatch watch(space, kMove);
      float* to = sum + border + block * geometry.block();
      std::memset(to, 0, sizeof(float) * floats);
      for (int window : windows)
        group_.kernels.add_blocked(to, rows(window, first) + border + block * geometry.block(), floats);
    });
    return sum;
  }

 private:
  // Makes room for the rows of a window up to `last`.
  void open(int window, int last) {
    const int needed = order_.needed(window);
    if (order_.room(window, last) - firsts_[window] <= plan_.geometry.padded_height) return;
    const Geometry& geometry = plan_.geometry;
    const int64_t floats = (order_.done(window) - needed) * geometry.row();
    group_.crew.each(geometry.blocks, [&](int64_t block, Space& space) {
      Stopwatch watch(space, kMove);
      float* start = buffer(window) + block * geometry.block();
      std::memmove(start, start + (needed - firsts_[window]) * geometry.row(), sizeof(float) * floats);
    });
    firsts_[window] = needed;
  }

  // The window has had its rows up to `last`.
  void close(int window, int last) {
    order_.advance(window, last);
    if (last == height_) clear(buffer(window), height_ - firsts_[window], plan_.geometry.padded_height);
  }

  float* buffer(int number) const { return buffers_ + number * plan_.geometry.image(); }

  float* from(float* data, int row) const { return data + (row - plan_.geometry.border) * plan_.geometry.row(); }

  static MapView below(MapView map, int row) {
    map.data += row * map.h;
    return map;
  }

  void clear(float* data, int first, int last) const {
    const Geometry& geometry = plan_.geometry;
    for (int block = 0; block < geometry.blocks; ++block)
      std::memset(data + block * geometry.block() + first * geometry.row(), 0,
                  sizeof(float) * (last - first) * geometry.row());
  }

  Bands order_;
  const int height_;
  Plan plan_;
  Group group_;
  float* buffers_;
  std::vector<int> firsts_;  // of the map: the row in a window's first row
};

}  // namespace rdk
