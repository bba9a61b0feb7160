// A circuit over all steps for one unit: forward, and backward with recomputed gates.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../cell.h"
#include "buffer.h"
#include "gate_conv.h"
#include "kernels.h"
#include "norm.h"
#include "spike_tables.h"

namespace stc::STC_SIMD_NAMESPACE {

// What both directions do for one unit: reading strided inputs, spikes, gate convolutions, norms.
template <class T>
class Unit {
 public:
  using V = Simd<T>;
  using Real = typename V::Real;

  explicit Unit(const StcInputs<T>& in)
      : in_(in),
        l_(in.shape),
        // a row is read in whole vectors from any channel on, hence the slack
        row_(l_.padded_width * std::max(l_.outputs, l_.inputs) + V::kLanes),
        z_(2 * l_.unit_channels * l_.plane),
        y_(l_.unit_channels * l_.plane),
        words_(l_.conv_groups * l_.words * l_.plane),
        soft_(in.cell.spiking ? 0 : l_.unit_channels * l_.plane),
        soft_map_(in.cell.spiking ? 0 : l_.padded_height * l_.padded_width * l_.in_group),
        silent_(l_.conv_groups) {
    for (int64_t g = 0; g < l_.conv_groups; ++g) tables_.push_back({std::make_unique<SpikeTables<T>>(l_)});
    events_.reserve(l_, l_.pixels * l_.in_group);
  }

 protected:
  void locate(int64_t task) {
    n_ = task / l_.units;
    first_channel_ = task % l_.units * l_.unit_channels;
    first_group_ = task % l_.units * l_.conv_groups;
    first_norm_group_ = task % l_.units * l_.norm_groups;
  }

  // Elements of a state.
  int64_t state_size() const { return in_.shape.samples * in_.shape.channels * l_.pixels; }

  // Offset of a channel plane of this unit in a contiguous [T, N, C, H, W].
  int64_t offset(int64_t t, int64_t c) const {
    return ((t * in_.shape.samples + n_) * in_.shape.channels + first_channel_ + c) * l_.pixels;
  }

  // The unit's planes of a strided tensor, in place where rows follow each other, else gathered into `scratch`.
  Planes<T> planes(const Strided<const T>& x, int64_t t, T* scratch) const {
    const T* base = x.data + t * x.step + n_ * x.sample + first_channel_ * x.channel;
    if (x.column == 1 && x.row == l_.width) return {base, x.channel};
    for (int64_t c = 0; c < l_.unit_channels; ++c)
      for (int64_t h = 0; h < l_.height; ++h)
        for (int64_t w = 0; w < l_.width; ++w)
          scratch[c * l_.plane + h * l_.width + w] = base[c * x.channel + h * x.row + w * x.column];
    return {scratch, l_.plane};
  }

  void copy_state(const Strided<const T>& x, T* to) const {
    if (!x.data) {
      std::fill_n(to, l_.unit_channels * l_.plane, T(0));
      return;
    }
    const Planes<T> from = planes(x, 0, to);
    if (from.base == to) return;
    for (int64_t c = 0; c < l_.unit_channels; ++c) std::copy_n(from[c], l_.pixels, to + c * l_.plane);
  }

  void clear_spikes() { std::fill_n(words_.data(), l_.conv_groups * l_.words * l_.plane, 0u); }

  // Notes the spikes of one vector of pixels of a channel: as bits in spiking mode, as values in soft mode.
  void put_spikes(int64_t c, int64_t i, Real s) {
    if (!in_.cell.spiking) {
      V::store(soft_.data() + c * l_.plane + i, s);
      return;
    }
    const int64_t in_group = c % l_.in_group;
    uint32_t* words = words_.data() + (c / l_.in_group * l_.words + in_group / 32) * l_.plane + i;
    typename V::Word w;
    std::memcpy(&w, words, sizeof w);
    w |= V::narrow(s != T(0)) & int32_t(uint32_t(1) << in_group % 32);
    std::memcpy(words, &w, sizeof w);
  }

