#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/learn.hpp"
#include "distributed/ranks.hpp"
#include "golden_checks/gradients.hpp"
#include "load_trainable_layer.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/moe.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/train.hpp"
#include "moe/train/distributed/expert_parallel.hpp"
#include "moe/train/distributed/gradient_reducer.hpp"

namespace moe::distributed {

namespace fs = std::filesystem;

template <class E>
ExpertList<E> some_of(const ExpertList<E>& all, const std::vector<Index>& experts) {
  std::vector<E> some;
  for (const Index e : experts) some.push_back(all[e]);
  return ExpertList(std::move(some));
}

template <class Act>
GatedFfnBank<float, Act> some_of(const GatedFfnBank<float, Act>& all, const std::vector<Index>& experts) {
  const auto stack = [&](const WeightStack<float>& weights) {
    WeightStack<float> some(std::ssize(experts), weights.rows(), weights.cols());
    for (std::size_t i = 0; i < experts.size(); ++i) some.owned(Index(i)) = weights[experts[i]];
    return some;
  };
  const auto columns = [&](const Matrix<float>& bias) {
    return bias.size() > 0 ? Matrix<float>(bias(every, experts)) : Matrix<float>();
  };
  const auto& [gate, up, down] = all.biases();
  return std::decay_t<decltype(all)>::of(stack(all.w_gate()), stack(all.w_up()), stack(all.w_down()), all.activation(),
                                         {columns(gate), columns(up), columns(down)});
}

class LayerLoader : io::detail::LayerLoader<float> {
 public:
  using io::detail::LayerLoader<float>::LayerLoader;

  /// f(the layer of one process, the same with its experts on all ranks)
  template <class F>
  void with_layers(const F& f) const {
    if (has_capacity()) {
      const WithCapacity router(top_k(), block_.names.capacity(block_.config));
      return with_experts(own<AnyActivation>(), [&](const auto& all, const auto& on_ranks) {
        f(MoeLayer(router, all), MoeLayer(router, on_ranks));
      });
    }
    const auto router = top_k();
    const auto sparse = [&](const auto& all, const auto& on_ranks) {
      f(MoeLayer(router, all), MoeLayer(router, on_ranks));
    };
    if (!is_swiglu(block_.shape.hidden)) return with_experts(own<AnyGatedActivation>(), sparse);
    if (block_.shape.d_ff_shared == 0) return with_experts(own<SwiGlu>(), sparse);
    with_experts(own<SwiGlu>(), [&](const auto& all, const auto& on_ranks) {
      const auto shared = owned(io::detail::ExpertsLoader<float>(block_).shared<float, SwiGlu>());
      const auto gate = block_.vector_if<float>(block_.shape.shared_gate, block_.names.shared_gate, {1, block_.d()});
      f(WithSharedExpert(MoeLayer(router, all), shared, gate.transpose()),
        WithSharedExpert(MoeLayer(router, on_ranks), shared, gate.transpose()));
    });
  }

  bool has_capacity() const { return block_.names.capacity != nullptr; }

 private:
  LinearTopK<float> top_k() const { return io::detail::RouterLoader<float>(block_).top_k(); }

  template <class Act>
  FfnBank<float, Act> own() const {
    const io::detail::ExpertsLoader<float> experts(block_);
    return owned(experts.bank<float, Act>(block_.tensors, block_.spelling, block_.shape.hidden));
  }

  /// f(all experts, the same on all ranks)
  template <class G, class F>
  void with_experts(const G& all, const F& f) const {
    const Placement placement = test::dealt(all.num_experts(), test::num_ranks());
    const auto own = placement.experts_of(test::my_rank());
    f(all, ExpertParallel(own.empty() ? std::nullopt : std::optional(some_of(all, own)), placement, MPI_COMM_WORLD));
  }
};

/// Layers whose gradients a reference has computed.
std::vector<fs::path> cases() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(MOE_SOURCE_DIR "/tests/golden")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const auto reference = golden::Case::open(entry.path());
    const auto type = reference.config.text("model_type");
    if (io::find_architecture(type) != nullptr && reference.has("grad_output")) folders.push_back(entry.path());
  }
  std::ranges::sort(folders);
  return folders;
}

class GoldenGradients : public testing::TestWithParam<fs::path> {};

TEST_P(GoldenGradients, AreWhatTheReferenceComputesAndToTheBitWhatOneProcessDoes) {
  const auto reference = golden::Case::open(GetParam());
  const Matrix<float> x = reference.columns("input"), d_y = reference.columns("grad_output");
  const auto expected = test::load_reference_gradients(GetParam());
  io::detail::with_block(GetParam(), "", nullptr, [&](const auto&... block) {
    const LayerLoader loader(block...);
    // A part of the tokens on each rank; where they compete for room, all of them on the last one.
    const int rank = test::my_rank(), ranks = test::num_ranks();
    const bool all_on_one = loader.has_capacity();
    const Index first = all_on_one ? 0 : x.cols() * rank / ranks;
    const Index last = all_on_one ? (rank + 1) / ranks * x.cols() : x.cols() * (rank + 1) / ranks;
    const Matrix<float> own_x = x.middleCols(first, last - first), own_d_y = d_y.middleCols(first, last - first);
    SideInputs<float> side, own_side;
    side.sequence_length = reference.size("_sequence_length");
    own_side.sequence_length = all_on_one ? side.sequence_length : last - first;

    loader.with_layers([&](const auto& alone, const auto& on_ranks) {
      auto whole = test::learn(alone, x, d_y, Serial{}, Copies::first, side);
      auto part = test::learn(on_ranks, own_x, own_d_y, Serial{}, Copies::first, own_side);
      EXPECT_TRUE(test::same_bits(part.y, whole.y.middleCols(first, last - first)));
      EXPECT_TRUE(test::same_bits(part.d_x, whole.d_x.middleCols(first, last - first)));
      golden::expect_close(part.d_x, reference.columns("grad_input").middleCols(first, last - first), "grad_input",
                           golden::gradient_tolerance);

      GradientReducer gradients(parameters(part.gradient), MPI_COMM_WORLD);
      gradients.sum();
      const auto bits = test::named(whole.gradient);
      std::size_t found = 0;
      for (const auto& gradient : expected.parameters()) {
        const auto its = std::ranges::find(gradients.parameters(), gradient.name, &Parameter<float>::name);
        if (its == gradients.parameters().end()) continue;
        ++found;
        golden::expect_close(its->matrix(), gradient.matrix(), gradient.name, golden::gradient_tolerance);
        if (all_on_one || gradient.name.starts_with("experts.")) {
          EXPECT_TRUE(test::same_bits(Weight<float>(its->matrix()), bits.at(gradient.name))) << gradient.name;
        }
      }
      EXPECT_EQ(found, gradients.parameters().size());
    });
  });
}

INSTANTIATE_TEST_SUITE_P(Layers, GoldenGradients, testing::ValuesIn(cases()),
                         [](const auto& param) { return param.param.filename().string(); });

}  // namespace moe::distributed
