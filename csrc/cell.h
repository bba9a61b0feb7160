// The step of each neuron, forward and backward, for one neuron (or one SIMD vector of them).
//
// A step takes the states after the step before and the input to potentials (`integrate`), and those to the spike and
// to the states after the step (`settle`). The first potential is u, which the threshold decides on; the first state is
// the membrane potential v. Potentials are what a backward pass keeps of the forward pass: `settle` gives the states
// again.
//
//   integrate            states before, input -> potentials
//   settle               potentials -> spike, states after
//   settle_backward      gradients of spike and states after -> of the potentials
//   integrate_backward   gradients of the potentials -> of the states before and of the input
//
// The backward functions also add to the gradients of the coefficients. The input of a neuron in ScanCells is its
// current x; that of one in CircuitCells is the current and the gates' pre-activations a (temporal) and b (spatial).
//
// A new neuron is a struct here with a line in one of the two lists at the end, and a class in stc_cuda/neurons.
#pragma once

#include "params.h"
#include "surrogate.h"

namespace stc {

// What is the same in every step: the threshold, and the numbers that an equation has beside it.
template <class Real, int Count>
struct Coefficients {
  Real threshold;
  Real of[Count > 0 ? Count : 1];
};

template <class Math>
struct Firing {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  using Options = CellOptions<Scalar>;

  static STC_HD Real fire(Real u, Real threshold, const Options& o) {
    if (o.spiking) return Math::select(u >= threshold, Real{} + Scalar(1), Real{});
    return SurrogateMath<Math>::primitive(o.surrogate, o.alpha, u - threshold);
  }

  // ds/du, the surrogate's derivative.
  static STC_HD Real spike_slope(Real u, Real threshold, const Options& o) {
    return SurrogateMath<Math>::derivative(o.surrogate, o.slope, u - threshold);
  }
};

// Fires and resets by v = u - threshold s (soft) or v = u (1 - s) + reset s (hard); potentials after u become states
// as they are.
template <class Math, int States, int Count>
struct Resetting : Firing<Math> {
  using typename Firing<Math>::Real;
  using typename Firing<Math>::Scalar;
  using typename Firing<Math>::Options;
  static constexpr int kStates = States, kPotentials = States, kCoefficients = Count;
  using K = Coefficients<Real, Count>;

  static STC_HD Real reset(Real u, Real s, Real threshold, const Options& o) {
    if (o.hard_reset) return u * (Scalar(1) - s) + o.reset * s;
    return u - threshold * s;
  }

  static STC_HD Real settle(const Real (&potential)[States], const K& k, const Options& o, Real (&state)[States]) {
    const Real s = Firing<Math>::fire(potential[0], k.threshold, o);
    state[0] = reset(potential[0], s, k.threshold, o);
    for (int i = 1; i < States; ++i) state[i] = potential[i];
    return s;
  }

  static STC_HD void settle_backward(const Real (&potential)[States], Real grad_s, const Real (&grad_state)[States],
                                     const K& k, const Options& o, Real (&grad_potential)[States], K& grad) {
    const Real u = potential[0], grad_v = grad_state[0], s = Firing<Math>::fire(u, k.threshold, o);
    if (!o.detach_reset) grad_s += (o.hard_reset ? o.reset - u : -k.threshold) * grad_v;
    const Real through_spike = grad_s * Firing<Math>::spike_slope(u, k.threshold, o);
    grad_potential[0] = (o.hard_reset ? grad_v * (Scalar(1) - s) : grad_v) + through_spike;
    grad.threshold -= o.hard_reset ? through_spike : through_spike + s * grad_v;
    for (int i = 1; i < States; ++i) grad_potential[i] = grad_state[i];
  }
};

// ---- element-wise neurons ----------------------------------------------------------------------------------------

// u = v + x
template <class Math>
struct IntegrateFire : Resetting<Math, 1, 0> {
  using Base = Resetting<Math, 1, 0>;
  using typename Base::K;
  using typename Base::Options;
  using typename Base::Real;
  static constexpr const char* kName = "integrate_fire";

