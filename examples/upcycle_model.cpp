// A dense model in Hugging Face form becomes a sparse one that computes the same: each FFN is copied into experts.
//   upcycle_model FOLDER NEW_FOLDER MODEL_TYPE    e.g. upcycle_model ~/Qwen3-0.6B ~/Qwen3-8x0.6B qwen3_moe
#include <moe/io/safetensors.hpp>
#include <moe/io/save_upcycled.hpp>
#include <moe/moe.hpp>
#include <moe/surgery.hpp>

#include <cstdio>
#include <exception>
#include <list>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::puts("upcycle_model FOLDER NEW_FOLDER MODEL_TYPE");
    return 0;
  }
  const auto tensors = moe::io::Tensors::open(argv[1]);
  using Layer = moe::MoeLayer<moe::LinearTopK<float>, moe::FfnBank<float, moe::SwiGlu>>;
  std::list<Layer> layers;  // which stay where they are
  std::vector<moe::io::ModelBlock> blocks;
  for (int i = 0;; ++i) {
    const std::string ffn = "model.layers." + std::to_string(i) + ".mlp";
    if (!tensors.contains(ffn + ".down_proj.weight")) break;
    const auto weight = [&](const char* name) {
      const moe::Weight<float> one = tensors.read<float>(ffn + "." + name + "_proj.weight");
      moe::WeightStack<float> stack(1, one.rows(), one.cols());
      stack.owned(0) = one;
      return stack;
    };
    const auto dense = moe::FfnBank<float, moe::SwiGlu>(weight("gate"), weight("up"), weight("down"));
    layers.push_back(moe::upcycle(dense, {.copies = 4, .active_copies = 2, .seed = 1 + std::uint64_t(i)}));
    blocks.push_back(moe::io::block_of(ffn, layers.back()));
  }
  moe::io::save_upcycled(argv[2], argv[1], argv[3], blocks);
  std::printf("%zu layers of %td experts\n", blocks.size(), layers.front().num_experts());
} catch (const std::exception& error) {
  std::fprintf(stderr, "upcycle_model: %s\n", error.what());
  return 1;
}

/* Output:
upcycle_model FOLDER NEW_FOLDER MODEL_TYPE
*/
