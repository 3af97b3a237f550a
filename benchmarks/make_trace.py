#!/usr/bin/env python3
"""make_trace.py OUT.csv: a routing trace with the statistics of real ones, for bench_store and moe_plan.

A token's experts are the top-k of scores: how popular an expert is (Zipf, ranks shuffled in each layer), what the
text is about (a topic favours a quarter of the experts, and lasts some 150 tokens), noise that is like that of the
token before (so that experts stay for a token or two), and chance (Gumbel). With --top-k 6 --layers 48 --tokens 130 a
token shares 0.37, 0.30, 0.26 and 0.26 of its experts with those 1, 2, 4 and 8 before, and a layer's 16 hottest
experts take 0.69 of the routes; a recorded trace of Qwen3-30B-A3B, as long and with as many, 0.37, 0.28, 0.27, 0.25
and 0.65. --statistics prints these. Needs the standard library alone; the seed is written into the file.
"""
import argparse
import math
import random
import sys


def choose(scores, k):
    return sorted(sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:k])


def make(options):
    """The experts of each token and layer, ascending."""
    rng = random.Random(options.seed)
    gauss, uniform = rng.gauss, rng.random
    experts = range(options.experts)
    popular, topics, noise = [], [], []
    for _ in range(options.layers):
        ranks = list(experts)
        rng.shuffle(ranks)
        popular.append([-options.zipf * math.log(rank + 1) for rank in ranks])
        topics.append([])
        noise.append([gauss(0, 1) for _ in experts])
    topic, left = -1, 0
    tokens = []
    for _ in range(options.tokens):
        if left == 0:
            topic, left = topic + 1, max(1, round(rng.expovariate(1 / options.topic_tokens)))
            for layer in range(options.layers):
                topics[layer] = set(rng.sample(experts, options.experts // 4))
        left -= 1
        layers = []
        for layer in range(options.layers):
            keeps, fresh = options.persistence, math.sqrt(1 - options.persistence**2)
            noise[layer] = [keeps * n + fresh * gauss(0, 1) for n in noise[layer]]
            scores = [
                popular[layer][e]
                + options.topic * (e in topics[layer])
                + options.noise * noise[layer][e]
                - math.log(-math.log(uniform() or 0.5))
                for e in experts
            ]
            layers.append(choose(scores, options.top_k))
        tokens.append(layers)
    return tokens


def statistics(tokens):
    layers, k = len(tokens[0]), len(tokens[0][0])
    words = []
    for lag in (1, 2, 4, 8):
        shared = sum(
            len(set(tokens[t][l]) & set(tokens[t - lag][l])) for t in range(lag, len(tokens)) for l in range(layers)
        )
        words.append(f"{shared / (max(len(tokens) - lag, 1) * layers * k):.2f} {lag} before")
    hottest = 0
    for layer in range(layers):
        counts = {}
        for token in tokens:
            for expert in token[layer]:
                counts[expert] = counts.get(expert, 0) + 1
        hottest += sum(sorted(counts.values(), reverse=True)[:16])
    share = hottest / (len(tokens) * layers * k)
    return f"shared with the token {', '.join(words)}; the 16 hottest of a layer take {share:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    add = parser.add_argument
    add("out", metavar="OUT.csv")
    add("--tokens", type=int, default=200)
    add("--layers", type=int, default=8)
    add("--experts", type=int, default=128)
    add("--top-k", type=int, default=8)
    add("--seed", type=int, default=2026)
    add("--zipf", type=float, default=2.4, help="how unlike experts are in popularity")
    add("--topic", type=float, default=4.0, help="what a topic adds to the scores of its experts")
    add("--topic-tokens", type=float, default=150.0, help="how long one lasts, on average")
    add("--noise", type=float, default=3.4)
    add("--persistence", type=float, default=0.4, help="correlation of the noise with that of the token before")
    add("--statistics", action="store_true", help="print those that real traces are compared by")
    options = parser.parse_args()
    for name in ("tokens", "layers", "experts", "top_k"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected 1 or more")
    if options.top_k > options.experts:
        parser.error(f"--top-k is {options.top_k}, expected at most {options.experts}, the number of experts")
    if options.topic_tokens <= 0 or not 0 <= options.persistence <= 1:
        parser.error(
            f"--topic-tokens and --persistence are {options.topic_tokens} and {options.persistence}, "
            "expected more than 0, and 0 to 1"
        )
    tokens = make(options)
    try:
        with open(options.out, "w", encoding="ascii") as file:
            file.write(f"# {' '.join(['make_trace.py', *sys.argv[2:]])} (seed {options.seed})\ntoken,layer,expert\n")
            for token, layers in enumerate(tokens):
                for layer, experts in enumerate(layers):
                    file.writelines(f"{token},{layer},{expert}\n" for expert in experts)
    except OSError as error:
        sys.exit(f"make_trace.py: {error}")
    if options.statistics:
        print(statistics(tokens))


if __name__ == "__main__":
    main()
