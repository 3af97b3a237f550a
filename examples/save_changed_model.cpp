// Surgery on a model in Hugging Face form: expert 0 of every MoE block answers twice as loud; written as a new folder.
//   save_changed_model [FOLDER NEW_FOLDER]    e.g. save_changed_model ~/OLMoE-1B-7B ~/OLMoE-louder
#include <moe/io/save_model.hpp>
#include <moe/moe.hpp>
#include <moe/train.hpp>
#include <moe/train/io/checkpoint.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <vector>

int main(int argc, char** argv) try {
  const std::filesystem::path folder = argc > 1 ? argv[1] : "tests/real/mixtral";
  const std::filesystem::path target =
      argc > 2 ? std::filesystem::path(argv[2]) : std::filesystem::temp_directory_path() / "moe_louder_mixtral";

  const moe::io::Model model(folder);
  std::vector<moe::TrainableLayer<float>> layers;  // copies of the weights, to write
  for (const auto& name : model.moe_blocks()) layers.push_back(moe::io::load_trainable_layer(model, name));

  std::vector<moe::io::ModelBlock> blocks;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const auto& parameter : layers[i].parameters()) {
      if (parameter.name == "experts.0.down_proj.weight") parameter.array() *= 2;
    }
    blocks.push_back(moe::io::block_of(model.moe_blocks()[i], layers[i]));
  }
  moe::io::save_model(target, model, blocks, {.overwrite = argc <= 2});  // names, layout and types of the old one

  const moe::io::Model changed(target);
  const moe::Matrix<float> x = moe::random_tokens<float>(model.shape().d_model, 50, /*seed=*/1);
  for (const auto& name : model.moe_blocks()) {
    const auto before = model.layer(name).layer.forward(x), after = changed.layer(name).layer.forward(x);
    int same = 0;
    for (moe::Index t = 0; t < x.cols(); ++t) same += before.col(t) == after.col(t);
    std::printf("%s: %d of 50 tokens as before\n", name.c_str(), same);
  }
  if (argc <= 2) std::filesystem::remove_all(target);
} catch (const std::exception& error) {
  std::fprintf(stderr, "save_changed_model: %s\n", error.what());
  return 1;
}

/* Output:
model.layers.0.block_sparse_moe: 36 of 50 tokens as before
model.layers.1.block_sparse_moe: 29 of 50 tokens as before
*/
