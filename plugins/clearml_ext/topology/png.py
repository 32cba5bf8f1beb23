"""A drawing as PNG, by matplotlib without a display."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from clearml_ext.topology.layout import EDGE, FILL, GREY, INK, PALE_RED, RED, Drawing

__all__ = ["to_png"]

_DPI = 100
_SCALE = 1.5
"""Pixels of the picture per pixel of the drawing, so that small text stays legible."""
_POINTS = 0.72


def to_png(drawing: Drawing) -> bytes:
    """The bytes of a PNG file."""
    figure = Figure(figsize=(drawing.width / _DPI, drawing.height / _DPI), dpi=_DPI * _SCALE)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.axis("off")
    for line in sorted(drawing.lines, key=lambda each: each.stuck):
        axes.add_patch(
            FancyArrowPatch(
                line.start,
                line.end,
                arrowstyle="-|>",
                mutation_scale=11,
                shrinkA=0,
                shrinkB=0,
                linewidth=2 if line.stuck else 0.9,
                linestyle=":" if line.holds else (0, (4, 3)) if line.dashed else "solid",
                color=RED if line.stuck else GREY,
            )
        )
    for box in drawing.boxes:
        axes.add_patch(
            FancyBboxPatch(
                (box.x + 5, box.y + 5),
                box.width - 10,
                box.height - 10,
                boxstyle="round,pad=5",
                facecolor=PALE_RED if box.stuck else FILL[box.kind],
                edgecolor=RED if box.stuck else EDGE[box.kind],
                linewidth=1.8 if box.stuck else 1,
            )
        )
        for at, text in enumerate(box.texts):
            axes.text(
                box.x + 9,
                box.y + 18 + 15 * at,
                text,
                fontsize=11 * _POINTS,
                color=INK,
                weight="bold" if at == 0 else "normal",
                parse_math=False,
            )
    for x, y, size, red, text in drawing.captions:
        colour = RED if red else INK
        axes.text(x, y, text, fontsize=size * _POINTS, color=colour, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI * _SCALE)
    return buffer.getvalue()
