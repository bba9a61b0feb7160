// surrogate.h: the derivative is that of the primitive, and the primitive is a step around z = 0.
#include <initializer_list>
#include <limits>

#include "check.h"
#include "scalar_math.h"
#include "surrogate.h"

using stc::Surrogate;
using Math = stc::SurrogateMath<stc::test::ScalarMath<double>>;

namespace {

struct Facts {
  Surrogate surrogate;
  double kink;    // of the primitive or its derivative, at alpha |z|; besides, where it is not smooth, at 0
  bool smooth;    // at 0
  bool bounded;   // from 0 to 1, with these values at infinity
  double height;  // of the derivative at 0, as a multiple of alpha; 0 = 1 whatever alpha
};

constexpr double kNever = -1;
constexpr Facts kFacts[] = {
    {Surrogate::kSigmoid, kNever, true, true, 0.25},
    {Surrogate::kAtan, kNever, true, true, 0.5},
    {Surrogate::kPiecewiseQuadratic, 1, false, true, 1},
    {Surrogate::kPiecewiseExp, kNever, false, true, 0.5},
    {Surrogate::kSoftsign, kNever, false, false, 0.5},
    {Surrogate::kSuperspike, kNever, false, false, 1},
    {Surrogate::kErf, kNever, true, true, 0.56418958354775628695},
    {Surrogate::kRect, 0.5, true, true, 1},
    {Surrogate::kFastSigmoid, kNever, false, false, 0},
};

}  // namespace

int main() {
  for (const Facts& f : kFacts)
    for (const double alpha : {0.5, 2.0, 4.0, 10.0}) {
      const auto slope = stc::surrogate_slope(f.surrogate, alpha);
      const auto p = [&](double z) { return Math::primitive(f.surrogate, alpha, z); };
      const auto dp = [&](double z) { return Math::derivative(f.surrogate, slope, z); };

      constexpr double kStep = 1e-5;
      for (double z = -20; z <= 20; z += 0.03125) {
        CHECK(dp(z) >= 0);
        CHECK_NEAR(p(z) + p(-z), 1, 1e-13);
        const double y = alpha * std::abs(z);
        if (std::abs(y - f.kink) < 2 * alpha * kStep || (!f.smooth && z == 0)) continue;
        CHECK_NEAR(dp(z), (p(z + kStep) - p(z - kStep)) / (2 * kStep), 1e-9 * (1 + alpha * alpha * alpha));
      }
      CHECK(p(0) == 0.5);
      CHECK_NEAR(dp(0), f.height == 0 ? 1 : f.height * alpha, 1e-15 * alpha);

      const double infinity = std::numeric_limits<double>::infinity();
      CHECK(dp(infinity) == 0);
      CHECK(dp(-infinity) == 0);
      if (f.bounded) {
        CHECK_NEAR(p(infinity), 1, 1e-15);
        CHECK_NEAR(p(-infinity), 0, 1e-15);
      }
    }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Surrogate surrogate : {Surrogate::kSigmoid, Surrogate::kAtan, Surrogate::kErf}) {
    CHECK(std::isnan(Math::primitive(surrogate, 2.0, nan)));
    CHECK(std::isnan(Math::derivative(surrogate, stc::surrogate_slope(surrogate, 2.0), nan)));
  }
  return stc::test::result();
}