  // The spikes before the first step; false when one is neither 0 nor 1 in spiking mode.
  bool load_initial_spikes(T* scratch) {
    clear_spikes();
    if (!in_.spikes.data) {
      if (!in_.cell.spiking) std::fill_n(soft_.data(), l_.unit_channels * l_.plane, T(0));
      return true;
    }
    const Planes<T> spikes = planes(in_.spikes, 0, scratch);
    typename V::Mask wrong{};
    for (int64_t c = 0; c < l_.unit_channels; ++c)
      for (int64_t i = 0; i < l_.pixels; i += V::kLanes) {
        const Real s = V::load(spikes[c] + i, l_.pixels - i);
        if (in_.cell.spiking) wrong |= ~((s == T(0)) | (s == T(1)));
        put_spikes(c, i, s);
      }
    for (int k = 0; k < V::kLanes; ++k)
      if (wrong[k]) return false;
    return true;
  }

  template <class Cell>
  typename Cell::K coefficients(int64_t c) const {
    const int64_t channel = first_channel_ + c;
    typename Cell::K k{};
    k.threshold = V::broadcast(in_.threshold ? in_.threshold[channel] : in_.cell.threshold);
    for (int i = 0; i < Cell::kCoefficients; ++i)
      k.of[i] = V::broadcast(in_.coefficients[i * in_.shape.channels + channel]);
    return k;
  }

  T* z(int path, int64_t c) const { return z_.data() + (path * l_.unit_channels + c) * l_.plane; }
  PlaneWords words(int64_t group) const { return {words_.data() + group * l_.words * l_.plane, l_.plane}; }

  // z = both gate convolutions of the noted spikes.
  void convolve_gates(const T* packed) {
    const int64_t channels = l_.in_group;
    for (int64_t g = 0; g < l_.conv_groups; ++g) {
      const T* weights = packed + (first_group_ + g) * l_.gate_weights();
      if (in_.cell.spiking) {
        const Count fired = count_spikes(g);
        silent_[g] = fired.spikes == 0;
        if (silent_[g]) {
          for (int path = 0; path < 2; ++path) std::fill_n(z(path, g * channels), channels * l_.plane, T(0));
          continue;
        }
        if (tables_[g].of->pays(fired.spikes, fired.pixels)) {
          SpikeTables<T>& tables = tables_of(g, weights);
          tables.convolve(words(g).words);
          for (int64_t y = 0; y < l_.height; ++y) scatter_row(g, y, tables.row(y) + l_.pad * l_.outputs);
          continue;
        }
        events_.build(l_, words(g));
      } else {
        for (int64_t y = 0; y < l_.height; ++y)
          planes_to_row([&](int64_t c) { return soft_.data() + (g * channels + c) * l_.plane + y * l_.width; },
                        l_.width, channels, soft_map_.data() + ((y + l_.pad) * l_.padded_width + l_.pad) * channels,
                        channels);
      }
      for (int64_t y = 0; y < l_.height; ++y) {
        const T* row = row_.data();
        if (in_.cell.spiking) {
          event_conv_row(l_, events_, weights, y, row_.data());
          row += l_.pad * l_.outputs;
        } else {
          dense_conv_row(l_, soft_map_.data(), channels, channels, weights, l_.outputs, y, row_.data());
        }
        scatter_row(g, y, row);
      }
    }
  }

  struct Count {
    int64_t spikes, pixels;  // pixels that have a spike in a word
  };
  Count count_spikes(int64_t g) const {
    const PlaneWords word = words(g);
    Count count{};
    for (int64_t w = 0; w < l_.words; ++w)
      for (int64_t i = 0; i < l_.pixels; ++i) {
        count.spikes += __builtin_popcount(word(w, i));
        count.pixels += word(w, i) != 0;
      }
    return count;
  }

  // Row y of both gates of a group, [width][outputs], into z.
  void scatter_row(int64_t g, int64_t y, const T* row) const {
    const int64_t channels = l_.in_group;
    row_to_planes(row, l_.width, l_.outputs, 2 * channels, [&](int64_t o) {
      return z(o < channels ? 0 : 1, g * channels + (o < channels ? o : o - channels)) + y * l_.width;
    });
  }

