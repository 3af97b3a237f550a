/// @file  What telemetry writes reads back as what it counted.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "moe/telemetry.hpp"
#include "random.hpp"

namespace moe {
namespace {

using Json = nlohmann::json;

constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
const std::string nasty = "a \"layer\",\r\n\t\\back\\n {é}=😀 \x01 #";

/// Some tokens to some of the experts, more to the lower ones, some dropped; the last expert stays dead.
RoutingStats random_stats(Index num_experts, Index num_tokens, unsigned seed) {
  test::Random random(seed);
  Routing<float> routing;
  for (Index t = 0; t < num_tokens; ++t) {
    const Index first = random.below(1 + random.below(num_experts - 1));
    routing.add(t, first, 1.0F);
    if (first > 0) routing.add(t, random.below(first), 1.0F);
    for (Index e = 0; e < num_experts; ++e) routing.logits.push_back(static_cast<float>(2 * random()));
  }
  for (Index r = 1; r < routing.size(); ++r) {
    if (random() > 0.8) routing.drop(r);
  }
  RoutingStats stats(num_experts);
  stats.add(routing, num_tokens);
  return stats;
}

/// Equal, or both without a value.
void expect_same(double actual, double expected, std::string_view what) {
  EXPECT_TRUE(actual == expected || (std::isnan(actual) && !std::isfinite(expected)))
      << what << " is " << actual << ", expected " << expected;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// What a writer says of one layer and of two, in all forms in which it takes them.
template <class Write>
void expect_one_call_form(const Write& write) {
  const RoutingStats first = random_stats(9, 50, 1), second = random_stats(3, 20, 2);
  const LayerStats layer{"layer 3", first, 7};
  const std::vector<LayerStats> one = {layer}, two = {layer, {"layer 4", second}};
  EXPECT_EQ(write({"layer 3", first, 7}), write(one));
  EXPECT_EQ(write({{"layer 3", first, 7}}), write(one));
  EXPECT_EQ(write(layer), write(one));
  EXPECT_EQ(write({layer}), write(one));
  EXPECT_EQ(write({{"layer 3", first, 7}, {"layer 4", second}}), write(two));
  EXPECT_NE(write(one), write(two));
}

TEST(Writers, TakeOneLayerAndSeveralInOneForm) {
  expect_one_call_form([](const StatsOfLayers& layers) { return to_table(layers); });
  expect_one_call_form([](const StatsOfLayers& layers) { return to_json_line(layers); });
  expect_one_call_form([](const StatsOfLayers& layers) { return to_layer_csv(layers); });
  expect_one_call_form([](const StatsOfLayers& layers) { return to_expert_csv(layers); });
  expect_one_call_form([](const StatsOfLayers& layers) { return to_metrics(layers); });
  const RoutingStats first = random_stats(9, 50, 1), second = random_stats(3, 20, 2);
  EXPECT_EQ(to_table({{"a", first}, {"b", second}}), to_table({"a", first}) + "\n" + to_table({"b", second}));
  EXPECT_EQ(to_json_line({{"a", first}, {"b", second, 1}}),
            to_json_line({"a", first}) + to_json_line({"b", second, 1}));
  EXPECT_EQ(to_layer_csv({{"a", first}, {"b", second}}),
            to_layer_csv({"a", first}) + to_layer_csv({"b", second}, false));
  EXPECT_EQ(to_expert_csv({"a", first}), to_expert_csv({{"a", first}}));
  EXPECT_EQ(to_metrics({"a", first}, MetricsFormat::prometheus), to_metrics({{"a", first}}, MetricsFormat::prometheus));
}

TEST(JsonLines, ReadBack) {
  const RoutingStats some = random_stats(9, 50, 1), none(3);
  for (const RoutingStats* stats : {&some, &none}) {
    const std::string line = to_json_line({nasty, *stats, 7});
    EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
    EXPECT_EQ(line.back(), '\n');
    const Json json = Json::parse(line);
    EXPECT_EQ(json.at("layer"), nasty);
    EXPECT_EQ(json.at("step"), 7);
    EXPECT_EQ(json.at("num_experts"), stats->num_experts());
    EXPECT_EQ(json.at("dead").get<std::vector<Index>>(), stats->dead_experts());
    const auto number = [](const Json& value) { return value.is_null() ? nan : value.get<double>(); };
    for (const LayerReading& reading : layer_readings) {
      expect_same(number(json.at(std::string(reading.name))), reading.of(*stats), reading.name);
    }
    for (const ExpertReading& reading : expert_readings) {
      const Json& array = json.at(std::string(reading.name));
      ASSERT_EQ(Index(array.size()), stats->num_experts());
      for (Index e = 0; e < stats->num_experts(); ++e) {
        expect_same(number(array[std::size_t(e)]), reading.of(*stats, e), reading.name);
      }
    }
  }
}

TEST(JsonLines, WhatIsNotFiniteIsNull) {
  for (const double number : {nan, inf, -inf}) EXPECT_EQ(detail::json_number(number), "null");
  EXPECT_EQ(detail::json_number(0.1), "0.1");
  EXPECT_EQ(detail::json_number(2048), "2048");
}

TEST(JsonLines, AreValidWhateverTheBytesOfTheLabel) {
  std::vector<std::string> labels;
  for (int a = 0; a < 256; ++a) {
    labels.push_back({char(a)});
    for (int b = 0; b < 256; ++b) {
      labels.push_back({char(a), char(b)});
      for (const int c : {0x41, 0x80, 0xbf, 0xc0}) {
        if (a >= 0xe0) labels.push_back({char(a), char(b), char(c)});
        if (a >= 0xf0) labels.push_back({char(a), char(b), '\x80', char(c), 'x'});
      }
    }
  }
  for (const std::string& label : labels) {
    const std::string json = detail::json_string(label);
    ASSERT_TRUE(Json::accept(json)) << testing::PrintToString(label);
    // The parser is the judge of what is UTF-8: that alone comes back as it was.
    std::string plain;
    for (const char c : label) plain += static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\' ? '_' : c;
    EXPECT_EQ(Json::parse(json) == label, Json::accept('"' + plain + '"')) << testing::PrintToString(label);
  }
}

/// RFC 4180: records of fields.
std::vector<std::vector<std::string>> parse_csv(const std::string& csv) {
  std::vector<std::vector<std::string>> records(1, {""});
  bool quoted = false;
  for (std::size_t i = 0; i < csv.size(); ++i) {
    std::string& field = records.back().back();
    if (csv[i] == '"' && quoted && i + 1 < csv.size() && csv[i + 1] == '"') {
      field += csv[++i];
    } else if (csv[i] == '"') {
      quoted = !quoted;
    } else if (csv[i] == ',' && !quoted) {
      records.back().emplace_back();
    } else if (csv.compare(i, 2, "\r\n") == 0 && !quoted) {
      records.push_back({""});
      ++i;
    } else {
      field += csv[i];
    }
  }
  EXPECT_FALSE(quoted);
  EXPECT_EQ(records.back(), std::vector<std::string>{""}) << "the last record must end, too";
  records.pop_back();
  return records;
}

double csv_number(const std::string& field) { return field.empty() ? nan : std::stod(field); }

TEST(Csv, ReadsBack) {
  const RoutingStats some = random_stats(9, 50, 1), none(3);
  const std::vector<LayerStats> layers = {{nasty, some, 7}, {"plain", none, 8}};
  const auto rows = parse_csv(to_layer_csv(layers)), experts = parse_csv(to_expert_csv(layers));
  ASSERT_EQ(rows.size(), 3U);
  ASSERT_EQ(experts.size(), 1U + 9 + 3);
  for (std::size_t l = 0; l < 2; ++l) {
    const auto& row = rows[l + 1];
    ASSERT_EQ(row.size(), rows[0].size());
    EXPECT_EQ(row[0], layers[l].label);
    EXPECT_EQ(row[1], std::to_string(layers[l].step));
    for (std::size_t i = 0; i < layer_readings.size(); ++i) {
      EXPECT_EQ(rows[0][i + 3], layer_readings[i].name);
      expect_same(csv_number(row[i + 3]), layer_readings[i].of(layers[l].stats), layer_readings[i].name);
    }
    for (Index e = 0; e < layers[l].stats.num_experts(); ++e) {
      const auto& of_expert = experts[std::size_t(1 + (l > 0 ? 9 : 0) + e)];
      ASSERT_EQ(of_expert.size(), experts[0].size());
      EXPECT_EQ(of_expert[0], layers[l].label);
      EXPECT_EQ(of_expert[2], std::to_string(e));
      for (std::size_t i = 0; i < expert_readings.size(); ++i) {
        EXPECT_EQ(experts[0][i + 3], expert_readings[i].name);
        expect_same(csv_number(of_expert[i + 3]), expert_readings[i].of(layers[l].stats, e), expert_readings[i].name);
      }
    }
  }
  EXPECT_EQ(to_layer_csv({}) + to_layer_csv(layers, false), to_layer_csv(layers));
  EXPECT_EQ(to_expert_csv({}) + to_expert_csv(layers, false), to_expert_csv(layers));
}

/// The text that a metric's label was written for.
std::string unescaped(const std::string& value) {
  std::string text;
  for (std::size_t i = 0; i < value.size(); ++i) {
    if (value[i] != '\\') {
      text += value[i];
    } else {
      ++i;
      text += value[i] == 'n' ? '\n' : value[i];
    }
  }
  return text;
}

/// The first quote from `from` on that no backslash escapes.
std::size_t closing_quote(const std::string& line, std::size_t from) {
  while (line[from] != '"') from += line[from] == '\\' ? 2 : 1;
  return from;
}

double metric_number(const std::string& text) {
  return text == "NaN" ? nan : text == "+Inf" ? inf : text == "-Inf" ? -inf : std::stod(text);
}

/// name|layer|expert → number. Expects what either format demands of the lines: a family is announced before its
/// samples, once, which stand together, each once.
std::map<std::string, double> parse_metrics(const std::string& text, MetricsFormat format) {
  const bool open = format == MetricsFormat::open_metrics;
  std::map<std::string, double> samples;
  std::set<std::string> families;
  std::string family, type;
  bool ended = false;
  for (const std::string& line : lines_of(text)) {
    EXPECT_FALSE(ended) << "after # EOF: " << line;
    std::istringstream words(line);
    std::string hash, keyword, name, rest;
    if (line.starts_with("# TYPE ")) {
      words >> hash >> keyword >> family >> type;
      EXPECT_TRUE(families.insert(family).second) << family << " again";
      EXPECT_EQ(family.ends_with("_total"), type == "counter" && !open) << line;
    } else if (line.starts_with("# HELP ") || line.starts_with("# UNIT ")) {
      words >> hash >> keyword >> name >> rest;
      EXPECT_EQ(name, family);
      EXPECT_TRUE(keyword == "HELP" || (open && family.ends_with("_" + rest))) << line;
    } else if (line == "# EOF") {
      ended = true;
    } else {
      const std::size_t brace = line.find('{'), layer = line.find("layer=\"") + 7, end = closing_quote(line, layer);
      std::string key = line.substr(0, brace);
      EXPECT_EQ(key, family + (type == "counter" && open ? "_total" : "")) << line;
      key += "|" + unescaped(line.substr(layer, end - layer)) + "|";
      if (line.compare(end, 10, "\",expert=\"") == 0) {
        key += line.substr(end + 10, closing_quote(line, end + 10) - end - 10);
      }
      EXPECT_TRUE(samples.emplace(key, metric_number(line.substr(line.rfind("} ") + 2))).second) << key << " again";
    }
  }
  EXPECT_EQ(ended, open);
  EXPECT_EQ(text.back(), '\n');
  return samples;
}

std::string without(std::string text, const std::string& what) {
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what)) text.erase(at, what.size());
  return text;
}

TEST(Metrics, ReadBackInBothFormats) {
  const std::string label = without(nasty, "\r");  // a line is a line of text here
  const RoutingStats some = random_stats(9, 50, 1), none(3);
  const std::vector<LayerStats> layers = {{label, some}, {"", none}};
  for (const MetricsFormat format : {MetricsFormat::open_metrics, MetricsFormat::prometheus}) {
    const auto samples = parse_metrics(to_metrics(layers, format), format);
    EXPECT_EQ(samples.size(), 2 * layer_readings.size() + 12 * expert_readings.size());
    const auto expect_sample = [&](const auto& reading, const LayerStats& layer, const std::string& expert,
                                   double number) {
      const std::string key = "moe_" + std::string(reading.name) +
                              (reading.kind == ReadingKind::counter ? "_total|" : "|") + std::string(layer.label) +
                              "|" + expert;
      ASSERT_TRUE(samples.contains(key)) << key;
      expect_same(samples.at(key), number, key);
    };
    for (const LayerStats& layer : layers) {
      for (const LayerReading& reading : layer_readings) expect_sample(reading, layer, "", reading.of(layer.stats));
      for (const ExpertReading& reading : expert_readings) {
        for (Index e = 0; e < layer.stats.num_experts(); ++e) {
          expect_sample(reading, layer, std::to_string(e), reading.of(layer.stats, e));
        }
      }
    }
  }
}

TEST(Metrics, NumbersAreSpelledAsBothFormatsDemand) {
  EXPECT_EQ(detail::metric_number(nan), "NaN");
  EXPECT_EQ(detail::metric_number(inf), "+Inf");
  EXPECT_EQ(detail::metric_number(-inf), "-Inf");
  EXPECT_EQ(detail::metric_number(0.25), "0.25");
}

TEST(Metrics, RefuseTwoLayersOfOneName) {
  const RoutingStats stats(2);
  const std::vector<LayerStats> layers = {{"a", stats}, {"b", stats}, {"a", stats}};
  EXPECT_EQ(test::error_of([&] { to_metrics(layers); }), "to_metrics: two layers have the label \"a\"");
}

/// promtool, if it is installed; MOE_PROMTOOL says that it must be there, and where.
class Promtool : public testing::Test {
 protected:
  void SetUp() override {
    const char* const named = std::getenv("MOE_PROMTOOL");
    if (named != nullptr) command = named;
    const bool runs = run("--version") == 0;
    if (named == nullptr && !runs) GTEST_SKIP() << "promtool is not installed";
    ASSERT_TRUE(runs) << "MOE_PROMTOOL is " << command << ", which does not run";
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  /// Its exit code, with the text as standard input. What it complains of stays in view.
  int run(const std::string& arguments, const std::string& text = "") const {
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "input") << text;
    return std::system((command + " " + arguments + " <" + (folder / "input").string() + " 2>&1").c_str());
  }

