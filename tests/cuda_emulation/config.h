// What emu_control.h sets.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emu_control.h"

namespace emu {

class Random {  // xorshift64*
 public:
  void seed(uint64_t seed) { state_ = seed * 0x9E3779B97F4A7C15u | 1; }

  uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return uint32_t(state_ * 0x2545F4914F6CDD1Du >> 32);
  }

  uint32_t below(uint32_t n) { return uint32_t(uint64_t(next()) * n >> 32); }

 private:
  uint64_t state_ = 0x9E3779B97F4A7C15u;
};

struct Config {
  EmuOrder order = EMU_ROUND_ROBIN;
  Random random;
  size_t shared_limit = 227 * 1024;
  EmuMmaRounding mma_rounding = EMU_MMA_NEAREST;
};

extern Config config;

}  // namespace emu
