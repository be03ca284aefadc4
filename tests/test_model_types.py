"""Every model type that Transformers classifies images with; `python tests/test_model_types.py` prints the table."""

import contextlib
import pathlib
import re
import tempfile

import pytest
import torch
from PIL import Image
from testing_common import LABELS, train_steps
from testing_model_types import CLASSES, CONFIGS, build, image_processor, stand_in_for_timm
from transformers import pipeline

import hf_explain
from hf_explain import METHODS, AutoModelForSaliency, FrozenClassifier, TTameForSaliency
from hf_explain.registry import default_method


TABLE = pathlib.Path(hf_explain.__file__).parents[1] / "model_cards" / "supported_models.md"
# in the default suite: what others do not have, and what is quick
QUICK = ("clip", "imagegpt", "pvt", "timm_wrapper", "vit_msn")
HEADER = """# Model types

Every class of Transformers' `AutoModelForImageClassification`: a tiny one with random weights and its own image
processor goes through Grad-CAM, RISE, a training step of a T-TAME head, which is saved and loaded, and
`pipeline("saliency")`. Printed by `python tests/test_model_types.py`; the tests hold every line.

Layer: the default one, as the classifier names it, with its grid in the tiny one. Attention: blocks in which all
patches attend to one another, which the methods of attention read. `timm_wrapper` is run around a stand-in for timm,
which needs torchvision. A row without a grid says why there is none.

Beside these, models that match images with texts are explained, CLIP among them
([README](../README.md#your-own-classifier-in-three-lines)). Detectors, segmenters and models of video are not: image
classifiers only. What does work is a `torch.nn.Module` around one that returns one score for each image and class.

| model type | class | layer | grid | attention | default method |
|---|---|---|---|---:|---|
"""


def row(kind, name, directory):
    """What one class can do, as a line of the table: all of it is done on the way."""
    try:
        classifier = FrozenClassifier(build(kind, name))
        classifier.layer_names  # noqa: B018 found by running it
    except (ImportError, ValueError) as error:
        reason = re.split(r"\. Pass | You can ", " ".join(str(error).split()))[0].rstrip(".")
        return f"| `{kind}` | {name} | {reason} | – | – | – |"
    classifier.model.save_pretrained(directory / "classifier")
    processor = image_processor(kind, directory, classifier.image_size[0])
    if kind != "timm_wrapper":  # whose own one Transformers insists on
        processor.save_pretrained(directory / "classifier")
    classifier = FrozenClassifier.from_pretrained(directory / "classifier", image_processor=processor)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 3, *classifier.image_size, generator=generator)
    maps = METHODS["gradcam"](classifier, pixel_values).saliency
    for one in (maps, METHODS["rise"](classifier, pixel_values, num_masks=3).saliency):
        assert one.amin() == 0 and one.amax() == 1

    head = TTameForSaliency.from_classifier(classifier)
    assert all(torch.isfinite(torch.tensor(train_steps(head, pixel_values, steps=1))))
    head.save_pretrained(directory / "head")
    loaded = AutoModelForSaliency.from_pretrained(directory / "head")
    assert torch.equal(loaded(pixel_values, target=1).saliency, head(pixel_values, target=1).saliency)

    method, options = default_method(classifier)
    image = Image.effect_noise((50, 40), 80).convert("RGB")
    for model, used in ((directory / "classifier", method), (directory / "head", "ttame")):
        (found,) = pipeline("saliency", model=str(model), image_processor=processor)(image, target=LABELS[2])
        assert found["label"] == LABELS[2] and found["method"] == used
        assert found["saliency_map"].shape == (40, 50) and found["saliency_map"].max() > 0
    blocks = len(classifier.token_layout.blocks) if classifier.token_layout is not None else "–"
    named = f"`{method}`" + "".join(f", {key} `{value}`" for key, value in options.items())
    grid = "×".join(map(str, maps.shape[1:]))
    return f"| `{kind}` | {name} | `{classifier.default_layer}` | {grid} | {blocks} | {named} |"


@pytest.mark.parametrize(
    ("kind", "name"), [pytest.param(*one, marks=() if one[0] in QUICK else pytest.mark.slow) for one in CLASSES]
)
def test_row_of_the_table(kind, name, tmp_path, monkeypatch):
    stand_in_for_timm(monkeypatch)
    assert row(kind, name, tmp_path) in TABLE.read_text().splitlines()


def test_table_has_every_type():
    lines = TABLE.read_text().removeprefix(HEADER).splitlines()
    assert [tuple(line.split(" | ")[:2]) for line in lines] == [(f"| `{kind}`", name) for kind, name in CLASSES]
    assert set(CONFIGS) == {kind for kind, _ in CLASSES}
    grids = [line.split(" | ")[3] for line in lines]
    count = len({line.split(" | ")[0] for line, grid in zip(lines, grids) if grid != "–"})
    readme = (TABLE.parents[1] / "README.md").read_text()
    assert f"{count} of {len(CONFIGS)} model types](model_cards/supported_models.md)" in readme


def main():
    print(HEADER, end="")
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.ExitStack() as stack:
        stand_in_for_timm(monkeypatch)
        for kind, name in CLASSES:
            print(row(kind, name, pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))), flush=True)


if __name__ == "__main__":
    main()
