#!/usr/bin/env python3
"""Draws what was measured.

usage: plot.py results.json  out.svg|out.png   time per token against tokens, a panel for each type of weights:
                                               what moe_compare --json wrote; needs matplotlib
       plot.py learn.json    out.svg|out.png   what models learn against time and FLOPs, a column for each text:
                                               what learn --json wrote; needs matplotlib
       plot.py plan.json … out.svg|out.png     time on a cluster against ranks, a panel for each shape, and what was measured
                                               against what was predicted: what moe_cluster_plan --json and
                                               cluster_model_on_ranks --json wrote; needs matplotlib
       plot.py routing.jsonl out.svg           load of each expert (across) in each layer (down), at its last step:
                                               what moe::to_json_line wrote
"""

import json
import math
import os
import sys
from xml.sax.saxutils import escape

# kind: label, colour, line width, opacity. The colours read on white as well as on black.
LINES = {
    "dense_total": ("dense FFN of equal total size", "#e5534b", 1.8, 1.0),
    "dense_active": ("dense FFN of equal active size", "#2da44e", 1.8, 1.0),
    "moe": ("sparse layer", "#388bfd", 3.0, 1.0),
    "moe_fast": ("sparse layer, fast products", "#d29922", 3.0, 1.0),
    "eigen_grouped": ("sparse by hand on Eigen", "#9a7fd1", 1.4, 0.6),
}
GREY = "#848d97"

# Of learn: dense models, and the sparse ones in the order of the file.
DENSE, DENSE_MORE = "#2da44e", "#e5534b"
SPARSE = ["#d29922", "#9a7fd1", "#388bfd", "#db61a2"]

# Load relative to an even share, from an eighth to eight times; an expert without tokens has a colour of its own.
COLOURS = ["#2362ad", "#4a90d0", "#85b9e2", "#c6dcf0", "#f7f4ee", "#fdcc8a", "#fc8d59", "#d7301f", "#7f0000"]
NO_TOKENS = "#30363d"
LEVELS = 64