  SpikeTables<T>& tables_of(int64_t g, const T* weights) {
    Tables& tables = tables_[g];
    if (tables.group != first_group_ + g) tables.of->build(weights);
    tables.group = first_group_ + g;
    return *tables.of;
  }

  Planes<T> norm_input(int norm, const Planes<T>& current) const {
    return norm == kCurrent ? current : Planes<T>{z(norm - kTemporal, 0), l_.plane};
  }

  ChannelNorm<V> channel_norm(int norm, const Moments& m, int64_t c) const {
    if (!in_.norm_weight[norm]) return {};
    return {Statistics<V>(m), in_.norm_weight[norm][first_channel_ + c], in_.norm_bias[norm][first_channel_ + c]};
  }

  const StcInputs<T>& in_;
  const Layout<T> l_;
  int64_t n_ = 0, first_channel_ = 0, first_group_ = 0, first_norm_group_ = 0;
  PixelEvents events_;
  Buffer<T> row_;             // one pixel-major row
  Buffer<T> z_;               // [2][unit_channels][plane]
  Buffer<T> y_;               // current, where it must be gathered
  Buffer<uint32_t> words_;    // [conv_groups][words][plane]
  Buffer<T> soft_;            // soft spikes [unit_channels][plane]
  Buffer<T> soft_map_;        // soft spikes of a group, pixel-major with halo
  std::vector<char> silent_;  // [conv_groups]: not one spike in the group

  struct Tables {
    std::unique_ptr<SpikeTables<T>> of;
    int64_t group = -1;  // whose weights they are made of
  };
  std::vector<Tables> tables_;  // [conv_groups]
};

template <class Cell>
class ForwardUnit : Unit<typename Cell::Scalar> {
  using T = typename Cell::Scalar;

 public:
  ForwardUnit(const StcForward<T>& p, const T* packed)
      : Unit<T>(p.in), p_(p), packed_(packed), states_(Cell::kStates * this->l_.unit_channels * this->l_.plane) {}

  bool run(int64_t task) {
    this->locate(task);
    if (!this->load_initial_spikes(this->y_.data())) return false;
    for (int k = 0; k < Cell::kStates; ++k) this->copy_state(p_.in.states[k], state(k, 0));
    for (int64_t t = 0; t < p_.in.shape.steps; ++t) step(t);
    for (int k = 0; k < Cell::kStates; ++k)
      for (int64_t c = 0; c < this->l_.unit_channels; ++c)
        std::copy_n(state(k, c), this->l_.pixels, p_.states[k] + this->offset(0, c));
    return true;
  }

 private:
  using V = typename Unit<T>::V;
  using Real = typename V::Real;

  T* state(int k, int64_t c) const { return states_.data() + (k * this->l_.unit_channels + c) * this->l_.plane; }

  void step(int64_t t) {
    const Layout<T>& l = this->l_;
    const Planes<T> current = this->planes(p_.in.current, t, this->y_.data());
    this->convolve_gates(packed_);
    this->clear_spikes();
    for (int64_t g = 0; g < l.norm_groups; ++g) {
      Moments m[kNorms];
      for (int norm = 0; norm < kNorms; ++norm)
        if (p_.in.norm_weight[norm])
          m[norm] = moments(this->norm_input(norm, current), g * l.norm_channels, l.norm_channels, l.pixels, p_.in.eps);
      if (p_.norm_stats) {
        const int64_t group = this->first_norm_group_ + g;
        double* stats =
            p_.norm_stats + ((t * p_.in.shape.samples + this->n_) * p_.in.shape.norm_groups + group) * kNorms * 2;
        for (int norm = 0; norm < kNorms; ++norm) {
          stats[2 * norm] = m[norm].mean;
          stats[2 * norm + 1] = m[norm].rstd;
        }
      }
      for (int64_t c = g * l.norm_channels; c < (g + 1) * l.norm_channels; ++c) update(t, c, m, current[c]);
    }
    if (p_.packed_spikes) store_packed(t);
  }

