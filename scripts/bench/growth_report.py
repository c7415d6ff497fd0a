"""Turns the runs of growth.py into medians, ratios, Markdown tables and a picture."""
import math

from report import (COLOURS, FAINT, GRID, METRICS, SOFT, WIDTH, by_round, curve, machine_line, ratio_text, ratios,
                    sheet, spread, text, ticks)

LABELS = {"ours": "rabbitmq-rpc", "c": "librabbitmq (C)"}
AXES = {"in_flight": "Calls in flight, one thread", "body_size": "Body of request and reply",
        "processes": "Client processes, one server"}
COLUMNS = {"in_flight": "in flight", "body_size": "body", "processes": "processes"}
FACTORS = {"calls_per_second": 1, "client_cpu": 1e6, "server_cpu": 1e6, "broker_cpu": 1e6}  # seconds to µs


def summarize(runs, axes):
    """For each point of each axis, the figures of both sides and their ratio, round by round."""
    rows = []
    for axis, values in axes.items():
        others = {other: 1 for other in axes if other != axis}
        for value in values:
            sides = {peer: by_round(runs, peer=peer, **{axis: value}, **others) for peer in LABELS}
            rows.append({
                "axis": axis,
                "value": value,
                "prefetch": next(iter(sides["ours"].values()))["prefetch"],
                "ratio": {name: values for name, values in ratios(*sides.values()).items() if name in FACTORS},
            } | {
                peer: {name: spread([METRICS[name](run) * factor for run in side.values()])
                       for name, factor in FACTORS.items()}
                for peer, side in sides.items()
            })
    return rows


def markdown(results):
    lines = [machine_line(results["machine"]), ""]
    for axis, title in AXES.items():
        names = {"calls_per_second": "calls/s", "client_cpu": "client CPU", "server_cpu": "server CPU"}
        heads = [head for name in names.values() for head in (f"{name}: ours", "C", "ours ÷ C")]
        lines += [f"**{title}**", "", f"| {COLUMNS[axis]} | {' | '.join(heads)} |", "|---:|" + "---:|" * len(heads)]
        for row in results["summary"]:
            if row["axis"] != axis:
                continue
            cells = [label_of(axis, row["value"])]
            for name in names:
                cells += [figure(name, row[peer][name]["median"]) for peer in LABELS]
                cells.append(ratio_text(row["ratio"][name]))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines + [*notes(results), ""])


def notes(results):
    options = results["options"]
    return [f"Medians of {options['rounds']} rounds, each of {options['seconds']:g} s of calls; ratios compare "
            f"round by round, and are medians of the rounds' ratios; CPU is per call; {results['foreign_cpu_share']:.0%} of the CPU went elsewhere.",
            "Calls in flight, bytes of a body and client processes are 1 in each panel that does not name them.",
            "Both servers have the same prefetch: as many as calls are in flight over all clients, at most "
            f"{options['most_prefetch']}."]


def label_of(axis, value):
    if axis != "body_size":
        return f"{value:,}"
    for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= size:
            return f"{value // size} {unit}"
    return f"{value} B"


def figure(name, value):
    if name == "calls_per_second":
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.1f} µs"


# The picture: a column for each axis, a row for each metric, both scales logarithmic. The ratio of
# ours to C's is above each point.

ROWS = {"calls_per_second": "Calls per second (higher is better)",
        "client_cpu": "Client CPU per call (lower is better)",
        "server_cpu": "Server CPU per call (lower is better)"}
HEIGHT, TOP, LEFT, PLOT_WIDTH, PLOT_HEIGHT, COLUMN, ROW = 936, 152, 76, 236, 150, 306, 250


def svg(results):
    parts = sheet(HEIGHT, "Rate and CPU time of RPC calls, as calls in flight, bodies and processes grow",
                  "How calls grow: rabbitmq-rpc beside librabbitmq (C)", machine_line(results["machine"]))
    parts += legend()
    for column, (axis, title) in enumerate(AXES.items()):
        rows = [row for row in results["summary"] if row["axis"] == axis]
        for line, (metric, heading) in enumerate(ROWS.items()):
            left, top = LEFT + column * COLUMN, TOP + line * ROW
            if column == 0:
                parts.append(text(24, top - 28, heading, "start", weight=600))
            parts += panel(left, top, axis, title, metric, rows)
    for line, note in enumerate(notes(results)):
        parts.append(text(24, HEIGHT - 54 + 18 * line, note, "start", colour=SOFT, size=12))
    return "\n".join(parts + ["</svg>", ""])


def legend():
    parts, x = [], 24
    for peer, label in LABELS.items():
        parts += curve([(x, 78), (x + 26, 78)], COLOURS[peer], width(peer))
        parts.append(text(x + 36, 82, label, "start", colour=COLOURS[peer], weight=700 if peer == "ours" else 500))
        x += 150
    words = "Figures above the points: ours ÷ C. Thin lines: from the least round to the greatest."
    return parts + [text(x + 20, 82, words, "start", colour=SOFT, size=12)]


def width(peer):
    return 3.2 if peer == "ours" else 2


def panel(left, top, axis, title, metric, rows):
    values = [row[peer][metric][end] for row in rows for peer in LABELS for end in ("min", "max")]
    low, high = min(values) / 1.15, max(values) * 1.15
    bottom = top + PLOT_HEIGHT

    def y(value):
        return bottom - math.log(value / low) / math.log(high / low) * PLOT_HEIGHT

    parts = []
    scale = ticks(low, high)
    # Over several decades only powers of ten are labelled, over fewer decades more ticks.
    digits = "1" if high / low > 300 else "13" if high / low > 8 else "1235"
    numbered = [tick for tick in scale if leading_digit(tick) in digits]
    for tick in scale:
        strong = tick in numbered
        parts.append(f'<path d="M{left} {y(tick):.1f}h{PLOT_WIDTH}" stroke="{GRID if strong else FAINT}"/>')
        if strong:
            parts.append(text(left - 8, y(tick) + 4, tick_label(metric, tick), "end", colour=SOFT, size=12))
    margin = 18
    step = (PLOT_WIDTH - 2 * margin) / (len(rows) - 1)
    xs = [left + margin + step * i for i in range(len(rows))]
    for x, row in zip(xs, rows):
        parts.append(text(x, top - 5, f"{row['ratio'][metric]['median']:.2f}", "middle", colour=SOFT, size=11))
        parts.append(text(x, bottom + 17, label_of(axis, row["value"]), "middle", colour=SOFT, size=12))
    parts.append(text(left + PLOT_WIDTH / 2, bottom + 34, title, "middle", size=12))
    for peer in reversed(LABELS):  # ours is drawn last, on top
        parts += [f'<path d="M{x:.1f} {y(row[peer][metric]["min"]):.1f}V{y(row[peer][metric]["max"]):.1f}" '
                  f'stroke="{COLOURS[peer]}" stroke-opacity="0.5"/>' for x, row in zip(xs, rows)]
        parts += curve([(x, y(row[peer][metric]["median"])) for x, row in zip(xs, rows)], COLOURS[peer], width(peer))
    return parts


def leading_digit(tick):
    return f"{tick:e}"[0]


def tick_label(metric, tick):
    if metric == "calls_per_second":
        return f"{tick:,.0f}" if tick >= 1 else f"{tick:g}"
    return f"{tick:g} µs" if tick < 1000 else f"{tick / 1000:g} ms" if tick < 1e6 else f"{tick / 1e6:g} s"
