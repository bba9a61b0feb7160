// The step of each neuron, forward and backward, for one neuron (or one SIMD vector of them).
#pragma once

#include "params.h"
#include "surrogate.h"

namespace stc {

// STC-LIF (Autaptic Synaptic Circuit, ICML 2024). a and b are the normalised outputs of the temporal and the spatial
// pathway, I the normalised current:
//
//   u = (1 + tanh a) v + (1 + tanh b) I,   s = [u >= threshold],   v = u - threshold s   or   u (1 - s) + reset s
template <class Math>
struct StcLif {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  using Options = CellOptions<Scalar>;

  struct State {
    Real u;  // membrane potential before the reset
    Real s;  // spike
    Real v;  // membrane potential after the reset
  };

  struct Gradients {
    Real v;  // of v_{t-1}
    Real current, temporal, spatial;
  };

  // 1 + tanh z = 2 sigmoid(2 z), in (0, 2)
  static STC_HD Real gate(Real z) { return Scalar(2) * Math::reciprocal(Scalar(1) + Math::exp(Scalar(-2) * z)); }

  static STC_HD Real fire(Real u, const Options& o) {
    if (o.spiking) return Math::select(u >= o.threshold, Real{} + Scalar(1), Real{});
    return SurrogateMath<Math>::primitive(o.surrogate, o.alpha, u - o.threshold);
  }

  static STC_HD Real reset(Real u, Real s, const Options& o) {
    if (o.hard_reset) return u * (Scalar(1) - s) + o.reset * s;
    return u - o.threshold * s;
  }

  static STC_HD State step(Real v, Real current, Real a, Real b, const Options& o) {
    State next;
    next.u = gate(a) * v + gate(b) * current;
    next.s = fire(next.u, o);
    next.v = reset(next.u, next.s, o);
    return next;
  }

  // Gradient of u from those of s and v of the same step.
  static STC_HD Real grad_u(Real u, Real grad_s, Real grad_v, const Options& o) {
    const Real s = fire(u, o);
    if (!o.detach_reset) grad_s += (o.hard_reset ? o.reset - u : Real{} - o.threshold) * grad_v;
    return (o.hard_reset ? grad_v * (Scalar(1) - s) : grad_v) + grad_s * spike_slope(u, o);
  }

  // ds/du, the surrogate's derivative.
  static STC_HD Real spike_slope(Real u, const Options& o) {
    return SurrogateMath<Math>::derivative(o.surrogate, o.slope, u - o.threshold);
  }

  // v_before, current, a, b: values of the forward step.
  static STC_HD Gradients backward(Real v_before, Real current, Real a, Real b, Real grad_u) {
    const Real gate_a = gate(a), gate_b = gate(b);
    Gradients g;
    g.v = gate_a * grad_u;
    g.current = gate_b * grad_u;
    // d(1 + tanh z)/dz = 1 - tanh^2 z = gate (2 - gate)
    g.temporal = v_before * grad_u * gate_a * (Scalar(2) - gate_a);
    g.spatial = current * grad_u * gate_b * (Scalar(2) - gate_b);
    return g;
  }
};

}  // namespace stc
