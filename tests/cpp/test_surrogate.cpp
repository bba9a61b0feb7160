// surrogate.h: the derivative is that of the primitive, and the primitive is a smooth step.
#include <initializer_list>
#include <limits>

#include "check.h"
#include "scalar_math.h"
#include "surrogate.h"

using stc::Surrogate;
using Math = stc::SurrogateMath<stc::test::ScalarMath<double>>;

int main() {
  for (const Surrogate surrogate : {Surrogate::kSigmoid, Surrogate::kAtan})
    for (const double alpha : {0.5, 2.0, 4.0, 10.0}) {
      const auto p = [&](double z) { return Math::primitive(surrogate, alpha, z); };
      const auto dp = [&](double z) { return Math::derivative(surrogate, alpha, z); };

      constexpr double kStep = 1e-5;
      for (double z = -20; z <= 20; z += 0.03125) {
        CHECK_NEAR(dp(z), (p(z + kStep) - p(z - kStep)) / (2 * kStep), 1e-9 * alpha * alpha * alpha);
        CHECK(dp(z) >= 0);
        CHECK_NEAR(p(z) + p(-z), 1, 1e-15);
      }
      CHECK(p(0) == 0.5);
      CHECK_NEAR(dp(0), surrogate == Surrogate::kSigmoid ? alpha / 4 : alpha / 2, 1e-15 * alpha);

      const double infinity = std::numeric_limits<double>::infinity();
      const double nan = std::numeric_limits<double>::quiet_NaN();
      CHECK_NEAR(p(infinity), 1, 1e-15);
      CHECK_NEAR(p(-infinity), 0, 1e-15);
      CHECK(dp(infinity) == 0);
      CHECK(dp(-infinity) == 0);
      CHECK(std::isnan(p(nan)));
      CHECK(std::isnan(dp(nan)));
    }
  return stc::test::result();
}
