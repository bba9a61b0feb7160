// Finds out-of-bounds and misaligned accesses, reads of what nobody has written, and races, and adds up the traffic.
// Kernels in the check mode are compiled with -fsanitize=thread, which puts a call before every access to memory; here
// those calls end, instead of in libtsan, whose idea of happens-before is not CUDA's.
//
// Memory is either a thread's own stack, or a shared array, or a registered buffer, or the kernel's arguments and the
// constants of the library (both read only); anything else is reported. Not seen: accesses between two launches that
// could overlap (streams), flags and fences by which blocks might order their accesses, and copies that gcc expands in
// place from an explicit __builtin_memcpy (kernels should assign instead).
#include "checker.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "clocks.h"
#include "reports.h"
#include "shadow.h"
#include "sites.h"
#include "symbols.h"

namespace emu {

namespace {

constexpr uint8_t kReadBefore = 1, kWrittenBefore = 2;  // Region::touched
constexpr size_t kNear = 4096;  // an access as near to a region as this, and in no other, was meant for it

struct Segment {
  const char* start;
  const char* end;
  bool contains(const char* p, size_t bytes) const { return p >= start && p + bytes <= end; }
};

class CheckerImpl final : public Checker {
 public:
  CheckerImpl() {
    checker = this;
    Dl_info self{};
    dladdr(&checker, &self);
    library_ = reinterpret_cast<uintptr_t>(self.dli_fbase);
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
          auto& me = *static_cast<CheckerImpl*>(data);
          if (info->dlpi_addr != me.library_) return 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            const auto* start = reinterpret_cast<const char*>(info->dlpi_addr + header.p_vaddr);
            me.constants_.push_back({start, start + header.p_memsz});
          }
          return 1;
        },
        this);
  }

  void add_region(void* start, size_t bytes, const char* name, EmuRegionKind kind) override {
    add(start, bytes, name, false, kind);
  }
  void add_shared(void* start, size_t bytes, const char* name) override { add(start, bytes, name, true, EMU_OUTPUT); }
  void add_part(void* start, size_t bytes, const char* name) override {
    const auto* first = static_cast<const char*>(start);
    const auto above = regions_.upper_bound(first);
    if (above != regions_.begin()) {
      const Region& whole = *std::prev(above)->second;
      // Not a part of the same name that a second carving of the same buffer gave already.
      if (whole.contains(first) && whole.name != name) {
        divided_[whole.start] = whole.end;
        regions_.erase(std::prev(above));
      }
    }
    add(start, bytes, name, false, EMU_OUTPUT);
  }
  void remove_region(void* start) override {
    const auto divided = divided_.find(static_cast<const char*>(start));
    if (divided != divided_.end()) {
      regions_.erase(regions_.lower_bound(divided->first), regions_.lower_bound(divided->second));
      divided_.erase(divided);
      recent_.fill(nullptr);
      return;
    }
    const auto it = regions_.find(static_cast<const char*>(start));
    if (it != regions_.end() && --it->second->registrations == 0) regions_.erase(it);
    recent_.fill(nullptr);
  }

  void launch_begins(const void* parameters, size_t bytes) override {
    parameters_ = {static_cast<const char*>(parameters), static_cast<const char*>(parameters) + bytes};
    first_block_ = last_block_ + 1;
    blocks_.clear();
  }
  void launch_ends() override { running_ = nullptr; }
  void block_begins(int threads) override {
    ++last_block_;
    block_known_ = false;
    clocks_.start(threads);
  }
  void thread_runs(const RunningThread& thread) override {
    thread_ = thread;
    running_ = &thread_;
    if (!block_known_) blocks_.push_back(thread.block);
    block_known_ = true;
  }

  void block_synchronised() override { clocks_.synchronise_all(); }
  void warps_synchronised(const uint32_t* lanes, int warps) override {
    std::vector<int> threads;
    for (int warp = 0; warp < warps; ++warp)
      for (int lane = 0; lane < 32; ++lane)
        if (lanes[warp] >> lane & 1) threads.push_back(warp * 32 + lane);
    clocks_.synchronise(threads);
  }
  void lanes_synchronised(int warp, unsigned lanes) override {
    std::vector<int> threads;
    for (int lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1) threads.push_back(warp * 32 + lane);
    clocks_.synchronise(threads);
  }

  void copy_issued(const Copy& copy) override { set_in_flight(copy, true); }
  void copy_lands(const Copy& copy) override { set_in_flight(copy, false); }

  void expect_read_only(const void* pointer, size_t bytes, Where where) override {
    const auto* p = static_cast<const char*>(pointer);
    Region* region = find(p, 0);
    if (!region || !region->contains(p) || p + bytes > region->end) return;  // the access itself will be reported
    const auto [first, last] = region->range(p, bytes);
    for (size_t i = first; i < last; ++i) {
      if (region->cell(i).write.block < first_block_) continue;
      const std::string text = name_of(where) + ": __ldg of memory that the same launch writes, " + place(region, p);
      reports.add_once(text.substr(0, text.find('+')), text);
      return;
    }
  }

  std::string traffic() const override {
    std::string text = "{";
    for (const auto& [name, t] : traffic_) {
      if (text.size() > 1) text += ",\n ";
      text += "\"" + name + "\": {\"bytes\": " + std::to_string(t->bytes) + ", \"read\": " + std::to_string(t->read) +
              ", \"read_unique\": " + std::to_string(t->read_unique) + ", \"written\": " + std::to_string(t->written) +
              ", \"written_unique\": " + std::to_string(t->written_unique) +
              ", \"touched\": " + std::to_string(t->touched) + "}";
    }
    return text + "}";
  }
  void reset_traffic() override {
    // Buffers that are still there go on counting where they did.
    for (auto it = traffic_.begin(); it != traffic_.end();) {
      *it->second = {};
      const bool used = std::any_of(regions_.begin(), regions_.end(),
                                    [&](const auto& entry) { return entry.second->traffic == it->second.get(); });
      it = used ? std::next(it) : traffic_.erase(it);
    }
    for (const auto& [start, region] : regions_) {
      if (!region->traffic) continue;
      region->traffic->bytes += size_t(region->end - region->start);
      region->reset_touched();
    }
  }

  template <bool kWrites>
  void access(const void* pointer, size_t bytes, uintptr_t code, bool atomic = false) {
    const auto* p = static_cast<const char*>(pointer);
    if (!running_ || (p >= thread_.stack_low && p < thread_.stack_high) || !bytes) return;
    Region* const region = find(p, code);
    if (!region || p < region->start || p + bytes > region->end) {
      outside<kWrites>(region, p, bytes, code);
      return;
    }
    if (bytes <= 16 && reinterpret_cast<uintptr_t>(p) % (bytes & -bytes)) {
      finding(kWrites ? "misaligned write" : "misaligned read", region, p, bytes, code);
    }
    if (kWrites && region->kind == EMU_INPUT) finding("write to an input", region, p, bytes, code);

    const Time now = clocks_.now(thread_.rank);
    const Access me{
        last_block_, now.epoch, now.clock, uint16_t(thread_.rank & 1023), atomic, false, int32_t(code - library_)};
    const auto [first, last] = region->range(p, bytes);
    for (size_t i = first; i < last; ++i) {
      Cell& cell = region->cell(i);
      if (region->shared && cell.write.block != last_block_) {  // of a block before this one
        cell.write.block = 0;
        cell.write.in_flight = 0;
      }
      if (kWrites) {
        write(cell, me, region, p, bytes, code);
      } else {
        read(cell, me, region, p, bytes, code);
      }
      if (region->traffic) count<kWrites>(*region, i);
    }
    if (region->traffic) (kWrites ? region->traffic->written : region->traffic->read) += bytes;
  }

 private:
  void add(void* start, size_t bytes, const char* name, bool shared, EmuRegionKind kind) {
    auto* first = static_cast<char*>(start);
    if (bytes == 0) return;
    recent_.fill(nullptr);
    for (auto it = regions_.begin(); it != regions_.end();) {
      Region& other = *it->second;
      if (other.start == first && other.end == first + bytes) {  // one tensor in two roles
        ++other.registrations;
        if (other.kind != kind) other.kind = EMU_INOUT;
        return;
      }
      const bool overlaps = other.start < first + bytes && first < other.end;
      if (overlaps) reports.add("registered '" + std::string(name) + "' in the place of '" + other.name + "'");
      it = overlaps ? regions_.erase(it) : std::next(it);
    }
    auto& region = regions_[first] = std::make_unique<Region>(first, bytes, name, shared, kind);
    if (shared) return;
    auto& traffic = traffic_[name];
    if (!traffic) traffic = std::make_unique<Traffic>();
    traffic->bytes += bytes;
    region->traffic = traffic.get();
  }

  // The region of an address, or the one it is near to. An instruction mostly goes to the region where it went before.
  Region* find(const char* p, uintptr_t code) {
    Region*& recent = recent_[code % recent_.size()];
    if (recent && recent->contains(p)) return recent;
    const auto above = regions_.upper_bound(p);
    Region* below = above == regions_.begin() ? nullptr : std::prev(above)->second.get();
    if (below && below->contains(p)) return recent = below;
    if (below && size_t(p - below->end) < kNear) return below;
    if (above != regions_.end() && size_t(above->second->start - p) < kNear) return above->second.get();
    return nullptr;
  }

  // Whether what the other did happened before what the running thread does.
  bool ordered(const Access& other) const {
    if (other.block != last_block_) return other.block < first_block_;
    return clocks_.ordered(other.thread, other.time(), thread_.rank);
  }

  void write(Cell& cell, const Access& me, Region* region, const char* p, size_t bytes, uintptr_t code) {
    if (cell.write.block) {
      if (cell.write.in_flight) {
        finding("write to the target of a cp.async before its wait", region, p, bytes, code, &cell.write, "cp.async");
      } else if (!ordered(cell.write) && !(cell.write.atomic && me.atomic)) {
        finding("race, write after write", region, p, bytes, code, &cell.write, "write");
      }
    }
    for (Access& reader : cell.reads) {
      if (reader.block && !(region->shared && reader.block != last_block_) && !ordered(reader) &&
          !(reader.atomic && me.atomic)) {
        finding("race, write after read", region, p, bytes, code, &reader, "read");
      }
      reader.block = 0;
    }
    cell.write = me;
  }

  void read(Cell& cell, const Access& me, Region* region, const char* p, size_t bytes, uintptr_t code) {
    if (!cell.write.block) {
      if (region->kind == EMU_OUTPUT) finding("read of memory that nobody has written", region, p, bytes, code);
    } else if (cell.write.in_flight) {
      finding("read of the target of a cp.async before its wait", region, p, bytes, code, &cell.write, "cp.async");
    } else if (!ordered(cell.write) && !(cell.write.atomic && me.atomic)) {
      finding("race, read after write", region, p, bytes, code, &cell.write, "write");
    }
    const auto replaceable = [&](const Access& reader) {
      return !reader.block || (reader.block == last_block_ && reader.thread == me.thread) ||
             (region->shared && reader.block != last_block_) || ordered(reader);
    };
    Access& first = cell.reads[0];
    Access& second = cell.reads[1];
    if (replaceable(first)) {
      first = me;
    } else if (replaceable(second) || second.thread / 32 == first.thread / 32) {
      second = me;
    }
  }

  template <bool kWrites>
  static void count(Region& region, size_t i) {
    constexpr uint8_t kBit = kWrites ? kWrittenBefore : kReadBefore;
    uint8_t& touched = region.touched(i);
    if (touched & kBit) return;
    if (!touched) region.traffic->touched += region.granule();
    touched |= kBit;
    (kWrites ? region.traffic->written_unique : region.traffic->read_unique) += region.granule();
  }

  void set_in_flight(const Copy& copy, bool in_flight) {
    const auto* p = static_cast<const char*>(copy.target);
    Region* region = find(p, 0);
    if (!region || !region->contains(p)) return;
    const auto [first, last] = region->range(p, size_t(copy.bytes));
    for (size_t i = first; i < last; ++i) region->cell(i).write.in_flight = in_flight;
  }

  template <bool kWrites>
  void outside(Region* near, const char* p, size_t bytes, uintptr_t code) {
    if (!kWrites) {
      if (parameters_.contains(p, bytes)) return;
      for (const Segment& segment : constants_)
        if (segment.contains(p, bytes)) return;
    }
    if (near) {
      finding(kWrites ? "out-of-bounds write" : "out-of-bounds read", near, p, bytes, code);
    } else {
      finding(kWrites ? "write to memory that is not registered" : "read of memory that is not registered", nullptr, p,
              bytes, code);
    }
  }

  static std::string place(const Region* region, const char* p) {
    char buffer[80];
    if (!region) {
      snprintf(buffer, sizeof buffer, "at address %p", static_cast<const void*>(p));
      return buffer;
    }
    snprintf(buffer, sizeof buffer, "' %+td of %td", p - region->start, region->end - region->start);
    return std::string(region->shared ? "in shared '" : "in global '") + region->name + buffer;
  }

  static std::string who(const uint3& block, int thread) {
    char buffer[100];
    snprintf(buffer, sizeof buffer, "block (%u,%u,%u) thread %d (warp %d, lane %d)", block.x, block.y, block.z, thread,
             thread / 32, thread % 32);
    return buffer;
  }

  void finding(const char* what, const Region* region, const char* p, size_t bytes, uintptr_t code,
               const Access* other = nullptr, const char* other_did = "") {
    const uintptr_t other_code = other ? library_ + uintptr_t(intptr_t(other->code)) : 0;
    const std::string key = std::string(what) + " " + std::to_string(code) + " " + std::to_string(other_code);
    if (!reports.is_new(key)) return;
    const std::string from = call_chain(code);
    std::string lines = std::string(what) + " " + from;  // an unrolled loop has many addresses for one line
    std::string text = std::string(what) + ": " + std::to_string(bytes) + " bytes " + place(region, p) + " by " +
                       who(thread_.block, thread_.rank) + "\n    " + from;
    if (other) {
      const bool here = other->block >= first_block_;
      const std::string other_from = source_of(other_code);
      text += std::string("\n  and the ") + other_did + " by " +
              (here ? who(blocks_[other->block - first_block_], other->thread) : "an earlier launch") + "\n    " +
              other_from;
      lines += " " + other_from;
    }
    reports.know(key);
    reports.add_once(lines, text);
  }

  uintptr_t library_ = 0;
  std::vector<Segment> constants_;
  std::map<const char*, std::unique_ptr<Region>> regions_;
  std::array<Region*, 1024> recent_{};
  std::map<const char*, const char*> divided_;  // start and end of buffers whose parts are regions of their own
  std::map<std::string, std::unique_ptr<Traffic>> traffic_;

  Segment parameters_{};
  uint32_t last_block_ = 0, first_block_ = 1;  // numbers of the running block and of the launch's first
  std::vector<uint3> blocks_;                  // of the launch
  bool block_known_ = false;
  Clocks clocks_;
  RunningThread thread_{};
  RunningThread* running_ = nullptr;  // null while the host runs
};

