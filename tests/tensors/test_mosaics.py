"""Several photographs in one picture."""

import pytest
import torch
import torch.nn.functional as F

from hf_explain.tensors.mosaics import cell_slices, compose


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_cell_holds_its_photograph_made_smaller(dtype):
    photos = torch.rand(5, 3, 9, 12).to(dtype)
    places = torch.tensor([[4, 0, 0, 2], [1, 2, 3, 4]])
    pictures = compose(photos, places)
    assert pictures.shape == (2, 3, 9, 12) and pictures.dtype == dtype
    for picture, row in zip(pictures, places):
        cells = (picture[:, :4, :6], picture[:, :4, 6:], picture[:, 4:, :6], picture[:, 4:, 6:])
        for cell, place in zip(cells, row):
            small = F.interpolate(photos[place, None].float(), cell.shape[-2:], mode="bilinear", antialias=True)[0]
            torch.testing.assert_close(cell, small.to(dtype), rtol=0, atol=0)


def test_photographs_of_their_own_size_are_copied():
    photos = torch.rand(3, 1, 2, 5)
    picture = compose(photos, torch.tensor([[0, 1, 2, 0]]), size=(4, 10))[0]
    expected = torch.cat([torch.cat([photos[0], photos[1]], -1), torch.cat([photos[2], photos[0]], -1)], -2)
    assert torch.equal(picture, expected)


def test_cells_cover_every_pixel_once():
    counts = torch.zeros(7, 11)
    for rows, columns in cell_slices(3, (7, 11)):
        counts[rows, columns] += 1
        assert rows.stop - rows.start in (2, 3) and columns.stop - columns.start in (3, 4)
    assert (counts == 1).all()
