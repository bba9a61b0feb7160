// The Math policy of cell.h for one neuron a thread.
#pragma once

#include <cmath>

#include "../surrogate.h"

namespace stc::cuda {

template <class T>
struct DeviceMath {
  using Real = T;
  using Scalar = T;
  static STC_HD T exp(T x) { return std::exp(x); }
  static STC_HD T reciprocal(T x) { return T(1) / x; }
  static STC_HD T atan(T x) { return std::atan(x); }
  static STC_HD T erf(T x) { return std::erf(x); }
  static STC_HD T abs(T x) { return x < T(0) ? -x : x; }
  static STC_HD T select(bool condition, T yes, T no) { return condition ? yes : no; }
};

}  // namespace stc::cuda
