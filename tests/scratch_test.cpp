#include "allocations.hpp"

#include "moe/core/scratch.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/core/check.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "pools.hpp"
#include "random.hpp"

namespace moe {

using test::allocations_in;
using test::error_of;

TEST(Scratch, HandsOutAlignedMemoryThatNobodyElseHolds) {
  test::Random random(1);
  for (int round = 0; round < 5; ++round) {
    Scratch scratch;
    std::vector<std::pair<unsigned char*, Index>> live;
    for (int i = 0; i < 50; ++i) {
      const Index size = random.below(i % 10 == 9 ? 100000 : 300);
      auto* memory = scratch.array<unsigned char>(size);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % Scratch::alignment, 0U);
      std::fill_n(memory, size, static_cast<unsigned char>(i));
      live.emplace_back(memory, size);
    }
    for (std::size_t i = 0; i < live.size(); ++i) {  // all still there, where they were
      for (Index k = 0; k < live[i].second; ++k) ASSERT_EQ(live[i].first[k], i);
    }
  }
}

TEST(Scratch, HandsOutMatrices) {
  Scratch scratch;
  auto a = scratch.matrix<double>(3, 5);
  auto b = scratch.matrix<float>(7, 2);
  a.setConstant(1);
  b.setConstant(2);
  EXPECT_EQ(a.rows(), 3);
  EXPECT_EQ(a.cols(), 5);
  EXPECT_EQ(a.sum(), 15);
  EXPECT_EQ(b.sum(), 28);
  EXPECT_EQ(scratch.matrix<float>(0, 4).cols(), 4);
  EXPECT_EQ(scratch.matrix<float>(4, 0).rows(), 4);
}

TEST(Scratch, AskedForNothingGivesAnAddress) {
  Scratch scratch;
  EXPECT_NE(scratch.array<float>(0), nullptr);
  EXPECT_NE(scratch.array<float>(3), nullptr);
}

TEST(Scratch, AllocatesNothingOnceWarm) {
  Scratch scratch;
  const auto use = [&](Index most) {
    scratch.reset();
    for (Index n = 1; n <= most; n *= 3) scratch.array<float>(n);
    scratch.matrix<double>(most, 3);
  };
  use(5000);
  use(5000);  // joins the blocks
  for (const Index most : {5000, 1, 700, 4999, 5000}) EXPECT_EQ(allocations_in([&] { use(most); }), 0) << most;
}

TEST(Scratch, HoldsAtLeastWhatAResetAsksFor) {
  Scratch scratch;
  EXPECT_EQ(scratch.capacity(), 0U);
  scratch.reset(1000);
  EXPECT_GE(scratch.capacity(), 1000U);
  EXPECT_EQ(allocations_in([&] { scratch.array<char>(1000); }), 0);
  const auto before = scratch.capacity();
  scratch.reset(10);
  EXPECT_EQ(scratch.capacity(), before);
}

TEST(Workers, GiveEachTaskAnEmptyScratchThatNobodySharesMeanwhile) {
  const test::OwnThreads executor{3};
  std::vector<Scratch> memory;
  Workers workers(executor, memory);
  EXPECT_EQ(workers.count(), 3);
  float* shared = workers.shared().array<float>(100);
  workers.for_each(100, [&](Index i, Scratch& scratch) {
    auto its = scratch.matrix<Index>(10, 10);
    its.setConstant(i);
    shared[i] = static_cast<float>(its.sum());
  });
  for (Index i = 0; i < 100; ++i) EXPECT_EQ(shared[i], static_cast<float>(100 * i));
}

