#include "persistent_forward_launch.cuh"

namespace stc::cuda {

template void start_forward<StcLmh<FastMath>>(Launcher&, const StcForward<float>&, const Plan&,
                                              const ForwardWorkspace&);

}  // namespace stc::cuda
