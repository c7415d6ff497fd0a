"""Turns the runs of a benchmark into medians, a Markdown table and a picture."""
import math
import statistics
from html import escape

PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max"}
NEEDED = {"p99": 100, "p999": 1000}  # calls without which a percentile is only the maximum again
PANELS = {1: "One call at a time", 64: "64 calls in flight on one connection"}


def summarize(runs, labels):
    """Medians over the rounds, and the ratio to the first peer, round by round."""
    first = labels[0][0]
    rows = []
    for in_flight in PANELS:
        base = {run["round"]: run["calls_per_second"] for run in runs
                if (run["peer"], run["in_flight"]) == (first, in_flight)}
        for key, label in labels:
            mine = [run for run in runs if (run["peer"], run["in_flight"]) == (key, in_flight)]
            if not mine:
                continue
            ratios = [base[run["round"]] / run["calls_per_second"] for run in mine if run["round"] in base]
            rows.append({
                "peer": key,
                "label": label,
                "in_flight": in_flight,
                "requests_per_round": mine[0]["requests"],
                "calls_per_second": statistics.median(run["calls_per_second"] for run in mine),
                "latency_us": {name: statistics.median(run["latency_us"][name] for run in mine)
                               for name in PERCENTILES},
                "client_cpu_us_per_call": per_call(mine, "client_cpu_seconds"),
                "server_cpu_us_per_call": per_call(mine, "server_cpu_seconds"),
                "broker_cpu_us_per_call": per_call(mine, "broker_cpu_seconds"),
                "client_max_rss_mib": statistics.median(run["client_max_rss_kib"] for run in mine) / 1024,
                "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios),
                          "of": first} if ratios else None,
            })
    return rows


def per_call(runs, key):
    return statistics.median(run[key] / run["requests"] * 1e6 for run in runs)


