/// @file  Auxiliary losses: each one of `_losses`, and those of routers that come with some.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "golden_checks/common.hpp"
#include "moe/io/json.hpp"
#include "moe/losses/importance.hpp"
#include "moe/losses/load_balancing.hpp"
#include "moe/losses/smooth_load.hpp"
#include "moe/losses/variation.hpp"
#include "moe/losses/z_loss.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/noisy_top_k.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train.hpp"

namespace moe::golden {

/// What TopKChoice makes of these logits, (num_experts × n_tokens).
inline Routing<float> choose_top_k(const Matrix<float>& logits, const TopKOptions& options) {
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Routing<float> routing;
  make_logits(logits.rows(), logits.cols(), routing) = logits;
  TopKChoice<float>(logits.rows(), options).route(logits, routing, workers);
  return routing;
}

inline double balance_of(const Routing<float>& routing, const Matrix<float>& logits,
                         const LoadBalancingOptions& options) {
  return load_balancing_loss(measure_shares(routing, logits.cols(), logits.rows(), options));
}

/// One of `_losses`: its logits, a matrix a layer, and its constants.
struct LossCase {
  const Case& reference;
  const nlohmann::json& settings;
  std::vector<Matrix<float>> logits = {};

  Index top_k() const { return reference.size("num_experts_per_tok"); }
  Index sequence_length() const { return reference.size("_sequence_length"); }
  double constant(const char* key) const { return settings.at(key).get<double>(); }