TEST(Workers, CutARangeIntoBandsOfWholeGrains) {
  for (const Index num_workers : {1, 2, 3, 5, 8}) {
    const test::Shuffled executor{num_workers};
    std::vector<Scratch> memory;
    Workers workers(executor, memory);
    for (const Index n : {0, 1, 15, 16, 17, 100, 1000}) {
      for (const Index grain : {1, 16}) {
        std::vector<int> covered(std::size_t(n), 0);
        Index bands = 0;
        workers.for_each_band(n, grain, [&](Index first, Index last, Scratch&) {
          ++bands;
          EXPECT_LT(first, last);
          EXPECT_EQ(first % grain, 0);
          EXPECT_TRUE(last % grain == 0 || last == n);
          for (Index i = first; i < last; ++i) ++covered.at(std::size_t(i));
        });
        EXPECT_EQ(bands, std::min(num_workers, (n + grain - 1) / grain));
        EXPECT_EQ(covered, std::vector<int>(std::size_t(n), 1)) << n << " by " << grain;
      }
    }
  }
}

struct InTurn {
  Index workers() const { return 4; }
  void for_each(Index n, const Task& task) const {
    for (Index i = 0; i < n; ++i) task(i, i % 4);
  }
};

TEST(Workers, KeepTheirMemoryAlike) {
  const InTurn executor;
  std::vector<Scratch> memory(5);
  memory[3].array<char>(5000);  // only worker 2 had something to do so far
  Workers workers(executor, memory);
  EXPECT_EQ(allocations_in([&] { workers.for_each(8, [](Index, Scratch& scratch) { scratch.array<char>(5000); }); }),
            0);
}

TEST(Require, NamesTheNumbers) {
  EXPECT_EQ(error_of([] { require_equal(8, 8, "Layer: x.rows()"); }), "no error");
  EXPECT_EQ(error_of([] { require_equal(7, 8, "Layer: x.rows()"); }), "Layer: x.rows() is 7, expected 8");
  EXPECT_EQ(error_of([] { require_between(1, 1, 3, "top_k"); }), "no error");
  EXPECT_EQ(error_of([] { require_between(1, 3, 3, "top_k"); }), "no error");
  EXPECT_EQ(error_of([] { require_between(1, 0, 3, "top_k"); }), "top_k is 0, expected 1 to 3");
  EXPECT_EQ(error_of([] { require_between(1, 4, 3, "top_k"); }), "top_k is 4, expected 1 to 3");
  EXPECT_EQ(error_of([] { require(true, "message"); }), "no error");
  EXPECT_EQ(error_of([] { require(false, "message"); }), "message");
}

TEST(Overlap, IsASharedNumber) {
  Matrix<float> m(8, 10);
  EXPECT_TRUE(overlap(m, m));
  EXPECT_TRUE(overlap(m.leftCols(5), m.middleCols(4, 5)));
  EXPECT_FALSE(overlap(m.leftCols(5), m.rightCols(5)));
  EXPECT_FALSE(overlap(m.rightCols(5), m.leftCols(5)));
  EXPECT_TRUE(overlap(m.block(2, 3, 1, 1), m));
  EXPECT_TRUE(overlap(m, m.block(7, 9, 1, 1)));

  EXPECT_FALSE(overlap(m, Matrix<float>(8, 10)));
  EXPECT_FALSE(overlap(m.leftCols(0), m));
  EXPECT_FALSE(overlap(m, m.topRows(0)));
}

TEST(Overlap, BlocksOfRowsLieBetweenEachOther) {
  Matrix<double> m(8, 10);
  EXPECT_FALSE(overlap(m.topRows(4), m.bottomRows(4)));
  EXPECT_FALSE(overlap(m.bottomRows(4), m.topRows(4)));
  EXPECT_TRUE(overlap(m.topRows(5), m.bottomRows(5)));
  EXPECT_TRUE(overlap(m.bottomRows(5), m.topRows(5)));
  EXPECT_FALSE(overlap(m.block(0, 2, 4, 5), m.block(4, 0, 4, 5)));  // also when shifted by columns
  EXPECT_FALSE(overlap(m.block(4, 0, 4, 5), m.block(0, 2, 4, 5)));
  EXPECT_TRUE(overlap(m.block(0, 2, 5, 5), m.block(4, 0, 4, 5)));
  EXPECT_FALSE(overlap(m.block(0, 0, 2, 10), m.block(2, 0, 6, 10)));  // of different height, too
  EXPECT_FALSE(overlap(m.block(2, 0, 6, 10), m.block(0, 0, 2, 10)));
  EXPECT_TRUE(overlap(m.block(0, 0, 2, 10), m.block(1, 0, 6, 10)));
  EXPECT_TRUE(overlap(m.block(1, 0, 6, 10), m.block(0, 0, 2, 10)));
}

