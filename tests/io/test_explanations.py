"""What the pipeline returns shows itself, and is the dictionaries and lists it has always been."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from testing_common import save_classifier
from transformers import pipeline

from hf_explain.io.explanations import Explanation, Explanations
from hf_explain.io.pictures import explanation_sheet


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return pipeline("saliency", model=save_classifier("resnet", tmp_path_factory.mktemp("classifier")))


def photograph(width=90, height=60):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_results_are_dictionaries_and_lists(pipe):
    found = pipe(photograph(), top_k=2)
    assert isinstance(found, list) and all(isinstance(one, dict) for one in found) and len(found) == 2
    assert {**found[0]}["label"] == found[0]["label"] and "saliency_map" in repr(found[0])
    for several in (pipe([photograph(), photograph(40, 40)], batch_size=2), pipe([photograph(), photograph()])):
        assert type(several) is list and all(type(one) is Explanations for one in several)
        assert several[0][0].source.size == (90, 60)
    again = pickle.loads(pickle.dumps(found))
    assert type(again[0]) is Explanation and again[0].crop == found[0].crop and again[0]["score"] == found[0]["score"]


@pytest.mark.parametrize("several", [False, True])
def test_a_result_shows_the_image_and_its_maps(pipe, several):
    found = pipe(photograph(), top_k=3)
    shown = found if several else found[0]
    with Image.open(io.BytesIO(shown._repr_png_())) as picture:
        assert picture.width > (4 if several else 2) * 260
    text = shown._repr_html_()
    assert text.startswith('<img src="data:image/png;base64,')
    assert f'alt="Saliency by gradcam: {found[0]["label"]} {found[0]["score"]:.2f}' in text
    assert shown.picture(cell_size=100, colormap="inferno").width < picture.width


def test_an_image_that_is_gone_or_another_by_now_leaves_the_map(pipe, tmp_path):
    photograph().save(tmp_path / "photo.png")
    found = pipe(str(tmp_path / "photo.png"))
    whole = found.picture()
    photograph(30, 30).save(tmp_path / "photo.png")
    other = found.picture()
    (tmp_path / "photo.png").unlink()
    assert other.tobytes() == found.picture().tobytes() and other.width < whole.width
    assert found[0].source == str(tmp_path / "photo.png")


def test_what_the_classifier_saw_is_framed(pipe, monkeypatch):
    monkeypatch.setattr(pipe.image_processor, "size", {"shortest_edge": 32})
    monkeypatch.setattr(pipe.image_processor, "do_center_crop", True, raising=False)
    monkeypatch.setattr(pipe.image_processor, "crop_size", {"height": 32, "width": 32}, raising=False)
    (one,) = pipe(photograph(), method="centre")
    rows, columns = ((one["saliency_map"] > 0).any(axis).nonzero()[0] for axis in (1, 0))
    assert one.crop == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert 0 < columns[0] and columns[-1] < 89
    monkeypatch.setattr(pipe.image_processor, "do_center_crop", False)
    monkeypatch.setattr(pipe.image_processor, "size", {"shortest_edge": 384})  # warped to a square
    assert pipe(photograph(), method="centre")[0].crop is None


def test_a_frame_is_seen_on_dark_and_on_light():
    for shade in (0, 128, 255):
        what = Image.new("RGB", (100, 60), (shade,) * 3), [[np.zeros((60, 100))]], ["a"], [["b"]]
        framed, plain = (np.asarray(explanation_sheet(*what, crop=crop)) for crop in ((20, 0, 80, 60), None))
        assert np.abs(framed.astype(int) - plain).max() > 100


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match="`saliency_map` is 3x3 .* and `image` is 60x90"):
        explanation_sheet(photograph(), [[np.zeros((60, 90)), np.zeros((3, 3))]], ["a", "b"], [["", ""]])
