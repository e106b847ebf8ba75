"""What a policy sees: crops, keypoints of feature maps, cameras, instructions, and the condition made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.normalize import MinMax
from policy import language
from policy.encoders.cnn import Cnn
from policy.encoders.encoder import SpatialSoftmax, crop
from policy.encoders.resnet import ResNet18
from policy.observer import Observer
from tests.policy.conftest import config


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def pictures(n: int, side: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def test_a_crop_is_a_piece_of_its_image_at_every_place_equally_often():
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    images = torch.stack([rows, columns])[None].expand(3000, -1, -1, -1)
    pieces = crop(images, 4, draws())
    assert pieces.shape == (3000, 2, 4, 4)
    corner = pieces[:, :, 0, 0]
    offset = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"))
    assert torch.equal(pieces, corner[:, :, None, None] + offset)
    counts = torch.bincount((corner[:, 0] * 2 + corner[:, 1]).long(), minlength=6)
    assert len(counts) == 6 and (counts - 500).abs().max() < 5 * (3000 * (1 / 6) * (5 / 6)) ** 0.5
    middle = crop(images[:1], 4, None)
    assert middle[0, :, 0, 0].tolist() == [1.0, 0.0] and crop(images, 0, draws()) is images
    with pytest.raises(WorkbenchError, match=r"encoder.crop: got 6 for images of 6 x 5"):
        crop(images, 6, None)


def test_a_spatial_softmax_gives_the_place_of_a_peak():
    pool = SpatialSoftmax(2, keypoints=0)
    h = torch.zeros(1, 2, 5, 9)
    h[0, 0, 4, 0] = h[0, 1, 1, 6] = 60.0
    torch.testing.assert_close(pool(h), torch.tensor([[-1.0, 0.5, 1.0, -0.5]]), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(pool(torch.zeros(1, 2, 5, 9)), torch.zeros(1, 4), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("encoder", [lambda: Cnn((8, 16), 4, 56), lambda: ResNet18(8, 56)])
def test_an_encoder_learns_with_every_weight_and_sees_each_image_alone(encoder):
    torch.manual_seed(0)
    network = encoder()
    images = pictures(3, 64).movedim(-1, 1) / 127.5 - 1.0
    out = network(images, draws())
    assert out.shape == (3, network.features)
    (out**2).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert not torch.equal(network(images, draws(1)), out)
    with pytest.raises(WorkbenchError, match="has no place to tell; expected larger images"):
        type(network)()(torch.zeros(1, 3, 4, 4))
    with torch.no_grad():
        whole = network(images)
        torch.testing.assert_close(network(images[1:2]), whole[1:2], rtol=1e-4, atol=1e-5)


def test_the_resnet_has_the_published_shape_and_takes_published_weights(tmp_path):
    torch.manual_seed(0)
    network = ResNet18(keypoints=32)
    trunk = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("pool."))
    assert trunk == 11_176_512  # torchvision's resnet18 without its last layer
    torch.save({k: v + 1.0 for k, v in network.state_dict().items()}, tmp_path / "resnet18.pth")
    filled = ResNet18(keypoints=32, weights=str(tmp_path / "resnet18.pth"), frozen=True)
    assert torch.equal(filled.conv1.weight, network.conv1.weight + 1.0)
    assert torch.equal(filled.bn1.weight, torch.ones(64))
    assert {name.split(".")[0] for name, p in filled.named_parameters() if p.requires_grad} == {"pool"}
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WorkbenchError, match=r"has no conv1.weight of the right shape"):
        ResNet18(weights=str(tmp_path / "other.pth"))


def test_a_condition_is_made_of_all_that_is_seen_in_its_order():
    torch.manual_seed(0)
    kinds = {"hand": "low_dim", "front": "image", "door": "low_dim", "instruction": "language"}
    normalizer = MinMax(torch.tensor([0.0, 0.0, 10.0]), torch.tensor([2.0, 4.0, 30.0]))
    observer = Observer(kinds, normalizer, {"front": Cnn((8,), 4)})
    told = torch.as_tensor(language.embed(["open the door"] * 4)).reshape(2, 2, language.DIM)
    obs = {
        "hand": torch.tensor([1.0, 4.0]).expand(2, 2, 2),
        "door": torch.tensor([10.0]).expand(2, 2, 1),
        "front": pictures(4).reshape(2, 2, 24, 24, 3),
        "instruction": told,
    }
    assert observer.features == 3 + 8 + language.DIM
    cond = observer(obs).unflatten(1, (2, observer.features))
    assert cond[1, 0, :3].tolist() == [0.0, 1.0, -1.0]
    assert torch.equal(cond[..., -language.DIM :], told)
    assert not torch.equal(cond[0, 0, 3:11], cond[0, 1, 3:11])
    for kind in ("lowdim", "Image"):
        with pytest.raises(WorkbenchError, match=f"task.obs.hand: got '{kind}'; expected one of low_dim, image"):
            Observer({"hand": kind}, normalizer, {})


def test_like_instructions_are_near_one_another():
    vectors = language.embed(["open the drawer", "pull the drawer open", "press the button"])
    assert vectors.dtype == np.float32 and np.allclose((vectors**2).mean(1), 1.0, atol=1e-4)
    cosines = vectors @ vectors.T / language.DIM
    assert cosines[0, 1] > 0.7 > 0.4 > cosines[0, 2]
    with pytest.raises(WorkbenchError, match="instruction 1: got an empty one"):
        language.embed(["go", " "])


def test_pixels_are_seen_by_the_task_that_has_a_camera():
    found = config("task=pusht_image", "encoder.crop=84")
    assert found.task.obs == {"agent_pos": "low_dim", "image": "image"} and found.encoder["crop"] == 84
    assert config("encoder=resnet18").encoder["_target_"].endswith("ResNet18")
