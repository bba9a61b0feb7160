// Errors of backward passes, which C++ and Python raise alike.
#pragma once

namespace stc {

inline constexpr const char* kGraphIsFreed =
    "stc_cuda: backward reached a sequence whose backward pass has run already. A state (v, spikes, ...) kept from "
    "that sequence still carries its graph: call detach() on the neuron (or on the state tensors) to cut the graph "
    "between two sequences, or reset() to start from zero. (To differentiate one loss twice, pass retain_graph=True.)";

inline constexpr const char* kNoSecondDerivative =
    "stc_cuda: got a backward pass with create_graph=True, and the kernels have no second derivatives (they would "
    "silently be zeros); pass backend='reference', or leave create_graph out";

}  // namespace stc
