/// @file  The tensors of one MoE block as weights of experts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/coded_tensor.hpp"
#include "moe/io/error.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// A matrix of all experts' as a file lays it: a part of each expert's tensor, maybe turned.
struct StoredPart {
  Index all_rows;   // of each expert's tensor …
  Index first = 0;  // … of which these are the first one,
  Index step = 1;   // the distance to the next,
  Index rows = 0;   // and their number
  Index cols = 0;
  bool turned = false;  // stored (cols × all_rows)
};

/// Reads below a prefix, fits every shape to what is expected, and remembers what was asked for. Errors name the file,
/// the tensor, and both shapes. What is of each expert is that of all, or only() of some: nothing of the others is then
/// read, nor held. Copies remember together.
class WeightTensors {
 public:
  /// @param block  "model.layers.3.mlp", or "" if names begin at the block
  WeightTensors(const Tensors& tensors, const std::string& block, Index num_experts)
      : tensors_(tensors), block_(block), prefix_(block.empty() ? "" : block + '.'), num_experts_(num_experts) {}

  const std::string& block() const { return block_; }

  /// The same of some experts.
  /// @throws std::invalid_argument unless they are experts, in ascending order.
  WeightTensors only(std::vector<Index> experts) const {
    require_ascending(experts, num_experts_, "experts");
    WeightTensors some = *this;
    some.chosen_ = std::move(experts);
    return some;
  }

  /// The same of other experts, which files number from `first`; or that are none of those that files number.
  WeightTensors of_others(Index first, Index count) const {
    WeightTensors others = *this;
    others.first_ = first;
    others.num_experts_ = count;
    others.num_spare_ = 0;
    others.chosen_.reset();
    return others;
  }

  /// The same, where files may hold matrices of further experts that nothing uses: LongCat's gate and up of experts
  /// that compute nothing.
  WeightTensors with_spare(Index count) const {
    WeightTensors all = *this;
    all.num_spare_ = count;
    return all;
  }
  /// How many experts a tensor of all of them holds, or should.
  Index num_stored(const Tensor& tensor) const {
    const Index all = num_experts_ + num_spare_;
    return !tensor.shape.empty() && tensor.shape[0] == all ? all : num_experts_;
  }

  /// The same, but experts' weights are not read: they say which bytes of a mapped file they are, or have an address
  /// that the lender promised, for LeasedBank.
  WeightTensors lent_by(std::shared_ptr<ExpertLender> lender) const {
    WeightTensors lent = *this;
    lent.lender_ = std::move(lender);
    return lent;
  }
  const std::shared_ptr<ExpertLender>& lender() const { return lender_; }

  Index num_experts() const { return num_experts_; }

  /// How many are read; number i of them is expert(i). (There is no list of all: how many a config says there are is
  /// not yet checked.)
  Index num_read() const { return chosen_ ? std::ssize(*chosen_) : num_experts_; }
  /// The number of the i-th that is read, in files.
  Index expert(Index i) const { return first_ + (chosen_ ? (*chosen_)[std::size_t(i)] : i); }

  /// The first of these names ("a|b") that there is, in full; of the first, if there is none. "../" is what lies beside
  /// the block.
  std::string full_name(std::string_view names) const {
    std::string first;
    for (const std::string_view name : detail::alternatives(names)) {
      std::string full = in_full(name);
      if (tensors_.contains(full)) return full;
      if (first.empty()) first = std::move(full);
    }
    return first;
  }

  /// Is there a tensor of one of these names?
  bool contains(std::string_view names) const { return tensors_.contains(full_name(names)); }

  /// Of a tensor that there is; it does not count as asked for.
  const Tensor* find(std::string_view names) const { return tensors_.find(full_name(names)); }
  Index num_dimensions(std::string_view names) const { return std::ssize(find(names)->shape); }  ///< As find(names).
  const std::vector<Index>& shape(std::string_view names) const { return find(names)->shape; }   ///< As find(names).
  const std::string& dtype(std::string_view names) const { return find(names)->dtype; }          ///< As find(names).

  /// @throws Error if there is no tensor of any of these names.
  Tensor at(std::string_view names) const {
    const std::string name = full_name(names);
    asked_->names.insert(name);
    return tensors_.at(name);
  }

