// The math policy of cell.h for one scalar, by the standard library.
#pragma once

#include <cmath>

namespace stc::test {

template <class T>
struct ScalarMath {
  using Scalar = T;
  using Real = T;
  static T exp(T x) { return std::exp(x); }
  static T reciprocal(T x) { return 1 / x; }
  static T atan(T x) { return std::atan(x); }
  static T erf(T x) { return std::erf(x); }
  static T abs(T x) { return std::abs(x); }
  static T select(bool condition, T yes, T no) { return condition ? yes : no; }
};

}  // namespace stc::test
