// Regular expressions of a stranger's file: which names they fit, which are refused, and that none takes long.
#include "moe/io/name_pattern.hpp"

#include <regex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"

namespace moe::io {
namespace {

bool fits(const std::string& pattern, const std::string& name) {
  return NamePattern(pattern, "file").fits_end_of(name);
}

TEST(NamePattern, FitsWhatFollowsADotAsPeftsPatternsDo) {
  const std::string name = "model.layers.13.mlp.experts.7.up_proj";
  // clang-format off
  for (const std::string pattern :
       {"up_proj", "7.up_proj", "experts.7.up_proj", "^model.layers.13.mlp.experts.7.up_proj", "up_proj$", "7\\.up_proj",
        "(gate|up|down)_proj", "(?:gate|up)_proj|router", "layers\\.(1[0-5]|[2-9])\\..*up_proj", "[^.]+_proj", "u.*",
        "\\d+\\.\\w+", "model\\.layers\\.\\d{2}\\..*", "experts\\.[0-7]{1,2}\\.up_proj", "mlp.experts.*?.up_proj",
        "((experts|mlp)\\.?)*\\.7.up_proj", "[a-z_]{7}", "up_proj|", ".*", "(a|b|)up_pro[j]", "[]u]p_proj", "[u-]p_proj"}) {
    EXPECT_TRUE(fits(pattern, name)) << pattern;
  }
  for (const std::string pattern :
       {"p_proj", "up", "gate_proj", "^up_proj", "up_proj.", "up_pro", "[^u]p_proj", "layers\\.1\\..*",
        "experts.[0-6].up_proj", "\\D+\\.7", "7x*up_proj", "experts", "up_proj{2}", "", "[a-z]{7}", "(up|proj)", "x|y",
        "up_proj^"}) {
    EXPECT_FALSE(fits(pattern, name)) << pattern;
  }
  // clang-format on
}

TEST(NamePattern, FitsWhatStdRegexDoes) {
  const std::vector<std::string> names{"a",       "b",    "ab", "a.b", "b.a", "a.b.a",
                                       "aab.bba", "abab", "",   ".",   "a.",  "bb.ab"};
  for (const std::string pattern : {"a",         "b*",
                                    "(a|b)+",    "a?b",
                                    "a.b",       "(ab)*",
                                    "[ab]{2}",   "a{1,2}b",
                                    "(a*b*)*a",  "(a|ab)(b|)",
                                    "a{0,2}",    "a{2,}",
                                    "(a.?){2}",  "^a.*",
                                    "b$",        "(^a|b)b",
                                    "\\w\\.\\w", "[^a]+",
                                    "^ab",       "^a?b.*",
                                    "^(a|b)+",   "^(?:ab)(?:\\.b)?$",
                                    "^a+b*",     "^a{2}b.*",
                                    "^[ab].?",   "^",
                                    "^.a*",      "^a|b"}) {
    const std::regex whole("(.*\\.)?(" + pattern + ")");
    for (const std::string& name : names) {
      EXPECT_EQ(fits(pattern, name), std::regex_match(name, whole)) << pattern << " of " << name;
    }
  }
}

TEST(NamePattern, NamesWhatItDoesNotRead) {
  const auto told = [](const std::string& pattern) {
    const std::string error = test::error_of<Error>([&] { NamePattern(pattern, "config.json: alpha_pattern"); });
    const std::string begin =
        "config.json: alpha_pattern: \"" + pattern + "\" is no regular expression that is read: it has ";
    EXPECT_EQ(error.substr(0, begin.size()), begin);
    return error.substr(begin.size(), error.find("; expected") - begin.size());
  };
  EXPECT_EQ(told("("), "a \"(\" without its \")\" at 0");
  EXPECT_EQ(told("a)"), "a \")\" without its \"(\" at 1");
  EXPECT_EQ(told("x(?<!up)a"), "\"(?<\" at 1");
  EXPECT_EQ(told("(?P<n>a)"), "\"(?P\" at 0");
  EXPECT_EQ(told("(?i)a"), "\"(?i\" at 0");
  EXPECT_EQ(told("a\\b"), "\"\\b\" at 1");
  EXPECT_EQ(told("(a)\\1"), "\"\\1\" at 3");
  EXPECT_EQ(told("a\\"), "\"\\\" at 1");
  EXPECT_EQ(told("[ab"), "a \"[\" without its \"]\" at 0");
  EXPECT_EQ(told("[b-a]"), "a range of no letters at 4");
  EXPECT_EQ(told("*a"), "nothing to repeat at 0");
  EXPECT_EQ(told("a**"), "a second repetition at 2");
  EXPECT_EQ(told("a{2"), "\"{\" at 1");
  EXPECT_EQ(told("a{3,2}"), "\"{\" at 1");
}

TEST(NamePattern, IsBoundedInLengthAndTime) {
  const std::string many(NamePattern::max_length, 'a');
  EXPECT_TRUE(fits(many, "x." + many));
  const auto error = [](const std::string& pattern) {
    return test::error_of<Error>([&] { NamePattern(pattern, "f"); });
  };
  EXPECT_EQ(error(many + "a"), "f: a pattern has 4097 letters, expected at most 4096");
  EXPECT_NE(error("(a{100}){300}").find("more than 20000 steps"), std::string::npos);
  EXPECT_NE(error(std::string(200, '(') + "a" + std::string(200, ')')).find("groups within each other"),
            std::string::npos);
  // These take a matcher that goes back exponentially long; here each is done in the blink of an eye.
  const std::string name = "model." + std::string(300, 'a') + "!";
  for (const std::string pattern : {"(a*)*", "(a|a)*", "(a+)+", "(a?){200}a{200}", "(.*)*x", "((a*)*)*b"}) {
    EXPECT_FALSE(fits(pattern, name)) << pattern;
  }
}

}  // namespace
}  // namespace moe::io
