// The element-wise neurons over all steps: a block of neurons at a time, whose state stays in the first-level cache.
#pragma once

#include <algorithm>

#include "../cell.h"
#include "kernels.h"
#include "scan_tasks.h"
#include "simd.h"

// A loop's body, which the compiler would not inline everywhere: then each vector pays for a call, and for reading
// again what the loop could have kept in registers.
#define STC_LOOP_BODY __attribute__((always_inline))

namespace stc::STC_SIMD_NAMESPACE {

// Splits [first, first + count) at the ends of runs; calls f(offset, length, run).
template <class F>
void for_runs(const ScanShape& s, int64_t first, int64_t count, F f) {
  for (int64_t i = 0, run = first / s.channel_stride; i < count; ++run) {
    const int64_t length = std::min(count - i, (run + 1) * s.channel_stride - first - i);
    f(i, length, run);
    i += length;
  }
}

// The same where each run is one neuron: splits at the last channel; calls f(offset, length, run).
template <class F>
void for_rows(const ScanShape& s, int64_t first, int64_t count, F f) {
  for (int64_t i = 0; i < count;) {
    const int64_t length = std::min(count - i, s.channels - (first + i) % s.channels);
    f(i, length, first + i);
    i += length;
  }
}

// The value of its channel for each neuron.
template <class T>
void expand(const ScanShape& s, const T* of_channel, int64_t first, int64_t count, T* to) {
  if (s.channel_stride == 1)
    for_rows(s, first, count, [&](int64_t i, int64_t length, int64_t run) {
      std::copy_n(of_channel + run % s.channels, length, to + i);
    });
  else
    for_runs(s, first, count, [&](int64_t i, int64_t length, int64_t run) {
      std::fill_n(to + i, length, of_channel[run % s.channels]);
    });
}

// In double, in an order that only the shape decides.
template <class T>
double total(const T* x, int64_t count) {
  constexpr int kParts = 8;  // independent sums, so that one need not wait for the other
  double part[kParts] = {};
  int64_t i = 0;
  for (; i + kParts <= count; i += kParts)
    for (int k = 0; k < kParts; ++k) part[k] += double(x[i + k]);
  for (int k = 0; i + k < count; ++k) part[k] += double(x[i + k]);
  double sum = 0;
  for (int k = 0; k < kParts; ++k) sum += part[k];
  return sum;
}

// Adds the neurons of each channel to its sum; the first of the sums is that of `first_run`.
template <class T>
void collect(const ScanShape& s, const T* x, int64_t first, int64_t count, int64_t first_run, double* sums) {
  if (s.channel_stride == 1)
    for_rows(s, first, count, [&](int64_t i, int64_t length, int64_t run) {
      for (int64_t k = 0; k < length;) {
        const int64_t slot = (run + k - first_run) % s.channels, stretch = std::min(length - k, s.channels - slot);
        for (int64_t j = 0; j < stretch; ++j) sums[slot + j] += double(x[i + k + j]);
        k += stretch;
      }
    });
  else
    for_runs(s, first, count, [&](int64_t i, int64_t length, int64_t run) {
      sums[(run - first_run) % s.channels] += total(x + i, length);
    });
}

// What both directions do for a block of neurons.
template <class Cell, class T>
class ScanBlock {
 public:
  using V = Simd<T>;
  using Real = typename V::Real;
  using K = typename Cell::K;
  static constexpr int kStates = Cell::kStates, kPotentials = Cell::kPotentials, kCoefficients = Cell::kCoefficients;
  static constexpr int kSize = ScanTasks::kMaxBlock;

  explicit ScanBlock(const ScanInputs<T>& in) : in_(in) {}

 protected:
  void locate(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    if (in_.threshold)
      expand(in_.shape, in_.threshold, first, count, threshold_);
    else
      std::fill_n(threshold_, count, in_.cell.threshold);
    for (int k = 0; k < kCoefficients; ++k)
      expand(in_.shape, in_.coefficients + k * in_.shape.channels, first, count, coefficients_[k]);
  }

  void fetch(const T* from, T* to) const {
    if (from)
      std::copy_n(from + first_, count_, to);
    else
      std::fill_n(to, count_, T(0));
  }

