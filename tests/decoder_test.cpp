// examples/decoder against what transformers computed: the folders of $MOE_REAL_DIR (default: tests/real) that are a
// Qwen3-MoE or a Mixtral with logits.safetensors, a case each; and its parts by themselves.
#include "../examples/decoder/decoder.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "../examples/decoder/recorded.hpp"
#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/io/safetensors_file.hpp"
#include "pools.hpp"
#include "random.hpp"
#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using decoder::Index;
using decoder::Text;
using moe::Matrix;
using moe::Serial;
using moe::test::error_of;
using moe::test::random_matrix;

const fs::path own_folders = fs::path(MOE_SOURCE_DIR) / "tests/real";

fs::path real_folders() {
  const char* const chosen = std::getenv("MOE_REAL_DIR");
  return chosen ? fs::path(chosen) : own_folders;
}

std::string model_type_in(const fs::path& folder) {
  std::ifstream file(folder / "config.json");
  const nlohmann::json config = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  return config.is_object() ? config.value("model_type", "") : "";
}

std::vector<fs::path> folders_for_a_decoder() {
  std::vector<fs::path> folders;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(real_folders(), missing)) {
    const std::string type = model_type_in(entry.path());
    if ((type == "mixtral" || type == "qwen3_moe") && fs::exists(entry.path() / "logits.safetensors")) {
      folders.push_back(entry.path());
    }
  }
  std::ranges::sort(folders);
  return folders;
}

/// All tokens at once, or so many in each call.
Matrix<float> logits_of(const decoder::Decoder& model, const std::vector<Index>& tokens, Index piece,
                        moe::ExecutorRef executor = Serial()) {
  Text text;
  Matrix<float> logits(model.settings.vocabulary, std::ssize(tokens));
  for (Index first = 0; first < logits.cols(); first += piece) {
    const Index n = std::min(piece, logits.cols() - first);
    const std::span<const Index> some(&tokens[std::size_t(first)], std::size_t(n));
    logits.middleCols(first, n) = model.logits(model.read(some, text, executor), executor);
  }
  EXPECT_EQ(text.length(), std::ssize(tokens));
  return logits;
}

class DecoderOfAFolder : public testing::TestWithParam<fs::path> {
 protected:
  const decoder::Decoder model = decoder::load(GetParam());
  const decoder::Recorded recorded = decoder::read_recorded(GetParam() / "logits.safetensors");
};

TEST_P(DecoderOfAFolder, GivesTheRecordedLogits) {
  const auto [largest, same_best, positions] =
      decoder::compare(logits_of(model, recorded.tokens, 1000), recorded.logits);
  std::cout << "largest difference " << largest << "\n";
  EXPECT_LE(largest, 1e-4);
  EXPECT_EQ(same_best, positions);
  EXPECT_EQ(positions, std::ssize(recorded.tokens));
}

TEST_P(DecoderOfAFolder, GivesThemWithTheCacheHoweverTheTextIsCut) {
  const Matrix<float> at_once = logits_of(model, recorded.tokens, 1000);
  for (const Index piece : {1, 2, 5}) {
    const auto [largest, same_best, positions] = decoder::compare(logits_of(model, recorded.tokens, piece), at_once);
    EXPECT_LE(largest, 1e-4) << piece;
    EXPECT_EQ(same_best, positions) << piece;
  }
}

TEST_P(DecoderOfAFolder, GivesTheSameBitsOnAnyNumberOfThreads) {
  for (const Index piece : {1, 1000}) {
    const Matrix<float> on_one = logits_of(model, recorded.tokens, piece);
    EXPECT_EQ(logits_of(model, recorded.tokens, piece, moe::test::OwnThreads{3}), on_one) << piece;
  }
}

TEST_P(DecoderOfAFolder, CountsTheRoutesOfItsMoeLayersAlone) {
  Text text;
  model.read(recorded.tokens, text, Serial());
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    const bool has_experts = model.layers[l].ffn.num_experts > 0;
    ASSERT_EQ(text.routing.contains(Index(l)), has_experts) << l;
    if (has_experts) {
      EXPECT_EQ(text.routing.at(Index(l)).num_tokens(), std::ssize(recorded.tokens));
    }
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DecoderOfAFolder);
INSTANTIATE_TEST_SUITE_P(Real, DecoderOfAFolder, testing::ValuesIn(folders_for_a_decoder()),
                         [](const auto& param) { return param.param.filename().string(); });

