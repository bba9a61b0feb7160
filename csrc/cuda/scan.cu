#include "launch.h"
#include "launcher.h"
#include "scan.cuh"
#include "workspace.h"

namespace stc::cuda {
namespace {

template <class T>
struct Sums {
  T* neurons;        // [rows][neurons]
  double* channels;  // [rows][channels][splits]
};

template <class T>
bool learns(const ScanBackward<T>& p) {
  return p.grad_threshold || p.grad_coefficients;
}

int64_t rows(int neuron) {
  int64_t count = 1;
  ScanCells::visit(neuron, [&](auto tag) { count += decltype(tag)::template With<DeviceMath<float>>::kCoefficients; });
  return count;
}

// Whether fours of the arrays, which may be null, are aligned.
template <class T>
bool fours(const ScanInputs<T>& in, std::initializer_list<const void*> stored, std::initializer_list<const T*> others) {
  const uintptr_t size = in.storage == Storage::kState ? sizeof(T) : 2;
  bool aligned = in.shape.neurons % 4 == 0 && in.current_step % 4 == 0;
  for (const void* array : stored) aligned &= reinterpret_cast<uintptr_t>(array) % (4 * size) == 0;
  for (const T* array : others) aligned &= reinterpret_cast<uintptr_t>(array) % (4 * sizeof(T)) == 0;
  for (const T* state : in.states) aligned &= reinterpret_cast<uintptr_t>(state) % (4 * sizeof(T)) == 0;
  return aligned;
}

template <class T>
bool backward_in_fours(const ScanBackward<T>& p) {
  return sizeof(T) == 4 && fours(p.in, {p.in.current, p.grad_spikes_out, p.grad_current},
                                 {p.potentials, p.grad_v_seq_out, p.grad_states_out[0], p.grad_states_out[1],
                                  p.grad_states_out[2], p.grad_states[0], p.grad_states[1], p.grad_states[2]});
}

// The shape of the sums over the steps: of fours of neurons, where all fours lie in one channel.
ScanShape summed_shape(ScanShape s, bool four) {
  if (!four || s.channel_stride % 4) return s;
  s.neurons /= 4;
  s.channel_stride /= 4;
  return s;
}

template <class T>
Sums<T> carve(WorkspaceCarver& carver, const ScanBackward<T>& p, const ScanShape& summed) {
  if (!learns(p)) return {};
  const int64_t count = rows(p.in.neuron);
  T* neurons = carver.take<T>(count * summed.neurons);
  return {neurons, carver.take<double>(count * summed.channels * ChannelSums(summed).splits)};
}

// Calls f(the cell's tag, neurons a thread): four floats, or one number.
template <class T, class F>
void with_cell(const ScanInputs<T>& in, bool four, F f) {
  ScanCells::visit(in.neuron, [&](auto tag) {
    if constexpr (sizeof(T) == 4)
      if (four) return f(tag, std::integral_constant<int, 4>());
    f(tag, std::integral_constant<int, 1>());
  });
}

}  // namespace

template <class T>
int64_t scan_backward_workspace(const ScanBackward<T>& p) {
  WorkspaceCarver carver(nullptr);
  carve(carver, p, summed_shape(p.in.shape, backward_in_fours(p)));
  return carver.used();
}

template <class T>
int scan_forward(const ScanForward<T>& p, Stream stream) {
  Launcher launch(stream);
  const bool four =
      fours(p.in, {p.in.current, p.spikes}, {p.states[0], p.states[1], p.states[2], p.v_seq, p.potentials});
  with_cell(p.in, four, [&](auto tag, auto width) {
    launch.flat(cuda::scan_forward<decltype(tag)::template With, T, width()>, p.in.shape.neurons / width(), p);
  });
  return launch.error();
}

template <class T>
int scan_backward(const ScanBackward<T>& p, void* workspace, Stream stream) {
  const bool four = backward_in_fours(p);
  const ScanShape &s = p.in.shape, summed = summed_shape(s, four);
  WorkspaceCarver carver(workspace);
  const Sums<T> sums = carve(carver, p, summed);
  Launcher launch(stream);
  with_cell(p.in, four, [&](auto tag, auto width) {
    const int64_t threads = s.neurons / width();
    const bool together = summed.neurons < s.neurons;
    if (learns(p))
      launch.flat(cuda::scan_backward<decltype(tag)::template With, T, width(), true>, threads, p, sums.neurons,
                  together);
    else
      launch.flat(cuda::scan_backward<decltype(tag)::template With, T, width(), false>, threads, p, sums.neurons,
                  together);
  });
  if (!learns(p)) return launch.error();
  const int64_t count = rows(p.in.neuron);
  const ChannelSums cut(summed);
  if (s.neurons > 0)
    launch.blocks(channel_partials<T>, dim3(unsigned(cut.blocks(summed)), unsigned(count)), summed, cut, sums.neurons,
                  sums.channels);
  launch.flat(channel_sums<T>, count * s.channels, p, cut, count, sums.channels);
  return launch.error();
}

template int64_t scan_backward_workspace<float>(const ScanBackward<float>&);
template int64_t scan_backward_workspace<double>(const ScanBackward<double>&);
template int scan_forward<float>(const ScanForward<float>&, Stream);
template int scan_forward<double>(const ScanForward<double>&, Stream);
template int scan_backward<float>(const ScanBackward<float>&, void*, Stream);
template int scan_backward<double>(const ScanBackward<double>&, void*, Stream);

}  // namespace stc::cuda
