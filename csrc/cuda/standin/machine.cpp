// Lanes as fibers, their scheduler and watchdog, shared memory and barriers of the stand-in (machine.h).
#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace rdk::cuda::standin {

namespace {

constexpr size_t kStackBytes = 128 * 1024;  // of a lane
thread_local Lane* current = nullptr;
const std::function<void()>* running_kernel = nullptr;
std::string last_message;

void* fiber_new() {
#if defined(__SANITIZE_THREAD__)
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}
void fiber_end([[maybe_unused]] void* fiber) {
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(fiber);
#endif
}
void switch_to([[maybe_unused]] void* fiber, ucontext_t& from, ucontext_t& to) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber, 0);
#endif
  swapcontext(&from, &to);
}

void leave() {
  Lane& lane = *current;
  switch_to(lane.group->fiber, lane.context, lane.group->scheduler);
}

void lane_main() {
  (*running_kernel)();
  Lane& lane = *current;
  if (!lane.unfenced.empty()) lane.unfenced.clear();
  lane.done = true;
  ++lane.block->progress;
  leave();
}

void set_failure(Grid& grid, const std::string& message) {
  const std::lock_guard lock(grid.mutex);
  if (!grid.failed) grid.message = message;
  grid.failed = true;
}

void run_warpgroup(Block& block, int number) {
  Warpgroup group;
  group.block = &block;
#if defined(__SANITIZE_THREAD__)
  group.fiber = __tsan_get_current_fiber();
#endif
  group.lanes = std::vector<Lane>(kLanes);
  for (int i = 0; i < kLanes; ++i) {
    Lane& lane = group.lanes[i];
    lane.thread = number * kLanes + i;
    lane.block = &block;
    lane.group = &group;
    lane.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    lane.fiber = fiber_new();
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.get();
    lane.context.uc_stack.ss_size = kStackBytes;
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, lane_main, 0);
  }
  unsigned seen = block.progress;
  auto since = std::chrono::steady_clock::now();
  for (int left = kLanes; left > 0 && !block.grid.failed;) {
    left = 0;
    bool ran = false;
    for (Lane& lane : group.lanes) {
      if (lane.done || block.grid.failed) continue;
      ++left;
      if (lane.waiting && !lane.waiting()) continue;
      lane.waiting = nullptr;
      ran = true;
      current = &lane;
      switch_to(lane.fiber, group.scheduler, lane.context);
    }
    const unsigned now = block.progress;
    if (ran || now != seen) {
      seen = now;
      since = std::chrono::steady_clock::now();
      continue;
    }
    std::this_thread::yield();
    const std::chrono::duration<double> idle = std::chrono::steady_clock::now() - since;
    if (left > 0 && idle.count() > settings().watchdog_seconds) {
      std::string where;
      for (Lane& lane : group.lanes) {
        if (!lane.done && where.empty()) where = "thread " + std::to_string(lane.thread) + " waits at " + lane.place;
      }
      set_failure(block.grid, "deadlock in block " + std::to_string(block.index) + ": " + where);
    }
  }
  for (Lane& lane : group.lanes) fiber_end(lane.fiber);
}

}  // namespace

Settings& settings() {
  static Settings instance;
  return instance;
}

Block::Block(Grid& grid, int shared_bytes)
    : grid(grid),
      shared(shared_bytes, 0xff),  // 0xffff is NaN in both halves
      written_by(shared_bytes / 16 + 1),
      progress(grid.progress) {}

uint8_t* Block::at(uint32_t address, int bytes, int alignment, const char* what) {
  if (address % alignment != 0) fail(std::string(what) + ": misaligned address " + std::to_string(address));
  if (address < kSharedStart || address - kSharedStart + bytes > shared.size()) {
    fail(std::string(what) + ": address " + std::to_string(address) + " is outside the " +
         std::to_string(shared.size()) + " bytes of shared memory");
  }
  return shared.data() + (address - kSharedStart);
}

