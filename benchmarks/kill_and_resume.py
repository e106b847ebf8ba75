"""Kill a training with SIGKILL at random moments, resume it each time, compare with a run that was left alone.

``python -m benchmarks.kill_and_resume --kills 20`` writes ``benchmarks/results/kill_and_resume.json``. Of five kills
four come up to a second after the process has trained its first step, and one anywhere in its first four seconds:
imports, data, the loading of the checkpoint. A checkpoint is written every 20 steps, so some fall into a write.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from diffusion_core import checkpoint, results
from diffusion_core.run import read_metrics
from envs.pusht_generate import Recipe
from policy.data.recording import record
from policy.data.replay import ReplayBuffer

ROOT = Path(__file__).resolve().parent.parent
FILES = ("model.safetensors", "training.safetensors")


def demonstrations(path: Path, episodes: int = 6) -> Path:
    """A store of a few short episodes of the scripted expert, starting near the goal."""
    arrays = [e for _, e in record(Recipe(starts="near_goal"), range(episodes), 1, False)]
    ReplayBuffer.from_episodes(arrays).save(path)
    return path


def overrides(data: Path, runs: Path, steps: int, checkpoint_every: int) -> list[str]:
    """A training that is all loop: a small network, eight-step episodes to judge it by."""
    return [
        f"data.source={data}",
        f"runs={runs}",
        "preset=smoke",
        f"train.steps={steps}",
        f"train.checkpoint_every={checkpoint_every}",
        "train.log_every=1",
        "train.gradient_clip=1.0",
        "task.env.max_steps=8",
        "evaluation.n=1",
        "evaluation.film=0",
    ]


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """``python -m policy.train <words>``; what it says goes to the end of ``log``."""
    with log.open("a") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "policy.train", *words],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def only_run(runs: Path) -> Path | None:
    """The run in ``runs``, once it is there."""
    found = sorted(p.parent for p in runs.glob("*/*/config.yaml"))
    return found[-1] if found else None


def last_step(run: Path | None) -> int:
    """The last optimizer step that was recorded."""
    return max((r["step"] for r in read_metrics(run)), default=0) if run else 0


def finish(words: Sequence[str], log: Path) -> None:
    """Train to the end."""
    if status := start(words, log).wait():
        raise RuntimeError(f"training ended with status {status}:\n{log.read_text()[-3000:]}")


def killed(
    words: Sequence[str], runs: Path, kills: int, log: Path, rng: random.Random, longest: float = 1.0
) -> tuple[Path, list[int]]:
    """Train with ``kills`` kills on the way; returns the run and the steps at which it was killed.

    Args:
        longest: seconds that a process trains at most before it is killed.
    """
    steps: list[int] = []
    for i in range(kills):
        run = only_run(runs)
        before = _life(run)
        process = start([f"resume={run}"] if run else words, log)
        if i % 5 == 4:
            _wait(process, rng.uniform(0.0, 4.0))
        else:
            while process.poll() is None and not _trains(only_run(runs), before):
                time.sleep(0.02)
            _wait(process, rng.uniform(0.0, longest))
        if process.poll() is not None:
            raise RuntimeError(
                f"the training ended by itself (status {process.returncode}) before kill {i + 1} of {kills}: give it "
                f"more steps\n{log.read_text()[-3000:]}"
            )
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps.append(last_step(only_run(runs)))
    run = only_run(runs)
    finish([f"resume={run}"] if run else words, log)
    run = only_run(runs)
    assert run is not None
    return run, steps


def digests(run: Path) -> dict[str, str]:
    """Of the files of the newest checkpoint."""
    newest = checkpoint.listing(run)[-1]
    return {name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in FILES}


def records(run: Path) -> list[dict[str, object]]:
    """What a run recorded, without its speed."""
    return [{k: v for k, v in r.items() if k != "steps_per_second"} for r in read_metrics(run)]


def _life(run: Path | None) -> int:
    """Another number whenever a process has begun to write records: a resumed run replaces the file."""
    file = run / "metrics.jsonl" if run else None
    return file.stat().st_ino if file and file.exists() else 0


def _trains(run: Path | None, before: int) -> bool:
    """Whether a process that began after `_life` was ``before`` has recorded a step."""
    if run is None or _life(run) in (0, before):
        return False
    saved = checkpoint.listing(run)
    return last_step(run) > (checkpoint.load(saved[-1]).step if saved else 0)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kill_and_resume.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        data = demonstrations(here / "expert.zarr.zip")
        quiet = overrides(data, here / "undisturbed", asked.steps, 20)
        finish(quiet, here / "undisturbed.log")
        undisturbed = only_run(here / "undisturbed")
        assert undisturbed is not None
        words = overrides(data, here / "killed", asked.steps, 20)
        run, steps = killed(words, here / "killed", asked.kills, here / "killed.log", random.Random(asked.seed))
        one, other = digests(undisturbed), digests(run)
        equal_records = records(undisturbed) == records(run)
    found = {
        "what": "sha256 of the final checkpoint of an undisturbed run and of one killed with SIGKILL and resumed",
        "command": f"python -m benchmarks.kill_and_resume --kills {asked.kills} --steps {asked.steps} "
        f"--seed {asked.seed}",
        "kills": asked.kills,
        "killed_at_steps": steps,
        "steps": asked.steps,
        "checkpoint_every": 20,
        "undisturbed": one,
        "killed_and_resumed": other,
        "equal": one == other,
        "records_equal": equal_records,
        "commit": results.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": results.hardware(),
    }
    results.write_json(asked.out, found)
    print(f"killed at steps {steps}")
    print(f"weights and optimizer equal: {found['equal']}; records equal: {equal_records}; {asked.out}")
    if not (found["equal"] and equal_records):
        sys.exit("error: the killed and resumed run did not end where the undisturbed one did")


if __name__ == "__main__":
    main()
