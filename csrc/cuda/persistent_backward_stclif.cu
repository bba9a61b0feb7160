#include "persistent_backward_launch.cuh"

namespace stc::cuda {

template void start_backward<StcLif<FastMath>>(Launcher&, const StcBackward<float>&, const Plan&,
                                               const BackwardWorkspace&);

}  // namespace stc::cuda
