// From code addresses to source lines.
#pragma once

#include <cstdint>
#include <string>

namespace emu {

// The source line that a return address comes back to and, where it was inlined, those it was inlined into; lines of
// the emulation itself are left out. Needs addr2line, without which it is the library and the offset in it.
std::string source_of(uintptr_t return_address);

// The same, followed by the lines of the functions that are being run on the way there, up to the kernel.
std::string call_chain(uintptr_t return_address);

}  // namespace emu
