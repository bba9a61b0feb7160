// The scan functions of cpu/kernels.h, for every instruction set that this processor has: against the cells of cell.h
// one neuron at a time, for ragged sizes, channels of any stride, and tasks in any order.
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <type_traits>
#include <vector>

#include "cell_table.h"
#include "check.h"
#include "cpu/kernels.h"
#include "scalar_math.h"

namespace {

using stc::ScanShape, stc::ScanTasks, stc::kScanTable;

template <class T>
const stc::CpuKernels<T>& table(const stc::CpuCapability& capability) {
  if constexpr (std::is_same_v<T, float>)
    return *capability.float32;
  else
    return *capability.float64;
}

// Vectors of any instruction set are aligned in it.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};

// All arrays of one call; outputs start as NaN, so that what is not written shows.
template <class T>
struct Call {
  using Array = std::vector<T, AlignedAllocator<T>>;
  ScanShape shape;
  int rows;
  Array threshold, coefficients, current, states[stc::kMaxStates];
  Array spikes, states_out[stc::kMaxStates], v_seq, potentials;
  Array grad_spikes, grad_states_out[stc::kMaxStates], grad_v_seq;
  Array grad_current, grad_states[stc::kMaxStates], grad_threshold, grad_coefficients;
  stc::ScanForward<T> forward{};
  stc::ScanBackward<T> backward{};

  // `full`: with all that may be absent.
  Call(int neuron, const ScanShape& s, bool spiking, bool hard_reset, bool full)
      : shape(s), rows(1 + kScanTable[neuron].coefficients) {
    constexpr int64_t kGap = 3;  // between the steps of the current
    std::mt19937 random(unsigned(s.neurons + 7 * neuron));
    std::normal_distribution<float> normal;
    const auto draw = [&](Array& to, int64_t size, float scale = 1, float offset = 0) -> const T* {
      to.resize(size);
      for (T& x : to) x = T(offset + scale * normal(random));
      return to.data();
    };
    const int64_t sequence = s.steps * s.neurons;
    auto& in = forward.in;
    in.shape = s;
    in.neuron = neuron;
    in.cell = {T(0.625), T(-0.25), T(2.5), stc::Surrogate::kAtan, hard_reset, false, spiking, {}};
    in.cell.slope = stc::surrogate_slope(in.cell.surrogate, in.cell.alpha);
    if (full) in.threshold = draw(threshold, s.channels, 0.1f, 0.6f);
    in.coefficients = draw(coefficients, (rows - 1) * s.channels, 0.2f, 0.5f);
    in.current = draw(current, s.steps * (s.neurons + kGap));
    in.current_step = s.neurons + kGap;
    backward.grad_spikes_out = draw(grad_spikes, full ? sequence : s.neurons);
    backward.grad_spikes_repeats = !full;
    backward.grad_v_seq_out = full ? draw(grad_v_seq, sequence) : nullptr;
    forward.spikes = fill(spikes, sequence);
    forward.v_seq = full ? fill(v_seq, sequence) : nullptr;
    forward.potentials = fill(potentials, kScanTable[neuron].potentials * sequence);
    for (int i = 0; i < kScanTable[neuron].states; ++i) {
      in.states[i] = full ? draw(states[i], s.neurons) : nullptr;
      forward.states[i] = fill(states_out[i], s.neurons);
      backward.grad_states_out[i] = full ? draw(grad_states_out[i], s.neurons) : nullptr;
      backward.grad_states[i] = fill(grad_states[i], s.neurons);
    }
    backward.in = in;
    backward.potentials = potentials.data();
    backward.grad_current = fill(grad_current, sequence);
    if (full) backward.grad_threshold = fill(grad_threshold, s.channels);
    if (rows > 1) backward.grad_coefficients = fill(grad_coefficients, (rows - 1) * s.channels);
  }

  T* fill(Array& to, int64_t size) {
    to.assign(size, std::numeric_limits<T>::quiet_NaN());
    return to.data();
  }

