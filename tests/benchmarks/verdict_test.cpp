#include "../../benchmarks/verdict.hpp"

#include <gtest/gtest.h>

#include "made_up_rows.hpp"

using namespace moe::bench;

TEST(Verdict, SparseMayWinEverywhere) {
  EXPECT_EQ(
      verdict(rows_of({{1, 1, 1, 8, 0.002}, {4, 4, 2, 8, 0.01}})),
      "Sparse beats the dense FFN of equal total size at every number of tokens: dense takes 8.00 times as long at "
      "1 token, 2.00 times as long at 4 tokens. It takes 1.00 to 2.00 times as long as the dense FFN of equal "
      "active size. Routing and dispatch are 0.2 % to 1 % of its time.");
}

TEST(Verdict, SparseMayWinFromSomeNumberOfTokensOn) {
  const std::string words = verdict(rows_of({{1, 2, 1, 1}, {4, 2, 1, 1}, {16, 1, 1, 2}, {64, 1, 1, 3}}));
  EXPECT_TRUE(words.starts_with("Sparse beats the dense FFN of equal total size from 16 tokens on: ")) << words;
}

TEST(Verdict, SparseMayWinHereAndThere) {
  const std::string words =
      verdict(rows_of({{1, 1, 1, 2}, {4, 1, 1, 2}, {16, 2, 1, 1}, {64, 1, 1, 2}, {256, 2, 1, 1}}));
  EXPECT_TRUE(words.starts_with("Sparse beats the dense FFN of equal total size at 1 to 4 and 64 tokens: ")) << words;
}

TEST(Verdict, SparseMayLose) {
  const std::string words = verdict(rows_of({{1, 2, 1, 1}, {4, 4, 1, 1}}));
  EXPECT_TRUE(
      words.starts_with("Sparse does not beat the dense FFN of equal total size at any number of tokens: dense "
                        "takes 0.50 times as long at 1 token, 0.25 times as long at 4 tokens."))
      << words;
}

TEST(Verdict, OneNumberOfTokensIsSaidOnce) {
  EXPECT_EQ(
      verdict(rows_of({{1, 1, 0.5, 8}})),
      "Sparse beats the dense FFN of equal total size at every number of tokens: dense takes 8.00 times as long at "
      "1 token. It takes 2.00 times as long as the dense FFN of equal active size. Routing and dispatch are 1 % of "
      "its time.");
}

TEST(Verdict, WhatWasNotMeasuredIsNotJudged) {
  auto rows = rows_of({{1, 1, 1, 8}});
  rows[2].measured = false;
  EXPECT_TRUE(verdict(rows).starts_with("Sparse was not compared with the dense FFN of equal total size. It takes"));
  EXPECT_EQ(verdict({}), "Sparse was not compared with the dense FFN of equal total size.");
}
