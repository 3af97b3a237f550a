#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/numerics.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/detail/bank_kernels.hpp"
#include "moe/experts/detail/token_batch.hpp"
#include "moe/experts/gated_ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/kernels/activations.hpp"
#include "moe/kernels/arithmetic.hpp"
#include "moe/kernels/bfloat16_pairs.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/products.hpp"
#include "moe/kernels/transpose.hpp"
#include "moe/kernels/widen.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
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
    for (Index n = 0; n <= kernels::Exact<W>::blocks_pay + 1; ++n) all.push_back(n);
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

/// Products of every arithmetic, in either form of columns, whichever of them the front door would choose.
template <class A>
class ProductsOf : public testing::Test {
 public:
  using Scalar = typename A::Scalar;
  using W = typename A::Weight;
  static constexpr Index L = A::L, step = A::step;
  static constexpr bool rounds = std::is_same_v<typename A::Register, kernels::Pairs> && A::parts == 1;

  static std::vector<Index> token_counts() {
    std::vector<Index> all;
    for (Index n = 0; n <= 2 * kernels::max_dot_columns + 1; ++n) all.push_back(n);
    for (const Index n : {L - 1, L, L + 1, 2 * L - 1, 2 * L, 2 * L + 1, 3 * L, 3 * L + 1, 4 * L + 1}) all.push_back(n);
    return all;
  }

  static kernels::Activations<A> columns(const ConstMatrixRef<Scalar>& x, bool in_blocks, Scratch& scratch) {
    return kernels::activations_of<A>(x, in_blocks, scratch, kernels::run_in_order);
  }

  static Matrix<Scalar> product(const WeightMap<W>& w, const ConstMatrixRef<Scalar>& x, bool in_blocks) {
    Matrix<Scalar> y = Matrix<Scalar>::Constant(w.rows(), x.cols(), Scalar(99));
    Scratch scratch;
    kernels::matmul_rows<A>(w, 0, w.rows(), columns(x, in_blocks, scratch), y.data(), y.outerStride(), scratch);
    return y;
  }

  /// What the arithmetic multiplies, in double.
  template <class M>
  static test::naive::MatrixD factor(const M& m) {
    auto exact = test::naive::exact(m);
    if (!rounds) return exact;
    return exact.unaryExpr([](double v) { return double(bfloat16(static_cast<float>(v))); });
  }

  /// Sums of float products: see is_close(). What vdpbf16ps and bfdot do besides (no subnormals; ARM rounds each pair's
  /// sum to odd) stays far below that here.
  static void expect_equal(Index rows, Index cols, Index num_tokens, Index gap) {
    test::Random random(static_cast<unsigned>(1 + rows + 100 * cols + 10000 * num_tokens));
    const Odd<Weight<W>> w(random.matrix<Weight<W>>(rows, cols), gap);
    const Odd<Matrix<Scalar>> x(random.matrix<Matrix<Scalar>>(cols, num_tokens), gap);
    const auto expected = test::naive::product(factor(w.map), factor(x.map));
    for (const bool in_blocks : {false, true}) {
      EXPECT_TRUE(is_close(product(weight_map(w), x.map, in_blocks), expected))
          << rows << " × " << cols << ", " << num_tokens << " tokens, gap " << gap << ", in blocks: " << in_blocks;
    }
  }
};
using Arithmetics = testing::Types<kernels::Exact<float>, kernels::Exact<double>, kernels::Exact<bfloat16>,
                                   kernels::Exact<float16>, kernels::Fast<bfloat16>, kernels::Fast<float16>>;
TYPED_TEST_SUITE(ProductsOf, Arithmetics);

TYPED_TEST(ProductsOf, EqualTheirNaiveTwin) {
  for (Index cols = 0; cols <= 2 * this->step + 1; ++cols) {
    for (const Index num_tokens : this->token_counts()) this->expect_equal(7, cols, num_tokens, cols % 4);
  }
  for (Index rows = 0; rows <= 2 * kernels::panel_rows<TypeParam> + 1; ++rows) {
    for (const Index num_tokens : {1, 2, 3, 5, 16, 33}) this->expect_equal(rows, 9, num_tokens, rows % 4);
  }
}