CheckerImpl impl;

}  // namespace

}  // namespace emu

// ---- what gcc calls ----------------------------------------------------------------------------------------------

#define CODE reinterpret_cast<uintptr_t>(__builtin_return_address(0))

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

#define EMU_ACCESS(bytes)                                                                 \
  void __tsan_read##bytes(void* p) { emu::impl.access<false>(p, bytes, CODE); }           \
  void __tsan_write##bytes(void* p) { emu::impl.access<true>(p, bytes, CODE); }           \
  void __tsan_unaligned_read##bytes(void* p) { emu::impl.access<false>(p, bytes, CODE); } \
  void __tsan_unaligned_write##bytes(void* p) { emu::impl.access<true>(p, bytes, CODE); }
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { emu::impl.access<false>(p, bytes, CODE); }
void __tsan_write_range(void* p, size_t bytes) { emu::impl.access<true>(p, bytes, CODE); }

// Calls of memcpy and the like in kernels are renamed to these by the build.
void* emu_checked_memcpy(void* to, const void* from, size_t bytes) {
  emu::impl.access<false>(from, bytes, CODE);
  emu::impl.access<true>(to, bytes, CODE);
  return memcpy(to, from, bytes);
}
void* emu_checked_memmove(void* to, const void* from, size_t bytes) {
  emu::impl.access<false>(from, bytes, CODE);
  emu::impl.access<true>(to, bytes, CODE);
  return memmove(to, from, bytes);
}
void* emu_checked_memset(void* to, int value, size_t bytes) {
  emu::impl.access<true>(to, bytes, CODE);
  return memset(to, value, bytes);
}

