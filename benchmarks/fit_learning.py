#!/usr/bin/env python3
"""Fits what models know in the end to their size and their steps.

usage: fit_learning.py learn.json … [out.svg|out.png]   runs of `learn --json`, of several --steps and numbers of experts,
                                                        all of one shape and text

    bits = c + a / R^α + b / S^β + d / (R^α · S^β)      R: hidden units that there are, for one that a token meets; S: steps

Needs numpy; the chart matplotlib. Prints each run beside its fit, the error of a run that was left out, and how many
more steps the dense model would need to know as much.
"""

import sys

import numpy as np

from plot import DENSE, GREY, SPARSE, read_json, save, tidy


def ratio(record):
    """Units that there are, for one that a token meets."""
    if record["model"].startswith("dense"):
        return float(record["model"].partition("*")[2] or 1)
    experts, active = record["model"].partition("@")[0].split("x")
    if "+" in active:
        sys.exit(f"fit_learning.py: {record['model']} has shared experts, expected routed ones alone")
    return float(experts) / float(active)


def rows_of(files):
    """R, S and bits of each run that is finished."""
    rows = []
    for file in files:
        for record in read_json(file):
            last = record["curve"][-1] if record["curve"] else {"step": -1}
            if last["step"] == record["steps"] and "@" not in record["model"]:
                rows.append((ratio(record), float(last["step"]), last["held_out_bits_per_byte"]))
    if len(rows) < 8 or len({r for r, _, _ in rows}) < 3 or len({s for _, s, _ in rows}) < 3:
        sys.exit("fit_learning.py: expected finished runs of three numbers of experts and three numbers of steps at least")
    return np.array(rows)


def terms(rows, alpha, beta):
    size, steps = rows[:, 0] ** -alpha, (rows[:, 1] / 1000) ** -beta
    return np.stack([np.ones_like(size), size, steps, size * steps], axis=1)


def fit(rows):
    """The exponents of the least squared error, by trying all of a grid; what is linear is solved for."""
    best = None
    for alpha in np.arange(0.1, 1.55, 0.05):
        for beta in np.arange(0.1, 1.55, 0.05):
            columns = terms(rows, alpha, beta)
            factors, *_ = np.linalg.lstsq(columns, rows[:, 2], rcond=None)
            error = np.square(columns @ factors - rows[:, 2]).sum()
            if best is None or error < best[0]:
                best = (error, alpha, beta, factors)
    return best[1:]


def bits_of(law, rows):
    alpha, beta, factors = law
    return terms(np.atleast_2d(rows), alpha, beta) @ factors


def left_out(rows):
    """The error of each run by a fit of all others."""
    return np.array([bits_of(fit(np.delete(rows, i, axis=0)), rows[i])[0] - rows[i, 2] for i in range(len(rows))])


def steps_of_dense(law, bits):
    """Infinite if the law never gives it so much."""
    low, high = 1.0, 1e12
    if bits_of(law, [1, high, 0])[0] > bits:
        return np.inf
    while high / low > 1.001:
        middle = np.sqrt(low * high)
        low, high = (middle, high) if bits_of(law, [1, middle, 0])[0] > bits else (low, middle)
    return high


def draw(rows, law, out):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "moe"
    figure, panels = plt.subplots(1, 2, figsize=(9.2, 4.0))
    sizes = sorted(set(rows[:, 0]))
    smooth = np.geomspace(rows[:, 1].min(), rows[:, 1].max(), 60)
    for i, size in enumerate(sizes):
        colour = DENSE if size == 1 else SPARSE[(i - 1) % len(SPARSE)]
        of = np.array(sorted((s, b) for r, s, b in rows if r == size))
        label = "dense" if size == 1 else f"{size:g} times as many units"
        panels[0].plot(of[:, 0], of[:, 1], "o", color=colour, markersize=5, label=label)
        panels[0].plot(smooth, bits_of(law, np.stack([np.full_like(smooth, size), smooth, smooth], axis=1)),
                       color=colour, linewidth=1.2)
        dense = {s: b for r, s, b in rows if r == 1}
        if size > 1:
            gain = [100 * (bits / dense[step] - 1) for step, bits in of if step in dense]
            panels[1].plot([step for step, _ in of if step in dense], gain, "o-", color=colour, linewidth=1.2, markersize=5)
    for axes, title in zip(panels, ["bits per byte in the end, and the fit", "to dense, %"]):
        axes.set_xscale("log")
        axes.set_xlabel("steps", color=GREY)
        axes.set_title(title, color=GREY, fontsize=11, loc="left")
        ticks = sorted(set(rows[:, 1]))
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        tidy(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncol=len(sizes), frameon=False,
                  labelcolor=GREY, fontsize=9)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    save(figure, out)


def main():
    files, out = sys.argv[1:], None
    if files and files[-1].endswith((".svg", ".png")):
        out = files.pop()
    if not files or files[0] in ("-h", "--help"):
        sys.exit(__doc__)
    rows = rows_of(files)
    law = fit(rows)
    alpha, beta, (c, a, b, d) = law
    print(f"bits = {c:.3f} + {a:.3f} / R^{alpha:.2f} + {b:.3f} / S^{beta:.2f} {d:+.3f} / (R^{alpha:.2f} S^{beta:.2f}), "
          "S in thousands of steps")
    print(f"{'R':>6} {'steps':>7} {'bits':>7} {'fit':>7} {'left out':>9}   steps of dense for as much")
    for (size, steps, bits), error in zip(rows, left_out(rows)):
        dense = steps_of_dense(law, bits_of(law, [size, steps, 0])[0])
        print(f"{size:6g} {steps:7.0f} {bits:7.4f} {bits_of(law, [size, steps, 0])[0]:7.4f} {error:+9.4f}   "
              f"{'never' if np.isinf(dense) else f'{dense / steps:.2f} x as many'}")
    if out:
        draw(rows, law, out)


if __name__ == "__main__":
    main()
