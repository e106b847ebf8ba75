"""FID: refused, with what to do, unless the published network is there; measured when it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from diffusion_core.errors import WorkbenchError
from images.metrics import inception
from images.metrics.inception import fid


def images(n: int) -> torch.Tensor:
    return 2.0 * torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(n)) - 1.0


def test_without_weights_there_is_no_fid(monkeypatch):
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    with pytest.raises(WorkbenchError, match=r"download https://github.com/toshas.*WORKBENCH_INCEPTION=PATH"):
        fid(images(4), images(5))


def test_other_weights_are_refused_before_anything_is_unpickled(monkeypatch, tmp_path):
    file = tmp_path / inception.NAME
    file.write_bytes(b"not a network")
    monkeypatch.setattr(inception, "extractor", lambda path: pytest.fail("the file was opened"))
    with pytest.raises(WorkbenchError, match=r"of sha256 \w{64}; expected weights-inception-2015-12-05-6726825d"):
        fid(images(4), images(5), file)
    monkeypatch.setenv(inception.VARIABLE, str(tmp_path / "absent.pth"))
    with pytest.raises(WorkbenchError, match="which is no file"):
        fid(images(4), images(5))


def test_images_reach_the_network_as_bytes_in_colour():
    """A stand-in for the network sees what Inception would: the conversion is ours, the features are not."""
    seen: list[torch.Tensor] = []

    def network(pixels: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(pixels)
        return (pixels.float().flatten(1),)

    x = torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2).expand(5, 1, 2, 2)
    features = inception.inception_features(network, x, batch=2)
    assert features.shape == (5, 12) and [len(s) for s in seen] == [2, 2, 1]
    assert seen[0].dtype == torch.uint8 and seen[0].shape == (2, 3, 2, 2)
    assert seen[0][0, 2].flatten().tolist() == [0, 0, 128, 255]
    with pytest.raises(WorkbenchError, match="got 4 channels"):
        inception.inception_features(network, torch.zeros(1, 4, 2, 2), batch=1)


def test_fid_of_images_from_themselves_is_zero():
    if not os.environ.get(inception.VARIABLE):
        pytest.skip(f"{inception.VARIABLE} names no weights of Inception; they do not ship")
    pytest.importorskip("torch_fidelity", reason="the extra fid is not installed", exc_type=Exception)  # type: ignore[arg-type]
    weights = Path(os.environ[inception.VARIABLE])
    assert fid(images(6), images(6), weights, resamples=2).value == pytest.approx(0.0, abs=1e-6)