// Deep and wide enough for several groups of rows, of columns, and slices of the depth, with any L2 of up to 4 MB.
TYPED_TEST(ProductsOf, EqualTheirNaiveTwinBeyondTheCache) {
  this->expect_equal(kernels::panel_rows<TypeParam> * kernels::panels_in_group + 5,
                     4200 * 4 / Index(sizeof(typename TypeParam::Unit)), kernels::columns_in_group + 3, 1);
}

// Memory is counted by blocks_pay.
TYPED_TEST(ProductsOf, TakeBlocksFromTheStatedNumberOfTokensOn) {
  for (Index n = 0; n <= 300; ++n) {
    const bool in_blocks = kernels::columns_in_blocks<TypeParam>(n, {}) > 0;
    EXPECT_EQ(kernels::columns_in_blocks<TypeParam>(n, {.batch_invariant = true}), 0);
    if (n < TypeParam::blocks_pay) {
      EXPECT_FALSE(in_blocks) << n;
    }
    if (n == TypeParam::blocks_pay || n >= 8 * kernels::full_block<TypeParam>) {
      EXPECT_TRUE(in_blocks) << n;
    }
  }
}

// What is missing in a last block is multiplied all the same: in a tile, which takes as long for one token as for all
// of its own; elsewhere it is little.
TYPED_TEST(ProductsOf, FewMultiplyAddsOfSeveralTokensAreWasted) {
  using A = TypeParam;
  for (Index n = 1; n <= 500; ++n) {
    const Index blocks = kernels::columns_in_blocks<A>(n, {}), issued = (blocks + A::L - 1) / A::L * A::L + n - blocks;
    EXPECT_LT(issued - n, A::L) << n;
    if (!kernels::InTiles<A>) {
      EXPECT_LE(double(issued), (n < 64 ? 1.8 : 1.15) * double(n)) << n;
    }
    EXPECT_EQ(kernels::columns_in_blocks<A>(n, {.batch_invariant = true}), 0);
    if (blocks < n) {
      EXPECT_EQ(blocks % A::L, 0) << n;
    }
  }
}

TYPED_TEST(ProductsOf, NoCutBetweenRowsChangesABit) {
  using S = typename TypeParam::Scalar;
  test::Random random(1);
  const Index rows = 29;
  for (const Index cols : {Index(1), this->L, 3 * this->L + 5}) {
    const auto w = random.matrix<Weight<typename TypeParam::Weight>>(rows, cols);
    for (const Index num_tokens : this->token_counts()) {
      const auto x = random.matrix<Matrix<S>>(cols, num_tokens);
      for (const bool in_blocks : {false, true}) {
        Scratch scratch;
        const auto columns = this->columns(x, in_blocks, scratch);
        Matrix<S> whole(rows, num_tokens), cut(rows, num_tokens);
        kernels::matmul_rows<TypeParam>(map_of(w), 0, rows, columns, whole.data(), whole.outerStride(), scratch);
        for (Index at = 0; at <= rows; ++at) {
          kernels::matmul_rows<TypeParam>(map_of(w), 0, at, columns, cut.data(), cut.outerStride(), scratch);
          kernels::matmul_rows<TypeParam>(map_of(w), at, rows, columns, cut.data(), cut.outerStride(), scratch);
          EXPECT_TRUE(same_bits(cut, whole)) << cols << " deep, " << num_tokens << " tokens, cut at " << at;
        }
      }
    }
  }
}

TYPED_TEST(ProductsOf, ColumnByColumnNoOtherTokenChangesABit) {
  using S = typename TypeParam::Scalar;
  test::Random random(1);
  for (const Index cols : {Index(1), this->step, 3 * this->step + 5}) {
    const auto w = random.matrix<Weight<typename TypeParam::Weight>>(29, cols);
    for (const Index num_tokens : this->token_counts()) {
      const auto x = random.matrix<Matrix<S>>(cols, num_tokens);
      const auto together = this->product(map_of(w), x, false);
      for (Index t = 0; t < num_tokens; ++t) {
        const Matrix<S> alone = this->product(map_of(w), x.col(t), false);
        EXPECT_TRUE(same_bits(alone, together.middleCols(t, 1).eval())) << cols << " deep, " << num_tokens << " tokens";
      }
    }
  }
}

