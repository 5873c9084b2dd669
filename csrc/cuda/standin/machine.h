// A multiprocessor on the CPU: one block at a time (or all of a launch that asks for it), a warpgroup per std::thread,
// its 128 lanes as fibers; used by standin/primitives.h, tests only.
//
// Written from the PTX text alone and not from the kernels. What a kernel could get wrong without noticing is refused
// here: accesses outside shared memory or misaligned, operands that wgmma reads before the writer's proxy fence,
// products without wgmma.fence before or commit after, lanes that part ways at a collective instruction, too many
// arrivals, waits that never end, what a block reads of another's stores before release and acquire. Asynchronous work
// is done either as soon as it is issued or as late as the kernel's waits allow (`late`): both must be right.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace rdk::cuda::standin {

struct Settings {
  bool late = false;
  double watchdog_seconds = 20.0;
};
Settings& settings();

inline constexpr int kLanes = 128;
inline constexpr uint32_t kSharedStart = 1024;  // shared addresses do not begin at 0

struct Block;
struct Grid;
struct Warpgroup;

struct AsyncCopy {
  uint32_t to;
  const void* from;  // null: zeros
  int bytes;
};

struct Lane {
  int thread = 0;  // in the block
  Block* block = nullptr;
  Warpgroup* group = nullptr;
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
  void* fiber = nullptr;  // ThreadSanitizer's handle
  bool done = false;
  std::function<bool()> waiting;   // resumed when it holds; empty: may run
  const char* place = "start";     // for the watchdog's message
  std::vector<uint32_t> unfenced;  // units written since the last proxy fence
  std::vector<AsyncCopy> open_copies;
  std::vector<std::vector<AsyncCopy>> copy_groups;
  // where blocks run together: words stored since the last block barrier; those that the last fence covered; how many
  // publications this lane has observed, and which of them it may rely on
  std::vector<uintptr_t> stored, covered;
  unsigned observed = 0, acquired = 0;
};

// Lanes that execute one instruction together: a warp or a warpgroup.
struct Together {
  int arrived = 0;
  unsigned generation = 0;
  const char* operation = nullptr;
  void* arguments[kLanes] = {};
};

struct Product {  // one wgmma of a warpgroup
  int columns;
  bool half_is_bf16, transposed;
  uint64_t a, b;
  float* sums[kLanes];
};

struct Warpgroup {
  Block* block = nullptr;
  std::vector<Lane> lanes;
  ucontext_t scheduler{};
  void* fiber = nullptr;
  Together warpgroup, warps[4];
  bool fenced = false;
  std::vector<Product> open;
  std::vector<std::vector<Product>> committed;
};

struct NamedBarrier {
  int arrived = 0, expected = 0;
  unsigned generation = 0;
  std::vector<uintptr_t> stored;  // by those that have arrived
  unsigned acquired = 0;          // by any of those that have arrived
};

struct Mbarrier {
  int count = 0, pending = 0;
  int64_t bytes = 0;
  unsigned phase = 0;
  std::vector<AsyncCopy> late_copies;
};

// Who stored which word of global memory last, and whether others may rely on it. Without locks, so that
// ThreadSanitizer sees no order that the kernel did not make.
struct GlobalWords {
  static constexpr size_t kSize = size_t{1} << 20;
  std::unique_ptr<std::atomic<uintptr_t>[]> words;
  std::unique_ptr<std::atomic<uint64_t>[]> writers;  // (block + 1) << 32 | number of its publication, 0: none yet

  GlobalWords();
  std::atomic<uint64_t>& writer(uintptr_t word);
};

// The blocks that run at the same time.
struct Grid {
  std::vector<std::unique_ptr<Block>> blocks;
  std::unique_ptr<GlobalWords> words;  // null: one block, nobody else to see its stores
  std::mutex mutex;
  unsigned publications = 0;
  std::atomic<unsigned> progress{0};
  std::atomic<bool> failed{false};
  std::string message;
};

struct Block {
  Grid& grid;
  int index = 0, count = 1, threads = 0;
  std::vector<uint8_t> shared;
  std::vector<std::atomic<int>> written_by;  // per 16 bytes: thread + 1 whose write the async proxy may not see yet
  std::mutex mutex;
  std::map<int, NamedBarrier> barriers;
  std::map<uint32_t, Mbarrier> mbarriers;
  std::atomic<unsigned>& progress;
  std::vector<uintptr_t> stored;  // words that all threads know to be stored

  Block(Grid& grid, int shared_bytes);
  uint8_t* at(uint32_t address, int bytes, int alignment, const char* what);
};

// Runs `kernel` on all blocks, `together` or one after another; returns nullptr or what went wrong (valid until the
// next run).
const char* run_grid(const std::function<void()>& kernel, int blocks, int threads, int shared_bytes, bool together);

Lane& self();
[[noreturn]] void fail(const std::string& message);  // ends the run with this message; called by lanes only
void wait_until(const char* place, std::function<bool()> condition);
// The last of `width` lanes to come runs `action` over all their arguments; nobody leaves before.
void together(Together& group, int width, int index, const char* operation, void* argument,
              const std::function<void(void**)>& action);

// operations on a block's memory and barriers, called by the lane that runs
void write_shared(uint32_t address, const void* from, int bytes, int alignment);
void read_shared(uint32_t address, void* to, int bytes, int alignment);
// global memory, and what orders it between blocks
void read_global(const void* address, void* to, int bytes);
void write_global(void* address, const void* from, int bytes);
void check_global(const void* address, int bytes);  // that this lane may rely on what others stored there
void fence_device();
void count_up(uint32_t* counter);
void wait_for_count(const uint32_t* counter, uint32_t at_least);
void fence_async_proxy();
void barrier_sync(int id, int threads);
void mbarrier_init(uint32_t address, int arrivals);
void mbarrier_arrive(uint32_t address, int expected_bytes);
bool mbarrier_test(uint32_t address, uint32_t parity);
void mbarrier_wait(uint32_t address, uint32_t parity);
void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t barrier);
void copy_async(uint32_t to, const void* from, bool valid);
void copy_async_commit();
void copy_async_wait(int groups);
void store_matrices_transposed(uint32_t address, const uint32_t* words, int count);
void load_matrices_transposed(uint32_t address, uint32_t* words, int count);
void wgmma_fence();
void wgmma(int columns, bool bf16, bool transposed, float* sums, uint64_t a, uint64_t b);
void wgmma_commit();
void wgmma_wait(int groups);

float half_to_float(uint16_t half, bool bf16);
uint16_t float_to_half(float value, bool bf16);

}  // namespace rdk::cuda::standin
