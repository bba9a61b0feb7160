// What a backward pass written in C++ says to those who ask too much of it; in Python the same texts are bindings'.
#pragma once

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>

#include "autograd_texts.h"

namespace stc {

// create_graph=True asks for gradients of gradients.
inline void require_no_second_derivative() {
  TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), kNoSecondDerivative);
}

inline torch::autograd::variable_list saved_variables(const torch::autograd::AutogradContext& ctx) {
  try {
    return ctx.get_saved_variables();
  } catch (const c10::Error& error) {
    TORCH_CHECK(!std::strstr(error.what(), "second time"), kGraphIsFreed);
    throw;
  }
}

}  // namespace stc
