#include "laws/experts_laws.hpp"

#include <span>
#include <vector>

#include "expert_factories.hpp"
#include "moe/lora/bank.hpp"

namespace moe::laws {

/// Adapters of rank 0, 1, 2 and 3 beside GatedFfnBanks, or beside FfnBanks.
template <class W, class Act = SwiGlu, bool with_biases = false>
struct LoraBanks {
  static constexpr bool is_gated = FfnBank<W, Act>::is_gated;

  static auto bank(Index d_model, std::span<const unsigned> seeds) {
    if constexpr (is_gated) {
      return test::GatedFfnBanks<W, Act, with_biases>::make(d_model, seeds);
    } else {
      return test::FfnBanks<W, Act, with_biases>::make(d_model, seeds);
    }
  }

  static LoraBank<W, Act> make(Index d_model, std::span<const unsigned> seeds) {
    using Scalar = ActivationScalar<W>;
    const Index d_ff = test::hidden_size(d_model);
    std::vector<ExpertAdapters<Scalar>> adapters;
    for (const unsigned seed : seeds) {
      Random random(seed + 1000);
      const Index rank = seed % 4;
      const auto make = [&](Index out, Index in) {
        return Adapter<Scalar>{random.matrix<Weight<Scalar>>(rank, in, 1 / std::sqrt(double(in))),
                               random.matrix<Weight<Scalar>>(out, rank), 0.7};
      };
      auto gate = is_gated ? make(d_ff, d_model) : Adapter<Scalar>(), up = make(d_ff, d_model),
           down = make(d_model, d_ff);
      adapters.push_back({std::move(gate), std::move(up), std::move(down)});
    }
    return {bank(d_model, seeds), std::move(adapters)};
  }
};

using Adapted =
    testing::Types<LoraBanks<double, SwiGlu, true>, LoraBanks<float>, LoraBanks<bfloat16>,
                   LoraBanks<float16, GptOssGlu, true>, LoraBanks<float, ReluSquared>, LoraBanks<bfloat16, Gelu, true>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Adapted, ExpertsLaws, Adapted);

}  // namespace moe::laws