  /// One expert's. (It counts as asked for by remember_pattern().)
  /// @throws Error saying how many have one, if it has none.
  Tensor at(std::string_view pattern, Index its_expert) const {
    const std::string name = in_full(pattern, its_expert);
    if (tensors_.contains(name)) return tensors_.at(name);
    const Index there = num_there(pattern);
    try {
      return tensors_.at(name);
    } catch (const Error& error) {
      if (there == 0) throw;
      fail(error.what(), " (", there, " of ", num_experts_, " experts have a \"", pattern, "\")");
    }
  }
  /// The same of one expert's; null if there is none.
  const Tensor* find(std::string_view pattern, Index its_expert) const {
    return tensors_.find(in_full(pattern, its_expert));
  }

  /// Of these names each that there is counts as read.
  void ignore(std::string_view names) const {
    for (const std::string_view name : detail::alternatives(names)) asked_->names.insert(in_full(name));
  }

  /// "experts.#.w1.weight" of expert 3: "experts.3.w1.weight".
  static std::string numbered(std::string_view pattern, Index expert) {
    std::string name(pattern);
    return name.replace(name.find('#'), 1, std::to_string(expert));
  }

  /// Tensors below the block that hold something and that nobody asked for. Experts' that are not chosen do not count,
  /// nor do spare ones.
  /// @param scope  what names of the block begin with, where other things lie below it; or ""
  std::vector<Tensor> unread(std::string_view scope) const {
    std::vector<Tensor> left;
    const auto scopes = detail::alternatives(scope);
    tensors_.for_each_below(prefix_, [&](const Tensor& tensor) {
      const std::string_view relative = std::string_view(tensor.name).substr(prefix_.size());
      if (std::ranges::none_of(scopes, [&](std::string_view with) { return relative.starts_with(with); })) return;
      if (asked_->names.contains(tensor.name) || is_of_an_expert(tensor.name)) return;
      if (element_count(tensor) > 0) left.push_back(tensor);
    });
    return left;
  }

  /// The numbers of a small tensor of any floating type, converted.
  template <class Scalar>
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> copy(std::string_view names, const std::vector<Index>& shape) const {
    return copy<Scalar>(at(names), shape);
  }
  /// The numbers of a tensor of this shape, of any floating type, converted.
  template <class Scalar>
  static Eigen::Matrix<Scalar, Eigen::Dynamic, 1> copy(const Tensor& tensor, const std::vector<Index>& shape) {
    require_shape(tensor, shape);
    return with_floats(tensor, [](const auto& from) {
      Eigen::Matrix<Scalar, Eigen::Dynamic, 1> to(Index(from.size()));
      for (std::size_t i = 0; i < from.size(); ++i) to[Index(i)] = static_cast<Scalar>(from[i]);
      return to;
    });
  }

  /// Each expert's row of a tensor of any floating type (experts × size), as a column; converted.
  template <class Scalar>
  Matrix<Scalar> columns(std::string_view names, Index size) const {
    const Tensor tensor = at(names);
    require_shape(tensor, {num_experts_, size});
    return with_floats(tensor, [&](const auto& from) {
      Matrix<Scalar> to(size, num_read());
      for (Index i = 0; i < to.cols(); ++i) {
        for (Index r = 0; r < size; ++r) {
          to(r, i) = static_cast<Scalar>(from[std::size_t(expert(i) * size + r)]);
        }
      }
      return to;
    });
  }

  /// Each expert's vector, a tensor for each ("experts.#.up_proj.bias"), as a column; converted.
  template <class Scalar>
  Matrix<Scalar> separate_columns(std::string_view pattern, Index size) const {
    remember_pattern(pattern);
    Matrix<Scalar> to(size, num_read());
    for (Index i = 0; i < to.cols(); ++i) to.col(i) = copy<Scalar>(at(pattern, expert(i)), {size});
    return to;
  }

  /// One (rows × cols) tensor an expert: in place, if it is of W.
  template <class W>
  WeightStack<W> separate(std::string_view pattern, Index rows, Index cols) const {
    remember_pattern(pattern);
    if constexpr (std::is_same_v<W, Quantized>) {
      CodedExperts experts(lender_ == nullptr);
      for (Index i = 0; i < num_read(); ++i) {
        const Tensor tensor = coded(at(pattern, expert(i)), {rows, cols});
        experts.add(tensor, tensor.coded->front());
      }
      return experts.stack(rows, cols);
    } else {
      return separate_numbers<W>(pattern, rows, cols);
    }
  }

  /// One (all_rows × cols) matrix, of which rows [first, first + rows) count: in place, if it is of W.
  template <class W>
  WeightStack<W> single(std::string_view names, Index all_rows, Index cols, Index first, Index rows) const {
    if constexpr (std::is_same_v<W, Quantized>) {
      const Tensor tensor = coded(at(names), {all_rows, cols});
      return CodedExperts().add(tensor, tensor.coded->front().some_rows(first, 1, rows)).stack(rows, cols);
    } else {
      const auto numbers = numbers_of<W>(at(names), {all_rows, cols});
      return {{numbers.data + first * cols}, rows, cols, cols, numbers.owner};
    }
  }

