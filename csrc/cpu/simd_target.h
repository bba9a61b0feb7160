// Included first by every kernels_*.cpp: all that must be compiled for the baseline instruction set, so that no inline
// function of these headers is emitted with instructions that another processor lacks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../params.h"
#include "kernels.h"

// STC_TARGET("avx2,fma"): compile the functions that follow for these instructions, to the end of the file.
#define STC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define STC_TARGET(features) STC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define STC_TARGET_END STC_PRAGMA(clang attribute pop)
#else
#define STC_TARGET(features) STC_PRAGMA(GCC target(features))
#define STC_TARGET_END
#endif
