#!/usr/bin/env python3
"""The table of include/moe/io/reference_defaults.hpp, from the configuration classes of transformers.

    pip install transformers==5.23.0
    python3 tests/reference_defaults.py          # prints the header
    python3 tests/reference_defaults.py --check  # compares it with the one that is there, and names the first difference

The classes are made without arguments, so what they hold is what an absent key of config.json means. Kept are the keys
that the blocks' mathematics may hang on. Of model types that transformers does not have, the defaults are those of the
configuration that lies beside their weights.
"""

import json
import pathlib
import re
import sys

HEADER = pathlib.Path(__file__).resolve().parent.parent / "include/moe/io/reference_defaults.hpp"

TYPES = """afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_ocr2_text deepseek_v2 deepseek_v3
deepseek_v32 deepseek_v4 diffusion_gemma_text dots1 dots3_note_text ernie4_5_moe ernie4_5_vl_moe_text exaone_moe flex_olmo
flint gemma4_text glm4_moe glm4_moe_lite glm4v_moe_text glm5_next_text glm_moe_dsa gpt_oss granitemoe granitemoe_swa
granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling2_text inkling_text jamba jetmoe kimi_linear kolibri1
laguna lfm2_moe llama4_text longcat_flash mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text mistral4
mistral_large4_text mixtral muse_spark_text nemotron_h nllb-moe olmoe openai_privacy_filter phimoe qwen2_moe
qwen3_5_moe_text qwen3_moe qwen3_next qwen3_omni_moe_talker_text qwen3_omni_moe_text qwen3_vl_moe_text qwen4_exp_text
solar_open step3p5 switch_transformers unlimited_ocr_text zaya""".split()

KEYS = """hidden_size d_model d_ff encoder_ffn_dim decoder_ffn_dim intermediate_size moe_intermediate_size expert_ffn_hidden_size
num_experts num_local_experts n_routed_experts moe_num_experts num_experts_per_tok num_experts_per_token moe_k moe_topk
top_k_experts n_shared_experts num_shared_experts moe_num_shared_experts shared_expert_intermediate_size
shared_intermediate_size shared_experts_intermediate_size moe_shared_expert_intermediate_size share_expert_dim
zero_expert_num hidden_act hidden_activation activation_function dense_act_fn mlp_hidden_act norm_topk_prob
moe_renormalize routed_scaling_factor moe_routed_scaling_factor moe_router_scaling_factor router_scaling_factor
route_scale n_group num_expert_group topk_group topk_method scoring_func expert_selection_fn
shared_expert_combination_strategy shared_expert_sink moe_norm_min moe_router_logit_softcapping
moe_apply_router_weight_on_input swiglu_limit swiglu_alpha swiglu_limits swiglu_limits_shared mlp_gate_softcap
mlp_up_softcap moe_latent_size moe_hidden_size output_multiplier post_norm_eps rms_norm_eps layer_norm_epsilon
router_hidden_size router_jitter_noise router_bias use_bias mlp_bias use_expert_bias enable_moe_block ffn_config
expert_capacity second_expert_policy normalize_router_prob_before_dropping moe_eval_capacity_token_fraction
moe_token_dropout batch_prioritized_routing""".split()

FFN_CONFIG_KEYS = ["ffn_act_fn", "ffn_hidden_size", "moe_num_experts", "moe_top_k", "moe_normalize_expert_weights"]

ELSEWHERE = {
    # deepseek-ai/deepseek-moe-16b-base, configuration_deepseek.py
    "deepseek": ({"hidden_size": 4096, "moe_intermediate_size": 1407, "n_routed_experts": None,
                  "num_experts_per_tok": None, "n_shared_experts": None, "norm_topk_prob": False, "hidden_act": "silu",
                  "scoring_func": "softmax"}, {}),
    # moonshotai/Kimi-K2-Instruct, configuration_deepseek.py
    "kimi_k2": ({"hidden_size": 4096, "moe_intermediate_size": 1407, "n_routed_experts": None,
                 "num_experts_per_tok": None, "n_shared_experts": None, "norm_topk_prob": True, "hidden_act": "silu",
                 "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "scoring_func": "sigmoid"}, {}),
}

TEXT = """/// @file  What an absent key of config.json means: the defaults of transformers' configuration classes.
#pragma once

#include <array>
#include <string_view>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::io::detail {{

struct ReferenceDefaults {{
  std::string_view model_type;
  std::string_view values;   // of keys, as JSON
  std::string_view aliases;  // of keys: each says what the class calls it
}};

/// Made by tests/reference_defaults.py from transformers {version}, which also checks it.
// clang-format off
inline constexpr auto reference_defaults = std::to_array<ReferenceDefaults>({{
{rows}
}});
// clang-format on

}}  // namespace moe::inline MOE_TARGET::io::detail
"""


def of_class(model_type):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]
    names = {alias: name for alias, name in config.attribute_map.items() if alias in KEYS or name in KEYS}
    values = config().to_dict()
    kept = {key: values[key] for key in KEYS if key in values}
    if isinstance(kept.get("ffn_config"), dict):
        kept["ffn_config"] = {key: kept["ffn_config"][key] for key in FFN_CONFIG_KEYS}
    return kept, names


def header():
    import transformers

    rows = []
    for model_type in sorted(TYPES + list(ELSEWHERE)):
        values, aliases = ELSEWHERE.get(model_type) or of_class(model_type)
        rows.append(f'    {{"{model_type}",\n     R"({json.dumps(values)})",\n     R"({json.dumps(aliases)})"}},')
    return TEXT.format(version=transformers.__version__, rows="\n".join(rows))


def main():
    text = header()
    if "--check" not in sys.argv:
        print(text, end="")
        return
    there = HEADER.read_text()
    if there == text:
        print(f"{HEADER.name}: as the configuration classes have it, {len(TYPES)} model types")
        return
    for number, (ours, theirs) in enumerate(zip(there.splitlines(), text.splitlines()), 1):
        if ours != theirs:
            sys.exit(f"{HEADER}:{number}:\n  is       {ours}\n  expected {theirs}")
    sys.exit(f"{HEADER}: has {len(there.splitlines())} lines, expected {len(text.splitlines())}")


if __name__ == "__main__":
    main()
