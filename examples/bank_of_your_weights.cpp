// A bank of weights that you have: copied, used where they lie in memory of yours, or in a mapped file.
#include <moe/io/weight_tensors.hpp>
#include <moe/moe.hpp>

#include <cstdio>
#include <string>
#include <vector>

int main() {
  const moe::Index num_experts = 12, d_model = 22, d_ff = 18;
  const auto tensors = moe::io::Tensors::open("tests/golden/qwen3_moe");  // a folder, or one *.safetensors
  const auto weight = [&](moe::Index expert, const std::string& name) {   // (out × in), from wherever you have it
    return tensors.read<float>("experts." + std::to_string(expert) + "." + name + ".weight");
  };

  // 1. Matrices, one an expert: the bank has copies of them, to be trained, say. (Any type of Eigen matrix will do.)
  std::vector<moe::Weight<float>> gate, up, down;
  for (moe::Index e = 0; e < num_experts; ++e) {
    gate.push_back(weight(e, "gate_proj"));  // (d_ff × d_model)
    up.push_back(weight(e, "up_proj"));      // (d_ff × d_model)
    down.push_back(weight(e, "down_proj"));  // (d_model × d_ff)
  }
  const moe::GatedFfnBank<float> copied(moe::owned(gate), moe::owned(up), moe::owned(down));

  // 2. One buffer with all experts, [num_experts][out][in]: used where it lies, so keep it. (Or give a std::shared_ptr,
  //    which keeps it for you.)
  const auto one_piece = [](const std::vector<moe::Weight<float>>& matrices) {
    std::vector<float> numbers;
    for (const auto& matrix : matrices) numbers.insert(numbers.end(), matrix.data(), matrix.data() + matrix.size());
    return numbers;
  };
  const std::vector<float> gates = one_piece(gate), ups = one_piece(up), downs = one_piece(down);
  const moe::GatedFfnBank<float> in_place(moe::mapped<float>(gates, num_experts, d_ff, d_model),
                                          moe::mapped<float>(ups, num_experts, d_ff, d_model),
                                          moe::mapped<float>(downs, num_experts, d_model, d_ff));

  // 3. Pointers, if every expert lies elsewhere; rows may be further apart than they are long: a fourth argument.
  const auto pointers = [](const std::vector<moe::Weight<float>>& matrices) {
    std::vector<const float*> all;
    for (const auto& matrix : matrices) all.push_back(matrix.data());
    return all;
  };
  const moe::GatedFfnBank<float> by_pointers(moe::WeightStack<float>(pointers(gate), d_ff, d_model),
                                             moe::WeightStack<float>(pointers(up), d_ff, d_model),
                                             moe::WeightStack<float>(pointers(down), d_model, d_ff));

  // 4. Tensors of a file, which stays mapped as long as the bank lives. bfloat16 and float16 work alike.
  const moe::io::WeightTensors file(tensors, /*block=*/"", num_experts);
  const moe::GatedFfnBank<float> from_file(file.separate<float>("experts.#.gate_proj.weight", d_ff, d_model),
                                           file.separate<float>("experts.#.up_proj.weight", d_ff, d_model),
                                           file.separate<float>("experts.#.down_proj.weight", d_model, d_ff));

  const moe::LinearTopK<float> router(tensors.read<float>("gate.weight"), {.top_k = 3, .renormalize = true});
  const auto x = moe::random_tokens<float>(d_model, 5, /*seed=*/1);
  const auto answer = [&](const auto& bank) -> moe::Matrix<float> { return moe::MoeLayer(router, bank).forward(x); };
  const bool same = answer(in_place) == answer(copied) && answer(by_pointers) == answer(copied) &&
                    answer(from_file) == answer(copied);
  std::printf("four banks, %s; |y| = %.3f\n", same ? "one answer to the last bit" : "different answers",
              double(answer(copied).norm()));
}

/* Output:
four banks, one answer to the last bit; |y| = 6.156
*/