  static STC_HD void integrate(const Real (&v)[1], Real x, const K&, const Options&, Real (&u)[1]) { u[0] = v[0] + x; }

  static STC_HD void integrate_backward(const Real (&)[1], Real, const Real (&)[1], const Real (&grad_u)[1], const K&,
                                        const Options&, Real (&grad_v)[1], Real& grad_x, K&) {
    grad_v[0] = grad_x = grad_u[0];
  }
};

// u = rest + keep (v - rest) + gain x, with the potential of a hard reset, or 0, as the rest.
template <class Math>
struct Lif : Resetting<Math, 1, 2> {
  using Base = Resetting<Math, 1, 2>;
  using typename Base::K;
  using typename Base::Options;
  using typename Base::Real;
  using typename Base::Scalar;
  static constexpr const char* kName = "lif";
  enum { kKeep, kGain };

  static STC_HD void integrate(const Real (&v)[1], Real x, const K& k, const Options& o, Real (&u)[1]) {
    const Scalar rest = o.hard_reset ? o.reset : Scalar(0);
    u[0] = rest + k.of[kKeep] * (v[0] - rest) + k.of[kGain] * x;
  }

  static STC_HD void integrate_backward(const Real (&v)[1], Real x, const Real (&)[1], const Real (&grad_u)[1],
                                        const K& k, const Options& o, Real (&grad_v)[1], Real& grad_x, K& grad) {
    const Scalar rest = o.hard_reset ? o.reset : Scalar(0);
    grad_v[0] = k.of[kKeep] * grad_u[0];
    grad_x = k.of[kGain] * grad_u[0];
    grad.of[kKeep] += grad_u[0] * (v[0] - rest);
    grad.of[kGain] += grad_u[0] * x;
  }
};

// LIF whose keep and gain are learnt.
template <class Math>
struct Plif : Lif<Math> {
  static constexpr const char* kName = "plif";
};

// A dendrite d and a soma u:  d = D d + S v + x,  u = A d + B v
template <class Math>
struct Lmh : Resetting<Math, 2, 4> {
  using Base = Resetting<Math, 2, 4>;
  using typename Base::K;
  using typename Base::Options;
  using typename Base::Real;
  static constexpr const char* kName = "lmh";
  enum { kDendriteDecay, kSomaToDendrite, kDendriteToSoma, kSomaDecay };

  static STC_HD void integrate(const Real (&before)[2], Real x, const K& k, const Options&, Real (&potential)[2]) {
    const Real v = before[0], d = k.of[kDendriteDecay] * before[1] + k.of[kSomaToDendrite] * v + x;
    potential[0] = k.of[kDendriteToSoma] * d + k.of[kSomaDecay] * v;
    potential[1] = d;
  }

  static STC_HD void integrate_backward(const Real (&before)[2], Real, const Real (&potential)[2],
                                        const Real (&grad_potential)[2], const K& k, const Options&,
                                        Real (&grad_before)[2], Real& grad_x, K& grad) {
    const Real grad_u = grad_potential[0], grad_d = grad_potential[1] + k.of[kDendriteToSoma] * grad_u;
    grad_before[0] = k.of[kSomaDecay] * grad_u + k.of[kSomaToDendrite] * grad_d;
    grad_before[1] = k.of[kDendriteDecay] * grad_d;
    grad_x = grad_d;
    grad.of[kDendriteDecay] += grad_d * before[1];
    grad.of[kSomaToDendrite] += grad_d * before[0];
    grad.of[kDendriteToSoma] += grad_u * potential[1];
    grad.of[kSomaDecay] += grad_u * before[0];
  }
};

// A soma h and a dendrite d, reset by the spike g of the step before:
//   d = d - S h + x - R g,  u = h + P d - threshold g
// The states after the step are u, d and the spike.
template <class Math>
struct TcLif : Firing<Math> {
  using typename Firing<Math>::Real;
  using typename Firing<Math>::Options;
  static constexpr const char* kName = "tclif";
  static constexpr int kStates = 3, kPotentials = 2, kCoefficients = 3;
  using K = Coefficients<Real, kCoefficients>;
  enum { kSomaToDendrite, kDendriteToSoma, kResetGain };

