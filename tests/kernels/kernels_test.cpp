#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/activation.hpp"
#include "moe/executors/serial.hpp"
#include "moe/experts/gated_ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/kernels/widen.hpp"
#include "moe/workers.hpp"
#include "naive.hpp"
#include "pools.hpp"
#include "random.hpp"

namespace moe {

using test::is_close;
using test::same_bits;

/// A matrix in the middle of memory: one element off any alignment, columns (or rows) further apart than they are long.
template <class M>
struct Odd {
  Index stride;
  std::vector<typename M::Scalar> memory;
  Eigen::Map<M, 0, Eigen::OuterStride<>> map;

  Odd(const M& m, Index gap)
      : stride((M::IsRowMajor ? m.cols() : m.rows()) + gap),
        memory(std::size_t(1 + stride * (M::IsRowMajor ? m.rows() : m.cols())), typename M::Scalar(99)),
        map(memory.data() + 1, m.rows(), m.cols(), Eigen::OuterStride<>(stride)) {
    map = m;
  }
};

template <class W>
WeightMap<W> weight_map(const Odd<Weight<W>>& odd) {
  return {odd.map.data(), odd.map.rows(), odd.map.cols(), Eigen::OuterStride<>(odd.stride)};
}

template <class W>
class Kernels : public testing::Test {
 public:
  using Scalar = ActivationScalar<W>;
  static constexpr Index L = kernels::lanes<Scalar>;

