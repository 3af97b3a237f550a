/// @file  By what a compiled library and its callers must be alike.
#pragma once

#include <cstddef>
#include <string_view>

#include <Eigen/Core>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// What a library and its callers must have in common besides the processor, which is in every name of ours. Functions
/// have it in theirs, too, so that a linker that does not find them says what differs.
template <int bytes>
struct EigenMaxAlignBytes;  // Eigen's memory is freed as it was allocated
template <bool is_defined>
struct GlibcxxDebug;  // another std::vector
template <class...>
struct BuiltWith;

#if defined(_GLIBCXX_DEBUG)
using Flags = BuiltWith<EigenMaxAlignBytes<EIGEN_MAX_ALIGN_BYTES>, GlibcxxDebug<true>>;
#else
using Flags = BuiltWith<EigenMaxAlignBytes<EIGEN_MAX_ALIGN_BYTES>, GlibcxxDebug<false>>;
#endif

#if defined(MOE_IO_COMPILED_FOR)  // by CMake: ",sse2,avx2,"
/// Is `name` in `list`, between two commas?
consteval bool is_listed(std::string_view list, std::string_view name) {
  for (std::size_t at = list.find(name); at != list.npos; at = list.find(name, at + 1)) {
    if (at > 0 && list[at - 1] == ',' && list.substr(at + name.size()).starts_with(',')) return true;
  }
  return false;
}
static_assert(is_listed(MOE_IO_COMPILED_FOR, target_name),
              "moe: this file is compiled for a processor for which moe::io is not: compile moe::io with it in "
              "MOE_PROCESSORS, or this file for one of these, or without -march; moe::target_name says which it is");
#endif

}  // namespace moe::inline MOE_TARGET::io::detail
