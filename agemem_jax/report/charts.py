"""Line charts as small inline SVG pictures: crisp at any size, readable on a phone, and nothing to load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Curve = list[tuple[int, float]]  # (update, value), ascending

WIDTH, HEIGHT = 260, 138
LEFT, RIGHT, TOP, BOTTOM = 36, 254, 10, 119  # of the plot inside the picture
SMOOTH_SHARE = 20  # the mean is smoothed over a window of this part of the updates


@dataclass(frozen=True)
class Chart:
    """One panel: heading, a remark beside it, first and last value of the mean, and the picture."""

    title: str
    note: str
    begin: str
    end: str
    svg: Markup


def line_chart(
    title: str,
    curves: Sequence[Curve],
    note: str = "",
    bounds: tuple[float, float] | None = None,
    stages: Sequence[tuple[int, int, int]] = (),
    over: str = "updates",
) -> Chart | None:
    """A thin line for every seed and a thick one for their mean; None if there is not a single value.

    Args:
      curves: one a seed; missing updates are skipped.
      bounds: value range that the axis shows at least; None = that of the data.
      stages: (first update, last update, stage) bands to shade behind the lines.
      over: what is counted along the axis, in words.
    """
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    mean = smooth(mean_curve(curves))
    values = [value for curve in curves for _, value in curve]
    low, high = min(values + list(bounds or ())), max(values + list(bounds or ()))
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(c[0][0] for c in curves), max(c[-1][0] for c in curves)

    def x(update: float) -> float:
        return LEFT + (RIGHT - LEFT) * (update - first) / max(1, last - first)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    def path(curve: Curve, name: str) -> str:
        if len(curve) == 1:
            return f'<circle class="{name}-dot" cx="{x(curve[0][0]):.1f}" cy="{y(curve[0][1]):.1f}" r="3"/>'
        points = "L".join(f"{x(update):.1f} {y(value):.1f}" for update, value in curve)
        return f'<path class="{name}" d="M{points}"/>'

    parts = []
    for begin, end, stage in stages:
        left, right = x(max(begin - 0.5, first)), x(min(end + 0.5, last))
        parts.append(f'<rect class="band s{stage}" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
                     f'height="{BOTTOM - TOP}"/>')  # fmt: skip
        parts.append(f'<text class="stage" x="{(left + right) / 2:.1f}" y="{TOP + 9}">stage {stage}</text>')
    for tick in ticks:
        name = "zero" if tick == 0 and low < 0 else "grid"
        parts.append(f'<line class="{name}" x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 5}" y="{y(tick) + 3:.1f}">{number(tick)}</text>')
    for update in sorted({first, (first + last) // 2, last}):
        anchor = "end" if update == last and last > first else "middle"
        parts.append(f'<text class="x" x="{x(update):.1f}" y="{BOTTOM + 14}" text-anchor="{anchor}">{update}</text>')
    parts += [path(curve, "seed") for curve in curves]
    parts.append(path(mean, "mean"))
    data = " ".join(f"{x(update):.1f},{y(value):.1f},{update},{number(value)}" for update, value in mean)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{Markup.escape(title)} over {over}" '
        f'data-top="{TOP}" data-bottom="{BOTTOM}" data-points="{data}">{"".join(parts)}</svg>'
    )
    return Chart(title, note, *(number(settle(value, high - low)) for value in (mean[0][1], mean[-1][1])), Markup(svg))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over the curves that have a value at an update."""
    by_update: dict[int, list[float]] = {}
    for curve in curves:
        for update, value in curve:
            by_update.setdefault(update, []).append(value)
    return [(update, sum(values) / len(values)) for update, values in sorted(by_update.items())]


def smooth(curve: Curve) -> Curve:
    """Centred moving average, over what there is of the window at the ends; short curves stay as they are."""
    half = -(-len(curve) // SMOOTH_SHARE // 2) if len(curve) >= SMOOTH_SHARE else 0
    windows = (curve[max(0, i - half) : i + half + 1] for i in range(len(curve)))
    return [
        (update, sum(value for _, value in window) / len(window))
        for (update, _), window in zip(curve, windows, strict=True)
    ]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that enclose low..high; at least two, never equal."""
    if high - low < 1e-12 * max(1.0, abs(low)):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(f * scale for f in (1, 2, 2.5, 5, 10) if f * scale >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def settle(value: float, span: float) -> float:
    """Rounds away what is less than a thousandth of the axis that a value is read on."""
    return round(value, max(0, 2 - math.floor(math.log10(span))))


def number(value: float | None) -> str:
    """A number as a person reads it: three digits that matter, thousands apart."""
    if value is None or not math.isfinite(value):
        return "–"
    value, size = value + 0.0, abs(value)  # no negative zero
    if size >= 1e6:
        text = f"{value / 1e6:.3g}M"
    elif size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 1e-3 or size == 0:
        text = f"{value:.3g}"
    else:
        text = f"{value:.1e}".replace("e-0", "e-")
    return text.replace("-", "−")