  void update(int64_t t, int64_t c, const Moments (&m)[kNorms], const T* current) {
    const Layout<T>& l = this->l_;
    const auto options = p_.in.cell;
    const ChannelNorm<V> norm_x = this->channel_norm(kCurrent, m[kCurrent], c);
    const ChannelNorm<V> norm_a = this->channel_norm(kTemporal, m[kTemporal], c);
    const ChannelNorm<V> norm_b = this->channel_norm(kSpatial, m[kSpatial], c);
    const T *za = this->z(0, c), *zb = this->z(1, c);
    const typename Cell::K k = this->template coefficients<Cell>(c);
    const int64_t out = this->offset(t, c), sequence = p_.in.shape.steps * this->state_size();
    for (int64_t i = 0; i < l.pixels; i += V::kLanes) {
      const int64_t left = l.pixels - i;
      Real states[Cell::kStates], potentials[Cell::kPotentials];
      for (int j = 0; j < Cell::kStates; ++j) states[j] = V::load(state(j, c) + i);
      Cell::integrate(states, norm_x(V::load(current + i, left)), norm_a(V::load(za + i)), norm_b(V::load(zb + i)), k,
                      potentials);
      const Real s = Cell::settle(potentials, k, options, states);
      for (int j = 0; j < Cell::kStates; ++j) V::store(state(j, c) + i, states[j]);
      this->put_spikes(c, i, s);
      if (p_.spikes) V::store(p_.spikes + out + i, s, left);
      if (p_.potentials)
        for (int j = 0; j < Cell::kPotentials; ++j)
          V::store(p_.potentials + j * sequence + out + i, potentials[j], left);
      if (p_.v_seq) V::store(p_.v_seq + out + i, states[0], left);
    }
  }

  void store_packed(int64_t t) {
    const Layout<T>& l = this->l_;
    const int64_t bytes = (l.in_group + 7) / 8;
    for (int64_t g = 0; g < l.conv_groups; ++g) {
      const int64_t group = (t * p_.in.shape.samples + this->n_) * p_.in.shape.groups + this->first_group_ + g;
      uint8_t* out = p_.packed_spikes + group * l.pixels * bytes;
      const uint32_t* words = this->words(g).words;
      for (int64_t i = 0; i < l.pixels; ++i)
        for (int64_t b = 0; b < bytes; ++b) *out++ = uint8_t(words[b / 4 * l.plane + i] >> 8 * (b % 4));
    }
  }

  const StcForward<T>& p_;
  const T* packed_;
  Buffer<T> states_;  // [kStates][unit_channels][plane]
};

template <class Cell>
class BackwardUnit : Unit<typename Cell::Scalar> {
  using T = typename Cell::Scalar;

 public:
  BackwardUnit(const StcBackward<T>& p, const CpuBuffers<T>& buffers)
      : Unit<T>(p.in),
        p_(p),
        buffers_(buffers),
        grad_states_(Cell::kStates * this->l_.unit_channels * this->l_.plane),
        grad_s_(this->l_.unit_channels * this->l_.plane),
        grad_(kNorms * this->l_.unit_channels * this->l_.plane),
        map_(this->l_.padded_height * this->l_.padded_width * this->l_.outputs),
        states_(Cell::kStates * this->l_.unit_channels * this->l_.plane),
        gather_(2 * this->l_.unit_channels * this->l_.plane) {
    channel_events_.reserve(this->l_, band_rows(this->l_));
  }

