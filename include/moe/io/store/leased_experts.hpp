/// @file  Experts of any type, each a view of weights that are here while a call uses them.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/error.hpp"
#include "moe/io/model.hpp"
#include "moe/io/store/leased_bank.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/io/tensor.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

/// The tensors of one expert, where they lie for now, by what stands behind its number in their names: "w_in.weight" of
/// "model.layers.3.mlp.experts.7.w_in.weight"; of a tensor of all experts it is what stands behind their prefix.
class ExpertTensors {
 public:
  /// @param tensors  by the names that operator[] takes
  explicit ExpertTensors(std::map<std::string, Tensor, std::less<>> tensors) : tensors_(std::move(tensors)) {}

  /// A view, for as long as the expert is used.
  /// @throws Error naming what there is, if this is not.
  const Tensor& operator[](std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found != tensors_.end()) return found->second;
    std::string list;
    for (const auto& [its_name, tensor] : tensors_) list += (list.empty() ? "\"" : ", \"") + its_name + "\"";
    fail(tensors_.empty() ? "" : tensors_.begin()->second.file + ": ", "an expert has no tensor \"", name, "\", but ",
         list);
  }

  /// The same as a matrix, (rows × cols), of numbers that are stored as W.
  /// @throws Error if it is of another type or no matrix.
  template <Element W>
  WeightMap<W> matrix(std::string_view name) const {
    const Tensor& tensor = (*this)[name];
    if (tensor.shape.size() != 2)
      fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected a matrix");
    return {as<W>(tensor).data(), tensor.shape[0], tensor.shape[1], Eigen::OuterStride<>(tensor.shape[1])};
  }

  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }

 private:
  std::map<std::string, Tensor, std::less<>> tensors_;
};

namespace detail {

/// The tensors of each expert of a block, as files have them.
inline std::vector<std::map<std::string, Tensor, std::less<>>> tensors_of_experts(const Model& model,
                                                                                  const std::string& block) {
  const Index num_experts = model.shape(block).num_experts, spare = model.shape(block).num_zero_experts;
  std::vector<std::map<std::string, Tensor, std::less<>>> all(static_cast<std::size_t>(num_experts));
  const std::string prefix = block.empty() ? "" : block + '.';
  model.tensors().for_each_below(prefix, [&](const Tensor& tensor) {
    const std::string_view relative = std::string_view(tensor.name).substr(prefix.size());
    for (const std::string_view experts : alternatives(model.architecture(block).experts)) {
      if (!relative.starts_with(experts)) continue;
      const std::string_view name = relative.substr(experts.size());
      Index number = -1;
      const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
      const std::string_view rest = name.substr(std::size_t(end - name.data()));
      if (error == std::errc() && rest.starts_with('.')) {
        if (number >= 0 && number < num_experts)
          all[std::size_t(number)].try_emplace(std::string(rest.substr(1)), tensor);
        return;
      }
      if (experts.empty() || tensor.shape.size() < 2) continue;
      if (tensor.shape[0] != num_experts && tensor.shape[0] != num_experts + spare) continue;
      const std::size_t size = tensor.bytes.size() / std::size_t(tensor.shape[0]);
      for (Index e = 0; e < num_experts; ++e) {
        Tensor part = tensor;
        part.shape.erase(part.shape.begin());
        part.bytes = tensor.bytes.subspan(std::size_t(e) * size, size);
        all[std::size_t(e)].try_emplace(std::string(name), std::move(part));
      }
      return;
    }
  });
  return all;
}

}  // namespace detail

/// A group whose experts are made anew, by make(ExpertTensors), each time that their weights have been read: as views
/// of them, which last as long as they are used. Copies share the experts.
template <Expert E>
class LeasedExperts {
  static_assert(is_expert<E>());

 public:
  using Scalar = typename E::Scalar;
  /// Makes an expert of its tensors, which lie there while it is used.
  using Make = std::function<E(const ExpertTensors&)>;

  /// @throws Error if an expert of the block has no tensors.
  LeasedExperts(const Model& model, const std::string& block, Make make)
      : held_(std::make_shared<Held>(model.lender(), model.shape(block).d_model, model.shape(block).num_experts)) {
    const auto tensors = detail::tensors_of_experts(model, block);
    std::vector<BorrowedExpert> experts;
    for (std::size_t e = 0; e < tensors.size(); ++e) {
      BorrowedExpert expert{.number = Index(e)};
      for (const auto& [name, tensor] : tensors[e]) {
        if (!tensor.bytes.empty()) expert.weights.push_back(tensor.bytes);
      }
      expert.check = [held = std::weak_ptr<Held>(held_), e, make, its = tensors[e]](const Moved& to) {
        const std::shared_ptr<Held> here = held.lock();
        if (!here) return;
        auto moved = its;
        for (auto& [name, tensor] : moved) {
          tensor.bytes = {to(tensor.bytes.data()), tensor.bytes.size()};
          tensor.owner = nullptr;
        }
        auto& made = here->experts[Index(e)].expert;
        made.emplace(make(ExpertTensors(std::move(moved))));
        require_equal(made->d_model(), here->experts.d_model(), "ExpertStore: expert.d_model()");
      };
      experts.push_back(std::move(expert));
    }
    held_->first = held_->lender->add(block, std::move(experts));
  }

  Index d_model() const { return held_->experts.d_model(); }
  Index num_experts() const { return held_->experts.num_experts(); }

  /// @throws Error as LeasedBank::apply(), or what make() throws, as an Error.
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    const auto run = [&](auto&&... call) { held_->experts.apply(call...); };
    detail::apply_leased(*held_->lender, detail::ApplyHere<Scalar>(held_->first, run), x, plan, y, workers);
  }

 private:
  /// Of an expert that may not be here.
  struct Place {
    using Scalar = typename E::Scalar;
    Index size;
    std::optional<E> expert{};

    Index d_model() const { return size; }
    void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) const {
      expert->forward(x, y, scratch);
    }
  };
  struct Held {
    Held(std::shared_ptr<ExpertLender> its_lender, Index d_model, Index num_experts)
        : experts(std::vector<Place>(std::size_t(num_experts), Place{d_model})), lender(std::move(its_lender)) {}
    ExpertList<Place> experts;  // one is made when its weights have been read, and nobody uses it
    std::shared_ptr<ExpertLender> lender;
    Index first = 0;
  };

  std::shared_ptr<Held> held_;
};

}  // namespace moe::inline MOE_TARGET::io
