/// @file  Every number that a layer has learnt, by name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// One matrix or vector of a layer, to read or to write where it lies: (rows × cols), row-major.
template <class Scalar>
struct Parameter {
  std::string name;  // "experts.3.gate_proj.weight"
  Scalar* data;
  Index rows, cols;

  Index size() const { return rows * cols; }                                ///< How many numbers it has.
  Eigen::Map<Weight<Scalar>> matrix() const { return {data, rows, cols}; }  ///< As a Weight, where it lies.
  /// As one list of numbers, where they lie.
  Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>> array() const { return {data, size()}; }
};

namespace detail {

template <class T>
inline constexpr char type_id = 0;  // its address is that of one type

}  // namespace detail

/// One of whatever type, whether it learns or not.
struct AnyParameter {
  std::string name;
  Index rows, cols;
  Index number_size;                  // bytes of each number; 0 where they are coded
  const std::byte* data;              // null if its rows do not lie side by side
  std::byte* to_write = {};           // null if it is mapped
  const void* type = {};              // &detail::type_id<that of each number>; null if that was not said
  const QuantizedMatrix* coded = {};  // what holds them where they are coded; data is null then

  Index size() const { return rows * cols; }  ///< How many numbers it has.
  /// Where they lie; of coded numbers their codes, scales and zero points, rounded.
  Index bytes() const { return coded ? Index(double(size()) * coded->format().bits / 8 + 0.5) : size() * number_size; }
};

/// A part of a layer, of type T.
template <class T>
struct NamedPart {
  std::string name;  // "experts.3.gate_proj"
  T* part;
};

/// What walks over the parts of a layer: each calls visit("name", its matrix), visit.in("part", its part) or
/// visit.frozen("part", its part) for one that does not learn, and a group visit.expert(number, its expert).
template <class Scalar>
class ParameterVisitor {
 public:
  /// @param frozen      where those that do not learn are listed, if anywhere
  /// @param all_frozen  whether none is taken to learn
  explicit ParameterVisitor(std::vector<Parameter<Scalar>>& found, std::vector<AnyParameter>* frozen = nullptr,
                            bool all_frozen = false)
      : found_(found), frozen_(frozen), in_frozen_(all_frozen) {}

  /// A matrix or vector, owned or mapped; an empty one is none. A column-major matrix is seen as it lies in memory: as
  /// its transposed.
  /// @throws std::invalid_argument naming it if it learns, but is mapped or of another type.
  template <class M>
  void operator()(std::string_view name, M&& matrix) {
    if (matrix.size() == 0) return;
    const Index rows = matrix.outerSize(), cols = matrix.innerSize();
    std::string whole_name = scope_ + std::string(name);
    if (in_frozen_) {
      frozen_->push_back(as_any(std::move(whole_name), matrix));
    } else if constexpr (std::is_same_v<decltype(matrix.data()), Scalar*>) {
      found_.push_back({std::move(whole_name), matrix.data(), rows, cols});
    } else {
      require(false, "parameters: " + whole_name + " cannot learn: it is mapped, or narrower than activations");
    }
  }

  /// A matrix of coded numbers.
  /// @throws std::invalid_argument naming it if it is to learn.
  void operator()(std::string_view name, const QuantizedMatrix& matrix) {
    if (matrix.rows() * matrix.cols() == 0) return;
    std::string whole_name = scope_ + std::string(name);
    require(in_frozen_, "parameters: " + whole_name + " cannot learn: it is quantised (" + matrix.format().name +
                            "), expected it frozen, and adapters beside it (LoraBank), or dequantized<float>()");
    frozen_->push_back({.name = std::move(whole_name),
                        .rows = matrix.rows(),
                        .cols = matrix.cols(),
                        .number_size = 0,
                        .data = nullptr,
                        .type = &detail::type_id<Quantized>,
                        .coded = &matrix});
  }

  /// Visits the parameters of a part, whose names begin with "scope.", unless that is empty.
  template <class Part>
  void in(std::string_view scope, Part& part) {
    const std::size_t length = scope_.size();
    if (!scope.empty()) scope_.append(scope).append(".");
    if (see_) see_(scope_.substr(0, scope_.empty() ? 0 : scope_.size() - 1), &detail::type_id<Part>, &part);
    visit_parameters(part, *this);
    scope_.resize(length);
  }

  /// Visits a part that a group of experts has for all of them, which checkpoints keep beside the experts: of a group
  /// that a layer calls "experts", the names begin where "experts." does.
  template <class Part>
  void beside_experts(std::string_view scope, Part& part) {
    constexpr std::string_view last_step = "experts.";
    const std::string whole = scope_;
    if (scope_ == last_step || scope_.ends_with(".experts.")) scope_.resize(scope_.size() - last_step.size());
    in(scope, part);
    scope_ = whole;
  }

  /// From now on, calls see(name, part) for each part of type T.
  template <class T, class See>
  void look_for(const See& see) {
    see_ = [&see](const std::string& name, const void* type, void* part) {
      if (type == &detail::type_id<T>) see(name, *static_cast<T*>(part));
    };
  }

  /// Visits a group that holds one expert, whose names do without its number: "shared_expert.up_proj.weight".
  template <class Group>
  void in_only(std::string_view scope, Group& group) {
    with([](Index) { return ""; }, scope, group);
  }

  /// Visits a group whose experts are number `first` and on among those that are visited here.
  template <class Group>
  void from(Index first, Group& group) {
    with([name = name_, first](Index e) { return name(first + e); }, "", group);
  }

