/// @file  What most tests of training instantiate, compiled once for all of them, in compiled_once_of_learning.cpp.
#pragma once

#include "compiled_once.hpp"
#include "compiled_once_of_codes.hpp"

#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/project.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/lora/adapter.hpp"
#include "moe/train/lora/bank.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

// Adapters beside weights of a type.
#define MOE_ONCE_FOR_ADAPTERS(once, W, S)                                                                              \
  once template void apply<W, SwiGlu>(const LoraBank<W, SwiGlu>&, const ConstMatrixRef<S>&, const DispatchPlan<S>&,    \
                                      MatrixRef<S>, FfnBankTape<S>&, Workers&);                                        \
  once template void backward<W, SwiGlu>(const LoraBank<W, SwiGlu>&, const ConstMatrixRef<S>&, const DispatchPlan<S>&, \
                                         const ConstMatrixRef<S>&, const FfnBankTape<S>&, std::span<S>, MatrixRef<S>,  \
                                         LoraBank<W, SwiGlu>&, Workers&);

#define MOE_ONCE_FOR_SUMS(once, W, S) once template void add_adapter<W, S>(const Adapter<S>&, S, Eigen::Map<Weight<W>>);

#define MOE_ONCE_FOR_LEARNING(once, S)                                                                                 \
  namespace kernels {                                                                                                  \
  once template void add_transposed<S, S>(const WeightMap<S>&, const ConstMatrixRef<S>&, MatrixRef<S>, S*);            \
  once template void add_outer<S>(const ConstMatrixRef<S>&, const ConstMatrixRef<S>&, Eigen::Ref<Weight<S>>, S*);      \
  }                                                                                                                    \
  once template void linear_backward_to_input<S>(const WeightMap<S>&, const ConstMatrixRef<S>&, MatrixRef<S>,          \
                                                 Workers&);                                                            \
  once template void linear_backward_to_weight<S>(const ConstMatrixRef<S>&, const ConstMatrixRef<S>&,                  \
                                                  Eigen::Map<Weight<S>>, Workers&);                                    \
  once template void backward<S, TopKChoice<S>>(const TopKChoice<S>&, const ConstMatrixRef<S>&, const Routing<S>&,     \
                                                std::span<const S>, MatrixRef<S>, TopKChoice<S>&, Workers&);           \
  once template void backward<S, LinearLogits<S>>(const LinearLogits<S>&, const Tokens<S>&, const ConstMatrixRef<S>&,  \
                                                  const ConstMatrixRef<S>&, MatrixRef<S>, LinearLogits<S>&, Workers&); \
  once template void project<S>(const Adapter<S>&, const Dropout&, const TokensRead<S>&, Index, S*, Index, Index,      \
                                Scratch&);                                                                             \
  once template void back_to_rank<S>(const Adapter<S>&, const ConstMatrixRef<S>&, MatrixRef<S>, S*);                   \
  once template void add_back_to_tokens<S>(const Adapter<S>&, const Dropout&, const Index*, Index,                     \
                                           const ConstMatrixRef<S>&, MatrixRef<S>, S*, Scratch&);                      \
  once template void add_gradient_of_a<S>(const Dropout&, const Index*, Index, const ConstMatrixRef<S>&,               \
                                          const ConstMatrixRef<S>&, Adapter<S>&, S*, Scratch&);                        \
  once template void add_gradient_of_b<S>(Index, const ConstMatrixRef<S>&, const ConstMatrixRef<S>&, Adapter<S>&, S*); \
  MOE_ONCE_FOR_ADAPTERS(once, S, S)                                                                                    \
  MOE_ONCE_FOR_SUMS(once, S, S)

#define MOE_ONCE_OF_LEARNING(once)             \
  MOE_ONCE_FOR_LEARNING(once, float)           \
  MOE_ONCE_FOR_LEARNING(once, double)          \
  MOE_ONCE_FOR_ADAPTERS(once, bfloat16, float) \
  MOE_ONCE_FOR_ADAPTERS(once, float16, float)  \
  MOE_ONCE_FOR_SUMS(once, bfloat16, float)     \
  MOE_ONCE_FOR_SUMS(once, float16, float)      \
  MOE_ONCE_FOR_ADAPTERS(once, Quantized, float)

MOE_ONCE_OF_LEARNING(extern)

}  // namespace moe::inline MOE_TARGET
