// What docs/architecture.md promises to be the same from every compiler: recorded for each target.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "moe/core/dispatch.hpp"
#include "moe/core/target.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/combine.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/train/experts/activation.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/optimisers/adamw.hpp"
#include "moe/train/optimisers/sgd.hpp"
#include "random.hpp"

namespace moe {
namespace {

/// FNV-1a of what it has been shown.
struct Checksum {
  std::uint64_t value = 0xcbf29ce484222325;

  template <class Numbers>
  void add(const Numbers& numbers) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(numbers.data());
    const std::size_t size = std::size_t(numbers.size()) * sizeof(typename Numbers::Scalar);
    for (std::size_t i = 0; i < size; ++i) value = (value ^ bytes[i]) * 0x100000001b3;
  }
};

template <class W>
void add_products(Checksum& sum) {
  using S = ActivationScalar<W>;
  test::Random random(1);
  const auto w = random.matrix<Weight<W>>(45, 333);
  for (const Index num_tokens : {1, 3, 40, 64}) {
    const auto x = random.matrix<Matrix<S>>(333, num_tokens);
    Matrix<S> y(45, num_tokens);
    Scratch scratch;
    kernels::matmul<W, S>(map_of(w), x, y, scratch);
    sum.add(y);
  }
}

template <class W, class Act>
void add_bank(Checksum& sum) {
  using S = ActivationScalar<W>;
  test::Random random(2);
  WeightStack<W> gate(2, 45, 67), up(2, 45, 67), down(2, 67, 45);
  for (Index e = 0; e < 2; ++e) {
    gate.owned(e) = random.matrix<Weight<W>>(45, 67);
    up.owned(e) = random.matrix<Weight<W>>(45, 67);
    down.owned(e) = random.matrix<Weight<W>>(67, 45);
  }
  const GatedFfnBank<W, Act> bank(gate, up, down);
  for (const Index num_tokens : {1, 37, 64}) {
    const auto x = random.matrix<Matrix<S>>(67, num_tokens);
    Routing<S> routing;
    for (Index t = 0; t < num_tokens; ++t) {
      routing.add(t, 0, S(0.7));
      routing.add(t, 1, S(-0.3));
    }
    PlanMemory<S> memory;
    const auto plan = plan_dispatch(routing, num_tokens, 2, memory);
    Matrix<S> y = Matrix<S>::Zero(67, num_tokens);
    std::vector<Scratch> scratch;
    Workers workers(Serial{}, scratch);
    bank.apply(x, plan, y, workers);
    combine(x.replicate(1, 2).eval(), plan, y, workers);
    sum.add(y);
  }
}

void add_training(Checksum& sum) {
  test::Random random(3);
  const auto d = random.matrix<Matrix<float>>(19, 300), x = random.matrix<Matrix<float>>(45, 300);
  Weight<float> w = random.matrix<Weight<float>>(19, 45), gradient = Weight<float>::Zero(19, 45);
  Scratch scratch;
  kernels::add_outer<float>(d, x, gradient, kernels::make_product_room<float>(scratch));
  sum.add(gradient);
  Sgd<float> sgd({{"w", w.data(), w.rows(), w.cols()}}, {.learning_rate = 0.1, .momentum = 0.9, .weight_decay = 0.01});
  for (int step = 0; step < 3; ++step) sgd.step({{"w", gradient.data(), w.rows(), w.cols()}});
  sum.add(w);
}

void add_functions(Checksum& sum) {
  const Eigen::ArrayXf x = 8 * test::Random(4).matrix<Matrix<float>>(1000, 1).array();
  sum.add(Eigen::ArrayXf(Gelu()(x)));
  sum.add(Eigen::ArrayXf(GeluTanh()(x)));
  sum.add(slope(Gelu(), x));
  sum.add(slope(GeluTanh(), x));
  Eigen::ArrayXf scores(x.size());
  sqrt_softplus(x, scores);
  sum.add(scores);
  sum.add(Eigen::Matrix<float, 1, 1>(kernels::dot(x, scores)));
}

TEST(Bits, AreTheSameFromEveryCompiler) {
  Checksum sum;
  add_products<float>(sum);
  add_products<double>(sum);
  add_products<bfloat16>(sum);
  add_products<float16>(sum);
  add_bank<float, GeGlu>(sum);
  add_bank<bfloat16, GeGluTanh>(sum);
  add_bank<double, ReGlu>(sum);
  add_training(sum);
  add_functions(sum);
  const std::map<std::string, std::uint64_t> recorded{
      {"avx512_amx", 4661078585127933101}, {"avx512_bf16", 4661078585127933101}, {"avx512_vnni", 4661078585127933101},
      {"avx512", 4661078585127933101},     {"avx2_vnni", 7761653396846215556},   {"avx2", 7761653396846215556},
      {"sse2", 12168512505845049766U},     {"neon_i8mm", 16175974985063901761U}, {"neon_bf16", 16175974985063901761U},
  };
  const auto expected = recorded.find(target_name);
  if (expected == recorded.end()) GTEST_SKIP() << "nothing is recorded for " << target_name << ": " << sum.value;
  EXPECT_EQ(sum.value, expected->second) << target_name;
}

TEST(Bits, OfSoftcapsAreTheSameOnEveryProcessorThatFuses) {
  const Eigen::ArrayXf x = 8 * test::Random(6).matrix<Matrix<float>>(1000, 1).array();
  Checksum sum;
  for (const float cap : {0.0F, 1.0F, 4.0F, 25.0F}) sum.add(Eigen::ArrayXf(moe::detail::softcap(x, cap)));
  EXPECT_EQ(sum.value, kernels::is_fused ? 12053373337156570954U : 12406808258361673993U);
}

/// No sum depends on the width of registers: what fuses has one result, what does not another.
TEST(Bits, OfAdamWAreTheSameOnEveryProcessorThatFuses) {
  test::Random random(5);
  Weight<float> w = random.matrix<Weight<float>>(7, 19), gradient = w;
  Weight<double> wide = random.matrix<Weight<double>>(7, 19), wide_gradient = wide;
  AdamW<float> adam({{"w", w.data(), w.rows(), w.cols()}}, {.learning_rate = 0.1});
  AdamW<double> wide_adam({{"w", wide.data(), wide.rows(), wide.cols()}}, {.learning_rate = 0.1});
  for (int step = 0; step < 50; ++step) {
    gradient = random.matrix<Weight<float>>(7, 19) * std::ldexp(1.0F, step - 25);
    wide_gradient = gradient.cast<double>() / 3;
    adam.step({{"w", gradient.data(), w.rows(), w.cols()}});
    wide_adam.step({{"w", wide_gradient.data(), w.rows(), w.cols()}});
  }
  Checksum sum;
  sum.add(w);
  sum.add(wide);
  EXPECT_EQ(sum.value, kernels::is_fused ? 6221435360900010065U : 14623072684349457268U);
}

}  // namespace
}  // namespace moe
