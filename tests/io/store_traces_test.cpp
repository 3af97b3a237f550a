#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/io/npy.hpp"
#include "moe/io/store/plan.hpp"
#include "moe/io/store/read_trace.hpp"
#include "temporary_folder.hpp"

namespace moe::io {

struct TraceFiles : testing::Test {
  const test::TemporaryFolder folder{"traces"};

  std::filesystem::path file(std::string_view text, const std::string& name = "routes.csv") const {
    std::ofstream(folder.path / name, std::ios::binary) << text;
    return folder.path / name;
  }

  /// Of read_trace(), without the name of the folder.
  std::string error_of(std::string_view text, const ReadTraceOptions& options = {}) const {
    const auto path = file(text);
    const std::string error = test::error_of<Error>([&] { read_trace(path, options); });
    return error.starts_with(utf8(folder.path)) ? error.substr(utf8(folder.path).size() + 1) : error;
  }
};

/// A file of numpy.save().
template <class T>
std::string npy(const std::string& header, const std::vector<T>& numbers, int version = 1) {
  std::string text = "\x93NUMPY";
  text += char(version), text += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) text += char(header.size() >> 8 * i & 255);
  return text + header + std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T));
}

std::string npy_header(const std::string& descr, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }      \n";
}

std::vector<ExpertId> experts_of(const Trace& trace, Index call) {
  std::vector<ExpertId> experts;
  trace.experts_of(trace.calls[std::size_t(call)], experts);
  return experts;
}

using Experts = std::vector<ExpertId>;

TEST_F(TraceFiles, OfTextAreReadByTheNamesOfTheirColumns) {
  const Trace trace = read_trace(file(
      "# of some engine\r\nweight, expert,layer,token\r\n.5,7,12,1\r\n\r\n.25,2,12,1\n.5,3,4,1\n1,7,4,0\n0.1,0,12,0"));
  EXPECT_EQ(trace.layer_numbers, (std::vector<Index>{4, 12}));
  ASSERT_EQ(std::ssize(trace.calls), 4);
  EXPECT_EQ(experts_of(trace, 0), (Experts{{0, 7}}));
  EXPECT_EQ(experts_of(trace, 1), (Experts{{1, 0}}));
  EXPECT_EQ(experts_of(trace, 2), (Experts{{0, 3}}));
  EXPECT_EQ(experts_of(trace, 3), (Experts{{1, 2}, {1, 7}}));
  EXPECT_EQ(trace.num_tokens(), 2);
}

TEST_F(TraceFiles, AreWrittenByTheRecorderAndComeBackAsTheyWere) {
  TraceRecorder recorder;
  Routing<float> batch, one;
  for (const Index t : {0, 1, 2}) batch.add(t, t % 2, 1), batch.add(t, 5, 1);
  batch.drop(2);  // of token 1 to expert 1
  one.add(0, 9, 1);
  recorder.add(3, batch, 3), recorder.add(7, one, 1), recorder.add(3, one, 1);
  const Trace trace = recorder.trace();
  EXPECT_EQ(trace.layer_numbers, (std::vector<Index>{3, 7}));
  EXPECT_EQ(experts_of(trace, 0), (Experts{{0, 0}, {0, 5}}));
  EXPECT_EQ(experts_of(trace, 1), (Experts{{1, 9}}));
  EXPECT_EQ(experts_of(trace, 2), (Experts{{0, 9}}));
  EXPECT_EQ(trace.token, (std::vector<Index>{0, 0, 1, 2, 2, 0, 3}));

  save_trace(folder.path / "saved.csv", trace);
  const Trace read = read_trace(folder.path / "saved.csv");
  EXPECT_EQ(read.layer_numbers, trace.layer_numbers);
  EXPECT_EQ(read.token, trace.token);
  EXPECT_EQ(read.expert, trace.expert);
  ASSERT_EQ(read.calls.size(), trace.calls.size());
  for (std::size_t c = 0; c < read.calls.size(); ++c) {
    EXPECT_EQ(read.calls[c].layer, trace.calls[c].layer);
    EXPECT_EQ(read.calls[c].begin, trace.calls[c].begin);
    EXPECT_EQ(read.calls[c].end, trace.calls[c].end);
  }
  EXPECT_EQ(test::error_of([&] { recorder.add(1024, one, 1); }), "TraceRecorder: layer is 1024, expected 0 to 1023");
  EXPECT_EQ(test::error_of([&] { recorder.add(0, one, 0); }).substr(0, 38), "Routing: route 0 sends token 0 of 0 to");
}

