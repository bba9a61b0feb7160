// cell.h, one neuron in double: the step against the equations written with tanh, backward against finite differences
// of those equations.
#include <cmath>
#include <random>

#include "cell.h"
#include "check.h"
#include "scalar_math.h"

using stc::Surrogate;
using Cell = stc::StcLif<stc::test::ScalarMath<double>>;

namespace {

constexpr double kPi = 3.14159265358979323846;

struct Inputs {
  double v, current, a, b;
};

struct Outputs {
  double u, s, v;
};

double primitive(const Cell::Options& o, double z) {
  if (o.surrogate == Surrogate::kAtan) return std::atan(kPi / 2 * o.alpha * z) / kPi + 0.5;
  return 0.5 + 0.5 * std::tanh(o.alpha * z / 2);
}

// With the spike of the reset given (`frozen`), it is a constant there: what detach_reset means.
Outputs step(const Inputs& x, const Cell::Options& o, const double* frozen = nullptr) {
  Outputs y;
  y.u = (1 + std::tanh(x.a)) * x.v + (1 + std::tanh(x.b)) * x.current;
  y.s = o.spiking ? (y.u >= o.threshold ? 1 : 0) : primitive(o, y.u - o.threshold);
  const double s = frozen ? *frozen : y.s;
  y.v = o.hard_reset ? y.u * (1 - s) + o.reset * s : y.u - o.threshold * s;
  return y;
}

double difference(const Inputs& x, double Inputs::* member, const Cell::Options& o, double grad_s, double grad_v) {
  constexpr double kStep = 1e-5;
  const double s = step(x, o).s;
  const auto loss = [&](double change) {
    Inputs moved = x;
    moved.*member += change;
    const Outputs y = step(moved, o, o.detach_reset ? &s : nullptr);
    return grad_s * y.s + grad_v * y.v;
  };
  return (loss(kStep) - loss(-kStep)) / (2 * kStep);
}

void check_neuron(const Inputs& x, const Cell::Options& o, double grad_s, double grad_v) {
  const Outputs expected = step(x, o);
  const double size = 1 + std::abs(x.v) + std::abs(x.current);
  const Cell::State found = Cell::step(x.v, x.current, x.a, x.b, o);
  CHECK_NEAR(found.u, expected.u, 1e-14 * size);
  CHECK_NEAR(found.s, expected.s, 1e-13 * size);
  CHECK_NEAR(found.v, expected.v, 1e-13 * size * size);

  const Cell::Gradients g = Cell::backward(x.v, x.current, x.a, x.b, Cell::grad_u(expected.u, grad_s, grad_v, o));
  if (!o.spiking) {
    const double allowed = 1e-7 * size * size;
    CHECK_NEAR(g.v, difference(x, &Inputs::v, o, grad_s, grad_v), allowed);
    CHECK_NEAR(g.current, difference(x, &Inputs::current, o, grad_s, grad_v), allowed);
    CHECK_NEAR(g.temporal, difference(x, &Inputs::a, o, grad_s, grad_v), allowed);
    CHECK_NEAR(g.spatial, difference(x, &Inputs::b, o, grad_s, grad_v), allowed);
    return;
  }
  // Hard spikes: the step is differentiated as its surrogate is, which finite differences cannot see.
  const double z = expected.u - o.threshold, p = primitive(o, z), x_atan = kPi / 2 * o.alpha * z;
  const double slope = o.surrogate == Surrogate::kAtan ? o.alpha / 2 / (1 + x_atan * x_atan) : o.alpha * p * (1 - p);
  const double reset_slope = o.detach_reset ? 0 : o.hard_reset ? o.reset - expected.u : -o.threshold;
  const double kept = o.hard_reset ? 1 - expected.s : 1;
  const double grad_u = kept * grad_v + slope * (grad_s + reset_slope * grad_v);
  const double tanh_a = std::tanh(x.a), tanh_b = std::tanh(x.b), allowed = 1e-12 * size * size;
  CHECK_NEAR(g.v, (1 + tanh_a) * grad_u, allowed);
  CHECK_NEAR(g.current, (1 + tanh_b) * grad_u, allowed);
  CHECK_NEAR(g.temporal, x.v * (1 - tanh_a * tanh_a) * grad_u, allowed);
  CHECK_NEAR(g.spatial, x.current * (1 - tanh_b * tanh_b) * grad_u, allowed);
}

}  // namespace

int main() {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  for (const Surrogate surrogate : {Surrogate::kSigmoid, Surrogate::kAtan})
    for (const bool hard_reset : {false, true})
      for (const bool detach_reset : {false, true})
        for (const bool spiking : {false, true})
          for (int i = 0; i < 500; ++i) {
            Cell::Options o{1 + 0.3 * normal(random),
                            0.5 * normal(random),
                            1 + 2 * std::abs(normal(random)),
                            surrogate,
                            hard_reset,
                            detach_reset,
                            spiking};
            o.slope = stc::surrogate_slope(o.surrogate, o.alpha);
            check_neuron({normal(random), 2 * normal(random), normal(random), normal(random)}, o, normal(random),
                         normal(random));
          }

  // Gates at 1, so that u is the sum: a spike at the threshold itself, none just below.
  const Cell::Options o{1, 0, 4, Surrogate::kSigmoid, false, false, true};
  CHECK(Cell::step(0.25, 0.75, 0, 0, o).s == 1);
  CHECK(Cell::step(0.25, std::nextafter(0.75, 0.0), 0, 0, o).s == 0);
  CHECK(std::isnan(Cell::step(NAN, 0, 0, 0, o).u));
  CHECK(std::isnan(Cell::step(1, 1, NAN, 0, o).u));
  // Closed and wide open gates.
  CHECK(Cell::gate(1e3) == 2);
  CHECK(Cell::gate(-1e3) == 0);
  return stc::test::result();
}