// One or two tokens meet short rows many at a time; three never do.
TYPED_TEST(ProductsOf, ShortRowsHaveTheBitsOfLongOnes) {
  using S = typename TypeParam::Scalar;
  using Number = typename TypeParam::Weight;
  test::Random random(1);
  const Index border = kernels::detail::short_depth;
  for (const Index cols : {Index(1), this->step / 2, this->step - 1, this->step, this->step + this->step / 2,
                           2 * this->step, 2 * this->step + 7, 3 * this->step, border, border + 1}) {
    for (const Index rows : {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 64, 127, 128, 129, 130, 255, 300}) {
      const auto w = random.matrix<Weight<Number>>(rows, cols);
      const auto x = random.matrix<Matrix<S>>(cols, 3);
      const auto three = this->product(map_of(w), x, false);
      for (const Index few : {1, 2}) {
        EXPECT_TRUE(same_bits(this->product(map_of(w), x.leftCols(few), false), three.leftCols(few).eval()))
            << rows << " × " << cols << ", " << few << " tokens";
      }
    }
  }
}

/// ‖actual − expected‖ / ‖expected‖
template <class M>
double relative_error(const M& actual, const test::naive::MatrixD& expected) {
  return (test::naive::exact(actual) - expected).norm() / expected.norm();
}

// The errors that docs/performance.md states: against double, with weights as they are stored.
TYPED_TEST(ProductsOf, FfnsAreAsExactAsTheySay) {
  using A = TypeParam;
  using S = typename A::Scalar;
  using Weights = Weight<typename A::Weight>;
  const Index d_model = 300, d_ff = 4 * A::step + 7;
  test::Random random(1);
  const auto gate = random.matrix<Weights>(d_ff, d_model, 2 / std::sqrt(double(d_model)));
  const auto up = random.matrix<Weights>(d_ff, d_model, 2 / std::sqrt(double(d_model)));
  const auto down = random.matrix<Weights>(d_model, d_ff, 2 / std::sqrt(double(d_ff)));
  const auto check = [&](const auto& act, const Matrix<S>& x, const test::naive::MatrixD& expected) {
    const Index num_tokens = x.cols();
    for (const bool batch_invariant : {false, true}) {
      const test::Shuffled executor{3};
      std::vector<Scratch> memory;
      Workers workers(executor, memory, {.batch_invariant = batch_invariant});
      PlanMemory<S> plan_memory;
      const auto plan = plan_all_to<S>(0, num_tokens, 1, plan_memory);
      Matrix<S> y = Matrix<S>::Zero(d_model, num_tokens);
      const kernels::TokenBatches<A> batches(x, plan, y, d_ff, workers);
      Index in_blocks = 0, all = 0;
      for (const auto& batch : batches) {
        EXPECT_EQ(batch.first, all);
        all += batch.count();
        if (batch.x.in_blocks()) in_blocks += batch.count();
      }
      EXPECT_EQ(all, num_tokens);
      EXPECT_EQ(in_blocks, kernels::columns_in_blocks<A>(num_tokens, {.batch_invariant = batch_invariant}));
      workers.for_each_band(d_ff, A::step, [&](Index first, Index last, Scratch& scratch) {
        batches.for_each(first, last, [&](const auto& batch, Index top, Index bottom) {
          scratch.reset(0);
          kernels::gate_up<A, S>(map_of(gate), map_of(up), {}, top, bottom, batch, act, scratch);
        });
      });
      workers.for_each_band(d_model, A::step, [&](Index first, Index last, Scratch& scratch) {
        batches.for_each(first, last, [&](const auto& batch, Index top, Index bottom) {
          scratch.reset(0);
          kernels::down<A, S>(map_of(down), {}, top, bottom, batch, scratch);
        });
      });
      const double error = relative_error(y, expected);
      if (this->rounds) {
        EXPECT_LT(error, 8e-3) << num_tokens << " tokens";
        EXPECT_GT(error, 1e-4) << num_tokens << " tokens: nothing was rounded";
      } else {
        EXPECT_LT(error, (std::is_same_v<S, double> ? 2e-15 : 1e-6)) << num_tokens << " tokens";
      }
    }
  };
  using test::naive::exact;
  for (const Index num_tokens : {1, 2, 5, 17, 33, 40, 75}) {
    const auto x = random.matrix<Matrix<S>>(d_model, num_tokens);
    check(SwiGlu{}, x, test::naive::gated_ffn(exact(gate), exact(up), exact(down), exact(x), test::naive::silu));
    check(Silu{}, x, test::naive::ffn(exact(up), {}, exact(down), {}, exact(x), test::naive::silu));
  }
}