TEST_F(TraceFiles, SayWhereTheyAreWrongAndWhatIsThere) {
  EXPECT_EQ(error_of("token,layer\n"),
            "routes.csv:1: columns are \"token,layer\", expected token, layer and expert; or layer, expert and count");
  EXPECT_EQ(error_of(""),
            "routes.csv:0: columns are \"\", expected token, layer and expert; or layer, expert and count");
  EXPECT_EQ(error_of("token,layer,expert\n# none\n"),
            "routes.csv: 0 lines below the names of columns, expected at least 1");
  EXPECT_EQ(error_of("token,layer,expert\n0,0,1\n0,0\n"), "routes.csv:3: 2 fields, expected 3: token,layer,expert");
  EXPECT_EQ(error_of("token,layer,expert\n0,0,1.5\n"),
            "routes.csv:2: expert is \"1.5\", expected a number from 0 to 16383");
  EXPECT_EQ(error_of("token,layer,expert\n0,1024,1\n"),
            "routes.csv:2: layer is \"1024\", expected a number from 0 to 1023");
  EXPECT_EQ(error_of("token,layer,expert\n-1,0,1\n"),
            "routes.csv:2: token is \"-1\", expected a number from 0 to 281474976710655");
  EXPECT_EQ(error_of("token,layer,expert\n99999999999999999999,0,1\n").substr(0, 36),
            "routes.csv:2: token is \"999999999999");
  EXPECT_EQ(error_of("token,layer,expert\n5,2,1\n5,2,3\n5,2,1\n"),
            "routes.csv:4: token 5 is sent to expert 1 of layer 2 twice, first on line 2");
  EXPECT_EQ(error_of("call,token,layer,expert\n0,0,2,1\n0,0,3,3\n"),
            "routes.csv:3: call 0 is of layer 2 and of layer 3, expected one layer a call");
  EXPECT_EQ(test::error_of<Error>([&] { read_trace(folder.path / "none.csv"); }).substr(utf8(folder.path).size() + 1),
            "none.csv: no such file");
}

TEST_F(TraceFiles, OfCountsAloneAreDrawn) {
  const std::string counts = "layer,expert,count\n3,0,10\n3,5,30\n3,6,0\n8,1,1\n8,2,1\n";
  const Trace trace = read_trace(file(counts), {.top_k = 1, .tokens = 4000});
  EXPECT_EQ(trace.layer_numbers, (std::vector<Index>{3, 8}));
  ASSERT_EQ(std::ssize(trace.calls), 8000);
  EXPECT_EQ(trace.calls[1].layer, 1);
  Index fifth = 0;
  for (std::size_t c = 0; c < 8000; c += 2) fifth += trace.expert[c] == 5;
  EXPECT_NEAR(double(fifth), 3000, 6 * std::sqrt(4000 * .75 * .25));
  EXPECT_EQ(read_trace(file(counts), {.top_k = 2, .tokens = 3}).expert.size(), 12U) << "all that can be drawn";
  EXPECT_EQ(error_of(counts, {.top_k = 3}),
            "routes.csv: layer 3 has 2 experts with a count above 0, expected at least top_k, 3");
  EXPECT_EQ(error_of(counts),
            "routes.csv: has counts alone, and top_k is 0, expected how many experts a token is sent to");
  EXPECT_EQ(error_of("layer,expert,count\n3,0,10\n3,0,11\n"),
            "routes.csv: expert 0 of layer 3 has the counts 10 and 11, expected one");
}

