// Adapters of PEFT: to routers and experts of the shape that a config beside them tells, by themselves and fused; and
// to the layers of a model that lies beside them, under its names.
#include "folder.hpp"
#include "moe/io/adapters.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/fused_adapters.hpp"
#include "moe/io/model.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/named_adapters.hpp"
#include "moe/lora/router.hpp"
#include "moe/moe.hpp"
#include "moe/train/io/checkpoint.hpp"

namespace {

using namespace moe;

/// What the files have of each block, beside it: it runs, learns a step, and is merged.
void learn_beside_model(const fuzz::Folder& folder) {
  const io::Model model(io::Config::open(folder.path() / "config.json"),
                        io::Tensors::open(folder.path() / "model.safetensors"));
  const io::Adapters adapters(folder.path());
  std::vector<std::string> blocks = model.moe_blocks();
  blocks.resize(std::min<std::size_t>(blocks.size(), 2));
  for (const std::string& block : blocks) {
    fuzz::may_complain(folder, [&] {
      auto layer = io::load_lora_layer(model, block, adapters);
      const Matrix<float> x = random_tokens<float>(layer.d_model(), 3, /*seed=*/1);
      Matrix<float> y(x.rows(), x.cols()), d_x = Matrix<float>::Zero(x.rows(), x.cols());
      const std::vector<Index> ids(3, 0);
      layer.workspace().side.token_ids = ids;
      layer.forward(x, y);
      layer.backward(x, y, d_x);
      layer.merged();
    });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::Folder folder(fuzz::text_of(data, size));
  fuzz::may_complain(folder, [&] { learn_beside_model(folder); });
  fuzz::may_complain(folder, [&] {
    const MoeShape shape = io::moe_shape(io::Config::open(folder.path() / "config.json"));
    const Index d = shape.d_model, ff = shape.d_ff, experts = shape.num_experts;
    if (d > 256 || ff > 256 || experts > 64) return;  // a config alone may say so; another fuzzer's case
    const Matrix<float> x = random_tokens<float>(d, 3, /*seed=*/1);
    for (const std::string block : {"model.layers.0.mlp", "model.layers.1.mlp", "model.layers.0.block_sparse_moe"}) {
      const LinearTopK<float> router(random_weight<float>(experts, d, /*seed=*/2), {.top_k = 1});
      MoeLayer layer(with_lora(router, {.rank = 0}),
                     with_lora(random_bank<float>(experts, d, ff, /*seed=*/3), {.rank = 0}));
      fuzz::may_complain(folder, [&] {
        io::adopt_adapters(folder.path(), named_adapters(block, layer));
        layer.forward(x);
      });
      fuzz::may_complain(folder, [&] {
        io::adopt_fused_adapters(folder.path(), block + ".experts", layer.experts());
        layer.forward(x);
      });
    }
  });
  return 0;
}
