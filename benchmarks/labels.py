"""Labels beside the points of a picture, where they hide neither one another nor a point; called by plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# points of a typographer: half a marker, the gaps tried between a point and its label, beyond which a line joins them
MARKER, GAPS, JOINED = 4.0, (3.0, 10.0, 18.0, 28.0, 40.0), 5.0
DIRECTIONS = ((1, 1), (-1, -1), (1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1))


class Label(NamedTuple):
    """What stands beside the point (x, y), in the data's own units."""

    text: str
    x: float
    y: float


def put(axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]], colour: str, size: float) -> None:
    """Draws each label at the nearest place that is free, or, where none is, that hides least; to be called last, when the axes
    have their scales, limits and neighbours. points: all that are to stay visible."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    pixels = figure.dpi / 72
    spots = axes.transData.transform([(label.x, label.y) for label in labels])
    taken = [_box(x, y, 2 * MARKER * pixels, 2 * MARKER * pixels) for x, y in axes.transData.transform(list(points))]
    for label, spot in sorted(zip(labels, spots, strict=True), key=lambda pair: -pair[1][1]):
        text = axes.text(label.x, label.y, label.text, fontsize=size)
        extent = text.get_window_extent()
        text.remove()
        gap, box = min(
            _candidates(spot, extent.width, extent.height, pixels),
            key=lambda candidate: (_hidden(candidate[1], taken, axes.bbox), candidate[0]),
        )
        taken.append(box)
        shift = ((box.x0 + box.x1) / 2 - spot[0]) / pixels, ((box.y0 + box.y1) / 2 - spot[1]) / pixels
        line = (
            {"arrowstyle": "-", "lw": 0.4, "color": colour, "shrinkA": 0, "shrinkB": MARKER} if gap > JOINED else None
        )
        axes.annotate(
            label.text, (label.x, label.y), shift, textcoords="offset points", ha="center", va="center", fontsize=size,
            color=colour, arrowprops=line,
        )  # fmt: skip


def _candidates(spot: tuple[float, float], width: float, height: float, pixels: float) -> Iterator[tuple[float, Bbox]]:
    """Gap and box of every place tried around a point, the nearest first."""
    for gap in GAPS:
        for right, up in DIRECTIONS:
            away = (gap + MARKER / 2) * pixels
            yield gap, _box(spot[0] + right * (away + width / 2), spot[1] + up * (away + height / 2), width, height)


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    return Bbox.from_extents(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _hidden(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Pixels of a box that are taken or lie outside."""
    common = [Bbox.intersection(box, other) for other in taken]
    within = Bbox.intersection(box, inside)
    outside = box.width * box.height - (within.width * within.height if within is not None else 0.0)
    return outside + sum(part.width * part.height for part in common if part is not None)
