// A model type that the library does not know: one entry says what its config.json and its tensors are called, and
// which parts it is made of. Its layers then load as those of any published model.
#include <moe/io/checkpoint.hpp>
#include <moe/io/model.hpp>
#include <moe/moe.hpp>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace fs = std::filesystem;

// Sigmoid scores, renormalised if config.json says so, times a number of its own. (How many are chosen, `top_k` names.)
moe::RouterOptions how_it_chooses(const moe::io::Config& config) {
  return moe::TopKOptions{.score = moe::Score::sigmoid,
                          .renormalize = config.flag("weights_sum_to_one", false),
                          .scale = config.number("weight_scale", 1)};
}

// A folder of such a model, with one layer of random weights: here instead of a download.
void write_model(const fs::path& folder) {
  fs::create_directories(folder);
  std::ofstream(folder / "config.json") << R"({"model_type": "my_moe", "width": 16, "expert_width": 24, "experts": 4,
    "chosen": 2, "act": "gelu", "weights_sum_to_one": true, "weight_scale": 2.5})";
  std::vector<moe::Weight<float>> numbers;  // of all tensors, until they are written
  std::vector<moe::io::Tensor> tensors;
  numbers.reserve(100);
  const auto add = [&](const std::string& name, moe::Index rows, moe::Index cols) {
    numbers.push_back(moe::random_weight<float>(rows, cols, /*seed=*/numbers.size()));
    const std::span<const float> values(numbers.back().data(), std::size_t(numbers.back().size()));
    tensors.push_back(moe::io::make_tensor("trunk.0.sparse." + name, {rows, cols}, values));
  };
  add("chooser.weight", 4, 16);
  for (const std::string expert : {"0", "1", "2", "3"}) {
    add("specialists." + expert + ".gate_proj.weight", 24, 16);
    add("specialists." + expert + ".up_proj.weight", 24, 16);
    add("specialists." + expert + ".down_proj.weight", 16, 24);
  }
  moe::io::write_safetensors(folder / "model.safetensors", tensors);
}

int main() {
  moe::io::register_architecture({.model_type = "my_moe",
                                  .d_model = "width",
                                  .num_experts = "experts",
                                  .top_k = "chosen",
                                  .d_ff = "expert_width",
                                  .router_options = how_it_chooses,
                                  .router = "chooser.weight",
                                  .experts = "specialists.",
                                  .activation = "act"});

  const fs::path folder = fs::temp_directory_path() / "moe_register_architecture";
  write_model(folder);
  {
    const moe::io::Model model(folder);
    for (const std::string& block : model.moe_blocks()) {
      const auto [layer, shape, model_type, dtype] = model.layer(block);
      const moe::Matrix<float> y = layer.forward(moe::random_tokens<float>(shape.d_model, 5, /*seed=*/1));
      std::printf("%s of %s: %td experts, top-%td, %s; |y| = %.3f\n", block.c_str(), model_type.c_str(),
                  shape.num_experts, shape.top_k, to_string(shape.hidden).c_str(), double(y.norm()));
    }
  }  // its files are mapped until here
  fs::remove_all(folder);
}

/* Output:
trunk.0.sparse of my_moe: 4 experts, top-2, GeGLU; |y| = 13.888
*/