TYPED_TEST(Kernels, FastMeansFastWhereThereIsAnythingFaster) {
  using W = TypeParam;
  using S = typename TestFixture::Scalar;
  test::Random random(1);
  const Index d_model = 70, d_ff = 50;
  WeightStack<W> gate(1, d_ff, d_model), up(1, d_ff, d_model), down(1, d_model, d_ff);
  gate.owned(0) = random.matrix<Weight<W>>(d_ff, d_model);
  up.owned(0) = random.matrix<Weight<W>>(d_ff, d_model);
  down.owned(0) = random.matrix<Weight<W>>(d_model, d_ff);
  const GatedFfnBank<W> bank(gate, up, down);
  for (const Index num_tokens : {1, 7, 50}) {
    const auto x = random.matrix<Matrix<S>>(d_model, num_tokens);
    const auto answer = [&](Products products) {
      PlanMemory<S> plan_memory;
      std::vector<Scratch> memory;
      const Serial serial;
      Workers workers(serial, memory, {.products = products});
      Matrix<S> y = Matrix<S>::Zero(d_model, num_tokens);
      bank.apply(x, plan_all_to<S>(0, num_tokens, 1, plan_memory), y, workers);
      return y;
    };
    const auto exact = answer(Products::exact), fast = answer(Products::fast);
    const bool is_fast = kernels::has_fast<W> && kernels::pairs_pay();
    EXPECT_EQ(bool(same_bits(fast, exact)), !is_fast) << num_tokens << " tokens";
    EXPECT_LT(relative_error(fast, test::naive::exact(exact)), 8e-3);
  }
}

TEST(Pairs, AreRoundedAsEigenRounds) {
  constexpr int L = kernels::lanes<float>;
  std::vector<float> numbers{0.F,
                             -0.F,
                             1.F,
                             1.00390625F,
                             1.01171875F,
                             1.005F,
                             -3.4e38F,
                             3.4e38F,
                             INFINITY,
                             -INFINITY,
                             NAN,
                             1e-38F,
                             std::nextafter(2.F, 0.F)};
  test::Random random(1);
  while (numbers.size() % (2 * L) != 0 || numbers.size() < 1000) numbers.push_back(static_cast<float>(random()));
  for (std::size_t i = 0; i < numbers.size(); i += 2 * L) {
    const auto first = kernels::load_as<kernels::Lanes<float>>(&numbers[i]);
    const auto second = kernels::load_as<kernels::Lanes<float>>(&numbers[i + L]);
    const kernels::Pairs in_order = kernels::rounded_pairs(first, second), in_turn = kernels::pairs_of(first, second);
    const auto expect_rounded = [&](std::uint32_t bits, float of) {
      const float got = std::bit_cast<float>(bits << 16), expected = float(bfloat16(of));
      const bool may_be_zero = std::abs(of) < std::numeric_limits<float>::min();  // AVX512_BF16 knows no subnormals
      EXPECT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected)) || (may_be_zero && got == 0))
          << of << " became " << got;
    };
    for (int lane = 0; lane < L; ++lane) {
      const float* const pair = &numbers[i + std::size_t(2 * lane)];
      expect_rounded(in_order[lane] & 0xffff, pair[0]);
      expect_rounded(in_order[lane] >> 16, pair[1]);
      expect_rounded(in_turn[lane] & 0xffff, first[lane]);
      expect_rounded(in_turn[lane] >> 16, second[lane]);
    }
  }
}

/// Blocks of 32 numbers of 8 bits with a scale, met by activations of 8 bits: what quantised weights will be, made here
/// of nothing but an arithmetic, to see that products() needs no more.
struct Block8 {
  float scale;
  std::int8_t numbers[32];
};

struct Exact8 {
  using Weight = Block8;
  using Scalar = float;
  using Register = Block8;
  using Unit = float;
  static constexpr Index L = kernels::lanes<float>, step = 32, weights_per_step = 1;
  static constexpr int parts = 1;
  static constexpr Index blocks_pay = kernels::never;