  void run(int64_t task) {
    const Layout<T>& l = this->l_;
    this->locate(task);
    partial_weights_ =
        buffers_.partial_weights + (this->n_ * p_.in.shape.groups + this->first_group_) * l.gate_weights();
    std::fill_n(partial_weights_, l.conv_groups * l.gate_weights(), T(0));
    partial_sums_ = buffers_.partial_sums + (this->n_ * p_.in.shape.channels + this->first_channel_) * kChannelSums;
    std::fill_n(partial_sums_, l.unit_channels * kChannelSums, 0.0);
    for (int k = 0; k < Cell::kStates; ++k) this->copy_state(p_.grad_states_out[k], grad_state(k, 0));
    std::fill_n(grad_s_.data(), l.unit_channels * l.plane, T(0));

    for (int64_t t = p_.in.shape.steps - 1; t >= 0; --t) step(t);

    for (int64_t c = 0; c < l.unit_channels; ++c) {
      for (int k = 0; k < Cell::kStates; ++k)
        std::copy_n(grad_state(k, c), l.pixels, p_.grad_states[k] + this->offset(0, c));
      if (p_.grad_spikes) std::copy_n(grad_s_.data() + c * l.plane, l.pixels, p_.grad_spikes + this->offset(0, c));
    }
  }

 private:
  using V = typename Unit<T>::V;
  using Real = typename V::Real;

  T* state(int k, int64_t c) const { return states_.data() + (k * this->l_.unit_channels + c) * this->l_.plane; }
  T* grad_state(int k, int64_t c) const {
    return grad_states_.data() + (k * this->l_.unit_channels + c) * this->l_.plane;
  }
  T* grad(int norm, int64_t c) const { return grad_.data() + (norm * this->l_.unit_channels + c) * this->l_.plane; }

  void step(int64_t t) {
    const Layout<T>& l = this->l_;
    restore_state_before(t);
    const Planes<T> current = this->planes(p_.in.current, t, this->y_.data());
    this->convolve_gates(buffers_.gate_weights);
    Planes<T> grad_spikes{}, grad_v_seq{};
    if (p_.grad_spikes_out.data) grad_spikes = this->planes(p_.grad_spikes_out, t, gather_.data());
    if (p_.grad_v_seq_out.data)
      grad_v_seq = this->planes(p_.grad_v_seq_out, t, gather_.data() + l.unit_channels * l.plane);

    for (int64_t g = 0; g < l.norm_groups; ++g) {
      const int64_t group = this->first_norm_group_ + g;
      const double* stats =
          p_.norm_stats + ((t * p_.in.shape.samples + this->n_) * p_.in.shape.norm_groups + group) * kNorms * 2;
      Moments m[kNorms];
      for (int norm = 0; norm < kNorms; ++norm) m[norm] = {stats[2 * norm], stats[2 * norm + 1]};
      // of weight * gradient, and of that times the standardised input, over the norm group
      double mean_grad[kNorms] = {}, mean_product[kNorms] = {};
      for (int64_t c = g * l.norm_channels; c < (g + 1) * l.norm_channels; ++c) {
        double* sums = partial_sums_ + c * kChannelSums;
        double product[kNorms] = {}, plain[kNorms] = {};
        differentiate_cell(t, c, m, current[c], grad_spikes.base ? grad_spikes[c] : nullptr,
                           grad_v_seq.base ? grad_v_seq[c] : nullptr, product, plain, sums);
        for (int norm = 0; norm < kNorms; ++norm) {
          if (!p_.in.norm_weight[norm]) continue;
          sums[2 * norm] += product[norm];
          sums[2 * norm + 1] += plain[norm];
          const double weight = p_.in.norm_weight[norm][this->first_channel_ + c];
          mean_product[norm] += weight * product[norm] / double(l.norm_channels * l.pixels);
          mean_grad[norm] += weight * plain[norm] / double(l.norm_channels * l.pixels);
        }
      }
      for (int norm = 0; norm < kNorms; ++norm)
        for (int64_t c = g * l.norm_channels; c < (g + 1) * l.norm_channels; ++c)
          differentiate_norm(this->channel_norm(norm, m[norm], c), this->norm_input(norm, current)[c],
                             T(mean_grad[norm]), T(mean_product[norm]), grad(norm, c),
                             norm == kCurrent ? p_.grad_current + this->offset(t, c) : nullptr);
    }
    differentiate_convolutions(t);
  }

