/// @file  The router of most published models: a linear layer whose best scores choose the experts.
#pragma once

#include <utility>

#include "moe/core/types.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// logits = W·x + bias, in Scalar; then TopKChoice. Mixtral, Qwen, DeepSeek, Llama 4, gpt-oss and many others: see
/// TopKOptions for how they differ. The selection bias is not learnt by gradients: losses/bias_update.hpp.
template <class Scalar>
class LinearTopK : public LogitsRouter<LinearLogits<Scalar>, TopKChoice<Scalar>> {
 public:
  /// @param weight          (num_experts × d_model): row e scores expert e
  /// @param bias            (num_experts) added to the logits, or empty
  /// @param selection_bias  (num_experts − always_chosen) added to the scores when choosing, not when weighting; or
  ///                        empty
  /// @throws std::invalid_argument unless the sizes fit and TopKChoice takes the options.
  LinearTopK(Weight<Scalar> weight, const TopKOptions& options, Vector<Scalar> bias = {},
             Vector<Scalar> selection_bias = {})
      : LinearTopK::LogitsRouter(LinearLogits<Scalar>(std::move(weight), std::move(bias), "LinearTopK"), std::in_place,
                                 options, std::move(selection_bias), "LinearTopK") {}
};

}  // namespace moe::inline MOE_TARGET