def markdown(results):
    lines = [machine_line(results["machine"]), ""]
    for in_flight, title in PANELS.items():
        rows = [row for row in results["summary"] if row["in_flight"] == in_flight]
        if not rows:
            continue
        first = results["summary"][0]["label"]
        lines += [
            f"**{title}**",
            "",
            f"| | calls/s | p50 | p99 | CPU per call: client + server + broker | client memory | calls/s, {first} ÷ this |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for row in rows:
            cells = [
                row["label"],
                f"{row['calls_per_second']:,.0f}",
                duration(row["latency_us"]["p50"]),
                duration(row["latency_us"]["p99"]),
                " + ".join(f"{row[f'{who}_cpu_us_per_call']:.0f}" for who in ("client", "server", "broker")) + " µs",
                f"{row['client_max_rss_mib']:.0f} MiB",
                ratio(row),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"{footnote(results)} The last column compares round by round: median (least to greatest).", ""]
    return "\n".join(lines)


def machine_line(machine):
    return (f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, RabbitMQ "
            f"{machine['rabbitmq'].partition('-')[0]}; client, server and broker on this one machine.")


def footnote(results):
    parts = []
    for in_flight, words in ((1, "one at a time"), (64, "64 in flight")):
        sizes = {row["requests_per_round"] for row in results["summary"] if row["in_flight"] == in_flight}
        if sizes:
            slow = f" ({min(sizes):,} where slow)" if len(sizes) > 1 else ""
            parts.append(f"{max(sizes):,} calls {words}{slow}")
    return (f"Medians of {results['options']['rounds']} rounds, each of {' and '.join(parts)}; "
            f"{results['foreign_cpu_share']:.0%} of the CPU went elsewhere.")


def ratio(row):
    spread = row["ratio"]
    if not spread or row["peer"] == spread["of"]:
        return ""
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def duration(us):
    if us < 1000:
        return f"{us:.0f} µs"
    return f"{us / 1000:.1f} ms" if us < 100_000 else f"{us / 1e6:.2f} s"


# The picture. Colours are Okabe and Ito's, which stay apart for every kind of
# eyesight; the background is painted, so that a dark page does not swallow the text.

COLOURS = {"ours": "#d55e00", "ours-threads": "#cc79a7", "c": "#0072b2", "nodelay": "#009e73",
           "python": "#8a6d00", "amiquip": "#56a0c9"}
INK, SOFT, GRID, FAINT = "#1f2328", "#59636e", "#d1d9e0", "#eff2f5"
WIDTH, HEIGHT, TOP, BOTTOM, LEFT = 980, 448, 100, 378, 72
PLOT, LABELS, LINE = 258, 192, 17  # widths of a plot and of its labels, a label's height


def svg(results):
    summary = results["summary"]
    values = [row["latency_us"][name] for row in summary for name in PERCENTILES]
    low, high = round_down(min(values)), round_up(max(values))

    def y(us):
        return BOTTOM - (math.log10(us / low) / math.log10(high / low)) * (BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" font-family="-apple-system, \'Segoe UI\', \'Noto Sans\', '
        f'Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">',
        "<title>Latency percentiles of one RPC call, by program</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        text(24, 34, "Latency of one RPC call (lower is better)", "start", size=18, weight=600),
        text(24, 55, machine_line(results["machine"]), "start", colour=SOFT, size=12),
    ]
    shown = [in_flight for in_flight in PANELS if any(row["in_flight"] == in_flight for row in summary)]
    for index, in_flight in enumerate(shown):
        rows = [row for row in summary if row["in_flight"] == in_flight]
        left = LEFT + index * (PLOT + LABELS + 4)
        parts += panel(left, PANELS[in_flight], rows, y, ticks(low, high), numbered=index == 0)
    parts.append(text(24, HEIGHT - 18, f"{footnote(results)} Logarithmic scale.", "start", colour=SOFT, size=12))
    return "\n".join(parts + ["</svg>", ""])


def panel(left, title, rows, y, scale, numbered):
    parts = [text(left, TOP - 14, title, "start", weight=600)]
    for us in scale:
        strong = str(us)[0] in "13"
        parts.append(f'<path d="M{left} {y(us):.1f}h{PLOT}" stroke="{GRID if strong else FAINT}"/>')
        if numbered and strong:
            parts.append(text(left - 8, y(us) + 4, tick_label(us), "end", colour=SOFT, size=12))
    margin = 14
    xs = [left + margin + i * (PLOT - 2 * margin) / (len(PERCENTILES) - 1) for i in range(len(PERCENTILES))]
    parts += [text(x, BOTTOM + 20, name, "middle", colour=SOFT, size=12)
              for x, name in zip(xs, PERCENTILES.values())]

    ends = {}
    for row in reversed(rows):  # the first peer is drawn last, on top
        colour = COLOURS[row["peer"]]
        points = [(x, y(row["latency_us"][name])) for x, name in zip(xs, PERCENTILES)
                  if row["requests_per_round"] >= NEEDED.get(name, 1)]
        line = " ".join(f"{x:.1f},{at:.1f}" for x, at in points)
        width = 3.2 if row["peer"] == "ours" else 2
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}" '
                     'stroke-linejoin="round" stroke-linecap="round"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3.4" fill="{colour}" stroke="#ffffff"/>'
                  for x, at in points]
        ends[row["peer"]] = points[-1][1]

    places = spread_out(ends)
    for row in rows:
        end, at, colour = ends[row["peer"]], places[row["peer"]], COLOURS[row["peer"]]
        parts.append(f'<path d="M{xs[-1] + 6:.1f} {end:.1f}L{left + PLOT + 12} {at:.1f}h5" fill="none" '
                     f'stroke="{colour}" stroke-opacity="0.6"/>')
        parts.append(text(left + PLOT + 21, at + 4, row["label"], "start", colour=colour, size=12,
                          weight=700 if row["peer"] == "ours" else 500))
    return parts


def spread_out(ends):
    """Moves labels apart that would overlap, keeping their order."""
    places, lowest = {}, TOP - LINE
    for key in sorted(ends, key=ends.get):
        lowest = places[key] = max(ends[key], lowest + LINE)
    ceiling = BOTTOM + LINE
    for key in sorted(places, key=places.get, reverse=True):
        ceiling = places[key] = min(places[key], ceiling - LINE)
    return places


def text(x, y, words, anchor, colour=INK, size=13, weight=400):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
            f'font-weight="{weight}">{escape(words)}</text>')


def ticks(low, high):
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [digit * 10**decade for decade in decades for digit in range(1, 10)]
    return [us for us in steps if low <= us <= high]


def round_down(us):
    power = 10 ** math.floor(math.log10(us))
    return int(us // power) * power


def round_up(us):
    power = 10 ** math.floor(math.log10(us))
    return math.ceil(us / power) * power


def tick_label(us):
    return f"{us:g} µs" if us < 1000 else f"{us / 1000:g} ms" if us < 1e6 else f"{us / 1e6:g} s"
