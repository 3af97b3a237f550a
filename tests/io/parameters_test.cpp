// Saving and resuming in the middle of training.
#include "moe/io/parameters.hpp"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using test::random_matrix;
using test::same_bits;

struct Folder : test::TemporaryFolder {
  Folder() : TemporaryFolder("parameters") {}
};

auto make_layer(unsigned seed) {
  return MoeLayer(LinearTopK<float>(random_weight<float>(4, 6, seed), {.top_k = 2, .renormalize = true}),
                  random_bank<float>(4, 6, 8, seed + 1));
}

template <class Optimiser>
class Training {
 public:
  explicit Training(unsigned seed)
      : layer_(make_layer(seed)), gradient_(zeros_like(layer_)), optimiser_(parameters(layer_)) {}

  void run(unsigned first, unsigned last) {
    auto tape = tape_of(layer_);
    for (unsigned step = first; step < last; ++step) {
      const auto x = random_matrix<Matrix<float>>(6, 20, 100 + step);
      Matrix<float> y(6, 20), d_x = Matrix<float>::Zero(6, 20);
      forward(layer_, x, y, tape);
      set_to_zero(parameters(gradient_));
      backward(layer_, x, y - x, tape, d_x, gradient_);
      optimiser_.step(parameters(gradient_));
    }
  }

  /// The layer's parameters and the optimiser's memory.
  std::vector<Parameter<float>> state() {
    auto all = parameters(layer_);
    for (auto& parameter : optimiser_.state()) all.push_back(parameter);
    return all;
  }

 private:
  decltype(make_layer(0)) layer_, gradient_;
  Optimiser optimiser_;
};

template <class Optimiser>
class Resuming : public testing::Test {};
using Optimisers = testing::Types<AdamW<float>, Sgd<float>>;
TYPED_TEST_SUITE(Resuming, Optimisers);

TYPED_TEST(Resuming, GoesOnBitForBit) {
  const Folder folder;
  Training<TypeParam> whole(1), before(1), after(7);
  whole.run(0, 10);
  before.run(0, 5);
  save_parameters(folder.path / "state.safetensors", before.state(), {{"step", "5"}});
  load_parameters(folder.path / "state.safetensors", after.state());
  after.run(5, 10);
  const auto expected = whole.state(), got = after.state();
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t p = 0; p < got.size(); ++p) {
    EXPECT_EQ(got[p].name, expected[p].name);
    EXPECT_TRUE(same_bits(got[p].matrix(), expected[p].matrix())) << got[p].name;
  }
}

TEST(LoadParameters, RefusesWhatDoesNotFitAndChangesNothing) {
  const Folder folder;
  const fs::path path = folder.path / "state.safetensors";
  auto layer = make_layer(1);
  save_parameters(path, parameters(layer));

  auto other = MoeLayer(LinearTopK<float>(random_weight<float>(4, 6, 5), {.top_k = 2}), random_bank<float>(4, 6, 9, 6));
  const auto before = parameters(other).front().matrix().eval();
  const std::string shape = test::error_of<Error>([&] { load_parameters(path, parameters(other)); });
  EXPECT_NE(shape.find("\"experts.0.gate_proj.weight\" has shape [8, 6], expected [9, 6]"), shape.npos) << shape;
  EXPECT_NE(shape.find(path.string()), shape.npos) << shape;
  EXPECT_TRUE(same_bits(parameters(other).front().matrix().eval(), before));

  AdamW<float> adam(parameters(layer));
  const std::string missing = test::error_of<Error>([&] { load_parameters(path, adam.state()); });
  EXPECT_NE(missing.find("no tensor \"adamw.steps\""), missing.npos) << missing;
}

TEST(SaveParameters, LeavesTheOldFileWholeWhenItFails) {
  const Folder folder;
  const fs::path path = folder.path / "state.safetensors";
  auto old = make_layer(1), next = make_layer(2), read = make_layer(3);
  save_parameters(path, parameters(old));

  // The file system takes a thousand bytes, then no more.
  rlimit was{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &was), 0);
  const rlimit tight{1000, was.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  const std::string error = test::error_of<Error>([&] { save_parameters(path, parameters(next)); });
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &was), 0);
  std::signal(SIGXFSZ, handler);

  EXPECT_NE(error.find("cannot be written"), error.npos) << error;
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator{}), 1)
      << "nothing is left beside";
  load_parameters(path, parameters(read));
  const auto expected = parameters(old), got = parameters(read);
  for (std::size_t p = 0; p < got.size(); ++p) {
    EXPECT_TRUE(same_bits(got[p].matrix(), expected[p].matrix())) << got[p].name;
  }
}

}  // namespace
}  // namespace moe::io
