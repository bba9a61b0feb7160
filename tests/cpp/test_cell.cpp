// cell.h, one neuron in double, every cell of both lists: the step against the equations written out here, backward
// against finite differences of those equations.
#include <cmath>
#include <random>
#include <string_view>

#include "cell.h"
#include "check.h"
#include "scalar_math.h"

using Math = stc::test::ScalarMath<double>;
using Options = stc::CellOptions<double>;
using stc::Surrogate;

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kMaxCoefficients = 5;

// All that a step depends on: the states before, the input (of a circuit: current, a, b), threshold and coefficients.
struct Neuron {
  double states[stc::kMaxStates], inputs[3], threshold, k[kMaxCoefficients];
};

struct Step {
  double s, states[stc::kMaxStates], potentials[stc::kMaxStates];
};

double primitive(const Options& o, double z) {
  if (o.surrogate == Surrogate::kAtan) return std::atan(kPi / 2 * o.alpha * z) / kPi + 0.5;
  return 0.5 + 0.5 * std::tanh(o.alpha * z / 2);
}

double slope(const Options& o, double z) {
  const double p = primitive(o, z), x = kPi / 2 * o.alpha * z;
  return o.surrogate == Surrogate::kAtan ? o.alpha / 2 / (1 + x * x) : o.alpha * p * (1 - p);
}

// Where `base` is given, spikes are differentiable around it as the surrogate is, hard ones too, and its spike is the
// constant that detach_reset makes of a reset.
Step step(std::string_view name, const Neuron& x, const Options& o, const Neuron* base = nullptr) {
  Step y{};
  const double *k = x.k, v = x.states[0], input = x.inputs[0];
  const double open_a = 1 + std::tanh(x.inputs[1]), open_b = 1 + std::tanh(x.inputs[2]);
  const double rest = o.hard_reset ? o.reset : 0;
  double u = 0, second = 0;
  if (name == "integrate_fire") {
    u = v + input;
  } else if (name == "lif" || name == "plif") {
    u = rest + k[0] * (v - rest) + k[1] * input;
  } else if (name == "lmh") {
    second = k[0] * x.states[1] + k[1] * v + input;
    u = k[2] * second + k[3] * v;
  } else if (name == "tclif") {
    second = x.states[1] - k[0] * v + input - k[2] * x.states[2];
    u = v + k[1] * second - x.threshold * x.states[2];
  } else if (name == "glif") {
    const double g = x.states[1];
    u = k[0] * v * (1 - k[1] * g) - k[2] + k[3] * input - k[4] * g;
  } else if (name == "stclif") {
    u = open_a * v + open_b * input;
  } else if (name == "stcplif") {
    u = k[0] * open_a * v + k[1] * open_b * input;
  } else if (name == "stclmh") {
    second = k[0] * x.states[1] + k[1] * v + open_b * input;
    u = k[2] * second + k[3] * open_a * v;
  } else {
    stc::test::report(__FILE__, __LINE__, "a cell without equations");
  }
  const bool reset_follows = name == "tclif" || name == "glif";  // by the spike in the next step
  const double z = u - x.threshold;
  y.s = !o.spiking ? primitive(o, z) : (name == "glif" ? z > 0 : z >= 0) ? 1 : 0;
  double reset = y.s;
  if (base) {
    const Step there = step(name, *base, o);
    const double z_there = there.potentials[0] - base->threshold;
    if (o.spiking) y.s = there.s + slope(o, z_there) * (z - z_there);
    reset = o.detach_reset ? there.s : y.s;
  }
  y.potentials[0] = u;
  y.potentials[1] = second;
  y.states[0] = reset_follows ? u : o.hard_reset ? u * (1 - reset) + o.reset * reset : u - x.threshold * reset;
  y.states[1] = name == "glif" ? y.s : second;
  y.states[2] = y.s;
  return y;
}

template <class Cell>
constexpr bool kIsCircuit = std::string_view(Cell::kName).substr(0, 3) == "stc";

