"""Rewrite the tables between ``<!-- name -->`` marks in README.md and docs/ from the files in benchmarks/results.

``python -m benchmarks.render`` (or ``make bench``); with ``--check`` it only says whether README is up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

from benchmarks.tables import ROOT, core, images, materials, planning, policy

TABLES: dict[str, Callable[[], str]] = {
    **core.TABLES,
    **policy.TABLES,
    **planning.TABLES,
    **materials.TABLES,
    **images.TABLES,
}


def render(text: str) -> str:
    """``text`` with every marked table made anew."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            continue
        text = pattern.sub(rf"\g<1>{table()}\n\g<2>", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a page is out of date")
    check = parser.parse_args().check
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = page.read_text()
        new = render(old)
        if check and new != old:
            sys.exit(f"error: {page.name} is not what benchmarks/results say; run python -m benchmarks.render")
        if not check:
            page.write_text(new)


if __name__ == "__main__":
    main()
