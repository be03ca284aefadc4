"""The quickstart: exact masks, a planted bias of known size, and a run that leaves a page with its own numbers."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_explain.quickstart import data
from hf_explain.quickstart.data import BIASED_LABEL, LABELS, draw, make_dataset, make_datasets


BIASED = LABELS.index(BIASED_LABEL)


def test_dataset_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (make_dataset(12, seed=seed, image_size=32) for seed in (3, 3, 4))
    torch.rand(5)  # the global generator plays no part
    assert first[:]["image"][0].size == (32, 32)
    for column in ("image", "object_mask", "cue_mask"):
        assert _bytes(first, column) == _bytes(again, column)
    assert _bytes(first, "image") != _bytes(other, "image")
    splits = make_datasets(12, 12, seed=3, image_size=32)
    assert not set(_bytes(splits["train"], "image")) & set(_bytes(splits["validation"], "image"))


def _bytes(dataset, column):
    return [cell["bytes"] for cell in dataset.to_dict()[column]]


def test_dataset_decodes_to_what_was_drawn():
    images, labels, objects, cues = draw(9, 1, 48, 0.5, 0.5)
    dataset = make_dataset(9, 1, 48, 0.5, 0.5)
    assert dataset.features["label"].names == list(LABELS)
    assert dataset["label"][:] == labels.tolist()
    for row, image, objects_mask, cue in zip(dataset, images, objects, cues):
        assert row["image"].mode == "RGB" and row["object_mask"].mode == row["cue_mask"].mode == "L"
        assert (np.asarray(row["image"]) == image.permute(1, 2, 0).numpy()).all()
        assert (np.asarray(row["object_mask"]) == 255 * objects_mask.numpy()).all()
        assert (np.asarray(row["cue_mask"]) == 255 * cue.numpy()).all()
        assert row["has_cue"] == bool(cue.any())


def test_classes_are_balanced_and_the_tag_has_the_stated_shares():
    _, labels, _, cues = draw(600, 0, 32, 0.95, 0.0)
    assert (labels.bincount() == 100).all()
    has_cue = cues.flatten(1).any(1)
    assert has_cue[labels == BIASED].sum() == 95 and not has_cue[labels != BIASED].any()
    validation = make_datasets(6, 240, image_size=32)["validation"]
    has_cue, labels = torch.tensor(validation["has_cue"][:]), torch.tensor(validation["label"][:])
    assert has_cue[labels == BIASED].sum() == 20 and has_cue[labels != BIASED].sum() == 50


@pytest.mark.parametrize("soft_edges", [False, True])
def test_masks_are_exact(monkeypatch, soft_edges):
    """Repaint only the object, same scene: only the mask changes, or, as edges are soft, up to three pixels more (at acute tips)."""
    if not soft_edges:
        monkeypatch.setattr(data, "_coverage", lambda distance, radius: (distance <= 0).float()[:, None])
    images, _, objects, cues = draw(24, 2, 96, 1.0, 0.0)
    texture, calls = data._texture, []

    def repaint(*arguments):
        calls.append(arguments)
        paint = texture(*arguments)
        return 1 - paint if len(calls) > data._TEXTURED_SCRAPS else paint  # the object is painted last

    monkeypatch.setattr(data, "_texture", repaint)
    repainted, _, same_objects, _ = draw(24, 2, 96, 1.0, 0.0)
    assert len(calls) == data._TEXTURED_SCRAPS + 1 and (same_objects == objects).all()
    changed = (images != repainted).any(1)
    reach = torch.nn.functional.max_pool2d(objects[:, None].float(), 7, 1, 3)[:, 0] > 0 if soft_edges else objects
    assert not (changed & ~reach).any()
    assert (changed & objects).sum() >= 0.97 * objects.sum()  # mid-grey pixels repaint to themselves
    assert not (objects & cues).any()
    area = objects.flatten(1).float().mean(1)
    assert area.min() > 0.01 and area.max() < 0.35


def test_masks_follow_the_shapes():
    """The disc's mask has a disc's area, to the pixel's quantisation; every object lies wholly inside the image."""
    _, labels, objects, _ = draw(60, 0, 96, 0.0, 0.0)
    discs = objects[labels == LABELS.index("striped disc")]
    height, width = discs.any(2).sum(1), discs.any(1).sum(1)
    area = discs.flatten(1).sum(1)
    assert torch.allclose(area.float(), torch.pi / 4 * height * width, rtol=0.05)
    assert (height - width).abs().max() <= 1
    border = torch.cat([objects[:, 0], objects[:, -1], objects[:, :, 0], objects[:, :, -1]], dim=1)
    assert border.float().mean() < 0.01


def test_tag_is_drawn_where_its_mask_says():
    images, _, _, cues = draw(30, 0, 96, 1.0, 1.0)
    plain, _, _, none = draw(30, 0, 96, 0.0, 0.0)
    assert not none.any()
    changed = (images != plain).any(1)
    assert changed.any() and not (changed & ~cues).any()
    assert (changed & cues).sum() > 0.99 * cues.sum()
    assert (cues.flatten(1).sum(1) <= round(96 * 0.11) * round(96 * 0.23)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 5}, "`num_images` must be at least 6, one for each class, got 5"),
        ({"num_images": 6, "image_size": 16}, "`image_size` must be at least 32 pixels, got 16"),
        ({"num_images": 6, "cue_rate": 1.5}, r"`cue_rate` is a share .* \[0, 1\], got 1.5"),
        ({"num_images": 6, "other_cue_rate": -1}, r"`other_cue_rate` is a share"),
    ],
)
def test_bad_sizes_get_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(**arguments)


def test_png_cells_are_real_files():
    cell = make_dataset(6, image_size=32).to_dict()["image"][0]
    assert Image.open(io.BytesIO(cell["bytes"])).format == "PNG"