template <class Cell>
typename Cell::K constants(const Neuron& x) {
  typename Cell::K k{};
  k.threshold = x.threshold;
  for (int i = 0; i < Cell::kCoefficients; ++i) k.of[i] = x.k[i];
  return k;
}

template <class Cell>
Step run(const Neuron& x, const Options& o) {
  Step y{};
  double before[Cell::kStates], states[Cell::kStates], potentials[Cell::kPotentials];
  for (int i = 0; i < Cell::kStates; ++i) before[i] = x.states[i];
  const auto k = constants<Cell>(x);
  if constexpr (kIsCircuit<Cell>)
    Cell::integrate(before, x.inputs[0], x.inputs[1], x.inputs[2], k, potentials);
  else
    Cell::integrate(before, x.inputs[0], k, o, potentials);
  y.s = Cell::settle(potentials, k, o, states);
  for (int i = 0; i < Cell::kStates; ++i) y.states[i] = states[i];
  for (int i = 0; i < Cell::kPotentials; ++i) y.potentials[i] = potentials[i];
  return y;
}

// Gradients of grad.s * s + sum of grad.states * states.
template <class Cell>
Neuron differentiate(const Neuron& x, const Options& o, const Step& grad) {
  Neuron g{};
  double before[Cell::kStates], grad_states[Cell::kStates];
  double potentials[Cell::kPotentials], grad_potentials[Cell::kPotentials];
  const Step y = run<Cell>(x, o);
  for (int i = 0; i < Cell::kStates; ++i) {
    before[i] = x.states[i];
    grad_states[i] = grad.states[i];
  }
  for (int i = 0; i < Cell::kPotentials; ++i) potentials[i] = y.potentials[i];
  const auto k = constants<Cell>(x);
  typename Cell::K grad_k{};
  Cell::settle_backward(potentials, grad.s, grad_states, k, o, grad_potentials, grad_k);
  if constexpr (kIsCircuit<Cell>) {
    const auto inputs = Cell::integrate_backward(before, x.inputs[0], x.inputs[1], x.inputs[2], potentials,
                                                 grad_potentials, k, grad_states, grad_k);
    g.inputs[0] = inputs.current;
    g.inputs[1] = inputs.temporal;
    g.inputs[2] = inputs.spatial;
  } else {
    Cell::integrate_backward(before, x.inputs[0], potentials, grad_potentials, k, o, grad_states, g.inputs[0], grad_k);
  }
  for (int i = 0; i < Cell::kStates; ++i) g.states[i] = grad_states[i];
  g.threshold = grad_k.threshold;
  for (int i = 0; i < Cell::kCoefficients; ++i) g.k[i] = grad_k.of[i];
  return g;
}

template <class Cell>
void check_neuron(const Neuron& x, const Options& o, const Step& grad) {
  const Step expected = step(Cell::kName, x, o), found = run<Cell>(x, o);
  const double size = 1 + std::abs(expected.potentials[0]) + std::abs(expected.potentials[1]);
  for (int i = 0; i < Cell::kPotentials; ++i) CHECK_NEAR(found.potentials[i], expected.potentials[i], 1e-13 * size);
  CHECK_NEAR(found.s, expected.s, 1e-13 * size);
  for (int i = 0; i < Cell::kStates; ++i) CHECK_NEAR(found.states[i], expected.states[i], 1e-13 * size * size);

  const Neuron gradients = differentiate<Cell>(x, o, grad);
  const auto check = [&](double gradient, auto member) {
    constexpr double kStep = 1e-5;
    const auto loss = [&](double change) {
      Neuron moved = x;
      member(moved) += change;
      const Step y = step(Cell::kName, moved, o, &x);
      double sum = grad.s * y.s;
      for (int i = 0; i < Cell::kStates; ++i) sum += grad.states[i] * y.states[i];
      return sum;
    };
    const double wanted = (loss(kStep) - loss(-kStep)) / (2 * kStep), allowed = 1e-7 * size * size * o.alpha;
    if (!stc::test::near(gradient, wanted, allowed))
      stc::test::report_values(__FILE__, __LINE__, Cell::kName, gradient, wanted, allowed);
  };
  // the spike of the step before, which resets
  constexpr std::string_view kName = Cell::kName;
  constexpr int kSpike = kName == "tclif" ? 2 : kName == "glif" ? 1 : stc::kMaxStates;
  for (int i = 0; i < Cell::kStates; ++i) {
    if (i == kSpike && o.detach_reset)
      CHECK(gradients.states[i] == 0);
    else
      check(gradients.states[i], [&](Neuron& n) -> double& { return n.states[i]; });
  }
  for (int i = 0; i < (kIsCircuit<Cell> ? 3 : 1); ++i)
    check(gradients.inputs[i], [&](Neuron& n) -> double& { return n.inputs[i]; });
  check(gradients.threshold, [](Neuron& n) -> double& { return n.threshold; });
  for (int i = 0; i < Cell::kCoefficients; ++i) check(gradients.k[i], [&](Neuron& n) -> double& { return n.k[i]; });
}

