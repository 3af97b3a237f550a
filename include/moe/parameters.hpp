/// @file  Every number that a layer has learnt, by name.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/check.hpp"
#include "moe/types.hpp"

namespace moe {

/// One matrix or vector of a layer, to read or to write where it lies: (rows × cols), row-major.
template <class Scalar>
struct Parameter {
  std::string name;  // "experts.3.gate_proj.weight"
  Scalar* data;
  Index rows, cols;

  Index size() const { return rows * cols; }
  Eigen::Map<Weight<Scalar>> matrix() const { return {data, rows, cols}; }
  Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>> array() const { return {data, size()}; }
};

/// One that does not learn, of whatever type.
struct FrozenParameter {
  std::string name;
  Index rows, cols;

  Index size() const { return rows * cols; }
};

/// What walks over the parts of a layer: each calls visit("name", its matrix), visit.in("part", its part), or
/// visit.frozen("part", its part) for one that does not learn.
template <class Scalar>
class ParameterVisitor {
 public:
  /// @param frozen  where those that do not learn are listed, if anywhere
  explicit ParameterVisitor(std::vector<Parameter<Scalar>>& found, std::vector<FrozenParameter>* frozen = nullptr)
      : found_(found), frozen_(frozen) {}

  /// A matrix or vector, owned or mapped; an empty one is none. A column-major matrix is seen as it lies in memory: as
  /// its transposed.
  /// @throws std::invalid_argument naming it if it learns, but is mapped or of another type.
  template <class M>
  void operator()(std::string_view name, M&& matrix) {
    if (matrix.size() == 0) return;
    const Index rows = matrix.outerSize(), cols = matrix.innerSize();
    std::string whole_name = scope_ + std::string(name);
    if (in_frozen_) {
      frozen_->push_back({std::move(whole_name), rows, cols});
    } else if constexpr (std::is_same_v<decltype(matrix.data()), Scalar*>) {
      found_.push_back({std::move(whole_name), matrix.data(), rows, cols});
    } else {
      require(false, "parameters: " + whole_name + " cannot learn: it is mapped, or narrower than activations");
    }
  }

  /// Visits the parameters of a part, whose names begin with "scope.", unless that is empty.
  template <class Part>
  void in(std::string_view scope, Part& part) {
    const std::size_t length = scope_.size();
    if (!scope.empty()) scope_.append(scope).append(".");
    visit_parameters(part, *this);
    scope_.resize(length);
  }

  /// The same for a part that does not learn.
  template <class Part>
  void frozen(std::string_view scope, Part& part) {
    if (frozen_ == nullptr) return;
    const bool was = std::exchange(in_frozen_, true);
    in(scope, part);
    in_frozen_ = was;
  }

 private:
  std::vector<Parameter<Scalar>>& found_;
  std::vector<FrozenParameter>* frozen_;
  std::string scope_;
  bool in_frozen_ = false;
};

/// A part says what it has learnt: a class in a member visit_parameters(visit), a struct of yours in a free function
/// beside it, visit_parameters(part, visit).
template <class Part, class Scalar>
  requires requires(Part& part, ParameterVisitor<Scalar>& visit) { part.visit_parameters(visit); }
void visit_parameters(Part& part, ParameterVisitor<Scalar>& visit) { part.visit_parameters(visit); }

/// All parameters of a layer, always in the same order. They are good as long as the layer neither moves nor dies.
/// @throws std::invalid_argument naming one that is mapped or of another type, and so cannot be written.
template <class Layer>
std::vector<Parameter<typename Layer::Scalar>> parameters(Layer& layer) {
  std::vector<Parameter<typename Layer::Scalar>> found;
  ParameterVisitor<typename Layer::Scalar> visit(found);
  visit_parameters(layer, visit);
  return found;
}

/// What a layer holds that does not learn, such as what adapters lie beside.
template <class Layer>
std::vector<FrozenParameter> frozen_parameters(Layer& layer) {
  std::vector<Parameter<typename Layer::Scalar>> found;
  std::vector<FrozenParameter> frozen;
  ParameterVisitor<typename Layer::Scalar> visit(found, &frozen);
  visit_parameters(layer, visit);
  return frozen;
}

template <class Scalar>
void set_to_zero(const std::vector<Parameter<Scalar>>& parameters) {
  for (const auto& parameter : parameters) parameter.array().setZero();
}

/// The same layer with 0 for every parameter, such as to hold gradients.
template <class Layer>
Layer zeros_like(const Layer& layer) {
  Layer zeros = layer;
  set_to_zero(parameters(zeros));
  return zeros;
}

}  // namespace moe
