"""The grid pointing game: which photographs a composite shows, where, and the share of a map by hand."""

import pytest
import torch

from hf_explain.metrics.functional import Photographs, grid_composites, grid_pointing


def photographs(classes, labels=None, size=6, certain=9.0):
    """One photograph of a single number, its row in the data set, per class."""
    rows = torch.arange(100, 100 + len(classes))
    logits = certain * torch.eye(12)[torch.tensor(classes)]
    labels = torch.tensor(classes if labels is None else labels)
    return Photographs(rows.float().view(-1, 1, 1, 1).expand(-1, 1, size, size), logits, rows, labels)


def test_every_class_of_a_composite_is_explained_once():
    photos = photographs([0, 1, 2, 3, 4, 4, 4, 0, 1])
    found = grid_composites(photos, range(12))
    assert found.pixel_values.shape == (12, 1, 6, 6) and found.candidates == 9
    assert found.cell.tolist() == [0, 1, 2, 3] * 3
    for start in (0, 4, 8):
        four = slice(start, start + 4)
        assert len({tuple(rows) for rows in found.rows[four].tolist()}) == 1  # one composite for four maps
        assert len(set(found.classes[start].tolist())) == 4 and sorted(found.target[four]) == sorted(
            found.classes[start]
        )
        for cell, (top, left) in enumerate(((0, 0), (0, 3), (3, 0), (3, 3))):
            shown = found.pixel_values[start, 0, top : top + 3, left : left + 3]
            assert shown.round().unique().tolist() == [found.rows[start, cell].item()]
            assert found.classes[start, cell] == photos.labels[found.rows[start, cell] - 100]
            assert found.target[start + cell] == found.classes[start, cell]
    assert len({tuple(rows) for rows in found.rows.tolist()}) > 1
    assert not torch.equal(grid_composites(photos, range(12), seed=1).rows, found.rows)
    alone = [grid_composites(photos, [number]) for number in range(12)]
    assert torch.equal(torch.cat([one.pixel_values for one in alone]), found.pixel_values)
    assert [one.target.item() for one in alone] == found.target.tolist()


def test_three_by_three_and_photographs_at_their_own_size():
    photos = photographs(list(range(10)), size=7)
    small = grid_composites(photos, [8], cells=3)
    assert small.pixel_values.shape == (1, 1, 7, 7) and small.cell.item() == 8
    # 7 pixels in three parts: 2, 3 and 2
    assert small.pixel_values[0, 0, 0].round().tolist() == [
        small.rows[0, place].item() for place in (0, 0, 1, 1, 1, 2, 2)
    ]
    large = grid_composites(photos, [8], cells=3, enlarged=True)
    assert large.pixel_values.shape == (1, 1, 21, 21) and torch.equal(large.rows, small.rows)


def test_only_what_is_classified_rightly_and_with_confidence():
    wrong = photographs([0, 1, 2, 3, 4, 5], labels=[0, 1, 2, 3, 5, 4])
    assert set(grid_composites(wrong, range(40)).rows.unique().tolist()) == {100, 101, 102, 103}
    message = r"of 2 × 2 needs photographs of 4 classes .* above 0.95, and has 3, of 3 classes: lower"
    with pytest.raises(ValueError, match=message):
        grid_composites(photographs([0, 1, 2, 3, 4, 5], labels=[0, 1, 2, 4, 5, 3]), [0])
    unsure = photographs([0, 1, 2, 3], certain=5.0)  # a softmax of 0.93
    with pytest.raises(ValueError, match="above 0.95, and has 0, of 0 classes"):
        grid_composites(unsure, [0])
    assert grid_composites(unsure, [0], confidence=0.9).candidates == 4
    unknown = Photographs(unsure.pixel_values, unsure.logits, unsure.ids)
    with pytest.raises(ValueError, match="`photos` need labels"):
        grid_composites(unknown, [0])
    with pytest.raises(ValueError, match="`cells` must be a whole number of at least 2, got 1"):
        grid_composites(unsure, [0], cells=1)


def test_the_share_by_hand():
    saliency = torch.zeros(4, 4, 4)
    saliency[:, 0, 3], saliency[:, 3, 0] = 3, 1  # three quarters at the top right, one at the bottom left
    result = grid_pointing(saliency, [0, 1, 2, 3], image_size=(4, 4))
    assert result.share.tolist() == [0, 0.75, 0.25, 0] and result.chance == 0.25
    assert result.protocol == {"cells": 2, "scale": "map", "image_size": [4, 4], "chance": 25.0}
    even = grid_pointing(torch.ones(9, 1, 1), range(9), image_size=(9, 9), cells=3)
    torch.testing.assert_close(even.share, torch.full((9,), 1 / 9))
    assert even.chance == pytest.approx(1 / 9)
    assert grid_pointing(torch.zeros(1, 2, 2), [0], image_size=(4, 4)).share.item() == 0
    with pytest.raises(ValueError, match="`scale` must be one of map, top, got 'rank'"):
        grid_pointing(saliency, [0, 1, 2, 3], image_size=(4, 4), scale="rank")
    with pytest.raises(ValueError, match=r"`cell` must lie in 0 ... 3 for 2 × 2 cells, got \[4\]"):
        grid_pointing(torch.ones(1, 2, 2), [4], image_size=(4, 4))


def test_the_top_by_hand():
    """A quarter of the pixels, the most salient: where they lie, whatever the values."""
    saliency = torch.full((1, 4, 4), 0.2)
    saliency[0, 0, 2:] = torch.tensor([0.9, 0.8])  # two at the top right, one at the bottom left, of the four
    saliency[0, 3, 0] = 0.7
    shares = [grid_pointing(saliency, [cell], image_size=(4, 4), scale="top").share.item() for cell in range(4)]
    # the fourth is shared by thirteen that are equal: 4, 2, 3 and 4 of them in the cells
    assert shares == pytest.approx([4 / 52, (2 + 2 / 13) / 4, (1 + 3 / 13) / 4, 4 / 52])
    brighter = grid_pointing(saliency**4 + 5, [1], image_size=(4, 4), scale="top")
    assert brighter.share.item() == pytest.approx(shares[1]) and brighter.protocol["scale"] == "top"
    assert grid_pointing(torch.zeros(1, 2, 2), [0], image_size=(4, 4), scale="top").share.item() == 0.25
    even = torch.ones(1, 2, 2)
    assert grid_pointing(even, [3], image_size=(9, 9), cells=3, scale="top").share.item() == pytest.approx(1 / 9)