  static STC_HD void integrate(const Real (&before)[3], Real x, const K& k, const Options&, Real (&potential)[2]) {
    const Real d = before[1] - k.of[kSomaToDendrite] * before[0] + x - k.of[kResetGain] * before[2];
    potential[0] = before[0] + k.of[kDendriteToSoma] * d - k.threshold * before[2];
    potential[1] = d;
  }

  static STC_HD Real settle(const Real (&potential)[2], const K& k, const Options& o, Real (&state)[3]) {
    state[0] = potential[0];
    state[1] = potential[1];
    return state[2] = Firing<Math>::fire(potential[0], k.threshold, o);
  }

  static STC_HD void settle_backward(const Real (&potential)[2], Real grad_s, const Real (&grad_state)[3], const K& k,
                                     const Options& o, Real (&grad_potential)[2], K& grad) {
    const Real through_spike = (grad_s + grad_state[2]) * Firing<Math>::spike_slope(potential[0], k.threshold, o);
    grad_potential[0] = grad_state[0] + through_spike;
    grad_potential[1] = grad_state[1];
    grad.threshold -= through_spike;
  }

  static STC_HD void integrate_backward(const Real (&before)[3], Real, const Real (&potential)[2],
                                        const Real (&grad_potential)[2], const K& k, const Options& o,
                                        Real (&grad_before)[3], Real& grad_x, K& grad) {
    const Real grad_u = grad_potential[0], grad_d = grad_potential[1] + k.of[kDendriteToSoma] * grad_u;
    grad_before[0] = grad_u - k.of[kSomaToDendrite] * grad_d;
    grad_before[1] = grad_d;
    grad_before[2] = o.detach_reset ? Real{} : -k.of[kResetGain] * grad_d - k.threshold * grad_u;
    grad_x = grad_d;
    grad.of[kSomaToDendrite] -= grad_d * before[0];
    grad.of[kDendriteToSoma] += grad_u * potential[1];
    grad.of[kResetGain] -= grad_d * before[2];
    grad.threshold -= grad_u * before[2];
  }
};

// Gated LIF, reset by the spike g of the step before; it fires strictly above the threshold:
//   u = keep v (1 - gate g) - leak + gain x - lower g
// The states after the step are u and the spike.
template <class Math>
struct Glif : Firing<Math> {
  using typename Firing<Math>::Real;
  using typename Firing<Math>::Scalar;
  using typename Firing<Math>::Options;
  static constexpr const char* kName = "glif";
  static constexpr int kStates = 2, kPotentials = 1, kCoefficients = 5;
  using K = Coefficients<Real, kCoefficients>;
  enum { kKeep, kGate, kLeak, kGain, kLower };

  static STC_HD void integrate(const Real (&before)[2], Real x, const K& k, const Options&, Real (&u)[1]) {
    const Real v = before[0], g = before[1];
    u[0] = k.of[kKeep] * v * (Scalar(1) - k.of[kGate] * g) - k.of[kLeak] + k.of[kGain] * x - k.of[kLower] * g;
  }

  static STC_HD Real settle(const Real (&u)[1], const K& k, const Options& o, Real (&state)[2]) {
    state[0] = u[0];
    state[1] = o.spiking ? Math::select(u[0] > k.threshold, Real{} + Scalar(1), Real{})
                         : Firing<Math>::fire(u[0], k.threshold, o);
    return state[1];
  }