  void run(const stc::CpuKernels<T>& kernels, bool one_by_one) {
    const ScanTasks tasks(shape);
    std::vector<double> sums(tasks.count() * rows * tasks.width(), std::numeric_limits<double>::quiet_NaN());
    if (!one_by_one) {
      kernels.scan_forward(forward, 0, tasks.count());
      kernels.scan_backward(backward, sums.data(), 0, tasks.count());
      return kernels.scan_reduce(backward, sums.data(), rows, 0, rows);
    }
    for (int64_t task = tasks.count() - 1; task >= 0; --task) kernels.scan_forward(forward, task, task + 1);
    for (int64_t task = tasks.count() - 1; task >= 0; --task)
      kernels.scan_backward(backward, sums.data(), task, task + 1);
    for (int row = rows - 1; row >= 0; --row) kernels.scan_reduce(backward, sums.data(), rows, row, row + 1);
  }

  std::vector<const Array*> outputs() const {
    std::vector<const Array*> all{&spikes, &v_seq, &potentials, &grad_current, &grad_threshold, &grad_coefficients};
    for (int i = 0; i < stc::kMaxStates; ++i) all.insert(all.end(), {&states_out[i], &grad_states[i]});
    return all;
  }
};

// One neuron after the other, step by step; its own potentials in the backward pass.
template <class T>
void plain(Call<T>& c) {
  const ScanShape& s = c.shape;
  const auto in = c.forward.in;
  std::vector<double> grad_threshold(s.channels), grad_coefficients((c.rows - 1) * s.channels);
  stc::ScanCells::visit(in.neuron, [&](auto tag) {
    using Cell = typename decltype(tag)::template With<stc::test::ScalarMath<T>>;
    using K = typename Cell::K;
    constexpr int kStates = Cell::kStates, kPotentials = Cell::kPotentials, kCoefficients = Cell::kCoefficients;
    for (int64_t i = 0; i < s.neurons; ++i) {
      const int64_t channel = i / s.channel_stride % s.channels;
      K k{}, sum{};
      k.threshold = in.threshold ? in.threshold[channel] : in.cell.threshold;
      for (int j = 0; j < kCoefficients; ++j) k.of[j] = in.coefficients[j * s.channels + channel];
      const auto initial = [&](T(&state)[kStates]) {
        for (int j = 0; j < kStates; ++j) state[j] = in.states[j] ? in.states[j][i] : T(0);
      };
      const auto place = [&](int64_t t, int j) { return (j * s.steps + t) * s.neurons + i; };
      T state[kStates], potential[kPotentials], grad[kStates];
      initial(state);
      for (int64_t t = 0; t < s.steps; ++t) {
        Cell::integrate(state, in.current[t * in.current_step + i], k, in.cell, potential);
        c.spikes[place(t, 0)] = Cell::settle(potential, k, in.cell, state);
        if (c.forward.v_seq) c.v_seq[place(t, 0)] = state[0];
        for (int j = 0; j < kPotentials; ++j) c.potentials[place(t, j)] = potential[j];
      }
      for (int j = 0; j < kStates; ++j) {
        c.states_out[j][i] = state[j];
        grad[j] = c.backward.grad_states_out[j] ? c.backward.grad_states_out[j][i] : T(0);
      }
      for (int64_t t = s.steps - 1; t >= 0; --t) {
        T before[kStates], grad_potential[kPotentials];
        initial(before);
        if (t > 0) {
          for (int j = 0; j < kPotentials; ++j) potential[j] = c.potentials[place(t - 1, j)];
          Cell::settle(potential, k, in.cell, before);
        }
        for (int j = 0; j < kPotentials; ++j) potential[j] = c.potentials[place(t, j)];
        if (c.backward.grad_v_seq_out) grad[0] += c.grad_v_seq[place(t, 0)];
        Cell::settle_backward(potential, c.grad_spikes[c.backward.grad_spikes_repeats ? i : place(t, 0)], grad, k,
                              in.cell, grad_potential, sum);
        Cell::integrate_backward(before, in.current[t * in.current_step + i], potential, grad_potential, k, in.cell,
                                 grad, c.grad_current[place(t, 0)], sum);
      }
      for (int j = 0; j < kStates; ++j) c.grad_states[j][i] = grad[j];
      grad_threshold[channel] += sum.threshold;
      for (int j = 0; j < kCoefficients; ++j) grad_coefficients[j * s.channels + channel] += sum.of[j];
    }
  });
  for (size_t i = 0; i < c.grad_threshold.size(); ++i) c.grad_threshold[i] = T(grad_threshold[i]);
  for (size_t i = 0; i < c.grad_coefficients.size(); ++i) c.grad_coefficients[i] = T(grad_coefficients[i]);
}

template <class T>
void check_call(const stc::CpuCapability& capability, int neuron, const ScanShape& s, bool spiking, bool hard_reset,
                bool full) {
  // Soft spikes are smooth; hard ones may differ where rounding does, and are compared in double alone.
  if (spiking && sizeof(T) == 4) return;
  const double allowed = 1000 * double(std::numeric_limits<T>::epsilon());
  Call<T> found(neuron, s, spiking, hard_reset, full), again = Call<T>(neuron, s, spiking, hard_reset, full);
  Call<T> expected(neuron, s, spiking, hard_reset, full);
  found.run(table<T>(capability), false);
  again.run(table<T>(capability), true);
  plain(expected);
  const auto a = found.outputs(), b = again.outputs(), c = expected.outputs();
  for (size_t k = 0; k < a.size(); ++k) {
    CHECK(a[k]->size() == c[k]->size());
    CHECK(a[k]->empty() || !std::memcmp(a[k]->data(), b[k]->data(), a[k]->size() * sizeof(T)));
    double size = 1;
    for (const T x : *c[k]) size = std::max(size, std::abs(double(x)));
    for (size_t i = 0; i < a[k]->size(); ++i) CHECK_NEAR((*a[k])[i], (*c[k])[i], allowed * size);
  }
}

void check_capability(const stc::CpuCapability& capability) {
  // steps, neurons, channels, channel stride
  const ScanShape shapes[] = {
      {3, 1, 1, 1},
      {2, 3, 3, 1},
      {4, 17, 1, 17},
      {2, 2 * 5 * 7, 5, 7},
      {3, 2 * 7 * 5, 5, 1},
      {2, 512, 1, 512},
      {2, 1031, 1031, 1},
      {2, 3 * 523, 523, 1},
      {1, 3 * 2 * 900, 2, 900},
      {0, 6, 2, 3},
      {2, 0, 3, 1},
      // more blocks than tasks: channels that tasks share, and more channels than a task has
      {2, 5 * 7 * 2003, 7, 2003},
      {1, 70001, 70001, 1},
      {1, 2 * 35001, 35001, 1},
      {1, 23 * 3001, 23, 1},
  };
  for (const ScanShape& shape : shapes)
    for (int neuron = 0; neuron < int(kScanTable.size()); ++neuron) {
      if (shape.neurons > 10000 && std::strcmp(kScanTable[neuron].name, "plif")) continue;
      for (const bool spiking : {false, true})
        for (const bool hard_reset : {false, true})
          for (const bool full : {false, true}) {
            check_call<float>(capability, neuron, shape, spiking, hard_reset, full);
            check_call<double>(capability, neuron, shape, spiking, hard_reset, full);
          }
    }
  // larger than the caches: past them where vectors are aligned, and in longer blocks
  for (const int64_t neurons : {int64_t(1) << 22, (int64_t(1) << 22) + 5})
    check_call<float>(capability, 0, {2, neurons, 1, neurons}, false, false, false);
  for (int neuron = 0; neuron < int(kScanTable.size()); ++neuron)
    if (!std::strcmp(kScanTable[neuron].name, "plif"))
      check_call<float>(capability, neuron, {5, 7 * 250007, 7, 250007}, true, false, true);
}

}  // namespace

int main() {
  for (const stc::CpuCapability* capability = stc::cpu_capabilities(); capability->name; ++capability) {
    if (!capability->supported()) continue;
    const int before = stc::test::failures();
    check_capability(*capability);
    std::printf("%s: %s\n", capability->name, stc::test::failures() == before ? "passed" : "failed");
  }
  return stc::test::result();
}
