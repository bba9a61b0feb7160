// What the checker remembers of each granule of memory that it watches.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "clocks.h"
#include "emu_control.h"

namespace emu {

// Who touched a granule, when, and from where.
struct Access {
  uint32_t block;  // number among all blocks ever run, from 1; 0: nobody
  uint32_t epoch;
  uint16_t clock;
  uint16_t thread : 10;
  uint16_t atomic : 1;
  uint16_t in_flight : 1;  // the target of a cp.async that has not landed
  int32_t code;            // return address, relative to the kernels' library

  Time time() const { return {epoch, clock}; }
};
static_assert(sizeof(Access) == 16);

// Two readers are kept, from different warps where there are such. A write that is ordered after both and not after a
// third goes unseen; with block-wide barriers only, that cannot be.
struct Cell {
  Access write;
  Access reads[2];
};

// Bytes by kernels; `unique` counts each byte once, `touched` the bytes that were read or written at all.
struct Traffic {
  uint64_t bytes = 0, read = 0, read_unique = 0, written = 0, written_unique = 0, touched = 0;
};

// A registered buffer or a shared array. Its granules begin as wide as the first access (16 bytes at most) and are
// split when a narrower one comes.
class Region {
 public:
  Region(char* start, size_t bytes, std::string name, bool shared, EmuRegionKind kind)
      : start(start), end(start + bytes), name(std::move(name)), shared(shared), kind(kind) {}
  ~Region() { release(cells_, granules()); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  bool contains(const char* p) const { return p >= start && p < end; }

  // The cells of an access that lies in the region.
  struct Range {
    size_t first, last;
  };
  Range range(const char* p, size_t bytes) {
    const size_t offset = size_t(p - start);
    if (!granule_ || offset % granule_ || bytes % granule_) refine(offset | bytes);
    return {offset / granule_, (offset + bytes) / granule_};
  }

  Cell& cell(size_t i) { return cells_[i]; }
  uint8_t& touched(size_t i) { return touched_[i]; }
  size_t granule() const { return granule_; }
  void reset_touched() { touched_.assign(touched_.size(), 0); }

  char* const start;
  char* const end;
  const std::string name;
  const bool shared;
  EmuRegionKind kind;
  int registrations = 1;
  Traffic* traffic = nullptr;

 private:
  size_t granules() const { return granule_ ? (size_t(end - start) + granule_ - 1) / granule_ : 0; }

  // Makes granules that divide `multiple`, which is a bitwise or of lengths.
  void refine(size_t multiple) {
    size_t finer = granule_ ? granule_ : 16;
    while (multiple % finer) finer /= 2;
    const size_t old_granule = granule_, old_count = granules();
    Cell* const old = cells_;
    granule_ = finer;
    cells_ = allocate(granules());
    std::vector<uint8_t> touched(granules(), 0);
    if (old) {
      for (size_t i = 0; i < granules(); ++i) {
        const size_t from = i * granule_ / old_granule;
        touched[i] = touched_[from];
        if (old[from].write.block || old[from].reads[0].block) cells_[i] = old[from];
      }
    }
    touched_ = std::move(touched);
    release(old, old_count);
  }

  // Zero, and costing memory only where it is touched.
  static Cell* allocate(size_t count) {
    void* memory =
        mmap(nullptr, count * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<Cell*>(memory);
  }
  static void release(Cell* cells, size_t count) {
    if (cells) munmap(cells, count * sizeof(Cell));
  }

  size_t granule_ = 0;  // 0: never accessed
  Cell* cells_ = nullptr;
  std::vector<uint8_t> touched_;  // kRead, kWritten
};

}  // namespace emu