  STC_HD K coefficients(int64_t i) const {
    K k;
    k.threshold = V::load(threshold_ + i);
    for (int j = 0; j < kCoefficients; ++j) k.of[j] = V::load(coefficients_[j] + i);
    return k;
  }

  // Of a sequence, where this block's neurons lie at a step.
  template <class P>
  P* at(P* sequence, int64_t t) const {
    return sequence ? sequence + t * in_.shape.neurons + first_ : nullptr;
  }
  template <class P>
  P* potential(P* potentials, int i, int64_t t) const {
    return at(potentials, i * in_.shape.steps + t);
  }

  // A sequence that a step writes, or none. A large one goes past the caches: nothing of it would stay, and a
  // cache line that is written in whole need not be fetched first. Lines of others are fetched ahead: `next` is where
  // the same neuron's is at the step after this one, seen from here.
  struct Output {
    T* data;
    bool streams;
    int64_t next = 0;

    STC_HD void prefetch(int64_t i) const {
      if (data && !streams) __builtin_prefetch(data + next + i, 1);
    }
  };
  Output output(T* data, int64_t next) const {
    return {data, ScanTasks::is_large(in_.shape) && reinterpret_cast<uintptr_t>(data) % sizeof(Real) == 0, next};
  }
  template <class Lanes>
  static STC_HD void put(const Output& to, int64_t i, Real x, Lanes lanes) {
    if (!to.data) return;
    if (to.streams && lanes == V::kLanes)
      V::stream(to.data + i, x);
    else
      V::store(to.data + i, x, lanes);
  }

  // Calls f(first neuron, lanes) for each vector; `lanes` is a constant, but for that of the last.
  template <class F>
  STC_HD void for_vectors(F f) const {
    const int64_t count = count_;
    int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) f(i, std::integral_constant<int64_t, V::kLanes>());
    if (i < count) f(i, count - i);
  }

  const ScanInputs<T>& in_;
  int64_t first_ = 0, count_ = 0;
  alignas(64) T threshold_[kSize] = {};
  alignas(64) T coefficients_[std::max(kCoefficients, 1)][kSize] = {};
};

template <class Cell, class T, bool Spiking>
class ScanForwardBlock : ScanBlock<Cell, T> {
  using Base = ScanBlock<Cell, T>;
  using Base::kPotentials;
  using Base::kStates;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit ScanForwardBlock(const ScanForward<T>& p) : Base(p.in), p_(p) {}

  void run(int64_t first, int64_t count) {
    this->locate(first, count);
    for (int i = 0; i < kStates; ++i) this->fetch(p_.in.states[i], states_[i]);
    for (int64_t t = 0; t < p_.in.shape.steps; ++t) step(t);
    for (int i = 0; i < kStates; ++i) std::copy_n(states_[i], count, p_.states[i] + first);
    V::fence();
  }

 private:
  void step(int64_t t) {
    CellOptions<T> o = p_.in.cell;
    o.spiking = Spiking;  // a constant to the compiler
    const T* current = p_.in.current + t * p_.in.current_step + this->first_;
    // Too far apart for the processor to see them coming: the same neurons at the next step, or the next block's first.
    const bool last = t + 1 == p_.in.shape.steps;
    const T* next = last ? p_.in.current + this->first_ + this->count_ : current + p_.in.current_step;
    const int64_t ahead = last ? this->count_ - t * p_.in.shape.neurons : p_.in.shape.neurons;
    const auto spikes = this->output(this->at(p_.spikes, t), ahead), v_seq = this->output(this->at(p_.v_seq, t), ahead);
    typename Base::Output potentials[kPotentials];
    for (int j = 0; j < kPotentials; ++j) potentials[j] = this->output(this->potential(p_.potentials, j, t), ahead);
    this->for_vectors([&](int64_t i, auto lanes) STC_LOOP_BODY {
      __builtin_prefetch(next + i);
      spikes.prefetch(i);
      v_seq.prefetch(i);
      for (const auto& potential : potentials) potential.prefetch(i);
      const auto k = this->coefficients(i);
      Real state[kStates], potential[kPotentials];
      for (int j = 0; j < kStates; ++j) state[j] = V::load(states_[j] + i);
      Cell::integrate(state, V::load(current + i, lanes), k, o, potential);
      const Real s = Cell::settle(potential, k, o, state);
      for (int j = 0; j < kStates; ++j) V::store(states_[j] + i, state[j]);
      this->put(spikes, i, s, lanes);
      this->put(v_seq, i, state[0], lanes);
      for (int j = 0; j < kPotentials; ++j) this->put(potentials[j], i, potential[j], lanes);
    });
  }

