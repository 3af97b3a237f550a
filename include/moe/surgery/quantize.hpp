/// @file  A bank whose numbers take few bits, made of one whose numbers are float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/detail/run_bank.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/formats/encode_matrix.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/telemetry/change.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET {

/// How much the columns of one expert's matrices count: Σ over the tokens that it has seen of the squares of what it
/// read. An error of the weights of column c then costs what it costs in the answers, on average, but for the
/// correlation between columns. Zeros, where an expert has seen nothing, make all columns alike.
struct ExpertImportance {
  std::vector<float> input;   // (d_model) of W_gate and W_up
  std::vector<float> hidden;  // (d_ff) of W_down
  Index tokens = 0;           // that it has seen
};

/// Adds to the importance of each expert what a batch of tokens shows: record more than one batch, of data that
/// matters.
/// @param x     (d_model × n_tokens)
/// @param seen  of each expert; empty before the first batch
/// @throws std::invalid_argument as the layer's forward(), or unless `seen` is of this layer.
template <class R, class W, class Act, class Scalar = typename FfnBank<W, Act>::Scalar>
void record_importance(const MoeLayer<R, FfnBank<W, Act>>& layer, const ConstMatrixRef<Scalar>& x,
                       std::vector<ExpertImportance>& seen, ExecutorRef executor = Serial{}) {
  const auto& bank = layer.experts();
  const Index d = bank.d_model(), ff = bank.d_ff(), stride = kernels::kept_stride(ff);
  require_equal(x.rows(), d, "record_importance: x.rows()");
  if (seen.empty()) {
    seen.assign(std::size_t(bank.num_experts()),
                {std::vector<float>(std::size_t(d)), std::vector<float>(std::size_t(ff))});
  }
  require_equal(std::ssize(seen), bank.num_experts(), "record_importance: seen.size()");
  Workspace<Scalar> ws;
  Matrix<Scalar> y = Matrix<Scalar>::Zero(d, x.cols());
  Workers workers = workers_of(ws, executor);
  layer.router().route(Tokens<Scalar>(x), ws.routing, workers);
  const auto plan = plan_dispatch(ws.routing, x.cols(), bank.num_experts(), ws.plan);
  std::vector<Scalar> hidden(std::size_t(plan.num_slots() * stride));
  detail::run_bank(bank, x, plan, y, workers,
                   detail::BankHooks<Scalar>{.kept = {.stride = stride, .hidden = hidden.data()}});
  for (Index e = 0; e < bank.num_experts(); ++e) {
    ExpertImportance& its = seen[std::size_t(e)];
    require_equal(std::ssize(its.input), d, "record_importance: seen[" + std::to_string(e) + "].input.size()");
    require_equal(std::ssize(its.hidden), ff, "record_importance: seen[" + std::to_string(e) + "].hidden.size()");
    its.tokens += plan.count(e);
    for (Index slot = plan.first(e); slot < plan.first(e) + plan.count(e); ++slot) {
      const Scalar weight = plan.input_weight(slot);
      const auto add = [](float& sum, Scalar read) { sum += encoding::product(float(read), float(read)); };
      for (Index i = 0; i < d; ++i) add(its.input[std::size_t(i)], weight * x(i, plan.token[std::size_t(slot)]));
      for (Index i = 0; i < ff; ++i) add(its.hidden[std::size_t(i)], hidden[std::size_t(slot * stride + i)]);
    }
  }
}

namespace detail {

/// A stack and the bytes that it looks at.
template <class T, class W>
WeightStack<Quantized> quantize_stack(const WeightStack<W>& stack, const std::vector<ExpertImportance>& importance,
                                      std::vector<float> ExpertImportance::* columns, const std::string& name,
                                      ExecutorRef executor) {
  if (stack.num_experts() == 0) return WeightStack<Quantized>(0, stack.rows(), stack.cols());
  const auto memory = std::make_shared<std::vector<CodedMatrix>>();
  std::vector<QuantizedMatrix> experts;
  std::vector<float> row(std::size_t(stack.cols()));
  for (Index e = 0; e < stack.num_experts(); ++e) {
    const std::string who = "quantize: " + name + " of expert " + std::to_string(e);
    const std::span<const float> counts =
        importance.empty() ? std::span<const float>() : importance[std::size_t(e)].*columns;
    memory->push_back(encode_matrix<T, W>(stack[e], counts, who, executor));
    experts.push_back(matrix_of<T, W>(memory->back()));
    for (Index r = 0; r < stack.rows(); ++r) {
      experts.back().decode(r, 0, stack.cols(), row.data());
      for (Index c = 0; c < stack.cols(); ++c) {
        if (std::isfinite(row[std::size_t(c)])) continue;
        throw std::invalid_argument(who + ": " +
                                    why_not_coded<W>(stack[e], r, c, Coder<T>::rows, Coder<T>::cols, T::name));
      }
    }
  }
  return WeightStack<Quantized>(std::move(experts), memory);
}

}  // namespace detail

/// What quantize() heeds.
struct QuantizeOptions {
  std::vector<ExpertImportance> importance = {};  // of each expert, or none: record_importance()
};