TEST(Decoder, HasFoldersToBeJudgedBy) {
  ASSERT_TRUE(fs::is_directory(real_folders())) << real_folders();
  EXPECT_FALSE(fs::is_empty(real_folders())) << real_folders();
  if (real_folders() == own_folders) {
    EXPECT_GE(folders_for_a_decoder().size(), 2U);
  }
}

/// tests/real/mixtral with another config, or without some tensors.
struct EditedModel {
  inline static int number = 0;
  moe::test::TemporaryFolder folder{"decoder_" + std::to_string(++number)};

  EditedModel(const std::function<void(nlohmann::json&)>& edit, const std::string& left_out = "") {
    const fs::path model = own_folders / "mixtral";
    std::ifstream file(model / "config.json");
    nlohmann::json config = nlohmann::json::parse(file);
    edit(config);
    std::ofstream(folder.path / "config.json") << config;
    moe::io::TensorFile tensors = moe::io::read_safetensors(model / "model.safetensors");
    std::erase_if(tensors.tensors, [&](const moe::io::Tensor& tensor) { return tensor.name == left_out; });
    moe::io::write_safetensors(folder.path / "model.safetensors", tensors.tensors);
  }

  decoder::Decoder load() const { return decoder::load(folder.path); }
  std::string error() const {
    return error_of<moe::io::Error>([&] { load(); });
  }
};

const std::vector<Index> some_tokens = {7, 50, 0, 7, 23, 8, 51};

TEST(Decoder, ReadsTheOlderKeyOfTheta) {
  const decoder::Decoder today = decoder::load(own_folders / "mixtral");
  const EditedModel older([](auto& config) {
    config["rope_theta"] = config["rope_parameters"]["rope_theta"];
    config["rope_scaling"] = nullptr;
    config.erase("rope_parameters");
  });
  EXPECT_EQ(logits_of(older.load(), some_tokens, 1000), logits_of(today, some_tokens, 1000));
  const EditedModel other([](auto& config) {
    config.erase("rope_parameters");
    config["rope_theta"] = 100;
  });
  EXPECT_NE(logits_of(other.load(), some_tokens, 1000), logits_of(today, some_tokens, 1000));
  const EditedModel absent([](auto& config) { config.erase("rope_parameters"); });
  EXPECT_EQ(absent.load().settings.rope_theta, 1e6);
}

TEST(Decoder, TiesTheEmbeddingToTheOutput) {
  decoder::Decoder untied = decoder::load(own_folders / "mixtral");
  const Matrix<float> logits = logits_of(untied, some_tokens, 1000);
  untied.head = untied.embedding;
  const EditedModel tied([](auto& config) { config["tie_word_embeddings"] = true; }, "lm_head.weight");
  EXPECT_EQ(logits_of(tied.load(), some_tokens, 1000), logits_of(untied, some_tokens, 1000));
  EXPECT_NE(logits_of(tied.load(), some_tokens, 1000), logits);
}

TEST(Decoder, WithASlidingWindowIsTheSameWithTheCache) {
  const EditedModel sliding([](auto& config) { config["sliding_window"] = 3; });
  const EditedModel wide([](auto& config) { config["sliding_window"] = some_tokens.size(); });
  const Matrix<float> all = logits_of(decoder::load(own_folders / "mixtral"), some_tokens, 1000);
  const Matrix<float> at_once = logits_of(sliding.load(), some_tokens, 1000);
  EXPECT_EQ(logits_of(wide.load(), some_tokens, 1000), all);
  EXPECT_EQ(at_once.leftCols(3), all.leftCols(3));
  EXPECT_NE(at_once.col(3), all.col(3));
  for (const Index piece : {1, 2, 4}) {
    EXPECT_LE(decoder::compare(logits_of(sliding.load(), some_tokens, piece), at_once).largest_difference, 1e-5);
  }
}

