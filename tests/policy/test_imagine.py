"""Imagined pictures: what a sample is made of, where actions are shown, a dot that learns to go where it is sent."""

from __future__ import annotations

import torch

from diffusion_core.loss import Draws
from diffusion_core.noise import PerSample
from policy.experiments.imagination import estimator, masks, place, small, wander
from policy.imagine import SEEN, Recorded, World, in_units


def test_a_sample_is_the_pictures_before_the_actions_between_and_the_picture_after():
    pictures = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 8, 8)
    targets = torch.arange(20.0)[:, None].expand(20, 2)
    batch = Recorded(pictures, targets, torch.tensor([4, 9]), stride=4).batch(torch.tensor([1, 0]))
    as_bytes = ((batch["seen"] + 1.0) * 127.5).round()
    assert as_bytes[:, :, 0, 0, 0].tolist() == [[5.0, 9.0], [0.0, 4.0]]
    assert ((batch["next"] + 1.0) * 127.5).round()[:, 0, 0, 0].tolist() == [13.0, 8.0]
    assert batch["targets"][..., 0].tolist() == [[9.0, 10.0, 11.0, 12.0], [4.0, 5.0, 6.0, 7.0]]


def test_an_action_is_a_spot_where_the_finger_is_sent():
    world = World(16, 2, (8, 8))
    targets = torch.tensor([[[0.25, 0.75], [1.0, 0.0]]])
    shown = world.told(torch.zeros(1, SEEN, 3, 16, 16), targets, torch.zeros(1))["image"]
    assert shown.shape == (1, 3 * SEEN + 2, 16, 16)
    row, column = divmod(int(shown[0, -2].argmax()), 16)
    assert (row, column) in {(11, 3), (11, 4), (12, 3), (12, 4)}
    assert divmod(int(shown[0, -1].argmax()), 16) == (0, 15)


def test_a_world_begins_by_holding_the_last_picture():
    seen = torch.rand(2, SEEN, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = World(16, 2, (8, 8)).imagine(seen, torch.rand(2, 3, 2, 2), PerSample.from_seeds([0, 1]), steps=3)
    torch.testing.assert_close(found, seen[:, -1:].expand(2, 3, 3, 16, 16))


def dots(places: torch.Tensor) -> torch.Tensor:
    """White pictures with a black square at each place (n, 2) of eight by eight, bytes."""
    pictures = torch.full((len(places), 3, 16, 16), 255, dtype=torch.uint8)
    for picture, (x, y) in zip(pictures, places.tolist(), strict=True):
        picture[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 0
    return pictures


def test_a_dot_learns_to_go_where_it_is_sent_and_is_imagined_there():
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 8, (600, 2), generator=generator)
    # the next picture shows the dot where this one's action sends it
    targets = (places.roll(-1, 0) + 0.5) / 8.0
    data = Recorded(dots(places), targets, torch.arange(1, 599), stride=1)
    torch.manual_seed(0)
    world = World(16, 1, (16, 16))
    optimizer = torch.optim.Adam(world.parameters(), lr=3e-3)
    for step in range(250):
        rows = torch.randint(0, len(data), (32,), generator=generator)
        loss = world(data.batch(rows), Draws(torch.Generator().manual_seed(step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    route = torch.tensor([[1, 1], [6, 2], [3, 7], [0, 4], [5, 5], [2, 2]])
    true = in_units(dots(route))
    found = world.imagine(true[None, :SEEN], (route[None, SEEN:, None] + 0.5) / 8.0, PerSample.from_seeds([0]))
    assert (found[0] - true[SEEN:]).abs().mean() < 0.05 < (true[1] - true[SEEN:]).abs().mean()
    assert all(picture[true[SEEN + k] < 0.0].max() < 0.0 for k, picture in enumerate(found[0]))


def test_places_are_read_from_true_pictures():
    states, actions = wander(3, 40)
    assert states.shape == (40, 5) and actions.shape == (40, 2) and len(set(map(tuple, states[:, 2:].tolist()))) > 1
    found = estimator([(states, actions)])["finger"]
    assert found.n == 10 and found.value < 16.0  # a pixel is 16 px of the field
    block = place(masks(in_units(torch.as_tensor(small(states))))["block"])
    moved = (block[-1] - block[0]).norm()
    assert abs(float(moved) - float(torch.as_tensor(states[-1, 2:4] - states[0, 2:4]).norm())) < 40.0
