// The handlers that -fsanitize=undefined calls, so that no libubsan is needed and its findings are reports like others.
// Kernels are compiled with those of its checks that have a handler here.
#include <cstdint>
#include <string>

#include "reports.h"
#include "runtime.h"
#include "sites.h"

namespace {

// What the compiler passes first, whatever the check (gcc's ubsan.c).
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

struct TypeMismatch {
  SourceLocation location;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

emu::Where where(const void* data) {
  const auto& location = *static_cast<const SourceLocation*>(data);
  return {location.file ? location.file : "?", int(location.line)};
}

void note(const void* data, const char* what) {
  const std::string text = emu::name_of(where(data)) + ": " + what;
  emu::reports.add_once(text, text);
}

}  // namespace

extern "C" {

// The access would be next, and the processor may refuse it: the kernel stops here.
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, const void* pointer) {
  if (!pointer) emu::fail(where(data), "access through a null pointer");
  const int alignment = 1 << data->log_alignment;
  emu::expect_aligned("misaligned access", pointer, alignment, where(data));
}

void __ubsan_handle_out_of_bounds(void* data, void*) { note(data, "array index out of bounds"); }
void __ubsan_handle_shift_out_of_bounds(void* data, void*, void*) { note(data, "shift by too much or of a negative"); }
void __ubsan_handle_divrem_overflow(void* data, void*, void*) { emu::fail(where(data), "integer division by zero"); }
void __ubsan_handle_add_overflow(void* data, void*, void*) { note(data, "signed overflow in an addition"); }
void __ubsan_handle_sub_overflow(void* data, void*, void*) { note(data, "signed overflow in a subtraction"); }
void __ubsan_handle_mul_overflow(void* data, void*, void*) { note(data, "signed overflow in a multiplication"); }
void __ubsan_handle_negate_overflow(void* data, void*) { note(data, "signed overflow in a negation"); }
void __ubsan_handle_load_invalid_value(void* data, void*) { note(data, "a bool or enum that is none of its values"); }
}
