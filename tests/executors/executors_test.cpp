#include "laws/executor_laws.hpp"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/runtime/executors/eigen_thread_pool.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "pools.hpp"

// ThreadSanitizer does not see how OpenMP's own library synchronises.
#if defined(__SANITIZE_THREAD__)
#define MOE_TEST_OPENMP 0
#elif defined(__has_feature)
#define MOE_TEST_OPENMP !__has_feature(thread_sanitizer)
#else
#define MOE_TEST_OPENMP 1
#endif

namespace moe::laws {

struct Serials {
  static Serial make(Index) { return {}; }
};
struct OpenMps {
  static OpenMp make(Index workers) { return test::open_mp(workers); }
};
struct EigenThreadPools {
  struct Owner : std::unique_ptr<Eigen::ThreadPool>, EigenThreadPool {
    explicit Owner(Index workers)
        : std::unique_ptr<Eigen::ThreadPool>(std::make_unique<Eigen::ThreadPool>(static_cast<int>(workers))),
          EigenThreadPool(**this) {}
  };
  static Owner make(Index workers) { return Owner(workers); }
};
struct OwnPools {
  static test::OwnThreads make(Index workers) { return {workers}; }
};
struct ShuffledOrders {
  static test::Shuffled make(Index workers) { return {workers}; }
};

#if MOE_TEST_OPENMP
INSTANTIATE_TYPED_TEST_SUITE_P(OpenMp, ExecutorLaws, OpenMps);
#endif
using Executors = testing::Types<Serials, EigenThreadPools, OwnPools, ShuffledOrders>;
INSTANTIATE_TYPED_TEST_SUITE_P(Library, ExecutorLaws, Executors);

/// A layer of each kind of group, as large as two workers deserve.
struct TwoLayers {
  static constexpr Index d_model = 33, num_experts = 6;
  LinearTopK<float> router{test::random_matrix<Weight<float>>(num_experts, d_model, 1), {.top_k = 2}};
  std::vector<unsigned> seeds{1, 2, 3, 4, 5, 6};
  MoeLayer<LinearTopK<float>, GatedFfnBank<bfloat16>> bank{router, test::GatedFfnBanks<bfloat16>::make(d_model, seeds)};
  MoeLayer<LinearTopK<float>, ExpertList<GatedFfn<float>>> list{
      router, [&] {
        std::vector<GatedFfn<float>> experts;
        for (const unsigned seed : seeds) {
          experts.push_back(test::GatedFfns<float>::make(d_model, seed));
        }
        return experts;
      }()};
};

TEST(MoeLayer, ServesManyThreadsWithAWorkspaceEach) {
  const TwoLayers layers;
  const auto serve = [](const auto& layer) {
    for (const Index num_tokens : {1, 7, 90}) {
      const auto x = test::random_matrix<Matrix<float>>(TwoLayers::d_model, num_tokens, 2);
      const auto expected = layer.forward(x);
      std::vector<Matrix<float>> y(4, Matrix<float>(x.rows(), x.cols()));
      std::vector<std::thread> threads;
      for (auto& its : y) {
        threads.emplace_back([&] {
          Workspace<float> ws;
          for (int repeat = 0; repeat < 3; ++repeat) layer.forward(x, its, ws, test::OwnThreads{2});
        });
      }
      for (auto& thread : threads) thread.join();
      for (const auto& its : y) EXPECT_TRUE(test::same_bits(its, expected)) << num_tokens << " tokens";
    }
  };
  serve(layers.bank);
  serve(layers.list);
}

TEST(EigenThreadPool, ServesManyCallersAtOnce) {
  const TwoLayers layers;
  Eigen::ThreadPool pool(3);
  const auto x = test::random_matrix<Matrix<float>>(TwoLayers::d_model, 70, 2);
  const auto expected = layers.bank.forward(x);
  std::vector<Matrix<float>> y(3, Matrix<float>(x.rows(), x.cols()));
  std::vector<std::thread> threads;
  for (auto& its : y) {
    threads.emplace_back([&] {
      Workspace<float> ws;
      for (int repeat = 0; repeat < 3; ++repeat) layers.bank.forward(x, its, ws, EigenThreadPool(pool));
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& its : y) EXPECT_TRUE(test::same_bits(its, expected));
}

TEST(EigenThreadPool, CountsTheCallerAsAWorker) {
  Eigen::ThreadPool pool(3);
  EXPECT_EQ(EigenThreadPool(pool).workers(), 4);
}

TEST(GatedFfnBank, GivesTheSameBitsOnEveryExecutor) {
  const TwoLayers layers;
  Eigen::ThreadPool pool(4);
  for (const Index num_tokens : {0, 1, 7, 15, 16, 17, 90}) {
    const auto x = test::random_matrix<Matrix<float>>(TwoLayers::d_model, num_tokens, 2);
    const auto serial = layers.bank.forward(x);
    EXPECT_TRUE(test::same_bits(layers.bank.forward(x, EigenThreadPool(pool)), serial)) << num_tokens << " tokens";
    for (const Index workers : {1, 2, 3, 5, 8}) {
      EXPECT_TRUE(test::same_bits(layers.bank.forward(x, test::OwnThreads{workers}), serial))
          << num_tokens << " tokens";
    }
  }
}

TEST(MoeLayer, BringsTheErrorOfAnExpertToTheCaller) {
  const Index d_model = 4;
  std::vector<AnyExpert<float>> experts;
  for (int e = 0; e < 5; ++e) {
    experts.push_back(expert_from<float>(d_model, [e](const auto& x, auto y) {
      if (e >= 2) throw std::runtime_error("expert " + std::to_string(e));
      y = x;
    }));
  }
  const MoeLayer layer(LinearTopK<float>(test::random_matrix<Weight<float>>(5, d_model, 1), {.top_k = 5}), experts);
  const auto x = test::random_matrix<Matrix<float>>(d_model, 20, 2);
  Workspace<float> ws;
  Matrix<float> y(d_model, 20);
  const auto expect_error = [&](ExecutorRef executor) {
    try {
      layer.forward(x, y, ws, executor);
      ADD_FAILURE() << "no error";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()).substr(0, 7), "expert ");
    }
  };
  Eigen::ThreadPool pool(2);
  for (int repeat = 0; repeat < 3; ++repeat) {  // a workspace that saw an error is as good as before
    expect_error(Serial{});
    expect_error(test::OwnThreads{3});
    expect_error(EigenThreadPool(pool));
#if MOE_TEST_OPENMP
    expect_error(test::open_mp(3));
#endif
  }
}

TEST(FirstError, KeepsTheFirstAndRunsNothingAfterIt) {
  FirstError error;
  error.rethrow();  // nothing to throw yet
  int runs = 0;
  error.run([&] { ++runs; });
  error.run([&] { throw std::runtime_error("first"); });
  error.run([&] {
    ++runs;
    throw std::runtime_error("second");
  });
  EXPECT_EQ(runs, 1);
  try {
    error.rethrow();
    ADD_FAILURE() << "no error";
  } catch (const std::runtime_error& caught) {
    EXPECT_STREQ(caught.what(), "first");
  }
}

#ifndef _OPENMP
TEST(OpenMp, WithoutItsFlagRefusesToBeMany) {
  EXPECT_EQ(OpenMp(1).workers(), 1);
  try {
    OpenMp many(4);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "OpenMp: workers is 4, expected 1 in a file that is compiled without -fopenmp: add that "
                 "flag, or OpenMP::OpenMP_CXX in CMake");
  }
}
#else
TEST(OpenMp, RefusesToBeNobodyOrMoreThanOpenMPCounts) {
  for (const Index workers : {Index(0), Index(-1), Index(1) << 31, (Index(1) << 32) + 2}) {
    EXPECT_EQ(test::error_of([&] { OpenMp nobody(workers); }),
              "OpenMp: workers is " + std::to_string(workers) + ", expected 1 to 2147483647");
  }
  EXPECT_GE(OpenMp().workers(), 1);
}
#endif

}  // namespace moe::laws
