// rdk::cpu_maps and cpu_keep_scratch: what calls work in (filters, sums, buffers, kept states), kept from one call to
// the next so that the system need not clear its pages every time; called by rdk/backends/cpu.py and cpu_runs.py and,
// by way of bindings.h, the other bindings.
#include <torch/library.h>

#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <utility>

#include "bindings.h"
#include "tables.h"

namespace rdk::binding {
namespace {

struct Block {
  at::DataPtr memory;
  int64_t bytes = 0;
};

// Blocks that nobody uses, the one given back longest ago first; together never more than the limit.
class Kept {
 public:
  // The smallest that holds so many bytes and wastes no more than a quarter of itself; or a new one.
  Block take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = blocks_.end();
      for (auto block = blocks_.begin(); block != blocks_.end(); ++block)
        if (block->bytes >= bytes && block->bytes - bytes <= block->bytes / 4 &&
            (best == blocks_.end() || block->bytes < best->bytes))
          best = block;
      if (best != blocks_.end()) {
        Block found = std::move(*best);
        blocks_.erase(best);
        bytes_ -= found.bytes;
        return found;
      }
    }
    return {at::getCPUAllocator()->allocate(bytes), bytes};
  }

  void give(Block block) {
    std::deque<Block> dropped;  // freed when the lock is
    const std::lock_guard<std::mutex> lock(mutex_);
    if (block.bytes > limit_) return;
    bytes_ += block.bytes;
    blocks_.push_back(std::move(block));
    drop(dropped);
  }

  // Returns the limit before.
  int64_t keep_at_most(int64_t bytes) {
    std::deque<Block> dropped;
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t before = std::exchange(limit_, bytes);
    drop(dropped);
    return before;
  }

 private:
  void drop(std::deque<Block>& dropped) {
    while (bytes_ > limit_) {
      bytes_ -= blocks_.front().bytes;
      dropped.push_back(std::move(blocks_.front()));
      blocks_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Block> blocks_;
  int64_t bytes_ = 0, limit_ = 0;
};

// Never destroyed: a tensor may be freed after the last of this file is.
Kept& kept() {
  static Kept* const blocks = new Kept;
  return *blocks;
}

}  // namespace

at::Tensor scratch(int64_t floats) {
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  if (bytes < kLeastKept) return at::empty({floats}, at::kFloat);
  auto block = std::make_shared<Block>(kept().take(bytes));
  void* const data = block->memory.get();
  at::Tensor result = at::from_blob(data, {floats}, [block](void*) { kept().give(std::move(*block)); }, at::kFloat);
  huge_pages(result);
  const at::Context& context = at::globalContext();  // as at::empty does
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory())
    result.fill_(std::numeric_limits<float>::quiet_NaN());
  return result;
}

namespace {

// Uninitialised room for `count` maps as `like` (N, C, H, W), with channels innermost.
at::Tensor cpu_maps(const at::Tensor& like, int64_t count) {
  TORCH_CHECK(like.dim() == 4 && count >= 0, "rdk: expected a state (N, C, H, W) and a count, got ", like.sizes(),
              " and ", count, ".");
  return scratch(count * like.numel())
      .view({count, like.size(0), like.size(2), like.size(3), like.size(1)})
      .permute({0, 1, 4, 2, 3});
}

// Bytes that are kept at most from here on; returns those before.
int64_t cpu_keep_scratch(int64_t bytes) {
  TORCH_CHECK(bytes >= 0, "rdk: expected 0 or more bytes to keep, got ", bytes, ".");
  return kept().keep_at_most(bytes);
}

}  // namespace
}  // namespace rdk::binding

TORCH_LIBRARY_FRAGMENT(rdk, m) {
  using namespace rdk::binding;
  m.def("cpu_maps(Tensor like, int count) -> Tensor", &cpu_maps);
  m.def("cpu_keep_scratch(int bytes) -> int", &cpu_keep_scratch);
}