TEST(Overlap, OfSingleColumnsIsExact) {
  Matrix<float> m(8, 3);
  EXPECT_FALSE(overlap(m.col(0), m.col(1)));
  EXPECT_TRUE(overlap(m.col(1), m.col(1)));
  EXPECT_FALSE(overlap(m.col(1).head(4), m.col(1).tail(4)));
  EXPECT_TRUE(overlap(m.col(1).head(5), m.col(1).tail(4)));
}

TEST(WeightStack, OwnedStartsAtZeroAndKeepsWhatIsWritten) {
  WeightStack<bfloat16> stack(3, 2, 5);
  EXPECT_TRUE(stack.is_owned());
  EXPECT_EQ(stack.num_experts(), 3);
  EXPECT_EQ(stack.rows(), 2);
  EXPECT_EQ(stack.cols(), 5);
  EXPECT_EQ(stack.row_stride(), 5);
  for (Index e = 0; e < 3; ++e) EXPECT_TRUE(stack[e].cast<float>().isZero(0));
  stack.owned(1).setConstant(bfloat16(2));
  const WeightStack<bfloat16> copy = stack;
  stack.owned(1).setConstant(bfloat16(3));
  EXPECT_EQ(copy[1].cast<float>().sum(), 20);  // a copy of its own
  EXPECT_EQ(stack[1].cast<float>().sum(), 30);
  EXPECT_EQ(stack[1].data() - stack[0].data(), 10);  // stacked [num_experts][rows][cols]
  EXPECT_TRUE(stack[0].cast<float>().isZero(0) && stack[2].cast<float>().isZero(0));
}

TEST(WeightStack, MappedReadsInPlaceAndKeepsTheMemoryAlive) {
  auto memory = std::make_shared<std::vector<float>>(40);
  for (std::size_t i = 0; i < 40; ++i) (*memory)[i] = static_cast<float>(i);
  const std::weak_ptr<const void> watch = memory;
  {
    const WeightStack<float> stack({memory->data() + 20, memory->data() + 1}, 2, 3, 4, memory);
    memory.reset();
    EXPECT_FALSE(watch.expired());
    EXPECT_FALSE(stack.is_owned());
    EXPECT_EQ(stack.num_experts(), 2);
    EXPECT_EQ(stack[0](0, 0), 20);
    EXPECT_EQ(stack[0](1, 2), 26);
    EXPECT_EQ(stack[1](1, 0), 5);
    EXPECT_EQ(stack[1].data(), stack[0].data() - 19);
  }
  EXPECT_TRUE(watch.expired());
}

TEST(WeightStack, IsMadeOfMatricesOfOneShape) {
  std::vector<Matrix<float>> columns(3);
  std::vector<Weight<float>> rows(3);
  for (std::size_t e = 0; e < 3; ++e) rows[e] = columns[e] = Matrix<float>::Constant(2, 5, float(e + 1));
  rows[1](1, 4) = columns[1](1, 4) = 7;
  for (const WeightStack<float>& stack : {owned(columns), owned(rows)}) {
    EXPECT_TRUE(stack.is_owned());
    ASSERT_EQ(stack.num_experts(), 3);
    for (Index e = 0; e < 3; ++e) EXPECT_EQ(stack[e], rows[std::size_t(e)]);
  }
  EXPECT_EQ(owned(std::vector<Weight<float>>()).num_experts(), 0);
  rows[2].resize(3, 5);
  EXPECT_EQ(error_of([&] { owned(rows); }), "owned: experts[2].rows() is 3, expected 2");
  columns[1].resize(2, 4);
  EXPECT_EQ(error_of([&] { owned(columns); }), "owned: experts[1].cols() is 4, expected 5");
}

