/// @file  Whether a program runs under ThreadSanitizer.
#pragma once

#if defined(__SANITIZE_THREAD__)
#define MOE_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MOE_THREAD_SANITIZER 1
#endif
#endif

namespace moe::test {

#ifdef MOE_THREAD_SANITIZER
inline constexpr bool under_thread_sanitizer = true;
#else
inline constexpr bool under_thread_sanitizer = false;
#endif

}  // namespace moe::test