// Only one thread runs at a time, so plain operations are atomic.
#define EMU_FETCH(T, bits, name, expression)                          \
  T __tsan_atomic##bits##_##name(volatile T* p, T value, int) {       \
    emu::impl.access<true>(const_cast<T*>(p), sizeof(T), CODE, true); \
    const T old = *p;                                                 \
    *p = T(expression);                                               \
    return old;                                                       \
  }
#define EMU_COMPARE(T, bits, strength)                                                                   \
  int __tsan_atomic##bits##_compare_exchange_##strength(volatile T* p, T* expected, T value, int, int) { \
    emu::impl.access<true>(const_cast<T*>(p), sizeof(T), CODE, true);                                    \
    const T old = *p;                                                                                    \
    if (old == *expected) *p = value;                                                                    \
    const bool done = old == *expected;                                                                  \
    *expected = old;                                                                                     \
    return done;                                                                                         \
  }
#define EMU_ATOMICS(T, bits)                                           \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {             \
    emu::impl.access<false>(const_cast<T*>(p), sizeof(T), CODE, true); \
    return *p;                                                         \
  }                                                                    \
  void __tsan_atomic##bits##_store(volatile T* p, T value, int) {      \
    emu::impl.access<true>(const_cast<T*>(p), sizeof(T), CODE, true);  \
    *p = value;                                                        \
  }                                                                    \
  EMU_FETCH(T, bits, exchange, value)                                  \
  EMU_FETCH(T, bits, fetch_add, old + value)                           \
  EMU_FETCH(T, bits, fetch_sub, old - value)                           \
  EMU_FETCH(T, bits, fetch_and, old& value)                            \
  EMU_FETCH(T, bits, fetch_or, old | value)                            \
  EMU_FETCH(T, bits, fetch_xor, old ^ value)                           \
  EMU_COMPARE(T, bits, strong)                                         \
  EMU_COMPARE(T, bits, weak)
EMU_ATOMICS(uint32_t, 32)
EMU_ATOMICS(uint64_t, 64)
}
