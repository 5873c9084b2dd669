// wgmma and stmatrix of the stand-in: operands read through the fields of their descriptors, results in the documented
// fragments (machine.h).
#include <immintrin.h>

#include <cstring>

#include "../tables.h"
#include "machine.h"

namespace rdk::cuda::standin {

float half_to_float(uint16_t half, bool bf16) {
  if (!bf16) return _cvtsh_ss(half);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint16_t float_to_half(float value, bool bf16) {
  if (!bf16) return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

namespace {

// One operand: `rows` along M or N by 16 along K.
void read_operand(Block& block, uint64_t descriptor, int rows, bool transposed, bool bf16, float* values) {
  const uint32_t start = (descriptor & 0x3fff) << 4;
  const uint32_t leading = (descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 49 & 7) fail("wgmma: the descriptor has a base offset");
  if (descriptor >> 62) fail("wgmma: the descriptor asks for swizzling");
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < 16; ++k) {
      // without swizzle a core matrix is 8 times 16 contiguous bytes; the leading offset steps K, the stride offset M
      // or N
      const int within = transposed ? k % 8 * 16 + row % 8 * 2 : row % 8 * 16 + k % 8 * 2;
      const uint32_t address = start + row / 8 * stride + k / 8 * leading + within;
      uint16_t half;
      std::memcpy(&half, block.at(address, 2, 2, "wgmma operand"), 2);
      const int writer = block.written_by[(address - kSharedStart) / 16].load(std::memory_order_relaxed);
      if (writer != 0) {
        fail("wgmma reads what thread " + std::to_string(writer - 1) + " wrote to address " + std::to_string(address) +
             " without fence.proxy.async");
      }
      values[row * 16 + k] = half_to_float(half, bf16);
    }
  }
}

void execute(Block& block, const Product& product) {
  float a[64 * 16], b[256 * 16], columns_of_b[16 * 256], sums[64 * 256];
  const int n = product.columns;
  read_operand(block, product.a, 64, product.transposed, product.half_is_bf16, a);
  read_operand(block, product.b, n, product.transposed, product.half_is_bf16, b);
  for (int column = 0; column < n; ++column) {
    for (int k = 0; k < 16; ++k) columns_of_b[k * n + column] = b[column * 16 + k];
  }
  const auto row_of = [](int lane, int i) { return lane / 32 * 16 + lane % 32 / 4 + (i % 4 >= 2 ? 8 : 0); };
  const auto column_of = [](int lane, int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; };
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < n / 2; ++i) sums[row_of(lane, i) * n + column_of(lane, i)] = product.sums[lane][i];
  }
  for (int row = 0; row < 64; ++row) {
    for (int k = 0; k < 16; ++k) {
      const float factor = a[row * 16 + k];
      for (int column = 0; column < n; ++column) sums[row * n + column] += factor * columns_of_b[k * n + column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < n / 2; ++i) product.sums[lane][i] = sums[row_of(lane, i) * n + column_of(lane, i)];
  }
}

}  // namespace

void wgmma_fence() {
  Warpgroup& group = *self().group;
  together(group.warpgroup, kLanes, self().thread % kLanes, "wgmma.fence", nullptr,
           [&group](void**) { group.fenced = true; });
}

void wgmma(int columns, bool bf16, bool transposed, float* sums, uint64_t a, uint64_t b) {
  struct Argument {
    float* sums;
    uint64_t a, b;
  } argument{sums, a, b};
  Warpgroup& group = *self().group;
  together(group.warpgroup, kLanes, self().thread % kLanes, "wgmma.mma_async", &argument, [&](void** arguments) {
    if (!group.fenced) fail("wgmma.mma_async without wgmma.fence before it");
    Product product{columns, bf16, transposed, a, b, {}};
    for (int lane = 0; lane < kLanes; ++lane) {
      const Argument& other = *static_cast<Argument*>(arguments[lane]);
      if (other.a != a || other.b != b) fail("wgmma.mma_async: the descriptors differ between lanes");
      product.sums[lane] = other.sums;
    }
    if (settings().late) {
      group.open.push_back(product);
    } else {
      execute(*group.block, product);
    }
  });
}

void wgmma_commit() {
  Warpgroup& group = *self().group;
  together(group.warpgroup, kLanes, self().thread % kLanes, "wgmma.commit_group", nullptr, [&group](void**) {
    group.committed.push_back(std::move(group.open));
    if (static_cast<int>(group.committed.size()) > kGroupsUnderWay + 1)
      fail("wgmma.commit_group: too many groups are under way");
    group.open.clear();
    group.fenced = false;
  });
}

void wgmma_wait(int groups) {
  Warpgroup& group = *self().group;
  together(group.warpgroup, kLanes, self().thread % kLanes, "wgmma.wait_group", nullptr, [&group, groups](void**) {
    if (group.fenced) fail("wgmma.wait_group before wgmma.commit_group");
    while (static_cast<int>(group.committed.size()) > groups) {
      for (const Product& product : group.committed.front()) execute(*group.block, product);
      group.committed.erase(group.committed.begin());
    }
  });
}

void store_matrices_transposed(uint32_t address, const uint32_t* words, int count) {
  struct Argument {
    uint32_t address;
    const uint32_t* words;
  } argument{address, words};
  Lane& lane = self();
  Together& warp = lane.group->warps[lane.thread % kLanes / 32];
  const auto action = [count](void** arguments) {
    for (int matrix = 0; matrix < count; ++matrix) {
      uint16_t rows[8][8];
      for (int l = 0; l < 32; ++l) {
        // without .trans lane l holds two neighbours of row l / 4; transposed they lie in two rows of column l / 4
        const uint32_t word = static_cast<Argument*>(arguments[l])->words[matrix];
        rows[l % 4 * 2][l / 4] = static_cast<uint16_t>(word);
        rows[l % 4 * 2 + 1][l / 4] = static_cast<uint16_t>(word >> 16);
      }
      for (int row = 0; row < 8; ++row) {
        write_shared(static_cast<Argument*>(arguments[matrix * 8 + row])->address, rows[row], 16, 16);
      }
    }
  };
  together(warp, 32, lane.thread % 32, "stmatrix", &argument, action);
  // which lane's write another proxy must wait for is open: every lane of the warp has to fence
  for (int matrix = 0; matrix < count; ++matrix) {
    if (lane.thread % 32 / 8 != matrix) continue;
    const uint32_t unit = (address - kSharedStart) / 16;
    lane.block->written_by[unit].store(lane.thread + 1, std::memory_order_relaxed);
    lane.unfenced.push_back(unit);
  }
}

void load_matrices_transposed(uint32_t address, uint32_t* words, int count) {
  struct Argument {
    uint32_t address;
    uint32_t* words;
  } argument{address, words};
  Lane& lane = self();
  const auto action = [count](void** arguments) {
    for (int matrix = 0; matrix < count; ++matrix) {
      uint16_t rows[8][8];
      for (int row = 0; row < 8; ++row) {
        read_shared(static_cast<Argument*>(arguments[matrix * 8 + row])->address, rows[row], 16, 16);
      }
      // without .trans lane l receives two neighbours of row l / 4; transposed they are of column l / 4
      for (int l = 0; l < 32; ++l) {
        static_cast<Argument*>(arguments[l])->words[matrix] =
            rows[l % 4 * 2][l / 4] | static_cast<uint32_t>(rows[l % 4 * 2 + 1][l / 4]) << 16;
      }
    }
  };
  together(lane.group->warps[lane.thread % kLanes / 32], 32, lane.thread % 32, "ldmatrix", &argument, action);
}

}  // namespace rdk::cuda::standin