const char* run_grid(const std::function<void()>& kernel, int blocks, int threads, int shared_bytes, bool together) {
  last_message.clear();
  if (threads % kLanes != 0) last_message = "the stand-in runs whole warpgroups only";
  running_kernel = &kernel;
  const int at_once = together ? blocks : 1;
  for (int first = 0; first < blocks && last_message.empty(); first += at_once) {
    Grid grid;
    if (together) grid.words = std::make_unique<GlobalWords>();
    std::vector<std::thread> warpgroups;
    for (int index = first; index < first + at_once; ++index) {
      grid.blocks.push_back(std::make_unique<Block>(grid, shared_bytes));
      Block& block = *grid.blocks.back();
      block.index = index;
      block.count = blocks;
      block.threads = threads;
      for (int number = 0; number < threads / kLanes; ++number)
        warpgroups.emplace_back([&block, number] { run_warpgroup(block, number); });
    }
    for (std::thread& warpgroup : warpgroups) warpgroup.join();
    if (grid.failed) last_message = grid.message;
  }
  return last_message.empty() ? nullptr : last_message.c_str();
}

Lane& self() { return *current; }

void fail(const std::string& message) {
  Lane& lane = *current;
  set_failure(lane.block->grid, "thread " + std::to_string(lane.thread) + " of block " +
                                    std::to_string(lane.block->index) + ": " + message);
  lane.waiting = [] { return false; };
  for (;;) leave();  // never resumed
}

void wait_until(const char* place, std::function<bool()> condition) {
  if (condition()) return;
  Lane& lane = *current;
  lane.place = place;
  lane.waiting = std::move(condition);
  leave();
}

void together(Together& group, int width, int index, const char* operation, void* argument,
              const std::function<void(void**)>& action) {
  if (group.arrived > 0 && group.operation != operation) {
    fail(std::string("lanes part ways: ") + operation + " beside " + group.operation);
  }
  group.operation = operation;
  group.arguments[index] = argument;
  if (++group.arrived < width) {
    const unsigned generation = group.generation;
    wait_until(operation, [&group, generation] { return group.generation != generation; });
    return;
  }
  action(group.arguments);
  group.arrived = 0;
  ++group.generation;
  ++self().block->progress;
}

// ---- shared memory

void write_shared(uint32_t address, const void* from, int bytes, int alignment) {
  Lane& lane = self();
  std::memcpy(lane.block->at(address, bytes, alignment, "store to shared memory"), from, bytes);
  const uint32_t unit = (address - kSharedStart) / 16;
  lane.block->written_by[unit].store(lane.thread + 1, std::memory_order_relaxed);
  lane.unfenced.push_back(unit);
}

void read_shared(uint32_t address, void* to, int bytes, int alignment) {
  std::memcpy(to, self().block->at(address, bytes, alignment, "load from shared memory"), bytes);
}

void fence_async_proxy() {
  Lane& lane = self();
  for (const uint32_t unit : lane.unfenced) {
    int expected = lane.thread + 1;
    lane.block->written_by[unit].compare_exchange_strong(expected, 0, std::memory_order_relaxed);
  }
  lane.unfenced.clear();
}

// ---- barriers

void barrier_sync(int id, int threads) {
  Lane& lane = self();
  Block& block = *lane.block;
  unsigned generation = 0;
  NamedBarrier* barrier = nullptr;
  {
    std::unique_lock lock(block.mutex);
    barrier = &block.barriers[id];
    if (id < 0 || id > 15 || threads % 32 != 0 || (barrier->arrived > 0 && barrier->expected != threads)) {
      lock.unlock();
      fail("bar.sync " + std::to_string(id) + " with " + std::to_string(threads) + " threads");
    }
    barrier->expected = threads;
    generation = barrier->generation;
    ++block.progress;
    barrier->stored.insert(barrier->stored.end(), lane.stored.begin(), lane.stored.end());
    lane.stored.clear();
    barrier->acquired = std::max(barrier->acquired, lane.acquired);
    if (++barrier->arrived == threads) {
      block.stored.insert(block.stored.end(), barrier->stored.begin(), barrier->stored.end());
      barrier->stored.clear();
      barrier->arrived = 0;
      ++barrier->generation;
    }
  }
  const auto passed = [&block, barrier, generation] {
    const std::lock_guard lock(block.mutex);
    return barrier->generation != generation;
  };
  wait_until("bar.sync", passed);
  const std::lock_guard lock(block.mutex);
  lane.acquired = std::max(lane.acquired, barrier->acquired);
}

