/// @file  The door to number formats: the blocks of GGUF and the codings of safetensors, decoded and, of some, encoded.
#pragma once

#include "moe/formats/affine.hpp"
#include "moe/formats/bitsandbytes.hpp"
#include "moe/formats/encode.hpp"
#include "moe/formats/encode_ggml.hpp"
#include "moe/formats/encode_k.hpp"
#include "moe/formats/encode_matrix.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/formats/integers.hpp"
#include "moe/formats/mx.hpp"
#include "moe/formats/nvfp4.hpp"
#include "moe/formats/packed.hpp"
#include "moe/formats/repack.hpp"