  static STC_HD void settle_backward(const Real (&u)[1], Real grad_s, const Real (&grad_state)[2], const K& k,
                                     const Options& o, Real (&grad_u)[1], K& grad) {
    const Real through_spike = (grad_s + grad_state[1]) * Firing<Math>::spike_slope(u[0], k.threshold, o);
    grad_u[0] = grad_state[0] + through_spike;
    grad.threshold -= through_spike;
  }

  static STC_HD void integrate_backward(const Real (&before)[2], Real x, const Real (&)[1], const Real (&grad_u)[1],
                                        const K& k, const Options& o, Real (&grad_before)[2], Real& grad_x, K& grad) {
    const Real v = before[0], g = before[1], open = Scalar(1) - k.of[kGate] * g;
    const Real closing = k.of[kKeep] * v;
    grad_before[0] = k.of[kKeep] * open * grad_u[0];
    grad_before[1] = o.detach_reset ? Real{} : -(closing * k.of[kGate] + k.of[kLower]) * grad_u[0];
    grad_x = k.of[kGain] * grad_u[0];
    grad.of[kKeep] += grad_u[0] * v * open;
    grad.of[kGate] -= grad_u[0] * closing * g;
    grad.of[kLeak] -= grad_u[0];
    grad.of[kGain] += grad_u[0] * x;
    grad.of[kLower] -= grad_u[0] * g;
  }
};

// ---- neurons of the Spatio-Temporal Circuit (ICML 2024) ----------------------------------------------------------

// 1 + tanh z = 2 sigmoid(2 z), in (0, 2)
template <class Math>
STC_HD typename Math::Real gate(typename Math::Real z) {
  using Scalar = typename Math::Scalar;
  return Scalar(2) * Math::reciprocal(Scalar(1) + Math::exp(Scalar(-2) * z));
}

// Gradients of a circuit's input.
template <class Real>
struct CircuitGradients {
  Real current, temporal, spatial;
};

// u = (1 + tanh a) v + (1 + tanh b) I
template <class Math>
struct StcLif : Resetting<Math, 1, 0> {
  using Base = Resetting<Math, 1, 0>;
  using typename Base::K;
  using typename Base::Real;
  using typename Base::Scalar;
  static constexpr const char* kName = "stclif";

  static STC_HD void integrate(const Real (&v)[1], Real current, Real a, Real b, const K&, Real (&u)[1]) {
    u[0] = gate<Math>(a) * v[0] + gate<Math>(b) * current;
  }

  static STC_HD CircuitGradients<Real> integrate_backward(const Real (&v)[1], Real current, Real a, Real b,
                                                          const Real (&)[1], const Real (&grad_u)[1], const K&,
                                                          Real (&grad_v)[1], K&) {
    const Real gate_a = gate<Math>(a), gate_b = gate<Math>(b);
    grad_v[0] = gate_a * grad_u[0];
    // d(1 + tanh z)/dz = 1 - tanh^2 z = gate (2 - gate)
    return {gate_b * grad_u[0], v[0] * grad_u[0] * gate_a * (Scalar(2) - gate_a),
            current * grad_u[0] * gate_b * (Scalar(2) - gate_b)};
  }
};

// u = keep (1 + tanh a) v + gain (1 + tanh b) I
template <class Math>
struct StcPlif : Resetting<Math, 1, 2> {
  using Base = Resetting<Math, 1, 2>;
  using typename Base::K;
  using typename Base::Real;
  using typename Base::Scalar;
  static constexpr const char* kName = "stcplif";
  enum { kKeep, kGain };

  static STC_HD void integrate(const Real (&v)[1], Real current, Real a, Real b, const K& k, Real (&u)[1]) {
    u[0] = k.of[kKeep] * gate<Math>(a) * v[0] + k.of[kGain] * gate<Math>(b) * current;
  }

