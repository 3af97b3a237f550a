#include "../../benchmarks/options.hpp"

#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

namespace {

using namespace moe::bench;

template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST(BenchmarkOptions, NumbersHaveCommasBetweenThem) {
  EXPECT_EQ(parse_numbers("1,4,16", "--tokens"), (std::vector<moe::Index>{1, 4, 16}));
  EXPECT_EQ(parse_numbers("7", "--tokens"), (std::vector<moe::Index>{7}));
}

TEST(BenchmarkOptions, WhatIsNoListOfPositiveNumbersIsRefusedByName) {
  for (const char* list : {"", ",", "1,", ",1", "1,,2", "0", "-4", "1;2", "x", "1x", " 1", "99999999999999999999"}) {
    const std::string message = message_of([&] { parse_numbers(list, "--tokens"); });
    EXPECT_EQ(message,
              "--tokens: expected positive numbers with commas between them, got \"" + std::string(list) + "\"");
  }
}

TEST(BenchmarkOptions, AShapeIsFourNumbers) {
  const moe::MoeShape shape = parse_shape("2048,1024,64,8");
  EXPECT_EQ(shape.d_model, 2048);
  EXPECT_EQ(shape.d_ff, 1024);
  EXPECT_EQ(shape.num_experts, 64);
  EXPECT_EQ(shape.top_k, 8);
  EXPECT_EQ(std::get<moe::TopKOptions>(shape.router).top_k, 8);
}

TEST(BenchmarkOptions, AShapeWithMoreOrLessIsRefused) {
  EXPECT_EQ(message_of([] { parse_shape("2048,1024,64"); }),
            "--shape: the count of d_model,d_ff,experts,top_k is 3, expected 4");
  EXPECT_EQ(message_of([] { parse_shape("2048,1024,64,8,1"); }),
            "--shape: the count of d_model,d_ff,experts,top_k is 5, expected 4");
}

TEST(BenchmarkOptions, AShapeWhoseTopKExceedsItsExpertsIsRefused) {
  EXPECT_EQ(message_of([] { parse_shape("64,64,4,5"); }), "--shape: top_k is 5, expected 1 to 4");
}

TEST(BenchmarkOptions, EachTypeOfWeightsIsKnownByItsName) {
  EXPECT_EQ(parse_weight_types("f16,f32,bf16"),
            (std::vector<WeightType>{WeightType::f16, WeightType::f32, WeightType::bf16}));
}

TEST(BenchmarkOptions, AnUnknownTypeOfWeightsIsRefusedWithTheOnesThereAre) {
  for (const char* list : {"", "f64", "f32,", "f32,q8", "Q4_K"}) {
    const std::string message = message_of([&] { parse_weight_types(list); });
    EXPECT_NE(message.find("is none of f32, bf16, f16, q8_0, "), std::string::npos) << list << ": " << message;
    for (const auto& type : weight_types) EXPECT_NE(message.find(type.name), std::string::npos) << type.name;
  }
}

TEST(BenchmarkOptions, AProgramThatTakesFloatsAloneSaysSo) {
  EXPECT_EQ(parse_weight_types("f16", float_types), (std::vector<WeightType>{WeightType::f16}));
  EXPECT_EQ(message_of([] { parse_weight_types("q4_k", float_types); }),
            "--weights: \"q4_k\" is none of f32, bf16, f16");
}

TEST(BenchmarkOptions, EveryTypeIsAtItsPlaceInTheList) {
  for (std::size_t i = 0; i < weight_types.size(); ++i) {
    EXPECT_EQ(std::size_t(weight_types[i].type), i);
    EXPECT_EQ(is_coded(weight_types[i].type), i >= 3) << weight_types[i].name;
    with_type(weight_types[i].type, [&]<class W>(std::type_identity<W>) {
      EXPECT_TRUE(is_coded(weight_types[i].type) || double(sizeof(W)) == bytes_of(weight_types[i].type));
    });
    EXPECT_EQ(parse_weight_types(weight_types[i].name), (std::vector<WeightType>{weight_types[i].type}));
  }
}

TEST(BenchmarkOptions, AnUnknownPresetIsRefusedWithTheOnesThereAre) {
  const std::string message = message_of([] { moe::layer_shape("gpt-9"); });
  EXPECT_NE(message.find("gpt-9"), std::string::npos);
  EXPECT_NE(message.find("olmoe-1b-7b"), std::string::npos);
}