  /// A part of each expert's matrix in one tensor of all: in place where it is not turned, else in memory of its own.
  template <class W>
  WeightStack<W> stacked(std::string_view names, const StoredPart& part) const {
    const Tensor tensor = at(names);
    const auto& [all_rows, first, step, rows, cols, turned] = part;
    const Index n = num_stored(tensor);
    const std::vector<Index> shape = turned ? std::vector{n, cols, all_rows} : std::vector{n, all_rows, cols};
    return in_stack<W>(tensor, shape, part);
  }

  /// The same of a tensor (experts · all_rows × cols), or (experts · cols × all_rows) if it is turned.
  template <class W>
  WeightStack<W> stacked_rows(std::string_view names, const StoredPart& part) const {
    const std::vector<Index> shape = part.turned ? std::vector{num_experts_ * part.cols, part.all_rows}
                                                 : std::vector{num_experts_ * part.all_rows, part.cols};
    return in_stack<W>(at(names), shape, part);
  }

 private:
  /// Row-major numbers, in a file or not.
  template <class W>
  struct Numbers {
    const W* data;
    std::shared_ptr<const void> owner;
  };

  /// Where they lie, if they are of W; else converted once.
  template <class W>
  static Numbers<W> numbers_of(const Tensor& tensor, const std::vector<Index>& shape) {
    if (tensor.dtype == dtype_name<W>) return {as<W>(tensor, shape).data(), tensor.owner};
    require_numbers(tensor, shape);
    if constexpr (std::is_floating_point_v<W>) {
      return with_floats(tensor, [&](const auto& from) -> Numbers<W> {
        const auto copy = std::make_shared<std::vector<W>>(from.begin(), from.end());
        return {copy->data(), copy};
      });
    }
    fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected ", dtype_name<W>);
  }

  static void require_numbers(const Tensor& tensor, const std::vector<Index>& shape) {
    if (!tensor.coded && dtype_bits(tensor.dtype) <= 8) {
      fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected F32, BF16 or F16", why_not_read(tensor.dtype));
    }
    require_shape(tensor, shape);
  }

  // ---- weights that are lent

  /// A part of matrix number `which` of a tensor: its bytes in the file, if these can be used as they are; else the
  /// address that is promised for what is made of them.
  template <class W>
  const W* lent(const Tensor& tensor, Index which, const StoredPart& part) const {
    const auto size = std::size_t(dtype_bits(tensor.dtype) / 8), all = std::size_t(part.all_rows * part.cols) * size;
    const Bytes source = tensor.bytes.subspan(std::size_t(which) * all, all);
    if (is_lent_in_place<W>(tensor, part)) return reinterpret_cast<const W*>(source.data()) + part.first * part.cols;
    return reinterpret_cast<const W*>(
        lender_->promise({source, std::size_t(part.rows * part.cols) * sizeof(W), maker<W>(tensor, part)}));
  }
  template <class W>
  static bool is_lent_in_place(const Tensor& tensor, const StoredPart& part) {
    return tensor.dtype == dtype_name<W> && !part.turned && is_aligned(tensor);
  }

  /// Turns and widens a part of a stored matrix, whose bytes may lie anywhere.
  template <class W>
  static auto maker(const Tensor& tensor, const StoredPart& part) {
    const auto of = [&]<class T>(T) -> std::function<void(const std::byte*, std::byte*)> {
      return [part](const std::byte* from, std::byte* to) {
        for (Index r = 0; r < part.rows; ++r) {
          const Index row = part.first + r * part.step;
          for (Index c = 0; c < part.cols; ++c, to += sizeof(W)) {
            T stored;
            std::memcpy(&stored,
                        from + (part.turned ? c * part.all_rows + row : row * part.cols + c) * Index(sizeof(T)),
                        sizeof stored);
            const W number = static_cast<W>(stored);
            std::memcpy(to, &number, sizeof number);
          }
        }
      };
    };
    if constexpr (std::is_floating_point_v<W>) {
      if (tensor.dtype == dtype_name<float>) return of(float());
      if (tensor.dtype == dtype_name<bfloat16>) return of(bfloat16());
      if (tensor.dtype == dtype_name<float16>) return of(float16());
      if (tensor.dtype == dtype_name<double>) return of(double());
    } else {
      if (tensor.dtype == dtype_name<W>) return of(W());
    }
    fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected ", dtype_name<W>);
  }

