// A whole folder, shards and all: what it lists, every tensor, every layer.
#include "folder.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moe;
  const fuzz::Folder folder(fuzz::text_of(data, size));
  fuzz::may_complain(folder, [&] {
    const io::Tensors tensors = io::Tensors::open(folder.path());
    for (const std::string& name : tensors.names()) fuzz::may_complain(folder, [&] { tensors.read<float>(name); });
  });
  fuzz::may_complain(folder, [&] {
    const io::Model files(folder.path());
    for (const std::string& block : files.moe_blocks()) {
      fuzz::may_complain(folder, [&] { io::load_layer(files, block); });
      fuzz::may_complain(folder,
                         [&] { io::load_parts(files, block, std::vector<Index>{files.shape().num_experts - 1}); });
    }
  });
  return 0;
}
