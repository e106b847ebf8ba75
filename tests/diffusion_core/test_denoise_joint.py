"""States of several fields: a joint network, its loss, padding, and three kinds of field under one sampler."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.contracts import check_denoiser, check_process
from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.denoise.joint import JointDenoiser, Logits, Regression, Tangent, joint_loss
from diffusion_core.denoise.restricted import Restricted
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.noise import On, PerSample, Shared
from diffusion_core.oracles import CategoricalTable, GaussianMixture, WrappedMixture
from diffusion_core.plan import Together
from diffusion_core.predict import PREDICTIONS
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.process.torus import Torus
from diffusion_core.ragged import pad, unpad
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, VarianceExploding
from diffusion_core.solvers import dpm_solver_pp_2m_sde
from diffusion_core.solvers.categorical import ancestral as jump
from diffusion_core.solvers.torus import ancestral as wind
from tests.diffusion_core.test_solvers import kolmogorov_smirnov
from tests.diffusion_core.worlds import mixture, vector

LINE, CIRCLE, KIND = Gaussian(Linear()), Torus(VarianceExploding(1.0)), Absorbing(RectifiedFlow(), 3)


def state(batch: int = 5, atoms: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "box": torch.randn(batch, 2, generator=generator),
        "place": torch.rand(batch, atoms, 3, generator=generator),
        "kind": torch.randint(3, (batch, atoms), generator=generator),
    }


class Net(nn.Module):
    """Every output sees every field."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2 + 3 + 4 + 3, 32)
        self.box, self.place, self.kind = nn.Linear(32, 2), nn.Linear(32, 3), nn.Linear(32, 3)

    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor], cond: Any) -> dict[str, Tensor]:
        atoms = x["place"].shape[1]
        times = torch.stack([t[name] for name in ("box", "place", "kind")], -1)
        wide = [v[:, None].expand(-1, atoms, -1) for v in (x["box"], times)]
        turns = torch.cos(2.0 * math.pi * x["place"]).float()
        h = torch.cat([*wide, turns, torch.eye(4)[x["kind"]]], -1)
        h = torch.tanh(self.mix(h))
        return {"box": self.box(h).mean(1), "place": self.place(h), "kind": self.kind(h)}


def heads() -> dict[str, Any]:
    return {"box": Regression(LINE, "v"), "place": Tangent(CIRCLE), "kind": Logits(KIND)}


def model() -> JointDenoiser:
    torch.manual_seed(0)
    return JointDenoiser(Net(), heads())


def test_the_joint_process_and_network_keep_the_contracts():
    denoiser = model()
    check_process(denoiser.process, state())
    x = denoiser.process.prior(denoiser.process.noise(state(), Draws(torch.Generator().manual_seed(1))))
    check_denoiser(denoiser, x)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_regression_head_recovers_x0_from_its_own_target_and_then_has_no_loss(prediction):
    head, t = Regression(LINE, prediction), vector(0.2, 0.5, 0.9)
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = LINE.corrupt(x0, t, noise)
    zero = head.loss(torch.zeros_like(x0), x0, x_t, noise, t)
    target = torch.zeros_like(x0).requires_grad_()
    # the loss is |output - target|^2: its gradient at 0 is -2 target
    (gradient,) = torch.autograd.grad(head.loss(target, x0, x_t, noise, t).sum(), target)
    torch.testing.assert_close((0.5 * gradient) ** 2, zero, rtol=1e-9, atol=1e-12)
    for i in range(3):
        estimate = head.estimate(t)(-0.5 * gradient, x_t, i)[i]
        torch.testing.assert_close(estimate, x0[i], rtol=1e-8, atol=1e-8)


def test_the_score_and_the_logits_of_a_single_datum_have_the_least_loss():
    t, draws = torch.full((6,), 0.4, dtype=torch.float64), Draws(torch.Generator().manual_seed(0))
    place, kind = torch.full((6, 4, 3), 0.25, dtype=torch.float64), torch.full((6, 4), 2)
    x_t = CIRCLE.corrupt(place, t, CIRCLE.noise(place, draws))
    output = CIRCLE.target(place, x_t, t)
    assert float(Tangent(CIRCLE).loss(output, place, x_t, place, t).abs().max()) == 0.0
    torch.testing.assert_close(
        Tangent(CIRCLE).estimate(t[:1])(output, x_t, 0), CIRCLE.score(place, x_t, t), rtol=1e-6, atol=1e-6
    )
    x_t = KIND.corrupt(kind, t, KIND.noise(kind, draws))
    sure = 40.0 * nn.functional.one_hot(kind, 3).double()
    assert float(Logits(KIND).loss(sure, kind, x_t, x_t, t).max()) < 1e-12
    unsure = Logits(KIND).loss(torch.zeros(6, 4, 3, dtype=torch.float64), kind, x_t, x_t, t)
    expected = math.log(3.0) * (x_t == KIND.mask).double()
    torch.testing.assert_close(unsure, expected, rtol=1e-9, atol=1e-9)


