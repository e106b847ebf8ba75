"""Videos of a LeRobot dataset: frames by their time in the file, and files of frames. A video is lossy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion_core.errors import WorkbenchError

CODEC, PIXELS, QUALITY = "h264", "yuv420p", 18
"""What we write; `QUALITY` is x264's constant rate factor: 0 loses only what 4:2:0 chroma loses, 51 everything."""


def frames_at(path: Path, times: Sequence[float], fps: float) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Decode the frames shown at these times, in one pass; any codec that FFmpeg knows, AV1 among them.

    Args:
        path: of the file.
        times: rising, in seconds.
        fps: frames per second; a frame may be half a frame from its time.

    Raises:
        WorkbenchError: the file is missing or damaged, or has no frame there.
    """
    import av

    wanted = iter(times)
    time = next(wanted, None)
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                if time is None:
                    return
                shown = float(frame.time or 0.0)
                if shown > time + 0.5 / fps:
                    break
                if shown > time - 0.5 / fps:
                    yield frame.to_ndarray(format="rgb24")
                    time = next(wanted, None)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise WorkbenchError(
            f"{path}: the video cannot be decoded ({str(error).splitlines()[0]}); expected one frame per step: "
            "download the dataset again, or install an av with its codec."
        ) from error
    if time is not None:
        raise WorkbenchError(
            f"{path}: got no frame at {time:.3f} s; expected one every {1 / fps:.3f} s up to {max(times):.3f} s: "
            "download the dataset again."
        )


class Film:
    """A video file that grows by whole episodes.

    Args:
        path: of the file.
        fps: frames per second.
        height, width: px, even.

    Raises:
        WorkbenchError: an odd size, which 4:2:0 chroma cannot have.
    """

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        import av

        if height % 2 or width % 2:
            raise WorkbenchError(
                f"{path.name}: got images of {height} x {width} px; expected even numbers for a video: use images=png."
            )
        self.path = path
        self.seconds = Fraction(0)
        self._rate = Fraction(fps).limit_denominator(1001)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = av.open(str(path), "w")
        # few frames between key frames: training reads single frames at random
        options: Mapping[str, str] = {"crf": str(QUALITY), "g": "2", "bf": "0", "threads": "1"}
        self._stream: Any = self._file.add_stream("libx264", rate=self._rate, options=dict(options))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, PIXELS

    def add(self, images: UInt8[np.ndarray, "steps height width 3"]) -> None:
        """Append frames."""
        import av

        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            for packet in self._stream.encode(frame):
                self._file.mux(packet)
        self.seconds += len(images) / self._rate

    def close(self) -> None:
        """Write what is left, and the table of contents."""
        for packet in self._stream.encode():
            self._file.mux(packet)
        self._file.close()
