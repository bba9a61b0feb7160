// The source lines at which threads synchronise: counted, and to be disabled one by one for barrier mutants.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "runtime.h"

namespace emu {

const char* name_of(Op op);

inline const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

inline std::string name_of(const Where& where) {
  return std::string(base_name(where.file)) + ":" + std::to_string(where.line);
}

inline bool same_place(const Where& a, const Where& b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

class Sites {
 public:
  // Counts a call; true if it is to do nothing.
  bool skips(Op op, const Where& where) {
    // The same file can have several names in memory, one a translation unit: the address is only a quick way in.
    Cached& cached = cache_[(reinterpret_cast<uintptr_t>(where.file) / 8 + unsigned(where.line)) % cache_.size()];
    if (cached.file != where.file || cached.line != where.line || cached.site->op != op) {
      cached = {where.file, where.line, &find_or_add(op, where)};
    }
    ++cached.site->count;
    return cached.site->disabled;
  }

  bool disable(const std::string& name);
  void enable_all();
  void reset_counts();
  std::string json() const;

 private:
  struct Site {
    std::string name;  // file:line
    Where where;
    Op op;
    uint64_t count = 0;
    bool disabled = false;
  };

  struct Cached {
    const char* file = nullptr;
    int line = 0;
    Site* site = nullptr;
  };

  Site& find_or_add(Op op, const Where& where);

  std::deque<Site> sites_;
  std::vector<std::string> disabled_;
  std::array<Cached, 256> cache_;
};

extern Sites sites;

}  // namespace emu
