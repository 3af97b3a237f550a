/// @file  Every number that a layer has learnt, by name.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

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

/// What walks over the parts of a layer: each calls visit("name", its matrix) or visit.in("part", its part), and a
/// group visit.expert(number, its expert).
template <class Scalar>
class ParameterVisitor {
 public:
  explicit ParameterVisitor(std::vector<Parameter<Scalar>>& found) : found_(found) {}

  /// A matrix or vector, owned or mapped; an empty one is none. A column-major matrix is seen as it lies in memory: as
  /// its transposed.
  template <class M>
  void operator()(std::string_view name, M&& matrix) {
    using Plain = typename std::remove_reference_t<M>::PlainObject;
    static_assert(std::is_same_v<typename Plain::Scalar, Scalar>);
    if (matrix.size() == 0) return;
    found_.push_back({scope_ + std::string(name), matrix.data(), matrix.outerSize(), matrix.innerSize()});
  }

  /// Visits the parameters of a part, whose names begin with "scope.", unless that is empty.
  template <class Part>
  void in(std::string_view scope, Part& part) {
    const std::size_t length = scope_.size();
    if (!scope.empty()) scope_.append(scope).append(".");
    visit_parameters(part, *this);
    scope_.resize(length);
  }

  /// Visits a group that holds one expert, whose names do without its number: "shared_expert.up_proj.weight".
  template <class Group>
  void in_only(std::string_view scope, Group& group) {
    with({.shown = false}, scope, group);
  }

  /// Visits a group whose experts are number `first` and on among those that are visited here.
  template <class Group>
  void from(Index first, Group& group) {
    with({numbers_.shown, numbers_.first + first}, "", group);
  }

  /// Visits expert e of a group by its number.
  template <class E>
  void expert(Index e, E& expert) {
    with({}, numbers_.shown ? std::to_string(numbers_.first + e) : "", expert);
  }

 private:
  struct Numbers {
    bool shown = true;
    Index first = 0;
  };

  template <class Part>
  void with(const Numbers& numbers, std::string_view scope, Part& part) {
    const Numbers before = std::exchange(numbers_, numbers);
    in(scope, part);
    numbers_ = before;
  }

  std::vector<Parameter<Scalar>>& found_;
  std::string scope_;
  Numbers numbers_;
};

/// A part says what it has learnt: a class in a member visit_parameters(visit), a struct of yours in a free function
/// beside it, visit_parameters(part, visit).
template <class Part, class Scalar>
  requires requires(Part& part, ParameterVisitor<Scalar>& visit) { part.visit_parameters(visit); }
void visit_parameters(Part& part, ParameterVisitor<Scalar>& visit) { part.visit_parameters(visit); }

/// All parameters of a layer, always in the same order. They are good as long as the layer neither moves nor dies.
/// @throws std::invalid_argument if weights are mapped, and so cannot be written.
template <class Layer>
std::vector<Parameter<typename Layer::Scalar>> parameters(Layer& layer) {
  std::vector<Parameter<typename Layer::Scalar>> found;
  ParameterVisitor<typename Layer::Scalar> visit(found);
  visit_parameters(layer, visit);
  return found;
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
