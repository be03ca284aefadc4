"""Other photographs: which one an image is filled with, by hand and whatever the batch."""

import pytest
import torch

from hf_explain.metrics.functional import auc_d, auc_d_fills
from hf_explain.metrics.photographs import Photographs
from hf_explain.tensors.randomness import image_keys


def photographs(classes, size=2):
    """One photograph of a single number, its place among them, per class."""
    values = torch.arange(len(classes)).float().view(-1, 1, 1, 1).expand(-1, 1, size, size)
    return Photographs(
        values, torch.nn.functional.one_hot(torch.tensor(classes), 3).float(), torch.arange(len(classes))
    )


def chosen(photos, ids, classes, with_ids=True):
    images = torch.zeros(len(ids), 1, 2, 2)
    ids = torch.tensor(ids)
    found = photos.others(images, image_keys(images, ids), ids if with_ids else None, torch.tensor(classes))
    assert found.shape == images.shape and bool((found == found[:, :, :1, :1]).all())
    return found[:, 0, 0, 0].int().tolist()


def test_a_photograph_is_another_one_of_another_class():
    photos = photographs([0, 1, 1, 2])
    many = chosen(photos, list(range(4, 64)), [1] * 60)
    assert set(many) == {0, 3} and 15 < many.count(0) < 45  # drawn, as often the one as the other
    assert chosen(photos, [0] * 5, [1] * 5) == [3] * 5  # not the image itself
    assert chosen(photographs([0, 1, 1]), [0], [1], with_ids=False) == [0]  # unknown to be the same
    assert chosen(photos, [7, 8, 9], [1, 0, 2]) == [chosen(photos, [i], [c])[0] for i, c in ((7, 1), (8, 0), (9, 2))]


def test_photographs_of_another_size_are_brought_to_that_of_the_images():
    found = photographs([0, 1], size=4).others(torch.zeros(1, 1, 2, 3), torch.tensor([1]), None, torch.tensor([0]))
    assert torch.equal(found, torch.ones(1, 1, 2, 3))


def test_where_there_is_none():
    with pytest.raises(ValueError, match=r"has 2 photographs, and none .* another class than 1, which image 0 is"):
        chosen(photographs([1, 1]), [5], [1])
    with pytest.raises(ValueError, match=r"needs one entry per photograph everywhere, got \[2, 3\]"):
        Photographs(torch.zeros(2, 1, 2, 2), torch.zeros(2, 3), torch.arange(3))


def brightness(pixel_values):
    """Two classes: as bright as the mean, and as 1.5."""
    total = pixel_values.mean((1, 2, 3))
    return torch.stack([total, torch.full_like(total, 1.5)], dim=1)


def test_auc_d_with_a_photograph_by_hand():
    images = torch.tensor([[[[4.0, 0.0], [2.0, 2.0]]]])  # mean 2: class 0
    saliency = torch.tensor([[[0.9, 0.1], [0.5, 0.4]]])
    photos = photographs([1, 0])  # the first one, all 0, is of the other class
    options = {"fractions": (0, 0.5, 1), "score": "agreement", "image_ids": [7], "photos": photos}
    result = auc_d(brightness, images, saliency, fill="photo", **options)
    assert result.curves.positive.tolist() == [[1.0, 0.0, 0.0]]  # 0 + 2 of 4: below 1.5
    assert result.curves.negative.tolist() == [[1.0, 1.0, 0.0]]  # 4 + 2
    assert result.protocol["fill"] == "photo" and result.auc_d.item() == 50
    with pytest.raises(ValueError, match="`photos` are needed for fill='photo'"):
        auc_d(brightness, images, saliency, fill="photo")
    every = "black, mean, blur, white, noise, color, photo"
    with pytest.raises(ValueError, match=f"`fill` must be one of {every} or a colour, got 'grey'"):
        auc_d(brightness, images, saliency, fill="grey")
    for fills in ((), ("black", "black"), ("grey",)):
        with pytest.raises(ValueError, match=f"`fills` must be some of {every}, each once"):
            auc_d_fills(brightness, images, saliency, fills=fills)


@pytest.mark.parametrize("fill", ["white", "noise", "color", "photo"])
def test_fills_do_not_depend_on_the_batch(fill):
    generator = torch.Generator().manual_seed(0)
    images, saliency = torch.randn(6, 1, 8, 8, generator=generator), torch.rand(6, 8, 8, generator=generator)
    photos = torch.randn(9, 1, 8, 8, generator=generator)

    def predict(pixel_values):
        return torch.stack([pixel_values.mean((1, 2, 3)), torch.zeros(len(pixel_values))], dim=1)

    options = {"fill": fill, "score": "probability", "image_mean": (0.5,), "image_std": (0.25,)}
    options["photos"] = Photographs(photos, predict(photos), torch.arange(9))

    def measure(images, saliency, ids, seed=0):
        return auc_d(predict, images, saliency, image_ids=ids, seed=seed, **options).auc_d

    whole = measure(images, saliency, range(6))
    alone = [measure(images[i : i + 1], saliency[i : i + 1], [i]) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), whole)
    assert torch.equal(measure(images, saliency, range(6), seed=1), whole) == (fill == "white")
    equal = measure(images[:1].expand(5, -1, -1, -1), saliency[:1].expand(5, -1, -1), range(5))
    assert (len(set(equal.tolist())) == 1) == (fill == "white")  # equal images of other ids are filled otherwise
