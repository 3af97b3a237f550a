/// @file  How models learn: what was chosen by measurement, docs/training.md tells how.
#pragma once

namespace moe::bench {

struct Recipe {
  double learning_rate = 1.2e-2;  // the highest, of dense and sparse models
  double warm_up = 0.05;          // the share of the steps in which it rises
  double lowest = 0.1;            // of it is left in the end
  double beta2 = 0.98;
  double decay = 0.01;
  double clip = 1;            // the largest norm of a gradient
  double balance = 0.03;      // coefficient of the load balancing loss
  double bias_rate = 0;       // of the selection bias, which balances without a loss
  double z_loss = 0;          // coefficient of the z-loss
  double router_rate = 1;     // times the learning rate
  double expert_rate = 0.5;   // of routed experts
  double router_scale = 0.1;  // deviation of its first weights, in those of other matrices
  double expert_scale = 1;
  double combine_scale = 2;   // times weights that sum to 1
  double router_warm_up = 0;  // the share of the steps before which routers do not learn at their full rate
  double jitter = 0;          // what a sparse block reads while it learns is multiplied by 1 ± up to so much
  double upcycle = 0;         // the share of the steps that sparse models learn as dense ones
  bool sigmoid = false;       // scores of the router: else softmax
  bool renormalize = true;    // weights sum to 1 where more than one expert is chosen
};

}  // namespace moe::bench