  std::vector<std::uint8_t> mask() const {
    const auto tokens = reference.columns<std::int64_t>("attention_mask");
    return {tokens.data(), tokens.data() + tokens.size()};
  }
  ExpertShares shares(std::size_t layer, const LoadBalancingOptions& options) const {
    const Matrix<float>& l = logits[layer];
    return measure_shares(choose_top_k(l, {.top_k = top_k()}), l.cols(), l.rows(), options);
  }
  double balance(const LoadBalancingOptions& options) const { return load_balancing_loss(shares(0, options)); }
  double z(std::size_t layer = 0) const { return z_loss(logits[layer]); }
};

using LossValues = std::vector<double>;
using LossGradients = std::vector<Matrix<float>>;  // by the logits of each layer

/// The tokens of all layers as one batch.
inline LossValues balance_of_all_layers(const LossCase& its, const LoadBalancingOptions& options) {
  ExpertShares shares;
  for (std::size_t layer = 0; layer < its.logits.size(); ++layer) shares += its.shares(layer, options);
  return {load_balancing_loss(shares)};
}

inline LossValues mean_balance_of_layers(const LossCase& its) {
  double sum = 0;
  for (std::size_t layer = 0; layer < its.logits.size(); ++layer) sum += load_balancing_loss(its.shares(layer, {}));
  return {its.constant("moe_loss_weight") * sum / double(its.logits.size())};
}

inline LossValues z_of_each_layer(const LossCase& its) {
  LossValues values;
  for (std::size_t layer = 0; layer < its.logits.size(); ++layer) {
    values.push_back(its.constant("moe_zloss_weight") * its.z(layer));
  }
  return values;
}

/// Tutel's: probabilities are compared with logits.
inline LossValues load_and_importance(const LossCase& its) {
  const Matrix<float>& logits = its.logits[0];
  Matrix<float> probability(logits.rows(), logits.cols());
  for (Index t = 0; t < logits.cols(); ++t) softmax(logits.col(t), probability.col(t));
  const auto stddev = float(its.constant("gate_noise") / double(logits.rows()));
  Scratch scratch;
  Eigen::ArrayXd load;
  measure_smooth_load<float>({.clean = probability,
                              .noisy = logits,
                              .ranked = logits,
                              .stddev = Matrix<float>::Constant(logits.rows(), logits.cols(), stddev)},
                             {.top_k = its.top_k(), .threshold = LoadThreshold::of_all}, load, scratch);
  const double importance = squared_variation(its.shares(0, {}).probability.col(0));
  return {(importance + squared_variation(load)) / 2};
}

/// By name. Definitions are in the case's config.json.
inline const std::map<std::string, std::function<LossValues(const LossCase&)>>& loss_functions() {
  static const std::map<std::string, std::function<LossValues(const LossCase&)>> functions = {
      {"hf_load_balancing", [](const LossCase& its) { return balance_of_all_layers(its, {.divide_by_k = false}); }},
      {"hf_load_balancing_masked",
       [](const LossCase& its) {
         const auto mask = its.mask();
         return balance_of_all_layers(its, {.divide_by_k = false, .mask = mask});
       }},
      {"switch_load_balancing",
       [](const LossCase& its) -> LossValues {
         return {its.balance({.choices = 1, .sequence_length = its.sequence_length()})};
       }},
      {"switch_router_z", [](const LossCase& its) -> LossValues { return {its.z()}; }},
      {"megatron_aux",
       [](const LossCase& its) -> LossValues { return {its.constant("moe_aux_loss_coeff") * its.balance({})}; }},
      {"megatron_z", [](const LossCase& its) -> LossValues { return {its.constant("moe_z_loss_coeff") * its.z()}; }},
      {"megablocks_load_balancing", mean_balance_of_layers},
      {"megablocks_z", z_of_each_layer},
      {"st_moe_balance",
       [](const LossCase& its) -> LossValues {
         return {its.balance({.choices = 1, .count_dropped = false, .sequence_length = its.sequence_length()})};
       }},
      {"st_moe_z", [](const LossCase& its) -> LossValues { return {its.z()}; }},
      {"deepseek_seq_aux",
       [](const LossCase& its) -> LossValues {
         return {its.constant("aux_loss_alpha") * its.balance({.sequence_length = its.sequence_length()})};
       }},
      {"deepseek_aux",
       [](const LossCase& its) -> LossValues { return {its.constant("aux_loss_alpha") * its.balance({})}; }},
      {"gshard", [](const LossCase& its) -> LossValues { return {its.balance({.choices = 1})}; }},
      {"load_importance", load_and_importance},
  };
  return functions;
}

/// Every |got − expected| ≤ 1e-4 of the largest |expected|.
inline void expect_loss_gradient(const Matrix<float>& got, const Matrix<float>& expected, const std::string& what) {
  ASSERT_EQ(got.rows(), expected.rows()) << what;
  ASSERT_EQ(got.cols(), expected.cols()) << what;
  EXPECT_LE((got - expected).cwiseAbs().maxCoeff(), 1e-4 * expected.cwiseAbs().maxCoeff()) << what;
}

/// coefficient · ∂(the balance of all layers' tokens as one batch), or of each layer's, by the logits of each layer.
inline LossGradients balance_gradients(const LossCase& its, double coefficient, const LoadBalancingOptions& options,
                                       bool as_one_batch = false) {
  ExpertShares all;
  for (std::size_t layer = 0; layer < its.logits.size(); ++layer) all += its.shares(layer, options);
  LossGradients gradients;
  for (std::size_t layer = 0; layer < its.logits.size(); ++layer) {
    const Matrix<float>& l = its.logits[layer];
    gradients.push_back(Matrix<float>::Zero(l.rows(), l.cols()));
    add_load_balancing_gradient(choose_top_k(l, {.top_k = its.top_k()}), options,
                                as_one_batch ? all : its.shares(layer, options), coefficient, gradients.back());
  }
  return gradients;
}

inline LossGradients z_gradients(const LossCase& its, double coefficient = 1) {
  LossGradients gradients;
  for (const Matrix<float>& l : its.logits) {
    gradients.push_back(Matrix<float>::Zero(l.rows(), l.cols()));
    add_z_loss_gradient(l, coefficient, gradients.back());
  }
  return gradients;
}

inline LossGradients load_and_importance_gradients(const LossCase& its) {
  const Matrix<float>& logits = its.logits[0];
  const Index experts = logits.rows(), tokens = logits.cols();
  Matrix<float> probability(experts, tokens);
  for (Index t = 0; t < tokens; ++t) softmax(logits.col(t), probability.col(t));
  const Matrix<float> stddev =
      Matrix<float>::Constant(experts, tokens, float(its.constant("gate_noise") / double(experts)));
  const NoisyChoice<float> choice{.clean = probability, .noisy = logits, .ranked = logits, .stddev = stddev};
  const SmoothLoadOptions options{.top_k = its.top_k(), .threshold = LoadThreshold::of_all};
  Scratch scratch;
  Eigen::ArrayXd load;
  measure_smooth_load<float>(choice, options, load, scratch);
  Matrix<float> d_p = Matrix<float>::Zero(experts, tokens), d_logits = d_p, d_stddev = d_p;
  add_smooth_load_gradient<float>(choice, options, squared_variation_gradient(load) / 2, d_p, d_logits, d_stddev,
                                  scratch);
  const Eigen::ArrayXd d_importance = squared_variation_gradient(its.shares(0, {}).probability.col(0)) / 2;
  for (Index t = 0; t < tokens; ++t) {
    Eigen::VectorXf d = d_p.col(t) + d_importance.matrix().cast<float>();
    probabilities_backward(Score::softmax, logits.col(t), probability.col(t), d);
    d_logits.col(t) += d;
  }
  return {d_logits};
}

inline const std::map<std::string, std::function<LossGradients(const LossCase&)>>& loss_gradients() {
  static const std::map<std::string, std::function<LossGradients(const LossCase&)>> functions = {
      {"hf_load_balancing",
       [](const LossCase& its) { return balance_gradients(its, 1, {.divide_by_k = false}, true); }},
      {"hf_load_balancing_masked",
       [](const LossCase& its) {
         const auto mask = its.mask();
         return balance_gradients(its, 1, {.divide_by_k = false, .mask = mask}, true);
       }},
      {"switch_load_balancing",
       [](const LossCase& its) {
         return balance_gradients(its, 1, {.choices = 1, .sequence_length = its.sequence_length()});
       }},
      {"switch_router_z", [](const LossCase& its) { return z_gradients(its); }},
      {"megatron_aux",
       [](const LossCase& its) { return balance_gradients(its, its.constant("moe_aux_loss_coeff"), {}); }},
      {"megatron_z", [](const LossCase& its) { return z_gradients(its, its.constant("moe_z_loss_coeff")); }},
      {"megablocks_load_balancing",
       [](const LossCase& its) {
         return balance_gradients(its, its.constant("moe_loss_weight") / double(its.logits.size()), {});
       }},
      {"megablocks_z", [](const LossCase& its) { return z_gradients(its, its.constant("moe_zloss_weight")); }},
      {"st_moe_balance",
       [](const LossCase& its) {
         return balance_gradients(its, 1,
                                  {.choices = 1, .count_dropped = false, .sequence_length = its.sequence_length()});
       }},
      {"st_moe_z", [](const LossCase& its) { return z_gradients(its); }},
      {"deepseek_seq_aux",
       [](const LossCase& its) {
         return balance_gradients(its, its.constant("aux_loss_alpha"), {.sequence_length = its.sequence_length()});
       }},
      {"deepseek_aux", [](const LossCase& its) { return balance_gradients(its, its.constant("aux_loss_alpha"), {}); }},
      {"gshard", [](const LossCase& its) { return balance_gradients(its, 1, {.choices = 1}); }},
      {"load_importance", load_and_importance_gradients},
  };
  return functions;
}

/// Every loss in `_losses`, none passed over.
inline void check_losses(const fs::path& folder) {
  const Case reference = Case::open(folder);
  const nlohmann::json config = io::read_json(folder / "config.json");
  ASSERT_FALSE(config.at("_losses").empty());
  for (const auto& [name, settings] : config.at("_losses").items()) {
    const auto function = loss_functions().find(name);
    if (function == loss_functions().end()) {
      ADD_FAILURE() << "no loss is known by the name of " << name;
      continue;
    }
    LossCase its = {reference, settings};
    for (const auto& tensor : settings.at("router_logits")) its.logits.push_back(reference.columns(tensor));
    const LossValues got = function->second(its);
    const Eigen::VectorXf expected = reference.vector("loss." + name);
    ASSERT_EQ(Index(got.size()), expected.size()) << name;
    for (std::size_t i = 0; i < got.size(); ++i) expect_loss(got[i], double(expected(Index(i))), name);

    const LossGradients gradients = loss_gradients().at(name)(its);
    for (std::size_t layer = 0; layer < gradients.size(); ++layer) {
      const std::string tensor = settings.at("router_logits").at(layer);
      expect_loss_gradient(gradients[layer], reference.columns("grad." + name + "." + tensor), name + ", " + tensor);
    }
  }
}

/// CV²(importance) + CV²(load), where load is what a noisy router can expect.
/// @param clean, stddev  (num_experts × n_tokens) logits without noise, and the deviation of the noise
inline void check_noisy_training(const Case& reference, const Matrix<float>& clean, const Matrix<float>& stddev) {
  const TopKOptions top_k_options{.top_k = reference.size("num_experts_per_tok"), .renormalize = true, .epsilon = 1e-6};
  const Matrix<float> noisy = clean + reference.columns("noise").cwiseProduct(stddev);
  Matrix<float> probability(noisy.rows(), noisy.cols());  // which the reference takes thresholds from
  for (Index t = 0; t < noisy.cols(); ++t) softmax(noisy.col(t), probability.col(t));
  const auto routing = choose_top_k(noisy, top_k_options);

  Scratch scratch;
  Eigen::ArrayXd load, importance;
  const NoisyChoice<float> choice{.clean = clean, .noisy = noisy, .ranked = probability, .stddev = stddev};
  const SmoothLoadOptions options{.top_k = top_k_options.top_k};
  measure_smooth_load<float>(choice, options, load, scratch);
  measure_importance(routing, noisy.cols(), noisy.rows(), importance);
  expect_close(load.matrix(), reference.vector("load"), "load");
  const double loss = squared_variation(importance) + squared_variation(load);
  expect_loss(reference.config.number("loss_coef") * loss, double(reference.number("loss.importance_and_load")),
              "loss.importance_and_load");

  const double coefficient = reference.config.number("loss_coef");
  Matrix<float> d_clean = Matrix<float>::Zero(clean.rows(), clean.cols()), d_ranked = d_clean, d_stddev = d_clean,
                d_noisy = d_clean;
  add_smooth_load_gradient<float>(choice, options, coefficient * squared_variation_gradient(load), d_clean, d_ranked,
                                  d_stddev, scratch);
  for (Index t = 0; t < noisy.cols(); ++t) {
    Eigen::VectorXf d = d_ranked.col(t);
    probabilities_backward(Score::softmax, noisy.col(t), probability.col(t), d);
    d_noisy.col(t) = d;
  }
  std::vector<float> d_weight(routing.weight.size(), 0.0f);
  add_importance_gradient(routing, coefficient * squared_variation_gradient(importance), d_weight);
  std::vector<Scratch> worker_scratch;
  const Serial serial;
  Workers workers(serial, worker_scratch);
  const NoisyTopK<float> router(reference.turned_weight("w_gate"), reference.turned_weight("w_noise"), top_k_options,
                                reference.config.number("noise_epsilon"));
  auto gradient = router;
  gradient.weight().setZero();
  gradient.logits().noise_weight().setZero();
  const Matrix<float> x = reference.columns("input"), noise = reference.columns("noise");
  Matrix<float> d_x = Matrix<float>::Zero(x.rows(), x.cols());
  const SideInputs<float> side{.noise = {noise.data(), std::size_t(noise.size())}};
  backward(router, Tokens(x, side), routing, d_weight, d_noisy, d_x, gradient, workers);
  stddev_backward<float>(router.logits(), x, d_stddev, d_x, gradient.logits(), workers);
  linear_backward<float>(map_of(router.weight()), x, d_clean, d_x, gradient.weight(), {nullptr, 0}, workers);
  expect_loss_gradient(gradient.weight(), reference.columns("grad_loss.w_gate"), "grad_loss.w_gate");
  expect_loss_gradient(gradient.logits().noise_weight(), reference.columns("grad_loss.w_noise"), "grad_loss.w_noise");
}

/// The same without noise, where load is the number of routes.
inline void check_noisy_evaluation(const Case& reference, const Matrix<float>& clean) {
  const Index top_k = reference.size("num_experts_per_tok");
  const auto routing = choose_top_k(clean, {.top_k = top_k, .renormalize = true, .epsilon = 1e-6});
  const ExpertShares shares = measure_shares(routing, clean.cols(), clean.rows());
  const Eigen::VectorXd load = reference.columns<std::int64_t>("eval.load").reshaped().cast<double>();
  Eigen::ArrayXd importance;
  measure_importance(routing, clean.cols(), clean.rows(), importance);
  EXPECT_EQ(shares.routes.col(0).matrix(), load);
  const double loss = squared_variation(importance) + squared_variation(shares.routes.col(0));
  expect_loss(reference.config.number("loss_coef") * loss, double(reference.number("eval.loss")), "eval.loss");
}

inline void check_noisy_losses(const Case& reference) {
  const Matrix<float> x = reference.columns("input");
  const Matrix<float> clean = product(reference.turned_weight("w_gate"), x);
  const auto epsilon = float(reference.config.number("noise_epsilon"));
  const Matrix<float> stddev = product(reference.turned_weight("w_noise"), x).unaryExpr([&](float l) {
    return std::max(l, 0.0f) + std::log1p(std::exp(-std::abs(l))) + epsilon;
  });
  expect_close(clean, reference.columns("router_logits"), "router_logits");
  check_noisy_training(reference, clean, stddev);
  check_noisy_evaluation(reference, clean);
}

/// Routes of GShard and its kind: each sequence by itself, first choices first.
inline Routing<float> choose_with_capacity(const Case& reference, const Matrix<float>& logits, Index top_k) {
  auto routing = choose_top_k(logits, {.top_k = top_k});
  const double factor = reference.config.number("capacity_factor");
  const Index minimum = reference.size("min_expert_capacity");
  const auto capacity = [&](Index num_tokens, Index num_experts) {
    const auto share = static_cast<Index>(std::floor(double(num_tokens) * factor / double(num_experts)));
    return std::max(std::min(num_tokens, share), minimum);
  };
  Scratch scratch;
  limit_capacity(routing, logits.cols(), logits.rows(), reference.size("_sequence_length"),
                 {.capacity = capacity, .priority = Priority::choice, .per_sequence = true}, scratch);
  return routing;
}

/// GShard: first choices count, be they dropped or not.
inline void check_top2_losses(const Case& reference) {
  const Matrix<float> logits = product(reference.turned_weight("gate.w_gating"), reference.columns("input"));
  const auto routing = choose_with_capacity(reference, logits, reference.size("num_experts_per_tok"));
  const double balance =
      balance_of(routing, logits, {.choices = 1, .sequence_length = reference.size("_sequence_length")});
  expect_loss(reference.config.number("loss_coef") * balance, double(reference.number("loss.balance")), "loss.balance");
}

/// ST-MoE: first choices count unless they are dropped.
inline void check_st_moe_losses(const Case& reference) {
  const Matrix<float> logits = product(reference.weight("gate.to_gates.weight"), reference.columns("input"));
  const auto routing = choose_with_capacity(reference, logits, reference.size("gating_top_n"));
  const double balance = balance_of(
      routing, logits, {.choices = 1, .count_dropped = false, .sequence_length = reference.size("_sequence_length")});
  expect_loss(balance, double(reference.number("loss.balance")), "loss.balance");
  expect_loss(z_loss(logits), double(reference.number("loss.router_z")), "loss.router_z");
}

}  // namespace moe::golden
