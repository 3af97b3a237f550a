// A GGUF file: what it lists, every tensor, every layer; and the same once more after it was written by us.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>

#include "folder.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_writer.hpp"
#include "moe/io/model.hpp"
#include "moe/moe.hpp"

namespace {

using namespace moe;

/// With as many bytes as its tensors ask for, if it is whole so far: what a fuzzer changes in sizes is read again.
std::string completed(std::string file) {
  const io::MappedFile bytes{std::as_bytes(std::span(file)), {}};
  const std::string name = "fuzz.gguf";
  std::uint64_t size = 0;
  try {
    io::detail::GgufCursor cursor(bytes, name);
    io::detail::check_magic(cursor, bytes.bytes, name);
    const auto num_tensors = cursor.count("tensors", 24), num_keys = cursor.count("keys", 13);
    const auto metadata = io::detail::parse_entries(cursor, num_keys);
    const std::uint32_t alignment = io::detail::alignment_of(metadata, name);
    std::uint64_t end = 0;
    for (std::uint64_t i = 0; i < num_tensors; ++i) {
      const auto entry = io::detail::parse_tensor(cursor, i, bytes, name);
      if (entry.offset > fuzz::detail::most_bytes || entry.bytes > fuzz::detail::most_bytes) return file;
      end = std::max(end, entry.offset + entry.bytes);
    }
    if (alignment > fuzz::detail::most_bytes || end > fuzz::detail::most_bytes) return file;
    size = io::detail::align_up(cursor.at(), alignment) + end;
  } catch (const io::Error&) {
    return file;
  }
  if (size > file.size()) file.resize(std::size_t(size), '\x3d');  // 0.046 as F32 and as BF16
  return file;
}

[[noreturn]] void give_up(const char* what) {
  std::cerr << what << "\n";
  std::abort();
}

/// What was read is written, and read again as it was.
void write_again(const fuzz::Folder& folder, const std::filesystem::path& path) {
  const io::GgufFile file = io::read_gguf(path);
  if (io::find_key(file.metadata, "split.count") || io::find_key(file.metadata, "split.no")) return;
  for (const io::Tensor& tensor : file.tensors) {
    if (tensor.name.size() > io::detail::longest_tensor_name) return;
  }
  const std::filesystem::path copy = folder.path() / "copy.gguf";
  io::write_gguf(copy, file.metadata, file.tensors);
  const io::GgufFile again = io::read_gguf(copy);
  if (again.metadata.size() != file.metadata.size() || again.tensors.size() != file.tensors.size())
    give_up("lost some");
  for (std::size_t i = 0; i < file.metadata.size(); ++i) {
    if (!std::ranges::equal(file.metadata[i].value.bytes, again.metadata[i].value.bytes)) give_up("another value");
  }
  for (std::size_t i = 0; i < file.tensors.size(); ++i) {
    if (file.tensors[i].shape != again.tensors[i].shape) give_up("another shape");
    if (!std::ranges::equal(file.tensors[i].bytes, again.tensors[i].bytes)) give_up("other bytes");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::Folder folder("");
  const std::filesystem::path path = folder.path() / "model.gguf";
  std::ofstream(path, std::ios::binary) << completed(std::string(fuzz::text_of(data, size)));
  fuzz::may_complain(folder, [&] {
    const io::Tensors tensors = io::Tensors::open(path);
    for (const std::string& name : tensors.names()) fuzz::may_complain(folder, [&] { tensors.read<float>(name); });
    write_again(folder, path);
  });
  fuzz::may_complain(folder, [&] {
    const io::Model model(path);
    std::vector<std::string> blocks = model.moe_blocks();
    blocks.resize(std::min<std::size_t>(blocks.size(), 3));
    for (const std::string& block : blocks) {
      fuzz::may_complain(folder, [&] {
        const auto loaded = io::load_layer(model, block);
        const Matrix<float> x = random_tokens<float>(loaded.layer.d_model(), 3, /*seed=*/1);
        Workspace<float> workspace;
        workspace.side.router_input = {x.data(), std::size_t(x.size())};
        loaded.layer.forward(x, workspace);
      });
    }
    for (const io::Block& block : model.blocks()) {
      if (!block.sparse) fuzz::may_complain(folder, [&] { model.ffn(block.name); });
    }
  });
  return 0;
}
