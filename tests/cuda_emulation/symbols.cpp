#include "symbols.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "sites.h"

namespace emu {

namespace {

bool is_own_source(const std::string& path) {
  for (const char* own : {"/cuda_emulation/emulation.h:", "/cuda_emulation/runtime.h:", "/cuda_emulation/runtime.cpp:"})
    if (path.find(own) != std::string::npos) return true;
  return false;
}

// Starts a command without libasan, should we have been started with it.
FILE* open_pipe(const char* command) {
  const char* preload = getenv("LD_PRELOAD");
  if (!preload) return popen(command, "r");
  const std::string kept = preload;
  unsetenv("LD_PRELOAD");
  FILE* pipe = popen(command, "r");
  setenv("LD_PRELOAD", kept.c_str(), 1);
  return pipe;
}

std::string ask_addr2line(const char* file, uintptr_t offset) {
  char command[4400];
  snprintf(command, sizeof command, "addr2line -ie '%s' 0x%zx 2>/dev/null", file, size_t(offset));
  std::string lines, unknown = std::string(base_name(file)) + "+0x";
  char line[4096];
  snprintf(line, sizeof line, "%zx", size_t(offset));
  unknown += line;
  FILE* pipe = open_pipe(command);
  if (!pipe) return unknown;
  bool any = false;
  while (fgets(line, sizeof line, pipe)) {
    line[strcspn(line, "\n")] = 0;
    if (char* note = strstr(line, " (discriminator")) *note = 0;
    if (line[0] == '?' || line[0] == ':') continue;
    any = true;
    if (is_own_source(line)) continue;
    if (!lines.empty()) lines += ", inlined at ";
    lines += base_name(line);
  }
  pclose(pipe);
  return any ? lines : unknown;
}

}  // namespace

std::string source_of(uintptr_t return_address) {
  static std::map<uintptr_t, std::string> known;
  const auto [entry, fresh] = known.insert({return_address, "?"});
  Dl_info library{};
  if (fresh && dladdr(reinterpret_cast<void*>(return_address), &library) && library.dli_fname) {
    // One back, into the call itself.
    const uintptr_t offset = return_address - 1 - reinterpret_cast<uintptr_t>(library.dli_fbase);
    entry->second = ask_addr2line(library.dli_fname, offset);
  }
  return entry->second;
}

std::string call_chain(uintptr_t return_address) {
  constexpr int kFrames = 64;
  void* frames[kFrames];
  const int count = backtrace(frames, kFrames);
  const auto* first = std::find(frames, frames + count, reinterpret_cast<void*>(return_address));
  std::string text = source_of(return_address);
  for (const auto* frame = first; frame < frames + count; ++frame) {
    const std::string caller = frame == first ? "" : source_of(reinterpret_cast<uintptr_t>(*frame));
    if (caller.find("+0x") != std::string::npos) break;  // where the thread started
    if (!caller.empty()) text += (text.empty() ? "" : ", called at ") + caller;
  }
  return text;
}

}  // namespace emu