namespace {

Mbarrier& mbarrier_at(Block& block, uint32_t address) {  // under the block's mutex
  const auto found = block.mbarriers.find(address);
  if (found == block.mbarriers.end()) {
    block.mutex.unlock();
    fail("no mbarrier was initialised at address " + std::to_string(address));
  }
  return found->second;
}

void complete_if_due(Mbarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.pending = barrier.count;
    ++barrier.phase;
  }
}

void land(Block& block, const AsyncCopy& copy) {
  std::memcpy(block.at(copy.to, copy.bytes, 16, "bulk copy"), copy.from, copy.bytes);
  for (int offset = 0; offset < copy.bytes; offset += 16) {
    block.written_by[(copy.to - kSharedStart + offset) / 16].store(0, std::memory_order_relaxed);
  }
}

bool test(Block& block, uint32_t address, uint32_t parity) {
  const std::lock_guard lock(block.mutex);
  Mbarrier& barrier = mbarrier_at(block, address);
  for (const AsyncCopy& copy : barrier.late_copies) {
    land(block, copy);
    barrier.bytes -= copy.bytes;
  }
  if (!barrier.late_copies.empty()) {
    barrier.late_copies.clear();
    complete_if_due(barrier);
    ++block.progress;
  }
  return (barrier.phase & 1) != parity;
}

}  // namespace

void mbarrier_init(uint32_t address, int arrivals) {
  Block& block = *self().block;
  block.at(address, 8, 8, "mbarrier");
  const std::lock_guard lock(block.mutex);
  block.mbarriers[address] = Mbarrier{arrivals, arrivals, 0, 0, {}};
}

void mbarrier_arrive(uint32_t address, int expected_bytes) {
  Block& block = *self().block;
  std::unique_lock lock(block.mutex);
  Mbarrier& barrier = mbarrier_at(block, address);
  barrier.bytes += expected_bytes;
  if (--barrier.pending < 0) {
    lock.unlock();
    fail("more arrivals at the mbarrier than it was initialised for");
  }
  complete_if_due(barrier);
  ++block.progress;
}

bool mbarrier_test(uint32_t address, uint32_t parity) { return test(*self().block, address, parity); }

void mbarrier_wait(uint32_t address, uint32_t parity) {
  Block& block = *self().block;
  wait_until("mbarrier.try_wait", [&block, address, parity] { return test(block, address, parity); });
}

void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t address) {
  Block& block = *self().block;
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("bulk copy: size and source are multiples of 16 bytes");
  check_global(from, bytes);
  block.at(to, bytes, 16, "bulk copy");
  const std::lock_guard lock(block.mutex);
  Mbarrier& barrier = mbarrier_at(block, address);
  if (settings().late) {
    barrier.late_copies.push_back({to, from, bytes});
  } else {
    land(block, {to, from, bytes});
    barrier.bytes -= bytes;
    complete_if_due(barrier);
  }
  ++block.progress;
}

// ---- cp.async

namespace {
void land_generic(const AsyncCopy& copy) {
  static const uint8_t zeros[16] = {};
  write_shared(copy.to, copy.from == nullptr ? zeros : copy.from, copy.bytes, 16);
}
}  // namespace

void copy_async(uint32_t to, const void* from, bool valid) {
  const AsyncCopy copy{to, valid ? from : nullptr, 16};
  if (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("cp.async: the source is not aligned to 16 bytes");
  if (valid) check_global(from, 16);
  if (settings().late) {
    self().open_copies.push_back(copy);
  } else {
    land_generic(copy);
  }
}

void copy_async_commit() {
  Lane& lane = self();
  lane.copy_groups.push_back(std::move(lane.open_copies));
  lane.open_copies.clear();
}

void copy_async_wait(int groups) {
  Lane& lane = self();
  while (static_cast<int>(lane.copy_groups.size()) > groups) {
    for (const AsyncCopy& copy : lane.copy_groups.front()) land_generic(copy);
    lane.copy_groups.erase(lane.copy_groups.begin());
  }
}

}  // namespace rdk::cuda::standin
