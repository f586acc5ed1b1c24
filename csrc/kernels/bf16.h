// Products of floats that are rounded to bfloat16, with sums in float32: what passing texts through a model in floats, and second
// moments, need in bulk. Chosen beside a table of kernels. Knows one product; no thread, no model.
//
// Rounding moves a product by 2^-9 of its terms at most, where int8 activations move it by 2^-8 of the largest one.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fh {

// Element k of row i lies at at[i * row + k * step]; one of row and step is 1.
struct FloatRows { const float* at; int64_t rows, row, step; };

// out[i * stride + j] (+)= sum over k of a[i][k] * b[j][k]. lower: blocks of 32 that lie wholly above the diagonal are left alone.
struct Bf16Args { FloatRows a, b; int64_t k; float* out; int64_t stride; bool grow, lower; };
using Bf16Product = void (*)(const Bf16Args& args);

Bf16Product bf16_product(const Kernels& table);      // null for tables other than amx: pairs' dots (AVX512_BF16) were slower than float32 here
Bf16Product bf16_amx();

}  // namespace fh
