// AnyExpert hides the type of an expert, not the scalar it computes in.
// expect: conversion from .* to .*AnyExpert<double>|no viable conversion from
#include "moe/experts/any_expert.hpp"
#include "moe/experts/ffn.hpp"

#ifdef MOE_POSITIVE_CONTROL
moe::AnyExpert<float> expert = moe::Ffn<moe::bfloat16>{};
#else
moe::AnyExpert<double> expert = moe::Ffn<moe::bfloat16>{};
#endif