  /// From nothing to two registers and one more.
  static std::vector<Index> sizes() {
    std::vector<Index> all;
    for (Index n = 0; n <= 2 * L + 1; ++n) all.push_back(n);
    return all;
  }
  /// Around one row, one register, one panel of rows.
  static std::vector<Index> few_sizes() { return {0, 1, 2, 3, L - 1, L, L + 1, 13, 2 * L + 1, 67}; }
  /// Each number of columns that a tile may have, and either side of a packed block.
  static std::vector<Index> token_counts() {
    std::vector<Index> all;
    for (Index n = 0; n <= kernels::packing_pays + 1; ++n) all.push_back(n);
    for (const Index n : {2 * L - 1, 2 * L, 2 * L + 1, 3 * L, 3 * L + 1, 4 * L + 1}) all.push_back(n);
    return all;
  }
};
using WeightTypes = testing::Types<float, double, bfloat16, float16>;
TYPED_TEST_SUITE(Kernels, WeightTypes);

TYPED_TEST(Kernels, MatmulEqualsItsNaiveTwin) {
  using S = typename TestFixture::Scalar;
  const auto expect_equal = [](Index rows, Index cols, Index num_tokens, Index gap) {
    test::Random random(static_cast<unsigned>(1 + rows + 100 * cols + 10000 * num_tokens));
    const Odd<Weight<TypeParam>> w(random.matrix<Weight<TypeParam>>(rows, cols), gap);
    const Odd<Matrix<S>> x(random.matrix<Matrix<S>>(cols, num_tokens), gap);
    Odd<Matrix<S>> y(Matrix<S>::Constant(rows, num_tokens, 55), gap);
    Scratch scratch;
    kernels::matmul<TypeParam, S>(weight_map(w), x.map, y.map, scratch);
    const auto expected = test::naive::product(test::naive::exact(w.map), test::naive::exact(x.map));
    EXPECT_TRUE(is_close(y.map, expected)) << rows << " × " << cols << ", " << num_tokens << " tokens, gap " << gap;
    y.map.setConstant(S(99));
    for (const S untouched : y.memory) EXPECT_EQ(untouched, S(99)) << "written between the columns";
  };
  for (const Index cols : this->sizes()) {
    for (const Index num_tokens : this->token_counts()) expect_equal(7, cols, num_tokens, cols % 4);
  }
  for (const Index rows : this->sizes()) {
    for (const Index num_tokens : {1, 2, 5, 16, 33}) expect_equal(rows, 9, num_tokens, rows % 4);
  }
  for (const Index size : this->few_sizes()) expect_equal(size, size, size, 3);
}

TYPED_TEST(Kernels, NoCutBetweenRowsChangesABit) {
  using S = typename TestFixture::Scalar;
  test::Random random(1);
  const Index rows = 29;
  for (const Index cols : {Index(1), this->L, 3 * this->L + 5}) {
    const auto w = random.matrix<Weight<TypeParam>>(rows, cols);
    for (const Index num_tokens : this->token_counts()) {
      const auto x = random.matrix<Matrix<S>>(cols, num_tokens);
      Scratch scratch;
      const auto columns =
          kernels::packed_where_it_pays(kernels::columns_of<S>(x, scratch), scratch, kernels::run_in_order);
      Matrix<S> whole(rows, num_tokens), cut(rows, num_tokens);
      kernels::matmul_rows<TypeParam, S>(map_of(w), 0, rows, columns, whole, scratch);
      for (Index at = 0; at <= rows; ++at) {
        kernels::matmul_rows<TypeParam, S>(map_of(w), 0, at, columns, cut, scratch);
        kernels::matmul_rows<TypeParam, S>(map_of(w), at, rows, columns, cut, scratch);
        EXPECT_TRUE(same_bits(cut, whole)) << cols << " deep, " << num_tokens << " tokens, cut at " << at;
      }
    }
  }
}

TYPED_TEST(Kernels, MatmulOnWorkersGivesTheSameBits) {
  using S = typename TestFixture::Scalar;
  test::Random random(1);
  const auto w = random.matrix<Weight<TypeParam>>(37, 21);
  for (const Index num_tokens : this->token_counts()) {
    const auto x = random.matrix<Matrix<S>>(21, num_tokens);
    Matrix<S> alone(37, num_tokens), together(37, num_tokens);
    Scratch scratch;
    kernels::matmul<TypeParam, S>(map_of(w), x, alone, scratch);
    for (const Index num_workers : {1, 2, 3, 5, 8}) {
      const test::Shuffled executor{num_workers};
      std::vector<Scratch> memory;
      Workers workers(executor, memory);
      kernels::matmul<TypeParam, S>(map_of(w), x, together, workers);
      EXPECT_TRUE(same_bits(together, alone)) << num_tokens << " tokens, " << num_workers << " workers";
    }
  }
}

TYPED_TEST(Kernels, GatedFfnEqualsItsNaiveTwin) {
  using S = typename TestFixture::Scalar;
  const auto expect_equal = [](Index d_model, Index d_ff, Index num_tokens) {
    test::Random random(static_cast<unsigned>(1 + d_model + 100 * d_ff + 10000 * num_tokens));
    const auto make = [&](Index rows, Index cols) {
      return random.matrix<Weight<TypeParam>>(rows, cols, 2 / std::sqrt(double(cols + 1)));
    };
    const GatedFfn<TypeParam> ffn{
        .w_gate = make(d_ff, d_model), .w_up = make(d_ff, d_model), .w_down = make(d_model, d_ff)};
    const Odd<Matrix<S>> x(random.matrix<Matrix<S>>(d_model, num_tokens), 3);
    Odd<Matrix<S>> y(Matrix<S>::Constant(d_model, num_tokens, 55), 1);
    Scratch scratch;
    ffn.forward(x.map, y.map, scratch);
    const auto expected =
        test::naive::gated_ffn(test::naive::exact(ffn.w_gate), test::naive::exact(ffn.w_up),
                               test::naive::exact(ffn.w_down), test::naive::exact(x.map), test::naive::silu);
    EXPECT_TRUE(is_close(y.map, expected)) << d_model << " wide, " << d_ff << " hidden, " << num_tokens << " tokens";
    y.map.setConstant(S(99));
    for (const S untouched : y.memory) EXPECT_EQ(untouched, S(99)) << "written between the columns";
  };
  for (const Index d_ff : this->sizes()) {
    for (const Index num_tokens : {0, 1, 3, 15, 16, 40}) expect_equal(9, d_ff, num_tokens);
  }
  for (const Index d_model : this->sizes()) {
    for (const Index num_tokens : {1, 6, 17}) expect_equal(d_model, 11, num_tokens);
  }
  for (const Index num_tokens : this->token_counts()) expect_equal(this->L + 1, this->L - 1, num_tokens);
}

TYPED_TEST(Kernels, BankOnAnyNumberOfWorkersGivesTheSameBits) {
  using S = typename TestFixture::Scalar;
  test::Random random(1);
  const Index num_experts = 3;
  for (const auto& [d_model, d_ff] : {std::pair<Index, Index>{1, 1}, {this->L + 1, 2 * this->L - 1}, {67, 45}}) {
    WeightStack<TypeParam> gate(num_experts, d_ff, d_model), up(num_experts, d_ff, d_model),
        down(num_experts, d_model, d_ff);
    for (Index e = 0; e < num_experts; ++e) {
      gate.owned(e) = random.matrix<Weight<TypeParam>>(d_ff, d_model);
      up.owned(e) = random.matrix<Weight<TypeParam>>(d_ff, d_model);
      down.owned(e) = random.matrix<Weight<TypeParam>>(d_model, d_ff);
    }
    const GatedFfnBank<TypeParam> bank(gate, up, down);
    for (const Index num_tokens : this->token_counts()) {
      const auto x = random.matrix<Matrix<S>>(d_model, num_tokens);
      Routing<S> routing;  // expert 2 gets all, expert 1 some, expert 0 none
      for (Index t = 0; t < num_tokens; ++t) {
        routing.add(t, 2, S(0.5));
        if (t % 3 == 0) routing.add(t, 1, S(-1));
      }
      PlanMemory<S> plan_memory;
      const auto plan = plan_dispatch(routing, num_tokens, num_experts, plan_memory);
      const auto apply = [&](ExecutorRef executor) {
        Matrix<S> y = Matrix<S>::Zero(x.rows(), x.cols());
        std::vector<Scratch> memory;
        Workers workers(executor, memory);
        bank.apply(x, plan, y, workers);
        return y;
      };
      const auto alone = apply(Serial{});
      for (const Index num_workers : {2, 3, 5, 8}) {
        EXPECT_TRUE(same_bits(apply(test::Shuffled{num_workers}), alone)) << num_tokens << ", " << num_workers;
      }
    }
  }
}

/// What 16 bits say: sign, exponent, mantissa.
double decode(std::uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, highest = (1 << exponent_bits) - 1, bias = highest / 2;
  const int exponent = (bits >> mantissa_bits) & highest, mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == highest) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

template <class W>
void expect_exact_widening(int exponent_bits) {
  constexpr int L = kernels::lanes<float>;
  std::vector<std::uint16_t> bits(65536 + L);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  std::vector<W> numbers(bits.size());
  std::memcpy(static_cast<void*>(numbers.data()), bits.data(), bits.size() * sizeof(W));
  for (int i = 1; i <= 65536; i += L) {  // from 1: a register's load is aligned to nothing
    const kernels::Lanes<float> wide = kernels::widen(numbers.data() + i);
    for (int lane = 0; lane < L; ++lane) {
      const std::uint16_t of = bits[std::size_t(i + lane)];
      const double expected = decode(of, exponent_bits);
      const float got = wide[lane];
      EXPECT_EQ(std::isnan(got), std::isnan(expected)) << of;
      if (std::isnan(expected)) continue;
      EXPECT_EQ(double(got), expected) << of;
      EXPECT_EQ(std::signbit(got), std::signbit(expected)) << of;
    }
  }
}

TEST(Widen, IsExactForEachBfloat16) { expect_exact_widening<bfloat16>(8); }
TEST(Widen, IsExactForEachFloat16) { expect_exact_widening<float16>(5); }

TEST(Widen, LeavesFloatAndDoubleAlone) {
  const auto floats = test::random_matrix<Eigen::VectorXf>(kernels::lanes<float>, 1, 1);
  const auto doubles = test::random_matrix<Eigen::VectorXd>(kernels::lanes<double>, 1, 1);
  for (int i = 0; i < kernels::lanes<float>; ++i) EXPECT_EQ(kernels::widen(floats.data())[i], floats(i));
  for (int i = 0; i < kernels::lanes<double>; ++i) EXPECT_EQ(kernels::widen(doubles.data())[i], doubles(i));
}

template <class S>
void expect_turned_and_summed() {
  constexpr int L = kernels::lanes<S>;
  test::Random random(1);
  const auto m = random.matrix<Matrix<S>>(L, L);
  const auto load = [&](kernels::Lanes<S>(&registers)[L]) {
    for (int i = 0; i < L; ++i) registers[i] = kernels::load_as<kernels::Lanes<S>>(&m(0, i));
  };
  kernels::Lanes<S> turned[L], summed[L];
  load(turned);
  kernels::transpose<S>(turned);
  load(summed);
  const kernels::Lanes<S> total = kernels::sums<S>(summed);
  Matrix<S> sum(L, 1);
  for (int i = 0; i < L; ++i) {
    for (int j = 0; j < L; ++j) EXPECT_EQ(turned[i][j], m(i, j));
    sum(i, 0) = total[i];
  }
  EXPECT_TRUE(is_close(sum, m.colwise().sum().transpose().eval()));

  // In each lane the same order: to swap registers is to swap their sums, to the bit.
  load(summed);
  std::swap(summed[0], summed[L - 1]);
  const kernels::Lanes<S> swapped = kernels::sums<S>(summed);
  EXPECT_EQ(swapped[0], total[L - 1]);
  EXPECT_EQ(swapped[L - 1], total[0]);
}

TEST(Transpose, TurnsASquareAroundOrSumsItsRegisters) {
  expect_turned_and_summed<float>();
  expect_turned_and_summed<double>();
}

TEST(Lanes, FillARegister) {
  EXPECT_EQ(sizeof(kernels::Lanes<float>), kernels::register_bytes);
  EXPECT_EQ(sizeof(kernels::Lanes<double>), kernels::register_bytes);
  EXPECT_EQ(std::size_t(kernels::lanes<double>), kernels::register_bytes / 8);
}

}  // namespace moe