TEST(Decoder, RefusesByName) {
  const auto error = [](const std::function<void(nlohmann::json&)>& edit) { return EditedModel(edit).error(); };
  const auto expect = [](const std::string& got, const std::string& what) {
    EXPECT_NE(got.find(what), std::string::npos) << got;
  };
  expect(error([](auto& c) { c["model_type"] = "olmoe"; }),
         "config.json: model_type is \"olmoe\", expected \"qwen3_moe\" or \"mixtral\"");
  expect(error([](auto& c) { c["rope_parameters"]["rope_type"] = "yarn"; }),
         "rope_parameters.rope_type is \"yarn\", expected \"default\"");
  expect(error([](auto& c) { c["rope_scaling"] = {{"type", "linear"}, {"factor", 2}}; }),
         "rope_scaling.type is \"linear\", expected \"default\"");
  expect(error([](auto& c) { c["num_key_value_heads"] = 3; }),
         "num_attention_heads is 4, expected a multiple of num_key_value_heads, 3");
  expect(error([](auto& c) { c["head_dim"] = 13; }), "head_dim is 13, expected an even number");
  expect(error([](auto& c) { c["head_dim"] = 14; }),
         "model.safetensors: tensor \"model.layers.0.self_attn.q_proj.weight\" has shape [48, 40], expected [56, 40]");
  expect(error([](auto& c) { c["num_hidden_layers"] = 3; }),
         "num_hidden_layers is 3, and no tensor is called \"model.layers.2.*\" (2 layers are there)");
  expect(error([](auto& c) { c["vocab_size"] = 53; }), "expected [53, 40]");
  expect(EditedModel([](auto&) {}, "lm_head.weight").error(), "no tensor \"lm_head.weight\"");
}

TEST(Decoder, RefusesTokensThatAreNone) {
  const decoder::Decoder model = decoder::load(own_folders / "mixtral");
  Text text;
  for (const Index token : {Index(-1), Index(52)}) {
    EXPECT_EQ(error_of([&] { model.read({&token, 1}, text, Serial()); }),
              "decoder: token is " + std::to_string(token) + ", expected 0 to 51");
  }
  EXPECT_EQ(text.length(), 0);
}

TEST(Decoder, ComparesWhatIsNoNumberAsInfinitelyFar) {
  Matrix<float> a = random_matrix<Matrix<float>>(5, 3, /*seed=*/1), b = a;
  EXPECT_TRUE(decoder::compare(a, b).is_within(0));
  b(2, 1) = std::nanf("");
  EXPECT_FALSE(decoder::compare(a, b).is_within(1e9));
  b = a;
  b((decoder::best_token(a, 1) + 1) % 5, 1) = 9;
  EXPECT_EQ(decoder::compare(a, b).same_best, 2);
}

TEST(Rope, TurnsPairsByPositionTimesFrequency) {
  const Index half = 3, heads = 2, tokens = 4, first = 5;
  const double theta = 100;
  const Matrix<float> x = random_matrix<Matrix<float>>(2 * half, heads * tokens, /*seed=*/2);
  Matrix<float> y = x;
  decoder::Rope(2 * half, theta).turn(y, heads, first);
  for (Index c = 0; c < x.cols(); ++c) {
    for (Index i = 0; i < half; ++i) {
      const double angle = double(first + c / heads) * std::pow(theta, -double(i) / double(half));
      EXPECT_NEAR(y(i, c), x(i, c) * std::cos(angle) - x(i + half, c) * std::sin(angle), 2e-6);
      EXPECT_NEAR(y(i + half, c), x(i + half, c) * std::cos(angle) + x(i, c) * std::sin(angle), 2e-6);
    }
  }
}

decoder::Attention random_attention(Index d_model, Index heads, Index kv_heads, Index head_dim, Index window) {
  const auto linear = [&](Index outputs, Index inputs, unsigned seed) {
    return moe::Projection<float>(random_matrix<moe::Weight<float>>(outputs, inputs, seed),
                                  random_matrix<moe::Vector<float>>(outputs, 1, seed + 1));
  };
  const moe::RmsNorm<float> norm(random_matrix<moe::Vector<float>>(head_dim, 1, /*seed=*/9), {.epsilon = 1e-6});
  return {.query = linear(heads * head_dim, d_model, 1),
          .key = linear(kv_heads * head_dim, d_model, 3),
          .value = linear(kv_heads * head_dim, d_model, 5),
          .output = linear(d_model, heads * head_dim, 7),
          .query_norm = norm,
          .key_norm = norm,
          .rope = decoder::Rope(head_dim, 1000),
          .head_dim = head_dim,
          .window = window};
}