  template <int>
  static Register load(const Block8* block) {
    return *block;
  }
  static void arrange(const float* x, Register* to) {
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::abs(x[i]));
    to->scale = largest / 127;
    for (int i = 0; i < 32; ++i)
      to->numbers[i] = static_cast<std::int8_t>(std::lround(x[i] / std::max(to->scale, 1e-30F)));
  }
  static void multiply_add(kernels::Lanes<float>& sum, const Register& w, const Register& x) {
    int dot = 0;
    for (int i = 0; i < 32; ++i) dot += w.numbers[i] * x.numbers[i];
    sum[0] += w.scale * x.scale * static_cast<float>(dot);
  }
  static Index num_units(Index) { return 0; }
};

TEST(Products, TakeBlocksOf8BitsThroughAnArithmeticAlone) {
  test::Random random(1);
  const Index rows = 11, depth = 96, blocks = depth / 32;
  const auto w = random.matrix<Weight<float>>(rows, depth);
  std::vector<Block8> quantised;
  for (Index r = 0; r < rows; ++r) {
    for (Index b = 0; b < blocks; ++b) Exact8::arrange(w.data() + r * depth + b * 32, &quantised.emplace_back());
  }
  for (const Index num_tokens : {0, 1, 2, 3, 7, 40}) {
    const auto x = random.matrix<Matrix<float>>(depth, num_tokens);
    Scratch scratch;
    const auto columns = kernels::activations_of<Exact8>(x, false, scratch, kernels::run_in_order);
    const kernels::Rows<Block8> all{quantised.data(), quantised.data() + blocks, 2 * blocks, rows};
    Matrix<float> y = Matrix<float>::Constant(rows, num_tokens, 99.F);
    kernels::products<Exact8>(all, columns, kernels::make_room<Exact8>(depth, scratch), y.data(), rows);
    const auto expected = test::naive::product(test::naive::exact(w), test::naive::exact(x));
    for (Index i = 0; i < y.size(); ++i) EXPECT_NEAR(y(i), expected(i), 0.01 * std::sqrt(double(depth))) << num_tokens;
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
  using A = kernels::Exact<W>;
  constexpr int L = A::L;
  std::vector<W> numbers(65536 + std::size_t(A::step));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    std::memcpy(static_cast<void*>(&numbers[i]), &bits, sizeof bits);
  }
  // What arrange() does to the places of a step, load() must do as well.
  float places[A::step];
  for (int i = 0; i < int(A::step); ++i) places[i] = static_cast<float>(i);
  kernels::Lanes<float> arranged[A::parts];
  A::arrange(places, arranged);
  for (int i = 1; i <= 65536; i += int(A::step)) {  // from 1: a register's load is aligned to nothing
    const kernels::Lanes<float> loaded[] = {A::template load<0>(&numbers[std::size_t(i)]),
                                            A::template load<1>(&numbers[std::size_t(i)])};
    for (int lane = 0; lane < 2 * L; ++lane) {
      const auto of = static_cast<std::uint16_t>(i + static_cast<int>(arranged[lane / L][lane % L]));
      const double expected = decode(of, exponent_bits);
      const float got = loaded[lane / L][lane % L];
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

#if defined(MOE_HAS_AMX)
// With nothing around it that would have the shapes written: by g++ 12's intrinsic eight bytes of the 64 are read.
[[gnu::noinline]] std::array<std::uint8_t, 64> shapes_of_tiles_in_use() {
  const kernels::TilesInUse tiles;
  std::array<std::uint8_t, 64> shapes;
  asm volatile("sttilecfg %0" : "=m"(shapes));
  return shapes;
}

TEST(Tiles, AreEightOfSixteenRowsOf64Bytes) {
  if (!kernels::pairs_pay()) GTEST_SKIP() << "the system lets nobody use tiles";
  std::array<std::uint8_t, 64> expected{1};
  for (std::size_t i = 0; i < 8; ++i) {
    expected[16 + 2 * i] = 64;
    expected[48 + i] = 16;
  }
  EXPECT_EQ(shapes_of_tiles_in_use(), expected);
}
#endif

}  // namespace moe
