#!/usr/bin/env python3
"""What PyTorch takes for what bench_train measures: the layer of Mixtral in Hugging Face's eager form, which gathers each
expert's tokens, calls it, and adds its answers by index_add_; float weights, softmax over all experts, renormalised.

bench_train runs it where PyTorch is installed. By itself:
  env -u OPENBLAS_CORETYPE python3 benchmarks/bench_train_torch.py --shape mixtral-small 1024 3584 8 2 --tokens 256 1024
"""

import argparse
import math
import statistics
import time

import torch
import torch.nn.functional as F


class Layer:
    def __init__(self, d_model, d_ff, experts, top_k):
        def weight(*shape):
            values = torch.rand(*shape).mul_(2).sub_(1).mul_(math.sqrt(3 / shape[-1]))
            return values.requires_grad_()

        self.top_k = top_k
        self.router = weight(experts, d_model)
        self.experts = [(weight(d_ff, d_model), weight(d_ff, d_model), weight(d_model, d_ff)) for _ in range(experts)]

    def __call__(self, x):
        weights, chosen = torch.topk(F.softmax(F.linear(x, self.router), dim=-1), self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(x)
        for e, (gate, up, down) in enumerate(self.experts):
            token, choice = torch.where(chosen == e)
            if len(token) == 0:
                continue
            its = x[token]
            answer = F.linear(F.silu(F.linear(its, gate)) * F.linear(its, up), down)
            y = y.index_add(0, token, answer * weights[token, choice, None])
        return y


def seconds_of(work):
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def measure(layer, x, d_y, budget):
    """Seconds of a forward pass without gradients, one with, and the backward pass after it: medians in turn. Gradients
    are added to those that are there, as bench_train's are."""
    layer(x).backward(d_y)  # warms up
    times = []
    while len(times) < 3 or sum(map(sum, times)) < budget:
        with torch.no_grad():
            plain, _ = seconds_of(lambda: layer(x))
        taped, y = seconds_of(lambda: layer(x))
        back, _ = seconds_of(lambda: y.backward(d_y))
        times.append((plain, taped, back))
    return [statistics.median(column) for column in zip(*times)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shape", nargs=5, action="append", required=True,
                        metavar=("NAME", "D_MODEL", "D_FF", "EXPERTS", "TOP_K"))
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 256, 1024])
    parser.add_argument("--seconds", type=float, default=5, help="to spend on each line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    print(f"PyTorch {torch.__version__}, float, {options.threads} threads")
    print(f"{'shape':<16} {'tokens':>6}   {'forward':>11} {'with tape':>11} {'backward':>11}   ratio")
    for name, *sizes in options.shape:
        d_model, d_ff, experts, top_k = map(int, sizes)
        layer = Layer(d_model, d_ff, experts, top_k)
        for tokens in options.tokens:
            x, d_y = torch.randn(tokens, d_model, requires_grad=True), torch.randn(tokens, d_model)
            plain, taped, back = (1e3 * s for s in measure(layer, x, d_y, options.seconds))
            print(f"{name:<16} {tokens:6}   {plain:8.2f} ms {taped:8.2f} ms {back:8.2f} ms   {back / plain:5.2f}", flush=True)


if __name__ == "__main__":
    main()