TEST_F(TraceFiles, OfNumPyAreTokensLayersAndExperts) {
  const std::vector<std::int16_t> numbers{7, 2,  0, 0, 1,   3,  //
                                          5, -1, 0, 0, 300, 2};
  for (const int version : {1, 2, 3}) {
    const Trace trace = read_trace(file(npy(npy_header("<i2", "(2, 3, 2)"), numbers, version), "routes.npy"));
    EXPECT_EQ(trace.layer_numbers, (std::vector<Index>{0, 2})) << "layer 1 is dense";
    ASSERT_EQ(std::ssize(trace.calls), 4);
    EXPECT_EQ(experts_of(trace, 0), (Experts{{0, 2}, {0, 7}}));
    EXPECT_EQ(experts_of(trace, 1), (Experts{{1, 1}, {1, 3}}));
    EXPECT_EQ(experts_of(trace, 2), (Experts{{0, 5}}));
    EXPECT_EQ(experts_of(trace, 3), (Experts{{1, 2}, {1, 300}}));
  }
  EXPECT_EQ(error_of(npy(npy_header("<i2", "(4, 3)"), numbers)),
            "routes.csv: has shape [4, 3], expected [tokens, layers, experts of a token]");
  EXPECT_EQ(error_of(npy(npy_header("<i2", "(2, 1, 6)"), numbers)),
            "routes.csv: expert [0, 0, 3] is 0, as is that of k = 2");
  EXPECT_EQ(error_of(npy(npy_header("|i1", "(1, 1, 2)"), std::vector<std::int8_t>{1, -2})),
            "routes.csv: expert [0, 0, 1] is -2, expected 0 to 16383, or -1 for none");
  EXPECT_EQ(error_of(npy(npy_header("<i8", "(0, 1, 2)"), std::vector<std::int64_t>{})),
            "routes.csv: has shape [0, 1, 2] and no route, expected at least one");
}

