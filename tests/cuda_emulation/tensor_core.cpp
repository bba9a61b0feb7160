// The arithmetic of mma.sync.m16n8k16.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "config.h"
#include "runtime.h"

namespace emu {

namespace {

typedef float Row __attribute__((vector_size(32)));

// As Fasi et al. (PeerJ Computer Science 2021) and Ootomo and Yokota (IJHPCA 2022) found tensor cores to add: exact
// products, all terms aligned to the largest exponent and cut off below, the sum cut to fp32.
float truncated_sum(float start, const float* a, const float (*b)[8], int column) {
  constexpr int kBits = 24;  // that are kept of the largest term: 23 and one to guard them
  double terms[17];
  terms[16] = start;
  double largest = std::fabs(terms[16]);
  for (int k = 0; k < 16; ++k) {
    terms[k] = double(a[k]) * b[k][column];
    largest = std::max(largest, std::fabs(terms[k]));
  }
  double sum = 0;
  if (largest > 0 && std::isfinite(largest)) {
    const double unit = std::ldexp(1.0, std::ilogb(largest) - kBits);
    for (const double term : terms) sum += std::trunc(term / unit);
    sum *= unit;
  } else {
    for (const double term : terms) sum += term;
  }
  const float nearest = float(sum);
  return std::fabs(double(nearest)) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

}  // namespace

void multiply_accumulate(float (&d)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
  if (config.mma_rounding == EMU_MMA_TRUNCATE) {
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) d[row][column] = truncated_sum(d[row][column], a[row], b, column);
    return;
  }
  for (int row = 0; row < 16; ++row) {
    Row sum = {}, start;
    for (int k = 0; k < 16; ++k) {
      Row factors;
      memcpy(&factors, b[k], sizeof factors);
      sum += a[row][k] * factors;
    }
    memcpy(&start, d[row], sizeof start);
    start += sum;
    memcpy(d[row], &start, sizeof start);
  }
}

}  // namespace emu
