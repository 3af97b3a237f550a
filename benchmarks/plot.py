#!/usr/bin/env python3
"""Draws what moe_compare --json measured: time per token against tokens, a panel for each type of weights.

usage: plot.py results.json out.svg|out.png
"""

import json
import sys

# kind: label, colour, line width, opacity. The colours read on white as well as on black.
LINES = {
    "dense_total": ("dense FFN of equal total size", "#e5534b", 1.8, 1.0),
    "dense_active": ("dense FFN of equal active size", "#2da44e", 1.8, 1.0),
    "moe": ("sparse layer", "#388bfd", 3.0, 1.0),
    "eigen_grouped": ("sparse by hand on Eigen", "#9a7fd1", 1.4, 0.6),
}
GREY = "#848d97"


def read_records(path):
    """All records, or an exit that says what is wrong with the file."""
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
    except (OSError, ValueError) as error:
        sys.exit(f"plot.py: {path}: {error}")
    if not isinstance(records, list) or not any(r.get("kind") == "moe" for r in records):
        sys.exit(f"plot.py: {path} has no records of a sparse layer; write it with moe_compare --json")
    return records


def curve(records, kind, milliseconds=lambda r: r["ms"]):
    """Tokens, and microseconds for each of them."""
    rows = sorted((r["tokens"], milliseconds(r)) for r in records if r["kind"] == kind)
    return [tokens for tokens, _ in rows], [1e3 * ms / tokens for tokens, ms in rows]


def draw_panel(axes, weights, records):
    for kind, (label, colour, width, opacity) in LINES.items():
        axes.plot(*curve(records, kind), label=label, color=colour, linewidth=width, alpha=opacity,
                  marker="o", markersize=2.5 * width**0.5, solid_capstyle="round")
    axes.plot(*curve(records, "moe", lambda r: r["ms"] * r["limit_share"]), label="sparse, at the limit of this machine",
              color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_title(f"{weights} weights", color=GREY, fontsize=11, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens in a call", color=GREY)
    tokens = sorted({r["tokens"] for r in records})
    axes.set_xticks(tokens, [str(t) for t in tokens])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda us, _: f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} µs")
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=GREY, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw(plt, records, out):
    types = list(dict.fromkeys(r["weights"] for r in records))
    figure, panels = plt.subplots(1, len(types), figsize=(4.6 * len(types), 4.4), sharey=True, squeeze=False)
    for axes, weights in zip(panels[0], types):
        draw_panel(axes, weights, [r for r in records if r["weights"] == weights])
    panels[0][0].set_ylabel("time per token", color=GREY)
    first = records[0]
    figure.suptitle(
        f"{first['shape']}: d_model {first['d_model']}, d_ff {first['d_ff']}, {first['experts']} experts, "
        f"top {first['top_k']}; {first['threads']} threads", color=GREY, fontsize=11, x=0.5)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncol=3 if len(types) > 1 else 1,
                  frameon=False, labelcolor=GREY, fontsize=9)
    figure.tight_layout(rect=(0, 0.11 if len(types) > 1 else 0.24, 1, 1))
    undated = {"Date": None} if out.endswith(".svg") else None  # the same results give the same file
    figure.savefig(out, transparent=True, dpi=160, metadata=undated)


def main():
    if len(sys.argv) != 3 or not sys.argv[2].endswith((".svg", ".png")):
        sys.exit(__doc__.strip())
    records = read_records(sys.argv[1])
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot.py: needs matplotlib (apt-get install python3-matplotlib, or pip install matplotlib)")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "eigen-moe"
    import matplotlib.pyplot as plt

    try:
        draw(plt, records, sys.argv[2])
    except OSError as error:
        sys.exit(f"plot.py: {error}")


if __name__ == "__main__":
    main()
