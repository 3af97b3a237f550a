#include "moe/formats/nvfp4.hpp"

#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

using namespace moe;

namespace {

constexpr float e2m1[16] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -0.5F, -1, -1.5F, -2, -3, -4, -6};

template <GlobalScale global>
float naive(int code, std::byte scale, float factor) {
  const float its = detail::e4m3_numbers[std::size_t(scale)];
  const float number = global == GlobalScale::multiplies && code == 8 ? 0 : e2m1[code];
  const float product = number * (global == GlobalScale::divides ? its / factor : its * factor);
  return static_cast<float>(static_cast<bfloat16>(product));
}

/// A group for every scale, in each of them every code; then half a group.
template <GlobalScale global>
void expect_the_naive_numbers(float factor) {
  constexpr Index cols = 256 * 16 + 8;
  std::vector<std::byte> codes, scales;
  for (Index i = 0; i < cols; i += 2) codes.push_back(std::byte(i % 16 | (i % 16 + 1) << 4));
  for (Index g = 0; g <= 256; ++g) scales.push_back(std::byte(g % 256));
  const QuantizedMatrix matrix(nvfp4<global, bfloat16>, 1, cols, {codes.data(), cols / 2},
                               {scales.data(), Index(scales.size()), 1, 16}, {}, factor);
  for (const Index first : {0, 2, 16, 48, 1040}) {
    std::vector<float> numbers(std::size_t(cols - first));
    matrix.decode(0, first, cols - first, numbers.data());
    for (Index i = first; i < cols; ++i) {
      const float expected = naive<global>(int(i % 16), scales[std::size_t(i / 16)], factor);
      const float number = numbers[std::size_t(i - first)];
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(number)) << i << ", factor " << factor;
      } else {
        EXPECT_EQ(std::memcmp(&number, &expected, sizeof number), 0)
            << number << " is not " << expected << ": column " << i << ", factor " << factor;
      }
    }
  }
}

}  // namespace

TEST(Nvfp4, IsTheProductRoundedOnceWhateverTheFactor) {
  for (const float factor : {1.F, 0.37F, -3.1F, 26880.F, 1.2e-5F, 0x1.8p-79F, 0x1.8p79F, 0x1p-80F, 0x1p80F, 0x1p-118F,
                             0x1.5p-126F, 0x1.7p124F, 0x1p-140F, 0.F, INFINITY, NAN}) {
    expect_the_naive_numbers<GlobalScale::divides>(factor);
    expect_the_naive_numbers<GlobalScale::multiplies>(factor);
  }
}