  // The states of step t - 1 into states_, and notes s_{t-1}.
  void restore_state_before(int64_t t) {
    const Layout<T>& l = this->l_;
    if (t == 0) {
      this->load_initial_spikes(gather_.data());
      for (int k = 0; k < Cell::kStates; ++k) this->copy_state(p_.in.states[k], state(k, 0));
      return;
    }
    this->clear_spikes();
    const auto options = p_.in.cell;
    for (int64_t c = 0; c < l.unit_channels; ++c) {
      const typename Cell::K k = this->template coefficients<Cell>(c);
      for (int64_t i = 0; i < l.pixels; i += V::kLanes) {
        Real potentials[Cell::kPotentials], states[Cell::kStates];
        for (int j = 0; j < Cell::kPotentials; ++j) potentials[j] = V::load(potential(j, t - 1, c) + i, l.pixels - i);
        this->put_spikes(c, i, Cell::settle(potentials, k, options, states));
        for (int j = 0; j < Cell::kStates; ++j) V::store(state(j, c) + i, states[j]);
      }
    }
  }

  const T* potential(int k, int64_t t, int64_t c) const {
    return p_.potentials + k * p_.in.shape.steps * this->state_size() + this->offset(t, c);
  }

  // Gradients of the three norms' outputs into grad_, of the states before into grad_states_; sums over the plane for
  // the norms, and for threshold and coefficients into `sums`.
  void differentiate_cell(int64_t t, int64_t c, const Moments (&m)[kNorms], const T* current, const T* grad_spikes,
                          const T* grad_v_seq, double (&product)[kNorms], double (&plain)[kNorms], double* sums) {
    const Layout<T>& l = this->l_;
    const auto options = p_.in.cell;
    const ChannelNorm<V> norm_x = this->channel_norm(kCurrent, m[kCurrent], c);
    const ChannelNorm<V> norm_a = this->channel_norm(kTemporal, m[kTemporal], c);
    const ChannelNorm<V> norm_b = this->channel_norm(kSpatial, m[kSpatial], c);
    const T *za = this->z(0, c), *zb = this->z(1, c);
    T* grad_s = grad_s_.data() + c * l.plane;
    const typename Cell::K k = this->template coefficients<Cell>(c);
    T *grad_x = grad(kCurrent, c), *grad_a = grad(kTemporal, c), *grad_b = grad(kSpatial, c);
    constexpr int64_t kBlock = 128 * V::kLanes;  // keeps the single-precision sums short
    for (int64_t begin = 0; begin < l.pixels; begin += kBlock) {
      Real sum_product[kNorms] = {}, sum_plain[kNorms] = {};
      typename Cell::K grad_k{};
      for (int64_t i = begin; i < std::min(l.pixels, begin + kBlock); i += V::kLanes) {
        // lanes past the last pixel carry zero gradients, and so add nothing to the sums
        const int64_t left = l.pixels - i;
        Real gs = V::load(grad_s + i), before[Cell::kStates], grad_states[Cell::kStates];
        Real potentials[Cell::kPotentials], grad_potentials[Cell::kPotentials];
        for (int j = 0; j < Cell::kStates; ++j) {
          before[j] = V::load(state(j, c) + i);
          grad_states[j] = V::load(grad_state(j, c) + i);
        }
        for (int j = 0; j < Cell::kPotentials; ++j) potentials[j] = V::load(potential(j, t, c) + i, left);
        if (grad_spikes) gs += V::load(grad_spikes + i, left);
        if (grad_v_seq) grad_states[0] += V::load(grad_v_seq + i, left);
        const Real x = norm_x.standardise(V::load(current + i, left));
        const Real a = norm_a.standardise(V::load(za + i));
        const Real b = norm_b.standardise(V::load(zb + i));
        Cell::settle_backward(potentials, gs, grad_states, k, options, grad_potentials, grad_k);
        const CircuitGradients<Real> g =
            Cell::integrate_backward(before, norm_x.affine(x), norm_a.affine(a), norm_b.affine(b), potentials,
                                     grad_potentials, k, grad_states, grad_k);
        for (int j = 0; j < Cell::kStates; ++j) V::store(grad_state(j, c) + i, grad_states[j]);
        V::store(grad_x + i, g.current);
        V::store(grad_a + i, g.temporal);
        V::store(grad_b + i, g.spatial);
        sum_plain[kCurrent] += g.current;
        sum_plain[kTemporal] += g.temporal;
        sum_plain[kSpatial] += g.spatial;
        sum_product[kCurrent] += g.current * x;
        sum_product[kTemporal] += g.temporal * a;
        sum_product[kSpatial] += g.spatial * b;
      }
      for (int norm = 0; norm < kNorms; ++norm) {
        product[norm] += V::sum(sum_product[norm]);
        plain[norm] += V::sum(sum_plain[norm]);
      }
      if (p_.grad_threshold) sums[kThresholdSum] += V::sum(grad_k.threshold);
      if (p_.grad_coefficients)
        for (int j = 0; j < Cell::kCoefficients; ++j) sums[kCoefficientSums + j] += V::sum(grad_k.of[j]);
    }
  }

