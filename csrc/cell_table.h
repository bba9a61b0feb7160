// What the operators and Python need to know of each neuron: its name and how many numbers it has.
#pragma once

#include <array>
#include <string_view>

#include "cell.h"

namespace stc {

struct CellInfo {
  const char* name;
  int states, potentials, coefficients;
};

namespace detail {

struct NoMath {
  using Real = double;
  using Scalar = double;
};

template <template <class> class... Cells>
constexpr std::array<CellInfo, sizeof...(Cells)> cell_table(CellList<Cells...>) {
  return {CellInfo{Cells<NoMath>::kName, Cells<NoMath>::kStates, Cells<NoMath>::kPotentials,
                   Cells<NoMath>::kCoefficients}...};
}

}  // namespace detail

// In the order of the lists.
constexpr auto kScanTable = detail::cell_table(ScanCells());
constexpr auto kCircuitTable = detail::cell_table(CircuitCells());

// The index of a neuron in one of the tables; -1 when it has none of this name.
template <size_t Size>
int find_cell(const std::array<CellInfo, Size>& table, std::string_view name) {
  for (size_t i = 0; i < Size; ++i)
    if (name == table[i].name) return int(i);
  return -1;
}

}  // namespace stc
