"""Turns the runs of a benchmark into medians, ratios, a Markdown table and a picture."""
import math
import statistics
from html import escape

PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max"}
NEEDED = {"p99": 100, "p999": 1000}  # with fewer calls a percentile equals the maximum
PANELS = {"one": "One call at a time", "many": "64 calls in flight on one connection",
          "servers": "4 at work at prefetch 1, 64 calls in flight from one C client"}
DRAWN = ("one", "many")
WORDS = {"one": "one at a time", "many": "64 in flight", "servers": "to 4 servers"}
BASES = ("c", "c-processes")  # the others are compared with these
METRICS = {
    "calls_per_second": lambda run: run["calls_per_second"],
    "p99": lambda run: run["latency_us"]["p99"],
    "client_cpu": lambda run: run["client_cpu_seconds"] / run["requests"],
    "server_cpu": lambda run: run["server_cpu_seconds"] / run["requests"],
    "broker_cpu": lambda run: run["broker_cpu_seconds"] / run["requests"],
}
TITLES = {"calls_per_second": "calls/s", "p99": "p99", "client_cpu": "client CPU", "server_cpu": "server CPU"}


def summarize(runs, labels):
    """Medians over the rounds, and the ratios to the C pair, round by round."""
    rows = []
    for panel in PANELS:
        keys = [key for key in labels if by_round(runs, panel=panel, peer=key)]
        base = next((key for key in keys if key in BASES), keys[0] if keys else None)
        for key in keys:
            mine = by_round(runs, panel=panel, peer=key)
            rows.append({
                "peer": key,
                "label": labels[key],
                "panel": panel,
                "requests_per_round": next(iter(mine.values()))["requests"],
                "calls_per_second": middle(mine, METRICS["calls_per_second"]),
                "latency_us": {name: middle(mine, lambda run: run["latency_us"][name]) for name in PERCENTILES},
                **{f"{who}_cpu_us_per_call": middle(mine, METRICS[f"{who}_cpu"]) * 1e6
                   for who in ("client", "server", "broker")},
                "client_max_rss_mib": middle(mine, lambda run: run["client_max_rss_kib"]) / 1024,
                "ratio": {"of": base} | ratios(mine, by_round(runs, panel=panel, peer=base)),
            })
    return rows


def summarize_starts(runs, labels):
    first_answer = {"first_answer_us": lambda run: statistics.median(run["first_answer_us"])}
    keys = [key for key in labels if by_round(runs, peer=key)]
    base = next((key for key in keys if key in BASES), keys[0] if keys else None)
    return [{
        "peer": key,
        "label": labels[key],
        "first_answer_us": middle(by_round(runs, peer=key), first_answer["first_answer_us"]),
        "ratio": {"of": base} | ratios(by_round(runs, peer=key), by_round(runs, peer=base), first_answer),
    } for key in keys]


def compared(runs, panel, peer, base):
    """The ratio of two peers' calls per second, or None unless both were measured."""
    mine, other = (by_round(runs, panel=panel, peer=key) for key in (peer, base))
    return ratios(mine, other)["calls_per_second"] if mine and other else None


def by_round(runs, **case):
    return {run["round"]: run for run in runs if all(run[key] == case[key] for key in case)}


def middle(runs, metric):
    return statistics.median(map(metric, runs.values()))


