"""Every example runs, draws its picture, and finds the numbers that its page states."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import sys
from pathlib import Path
from types import ModuleType

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from diffusion_core.oracles import GaussianMixture

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_picture(path: Path) -> None:
    """A PNG of a figure's size, with something on it."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 500 <= width <= 4000 and 300 <= height <= 3000 and len(data) > 10_000


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_says_what_it_is_and_is_tested(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 100 and text.startswith('"""')
    here = Path(__file__).read_text()
    assert f'load("{path.stem}")' in here


def test_orders(tmp_path: Path) -> None:
    module, out = load("orders"), tmp_path / "orders.png"
    rows = module.main(out, tmp_path / "orders.json", steps=(32, 64))
    check_picture(out)
    published = json.loads((ROOT / "benchmarks" / "results" / "orders.json").read_text())
    at = [published["n"].index(n) for n in (32, 64)]
    assert [row["solver"] for row in rows] == [row["solver"] for row in published["rows"]]
    for row, old in zip(rows, published["rows"], strict=True):
        assert row["evaluations"] == [old["evaluations"][k] for k in at]
        # the file is what the code gives: sums round differently on other machines
        assert row["errors"] == pytest.approx([old["errors"][k] for k in at], rel=1e-3)
    wanted = {"ddim": 1, "euler": 1, "heun": 2, "edm": 2, "dpm_solver_2s": 2, "dpm_solver_3s": 3, "dpm_solver_pp_3s": 3}
    wanted |= {"dpm_solver_pp_2m": 2, "dpm_solver_pp_3m": 3, "unipc, order=1": 2, "unipc, order=2": 3}
    wanted |= {"unipc, order=3, warm_up='staged'": 4, "dpm_solver_pp_3m, warm_up='published'": 2, "ddpm": 1}
    found = {row["solver"]: row["order"] for row in published["rows"]}
    for name, order in wanted.items():
        assert found[name] == pytest.approx(order, abs=0.1), name


def test_joint_state(tmp_path: Path) -> None:
    module, out, n = load("joint_state"), tmp_path / "joint.png", 4000
    result = module.main(out, n=n, steps=60)
    check_picture(out)
    # nobody has the angle of another label: four standard deviations exclude 6 in 100,000
    assert result["agree"] > 1.0 - 5.0 / n
    # the page's 4 %, with 4 standard errors
    assert abs(result["spread"] - 0.96) < 4.0 / math.sqrt(2.0 * n)
    for share in result["shares"]:
        assert abs(share - 1.0 / 3.0) < 4.0 * math.sqrt(2.0 / 9.0 / n)
    # Kolmogorov and Smirnov at the 0.1 % level, and what 60 steps leave
    third = torch.full((3,), 1.0 / 3.0, dtype=torch.float64)
    numbers, widths = (torch.tensor(v, dtype=torch.float64) for v in (module.NUMBERS, module.WIDTHS))
    line = GaussianMixture(module.COSINE, third, numbers[:, None], widths)
    level = line.cdf(result["samples"]["number"].sort().values, 0.0)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum((steps[1:] - level).abs(), (level - steps[:-1]).abs()).max())
    assert distance < 1.95 / math.sqrt(n) + 0.004


def test_likelihood(tmp_path: Path) -> None:
    out = tmp_path / "likelihood.png"
    result = load("likelihood").main(out, n=500, counts=(8, 32, 64, 128), flows=(8, 16, 32))
    check_picture(out)
    # a bound, that closes with 1 / steps
    gaps = result["gaps"]
    assert all(gap > 0.0 for gap in gaps.values())
    assert math.log2(gaps[64] / gaps[128]) == pytest.approx(1.0, abs=0.1)
    mean, stderr = result["estimate"]
    assert abs(mean - result["entropy"] - gaps[32]) < 4.0 * stderr
    # the fourth power
    assert math.log2(result["misses"][1] / result["misses"][2]) == pytest.approx(4.0, abs=0.4)
    assert result["misses"][2] < 1e-5


def test_schedules(tmp_path: Path) -> None:
    out = tmp_path / "schedules.png"
    starts = load("schedules").main(out, n=2000)
    check_picture(out)
    assert starts["trailing(1000, 12)"] == 1.0 and starts["leading(1000, 12)"] == 0.914


def test_guided_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, out = load("guided_mixture"), tmp_path / "guidance.png"
    monkeypatch.setattr(sys, "argv", ["guided_mixture.py", str(out), "--samples", "100"])
    module.main()
    check_picture(out)
    plain, guided = (module.guided_samples(400, scale)[0] for scale in (1.0, 4.0))
    assert float((plain.mean(0) - module.MEANS[0]).norm()) < 5.0 * 0.45 * math.sqrt(2.0 / 400)
    # the page says that guidance goes further out than the density it is named after, and is narrower
    density = module.guided_densities(4.0)[0]
    axis = torch.linspace(-module.REACH, module.REACH, len(density), dtype=torch.float64)
    weights = density.sum(1) / density.sum()
    centre = float((weights * axis).sum())
    width = float((weights * (axis - centre) ** 2).sum().sqrt())
    assert float(guided[:, 1].mean()) > centre + 0.2 and float(guided[:, 1].std()) < width


def test_autoregressive_is_absorbing(tmp_path: Path) -> None:
    out = tmp_path / "bars.png"
    nats, shares = load("autoregressive_is_absorbing").main(out, steps=40)
    check_picture(out)
    # one number, whatever the weights: the bound of masked diffusion is the mean over orders
    (bound, a), (orders, b) = nats["diffusion bound"], nats["random orders"]
    assert abs(bound - orders) < 4.0 * math.hypot(a, b)
    assert all(0.0 <= share <= 1.0 for share in shares.values())


def test_your_own_images(tmp_path: Path) -> None:
    """A folder of pictures of two classes and several sizes goes in; drawings of the right size come out."""
    rng = np.random.default_rng(0)
    for name, bright in (("dark", 40), ("light", 200)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(bright + rng.normal(0, 10, (20 + i, 24, 3)), 0, 255).astype(np.uint8)
            iio.imwrite(tmp_path / "mine" / name / f"{i}.png", pixels)
    module, out = load("your_own_images"), tmp_path / "new"
    words = [
        "task.size=16",
        "task.patch=2",
        "preset=smoke",
        "network=unet2d_small",
        "steps=10",
        f"runs={tmp_path}/runs",
    ]
    module.main(str(tmp_path / "mine"), str(out), *words, "train.steps=150", "evaluation.n=20")
    drawn = [iio.imread(file) for file in sorted(out.glob("*.png")) if file.name != "grid.png"]
    assert len(drawn) == 16 and {image.shape for image in drawn} == {(16, 16, 3)}
    # every class in turn: the classes are told apart
    dark, light = (np.mean([image.mean() for image in drawn[k::2]]) for k in (0, 1))
    assert light > dark + 50
    assert next((tmp_path / "runs").glob("*/*/evaluation/report.html")).exists()
