"""Self-contained HTML pages: figures and videos inside, nothing fetched, readable in light and dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from diffusion_core.durable import write_text
from diffusion_core.results import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, WARM, MUTED = "#1f2933", "#2563a8", "#c2571a", "#8a94a0"
"""The colours of all figures: text, first series, second series, background series."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6672; --line: #dde2e8; --card: #f6f8fa; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #9aa5b1; --line: #333c46; --card: #1c232b; --page: #12171d; }
  img { background: #fff; border-radius: 6px; }
}
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--page); max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 12px; }
p { margin: 8px 0; } .soft, figcaption { color: var(--soft); font-size: 14px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 20px 0; }
.number { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.number b { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.number span { display: block; font-size: 13px; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } tr.mine td { font-weight: 600; background: var(--card); }
.scroll { overflow-x: auto; margin: 12px 0; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
details td, details th { white-space: nowrap; font-size: 14px; }
details td:first-child { position: sticky; left: 0; background: var(--page); white-space: normal; min-width: 120px; }
figure { margin: 12px 0; } figure img { width: 100%; height: auto; }
figure.pixels img { image-rendering: pixelated; }
.links { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 6px 16px; padding: 0;
  margin: 16px 0; list-style: none; } a { color: inherit; text-decoration-color: var(--soft); }
.badge { font-size: 13px; font-weight: 600; border-radius: 99px; padding: 2px 10px; border: 1px solid var(--line);
  background: var(--card); white-space: nowrap; } .badge.yes { color: #1a7f4e; } .badge.no { color: #b4541a; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 12px; }
.videos figure { margin: 0; } video { width: 100%; border-radius: 6px; border: 1px solid var(--line); display: block; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px;
  overflow-x: auto; font-size: 13px; line-height: 1.45; }
"""


class Page:
    """A page built from top to bottom; `write` makes it one file."""

    def __init__(self, title: str, subtitle: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1><p class='soft'>{html.escape(subtitle)}</p>"]

    def heading(self, text: str, anchor: str = "", badge: tuple[str, bool] | None = None) -> None:
        """A section's heading, that a link can lead to, with a word beside it that says yes or no."""
        mark = f" <span class='badge {'yes' if badge[1] else 'no'}'>{html.escape(badge[0])}</span>" if badge else ""
        name = f" id='{html.escape(anchor, quote=True)}'" if anchor else ""
        self._parts.append(f"<h2{name}>{html.escape(text)}{mark}</h2>")

    def links(self, entries: Sequence[tuple[str, str]]) -> None:
        """Links (text, anchor) to headings of this page."""
        items = [
            f"<li><a href='#{html.escape(anchor, quote=True)}'>{html.escape(text)}</a></li>" for text, anchor in entries
        ]
        self._parts.append(f"<ul class='links'>{''.join(items)}</ul>")

    def text(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        """A block to be copied."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def numbers(self, values: Mapping[str, Estimate]) -> None:
        """Headline figures with interval, n and unit."""
        cards = []
        for name, e in values.items():
            unit = "" if e.unit == "1" else f" {html.escape(e.unit)}"
            value = "none" if e.n == 0 else f"{e.value:.3g}"
            interval = "" if e.n < 2 else f"95 % interval {e.low:.3g} to {e.high:.3g}, "
            cards.append(
                f"<div class='number'><span>{html.escape(name)}</span><b>{value}</b>"
                f"<span>{interval}n = {e.n}{unit and ','}{unit}</span></div>"
            )
        self._parts.append(f"<div class='numbers'>{''.join(cards)}</div>")

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], mine: int | None = None, folded: str = ""
    ) -> None:
        """A table; row ``mine`` is set off. ``folded``: only this line of it is shown until a reader opens it."""
        lines = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head) + "</tr>"]
        for i, row in enumerate(rows):
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            lines.append(f"<tr class='mine'>{cells}</tr>" if i == mine else f"<tr>{cells}</tr>")
        table = f"<div class='scroll'><table>{''.join(lines)}</table></div>"
        if folded:
            table = f"<details><summary>{html.escape(folded)}</summary>{table}</details>"
        self._parts.append(table)

    def figure(self, path: Path, caption: str, pixels: bool = False) -> None:
        """A PNG, embedded; ``pixels``: enlarged without smoothing."""
        kind = " class='pixels'" if pixels else ""
        self._parts.append(
            f"<figure{kind}><img alt='{html.escape(caption, quote=True)}' src='data:image/png;base64,{_base64(path)}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def videos(self, paths: Sequence[Path], captions: Sequence[str]) -> None:
        """A grid of MP4 videos, embedded, playing in a loop."""
        cells = [
            f"<figure><video autoplay loop muted playsinline controls src='data:video/mp4;base64,{_base64(path)}'>"
            f"</video><figcaption>{html.escape(caption)}</figcaption></figure>"
            for path, caption in zip(paths, captions, strict=True)
        ]
        self._parts.append(f"<div class='videos'>{''.join(cells)}</div>")

    def write(self, path: Path) -> Path:
        """Write the page, completely or not at all."""
        head = (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body>"
        )
        write_text(path, head + "\n".join(self._parts) + "</body></html>\n")
        return path


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a matplotlib figure as PNG and release it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    path.write_bytes(buffer.getvalue())
    return path


def subplots(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure in the house style (inches), drawn without a display; axes as a 2-D array."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
        }
    )
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float) -> Path:
    """Write (height, width, 3) uint8 frames as H.264, which every browser plays; even sizes only."""
    import imageio.v3 as iio

    clip = np.stack(frames)
    clip = clip[:, : clip.shape[1] // 2 * 2, : clip.shape[2] // 2 * 2]
    iio.imwrite(path, clip, plugin="pyav", codec="libx264", fps=fps, out_pixel_format="yuv420p")
    return path


def side_by_side(
    films: Sequence[Sequence[np.ndarray]], width: int, most: int = 1600, gap: int = 4
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Films of one size as one film, ``width`` in a row on white; one that is over keeps its last frame, paler.

    Args:
        films: each of at least one frame (height, width, 3) uint8.
        most: pixels across; films are shrunk by the least whole factor that fits.
        gap: between two, in pixels.
    """
    columns = min(width, len(films))
    factor = -(-columns * (films[0][0].shape[1] + gap) // most)
    small = [[shrunk(frame, factor) for frame in film] for film in films]
    height, across = small[0][0].shape[:2]
    rows = -(-len(films) // columns)
    found = []
    for step in range(max(map(len, small))):
        frame = np.full((rows * (height + gap) - gap, columns * (across + gap) - gap, 3), 255, np.uint8)
        for k, film in enumerate(small):
            top, left = k // columns * (height + gap), k % columns * (across + gap)
            frame[top : top + height, left : left + across] = film[step] if step < len(film) else film[-1] // 2 + 127
        found.append(frame)
    return found


def shrunk(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The mean of blocks of ``factor`` x ``factor`` pixels; what does not fill a block is cut off."""
    height, width = (n // factor * factor for n in image.shape[:2])
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