def read_json(path):
    """The records of a JSON array or of JSON lines, or an exit that says what is wrong with the file."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {path}: {error}")


def curve(records, kind, milliseconds=lambda r: r["ms"]):
    """Tokens, and microseconds for each of them."""
    rows = sorted((r["tokens"], milliseconds(r)) for r in records if r["kind"] == kind)
    return [tokens for tokens, _ in rows], [1e3 * ms / tokens for tokens, ms in rows]


def tidy(axes):
    axes.minorticks_off()
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=GREY, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure, out):
    undated = {"Date": None} if out.endswith(".svg") else None  # the same results give the same file
    figure.savefig(out, transparent=True, dpi=160, metadata=undated)


def draw_panel(axes, weights, records):
    measured = {r["kind"] for r in records}
    for kind, (label, colour, width, opacity) in LINES.items():
        if kind not in measured:
            continue
        axes.plot(*curve(records, kind), label=label, color=colour, linewidth=width, alpha=opacity,
                  marker="o", markersize=2.5 * width**0.5, solid_capstyle="round")
    fastest = "moe_fast" if "moe_fast" in measured else "moe"
    axes.plot(*curve(records, fastest, lambda r: r["ms"] * r["limit_share"]), label="sparse, at the limit of this machine",
              color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_title(f"{weights} weights", color=GREY, fontsize=11, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens in a call", color=GREY)
    tokens = sorted({r["tokens"] for r in records})
    axes.set_xticks(tokens, [str(t) for t in tokens])
    axes.yaxis.set_major_formatter(lambda us, _: f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} µs")
    tidy(axes)


def draw(plt, records, out):
    types = list(dict.fromkeys(r["weights"] for r in records))
    figure, panels = plt.subplots(1, len(types), figsize=(4.6 * len(types), 4.4), sharey=True, squeeze=False)
    for axes, weights in zip(panels[0], types):
        draw_panel(axes, weights, [r for r in records if r["weights"] == weights])
    panels[0][0].set_ylabel("time per token", color=GREY)
    first = records[0]
    figure.suptitle(
        f"{first['shape']}: d_model {first['d_model']}, d_ff {first['d_ff']}, {first['experts']} experts, "
        f"top {first['top_k']}; {first['threads']} thread{'' if first['threads'] == 1 else 's'}", color=GREY, fontsize=11, x=0.5)
    lines = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncol=3 if len(types) > 1 else 1,
                  frameon=False, labelcolor=GREY, fontsize=9)
    figure.tight_layout(rect=(0, 0.11 if len(types) > 1 else 0.24, 1, 1))
    save(figure, out)


def ffns_of(record):
    """What has one colour: the same FFNs, whatever their time."""
    return record["model"].split("@")[0]


def colours_of(records):
    names = list(dict.fromkeys(map(ffns_of, records)))
    sparse = [name for name in names if not name.startswith("dense")]
    return {name: DENSE if name == "dense" else DENSE_MORE if name.startswith("dense")
            else SPARSE[sparse.index(name) % len(SPARSE)] for name in names}


def draw_learning(axes, records, of, colours):
    """A line for each model, the mean over seeds, in a band from the best of them to the worst."""
    for model in dict.fromkeys(r["model"] for r in records):
        runs = [r for r in records if r["model"] == model]
        curves = [r["curve"][2:] for r in runs]  # the first points, with all still to learn, are left out
        x = [sum(p[of] for p in points) / len(points) for points in zip(*curves)]
        bits = [[p["held_out_bits_per_byte"] for p in points] for points in zip(*curves)]
        timed, colour = "@" in model, colours[ffns_of(runs[0])]
        axes.plot(x, [sum(b) / len(b) for b in bits], color=colour, linewidth=1.2 if timed else 1.8,
                  linestyle="--" if timed else "-", label=runs[0]["ffns"])
        axes.fill_between(x, [min(b) for b in bits], [max(b) for b in bits], color=colour, alpha=0.15, linewidth=0)
    final = [r["curve"][-1] for r in records if r["model"] == "dense"]
    mean = lambda key: sum(p[key] for p in final) / len(final)
    axes.axhline(mean("held_out_bits_per_byte"), color=DENSE, linewidth=0.8, linestyle=":")
    if of == "seconds":
        draw_times_to_dense(axes, records, mean("held_out_bits_per_byte"), mean("seconds"), colours)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    ticks = [digit * 10**power for power in range(-2, 18) for digit in (1, 2, 5)]
    axes.set_xticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    low, high = axes.get_ylim()
    ticks = [t / 10 for t in range(8, 40, 2)]
    axes.set_yticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    tidy(axes)


def draw_times_to_dense(axes, records, bits, seconds, colours):
    """A point where a model knows what dense knows in the end, of the one that is there first."""
    times = {}
    for name in dict.fromkeys(map(ffns_of, records)):
        of_seeds = {r["seed"]: r.get("time_to_dense") for r in records if ffns_of(r) == name}
        if name != "dense" and None not in of_seeds.values():
            times[name] = sum(of_seeds.values()) / len(of_seeds)
    if times:
        first = min(times, key=times.get)
        axes.plot([times[first] * seconds], [bits], "o", color=colours[first], markersize=5)
        axes.annotate(f"{times[first]:.2f} of dense's time", (times[first] * seconds, bits), (-4, -12),
                      textcoords="offset points", ha="right", color=GREY, fontsize=9)


def draw_what_was_learnt(plt, records, out):
    """A column for each text, of runs that were finished."""
    records = [r for r in records if r["curve"] and r["curve"][-1]["step"] == r["steps"]]
    texts = [text for text in dict.fromkeys(r["text"] for r in records)
             if any(r["text"] == text and r["model"] == "dense" for r in records)]
    if not texts:
        sys.exit("plot.py: no run of dense was finished")
    colours = colours_of(records)
    figure, panels = plt.subplots(2, len(texts), figsize=(1.2 + 3.6 * len(texts), 7), squeeze=False)
    for row, of, what in ((0, "seconds", "seconds of training"), (1, "flops", "training FLOPs")):
        for axes, text in zip(panels[row], texts):
            draw_learning(axes, [r for r in records if r["text"] == text], of, colours)
            axes.set_xlabel(what, color=GREY)
            if row == 0:
                axes.set_title(text.rsplit("/")[-1], color=GREY, fontsize=11, loc="left")
        panels[row][0].set_ylabel("held-out bits per byte", color=GREY)
    handles, labels = panels[0][0].get_legend_handles_labels()
    columns = min(3, len(texts))
    figure.legend(handles, labels, loc="lower center", ncol=columns, frameon=False, labelcolor=GREY, fontsize=9)
    figure.tight_layout(rect=(0, 0.01 + 0.03 * math.ceil(len(labels) / columns), 1, 1))
    save(figure, out)


# How moe_cluster_plan calls its placements: label, colour, line style.
PLACED = {
    "in blocks": ("experts in blocks", "#e5534b", "-"),
    "by load": ("placed by load", "#9a7fd1", "--"),
    "with copies": ("with copies of hot experts", "#388bfd", "-"),
}


def draw_plan(axes, records):
    """Where copies do not pay, the line of copies is that of the placement by load."""
    for placed, (label, colour, style) in PLACED.items():
        best = {r["ranks"]: r["ms"] for r in records if r["placed"] == placed}
        if placed == "with copies":
            best = {r["ranks"]: r["ms"] for r in records} | best
        axes.plot(*zip(*sorted(best.items())), label=label, color=colour, linestyle=style, linewidth=1.8)
    ranks = sorted({r["ranks"] for r in records})
    first = records[0]
    axes.set_title(f"{first['shape']}, {first['tokens']} tokens a rank, {first['load']}", color=GREY, fontsize=10,
                   loc="left")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks[::2], [str(r) for r in ranks[::2]])
    axes.set_xlabel("ranks", color=GREY)
    axes.yaxis.set_major_formatter(lambda ms, _: f"{ms / 1e3:g} s" if ms >= 1e3 else f"{ms:g} ms")
    tidy(axes)


def draw_measured(axes, records):
    """A point for each case, on the diagonal where the model is right; the band is 20 %."""
    times = [r[key] for r in records for key in ("ms", "predicted_ms")]
    low, high = min(times) / 1.2, max(times) * 1.2
    axes.fill_between([low, high], [low / 1.2, high / 1.2], [low * 1.2, high * 1.2], color=GREY, alpha=0.15,
                      linewidth=0)
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8)
    for ranks, colour in zip((1, 2, 3, 4), ("#2da44e", "#388bfd", "#9a7fd1", "#e5534b")):
        points = [(r["ms"], r["predicted_ms"]) for r in records if r["ranks"] == ranks]
        if points:
            axes.plot(*zip(*points), "o", color=colour, markersize=4, label=f"{ranks} rank{'s' if ranks > 1 else ''}")
    axes.set_title(f"{records[0]['shape']} on {records[0]['cores']} cores", color=GREY, fontsize=10, loc="left")
    for axis, set_scale, set_label, what in ((axes.xaxis, axes.set_xscale, axes.set_xlabel, "measured"),
                                             (axes.yaxis, axes.set_yscale, axes.set_ylabel, "predicted")):
        set_scale("log")
        set_label(what, color=GREY)
        axis.set_major_formatter(lambda ms, _: f"{ms / 1e3:g} s" if ms >= 1e3 else f"{ms:g} ms")
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    tidy(axes)


def draw_cluster(plt, records, out):
    plans = [r for r in records if r["kind"] == "plan"]
    measured = [r for r in records if r["kind"] == "measured"]
    shapes = list(dict.fromkeys(r["shape"] for r in plans))
    count = len(shapes) + bool(measured)
    figure, panels = plt.subplots(1, count, figsize=(4.2 * count, 4), squeeze=False)
    for axes, shape in zip(panels[0], shapes):
        draw_plan(axes, [r for r in plans if r["shape"] == shape])
    if shapes:
        panels[0][0].set_ylabel("time of a layer", color=GREY)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower left", ncol=3, frameon=False,
                      labelcolor=GREY, fontsize=9)
    if measured:
        draw_measured(panels[0][-1], measured)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    save(figure, out)


def last_of_each_layer(records):
    """Layers in the order of the file, each at the last line that it has."""
    return list({r["layer"]: r for r in records}.values())


def relative_loads(layer):
    """Load of each expert, where an even share is 1; all 0 if the layer has seen nothing."""
    even = sum(layer["expert_routes"]) / layer["num_experts"]
    return [load / even if even else 0 for load in layer["expert_routes"]]


def level(load):
    """0 for an eighth of an even share or less, LEVELS for eight times or more; None without tokens."""
    return None if load == 0 else round(LEVELS * min(max((math.log2(load) + 3) / 6, 0), 1))


def colour(shade):
    if shade is None:
        return NO_TOKENS
    place = shade / LEVELS * (len(COLOURS) - 1)
    low = min(int(place), len(COLOURS) - 2)
    mixed = [round(int(COLOURS[low][i:i + 2], 16) * (low + 1 - place) + int(COLOURS[low + 1][i:i + 2], 16) * (place - low))
             for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def svg_text(x, y, words, size=11, anchor="start", weight="normal"):
    words = "".join(c if c.isprintable() else " " for c in words)
    return (f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{escape(words)}</text>")


def svg_cells(layers, left, top, width, height):
    """One path for each colour, so that a large map stays a small file."""
    gap = 1 if width >= 6 else 0
    paths = {}
    for row, layer in enumerate(layers):
        for expert, load in enumerate(relative_loads(layer)):
            paths.setdefault(colour(level(load)), []).append(
                f"M{left + expert * width} {top + row * height}h{width - gap}v{height - gap}h{gap - width}z")
    return [f'<path fill="{fill}" d="{"".join(cells)}"/>' for fill, cells in paths.items()]


def svg_colour_bar(left, top):
    width = 5
    parts = [f'<rect x="{left}" y="{top}" width="14" height="12" fill="{NO_TOKENS}"/>',
             svg_text(left + 20, top + 10, "no tokens")]
    left += 100
    parts += [f'<rect x="{left + i * width}" y="{top}" width="{width}" height="12" fill="{colour(i)}"/>'
              for i in range(LEVELS + 1)]
    for power, words in zip(range(-3, 4), ["≤ ⅛", "¼", "½", "even", "2 ×", "4 ×", "≥ 8 ×"]):
        parts.append(svg_text(left + width * (LEVELS * (power + 3) / 6 + 0.5), top + 26, words, anchor="middle"))
    return parts


def svg_peaks(layers, left, top, height, every):
    """For each layer the largest load as a bar, on a scale that begins at an even share."""
    peaks = [max(relative_loads(layer), default=0) for layer in layers]
    scale = 70 / max(max(peaks) - 1, 1e-9)
    parts = [svg_text(left, top - 8, "largest load")]
    for row, peak in enumerate(peaks):
        length = max(peak - 1, 0) * scale
        parts.append(f'<rect x="{left}" y="{top + row * height}" width="{length:.1f}" height="{height - 1}" '
                     f'fill="{GREY}" fill-opacity="0.45"/>')
        if row % every == 0:
            parts.append(svg_text(left + length + 5, top + (row + 0.5) * height + 3.5, f"{peak:.1f} ×", size=10))
    return parts


def heat_map(layers):
    """An SVG that reads on white as well as on black."""
    experts = max(layer["num_experts"] for layer in layers)
    width, height = max(2, min(16, 960 // experts)), max(8, min(20, 480 // len(layers)))
    every = -(-13 // height)  # layers from one label to the next
    ticks = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, experts) if step * width >= 32 or step >= experts)
    left, top = 16 + round(6.4 * max(len(layer["layer"]) for layer in layers[::every])), 76
    right, bottom = left + experts * width, top + len(layers) * height
    total_width, total_height = max(right + 130, left + 480), bottom + 84

    tokens, steps = max(layer["tokens"] for layer in layers), {layer["step"] for layer in layers}
    about = f"{tokens:,.0f} tokens".replace(",", "\u202f") + (f", step {steps.pop()}" if len(steps) == 1 else "")
    parts = [svg_text(left, 24, f"Load of {experts} experts in {len(layers)} layers", 16, weight="bold"),
             svg_text(left, 44, f"routes that reached an expert, relative to an even share; {about}")]
    parts += svg_cells(layers, left, top, width, height)
    for row in range(0, len(layers), every):
        parts.append(svg_text(left - 7, top + (row + 0.5) * height + 4, layers[row]["layer"], anchor="end"))
    for expert in range(0, experts, ticks):
        parts.append(svg_text(left + (expert + 0.5) * width, bottom + 15, str(expert), anchor="middle"))
    parts.append(svg_text((left + right) / 2, bottom + 32, "expert", anchor="middle"))
    parts += svg_peaks(layers, right + 12, top, height, every)
    parts += svg_colour_bar(left, bottom + 48)
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" '
                      f'width="{total_width}" height="{total_height}" font-family="DejaVu Sans, Verdana, sans-serif" '
                      f'fill="{GREY}">', '<g shape-rendering="crispEdges">', *parts, "</g>", "</svg>", ""])


def draw_heat_map(records, out):
    if not out.endswith(".svg"):
        sys.exit("plot.py: a heat map is written as .svg")
    with open(out, "w", encoding="utf-8") as file:
        file.write(heat_map(last_of_each_layer(records)))


def draw_chart(draw_on, records, out):
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot.py: needs matplotlib (apt-get install python3-matplotlib, or pip install matplotlib)")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "eigen-moe"
    import matplotlib.pyplot as plt

    draw_on(plt, records, out)


def main():
    if len(sys.argv) < 3 or not sys.argv[-1].endswith((".svg", ".png")):
        sys.exit(__doc__.strip())
    *paths, out = sys.argv[1:]
    records = [record for path in paths for record in read_json(path)]
    path = ", ".join(paths)
    try:
        if records and all(isinstance(r, dict) and "expert_routes" in r for r in records):
            draw_heat_map(records, out)
        elif isinstance(records, list) and any(isinstance(r, dict) and r.get("kind") == "moe" for r in records):
            draw_chart(draw, records, out)
        elif records and all(isinstance(r, dict) and "ffns" in r for r in records):
            draw_chart(draw_what_was_learnt, records, out)
        elif records and all(isinstance(r, dict) and r.get("kind") in ("plan", "measured") for r in records):
            draw_chart(draw_cluster, records, out)
        else:
            sys.exit(f"plot.py: {path} has neither records of a sparse layer (moe_compare --json), nor of learning "
                     "(learn --json), nor of a cluster (moe_cluster_plan --json), nor of routing (moe::to_json_line)")
    except OSError as error:
        sys.exit(f"plot.py: {error}")


if __name__ == "__main__":
    main()
