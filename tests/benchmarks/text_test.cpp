#include "../../benchmarks/text.hpp"

#include <gtest/gtest.h>

using namespace moe::bench;

TEST(Text, NumbersHaveThreeDigits) {
  EXPECT_EQ(three_digits(0), "0.00");
  EXPECT_EQ(three_digits(1.234), "1.23");
  EXPECT_EQ(three_digits(9.996), "10.0");
  EXPECT_EQ(three_digits(99.96), "100");
  EXPECT_EQ(three_digits(12345.6), "12346");
}

TEST(Text, CountsBytesAndSecondsHaveUnits) {
  EXPECT_EQ(count_text(8), "8");
  EXPECT_EQ(count_text(402.7e6), "403 M");
  EXPECT_EQ(count_text(1.026e12), "1.03 T");
  EXPECT_EQ(bytes_text(1.61e9), "1.61 GB");
  EXPECT_EQ(seconds_text(6.2e-3), "6.20 ms");
  EXPECT_EQ(seconds_text(4321), "4321 s");
}

TEST(Text, ANumberThatRoundsUpToAThousandGetsTheNextUnit) {
  EXPECT_EQ(seconds_text(0.9996e-3), "1.00 ms");
  EXPECT_EQ(count_text(999.7e3), "1.00 M");
}

TEST(Text, SmallSharesKeepADigit) {
  EXPECT_EQ(percent_text(0.943), "94 %");
  EXPECT_EQ(percent_text(0.0031), "0.3 %");
}

TEST(Text, LinesBreakBetweenWords) {
  EXPECT_EQ(wrapped("one two three four", 9), "one two\nthree\nfour");
  EXPECT_EQ(wrapped("short", 9), "short");
  EXPECT_EQ(wrapped("unbreakable word", 4), "unbreakable\nword");
}