  template <class W>
  WeightStack<W> separate_lent(std::string_view pattern, Index rows, Index cols) const {
    std::vector<const W*> experts;
    for (Index i = 0; i < num_read(); ++i) {
      const Tensor* const tensor = find(pattern, expert(i));
      if (tensor == nullptr) at(pattern, expert(i));  // which says what there is instead
      require_numbers(*tensor, {rows, cols});
      check_size(*tensor);
      experts.push_back(lent<W>(*tensor, 0, {.all_rows = rows, .rows = rows, .cols = cols}));
    }
    return {std::move(experts), rows, cols};
  }

  template <class W>
  WeightStack<W> stack_lent(const Tensor& tensor, const std::vector<Index>& shape, const StoredPart& part) const {
    require_numbers(tensor, shape);
    check_size(tensor);
    std::vector<const W*> experts;
    for (Index i = 0; i < num_read(); ++i) experts.push_back(lent<W>(tensor, expert(i), part));
    return {std::move(experts), part.rows, part.cols,
            is_lent_in_place<W>(tensor, part) ? part.step * part.cols : part.cols};
  }

  /// separate() of numbers that are not coded.
  template <class W>
  WeightStack<W> separate_numbers(std::string_view pattern, Index rows, Index cols) const {
    if (lender_) return separate_lent<W>(pattern, rows, cols);
    std::vector<const W*> experts;
    auto owners = std::make_shared<std::vector<std::shared_ptr<const void>>>();  // keeps several files mapped as one
    if (num_read() > 0 && find(pattern, expert(num_read() - 1)) != nullptr) {    // then they are as many as is said
      experts.reserve(std::size_t(num_read()));
      owners->reserve(std::size_t(num_read()));
    }
    for (Index i = 0; i < num_read(); ++i) {
      const Tensor* const tensor = find(pattern, expert(i));  // not copied: a model may have a hundred thousand
      const auto numbers = tensor != nullptr && is_aligned(*tensor)
                               ? numbers_of<W>(*tensor, {rows, cols})
                               : numbers_of<W>(at(pattern, expert(i)), {rows, cols});
      experts.push_back(numbers.data);
      owners->push_back(numbers.owner);
    }
    return {std::move(experts), rows, cols, cols, std::move(owners)};
  }

  /// Coded matrices, one an expert, and what keeps them.
  class CodedExperts {
   public:
    explicit CodedExperts(bool are_checked = true) : are_checked_(are_checked) {}

    CodedExperts& add(const Tensor& tensor, const QuantizedMatrix& matrix, Index expert = -1) {
      if (are_checked_) require_finite_scales(tensor, matrix, expert);
      matrices_.push_back(matrix);
      owners_->push_back(tensor.owner);
      return *this;
    }
    WeightStack<Quantized> stack(Index rows, Index cols) {
      if (matrices_.empty()) return {0, rows, cols};
      return WeightStack<Quantized>(std::move(matrices_), owners_);
    }

   private:
    bool are_checked_;  // or else when they are lent
    std::vector<QuantizedMatrix> matrices_;
    std::shared_ptr<std::vector<std::shared_ptr<const void>>> owners_ =
        std::make_shared<std::vector<std::shared_ptr<const void>>>();
  };

  template <class W>
  WeightStack<W> in_stack(const Tensor& tensor, const std::vector<Index>& shape, const StoredPart& part) const {
    if constexpr (std::is_same_v<W, Quantized>) {
      return coded_in_stack(coded(tensor, shape), part);
    } else {
      if (lender_) return stack_lent<W>(*tensors_.find(tensor.name), shape, part);
      return in_stack<W>(numbers_of<W>(tensor, shape), part);
    }
  }

  WeightStack<Quantized> coded_in_stack(const Tensor& tensor, const StoredPart& part) const {
    const auto& [all_rows, first, step, rows, cols, turned] = part;
    if (turned) {
      fail(to_string(tensor), " has dtype ", tensor.dtype,
           " and is stored (in × out), where weights are coded: rows that ",
           "are coded together cannot be turned; store all of the block (out × in), or take all in 16 bits");
    }
    CodedExperts experts(lender_ == nullptr);
    const bool one_matrix = tensor.coded->size() == 1 && tensor.shape.size() == 2;
    for (Index i = 0; i < num_read(); ++i) {
      const Index e = expert(i), from = one_matrix ? e * all_rows : 0;
      experts.add(tensor, (*tensor.coded)[one_matrix ? 0 : std::size_t(e)].some_rows(from + first, step, rows), e);
    }
    return experts.stack(rows, cols);
  }

