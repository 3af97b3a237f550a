/// @file  What a coded layer takes of memory: the pages of its file, and no copy of its weights.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "load_layer.hpp"
#include "moe/formats/encode_k.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/gguf_writer.hpp"
#include "moe/io/model.hpp"
#include "moe/models/random.hpp"
#include "temporary_folder.hpp"

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define MOE_MEMORY_IS_WATCHED  // and every byte of it has a shadow
#endif
#endif

namespace moe::io {
namespace {

/// Bytes that are in memory now.
struct Resident {
  std::size_t anonymous = 0;  // of no file
  std::size_t of_file = 0;    // mapped from `name`

  explicit Resident(const std::string& name) {
    std::ifstream smaps("/proc/self/smaps");
    bool is_file = false;
    for (std::string line; std::getline(smaps, line);) {
      std::istringstream words(line);
      std::string key;
      std::size_t kilobytes = 0;
      words >> key;
      if (!key.ends_with(':')) {
        is_file = line.ends_with(name);
      } else if (words >> kilobytes) {
        if (key == "Anonymous:") anonymous += 1024 * kilobytes;
        if (key == "Rss:" && is_file) of_file += 1024 * kilobytes;
      }
    }
  }
};

constexpr Index d = 512, ff = 768, n = 64;

/// Q4_K: rows that are all alike, for K-quants are searched for.
Tensor coded_tensor(const std::string& name, Index rows, Index cols) {
  const std::size_t row_bytes = std::size_t(cols / Q4_K::numbers * Q4_K::bytes);
  const Weight<float> row = random_weight<float>(1, cols, /*seed=*/5);
  const auto memory = std::make_shared<std::vector<std::byte>>(std::size_t(n * rows) * row_bytes);
  encode<Q4_K>(row.data(), cols, memory->data());
  for (std::size_t at = row_bytes; at < memory->size(); ++at) (*memory)[at] = (*memory)[at - row_bytes];
  return {.name = name, .dtype = "Q4_K", .shape = {n, rows, cols}, .bytes = *memory, .owner = memory};
}

void write_model(const std::filesystem::path& file) {
  const Weight<float> router = random_weight<float>(n, d, /*seed=*/6);
  std::vector<Tensor> tensors = {coded_tensor("blk.0.ffn_gate_exps.weight", ff, d),
                                 coded_tensor("blk.0.ffn_up_exps.weight", ff, d),
                                 coded_tensor("blk.0.ffn_down_exps.weight", d, ff)};
  tensors.push_back({.name = "blk.0.ffn_gate_inp.weight",
                     .dtype = "F32",
                     .shape = {n, d},
                     .bytes = std::as_bytes(std::span(router.data(), std::size_t(router.size())))});
  std::vector<GgufEntry> metadata = {{"general.architecture", gguf_value("qwen3moe")}};
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::uint32_t>>{{"embedding_length", d},
                                                          {"expert_count", n},
                                                          {"expert_used_count", n},
                                                          {"expert_feed_forward_length", ff}}) {
    metadata.push_back({"qwen3moe." + key, gguf_value(value)});
  }
  write_gguf(file, metadata, tensors);
}

TEST(CodedMemory, OfAMappedLayerIsItsFile) {
  if (!std::filesystem::exists("/proc/self/smaps")) GTEST_SKIP() << "/proc/self/smaps is not there";
  const test::TemporaryFolder folder("coded_memory");
  const auto file = folder.path / "coded_memory.gguf";
  write_model(file);
  const std::size_t its_bytes = std::filesystem::file_size(file);
  const Matrix<float> x = random_tokens<float>(d, 1, /*seed=*/7);
  Matrix<float> y(d, 1);

  const Resident before(file.filename());
  const auto layer = load_layer(file, "blk.0").layer;
  const Resident loaded(file.filename());
  Workspace<float> workspace;
  layer.forward(x, y, workspace);  // by all experts
  const Resident after(file.filename());

  EXPECT_TRUE(y.allFinite());
  EXPECT_EQ(before.of_file, 0U);
  EXPECT_GE(after.of_file, its_bytes - 64'000) << "not all of the file was read";
  EXPECT_LE(after.of_file, its_bytes + 4096);
  std::cout << its_bytes << " bytes of the file; " << after.of_file << " of it in memory, and of no file "
            << std::ptrdiff_t(loaded.anonymous - before.anonymous) << " when it is loaded, "
            << std::ptrdiff_t(after.anonymous - before.anonymous) << " when it has run\n";
#ifndef MOE_MEMORY_IS_WATCHED
  EXPECT_LE(after.anonymous, before.anonymous + its_bytes / 10) << "weights were copied";
#endif
}

}  // namespace
}  // namespace moe::io
