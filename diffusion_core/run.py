"""A run: one folder with everything that a training leaves, and the only place with progress bars.

runs/<date>/<domain>-<task>-<time>/{config.yaml, metrics.jsonl, log.txt, checkpoints/, ...}
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ContextDecorator
from pathlib import Path
from typing import Any, TypeVar

from diffusion_core.durable import write_text
from diffusion_core.errors import WorkbenchError

logger = logging.getLogger("workbench")
Item = TypeVar("Item")


class Run:
    """A run's folder.

    Args:
        path: the folder; it must exist.
        main: whether this process writes; the others of a distributed training only compute.
    """

    def __init__(self, path: Path, main: bool = True) -> None:
        self.path = path
        self.main = main

    @classmethod
    def create(cls, root: Path, name: str, main: bool = True) -> Run:
        """A new folder ``root/<date>/<name>-<time>``; a number is added if it is taken."""
        now = time.localtime()
        base = root / time.strftime("%Y-%m-%d", now) / f"{name}-{time.strftime('%H%M%S', now)}"
        for attempt in range(100):
            path = base if attempt == 0 else base.with_name(f"{base.name}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise _no_folder(path, error) from None
            return cls(path, main)
        raise WorkbenchError(f"run folder: {base} and 99 more exist; choose another runs folder.")

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    def log_to_file(self) -> None:
        """Copy the log to ``log.txt``."""
        if self.main:
            handler = logging.FileHandler(self.path / "log.txt")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logging.getLogger("workbench").addHandler(handler)

    def record(self, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``."""
        if self.main:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All records so far; a line cut short by a kill is left out."""
        return read_metrics(self.path)

    def forget_after(self, step: int) -> None:
        """Drop records of steps after ``step``: a resumed run writes them again."""
        file = self.path / "metrics.jsonl"
        if self.main and file.exists():
            kept = [json.dumps(r) + "\n" for r in self.metrics() if r.get("step", 0) <= step]
            write_text(file, "".join(kept))

    def progress(self, items: Iterable[Item], description: str, total: int | None = None, initial: int = 0) -> Any:
        """``items`` behind a progress bar (main process only); the bar's ``set_postfix`` shows numbers."""
        from tqdm import tqdm

        return tqdm(
            items,
            desc=description,
            total=total,
            initial=initial,
            disable=not self.main,
            dynamic_ncols=True,
            mininterval=0.5,
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run's ``metrics.jsonl``; none if there is no such file."""
    file = path / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: left out a line that was cut short", file)
    return records


def make_folder(path: Path) -> Path:
    """``path``, made if it is not there.

    Raises:
        WorkbenchError: it cannot be made, or written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(path, error) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise WorkbenchError(f"folder: cannot write into {path}; expected a place to write: choose another.")
    return path


def _no_folder(path: Path, error: OSError) -> WorkbenchError:
    return WorkbenchError(f"folder: cannot make {path} ({error.strerror}); expected a place to write: choose another.")


def launch(main: Callable[[], None]) -> None:
    """Run an entry point: user errors become one line and status 2, Ctrl-C status 130.

    Hydra's own errors (an unknown override, a wrong type) are shown in the same form.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Hydra would print its own multi-line report and exit; we want the exception
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with one_line_errors():
        try:
            main()
        except (HydraException, OmegaConfBaseException) as error:
            reasons = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
            text = "; ".join(" ".join(reason.split()) for reason in dict.fromkeys(reasons))
            # the schema is closed, so Hydra's advice to add the key with a + cannot work; nor does its search path help
            text = re.sub(r" To append to your config use \S+| full_key: .*?(?=;|$)| Config search path: .*", "", text)
            raise WorkbenchError(f"{text} (python -m {_module()} --help lists every key)") from error


def command(program: str) -> str:
    """How this process was started, for a results file.

    Args:
        program: the module that was run.
    """
    return f"python -m {program} {shlex.join(sys.argv[1:])}".rstrip()


def options(program: str, defaults: dict[str, str]) -> dict[str, str]:
    """The ``name=value`` words of a command that has no configuration, over its defaults.

    Raises:
        WorkbenchError: a word is none of these.
    """
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if unknown := words.keys() - defaults.keys():
        known = ", ".join(f"{name}=..." for name in defaults)
        raise WorkbenchError(f"{program}: got {', '.join(sorted(unknown))}; expected some of {known}.")
    return defaults | words


class one_line_errors(ContextDecorator):  # noqa: N801 - reads as contextlib's own
    """Inside, a user error ends the process with one line and status 2, Ctrl-C with one line and status 130.

    A job that Hydra runs does its work inside this, too: an exception that left the job would first be announced by
    Hydra's own line. It keeps nothing, so that Hydra's launchers can send the job to other processes.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, WorkbenchError):
            _fail(str(error), 2)
        if isinstance(error, KeyboardInterrupt):
            _fail(str(error) or "interrupted", 130)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else sys.argv[0]


def _fail(message: str, status: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)
