/// @file  What stands behind a part whose type is known only at run time.
#pragma once

#include <memory>
#include <utility>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::detail {

/// One thing that a part does, whatever its type. Copies share the part.
template <class... Args>
class ErasedCall {
 public:
  /// @param call  call(part, args…), a lambda that captures nothing
  template <class Part, class Call>
  ErasedCall(std::shared_ptr<Part> part, Call)
      : part_(std::move(part)), call_([](const void* its, Args... args) {
          Call{}(*static_cast<Part*>(const_cast<void*>(its)), std::forward<Args>(args)...);
        }) {}

  void operator()(Args... args) const { call_(part_.get(), std::forward<Args>(args)...); }

 private:
  std::shared_ptr<const void> part_;
  void (*call_)(const void*, Args...);
};

}  // namespace moe::inline MOE_TARGET::detail