  template <class W>
  WeightStack<W> in_stack(const Numbers<W>& numbers, const StoredPart& part) const {
    const auto& [all_rows, first, step, rows, cols, turned] = part;
    if (turned) {
      const Index from = first, by = step, count = rows, in_all = all_rows, width = cols;
      return each_owned<W>(count, width, [&](Index e, auto to) {
        const WeightMap<W> stored(numbers.data + e * width * in_all, width, in_all, Eigen::OuterStride<>(in_all));
        to = stored(every, Eigen::seqN(from, count, by)).transpose();
      });
    }
    std::vector<const W*> experts;
    for (Index i = 0; i < num_read(); ++i) experts.push_back(numbers.data + (expert(i) * all_rows + first) * cols);
    return {std::move(experts), rows, cols, step * cols, numbers.owner};
  }

  /// In memory of their own, which write(e, its matrix) fills for each expert e.
  template <class W, class F>
  WeightStack<W> each_owned(Index rows, Index cols, const F& write) const {
    WeightStack<W> stack(num_read(), rows, cols);
    for (Index i = 0; i < num_read(); ++i) write(expert(i), stack.owned(i));
    return stack;
  }

  /// Of one expert, built at once: there may be many.
  std::string in_full(std::string_view pattern, Index its_expert) const {
    const std::size_t hash = pattern.find('#');
    const std::string number = std::to_string(its_expert);
    std::string name;
    name.reserve(prefix_.size() + pattern.size() + number.size());
    return name.append(prefix_).append(pattern.substr(0, hash)).append(number).append(pattern.substr(hash + 1));
  }

  std::string in_full(std::string_view name) const {
    if (!name.starts_with("../")) return prefix_ + std::string(name);
    const std::size_t dot = block_.rfind('.');
    return (dot == block_.npos ? "" : block_.substr(0, dot + 1)) + std::string(name.substr(3));
  }

  /// Of how many experts the file has a tensor of this pattern.
  Index num_there(std::string_view pattern) const {
    const std::size_t hash = pattern.find('#');
    const std::string before = prefix_ + std::string(pattern.substr(0, hash));
    const std::string_view after = pattern.substr(hash + 1);
    Index count = 0;
    tensors_.for_each_below(before, [&](const Tensor& tensor) {
      std::string_view rest = std::string_view(tensor.name).substr(before.size());
      const std::size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
      if (digits == 0 || digits > 9 || rest.substr(digits) != after) return;
      const Index number = std::stol(std::string(rest.substr(0, digits)));
      if (number >= first_ && number < first_ + num_experts_) ++count;
    });
    return count;
  }

  /// Is it one of a pattern that was read, of an expert that there is?
  bool is_of_an_expert(std::string_view name) const {
    for (std::size_t first = prefix_.size(); first < name.size(); ++first) {
      const auto digits = std::min(name.find_first_not_of("0123456789", first), name.size()) - first;
      if (digits == 0 || digits > 9) continue;
      for (const auto& [pattern, end] : asked_->patterns) {
        const std::string_view spelt = pattern;
        if (spelt.size() < first + 1 || spelt[first] != '#' || spelt.substr(0, first) != name.substr(0, first) ||
            spelt.substr(first + 1) != name.substr(first + digits)) {
          continue;
        }
        Index number = 0;
        for (const char digit : name.substr(first, digits)) number = 10 * number + (digit - '0');
        return number < end + num_spare_;
      }
      return false;
    }
    return false;
  }

  void remember_pattern(std::string_view pattern) const {
    Index& end = asked_->patterns[in_full(pattern)];
    end = std::max(end, first_ + num_experts_);
  }

  struct Asked {
    std::set<std::string, std::less<>> names;            // in full
    std::map<std::string, Index, std::less<>> patterns;  // "model.layers.3.mlp.experts.#.w1.weight", experts' end
  };

  const Tensors& tensors_;
  std::string block_, prefix_;
  Index num_experts_;                         // of the block
  Index num_spare_ = 0;                       // further ones that files may hold
  Index first_ = 0;                           // what files call the first of them
  std::optional<std::vector<Index>> chosen_;  // those that are read, if not all
  std::shared_ptr<ExpertLender> lender_;      // null: weights are read
  std::shared_ptr<Asked> asked_ = std::make_shared<Asked>();
};

}  // namespace moe::inline MOE_TARGET::io
