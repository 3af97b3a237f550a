// A config and tensors, to layers that run.
#include "folder.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/model.hpp"
#include "moe/moe.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moe;
  const fuzz::Folder folder(fuzz::text_of(data, size));
  fuzz::may_complain(folder, [&] {
    const io::Model files(folder.path());
    std::vector<std::string> blocks = files.moe_blocks();
    blocks.resize(std::min<std::size_t>(blocks.size(), 3));
    blocks.push_back("");
    for (const std::string& block : blocks) {
      fuzz::may_complain(folder, [&] {
        const auto loaded = io::load_layer(files, block);
        const Matrix<float> x = random_tokens<float>(loaded.layer.d_model(), 3, /*seed=*/1);
        Workspace<float> workspace;
        loaded.layer.forward(x, workspace);
      });
    }
  });
  return 0;
}
