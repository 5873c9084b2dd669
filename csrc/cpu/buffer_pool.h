// Blocked buffers of one group, given out and taken back; used by forward.cpp and backward.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace rdk {

class BufferPool {
 public:
  BufferPool(float* base, int64_t floats, int count) : base_(base), floats_(floats), taken_(count, false) {}

  // plan.cpp counts how many are alive at once; vector::at would throw where it were wrong
  float* take() {
    std::size_t number = 0;
    while (taken_.at(number)) ++number;
    taken_[number] = true;
    return base_ + static_cast<int64_t>(number) * floats_;
  }
  void give(const float* buffer) { taken_[(buffer - base_) / floats_] = false; }

 private:
  float* base_;
  int64_t floats_;
  std::vector<bool> taken_;
};

}  // namespace rdk