  const ScanForward<T>& p_;
  alignas(64) T states_[kStates][Base::kSize] = {};
};

// With Learns also the gradients of the threshold and of the coefficients.
template <class Cell, class T, bool Spiking, bool Learns>
class ScanBackwardBlock : ScanBlock<Cell, T> {
  using Base = ScanBlock<Cell, T>;
  using Base::kCoefficients;
  using Base::kPotentials;
  using Base::kStates;
  using typename Base::Real;
  using typename Base::V;

 public:
  explicit ScanBackwardBlock(const ScanBackward<T>& p) : Base(p.in), p_(p) {}

  // `sums`: of a task, [1 + kCoefficients][width] = threshold, coefficients.
  void run(int64_t first, int64_t count, int64_t first_run, int64_t width, double* sums) {
    this->locate(first, count);
    for (int i = 0; i < kStates; ++i) this->fetch(p_.grad_states_out[i], grads_[i]);
    if constexpr (Learns)
      for (auto& sum : sums_) std::fill_n(sum, Base::kSize, T(0));
    for (int64_t t = p_.in.shape.steps - 1; t >= 0; --t) step(t);
    for (int i = 0; i < kStates; ++i) std::copy_n(grads_[i], count, p_.grad_states[i] + first);
    V::fence();
    if constexpr (Learns)
      for (int i = 0; i <= kCoefficients; ++i)
        collect(p_.in.shape, sums_[i], first, count, first_run, sums + i * width);
  }

 private:
  void step(int64_t t) {
    CellOptions<T> o = p_.in.cell;
    o.spiking = Spiking;  // a constant to the compiler
    const T* current = Learns && p_.in.current ? p_.in.current + t * p_.in.current_step + this->first_ : nullptr;
    const T* grad_spikes = this->at(p_.grad_spikes_out, p_.grad_spikes_repeats ? 0 : t);
    const T* grad_v_seq = this->at(p_.grad_v_seq_out, t);
    const T *potentials[kPotentials], *potentials_before[kPotentials], *states_before[kStates];
    for (int j = 0; j < kPotentials; ++j) {
      potentials[j] = this->potential(p_.potentials, j, t);
      potentials_before[j] = potentials[j] - p_.in.shape.neurons;
    }
    for (int j = 0; j < kStates; ++j) states_before[j] = p_.in.states[j] ? p_.in.states[j] + this->first_ : nullptr;
    const auto grad_current = this->output(this->at(p_.grad_current, t), -p_.in.shape.neurons);
    const int64_t ahead = (Learns ? 2 : 1) * p_.in.shape.neurons;  // the step before is read for what the sums need
    this->for_vectors([&](int64_t i, auto lanes) STC_LOOP_BODY {
      for (int j = 0; j < kPotentials; ++j) __builtin_prefetch(potentials[j] - ahead + i);
      if (grad_spikes && !p_.grad_spikes_repeats) __builtin_prefetch(grad_spikes - p_.in.shape.neurons + i);
      grad_current.prefetch(i);
      const auto load = [&](const T* from) { return from ? V::load(from + i, lanes) : Real{}; };
      const auto k = this->coefficients(i);
      Real before[kStates], potential[kPotentials], grad_potential[kPotentials], grad_state[kStates];
      if (t > 0) {
        for (int j = 0; j < kPotentials; ++j) potential[j] = V::load(potentials_before[j] + i, lanes);
        Cell::settle(potential, k, o, before);
      } else {
        for (int j = 0; j < kStates; ++j) before[j] = load(states_before[j]);
      }
      for (int j = 0; j < kPotentials; ++j) potential[j] = V::load(potentials[j] + i, lanes);
      for (int j = 0; j < kStates; ++j) grad_state[j] = V::load(grads_[j] + i);
      grad_state[0] += load(grad_v_seq);
      typename Base::K grad{};
      Real grad_before[kStates], grad_x;
      Cell::settle_backward(potential, load(grad_spikes), grad_state, k, o, grad_potential, grad);
      Cell::integrate_backward(before, load(current), potential, grad_potential, k, o, grad_before, grad_x, grad);
      this->put(grad_current, i, grad_x, lanes);
      for (int j = 0; j < kStates; ++j) V::store(grads_[j] + i, grad_before[j]);
      if constexpr (Learns) {
        V::store(sums_[0] + i, V::load(sums_[0] + i) + grad.threshold);
        for (int j = 0; j < kCoefficients; ++j) V::store(sums_[1 + j] + i, V::load(sums_[1 + j] + i) + grad.of[j]);
      }
    });
  }

