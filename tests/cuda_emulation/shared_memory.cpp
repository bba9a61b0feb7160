#include "shared_memory.h"

#include <cstdlib>
#include <cstring>

#include "checker.h"
#include "reports.h"

extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(const volatile void*, size_t);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void*, size_t);
}

namespace emu {

namespace {

constexpr size_t kStaticLimit = 48 * 1024;
constexpr unsigned char kPoison = 0xff;  // makes NaN of floats of all widths
constexpr size_t kGuard = 256;           // bytes on either side of an array
constexpr size_t kGreatestAlignment = 128;

size_t rounded_up(size_t bytes, size_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

}  // namespace

void SharedMemory::start_launch(size_t dynamic_bytes, size_t device_bytes) {
  dynamic_limit_ = dynamic_bytes;
  device_limit_ = device_bytes;
}

void SharedMemory::start_block() {
  static_bytes_ = dynamic_bytes_ = 0;
  for (Array& array : arrays_) array.used = false;
}

void* SharedMemory::array(const void* key, size_t bytes, size_t alignment, const std::string& name, bool dynamic) {
  Array* array = nullptr;
  for (Array& candidate : arrays_)
    if (candidate.key == key && candidate.dynamic == dynamic && (candidate.used || candidate.bytes == bytes))
      array = &candidate;
  const Where where{name.c_str(), 0};
  if (array && array->used) {
    if (array->bytes != bytes) fail(where, "threads disagree about its size: %zu and %zu bytes", array->bytes, bytes);
    return array->data;
  }
  count(bytes, alignment, dynamic, where);
  if (!array) array = &allocate(key, bytes, alignment, name, dynamic);
  array->used = true;
  memset(array->data, kPoison, bytes);
  return array->data;
}

void SharedMemory::count(size_t bytes, size_t alignment, bool dynamic, Where where) {
  if (dynamic) {
    dynamic_bytes_ += rounded_up(bytes, 16);
    if (dynamic_bytes_ > dynamic_limit_) {
      fail(where, "the kernel takes %zu bytes of it, the launch asked for %zu", dynamic_bytes_, dynamic_limit_);
    }
    return;
  }
  static_bytes_ = rounded_up(static_bytes_, alignment) + bytes;
  if (static_bytes_ > kStaticLimit) fail(where, "more than 48 KiB of static shared memory");
  if (static_bytes_ + dynamic_limit_ > device_limit_) {
    fail(where, "%zu bytes of static and %zu of dynamic shared memory; the device allows %zu", static_bytes_,
         dynamic_limit_, device_limit_);
  }
}

SharedMemory::Array& SharedMemory::allocate(const void* key, size_t bytes, size_t alignment, const std::string& name,
                                            bool dynamic) {
  if (alignment >= kGreatestAlignment) fail({name.c_str(), 0}, "aligned to more than 64 bytes");
  Array array{key, name, bytes, dynamic, false, nullptr, 0, nullptr};
  array.memory_bytes = rounded_up(kGuard + alignment + bytes + kGuard, kGreatestAlignment);
  array.memory = static_cast<unsigned char*>(aligned_alloc(kGreatestAlignment, array.memory_bytes));
  array.data = array.memory + kGuard + alignment;  // a multiple of the alignment and of nothing greater
  memset(array.memory, kPoison, array.memory_bytes);
  if (__asan_poison_memory_region) {
    __asan_poison_memory_region(array.memory, array.memory_bytes);
    __asan_unpoison_memory_region(array.data, bytes);
  }
  if (checker) checker->add_shared(array.data, bytes, name.c_str());
  arrays_.push_back(array);
  return arrays_.back();
}

bool SharedMemory::contains(const void* start, size_t bytes) const {
  const auto* p = static_cast<const unsigned char*>(start);
  for (const Array& array : arrays_)
    if (p >= array.data && p + bytes <= array.data + array.bytes) return true;
  return false;
}

void SharedMemory::check_guards() {
  for (Array& array : arrays_) {
    const std::string whole = " of shared array '" + array.name + "' of " + std::to_string(array.bytes) + " bytes";
    for (size_t i = 0; i < kGuard; ++i) {
      unsigned char& before = array.data[-1 - ptrdiff_t(i)];
      unsigned char& behind = array.data[array.bytes + i];
      if (before != kPoison) reports.add("write " + std::to_string(i + 1) + " bytes before the start" + whole);
      if (behind != kPoison) reports.add("write " + std::to_string(i) + " bytes past the end" + whole);
      if (before != kPoison || behind != kPoison) {
        memset(array.data - kGuard, kPoison, kGuard);
        memset(array.data + array.bytes, kPoison, kGuard);
        break;
      }
    }
  }
}

void SharedMemory::end_launch() {
  for (Array& array : arrays_) {
    if (checker) checker->remove_region(array.data);
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(array.memory, array.memory_bytes);
    free(array.memory);
  }
  arrays_.clear();
}

}  // namespace emu