def test_padding_does_not_count():
    denoiser, x0 = model(), state()
    mask = torch.arange(4) < torch.tensor([4, 2, 1, 3, 4])[:, None]
    masks = {"place": mask, "kind": mask}

    def loss(x0: dict[str, Tensor]) -> Tensor:
        return joint_loss(
            denoiser, x0, None, Draws(torch.Generator().manual_seed(3)), masks=masks, weights={"box": 0.0}
        )

    other = {**x0, "place": torch.where(mask[..., None], x0["place"], 0.5), "kind": torch.where(mask, x0["kind"], 1)}
    torch.testing.assert_close(loss(other), loss(x0), rtol=0, atol=0)
    assert not torch.equal(loss({**x0, "kind": (x0["kind"] + 1) % 3}), loss(x0))


def test_known_entries_are_seen_clean_and_do_not_count():
    seen: dict[str, Tensor] = {}

    class Spy(Net):
        def forward(self, x, t, cond):
            seen.update(x)
            return super().forward(x, t, cond)

    torch.manual_seed(0)
    model = JointDenoiser(Spy(), {"box": Regression(LINE), "place": Tangent(CIRCLE), "kind": Logits(KIND)})
    x0 = state()
    first = torch.zeros(5, 4, dtype=torch.bool)
    first[:, 0] = True
    whole = torch.ones(5, 4, dtype=torch.bool)
    late = partial(torch.full, dtype=torch.float64)

    def loss(known, **more):
        draws = Draws(torch.Generator().manual_seed(1))
        return joint_loss(model, x0, None, draws, times=lambda _, n: late((n,), 0.999), known=known, **more)

    some = loss({"kind": first})
    assert torch.equal(seen["kind"][:, 0], x0["kind"][:, 0])
    # nearly all is masked at t = 0.999, so the rest was not shown
    assert (seen["kind"][:, 1:] == KIND.mask).float().mean() > 0.9
    # what is known is left out of the average, and with nothing left of it the field costs nothing
    free = {"weights": {"box": 0.0, "place": 0.0}}
    outputs = model(dict(seen), {name: late((5,), 0.999) for name in x0})["kind"]
    entries = -outputs.log_softmax(-1).gather(-1, x0["kind"][..., None])[..., 0]
    hidden = (seen["kind"] == KIND.mask) & ~first
    expected = (entries * hidden).sum(1) / 3.0
    torch.testing.assert_close(loss({"kind": first}, **free), expected, rtol=1e-4, atol=1e-5)
    assert (loss({"kind": whole}, **free) == 0.0).all()
    # also a field that is not of classes
    loss({"place": whole})
    assert torch.equal(seen["place"], x0["place"]) and torch.isfinite(some).all()
    with pytest.raises(WorkbenchError, match="got fields"):
        loss({"colour": whole})