/// The same experts with weights in the format T: quantize<Q4_K>(bank). The bytes are the bank's own; biases stay. The
/// same bits for any number of threads, on every processor.
/// @tparam T  a block with an Encoder (Q8_0, Q4_K, …), BlockFp8, GroupInt4<32>, GroupMxfp4 or GroupNvfp4
/// @throws std::invalid_argument naming the matrix, the expert and both numbers, if rows are no multiple of T's block;
///         if a number is not finite, or too large for T; unless importance is of this bank.
template <class T, class W, class Act>
FfnBank<Quantized, Act> quantize(const FfnBank<W, Act>& bank, const QuantizeOptions& options = {},
                                 ExecutorRef executor = Serial{}) {
  static_assert(!std::is_same_v<W, double>, "moe: quantize() is of a bank of float, bfloat16 or float16");
  if (!options.importance.empty()) {
    require_equal(std::ssize(options.importance), bank.num_experts(), "quantize: importance.size()");
  }
  const auto stack = [&](const WeightStack<W>& of, std::vector<float> ExpertImportance::* columns, const char* name) {
    return detail::quantize_stack<T>(of, options.importance, columns, name, executor);
  };
  auto gate = stack(bank.w_gate(), &ExpertImportance::input, "w_gate");
  auto up = stack(bank.w_up(), &ExpertImportance::input, "w_up");
  auto down = stack(bank.w_down(), &ExpertImportance::hidden, "w_down");
  return FfnBank<Quantized, Act>::of(std::move(gate), std::move(up), std::move(down), bank.activation(), bank.biases());
}

/// A layer with its experts so; the router stays as it is.
template <class T, class R, class W, class Act>
MoeLayer<R, FfnBank<Quantized, Act>> quantize(const MoeLayer<R, FfnBank<W, Act>>& layer,
                                              const QuantizeOptions& options = {}, ExecutorRef executor = Serial{}) {
  return {layer.router(), quantize<T>(layer.experts(), options, executor)};
}

/// ‖decoded − w‖ / ‖w‖ of one expert's matrices; 0 of zeros that stayed zeros, and of what is not there.
struct WeightError {
  double gate = 0, up = 0, down = 0;
};

/// @throws std::invalid_argument naming both numbers unless the shapes are the same.
template <class W, class Act>
std::vector<WeightError> measure_weight_errors(const FfnBank<W, Act>& bank, const FfnBank<Quantized, Act>& coded) {
  std::vector<WeightError> errors(std::size_t(bank.num_experts()));
  std::vector<float> row;
  const auto measure = [&](const WeightStack<W>& w, const WeightStack<Quantized>& is, double WeightError::* error) {
    require_equal(is.num_experts(), w.num_experts(), "measure_weight_errors: num_experts of the coded bank");
    require_equal(is.rows(), w.rows(), "measure_weight_errors: rows of the coded bank");
    require_equal(is.cols(), w.cols(), "measure_weight_errors: cols of the coded bank");
    row.resize(std::size_t(w.cols()));
    for (Index e = 0; e < w.num_experts(); ++e) {
      double off = 0, all = 0;
      for (Index r = 0; r < w.rows(); ++r) {
        is[e].decode(r, 0, w.cols(), row.data());
        for (Index c = 0; c < w.cols(); ++c) {
          const double was = double(w[e](r, c)), change = double(row[std::size_t(c)]) - was;
          off += encoding::product(change, change);
          all += encoding::product(was, was);
        }
      }
      errors[std::size_t(e)].*error = off == 0 ? 0 : std::sqrt(off / all);
    }
  };
  measure(bank.w_gate(), coded.w_gate(), &WeightError::gate);
  measure(bank.w_up(), coded.w_up(), &WeightError::up);
  measure(bank.w_down(), coded.w_down(), &WeightError::down);
  return errors;
}

/// How many choices of experts changed. Routers stay float: the choices of a layer change only with what it reads, that
/// is with the answers of the quantised layers before it. So: route what the layer reads in the float model, and what
/// it reads in the quantised one.
/// @throws std::invalid_argument as the router.
template <class R, class Scalar = typename R::Scalar>
ChoiceChange measure_choices(const R& router, const ConstMatrixRef<Scalar>& before, const ConstMatrixRef<Scalar>& after,
                             ExecutorRef executor = Serial{}) {
  require_equal(after.cols(), before.cols(), "measure_choices: after.cols()");
  const auto routing_of = [&](const ConstMatrixRef<Scalar>& x) {
    Workspace<Scalar> ws;
    Workers workers = workers_of(ws, executor);
    router.route(Tokens<Scalar>(x), ws.routing, workers);
    return std::move(ws.routing);
  };
  return changed_choices(routing_of(before), routing_of(after), before.cols(), router.num_experts());
}

/// A line an expert and one of the whole:
/// "expert 3: weights are off by 0.071 of their norm (gate 0.072, up 0.071, down 0.07)\n".
inline std::string to_text(const std::vector<WeightError>& errors) {
  std::string text;
  for (std::size_t e = 0; e < errors.size(); ++e) {
    const auto [gate, up, down] = errors[e];
    const double worst = std::max({gate, up, down});
    text += "expert " + std::to_string(e) + ": weights are off by " + detail::rounded(worst, 2) +
            " of their norm at most (gate " + detail::rounded(gate, 2) + ", up " + detail::rounded(up, 2) + ", down " +
            detail::rounded(down, 2) + ")\n";
  }
  return text;
}

}  // namespace moe::inline MOE_TARGET
