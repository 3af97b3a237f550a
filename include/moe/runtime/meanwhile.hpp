/// @file  Work for those who would wait.
#pragma once

#include <utility>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET {

class Workers;

/// Something that a layer has to do sooner or later, laid out for experts that wait for their tokens to travel: they
/// may do it first, by Workers::work_meanwhile(). Whoever laid it out asks is_done(), and else does it later.
class Meanwhile {
 public:
  /// @param place  where it lies as long as this lives: Workspace::meanwhile
  /// @param work   work(workers); not owned
  template <class F>
  Meanwhile(Meanwhile*& place, const F& work)
      : place_(place),
        work_(&work),
        call_([](const void* f, Workers& workers) { (*static_cast<const F*>(f))(workers); }) {
    place_ = this;
  }
  Meanwhile(const Meanwhile&) = delete;
  Meanwhile& operator=(const Meanwhile&) = delete;
  ~Meanwhile() { place_ = nullptr; }

  /// At the first call only.
  void work(Workers& workers) {
    if (!std::exchange(is_done_, true)) call_(work_, workers);
  }
  bool is_done() const { return is_done_; }  ///< Has somebody done it?

 private:
  Meanwhile*& place_;
  const void* work_;
  void (*call_)(const void*, Workers&);
  bool is_done_ = false;
};

}  // namespace moe::inline MOE_TARGET
