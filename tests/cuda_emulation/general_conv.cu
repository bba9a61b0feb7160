// The convolutions of the general kernels alone, of numbers that a test makes.
#include "general_conv.cuh"
#include "launcher.h"

using namespace stc;
using namespace stc::cuda;

namespace {

template <class T, int Chunk, int Kernel>
int run(const Shape& s, int splits, const T* temporal, const T* spatial, const T* spikes, const T* grad, T* packed,
        T* transposed, T* sums, T* z, T* grad_spikes, T* grad_temporal, T* grad_spatial) {
  Launcher launch(nullptr);
  const int64_t weights = packed_weights(s, Chunk), in_group = s.channels / s.groups;
  const int64_t blocks = conv_pixel_blocks<T>(s) * s.groups * conv_chunks(in_group, Chunk);
  launch.flat(pack_gates<T, Chunk, false>, weights, s, temporal, spatial, packed);
  launch.flat(pack_gates<T, Chunk, true>, weights, s, temporal, spatial, transposed);
  launch.start(gate_convolutions<T, Chunk, Kernel, false>, dim3(unsigned(blocks)), kConvThreads, 0, s, packed, spikes,
               z);
  launch.start(gate_convolutions<T, Chunk, Kernel, true>, dim3(unsigned(blocks)), kConvThreads, 0, s, transposed, grad,
               grad_spikes);
  WeightTiles cut(s);
  cut.splits = splits;
  const bool five = WeightTiles::taps(s) == 5;
  const auto kernel = cut.maps ? (five ? weight_sums<T, 5, true> : weight_sums<T, 3, true>)
                               : (five ? weight_sums<T, 5, false> : weight_sums<T, 3, false>);
  for (bool first_step : {true, false})
    launch.start(kernel, dim3(unsigned(cut.blocks())), kConvThreads, 0, s, cut, grad, spikes, sums, first_step);
  launch.flat(weight_gradients<T>, s.channels * in_group * s.kernel * s.kernel, s, cut, sums, grad_temporal,
              grad_spatial);
  return launch.error();
}

template <class T>
int run(const int64_t* sizes, int splits, bool any_kernel, void* const* a) {
  const Shape s{1, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[5]};
  const auto at = [&](int i) { return static_cast<T*>(a[i]); };
  const auto call = [&](auto chunk, auto kernel) {
    return run<T, decltype(chunk)::value, decltype(kernel)::value>(s, splits, at(0), at(1), at(2), at(3), at(4), at(5),
                                                                   at(6), at(7), at(8), at(9), at(10));
  };
  const auto with_kernel = [&](auto chunk) {
    if (!any_kernel && s.kernel == 3) return call(chunk, std::integral_constant<int, 3>());
    if (!any_kernel && s.kernel == 5) return call(chunk, std::integral_constant<int, 5>());
    if (!any_kernel && s.kernel == 7) return call(chunk, std::integral_constant<int, 7>());
    return call(chunk, std::integral_constant<int, 0>());
  };
  if constexpr (sizeof(T) == 4)
    if (conv_chunk<T>(s.channels / s.groups) == 8) return with_kernel(std::integral_constant<int, 8>());
  return with_kernel(std::integral_constant<int, 4>());
}

}  // namespace

// sizes: N, C, H, W, K, groups. any_kernel: with the kernels that take every K. arrays: both weights, spikes [N, C,
// padded map], gradients of both gates [2, N, C, padded map]; room for both packed weights and for the sums of `splits`
// parts; then the convolutions [2, N, C, H, W], the gradient of the spikes and those of the weights, summed over two
// equal steps.
extern "C" __attribute__((visibility("default"))) int general_conv(int bytes, const int64_t* sizes, int splits,
                                                                   bool any_kernel, void* const* arrays) {
  return bytes == 4 ? run<float>(sizes, splits, any_kernel, arrays) : run<double>(sizes, splits, any_kernel, arrays);
}