TEST_F(TraceFiles, OfNumPyThatAreNoneAreRefused) {
  const std::vector<std::int32_t> six{1, 2, 3, 4, 5, 6};
  const auto error = [&](const std::string& text) { return error_of(text); };
  EXPECT_EQ(read_npy(file(npy(npy_header("<u4", "(6,)"), six))).numbers, (std::vector<std::int64_t>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(read_npy(file(npy(npy_header("<i8", "()"), std::vector<std::int64_t>{-3}))).numbers[0], -3);
  EXPECT_EQ(error(npy(npy_header("<i4", "(7,)"), six)),
            "routes.csv: tensor \"array\" has 24 bytes, expected 28 for shape [7] of I32");
  EXPECT_EQ(error(npy(npy_header(">i4", "(6,)"), six)),
            "routes.csv: dtype is '>i4', expected whole numbers: i1, i2, i4, i8 or u1 … u8, little-endian");
  EXPECT_EQ(error(npy(npy_header("<f4", "(6,)"), six)).substr(0, 29), "routes.csv: dtype is '<f4', e");
  EXPECT_EQ(error(npy(npy_header("|O", "(6,)"), six)).substr(0, 28), "routes.csv: dtype is '|O', e");
  EXPECT_EQ(error(npy("{'descr': '<i4', 'fortran_order': True, 'shape': (3, 2)}\n", six)),
            "routes.csv: fortran_order is True, expected False: save numpy.ascontiguousarray() of it");
  EXPECT_EQ(error(npy("{'descr': '<i4', 'shape': (6,)}\n", six)).substr(0, 42),
            "routes.csv: the header is \"{'descr': '<i4'");
  EXPECT_EQ(error(npy("{'descr': '<i4', 'fortran_order': False, 'shape': (6, x)}\n", six)),
            "routes.csv: the header goes on with \"x)}\n\", expected a size");
  EXPECT_EQ(error(npy("{'descr': '<i4', 'fortran_order': False, 'shape': (-6,)}\n", six)),
            "routes.csv: the header goes on with \"-6,)}\n\", expected a size");
  EXPECT_EQ(error(npy("{'descr': '<i4', 'fortran_order': False, 'shape': (6,)} more\n", six)),
            "routes.csv: the header goes on with \"more\n\", expected the end of the header");
  EXPECT_EQ(error(npy("{'descr: \n", six)),
            "routes.csv: the header goes on with \"descr: \n\", expected the end of a word in quotation marks");
  EXPECT_EQ(error(npy(npy_header("<i4", "(4611686018427387904, 4611686018427387904)"), six)).substr(0, 43),
            "routes.csv: tensor \"array\" has shape [46116");
  EXPECT_EQ(error(npy(npy_header("<i4", "(6,)"), six, 4)), "routes.csv: the format is 4.0, expected 1.0 to 3.0");
  EXPECT_EQ(error(std::string("\x93NUMPY\1\0\xff\xff{ }", 13)),
            "routes.csv: the header has 65535 bytes, expected at most 3, which are left");
  EXPECT_EQ(error("\x93NUMPY\1"), "routes.csv: 7 bytes, expected a file of numpy.save(), which begin with \\x93NUMPY");
  EXPECT_EQ(error("PK\3\4"),
            "routes.csv: 4 bytes, expected a file of numpy.save(), which begin with \\x93NUMPY; this "
            "is an archive, maybe of numpy.savez()");
  EXPECT_EQ(error(npy(npy_header("<u8", "(1,1,1)"), std::vector<std::uint64_t>{~std::uint64_t(0)})),
            "routes.csv: expert [0, 0, 0] is -9223372036854775808, expected 0 to 16383, or -1 for none");
}

// ---- simulate()

/// Tokens of `top_k` experts a layer, each by itself.
Trace some_trace(Index tokens, Index layers, Index num_experts, Index top_k, std::uint64_t seed) {
  std::vector<std::pair<ExpertId, Index>> counts;
  for (Index l = 0; l < layers; ++l) {
    for (Index e = 0; e < num_experts; ++e) counts.push_back({{l, e}, 1 + 20 / (e + 1)});
  }
  return detail::drawn(counts, {.top_k = top_k, .tokens = tokens, .seed = seed}, "");
}

SimulatedCall sum_of(const std::vector<SimulatedCall>& calls) {
  SimulatedCall sum;
  for (const SimulatedCall& call : calls) sum += call;
  return sum;
}

TEST(Simulate, CountsAsByHand) {
  const Trace trace{.layer_numbers = {0, 1},
                    .calls = {{0, 0, 1}, {1, 1, 2}, {0, 2, 3}, {1, 3, 4}, {0, 4, 5}},
                    .token = {0, 0, 1, 1, 2},
                    .expert = {0, 0, 1, 0, 0}};
  const ExpertBytes bytes{{10, 10}, {20}};
  // room for 30: 0 of layer 0 and 0 of layer 1; then 1 of layer 0 takes the place of what was used first
  const auto calls = simulate(trace, bytes, 30, Lru());
  ASSERT_EQ(std::ssize(calls), 5);
  EXPECT_EQ(calls[0].misses, 1);
  EXPECT_EQ(calls[0].bytes_read, 10);
  EXPECT_EQ(calls[1].misses, 1);
  EXPECT_EQ(calls[1].bytes_read, 20);
  EXPECT_EQ(calls[2].misses, 1);
  EXPECT_EQ(calls[2].evictions, 1);
  EXPECT_EQ(calls[3].hits, 1);
  EXPECT_EQ(calls[3].bytes_read, 0);
  EXPECT_EQ(calls[3].bytes_used, 20);
  EXPECT_EQ(calls[4].misses, 1);
  EXPECT_EQ(calls[4].evictions, 1);
  EXPECT_EQ(sum_of(simulate(trace, bytes, 40, Lru())).hits, 2);
  EXPECT_EQ(sum_of(simulate(trace, {{}, {20}}, 20, Lru())).misses, 1) << "experts of no bytes are not looked up";
  EXPECT_EQ(test::error_of([&] { simulate(trace, bytes, 15, Lru()); }),
            "simulate: memory is 15 bytes, expected at least 20, those of expert 0");
  EXPECT_EQ(test::error_of([&] { simulate(trace, {{10}}, 15, Lru()); }),
            "simulate: layers with bytes of experts is 1, expected 2");
}

TEST(Simulate, HasNoMoreHitsThanBeladysMin) {
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    const Trace trace = some_trace(120, 4, 16, 3, seed);
    const ExpertBytes bytes(4, std::vector<Index>(16, 1));
    Index last = -1;
    for (const Index memory : {3, 4, 6, 8, 12, 16, 24, 32, 48, 64}) {
      const Index most = sum_of(simulate(trace, bytes, memory, BeladyMin(trace))).hits;
      EXPECT_GE(most, last) << "more memory, more hits";
      for (const AnyPolicy& policy : {AnyPolicy(), AnyPolicy(Lru()), AnyPolicy(Pinned(hottest(trace, memory / 2)))}) {
        const SimulatedCall sum = sum_of(simulate(trace, bytes, memory, policy));
        EXPECT_LE(sum.hits, most) << memory;
        EXPECT_EQ(sum.hits + sum.misses, 120 * 4 * 3);
        EXPECT_EQ(sum.misses, sum.bytes_read);
        EXPECT_LE(sum.misses - sum.evictions, memory) << "what came and did not go is there";
        EXPECT_TRUE(memory < 64 || sum.evictions == 0);
      }
      last = most;
    }
  }
}

/// The most hits that any choice of victims has, by trying all.
Index most_hits(const Trace& trace, std::size_t call, std::vector<ExpertId> resident, Index slots) {
  if (call == trace.calls.size()) return 0;
  std::vector<ExpertId> used;
  trace.experts_of(trace.calls[call], used);
  if (std::ranges::count(resident, used[0]) > 0) return 1 + most_hits(trace, call + 1, resident, slots);
  resident.push_back(used[0]);
  if (std::ssize(resident) <= slots) return most_hits(trace, call + 1, resident, slots);
  Index best = 0;
  for (std::size_t i = 0; i + 1 < resident.size(); ++i) {
    std::vector<ExpertId> rest = resident;
    rest.erase(rest.begin() + std::ptrdiff_t(i));
    best = std::max(best, most_hits(trace, call + 1, rest, slots));
  }
  return best;
}

TEST(BeladyMin, IsTheBestOfAllThatCouldBeDone) {
  for (const std::uint64_t seed : {4U, 5U, 6U, 7U}) {
    const Trace trace = some_trace(9, 1, 6, 1, seed);
    for (const Index slots : {1, 2, 3}) {
      EXPECT_EQ(sum_of(simulate(trace, {std::vector<Index>(6, 1)}, slots, BeladyMin(trace))).hits,
                most_hits(trace, 0, {}, slots))
          << seed << ", " << slots;
    }
  }
}

TEST(Simulate, TakesCallsThatDoNotFit) {
  Trace trace{.layer_numbers = {0},
              .calls = {{0, 0, 4}, {0, 4, 8}},
              .token = {0, 0, 1, 1, 2, 2, 3, 3},
              .expert = {0, 1, 2, 3, 0, 1, 2, 3}};
  const auto calls = simulate(trace, {{1, 1, 1, 1}}, 2, DecayedCounts());
  EXPECT_EQ(calls[0].misses, 4);
  EXPECT_EQ(calls[0].evictions, 2);
  EXPECT_EQ(calls[1].hits, 2);
  EXPECT_EQ(calls[1].bytes_read, 2);
}

// ---- plan_run()

TEST(Plan, AddsUpWhatCallsTake) {
  const PlannedMachine machine{.disk = 10, .compute = 100, .seconds_besides = 0.5};
  EXPECT_DOUBLE_EQ(time_of({.hits = 2, .bytes_used = 200}, machine).total, 2);
  // 1 of 4 is read in 10 s, while 3 are computed in 3; then it is, in 1
  EXPECT_DOUBLE_EQ(time_of({.hits = 3, .misses = 1, .bytes_used = 400, .bytes_read = 100}, machine).total, 11);
  // 2 of 30 are read in 2 s, while the others and the first of them are computed
  EXPECT_DOUBLE_EQ(time_of({.hits = 28, .misses = 2, .bytes_used = 300, .bytes_read = 20}, machine).total, 3);

  const Trace trace = some_trace(50, 3, 8, 2, 8);
  const ExpertBytes bytes(3, std::vector<Index>(8, 100));
  EXPECT_DOUBLE_EQ(bytes_of_walk(trace, bytes), 600);
  EXPECT_EQ(first_counted_call(trace), 30) << "10 of 50 tokens fill the memory";
  const PlannedRun all = plan_run(trace, bytes, 2400, "LRU", Lru(), machine);
  EXPECT_EQ(all.tokens, 40);
  EXPECT_EQ(all.sum.hits + all.sum.misses, 40 * 6);
  EXPECT_STREQ(all.limit(), "compute");
  EXPECT_NEAR(all.tokens_a_second(), 1 / 6.5, 0.02);
  const PlannedRun little = plan_run(trace, bytes, 600, "LRU", Lru(), machine);
  EXPECT_STREQ(little.limit(), "disk");
  EXPECT_GT(little.bytes_a_token(), 200);
  EXPECT_GT(little.time.total, all.time.total);
  EXPECT_GE(little.time.total, std::max(little.time.reading, little.time.computing) + 40 * 0.5);
  EXPECT_EQ(test::error_of([&] { plan_run(trace, bytes, 600, "LRU", Lru(), {.disk = 1}); }).substr(0, 41),
            "plan_run: the machine's disk, compute and");
}

}  // namespace moe::io