  // Through a GroupNorm; in place, or to `out`.
  void differentiate_norm(const ChannelNorm<V>& norm, const T* x, T mean_grad, T mean_product, T* grad, T* out) {
    const Layout<T>& l = this->l_;
    for (int64_t i = 0; i < l.pixels; i += V::kLanes) {
      const int64_t left = l.pixels - i;
      const Real xhat = norm.standardise(V::load(x + i, left));
      const Real result = norm.backward(V::load(grad + i), xhat, mean_grad, mean_product);
      if (out)
        V::store(out + i, result, left);
      else
        V::store(grad + i, result);
    }
  }

  // Weight gradients, and the gradient of s_{t-1} into grad_s_.
  void differentiate_convolutions(int64_t t) {
    const Layout<T>& l = this->l_;
    const int64_t channels = l.in_group;
    const bool wants_grad_s = !p_.gradient_detach && (t > 0 || p_.grad_spikes);
    for (int64_t g = 0; g < l.conv_groups; ++g) {
      if (this->silent_[g] && !wants_grad_s) continue;
      for (int64_t y = 0; y < l.height; ++y)
        planes_to_row(
            [&](int64_t o) {
              const int norm = o < channels ? kTemporal : kSpatial;
              return grad(norm, g * channels + (o < channels ? o : o - channels)) + y * l.width;
            },
            l.width, 2 * channels, map_.data() + ((y + l.pad) * l.padded_width + l.pad) * l.outputs, l.outputs);
      T* grad_weights = partial_weights_ + g * l.gate_weights();
      if (p_.in.cell.spiking)
        event_weight_gradient(l, channel_events_, this->words(g), band_rows(l), map_.data(), grad_weights);
      else
        dense_weight_gradient(l, this->soft_.data() + g * channels * l.plane, map_.data(), grad_weights);
      if (!wants_grad_s) continue;
      const T* weights = buffers_.transposed_weights + (this->first_group_ + g) * l.transposed_weights();
      for (int64_t y = 0; y < l.height; ++y) {
        dense_conv_row(l, map_.data(), 2 * channels, l.outputs, weights, l.inputs, y, this->row_.data());
        row_to_planes(this->row_.data(), l.width, l.inputs, channels,
                      [&](int64_t c) { return grad_s_.data() + (g * channels + c) * l.plane + y * l.width; });
      }
    }
  }

  const StcBackward<T>& p_;
  const CpuBuffers<T>& buffers_;
  ChannelEvents channel_events_;
  T* partial_weights_ = nullptr;
  double* partial_sums_ = nullptr;  // [unit_channels][kChannelSums]
  Buffer<T> grad_states_;           // [kStates][unit_channels][plane]: after step t, then before it
  Buffer<T> grad_s_;                // of s_t through the gates of step t + 1
  Buffer<T> grad_;                  // [kNorms][unit_channels][plane]
  Buffer<T> map_;                   // gradients of both convolutions of a group, pixel-major with zero halo
  Buffer<T> states_;                // [kStates][unit_channels][plane]: after step t - 1
  Buffer<T> gather_;                // upstream gradients, where they must be gathered
};

}  // namespace stc::STC_SIMD_NAMESPACE
