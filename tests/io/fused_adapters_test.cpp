// Adapters of fused expert parameters, against their definition.
#include "moe/io/fused_adapters.hpp"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/lora/merged.hpp"
#include "moe/moe.hpp"
#include "random.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using test::is_close;
using test::random_matrix;

const std::string experts = "model.layers.3.mlp.experts";
constexpr Index num_experts = 3, rank = 2;

/// A folder with the adapters of gate_up_proj beside those of down_proj. It goes with the test.
class Folder {
 public:
  /// Between `in` and `out` numbers each; A reads `in`, unless it is turned.
  Folder(Index d, Index ff, bool turned) : turned_(turned), gate_up_(make(2 * ff, d, 1)), down_(make(d, ff, 3)) {
    fs::create_directories(path);
    std::ofstream(path / "adapter_config.json")
        << R"({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": ["x"]})";
    const std::string prefix = "base_model.model." + experts;
    write_safetensors(path / "adapter_model.safetensors",
                      {tensor(prefix + ".base_layer.lora_A.weight", gate_up_.a),
                       tensor(prefix + ".base_layer.lora_B.weight", gate_up_.b),
                       tensor(prefix + ".lora_A.weight", down_.a), tensor(prefix + ".lora_B.weight", down_.b)});
  }
  ~Folder() { fs::remove_all(path); }

  /// α/rank · Σ over ranks of what A says of inputs, times what B says of outputs.
  Weight<float> gate_up_delta(Index expert) const { return delta(gate_up_, expert); }
  Weight<float> down_delta(Index expert) const { return delta(down_, expert); }

  fs::path path = fs::path(testing::TempDir()) / ("moe_fused_adapters_" + std::to_string(::getpid()));

 private:
  struct Pair {
    Weight<float> a, b;
  };

  Pair make(Index out, Index in, unsigned seed) const {
    return {random_matrix<Weight<float>>(num_experts * rank, turned_ ? out : in, seed),
            random_matrix<Weight<float>>(turned_ ? in : out, rank * num_experts, seed + 1)};
  }

  static Tensor tensor(const std::string& name, const Weight<float>& m) {
    return make_tensor(name, {m.rows(), m.cols()}, std::span(m.data(), std::size_t(m.size())));
  }

  Weight<float> delta(const Pair& pair, Index expert) const {
    Weight<float> sum = Weight<float>::Zero(pair.b.rows(), pair.a.cols());
    for (Index o = 0; o < sum.rows(); ++o) {
      for (Index i = 0; i < sum.cols(); ++i) {
        for (Index k = 0; k < rank; ++k) {
          sum(o, i) += 1.5f * pair.b(o, k * num_experts + expert) * pair.a(expert * rank + k, i);
        }
      }
    }
    return turned_ ? Weight<float>(sum.transpose()) : sum;
  }

  bool turned_;
  Pair gate_up_, down_;
};

LoraBank<float> bare_bank(Index d, Index ff) {
  return with_lora(random_bank<float>(num_experts, d, ff, 5), {.rank = 0});
}

TEST(AdoptFusedAdapters, AddTheDeltasOfTheirDefinition) {
  for (const bool turned : {false, true}) {
    for (const bool interleaved : {false, true}) {
      for (const auto& [d, ff] : {std::pair<Index, Index>{6, 5}, {10, 5}, {5, 5}}) {
        const Folder folder(d, ff, turned);
        auto bank = bare_bank(d, ff);
        adopt_fused_adapters(folder.path, experts, bank, {.interleaved = interleaved});
        const auto sum = merged(bank);
        for (Index e = 0; e < num_experts; ++e) {
          const Weight<float> both = folder.gate_up_delta(e);
          Weight<float> gate(ff, d), up(ff, d);
          for (Index i = 0; i < ff; ++i) {
            gate.row(i) = both.row(interleaved ? 2 * i : i);
            up.row(i) = both.row(interleaved ? 2 * i + 1 : ff + i);
          }
          EXPECT_TRUE(is_close((sum.w_gate()[e] - bank.base().w_gate()[e]).eval(), gate)) << d << ", " << e;
          EXPECT_TRUE(is_close((sum.w_up()[e] - bank.base().w_up()[e]).eval(), up)) << d << ", " << e;
          EXPECT_TRUE(is_close((sum.w_down()[e] - bank.base().w_down()[e]).eval(), folder.down_delta(e)))
              << d << ", " << e;
        }
      }
    }
  }
}

TEST(AdoptFusedAdapters, RefuseWhatDoesNotFitAndChangeNothing) {
  const Folder folder(6, 5, true);
  const auto error = [&](Index d, Index ff, const std::string& name, const FusedAdapterOptions& options = {}) {
    auto bank = bare_bank(d, ff);
    const std::string what = test::error_of<Error>([&] { adopt_fused_adapters(folder.path, name, bank, options); });
    for (const auto& its : bank.adapters()) EXPECT_EQ(its.gate.rank() + its.up.rank() + its.down.rank(), 0);
    return what;
  };
  const std::string file = (folder.path / "adapter_model.safetensors").string();
  EXPECT_EQ(error(6, 7, experts), file + ": adapter \"base_model.model." + experts +
                                      "\" is between 6 and 5 numbers, expected 14 and 6 or 6 and 7");
  EXPECT_EQ(error(6, 5, "model.layers.4.mlp.experts"), file + ": no adapter of \"model.layers.4.mlp.experts\"");
  EXPECT_EQ(error(6, 5, experts, {.turned = false}), file + ": adapter \"base_model.model." + experts +
                                                         ".base_layer\" is turned, unlike what was said or found");
  auto many = with_lora(random_bank<float>(4, 6, 5, 5), {.rank = 0});
  EXPECT_EQ(test::error_of<Error>([&] { adopt_fused_adapters(folder.path, experts, many); }),
            file + ": adapter \"base_model.model." + experts +
                "\" has 6 rows in lora_A, expected a multiple of 4, one for each expert");
  auto fewer = with_lora(random_bank<float>(2, 6, 5, 5), {.rank = 0});  // 6 rows of 3 experts would be 2 of rank 3
  const std::string what = test::error_of<Error>([&] { adopt_fused_adapters(folder.path, experts, fewer); });
  EXPECT_NE(what.find("has 6 rows in lora_A, which are 3 for each of 2 experts, and "), what.npos) << what;
  EXPECT_NE(what.find("adapter_config.json has rank 2"), what.npos) << what;
}

}  // namespace
}  // namespace moe::io