def ratios(mine, base, metrics=METRICS):
    return {name: spread([metric(mine[number]) / metric(base[number]) for number in mine if number in base])
            for name, metric in metrics.items()}


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def markdown(results):
    lines = [machine_line(results["machine"]), ""]
    for panel, title in PANELS.items():
        rows = [row for row in results["summary"] if row["panel"] == panel]
        if not rows:
            continue
        base = base_name(rows)
        lines += [
            f"**{title}**",
            "",
            "| | calls/s | p50 | p99 | CPU per call: client + server + broker | client memory | "
            + " | ".join(f"{name} ÷ {base}" for name in TITLES.values()) + " |",
            "|---|" + "---:|" * (5 + len(TITLES)),
        ]
        for row in rows:
            cells = [
                row["label"],
                f"{row['calls_per_second']:,.0f}",
                duration(row["latency_us"]["p50"]),
                duration(row["latency_us"]["p99"]),
                " + ".join(f"{row[f'{who}_cpu_us_per_call']:.0f}" for who in ("client", "server", "broker")) + " µs",
                f"{row['client_max_rss_mib']:.0f} MiB",
                *(ratio(row, name) for name in TITLES),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += starts_table(results["start"], results["options"]["starts"]) if results["start"] else []
    ours, c = results["tls"]
    if ours:
        beside = f"; the C pair at {ratio_text(c)}" if c else ""
        lines += [f"One call at a time goes through TLS at {ratio_text(ours)} of the rate{beside}.", ""]
    lines += [f"{footnote(results, PANELS)} The ratios compare round by round: median (least to greatest). The "
              "client's CPU includes its start.", ""]
    return "\n".join(lines)


def starts_table(rows, starts):
    lines = ["**From the start of a client process to its first answer**", "",
             f"| | median | time ÷ {base_name(rows)} |", "|---|---:|---:|"]
    lines += [f"| {row['label']} | {duration(row['first_answer_us'])} | {ratio(row, 'first_answer_us')} |"
              for row in rows]
    return lines + ["", f"{starts} starts a round, to one server.", ""]


def base_name(rows):
    base = rows[0]["ratio"]["of"]
    return "C" if base in BASES else next(row["label"] for row in rows if row["peer"] == base)


def machine_line(machine):
    return (f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, RabbitMQ "
            f"{machine['rabbitmq'].partition('-')[0]}; client, server and broker on this one machine.")


def footnote(results, panels):
    parts = []
    for panel in panels:
        sizes = {row["requests_per_round"] for row in results["summary"] if row["panel"] == panel}
        if sizes:
            slow = f" ({min(sizes):,} where slow)" if len(sizes) > 1 else ""
            parts.append(f"{max(sizes):,} calls {WORDS[panel]}{slow}")
    return (f"Medians of {results['options']['rounds']} rounds, each of {', '.join(parts)}; "
            f"{results['foreign_cpu_share']:.0%} of the CPU went elsewhere. A ratio is the median of the "
            "rounds' ratios, so it differs from the ratio of two medians.")


def ratio(row, name):
    return "" if row["peer"] == row["ratio"]["of"] else ratio_text(row["ratio"][name])


def ratio_text(values):
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def duration(us):
    if us < 1000:
        return f"{us:.0f} µs"
    return f"{us / 1000:.1f} ms" if us < 100_000 else f"{us / 1e6:.2f} s"


# The picture. The colours are Okabe and Ito's, which are also distinct with colour blindness.
# The background is painted, so that the text is readable on a dark page.

COLOURS = {"ours": "#d55e00", "ours-tls": "#6b4fa0", "ours-threads": "#cc79a7", "c": "#0072b2", "nodelay": "#009e73",
           "python": "#8a6d00", "amiquip": "#56a0c9"}
INK, SOFT, GRID, FAINT = "#1f2328", "#59636e", "#d1d9e0", "#eff2f5"
WIDTH, HEIGHT, TOP, BOTTOM, LEFT = 980, 448, 100, 378, 72
PLOT, LABELS, LINE = 258, 192, 17  # widths of a plot and of its labels, a label's height


def svg(results):
    summary = [row for row in results["summary"] if row["peer"] in COLOURS]
    values = [row["latency_us"][name] for row in summary for name in PERCENTILES]
    low, high = round_down(min(values)), round_up(max(values))

    def y(us):
        return BOTTOM - (math.log10(us / low) / math.log10(high / low)) * (BOTTOM - TOP)

    parts = sheet(HEIGHT, "Latency percentiles of one RPC call, by program",
                  "Latency of one RPC call (lower is better)", machine_line(results["machine"]))
    shown = [name for name in DRAWN if any(row["panel"] == name for row in summary)]
    for index, name in enumerate(shown):
        rows = [row for row in summary if row["panel"] == name]
        left = LEFT + index * (PLOT + LABELS + 4)
        parts += panel(left, PANELS[name], rows, y, ticks(low, high), numbered=index == 0)
    parts.append(text(24, HEIGHT - 18, f"{footnote(results, DRAWN)} Logarithmic scale.", "start", colour=SOFT, size=12))
    return "\n".join(parts + ["</svg>", ""])


def sheet(height, description, title, subtitle):
    """The start of a picture: its size, its background and its heading."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" font-family="-apple-system, \'Segoe UI\', \'Noto Sans\', '
        f'Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">',
        f"<title>{escape(description)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        text(24, 34, title, "start", size=18, weight=600),
        text(24, 55, subtitle, "start", colour=SOFT, size=12),
    ]


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
        parts += curve(points, colour, 3.2 if row["peer"] == "ours" else 2)
        ends[row["peer"]] = points[-1][1]

    places = spread_out(ends)
    for row in rows:
        end, at, colour = ends[row["peer"]], places[row["peer"]], COLOURS[row["peer"]]
        parts.append(f'<path d="M{xs[-1] + 6:.1f} {end:.1f}L{left + PLOT + 12} {at:.1f}h5" fill="none" '
                     f'stroke="{colour}" stroke-opacity="0.6"/>')
        parts.append(text(left + PLOT + 21, at + 4, row["label"], "start", colour=colour, size=12,
                          weight=700 if row["peer"] == "ours" else 500))
    return parts


def curve(points, colour, width):
    line = " ".join(f"{x:.1f},{at:.1f}" for x, at in points)
    return [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}" '
            'stroke-linejoin="round" stroke-linecap="round"/>'] + [
        f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3.4" fill="{colour}" stroke="#ffffff"/>' for x, at in points]


def spread_out(ends):
    """Moves overlapping labels apart and keeps their order."""
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