Matrix<float> attend(const decoder::Attention& attention, const Matrix<float>& x) {
  decoder::KvCache cache;
  moe::CallScratch scratch;
  moe::Workers workers(Serial{}, scratch);
  return attention(x, cache, workers);
}

TEST(Attention, IsItsFormula) {
  const Index d_model = 7, heads = 6, kv_heads = 2, head_dim = 4, tokens = 5;
  const decoder::Attention attention = random_attention(d_model, heads, kv_heads, head_dim, 0);
  const Matrix<float> x = random_matrix<Matrix<float>>(d_model, tokens, /*seed=*/11);
  const Eigen::MatrixXd wide = x.cast<double>();
  const auto apply = [](const moe::Projection<float>& linear, const Eigen::MatrixXd& in) -> Eigen::MatrixXd {
    return (linear.weight().cast<double>() * in).colwise() + linear.bias().cast<double>();
  };
  const auto head_of = [&](const Eigen::MatrixXd& all, Index h, Index t) -> Eigen::VectorXd {
    const Eigen::VectorXd head = all.col(t).segment(h * head_dim, head_dim);
    const Eigen::VectorXd normed = head / std::sqrt(head.squaredNorm() / double(head_dim) + 1e-6);
    Eigen::VectorXd turned(head_dim);
    for (Index i = 0; i < head_dim / 2; ++i) {
      const double a = normed(i) * double(attention.query_norm->gain()(i));
      const double b = normed(i + head_dim / 2) * double(attention.query_norm->gain()(i + head_dim / 2));
      const double angle = double(t) * std::pow(1000.0, -2.0 * double(i) / double(head_dim));
      turned(i) = a * std::cos(angle) - b * std::sin(angle);
      turned(i + head_dim / 2) = b * std::cos(angle) + a * std::sin(angle);
    }
    return turned;
  };
  const Eigen::MatrixXd q = apply(attention.query, wide), k = apply(attention.key, wide),
                        v = apply(attention.value, wide);
  Eigen::MatrixXd mixed = Eigen::MatrixXd::Zero(q.rows(), tokens);
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < heads; ++h) {
      const Index kv = h / 3;
      double sum = 0;
      for (Index s = 0; s <= t; ++s) {
        const double weight = std::exp(head_of(q, h, t).dot(head_of(k, kv, s)) / 2);
        sum += weight;
        mixed.col(t).segment(h * head_dim, head_dim) += weight * v.col(s).segment(kv * head_dim, head_dim);
      }
      mixed.col(t).segment(h * head_dim, head_dim) /= sum;
    }
  }
  const Eigen::MatrixXd expected = apply(attention.output, mixed);
  const Matrix<float> y = attend(attention, x);
  EXPECT_LE((y.cast<double>() - expected).cwiseAbs().maxCoeff(), 1e-5 * (1 + expected.cwiseAbs().maxCoeff()));
}

TEST(Attention, InAWindowSeesWhatTheLastTokensAloneWouldShow) {  // for positions matter by their distance alone
  const Index d_model = 7, tokens = 9;
  const Matrix<float> x = random_matrix<Matrix<float>>(d_model, tokens, /*seed=*/12);
  for (const Index window : {1, 2, 4, 9}) {
    const Matrix<float> y = attend(random_attention(d_model, 4, 2, 6, window), x);
    for (Index t = 0; t < tokens; ++t) {
      const Index n = std::min(window, t + 1);
      const Matrix<float> alone = attend(random_attention(d_model, 4, 2, 6, 0), x.middleCols(t + 1 - n, n));
      EXPECT_LE((alone.col(n - 1) - y.col(t)).cwiseAbs().maxCoeff(), 1e-5F * (1 + y.cwiseAbs().maxCoeff())) << t;
    }
  }
}

}  // namespace
