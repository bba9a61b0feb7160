#include "memory_cache.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace stc {

#if defined(__linux__)
namespace {

// Or of the container, where that has a limit.
int64_t memory_of_machine() {
  int64_t bytes = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGE_SIZE));
  for (const char* limit : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    long long most = 0;  // "max" where there is none
    std::ifstream file(limit);
    if (file >> most && most > 0) bytes = std::min<int64_t>(bytes, most);
  }
  return bytes;
}

}  // namespace
#endif

int64_t cache_limit() {
  static const int64_t limit = [] {
#if defined(__linux__)
    const char* given = std::getenv("STC_CUDA_CPU_CACHE_MB");
    if (!given || !*given) return memory_of_machine() / 16;
    char* end = nullptr;
    const long long mebibytes = std::strtoll(given, &end, 10);
    if (*end || mebibytes < 0 || mebibytes > (int64_t(1) << 40))
      throw std::runtime_error("STC_CUDA_CPU_CACHE_MB: got '" + std::string(given) +
                               "', expected a whole number of MiB, or 0 to keep nothing");
    return int64_t(mebibytes) << 20;
#else
    return int64_t(0);
#endif
  }();
  return limit;
}

#if defined(__linux__)
namespace {

constexpr size_t kPage = size_t(2) << 20;

struct Block {
  void* data;
  size_t size;  // whole pages

  // At the start of a page; null where the system has no memory left.
  static void* map(size_t size) {
    void* all = mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(all), aligned = (begin + kPage - 1) / kPage * kPage;
    if (aligned > begin) munmap(all, aligned - begin);
    if (begin + kPage > aligned) munmap(reinterpret_cast<void*>(aligned + size), begin + kPage - aligned);
    void* data = reinterpret_cast<void*>(aligned);
    madvise(data, size, MADV_HUGEPAGE);
    return data;
  }
  void unmap() const { munmap(data, size); }
};

// Nobody waits for its lock: whoever does not get it at once, as in a child that was forked while another thread held
// it, goes to the system.
class MemoryCache final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kPage || bytes > std::numeric_limits<size_t>::max() / 2) return others().allocate(bytes);
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    auto block = std::make_unique<Block>(take(size));
    if (!block->data && !(block->data = Block::map(size))) {
      clear();
      if (!(block->data = Block::map(size))) return others().allocate(bytes);  // its error is the usual one
    }
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    void* data = block->data;
    return {data, block.release(), &free_block, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

  int64_t kept() const { return int64_t(kept_.load()); }

  int64_t clear() {
    std::vector<Block> blocks;
    {
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (!lock) return 0;
      blocks.swap(blocks_);
      kept_ = 0;
    }
    int64_t bytes = 0;
    for (const Block& block : blocks) {
      bytes += int64_t(block.size);
      block.unmap();
    }
    return bytes;
  }

 private:
  static c10::Allocator& others() { return *c10::GetDefaultCPUAllocator(); }

  // The smallest that is kept and large enough, but not far larger; else one without data.
  Block take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {nullptr, size};
    size_t best = blocks_.size();
    for (size_t i = 0; i < blocks_.size(); ++i)
      if (blocks_[i].size >= size && blocks_[i].size <= size + size / 4 &&
          (best == blocks_.size() || blocks_[i].size <= blocks_[best].size))
        best = i;
    if (best == blocks_.size()) return {nullptr, size};
    const Block block = blocks_[best];
    blocks_.erase(blocks_.begin() + best);
    kept_ -= block.size;
    return block;
  }

  static void free_block(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    c10::profiledCPUMemoryReporter().Delete(block->data);
    instance().keep(*block);
  }

  void keep(Block block) {
    std::vector<Block> dropped;
    {
      const std::unique_lock lock(mutex_, std::try_to_lock);
      const size_t limit = size_t(cache_limit());
      if (!lock || block.size > limit) {
        dropped.push_back(block);
      } else {
        size_t oldest = 0;
        for (; kept_ + block.size > limit; ++oldest) kept_ -= blocks_[oldest].size;
        dropped.assign(blocks_.begin(), blocks_.begin() + oldest);
        blocks_.erase(blocks_.begin(), blocks_.begin() + oldest);
        blocks_.push_back(block);
        kept_ += block.size;
      }
    }
    for (const Block& gone : dropped) gone.unmap();
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;  // in the order in which they were freed
  std::atomic<size_t> kept_ = 0;

 public:
  static MemoryCache& instance() {
    static MemoryCache* const cache = new MemoryCache;  // tensors may be freed after all destructors have run
    return *cache;
  }
};

// As at::empty does where torch.utils.deterministic asks for it.
at::Tensor filled(at::Tensor x) {
  if (at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory()) {
    if (x.is_floating_point())
      x.fill_(std::numeric_limits<double>::quiet_NaN());
    else
      std::memset(x.mutable_data_ptr(), 0xff, x.nbytes());
  }
  return x;
}

}  // namespace

at::Tensor empty_cached(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return filled(at::detail::empty_generic(sizes, &MemoryCache::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                          c10::typeMetaToScalarType(options.dtype()), std::nullopt));
}

at::Tensor empty_cached(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  return filled(at::detail::empty_strided_generic(sizes, strides, &MemoryCache::instance(),
                                                  c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                  c10::typeMetaToScalarType(options.dtype())));
}

int64_t cached_bytes() { return MemoryCache::instance().kept(); }
int64_t empty_cache() { return MemoryCache::instance().clear(); }

#else

at::Tensor empty_cached(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }
at::Tensor empty_cached(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  return at::empty_strided(sizes, strides, options);
}
int64_t cached_bytes() { return 0; }
int64_t empty_cache() { return 0; }

#endif

}  // namespace stc
