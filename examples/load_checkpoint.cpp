// Real weights: one MoE block of a model in Hugging Face form, used where it lies in the mapped file.
//   load_checkpoint [FOLDER [PREFIX]]    e.g. load_checkpoint ~/OLMoE-1B-7B model.layers.3.mlp
#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>

#include <cstdio>
#include <exception>

int main(int argc, char** argv) try {
  const char* const folder = argc > 1 ? argv[1] : "tests/golden/deepseek_v3";  // config.json and *.safetensors
  const char* const prefix = argc > 2 ? argv[2] : "";
  const auto [layer, shape, model_type, dtype] = moe::io::load_layer(folder, prefix);
  std::printf("%s, %s: d_model %td, %td experts of d_ff %td, top-%td, shared d_ff %td\n", model_type.c_str(),
              dtype.c_str(), shape.d_model, shape.num_experts, shape.d_ff, shape.top_k, shape.d_ff_shared);

  const moe::Matrix<float> x = moe::random_tokens<float>(layer.d_model(), 4, /*seed=*/1);
  moe::Matrix<float> y(x.rows(), x.cols());
  moe::Workspace<float> workspace;
  layer.forward(x, y, workspace, moe::OpenMp());
  for (moe::Index t = 0; t < 4; ++t) {
    std::printf("token %td: |y| = %.3f, best expert %td\n", t, double(y.col(t).norm()),
                workspace.routing.expert[static_cast<std::size_t>(t * shape.top_k)]);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "load_checkpoint: %s\n", error.what());
  return 1;
}

/* Output:
deepseek_v3, F32: d_model 24, 12 experts of d_ff 14, top-3, shared d_ff 28
token 0: |y| = 1.100, best expert 9
token 1: |y| = 3.676, best expert 0
token 2: |y| = 1.646, best expert 2
token 3: |y| = 2.227, best expert 11
*/
