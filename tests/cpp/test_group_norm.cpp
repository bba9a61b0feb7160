// group_norm.h, one norm group in double: against GroupNorm written out, and finite differences of it.
#include <random>
#include <vector>

#include "check.h"
#include "group_norm.h"
#include "scalar_math.h"

namespace {

using Math = stc::test::ScalarMath<double>;
using Norm = stc::ChannelNorm<Math>;
constexpr int kChannels = 3, kPixels = 7, kCount = kChannels * kPixels;
constexpr double kEps = 1e-3;

stc::Moments moments(const std::vector<double>& x) {
  double mean = 0, variance = 0;
  for (const double value : x) mean += value / kCount;
  for (const double value : x) variance += (value - mean) * (value - mean) / kCount;
  return {mean, 1 / std::sqrt(variance + kEps)};
}

double output(const std::vector<double>& x, int i, double weight, double bias) {
  const stc::Moments m = moments(x);
  return weight * (x[i] - m.mean) * m.rstd + bias;
}

}  // namespace

int main() {
  std::mt19937 random(2);
  std::normal_distribution<double> normal;
  std::vector<double> x(kCount), upstream(kCount), weight(kChannels), bias(kChannels);
  for (std::vector<double>* values : {&x, &upstream, &weight, &bias})
    for (double& value : *values) value = normal(random);

  const auto loss = [&](const std::vector<double>& at) {
    double sum = 0;
    for (int i = 0; i < kCount; ++i) sum += upstream[i] * output(at, i, weight[i / kPixels], bias[i / kPixels]);
    return sum;
  };
  const stc::Moments m = moments(x);
  double mean_grad = 0, mean_product = 0;
  for (int i = 0; i < kCount; ++i) {
    const double q = weight[i / kPixels] * upstream[i];
    mean_grad += q / kCount;
    mean_product += q * (x[i] - m.mean) * m.rstd / kCount;
  }
  for (int i = 0; i < kCount; ++i) {
    const Norm norm(stc::Statistics<Math>(m), weight[i / kPixels], bias[i / kPixels]);
    CHECK_NEAR(norm(x[i]), output(x, i, weight[i / kPixels], bias[i / kPixels]), 1e-14);
    constexpr double kStep = 1e-5;
    std::vector<double> up = x, down = x;
    up[i] += kStep;
    down[i] -= kStep;
    CHECK_NEAR(norm.backward(upstream[i], norm.standardise(x[i]), mean_grad, mean_product),
               (loss(up) - loss(down)) / (2 * kStep), 1e-8);
  }

  const Norm absent;
  CHECK(absent(3.25) == 3.25);
  CHECK(absent.backward(-1.5, 3.25, 0, 0) == -1.5);

  // A mean that float cannot hold costs no digits.
  const stc::Statistics<stc::test::ScalarMath<float>> statistics(stc::Moments{1000.00001, 1});
  CHECK_NEAR(statistics.centre(1000.5f), 0.49999, 1e-7);
  return stc::test::result();
}
