// Global memory of the stand-in, and what orders it between blocks that run together (machine.h).
//
// After the PTX memory model: a fence and then a relaxed addition to a counter publish what the lane has stored and
// what it knows to be stored by the others of its block (block barriers tell it); who reads the counter and then fences
// may rely on all that was published until then, as may those that meet it at a block barrier afterwards.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace rdk::cuda::standin {

GlobalWords::GlobalWords()
    : words(std::make_unique<std::atomic<uintptr_t>[]>(kSize)),
      writers(std::make_unique<std::atomic<uint64_t>[]>(kSize)) {}

std::atomic<uint64_t>& GlobalWords::writer(uintptr_t word) {
  for (size_t place = word * 0x9e3779b97f4a7c15u >> 44, tried = 0; tried < kSize;
       ++tried, place = (place + 1) % kSize) {
    uintptr_t found = 0;
    if (words[place].compare_exchange_strong(found, word, std::memory_order_relaxed) || found == word)
      return writers[place];
  }
  fail("more global memory was touched than the stand-in can watch");
}

namespace {
uint64_t of_block(const Block& block) { return static_cast<uint64_t>(block.index + 1) << 32; }
}  // namespace

void check_global(const void* address, int bytes) {
  Lane& lane = self();
  GlobalWords* words = lane.block->grid.words.get();
  if (words == nullptr) return;
  const auto first = reinterpret_cast<uintptr_t>(address) / 4;
  for (uintptr_t word = first; word < first + bytes / 4; ++word) {
    const uint64_t writer = words->writer(word).load(std::memory_order_relaxed);
    if (writer == 0 || writer >> 32 == of_block(*lane.block) >> 32) continue;
    const auto publication = static_cast<unsigned>(writer);
    if (publication == 0 || publication > lane.acquired) {
      fail("reads what block " + std::to_string((writer >> 32) - 1) + " stored, without release and acquire between");
    }
  }
}

void read_global(const void* address, void* to, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("load from a misaligned global address");
  check_global(address, bytes);
  std::memcpy(to, address, bytes);
}

void write_global(void* address, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("store to a misaligned global address");
  Lane& lane = self();
  if (GlobalWords* words = lane.block->grid.words.get()) {
    const auto first = reinterpret_cast<uintptr_t>(address) / 4;
    for (uintptr_t word = first; word < first + bytes / 4; ++word) {
      words->writer(word).store(of_block(*lane.block), std::memory_order_relaxed);
      lane.stored.push_back(word);
    }
  }
  std::memcpy(address, from, bytes);
}

void fence_device() {
  Lane& lane = self();
  lane.acquired = std::max(lane.acquired, lane.observed);
  lane.covered.insert(lane.covered.end(), lane.stored.begin(), lane.stored.end());
  lane.stored.clear();
  const std::lock_guard lock(lane.block->mutex);
  lane.covered.insert(lane.covered.end(), lane.block->stored.begin(), lane.block->stored.end());
  lane.block->stored.clear();
}

void count_up(uint32_t* counter) {
  Lane& lane = self();
  Grid& grid = lane.block->grid;
  const std::lock_guard lock(grid.mutex);
  ++grid.publications;
  if (grid.words != nullptr) {
    for (const uintptr_t word : lane.covered) {
      uint64_t unpublished = of_block(*lane.block);
      grid.words->writer(word).compare_exchange_strong(unpublished, unpublished | grid.publications,
                                                       std::memory_order_relaxed);
    }
  }
  lane.covered.clear();
  ++*counter;
  ++grid.progress;
}

void wait_for_count(const uint32_t* counter, uint32_t at_least) {
  Lane& lane = self();
  Grid& grid = lane.block->grid;
  wait_until("the count of arrivals", [&lane, &grid, counter, at_least] {
    const std::lock_guard lock(grid.mutex);
    lane.observed = grid.publications;
    return *counter >= at_least;
  });
}

}  // namespace rdk::cuda::standin
