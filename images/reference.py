"""The whole reference suite: ``python -m images.reference tier=quick``.

Runs every experiment of `images.experiments` that has no result yet, so that a stopped suite goes on where it was, and
writes for each ``<out>/<tier>/<system>/{row.json, samples.png, figure.png}``. Words: tier=quick|full|scenes,
only=ddpm,ddim, again=true, jobs=N (processes side by side), out=FOLDER, zoo=FOLDER.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import save_figure
from diffusion_core.run import launch, make_folder, options
from images.data.pictures import save_grid
from images.experiments import EXPERIMENTS
from images.lab import TIERS, Lab, Report

logger = logging.getLogger("workbench.images")
OUT = Path("benchmarks/results/images")


def write(report: Report, lab: Lab, name: str, folder: Path, seconds: float) -> None:
    """Write what an experiment found; ``row.json`` last, so that it stands for the whole."""
    make_folder(folder)
    save_grid(report.samples[:48].cpu(), folder / "samples.png", 12)
    save_figure(report.figure, folder / "figure.png")
    row = {
        "system": name,
        "title": report.title,
        "source": report.source,
        "idea": report.idea,
        "published": report.published,
        "variants": [asdict(variant) for variant in report.variants],
        "criterion": report.criterion,
        "shown": bool(report.shown),
        "verdict": report.verdict,
        "notes": report.notes,
        "tier": lab.tier.name,
        "task": lab.tier.task,
        "judge": lab.judge,
        "n": lab.tier.n,
        "training_seeds": 1,
        "command": f"python -m images.reference tier={lab.tier.name} only={name} again=true",
        "commit": results.commit(),
        "seconds": round(seconds, 1),
        "hardware": results.hardware(),
    }
    results.write_json(folder / "row.json", row)


def run(name: str, lab: Lab, out: Path) -> Report:
    """Make one experiment and write its files."""
    start = time.perf_counter()
    report: Report = importlib.import_module(f"images.experiments.{name}").experiment(lab)
    seconds = time.perf_counter() - start
    write(report, lab, name, out / lab.tier.name / name, seconds)
    logger.info("%s: %s (%s, %.0f s)", name, report.verdict, "shown" if report.shown else "not shown", seconds)
    return report


def main() -> None:
    """Read the words of the command, and run what is still to be done."""
    words = options(
        "reference", {"tier": "quick", "only": "", "again": "false", "jobs": "1", "out": str(OUT), "zoo": "runs/zoo"}
    )
    if words["tier"] not in TIERS:
        raise WorkbenchError(f"tier: got {words['tier']}; expected one of {', '.join(TIERS)}.")
    if not words["jobs"].isdecimal() or int(words["jobs"]) < 1:
        raise WorkbenchError(f"jobs: got {words['jobs']}; expected a number of processes, at least 1.")
    if words["again"] not in ("true", "false"):
        raise WorkbenchError(f"again: got {words['again']}; expected true or false.")
    names = tuple(words["only"].split(",")) if words["only"] else EXPERIMENTS
    if strangers := set(names) - set(EXPERIMENTS):
        raise WorkbenchError(f"only: got {', '.join(sorted(strangers))}; expected some of {', '.join(EXPERIMENTS)}.")
    out = Path(words["out"])
    todo = [n for n in names if words["again"] == "true" or not (out / words["tier"] / n / "row.json").exists()]
    logger.info("%d of %d experiments to run", len(todo), len(names))
    torch.set_num_threads(1)
    if int(words["jobs"]) == 1:
        lab = Lab(TIERS[words["tier"]], Path(words["zoo"]))
        failed = [name for name in todo if not _attempted(name, lab, out)]
    else:
        failed = _side_by_side(todo, words)
    if failed:
        raise WorkbenchError(f"reference: {', '.join(failed)} failed, as shown above; all others are written.")


def _attempted(name: str, lab: Lab, out: Path) -> bool:
    try:
        run(name, lab, out)
    except WorkbenchError as error:
        logger.error("%s: %s", name, error)
        return False
    return True


def _side_by_side(todo: list[str], words: dict[str, str]) -> list[str]:
    """Each experiment in a process of its own, so many at once; those that failed."""
    waiting, running, failed = list(todo), dict[str, subprocess.Popen[bytes]](), list[str]()
    shared = [f"{key}={words[key]}" for key in ("tier", "out", "zoo")]
    try:
        while waiting or running:
            while waiting and len(running) < int(words["jobs"]):
                name = waiting.pop(0)
                command = [sys.executable, "-m", "images.reference", *shared, f"only={name}", "again=true"]
                running[name] = subprocess.Popen(command)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    failed += [name] if process.returncode else []
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
    return failed


if __name__ == "__main__":
    launch(main)
