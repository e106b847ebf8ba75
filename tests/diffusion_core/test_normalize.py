"""MinMax: the training range is [-1, 1], there and back, and nothing passes unseen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffusion_core.errors import WorkbenchError
from diffusion_core.normalize import MinMax

tables = arrays("float32", st.tuples(st.integers(2, 12), st.integers(1, 4)), elements=st.floats(-500, 500, width=32))


def check_range(fit) -> None:
    """The smallest of each feature goes to -1, the largest to 1, the middle to 0, on and beyond the range linearly."""
    data = torch.tensor([[0.0, -30.0], [512.0, -10.0], [128.0, -15.0]])
    normalizer = fit(data)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-0.5, 0.5]])
    torch.testing.assert_close(normalizer.normalize(data), expected)
    torch.testing.assert_close(normalizer.normalize(torch.tensor([[1024.0, 0.0]])), torch.tensor([[3.0, 2.0]]))


def test_the_training_range_becomes_minus_one_to_one():
    check_range(MinMax.fit)


@given(table=tables)
def test_there_and_back_is_where_one_was(table):
    data = torch.from_numpy(table)
    normalizer = MinMax.fit(data)
    normal = normalizer.normalize(data)
    assert float(normal.abs().max()) <= 1.0 + 1e-3
    # float32: an offset of 500 keeps 3e-5 of absolute precision
    torch.testing.assert_close(normalizer.unnormalize(normal), data, rtol=1e-5, atol=1e-4)


def test_a_feature_that_never_varies_is_shifted_to_zero_and_comes_back():
    data = torch.tensor([[3.0, 1.0], [3.0, 2.0]])
    normalizer = MinMax.fit(data)
    assert normalizer.normalize(data)[:, 0].tolist() == [0.0, 0.0]
    assert normalizer.unnormalize(torch.tensor([[0.0, 0.0]])).tolist() == [[3.0, 1.5]]
    assert normalizer.normalize(torch.tensor([[5.0, 1.0]])).tolist() == [[2.0, -1.0]]


def test_leading_axes_do_not_matter():
    normalizer = MinMax.fit(torch.tensor([[0.0, -3.0], [4.0, 5.0]]))
    x = torch.randn(3, 2, 5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalizer.normalize(x)[1, 0, 3], normalizer.normalize(x[1, 0, 3]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fitting_to_what_is_not_finite_is_refused_and_the_place_named(bad):
    data = torch.zeros(4, 3)
    data[2, 1] = bad
    with pytest.raises(WorkbenchError, match=f"got {bad} in row 2, feature 1; expected finite"):
        MinMax.fit(data)


def test_an_empty_normalizer_cannot_be_used_by_mistake_and_is_filled_by_a_checkpoint():
    fitted, empty = MinMax.fit(torch.tensor([[0.0, -3.0], [4.0, 5.0]])), MinMax.empty(2)
    x = torch.tensor([[1.0, 2.0]])
    assert bool(torch.isnan(empty.normalize(x)).all())
    with pytest.raises(WorkbenchError):
        empty.check(x, "obs")
    empty.load_state_dict(fitted.state_dict())
    assert torch.equal(empty.normalize(x), fitted.normalize(x))


def test_data_outside_the_fitted_range_is_refused_and_the_place_named():
    normalizer = MinMax.fit(torch.tensor([[0.0, -3.0], [4.0, 5.0]]))
    normalizer.check(torch.tensor([[4.001, 5.0], [0.0, -3.0]]), "action")
    with pytest.raises(
        WorkbenchError, match=r"action: got 5.1 at step 1, feature 1 \(2 of 3 steps .*expected values in \[-3, 5\]"
    ):
        normalizer.check(torch.tensor([[1.0, 1.0], [1.0, 5.1], [-9.0, 1.0]]), "action")
    with pytest.raises(WorkbenchError, match="got nan at step 0"):
        normalizer.check(torch.tensor([[float("nan"), 1.0]]), "action")