  const ScanBackward<T>& p_;
  alignas(64) T grads_[kStates][Base::kSize] = {};
  alignas(64) T sums_[Learns ? 1 + kCoefficients : 1][Learns ? Base::kSize : 1];
};

// Calls f(neuron's cell, spiking or not) with types.
template <class T, class F>
void with_scan_cell(const ScanInputs<T>& in, F f) {
  ScanCells::visit(in.neuron, [&](auto tag) {
    using Cell = typename decltype(tag)::template With<Simd<T>>;
    in.cell.spiking ? f(Cell(), std::true_type()) : f(Cell(), std::false_type());
  });
}

template <class T, class F>
void for_blocks(const ScanTasks& tasks, int64_t task, F f) {
  const int64_t end = tasks.begin(task + 1);
  for (int64_t first = tasks.begin(task); first < end; first += tasks.block())
    f(first, std::min(tasks.block(), end - first));
}

template <class T>
void scan_forward(const ScanForward<T>& p, int64_t begin, int64_t end) {
  const ScanTasks tasks(p.in.shape);
  with_scan_cell(p.in, [&](auto cell, auto spiking) {
    ScanForwardBlock<decltype(cell), T, spiking()> block(p);
    for (int64_t task = begin; task < end; ++task)
      for_blocks<T>(tasks, task, [&](int64_t first, int64_t count) { block.run(first, count); });
  });
}

template <class T>
void scan_backward(const ScanBackward<T>& p, double* partials, int64_t begin, int64_t end) {
  const ScanTasks tasks(p.in.shape);
  const int64_t width = tasks.width();
  with_scan_cell(p.in, [&](auto cell, auto spiking) {
    const auto run = [&](auto learns) {
      constexpr int kRows = 1 + decltype(cell)::kCoefficients;
      ScanBackwardBlock<decltype(cell), T, spiking(), learns()> block(p);
      for (int64_t task = begin; task < end; ++task) {
        double* sums = partials + (learns() ? task * kRows * width : 0);
        if (learns()) std::fill_n(sums, kRows * width, 0.0);
        const int64_t first_run = tasks.begin(task) / p.in.shape.channel_stride;
        for_blocks<T>(tasks, task,
                      [&](int64_t first, int64_t count) { block.run(first, count, first_run, width, sums); });
      }
    };
    p.grad_threshold || p.grad_coefficients ? run(std::true_type()) : run(std::false_type());
  });
}

template <class T>
void scan_reduce(const ScanBackward<T>& p, const double* partials, int64_t rows, int64_t begin, int64_t end) {
  const ScanTasks tasks(p.in.shape);
  const int64_t channels = p.in.shape.channels, width = tasks.width();
  for (int64_t row = begin; row < end; ++row) {
    T* out = row == 0 ? p.grad_threshold : p.grad_coefficients ? p.grad_coefficients + (row - 1) * channels : nullptr;
    if (!out) continue;
    std::vector<double> sums(channels);
    for (int64_t task = 0; task < tasks.count(); ++task) {
      const double* part = partials + (task * rows + row) * width;
      const int64_t first = tasks.first_channel(task);
      for (int64_t i = 0; i < width; ++i) sums[(first + i) % channels] += part[i];
    }
    for (int64_t c = 0; c < channels; ++c) out[c] = T(sums[c]);
  }
}

}  // namespace stc::STC_SIMD_NAMESPACE