  /// Visits a group whose expert e is number numbers[e] among those that are visited here.
  template <class Group>
  void numbered(const std::vector<Index>& numbers, Group& group) {
    with([name = name_, &numbers](Index e) { return name(numbers[std::size_t(e)]); }, "", group);
  }

  /// Visits a group of which experts[i] is number i among those that are visited here, and others are passed over.
  template <class Group>
  void only(const std::vector<Index>& experts, Group& group) {
    const auto number = [name = name_, &experts](Index e) -> std::optional<std::string> {
      const auto it = std::find(experts.begin(), experts.end(), e);
      return it == experts.end() ? std::nullopt : name(Index(it - experts.begin()));
    };
    with(number, "", group);
  }

  /// Visits expert e of a group by its number.
  template <class E>
  void expert(Index e, E& expert) {
    if (const auto name = name_(e)) with(by_number, *name, expert);
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
  template <class M>
  static AnyParameter as_any(std::string name, M& matrix) {
    using Number = std::remove_pointer_t<decltype(matrix.data())>;
    AnyParameter any{std::move(name), matrix.outerSize(), matrix.innerSize(), sizeof(Number), nullptr};
    any.type = &detail::type_id<std::remove_const_t<Number>>;
    if (matrix.outerSize() > 1 && matrix.outerStride() != matrix.innerSize()) return any;
    any.data = reinterpret_cast<const std::byte*>(matrix.data());
    if constexpr (!std::is_const_v<Number>) any.to_write = reinterpret_cast<std::byte*>(matrix.data());
    return any;
  }

  using NameOfExpert = std::function<std::optional<std::string>(Index)>;  // none of one that is passed over

  static std::string by_number(Index e) { return std::to_string(e); }

  template <class Part>
  void with(NameOfExpert name, std::string_view scope, Part& part) {
    const NameOfExpert before = std::exchange(name_, std::move(name));
    in(scope, part);
    name_ = before;
  }

  std::vector<Parameter<Scalar>>& found_;
  std::vector<AnyParameter>* frozen_;
  std::string scope_;
  NameOfExpert name_ = by_number;  // of those that are visited here
  std::function<void(const std::string&, const void*, void*)> see_;
  bool in_frozen_;
};

/// A part says what it has learnt: a class in a member visit_parameters(visit), a struct of yours in a free function
/// beside it, visit_parameters(part, visit).
template <class Part, class Scalar>
  requires requires(Part& part, ParameterVisitor<Scalar>& visit) { part.visit_parameters(visit); }
void visit_parameters(Part& part, ParameterVisitor<Scalar>& visit) {
  part.visit_parameters(visit);
}

/// All parameters of a layer, always in the same order. They are good as long as the layer neither moves nor dies.
/// @throws std::invalid_argument naming one that is mapped or of another type, and so cannot be written.
template <class Layer>
std::vector<Parameter<typename Layer::Scalar>> parameters(Layer& layer) {
  std::vector<Parameter<typename Layer::Scalar>> found;
  ParameterVisitor<typename Layer::Scalar> visit(found);
  visit_parameters(layer, visit);
  return found;
}

/// A layer to be looked through, whatever its type.
template <class Scalar_>
struct AnyParts {
  using Scalar = Scalar_;
  std::shared_ptr<const void> owner;  // keeps it; empty if somebody else does
  std::function<void(ParameterVisitor<Scalar>&)> visit;

  void visit_parameters(ParameterVisitor<Scalar>& visitor) { visit(visitor); }
};

/// What a layer holds that does not learn, such as what adapters lie beside.
template <class Layer>
std::vector<AnyParameter> frozen_parameters(Layer& layer) {
  std::vector<Parameter<typename Layer::Scalar>> found;
  std::vector<AnyParameter> frozen;
  ParameterVisitor<typename Layer::Scalar> visit(found, &frozen);
  visit_parameters(layer, visit);
  return frozen;
}

/// All that a layer or a group holds, of whatever type.
template <class Layer>
std::vector<AnyParameter> all_parameters(Layer& layer) {
  std::vector<Parameter<typename Layer::Scalar>> none;
  std::vector<AnyParameter> all;
  ParameterVisitor<typename Layer::Scalar> visit(none, &all, true);
  visit_parameters(layer, visit);
  return all;
}

/// All parts of one type that a layer has, frozen or not, always in the same order. They are good as long as the layer
/// neither moves nor dies.
template <class T, class Layer>
std::vector<NamedPart<T>> parts(Layer& layer) {
  std::vector<NamedPart<T>> found;
  std::vector<Parameter<typename Layer::Scalar>> none;
  std::vector<AnyParameter> all;
  ParameterVisitor<typename Layer::Scalar> visit(none, &all, true);
  const auto see = [&](const std::string& name, T& part) { found.push_back({name, &part}); };
  visit.template look_for<T>(see);
  visit.in("", layer);
  return found;
}

/// The same of an optimiser's state, or of any other list.
template <class Scalar>
std::vector<AnyParameter> all_parameters(const std::vector<Parameter<Scalar>>& parameters) {
  std::vector<AnyParameter> all;
  for (const auto& [name, data, rows, cols] : parameters) {
    auto* const bytes = reinterpret_cast<std::byte*>(data);
    all.push_back({name, rows, cols, sizeof(Scalar), bytes, bytes, &detail::type_id<Scalar>});
  }
  return all;
}

/// How many numbers.
template <class Scalar>
Index count_numbers(const std::vector<Parameter<Scalar>>& parameters) {
  Index count = 0;
  for (const auto& parameter : parameters) count += parameter.size();
  return count;
}

}  // namespace moe::inline MOE_TARGET