def test_a_restriction_is_the_posterior_of_the_restricted_table():
    table = torch.rand(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    table = table / table.sum()
    allowed = torch.tensor([True, False, True])
    kept = table * allowed[:, None] * allowed
    masked, time = torch.tensor([[3, 3], [3, 0], [2, 3]]), vector(0.6)

    class One(Denoiser):
        """A table as a state of one field."""

        def __init__(self, of: Tensor) -> None:
            self.table = CategoricalTable(KIND, of / of.sum())
            self.process = Joint({"kind": KIND})

        def bind(self, times: Any, cond: Any = None) -> Evaluate:
            evaluate = self.table.bind(times["kind"])
            return lambda x, i: {"kind": evaluate(x["kind"], i)}

    ours = Restricted(One(table), {"kind": allowed}).bind({"kind": time})({"kind": masked}, 0)["kind"].softmax(-1)
    assert (ours[..., 1] == 0.0).all()
    # exact for the last masked entry: its conditional in the restricted table
    truth = One(kept).bind({"kind": time})({"kind": masked}, 0)["kind"].softmax(-1)
    torch.testing.assert_close(ours[1, 0], truth[1, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[2, 1], truth[2, 1], rtol=0, atol=1e-12)
    of_each = torch.tensor([[True, False, False]] * 3)
    each = Restricted(One(table), {"kind": of_each}).bind({"kind": time})({"kind": masked}, 0)["kind"].softmax(-1)
    assert (each[0, :, 0] == 1.0).all()
    with pytest.raises(WorkbenchError, match="no allowed class"):
        Restricted(One(table), {"kind": torch.zeros(3, dtype=torch.bool)})


def test_weights_add_up_and_unknown_fields_are_refused():
    denoiser, x0 = model(), state()

    def loss(**weights: float) -> Tensor:
        return joint_loss(denoiser, x0, None, Draws(torch.Generator().manual_seed(3)), weights=weights)

    parts = [loss(**{other: 0.0 for other in x0 if other != name}) for name in x0]
    torch.testing.assert_close(loss(), torch.stack(parts).sum(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(WorkbenchError, match=r"got fields \['colour'\]; expected some of"):
        loss(colour=1.0)


def test_a_joint_network_learns_what_its_fields_have_in_common():
    # the class decides where the box is: a network that sees both must beat one that sees one
    torch.manual_seed(0)
    denoiser = model()
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(400):
        kind = torch.randint(3, (64, 1), generator=generator)
        x0 = {"box": (kind - 1.0).expand(-1, 2), "place": (kind[..., None] / 3.0).expand(-1, 1, 3), "kind": kind}
        draws = Draws(torch.Generator().manual_seed(step))
        loss = joint_loss(denoiser, x0, None, draws, together=step % 2 == 0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


class Independent(Denoiser):
    """Oracles of independent fields as one denoiser."""

    def __init__(self, fields: dict[str, Denoiser]) -> None:
        self.fields = fields
        self.process = Joint({name: oracle.process for name, oracle in fields.items()})

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        each = {name: oracle.bind(times[name]) for name, oracle in self.fields.items()}
        return lambda x, i: {name: evaluate(x[name], i) for name, evaluate in each.items()}


def three_fields() -> Independent:
    """A line, a circle and a class, each with a schedule of its own."""
    share = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    return Independent(
        {
            "line": mixture(Cosine()),
            "circle": WrappedMixture(
                Torus(VarianceExploding(1.0)), vector(0.6, 0.4), vector(0.2, 0.7)[:, None], vector(0.05, 0.1)
            ),
            "class": CategoricalTable(Absorbing(RectifiedFlow(), 3), share),
        }
    )


def plans(steps: int) -> Together:
    return Together(
        {
            "line": dpm_solver_pp_2m_sde(Cosine(), grids.log_snr_uniform(Cosine(), steps, start=0.999, end=1e-3)),
            "circle": wind(
                Torus(VarianceExploding(1.0)), grids.log_snr_uniform(VarianceExploding(1.0), steps, 1.0, 1e-2)
            ),
            "class": jump(Absorbing(RectifiedFlow(), 3), grids.uniform(steps) ** 2),
        }
    )


def test_three_fields_with_three_schedules_and_grids_reach_their_exact_marginals():
    n, world = 30_000, three_fields()
    noise = Shared(torch.Generator().manual_seed(0))
    like = {"line": torch.zeros(n, 1), "circle": torch.zeros(n, 1), "class": torch.zeros(n, 1, dtype=torch.int64)}
    like = {name: v if v.dtype == torch.int64 else v.double() for name, v in like.items()}
    base = world.process.noise(like, On(noise, torch.device("cpu")))
    end = sample(world, plans(80), world.process.prior(base), noise=noise)
    critical = 1.95 / math.sqrt(n)
    assert isinstance(world.fields["line"], GaussianMixture) and isinstance(world.fields["circle"], WrappedMixture)
    # what 80 steps leave: see the tests of each process
    assert kolmogorov_smirnov(end["line"], world.fields["line"]) < critical + 0.002
    level = world.fields["circle"].cdf(end["circle"].flatten().sort().values, 0.0)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    assert float(torch.maximum((steps[1:] - level).abs(), (level - steps[:-1]).abs()).max()) < critical + 0.002
    share = torch.bincount(end["class"].flatten(), minlength=3) / n
    expected = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    # a class is exact in any number of steps: 4 standard errors each
    assert bool(((share - expected).abs() < 4.0 * (expected * (1.0 - expected) / n).sqrt()).all())
    # independent fields stay independent: chi^2 of (side of the line, class), 2 degrees of freedom
    side = (end["line"].flatten() > 0.0).long()
    table = torch.bincount(3 * side + end["class"].flatten(), minlength=6).reshape(2, 3).double()
    independent = table.sum(1, keepdim=True) * table.sum(0) / n
    assert float(((table - independent) ** 2 / independent).sum()) < 2.0 + 5.0 * 2.0


def test_a_sample_of_three_fields_does_not_depend_on_its_batch():
    world = three_fields()

    def run(seeds: list[int]) -> dict[str, Tensor]:
        noise = PerSample.from_seeds(seeds)
        n = len(seeds)
        like = {
            "line": torch.zeros(n, 1, dtype=torch.float64),
            "circle": torch.zeros(n, 1, dtype=torch.float64),
            "class": torch.zeros(n, 1, dtype=torch.int64),
        }
        x = world.process.prior(world.process.noise(like, On(noise, torch.device("cpu"))))
        return sample(world, plans(12), x, noise=noise)

    whole, alone = run([5, 3, 9]), run([3])
    for name, values in alone.items():
        assert torch.equal(whole[name][1:2], values)


def test_padding_is_undone():
    samples = [torch.full((n, 2), float(n)) for n in (3, 1, 2)]
    padded, mask = pad(samples, length=4, value=-1.0)
    assert padded.shape == (3, 4, 2) and mask.sum(1).tolist() == [3, 1, 2] and float(padded[~mask].max()) == -1.0
    assert all(torch.equal(a, b) for a, b in zip(unpad(padded, mask), samples, strict=True))
    with pytest.raises(WorkbenchError, match="at most 3 entries; expected at least one, of at most 2"):
        pad(samples, length=2)
