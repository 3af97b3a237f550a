// MoE blocks of a model in Hugging Face form to a GGUF file, as llama.cpp has them; and back.
//   save_gguf [FOLDER FILE]    e.g. save_gguf ~/OLMoE-1B-7B ~/olmoe-experts.gguf
#include <moe/io/checkpoint.hpp>
#include <moe/io/save_gguf.hpp>
#include <moe/moe.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <vector>

int main(int argc, char** argv) try {
  const std::filesystem::path folder = argc > 1 ? argv[1] : "tests/real/deepseek_v3";
  const std::filesystem::path file =
      argc > 2 ? std::filesystem::path(argv[2]) : std::filesystem::temp_directory_path() / "moe_experts.gguf";

  const moe::io::Model model(folder);
  std::vector<moe::io::Tensor> tensors;  // "blk.1.ffn_up_exps.weight", …: whoever codes them does it here
  for (const auto& block : model.moe_blocks()) {
    for (auto& tensor : moe::io::gguf_tensors(model, block)) tensors.push_back(std::move(tensor));
  }
  moe::io::save_gguf(file, model, tensors, {{"general.name", moe::io::gguf_value("experts alone")}});

  const moe::io::Model saved(file);
  const moe::Matrix<float> x = moe::random_tokens<float>(model.shape().d_model, 50, /*seed=*/1);
  for (std::size_t i = 0; i < saved.moe_blocks().size(); ++i) {
    const auto before = moe::io::load_layer(model, model.moe_blocks()[i]);
    const auto after = moe::io::load_layer(saved, saved.moe_blocks()[i]);
    const bool same = (before.layer.forward(x) - after.layer.forward(x)).norm() <= 1e-6 * x.norm();
    std::printf("%s is %s: %s, %s\n", model.moe_blocks()[i].c_str(), saved.moe_blocks()[i].c_str(), after.dtype.c_str(),
                same ? "computes the same" : "computes something else");
  }
  if (argc <= 2) std::filesystem::remove(file);
} catch (const std::exception& error) {
  std::fprintf(stderr, "save_gguf: %s\n", error.what());
  return 1;
}

/* Output:
model.layers.1.mlp is blk.1: F32, computes the same
*/