  static STC_HD CircuitGradients<Real> integrate_backward(const Real (&v)[1], Real current, Real a, Real b,
                                                          const Real (&)[1], const Real (&grad_u)[1], const K& k,
                                                          Real (&grad_v)[1], K& grad) {
    const Real gate_a = gate<Math>(a), gate_b = gate<Math>(b);
    const Real kept = k.of[kKeep] * grad_u[0], gained = k.of[kGain] * grad_u[0];
    grad_v[0] = gate_a * kept;
    grad.of[kKeep] += grad_u[0] * gate_a * v[0];
    grad.of[kGain] += grad_u[0] * gate_b * current;
    return {gate_b * gained, v[0] * kept * gate_a * (Scalar(2) - gate_a),
            current * gained * gate_b * (Scalar(2) - gate_b)};
  }
};

// d = D d + S v + (1 + tanh b) I,  u = A d + B (1 + tanh a) v
template <class Math>
struct StcLmh : Resetting<Math, 2, 4> {
  using Base = Resetting<Math, 2, 4>;
  using typename Base::K;
  using typename Base::Real;
  using typename Base::Scalar;
  static constexpr const char* kName = "stclmh";
  enum { kDendriteDecay, kSomaToDendrite, kDendriteToSoma, kSomaDecay };

  static STC_HD void integrate(const Real (&before)[2], Real current, Real a, Real b, const K& k,
                               Real (&potential)[2]) {
    const Real v = before[0];
    const Real d = k.of[kDendriteDecay] * before[1] + k.of[kSomaToDendrite] * v + gate<Math>(b) * current;
    potential[0] = k.of[kDendriteToSoma] * d + k.of[kSomaDecay] * gate<Math>(a) * v;
    potential[1] = d;
  }

  static STC_HD CircuitGradients<Real> integrate_backward(const Real (&before)[2], Real current, Real a, Real b,
                                                          const Real (&potential)[2], const Real (&grad_potential)[2],
                                                          const K& k, Real (&grad_before)[2], K& grad) {
    const Real v = before[0], gate_a = gate<Math>(a), gate_b = gate<Math>(b), grad_u = grad_potential[0];
    const Real grad_d = grad_potential[1] + k.of[kDendriteToSoma] * grad_u;
    const Real decayed = k.of[kSomaDecay] * grad_u;
    grad_before[0] = gate_a * decayed + k.of[kSomaToDendrite] * grad_d;
    grad_before[1] = k.of[kDendriteDecay] * grad_d;
    grad.of[kDendriteDecay] += grad_d * before[1];
    grad.of[kSomaToDendrite] += grad_d * v;
    grad.of[kDendriteToSoma] += grad_u * potential[1];
    grad.of[kSomaDecay] += grad_u * gate_a * v;
    return {gate_b * grad_d, v * decayed * gate_a * (Scalar(2) - gate_a),
            current * grad_d * gate_b * (Scalar(2) - gate_b)};
  }
};

// ---- the lists ---------------------------------------------------------------------------------------------------

template <template <class> class C>
struct CellTag {
  template <class Math>
  using With = C<Math>;
};

// What those want to know of a cell who do not compute with it.
struct CellTraits {
  const char* name;
  int states, potentials, coefficients;
};

struct NoMath {
  using Real = double;
  using Scalar = double;
};

template <template <class> class... Cells>
struct CellList {
  static constexpr int kCount = sizeof...(Cells);

  static CellTraits traits(int index) {
    constexpr CellTraits kTraits[] = {
        {Cells<NoMath>::kName, Cells<NoMath>::kStates, Cells<NoMath>::kPotentials, Cells<NoMath>::kCoefficients}...};
    return kTraits[index];
  }

  // Calls f(CellTag of the cell of this index).
  template <class F>
  static void visit(int index, F f) {
    int i = 0;
    ((i++ == index ? f(CellTag<Cells>()) : void()), ...);
  }
};

using ScanCells = CellList<IntegrateFire, Lif, Plif, Lmh, TcLif, Glif>;
using CircuitCells = CellList<StcLif, StcPlif, StcLmh>;

}  // namespace stc