// Where u is the threshold itself and just below; NaN stays NaN.
template <class Cell>
void check_firing() {
  const Options o{1, 0, 4, Surrogate::kSigmoid, false, false, true};
  typename Cell::K k{};
  k.threshold = 1;
  double u[Cell::kPotentials] = {1}, states[Cell::kStates];
  const bool strict = std::string_view(Cell::kName) == "glif";
  CHECK(Cell::settle(u, k, o, states) == (strict ? 0 : 1));
  u[0] = std::nextafter(1.0, strict ? 2.0 : 0.0);
  CHECK(Cell::settle(u, k, o, states) == (strict ? 1 : 0));
  Neuron x{{NAN}, {1, 0, 0}, 1, {0.5, 0.5, 0.5, 0.5, 0.5}};
  CHECK(std::isnan(run<Cell>(x, o).potentials[0]));
  x.states[0] = 0;
  x.inputs[0] = NAN;
  CHECK(std::isnan(run<Cell>(x, o).potentials[0]));
}

template <class List>
void check_list() {
  for (int index = 0; index < List::kCount; ++index)
    List::visit(index, [&](auto tag) {
      using Cell = typename decltype(tag)::template With<Math>;
      const stc::CellTraits traits = List::traits(index);
      CHECK(std::string_view(traits.name) == Cell::kName && traits.states == Cell::kStates);
      CHECK(traits.potentials == Cell::kPotentials && traits.coefficients == Cell::kCoefficients);
      static_assert(Cell::kStates <= stc::kMaxStates && Cell::kCoefficients <= kMaxCoefficients);
      check_firing<Cell>();
      std::mt19937 random(1);
      std::normal_distribution<double> normal;
      const auto draw = [&](auto& values) {
        for (double& value : values) value = normal(random);
      };
      for (const Surrogate surrogate : {Surrogate::kSigmoid, Surrogate::kAtan})
        for (const bool hard_reset : {false, true})
          for (const bool detach_reset : {false, true})
            for (const bool spiking : {false, true})
              for (int i = 0; i < 500; ++i) {
                Options o{NAN,       0.5 * normal(random), 1 + 2 * std::abs(normal(random)),
                          surrogate, hard_reset,           detach_reset,
                          spiking};
                o.slope = stc::surrogate_slope(o.surrogate, o.alpha);
                Neuron x;
                draw(x.states);
                draw(x.inputs);
                draw(x.k);
                x.threshold = 1 + 0.3 * normal(random);
                Step grad{normal(random), {}, {}};
                draw(grad.states);
                check_neuron<Cell>(x, o, grad);
              }
    });
}

}  // namespace

int main() {
  check_list<stc::ScanCells>();
  check_list<stc::CircuitCells>();
  // Closed and wide open gates.
  CHECK(stc::gate<Math>(1e3) == 2);
  CHECK(stc::gate<Math>(-1e3) == 0);
  CHECK(std::isnan(stc::gate<Math>(NAN)));
  return stc::test::result();
}
