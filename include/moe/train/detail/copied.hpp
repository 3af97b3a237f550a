/// @file  What is behind an interface, as a value: a copy of it is another one.
#pragma once

#include <memory>
#include <utility>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::detail {

/// @tparam Interface  has std::unique_ptr<Interface> copy() const
template <class Interface>
class Copied {
 public:
  explicit Copied(std::unique_ptr<Interface> held) : held_(std::move(held)) {}
  Copied(const Copied& other) : held_(other.held_->copy()) {}
  Copied(Copied&& other) noexcept = default;
  Copied& operator=(Copied other) noexcept {
    held_ = std::move(other.held_);
    return *this;
  }
  ~Copied() = default;

  Interface* operator->() { return held_.get(); }
  const Interface* operator->() const { return held_.get(); }
  Interface& operator*() { return *held_; }

 private:
  std::unique_ptr<Interface> held_;
};

}  // namespace moe::inline MOE_TARGET::detail
