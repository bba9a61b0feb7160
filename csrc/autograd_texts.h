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

inline constexpr const char* kNoForwardMode =
    "stc_cuda: got a tensor with a forward-mode tangent (torch.func.jvp, jacfwd, dual tensors), and the kernels have "
    "no "
    "forward-mode derivatives; pass backend='reference'";

}  // namespace stc
