/// @file  What nearly every test instantiates of the library, compiled once for all of them, in compiled_once*.cpp.
///
/// All tests include it, before their own lines; none of them needs it.
#pragma once

#include "allocations.hpp"

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/detail/bank_kernels.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/kernels/blocks.hpp"
#include "moe/kernels/columns.hpp"
#include "moe/kernels/low_rank.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/products.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/experts/ffn_bank.hpp"
#include "moe/train/kernels/add_product.hpp"

// The two halves of compiled_once*.cpp.
#ifndef MOE_ONCE_WHOLE
#define MOE_ONCE_WHOLE extern
#endif
#ifndef MOE_ONCE_NARROW
#define MOE_ONCE_NARROW extern
#endif

namespace moe::inline MOE_TARGET {

#define MOE_ONCE_FOR_UNITS(once, A, W, S)                                                                     \
  once template void products<A<W>>(const Rows<W>&, const Blocks<A<W>>&, A<W>::Register*, const TileUse<S>&); \
  MOE_ONCE_FOR_AN_ARITHMETIC(once, A, W, S)

#define MOE_ONCE_FOR_ROWS(once, A, W, S, X)                                                                      \
  once template void detail::affine_rows<A<W>, X, S>(const StoredWeight<W>&, const LowRank<S>&, const S*, Index, \
                                                     Index, const X&, A<W>::Register*, S*, Index);

#define MOE_ONCE_FOR_AN_ARITHMETIC(once, A, W, S)                                                                  \
  once template void products<A<W>>(const Rows<W>&, const Activations<A<W>>&, A<W>::Register*, S*, Index);         \
  MOE_ONCE_FOR_ROWS(once, A, W, S, Columns<A<W>>)                                                                  \
  once template void put_some<A<W>>(const S* const*, const S*, const Activations<A<W>>&, Index);                   \
  once template void gate_up<A<W>>(const StoredWeight<W>&, const StoredWeight<W>&, const Biases<S>&, Index, Index, \
                                   const TokenBatch<A<W>>&, const SwiGlu&, Scratch&);                              \
  once template void gate_up<A<W>>(const StoredWeight<W>&, const StoredWeight<W>&, const Biases<S>&, Index, Index, \
                                   const TokenBatch<A<W>>&, const GptOssGlu&, Scratch&);                           \
  once template void down<A<W>>(const StoredWeight<W>&, const Biases<S>&, Index, Index, const TokenBatch<A<W>>&,   \
                                Scratch&);

#define MOE_ONCE_FOR_A_WEIGHT(once, W, S)                                                                         \
  namespace kernels {                                                                                             \
  MOE_ONCE_FOR_UNITS(once, Exact, W, S)                                                                           \
  once template void matmul<W, S>(const StoredWeight<W>&, const ConstMatrixRef<S>&, MatrixRef<S>, Scratch&,       \
                                  const Numerics&);                                                               \
  once template void matmul<W, S>(const StoredWeight<W>&, const ConstMatrixRef<S>&, MatrixRef<S>, Workers&);      \
  once template void add_product<W, S>(const Strided<S>&, Index, const StoredWeight<W>&, S*, Index, S*);          \
  }                                                                                                               \
  once template void apply<W, SwiGlu>(const GatedFfnBank<W, SwiGlu>&, const ConstMatrixRef<S>&,                   \
                                      const DispatchPlan<S>&, MatrixRef<S>, FfnBankTape<S>&, Workers&);           \
  once template void backward<W, SwiGlu, NoGradient<S>>(                                                          \
      const GatedFfnBank<W, SwiGlu>&, const ConstMatrixRef<S>&, const DispatchPlan<S>&, const ConstMatrixRef<S>&, \
      const FfnBankTape<S>&, std::span<S>, MatrixRef<S>, NoGradient<S>&, Workers&);

#define MOE_ONCE_FOR_A_SCALAR(once, S)                                                                            \
  MOE_ONCE_FOR_A_WEIGHT(once, S, S)                                                                               \
  once template void LinearLogits<S>::compute(const Tokens<S>&, MatrixRef<S>, Workers&) const;                    \
  once template DispatchPlan<S> plan_dispatch<S>(const Routing<S>&, Index, Index, PlanMemory<S>&);                \
  once template void backward<S, SwiGlu, GatedFfnBank<S, SwiGlu>>(                                                \
      const GatedFfnBank<S, SwiGlu>&, const ConstMatrixRef<S>&, const DispatchPlan<S>&, const ConstMatrixRef<S>&, \
      const FfnBankTape<S>&, std::span<S>, MatrixRef<S>, GatedFfnBank<S, SwiGlu>&, Workers&);

MOE_ONCE_FOR_A_SCALAR(MOE_ONCE_WHOLE, float)
MOE_ONCE_FOR_A_SCALAR(MOE_ONCE_WHOLE, double)
MOE_ONCE_FOR_A_WEIGHT(MOE_ONCE_NARROW, bfloat16, float)
MOE_ONCE_FOR_A_WEIGHT(MOE_ONCE_NARROW, float16, float)
MOE_ONCE_FOR_A_WEIGHT(MOE_ONCE_NARROW, Quantized, float)

namespace kernels {
MOE_ONCE_FOR_AN_ARITHMETIC(MOE_ONCE_NARROW, Fast, Quantized, float)
MOE_ONCE_FOR_ROWS(MOE_ONCE_NARROW, Fast, Quantized, float, Blocks<Fast<Quantized>>)
}  // namespace kernels

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
namespace kernels {
MOE_ONCE_FOR_UNITS(MOE_ONCE_NARROW, Fast, bfloat16, float)
MOE_ONCE_FOR_UNITS(MOE_ONCE_NARROW, Fast, float16, float)
}  // namespace kernels
#endif

}  // namespace moe::inline MOE_TARGET