TEST(WeightStack, IsMadeOfNumbersThatLieStacked) {
  const auto numbers = std::make_shared<std::vector<float>>(3 * 2 * 5);
  for (std::size_t i = 0; i < numbers->size(); ++i) (*numbers)[i] = float(i);
  const WeightStack<float> in_place = mapped<float>(*numbers, 3, 2, 5);
  EXPECT_FALSE(in_place.is_owned());
  EXPECT_EQ(in_place[2].data(), numbers->data() + 20);
  EXPECT_EQ(in_place[2](1, 4), 29.0f);
  const std::weak_ptr watch(numbers);
  {
    const WeightStack<float> keeping = mapped<float>(*numbers, 3, 2, 5, numbers);
    EXPECT_EQ(watch.use_count(), 2);
  }
  EXPECT_EQ(error_of([&] { mapped<float>(*numbers, 3, 2, 4); }), "mapped: numbers.size() is 30, expected 24");
}

TEST(WeightStack, OfPointersHasRowsOneAfterTheOtherUnlessTold) {
  const std::vector<float> numbers = {0, 1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(WeightStack<float>({numbers.data() + 2}, 2, 3)[0](1, 0), 5.0f);
  EXPECT_EQ(WeightStack<float>({numbers.data() + 2}, 2, 2, 4)[0](1, 0), 6.0f);
}

TEST(WeightStack, RefusesSizesThatNoWeightsHave) {
  EXPECT_EQ(error_of([] { WeightStack<float>(-1, 2, 3); }), "WeightStack: num_experts is -1, expected at least 0");
  EXPECT_EQ(error_of([] { WeightStack<float>(1, -2, -3); }), "WeightStack: rows is -2, expected at least 0");
  EXPECT_EQ(error_of([] { WeightStack<float>(1, Index(1) << 31, Index(1) << 30); }),
            "WeightStack: num_experts × rows × cols is 1 × 2147483648 × 1073741824, more than any memory holds");
  const std::vector<float> six(6);
  EXPECT_EQ(error_of([&] { mapped<float>(six, 1, -2, -3); }), "mapped: rows is -2, expected at least 0");
  EXPECT_EQ(error_of([&] { mapped<float>(six, -1, 2, -3); }), "mapped: num_experts is -1, expected at least 0");
  EXPECT_EQ(error_of([&] { WeightStack<float>({six.data()}, 2, -3); }), "WeightStack: cols is -3, expected at least 0");
}

TEST(WeightStack, RefusesAnExpertThatIsNowhere) {
  const std::vector<float> six(6);
  EXPECT_EQ(error_of([&] { WeightStack<float>({six.data(), nullptr}, 2, 3); }), "WeightStack: experts[1] is null");
  EXPECT_EQ(WeightStack<float>({nullptr}, 0, 3).num_experts(), 1);  // of which nobody reads a number
}

TEST(WeightStack, RefusesToWriteMappedWeightsAndRowsThatOverlap) {
  const std::vector<float> memory(40);
  WeightStack<float> stack({memory.data()}, 2, 3, 3, nullptr);
  EXPECT_EQ(error_of([&] { stack.owned(0); }), "WeightStack: mapped weights cannot be written");
  const auto complaint = error_of([&] { WeightStack<float>({memory.data()}, 2, 3, 2, nullptr); });
  EXPECT_EQ(complaint.substr(0, 40), "WeightStack: row_stride is 2, expected 3") << complaint;
}

}  // namespace moe