  std::string command = "promtool";
  std::filesystem::path folder = std::filesystem::path(testing::TempDir()) /
                                 (std::string("moe_") + testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(Promtool, FindsNothingToSayOfOurMetrics) {
  const RoutingStats some = random_stats(9, 50, 1), none(3);
  const std::vector<LayerStats> layers = {{nasty, some}, {"no é \xff", none}};
  EXPECT_EQ(run("check metrics", to_metrics(layers, MetricsFormat::prometheus)), 0);
  EXPECT_NE(run("check metrics", "moe_tokens_total 1\n"), 0) << "it should complain of the missing help";
}

TEST_F(Promtool, ReadsOurOpenMetrics) {
  const RoutingStats some = random_stats(9, 50, 1);
  const std::vector<LayerStats> layers = {{without(nasty, "\r"), some}, {"other", some}};
  std::string stamped;  // what it reads into a data base needs times
  for (const std::string& line : lines_of(to_metrics(layers)))
    stamped += line + (line[0] == '#' ? "\n" : " 1700000000\n");
  const std::string blocks = (folder / "blocks").string();
  EXPECT_EQ(run("tsdb create-blocks-from openmetrics /dev/stdin " + blocks, stamped), 0);
  EXPECT_NE(run("tsdb create-blocks-from openmetrics /dev/stdin " + blocks, without(stamped, "# EOF\n")), 0);
}

/// Columns of a terminal that a line takes: all characters here are one wide.
Index columns(const std::string& line) {
  return std::count_if(line.begin(), line.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

/// The rows below the head: the expert of each, and its load.
std::vector<std::pair<Index, Index>> rows_of(const std::string& table) {
  std::vector<std::pair<Index, Index>> rows;
  bool below = false;
  for (const std::string& line : lines_of(table)) {
    Index expert = 0, load = 0;
    if (below && std::istringstream(line) >> expert >> load) rows.emplace_back(expert, load);
    below = below || line.starts_with("expert ");
  }
  return rows;
}

TEST(Table, HasARowForEachExpertInOrderOrByLoad) {
  for (const Index num_experts : {2, 8, 64}) {
    const RoutingStats stats = random_stats(num_experts, 100, 2);
    const auto plain = rows_of(to_table({"x", stats})), sorted = rows_of(to_table({"x", stats}, {.sorted = true}));
    ASSERT_EQ(Index(plain.size()), num_experts);
    ASSERT_EQ(Index(sorted.size()), num_experts);
    for (Index e = 0; e < num_experts; ++e) {
      EXPECT_EQ(plain[std::size_t(e)], (std::pair<Index, Index>{e, stats.load(e)}));
    }
    for (std::size_t i = 1; i < sorted.size(); ++i) {
      const auto [expert, load] = sorted[i];
      EXPECT_TRUE(load < sorted[i - 1].second || (load == sorted[i - 1].second && expert > sorted[i - 1].first));
      EXPECT_EQ(load, stats.load(expert));
    }
  }
}

TEST(Table, OfManyExpertsShowsTheMostAndTheLeastLoaded) {
  const RoutingStats stats = random_stats(512, 4000, 3);
  const auto rows = rows_of(to_table({"x", stats}));
  const auto sorted = rows_of(to_table({"x", stats}, {.sorted = true, .max_rows = 512}));
  ASSERT_EQ(rows.size(), 16U);
  ASSERT_EQ(sorted.size(), 512U);
  EXPECT_TRUE(std::equal(rows.begin(), rows.begin() + 8, sorted.begin()));
  EXPECT_TRUE(std::equal(rows.begin() + 8, rows.end(), sorted.end() - 8));
  const std::string table = to_table({"x", stats});
  EXPECT_NE(table.find("\nloads     0 "), std::string::npos);
  EXPECT_NE(table.find("… 496 more …"), std::string::npos);
  EXPECT_EQ(rows_of(to_table({"x", stats}, {.few_rows = 5})).size(), 5U);
  EXPECT_EQ(rows_of(to_table({"x", random_stats(3, 9, 1)}, {.max_rows = 2, .few_rows = 16})).size(), 3U);
}

TEST(Table, KeepsToItsWidthAndUsesAllOfIt) {
  for (const Index num_experts : {2, 64, 512}) {
    for (const Index num_tokens : {1, 300, 20000}) {
      const RoutingStats stats = random_stats(num_experts, num_tokens, 4);
      for (const Index width : {80, 100, 200}) {
        Index widest = 0;
        for (const std::string& line : lines_of(to_table({"layer 3", stats}, {.width = width}))) {
          EXPECT_LE(columns(line), width) << line;
          widest = std::max(widest, columns(line));
        }
        EXPECT_EQ(widest, width);
      }
    }
  }
}

TEST(Table, BarsAreAsLongAsTheirLoads) {
  EXPECT_EQ(detail::bar(3, 0), "███");
  EXPECT_EQ(detail::bar(2.5, 0), "██▌");
  EXPECT_EQ(detail::bar(2.5, 5), "██▌ ╎");
  EXPECT_EQ(detail::bar(0, 2), " ╎");
  EXPECT_EQ(detail::bar(0, 0), "");
  EXPECT_EQ(detail::bar(1.0 / 8, 1), "▏");
}

TEST(Table, SaysWhatIsThereAndLeavesOutWhatIsNot) {
  const std::string empty = to_table({"nothing", RoutingStats(2)});
  EXPECT_EQ(empty,
            "nothing: 0 tokens, - experts each, none dropped\n"
            "load      largest - × mean, variation -\n"
            "dead      2 of 2: 0, 1\n"
            "expert    load    share     mean p   dropped\n"
            "     0       0        -          -         -\n"
            "     1       0        -          -         -\n");
  const std::string many = to_table({"none", RoutingStats(512)});
  EXPECT_EQ(rows_of(many).size(), 16U);
  Routing<double> routing;
  routing.logits = {std::log(3.0), 0, nan, 0};
  routing.add(0, 0, 1.0);
  routing.add(1, 1, 1.0);
  routing.drop(1);
  RoutingStats stats(2);
  stats.add(routing, 2);
  EXPECT_EQ(to_table({"two\nlines", stats}, {.width = 60}),
            "two lines: 2 tokens, 0.50 experts each, 50.0 % dropped\n"
            "load      largest 2.00 × mean, variation 1.00\n"
            "dead      1 of 2: 1\n"
            "entropy   0.56 nats, 81.1 % of even\n"
            "margin    1.099 on average, 1.1 at least\n"
            "NaN       in the logits of 1 token\n"
            "expert    load    share     mean p   dropped\n"
            "     0       1  100.0 %     75.0 %    0.00 %  ██████████████\n"
            "     1       0   0.00 %     25.0 %   100.0 %        ╎\n");
}

}  // namespace
}  // namespace moe
