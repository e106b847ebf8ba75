"""Images and video."""

from __future__ import annotations

from functools import partial

from benchmarks.tables import RESULTS, load, markdown
from images import gallery


def images_of(tier: str) -> str:
    """The systems of the literature in one tier: what was compared, what was seen."""
    rows = []
    for _, row in gallery.rows(RESULTS / "images", tier):
        seen = "yes" if row["shown"] else "**no**"
        rows.append([f"[{row['title']}](../benchmarks/results/images/{tier}/{row['system']})", row["verdict"], seen])
    return markdown(["system", "what was measured", "the paper's effect"], rows) if rows else "Not run yet."


def scenes_judge() -> str:
    """What the judge of the captioned world reads right."""
    r = load("scenes_judge")
    cells = {(row["tier"], row["size"], row["pictures"]): row for row in r["rows"]}
    kinds = list(dict.fromkeys(pictures for _, _, pictures in cells))
    rows = [
        [
            str(tier),
            str(size),
            *(f"{cells[tier, size, kind]['all']['value']:.4f}" for kind in kinds),
            f"{min(cells[tier, size, kind]['read_per_s'] for kind in kinds):,}",
        ]
        for tier, size in dict.fromkeys((tier, size) for tier, size, _ in cells)
    ]
    names = {"noise": f"noise {r['noise']}", "blur": f"blur {r['blur_px']} px"}
    return markdown(["tier", "pixels", *(names.get(kind, kind) for kind in kinds), "read a second"], rows)


def image_throughput() -> str:
    """Images per second at each batch size."""
    r, rows = load("image_throughput"), []
    names = list(r["rows"][0]["images_per_second"])
    for row in r["rows"]:
        ratio, speed = row["ratio"], row["images_per_second"]
        apart = max(value for name, value in row["largest_difference"].items() if name != "diffusers")
        cells = [f"{speed[name]:.1f}" for name in names]
        rows.append([str(row["batch"]), *cells, f"{ratio['value']:.3f} ± {ratio['stderr']:.3f}", f"{apart:.0e}"])
    return markdown(["batch", *(f"{n}, images/s" for n in names), "ours : diffusers", "largest difference"], rows)


TABLES = {
    "images_quick": partial(images_of, "quick"),
    "images_full": partial(images_of, "full"),
    "images_scenes": partial(images_of, "scenes"),
    "image_throughput": image_throughput,
    "scenes_judge": scenes_judge,
}
