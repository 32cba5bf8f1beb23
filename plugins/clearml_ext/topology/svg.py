"""The picture of a topology: controllers, queues, workers and slots; what is stuck in red.

SVG is written here, in plain text; HTML carries the same SVG in one file.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from clearml_ext.topology.file import write
from clearml_ext.topology.layout import Drawing, Line, lay_out
from mlops_ext.errors import TopologyError
from mlops_ext.queues.check import Topology, Verdict

FILL = {"controller": "#e8eefc", "step": "#f4f4f6", "queue": "#fff6dc", "worker": "#e6f5ea"}
EDGE = {"controller": "#4a6fd0", "step": "#8a8a94", "queue": "#c9a227", "worker": "#3f9a5c"}
RED, PALE_RED, GREY, INK = "#c62828", "#fdecea", "#9aa0a6", "#202124"
FONT = "DejaVu Sans, Verdana, Arial, sans-serif"


def draw(topology: Topology, verdict: Verdict, path: Path) -> None:
    """Draw *topology* into *path*; its ending says the format.

    Raises:
        TopologyError: the ending is neither .svg nor .html, or the file cannot be written.
    """
    make = {".svg": to_svg, ".html": to_html, ".htm": to_html}.get(path.suffix.casefold())
    if make is None:
        raise TopologyError("the picture's name", path.name, "an ending in .svg or .html")
    write(path, make(lay_out(topology, verdict)))


def to_svg(drawing: Drawing) -> str:
    """*drawing* as an SVG document."""
    width, height = drawing.width, drawing.height
    size = f'width="{width:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width:.0f} {height:.0f}"',
        f' font-family="{FONT}" font-size="12">',
        f"<title>{escape(drawing.title)}</title>",
        f'<rect {size} fill="white"/>',
        "<defs>",
        _arrow_head("grey", GREY),
        _arrow_head("red", RED),
        "</defs>",
    ]
    lines = sorted(drawing.lines, key=lambda each: each.stuck)
    parts += [_path(line) for line in lines if not line.holds]
    for box in drawing.boxes:
        fill = PALE_RED if box.stuck else FILL[box.kind]
        edge = RED if box.stuck else EDGE[box.kind]
        parts.append(
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}"'
            f' height="{box.height:.1f}" rx="6" fill="{fill}" stroke="{edge}"'
            f' stroke-width="{2.2 if box.stuck else 1.2}"><title>{escape(box.full)}</title></rect>'
        )
        parts += [
            f'<text x="{box.x + 9:.1f}" y="{box.y + 18 + 15 * at:.1f}" fill="{INK}"'
            f"{' font-weight=' + chr(34) + 'bold' + chr(34) if at == 0 else ''}>"
            f"{escape(text)}</text>"
            for at, text in enumerate(box.texts)
        ]
    parts += [_path(line) for line in lines if line.holds]  # over the queues between
    parts += [
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{RED if red else INK}"'
        f' font-size="{size}">{escape(text)}</text>'
        for x, y, size, red, text in drawing.captions
    ]
    return "\n".join([*parts, "</svg>", ""])


def _path(line: Line) -> str:
    colour = RED if line.stuck else GREY
    pattern = "2 4" if line.holds else "6 4"
    dash = f' stroke-dasharray="{pattern}"' if line.holds or line.dashed else ""
    start, end = line.start, line.end
    x1, y1, x2, y2 = start.x + start.width, start.middle, end.x, end.middle
    bend = (x2 - x1) / 2
    return (
        f'<path d="M{x1:.1f},{y1:.1f} C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f}'
        f' {x2:.1f},{y2:.1f}" fill="none" stroke="{colour}"'
        f' stroke-width="{2.4 if line.stuck else 1.1}"{dash}'
        f' marker-end="url(#{"red" if line.stuck else "grey"})"/>'
    )


def _arrow_head(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        f'<path d="M0,0 L9,4 L0,8 z" fill="{colour}"/></marker>'
    )


def to_html(drawing: Drawing) -> str:
    """*drawing* as one HTML file that needs nothing else."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(drawing.title)}</title>"
        "<style>body{margin:2rem;font-family:sans-serif}svg{max-width:100%;height:auto}</style>"
        f"</head><body>\n{to_svg(drawing)}</body></html>\n"
    )
