/// @file  By what a compiled library and its callers must be alike.
#pragma once

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

}  // namespace moe::inline MOE_TARGET::io::detail
