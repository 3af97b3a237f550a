/// @file  Gradients of layers, for those cases that store them.
#pragma once

#include <string>
#include <vector>

#include "golden_checks/common.hpp"
#include "load_trainable_layer.hpp"
#include "moe/core/parameters.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::golden {

/// Of golden/README.md, for gradients of layers.
inline constexpr double gradient_tolerance = 1e-4;

inline void expect_close_gradients(const std::vector<Parameter<float>>& got,
                                   const std::vector<Parameter<float>>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t p = 0; p < expected.size(); ++p) {
    ASSERT_EQ(got[p].name, expected[p].name);
    expect_close(got[p].matrix(), expected[p].matrix(), "grad of " + got[p].name, gradient_tolerance);
  }
}

/// @param expected  a layer whose parameters are the reference's gradients
template <class Layer>
void check_gradients_of(const Layer& layer, Layer expected, const SideInputs<float>& side, const Case& reference) {
  const Matrix<float> x = reference.columns("input"), d_y = reference.columns("grad_output");
  Matrix<float> y(x.rows(), x.cols()), d_x = Matrix<float>::Zero(x.rows(), x.cols());
  Layer gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  tape.workspace().side = side;
  forward(layer, x, y, tape);
  backward(layer, x, d_y, tape, d_x, gradient);
  expect_close(d_x, reference.columns("grad_input"), "grad_input", gradient_tolerance);
  expect_close_gradients(parameters(gradient), parameters(expected));
}

/// @param layer  after its forward pass
inline void check_layer_gradients(TrainableLayer<float>& layer, const fs::path& folder, const Case& reference) {
  const auto expected = test::load_reference_gradients(folder);
  const Matrix<float> x = reference.columns("input"), d_y = reference.columns("grad_output");
  Matrix<float> d_x = Matrix<float>::Zero(x.rows(), x.cols());
  layer.backward(x, d_y, d_x);
  expect_close(d_x, reference.columns("grad_input"), "grad_input", gradient_tolerance);
  expect_close_gradients(layer.gradients(), expected.parameters());
}

}  // namespace moe::golden
