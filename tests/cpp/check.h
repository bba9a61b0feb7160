// Checks that report and go on. A test's main ends with `return stc::test::result();`.
#pragma once

#include <cmath>
#include <cstdio>

namespace stc::test {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void report(const char* file, int line, const char* what) {
  constexpr int kMostShown = 20;
  if (++failures() <= kMostShown) std::printf("%s:%d: %s\n", file, line, what);
}

inline void report_values(const char* file, int line, const char* what, double found, double expected, double allowed) {
  char text[512];
  std::snprintf(text, sizeof text, "%s: found %.17g, expected %.17g within %.3g", what, found, expected, allowed);
  report(file, line, text);
}

inline int result() {
  if (failures()) std::printf("%d checks failed\n", failures());
  return failures() ? 1 : 0;
}

// True also for equal infinities and for two NaNs.
inline bool near(double found, double expected, double allowed) {
  if (std::isnan(expected)) return std::isnan(found);
  return found == expected || std::abs(found - expected) <= allowed;
}

}  // namespace stc::test

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) stc::test::report(__FILE__, __LINE__, "not " #condition); \
  } while (false)

#define CHECK_NEAR(found, expected, allowed)                                                             \
  do {                                                                                                   \
    const double found_ = (found), expected_ = (expected), allowed_ = (allowed);                         \
    if (!stc::test::near(found_, expected_, allowed_))                                                   \
      stc::test::report_values(__FILE__, __LINE__, #found " ~ " #expected, found_, expected_, allowed_); \
  } while (false)
