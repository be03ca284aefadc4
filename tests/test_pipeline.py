"""`pipeline("saliency")`: every kind of image and target, and the map in its place on the original."""

import io
import pathlib
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import FAMILIES, LABELS, save_classifier, tiny_model, tiny_processor
from transformers import pipeline

from hf_explain import AutoModelForSaliency, FrozenClassifier, LCamForSaliency, SaliencyPipeline
from hf_explain.evaluation.explainer import PassCounter, resolve_explainer
from hf_explain.heads.scan import ScanForSaliency
from hf_explain.heads.shapley import ShapleyForSaliency
from hf_explain.heads.ttame import TTameForSaliency
from hf_explain.pipeline import load_pipeline
from hf_explain.registry import METHODS, default_method


CLASSIFIER_FAMILIES = [family for family in FAMILIES if family != "deit"]


def picture(width=70, height=50, mode="RGB", seed=0):
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
    return save_classifier("resnet", tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def head_dir(classifier_dir, tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("head")
    LCamForSaliency.from_classifier(classifier_dir).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def pipe(classifier_dir):
    return pipeline("saliency", model=classifier_dir)


@pytest.fixture(scope="module")
def head_pipe(head_dir):
    return pipeline("saliency", model=head_dir)


def check(result, image_size, count=1):
    assert len(result) == count
    for one in result:
        assert list(one)[:4] == ["label", "score", "saliency", "saliency_map"]
        assert one["label"] in LABELS and 0 <= one["score"] <= 1
        saliency_map = one["saliency_map"]
        assert saliency_map.shape == image_size[::-1] and saliency_map.dtype == np.float32
        assert 0 <= saliency_map.min() and saliency_map.max() <= 1
        assert one["saliency"].mode == "L" and one["saliency"].size == image_size
        np.testing.assert_array_equal(np.asarray(one["saliency"]), np.round(saliency_map * 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------------- loading


DEFAULTS = {
    "resnet": ("gradcam", {}),
    "convnext": ("hirescam", {"layer": "stage2"}),
    **dict.fromkeys(("vit", "deit-teacher"), ("transformer_attribution", {})),
}


@pytest.mark.parametrize("family", CLASSIFIER_FAMILIES)
def test_any_plain_classifier_is_explained_by_the_default_of_its_architecture(family, tmp_path):
    pipe = pipeline("saliency", model=save_classifier(family, tmp_path))
    assert isinstance(pipe, SaliencyPipeline)
    image, (method, options) = picture(), DEFAULTS[family]
    result = pipe(image)
    check(result, image.size)
    assert result[0]["saliency_map"].max() > 0.5
    assert (result[0]["method"], result[0]["method_options"]) == (method, options)
    named = pipe(image, method=method, **options)
    np.testing.assert_array_equal(result[0]["saliency_map"], named[0]["saliency_map"])
    # what is named is that method as it is; options alone are the default's
    for many in pipe([image, picture(40, 40)], method="hirescam", top_k=2, batch_size=2):
        assert [(one["method"], one["method_options"]) for one in many] == [("hirescam", {})] * 2
    layer = pipe.classifier.layer_names[1]
    other = pipe(image, layer=layer)[0]
    assert (other["method"], other["method_options"]) == (method, {"layer": layer})


def test_signed_and_contrastive_maps(pipe, head_pipe):
    image = PICTURES[0]
    plain, signed = (pipe(image, target="cat", method="hirescam", signed=sign)[0] for sign in (False, True))
    values = signed["saliency_map"]
    assert np.abs(values).max() == pytest.approx(1, abs=0.1) and values.min() < 0 < values.max()
    assert plain["saliency_map"].min() >= 0
    np.testing.assert_array_equal(np.asarray(signed["saliency"]), np.round((values + 1) * 127.5).astype(np.uint8))
    contrast = {"method": "hirescam", "signed": True}
    swapped = [pipe(image, target="tiger cat", against=1, **contrast)[0] for image in PICTURES[:2]]
    for batch_size in (1, 2):
        found = pipe(PICTURES[:2], target="cat", against="tiger cat", batch_size=batch_size, **contrast)
        for (one,), other in zip(found, swapped, strict=True):
            np.testing.assert_allclose(one["saliency_map"], -other["saliency_map"], atol=1e-5)
    assert pipe(PICTURES[0], target="cat", against=2)[0]["saliency_map"].min() >= 0
    shapley = pipeline("saliency", model=ShapleyForSaliency.from_classifier(pipe.classifier, hidden_size=4))
    for signed in (False, True):
        for one in shapley(PICTURES[0], top_k=2, signed=signed):
            assert one["method"] == "shapley" and bool(one["saliency_map"].min() < 0) == signed
    for asked, options, message in (
        (pipe, {"method": "layercam", "signed": True}, "`signed` cannot be had of 'layercam', whose maps do not say"),
        (pipe, {"method": "lime", "against": 1}, "`against` cannot be had of 'lime', whose maps are not linear"),
        (head_pipe, {"signed": True}, "`signed` cannot be had of 'lcam', .*; what can: gradcam, .*, shapley\\."),
        (pipe, {"target": "cat", "against": "cat"}, "`against` 'cat' is the class that is explained"),
        (pipe, {"against": 9}, "9 is out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            asked(PICTURES[0], **options)


def test_any_module_of_ones_own(tmp_path):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )  # fmt: skip
    classifier = FrozenClassifier(module, image_processor=tiny_processor("vit", tmp_path), image_size=(32, 32))
    image = picture()
    pipe = pipeline("saliency", model=classifier)
    assert pipe.classifier is classifier
    result = pipe(image, target=3)
    assert result[0]["saliency_map"].shape == image.size[::-1] and result[0]["saliency_map"].max() > 0
    assert (result[0]["label"], result[0]["method"]) == ("LABEL_3", "gradcam")
    head = TTameForSaliency.from_classifier(classifier, preset="ranking")
    assert pipeline("saliency", model=head)(image)[0]["method"] == "ttame"


def test_default_where_the_attention_is_not_shown(tmp_path):
    pipe = pipeline("saliency", model=save_classifier("vit", tmp_path))
    pipe.classifier.config._attn_implementation = "flash_attention_2"
    assert default_method(pipe.classifier) == ("gradcam", {})


def test_trained_head_loads_with_its_classifier(head_pipe, head_dir):
    image = picture()
    result = head_pipe(image, target="French horn")
    check(result, image.size)
    head = LCamForSaliency.from_pretrained(head_dir)
    pixel_values = head.backbone.image_processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = head(pixel_values, target="French horn").logits
    assert result[0]["score"] == pytest.approx(float(logits.softmax(-1)[0, LABELS.index("French horn")]), rel=1e-5)
    assert (result[0]["method"], result[0]["method_options"]) == ("lcam", {})
    training_free = head_pipe(image, target="French horn", method="gradcam")
    assert not np.array_equal(training_free[0]["saliency_map"], result[0]["saliency_map"])


def test_head_without_its_own_processor_uses_the_classifiers(head_dir, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((pathlib.Path(head_dir) / name).read_bytes())
    check(pipeline("saliency", model=str(tmp_path))(picture()), picture().size)


def test_instances_and_dtype(classifier_dir, head_dir):
    head = LCamForSaliency.from_pretrained(head_dir)
    check(pipeline("saliency", model=head)(picture()), picture().size)
    half = pipeline("saliency", model=head_dir, dtype=torch.bfloat16)
    assert half.model.dtype == half.classifier.dtype == torch.bfloat16
    check(half(picture()), picture().size)


def test_classifier_without_a_processor_is_one_sentence(tmp_path):
    tiny_model("resnet").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"has no image processor beside it .*pass pipeline\(\.\.\., image_processor="
    ):
        pipeline("saliency", model=str(tmp_path))


@pytest.mark.parametrize(
    "load",
    [
        FrozenClassifier.from_pretrained,
        AutoModelForSaliency.from_pretrained,
        LCamForSaliency.from_pretrained,
        load_pipeline,
        resolve_explainer,
    ],
)
def test_a_missing_directory_is_no_hub_id(load):
    with pytest.raises(FileNotFoundError, match="directory '/nope/dir' does not exist; give an existing directory"):
        load("/nope/dir")


def test_no_model_is_one_sentence():
    with pytest.raises(ValueError, match="^`model` is missing: give a trained head or an image classifier"):
        pipeline("saliency")


# -------------------------------------------------------------------------------------------------------------- images


def as_array(image):
    return np.asarray(image)


SAME_PICTURE = {
    "PIL": lambda image, path: image,
    "path": lambda image, path: str(path),
    "pathlib": lambda image, path: path,
    "uint8 array": lambda image, path: as_array(image),
    "float array": lambda image, path: as_array(image) / 255,
    "channels first": lambda image, path: as_array(image).transpose(2, 0, 1),
    "uint8 tensor": lambda image, path: torch.from_numpy(as_array(image).copy()),
    "float tensor": lambda image, path: torch.from_numpy(as_array(image).copy()).permute(2, 0, 1) / 255,
    "bytes": lambda image, path: path.read_bytes(),
    "dictionary": lambda image, path: {"image": image},
    "RGBA": lambda image, path: image.convert("RGBA"),
}


@pytest.mark.parametrize("kind", SAME_PICTURE)
def test_one_picture_in_every_form_gives_one_map(pipe, kind, tmp_path):
    image = picture()
    path = tmp_path / "picture.png"
    image.save(path)
    expected = pipe(image)[0]["saliency_map"]
    result = pipe(SAME_PICTURE[kind](image, path))
    check(result, image.size)
    np.testing.assert_allclose(result[0]["saliency_map"], expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "I;16", "I", "F", "YCbCr", "HSV"])
def test_every_mode(pipe, mode):
    image = Image.fromarray(np.arange(50 * 70, dtype=np.uint16).reshape(50, 70)) if mode == "I;16" else None
    image = image or picture(mode="L").convert(mode) if mode in ("I", "F") else image or picture(mode=mode)
    check(pipe(image), (70, 50))


@pytest.mark.parametrize("size", [(1, 1), (8000, 30), (30, 8000), (3, 50), (50, 3), (4, 1)])
def test_extreme_sizes(pipe, size):
    check(pipe(picture(*size)), size)


def test_exif_rotation_is_applied(pipe):
    upright = picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    turned = Image.open(io.BytesIO(file.getvalue()))
    assert turned.size == (40, 60)
    result = pipe(turned)
    check(result, upright.size)
    np.testing.assert_allclose(result[0]["saliency_map"], pipe(upright)[0]["saliency_map"], atol=1e-6)


def test_sixteen_bit_grey_is_scaled_not_clipped(pipe):
    grey = np.linspace(0, 255, 50 * 70).reshape(50, 70).astype(np.uint8)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    expected = pipe(Image.fromarray(grey))[0]["saliency_map"]
    np.testing.assert_allclose(pipe(wide)[0]["saliency_map"], expected, atol=1e-5)


def test_url(pipe, hub):
    image = picture()
    file = io.BytesIO()
    image.save(file, "PNG")
    hub.add_repo("user/pictures", {"picture.png": file.getvalue()})
    result = pipe(f"{hub.url}/user/pictures/resolve/main/picture.png", timeout=5)
    np.testing.assert_allclose(result[0]["saliency_map"], pipe(image)[0]["saliency_map"], atol=1e-6)


def test_what_is_no_image_at_all_is_an_answer_too(pipe):
    answers = pipe([object(), picture()], on_error="return")
    assert "image" in answers[0][0]["error"] and "saliency" in answers[1][0]


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("problem", [None, "single_label_classification", "multi_label_classification", "regression"])
def test_scores_are_those_of_image_classification(problem, num_labels, tmp_path):
    model = tiny_model("resnet", num_labels=num_labels)
    model.config.problem_type = problem
    processor = tiny_processor("resnet", tmp_path)
    expected = pipeline("image-classification", model=model, image_processor=processor)(picture())
    found = pipeline("saliency", model=model, image_processor=processor)(picture(), top_k=num_labels)
    assert [(one["label"], pytest.approx(one["score"], rel=1e-5)) for one in expected] == [
        (one["label"], one["score"]) for one in found
    ]
    assert problem == "regression" or found[0]["score"] < 1  # a softmax of one logit would be 1, whatever it is


# --------------------------------------------------------------------------------------------------------- many images


PICTURES = [picture(40 + 10 * i, 60 - 5 * i, seed=i) for i in range(5)]
DATASET = datasets.Dataset.from_dict({"id": list(range(5)), "picture": PICTURES}).cast_column(
    "picture", datasets.Image()
)
MANY = {
    "list": lambda: PICTURES,
    "tuple": lambda: tuple(PICTURES),
    "generator": lambda: (image for image in PICTURES),
    "column": lambda: DATASET["picture"],
    "dataset": lambda: DATASET,
    "stream": lambda: DATASET.to_iterable_dataset(),
}


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_many_images_equal_single_ones(head_pipe, kind, batch_size):
    results = list(head_pipe(MANY[kind](), batch_size=batch_size))
    assert len(results) == len(PICTURES)
    for image, result in zip(PICTURES, results):
        check(result, image.size)
        np.testing.assert_allclose(result[0]["saliency_map"], head_pipe(image)[0]["saliency_map"], atol=1e-5)


def test_lists_come_back_as_lists_and_streams_lazily(pipe):
    assert isinstance(pipe(PICTURES), list) and isinstance(pipe(DATASET["picture"]), list)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield PICTURES[0]

    results = iter(pipe(endless(), batch_size=2))
    next(results)
    assert len(taken) < 6


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("method", [None, "gradcam"])
def test_targets_per_image_and_several(head_pipe, batch_size, method):
    targets = ["tench", [1, "church"], 3]
    results = head_pipe(PICTURES[:3], target=targets, batch_size=batch_size, method=method)
    assert [[one["label"] for one in result] for result in results] == [
        [LABELS[0]],
        [LABELS[1], LABELS[4]],
        [LABELS[3]],
    ]
    for image, target, result in zip(PICTURES, targets, results):
        alone = head_pipe(image, target=target, method=method)
        for one, other in zip(result, alone, strict=True):
            np.testing.assert_allclose(one["saliency_map"], other["saliency_map"], atol=1e-5)
            assert one["score"] == pytest.approx(other["score"], rel=1e-4)


def test_one_class_for_all_images_as_a_scalar(head_pipe):
    expected = head_pipe(PICTURES[:2], target=1)
    for target in (torch.tensor(1), np.array(1), np.int64(1)):
        for one, same in zip(head_pipe(PICTURES[:2], target=target), expected, strict=True):
            assert one[0]["label"] == same[0]["label"] and one[0]["score"] == same[0]["score"]


def test_targets_in_a_stream(head_pipe):
    inputs = ({"image": image, "target": index} for index, image in enumerate(PICTURES[:3]))
    assert [result[0]["label"] for result in head_pipe(inputs)] == list(LABELS[:3])


@pytest.mark.parametrize("method", [None, "gradcam"])
def test_top_k_is_the_classifiers_order(head_pipe, method):
    result = head_pipe(PICTURES[0], top_k=3, method=method)
    check(result, PICTURES[0].size, count=3)
    scores = [one["score"] for one in result]
    assert scores == sorted(scores, reverse=True) and len({one["label"] for one in result}) == 3
    assert len(head_pipe(PICTURES[0], top_k=99, method=method)) == len(LABELS)
    assert len(head_pipe(PICTURES[0], top_k=3, target=1, method=method)) == 1


# ------------------------------------------------------------------------------------------- every method, every head


CHEAP = {
    "rise": {"num_masks": 3},
    "fgvis": {"budget": 3, "rounds": 1},
    "lime": {"num_samples": 6, "grid_size": 2},
    "kernel_shap": {"num_samples": 6, "grid_size": 2},
    "integrated_gradients": {"steps": 2},
    "smoothgrad": {"num_samples": 2},
    "occlusion": {"window_size": 16, "stride": 16},
    "oracle": {"grid": (2, 2)},
}


def test_every_method_by_its_name(tmp_path):
    pipe, image = pipeline("saliency", model=save_classifier("vit", tmp_path)), picture()
    before = pipe.classifier.config._attn_implementation
    for name in METHODS:
        result = pipe(image, method=name, **CHEAP.get(name, {}))
        check(result, image.size)
        assert result[0]["saliency_map"].max() > 0.5, name
        assert pipe.classifier.config._attn_implementation == before, name


def test_fgvis_gives_the_image_it_found_and_its_score(pipe):
    found = pipe(PICTURES[0], method="fgvis", mode="preservation", budget=4, rounds=1, target=[1, 3])
    check(found, PICTURES[0].size, count=2)
    for one in found:
        assert one["explanation"].mode == "RGB" and one["explanation"].size == (64, 64)
        assert 0 < one["explanation_score"] <= 1


@pytest.mark.parametrize(("head", "fields"), [(TTameForSaliency, {}), (ScanForSaliency, {"decoder_width": 2})])
def test_the_other_heads_by_their_directories(classifier_dir, tmp_path, head, fields):
    torch.manual_seed(0)
    head.from_classifier(classifier_dir, **fields).save_pretrained(tmp_path)
    pipe, image = pipeline("saliency", model=str(tmp_path)), PICTURES[0]
    assert type(pipe.head) is head
    result = pipe(image, target="church")
    check(result, image.size)
    if head is TTameForSaliency:
        with pytest.raises(ValueError, match="'TTameForSaliency' has no option 'percentile'"):
            pipe(image, percentile=50)
        return
    assert result[0]["reconstruction"].mode == "RGB" and result[0]["reconstruction"].size == (64, 64)
    default, low = (pipe(image, target="church", percentile=p)[0]["saliency_map"] for p in (95, 10))
    np.testing.assert_array_equal(default, result[0]["saliency_map"])
    assert not np.array_equal(default, low)
    with pytest.raises(ValueError, match=r"`percentile` must lie in \[0, 100\], got 101"):
        pipe(image, percentile=101)


# ------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("family", ["resnet", "vit", "deit-teacher", "convnext"])
def test_the_map_lies_where_the_classifier_looked(family, tmp_path, monkeypatch):
    """A method that reports the brightness of what it saw must give back the picture, crop undone."""
    from hf_explain.tensors.outputs import SaliencyOutput

    def brightness(classifier, pixel_values, target=None):
        mean, std = (torch.tensor(v)[:, None, None] for v in (classifier.image_mean, classifier.image_std))
        grey = (pixel_values * std + mean).mean(1).clamp(0, 1)
        logits = classifier(pixel_values)
        return SaliencyOutput(saliency=grey, logits=logits, target=logits.argmax(-1))

    monkeypatch.setitem(METHODS, "brightness", brightness)
    pipe = pipeline("saliency", model=save_classifier(family, tmp_path))
    height, width = 97, 150
    ramp = np.linspace(0, 1, width)[None] * np.ones((height, 1))
    image = Image.fromarray((ramp * 255).round().astype(np.uint8)).convert("RGB")
    found = pipe(image, method="brightness")[0]["saliency_map"]
    seen = found > 0.02
    columns = np.where(seen)[1]
    error = np.abs(found - ramp)[seen] * (width - 1)
    assert error.mean() < 1.0
    if family == "vit":
        assert columns.max() - columns.min() > 0.95 * width  # warped: everything was seen
    else:
        assert 0 == found[:, 0].max() == found[:, -1].max()  # cropped: the edges were not


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "tensh"},
            "`target` 'tensh' is not a label of this classifier; the nearest are 'tench, Tinca tinca'",
        ),
        ({"target": 5}, "`target` 5 is out of range: the classifier has 5 classes, 0 to 4."),
        ({"target": []}, "`target` is an empty list"),
        ({"target": 1.5}, "`target` must be a class index"),
        ({"top_k": 0}, "`top_k` must be a whole number of at least 1, got 0."),
        ({"method": "gradcams"}, "`method` 'gradcams' does not exist; the methods are gradcam"),
        ({"layer": "stage9"}, "`layer` 'stage9' does not exist; the layers are stem, stage1, stage2, stage3, stage4"),
        ({"opacity": 1}, "'gradcam' has no option 'opacity'; its options are layer."),
        ({"on_error": "skip"}, "`on_error` must be one of raise, return, got 'skip'."),
    ],
)
def test_bad_options(pipe, options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        pipe(PICTURES[0], **options)


def test_head_options_are_checked_too(head_pipe):
    with pytest.raises(ValueError, match="'LCamForSaliency' has no option 'layer'; its options are none."):
        head_pipe(PICTURES[0], layer="stage1")


def test_a_map_that_is_not_finite_is_an_error(head_dir):
    head = LCamForSaliency.from_pretrained(head_dir)
    for parameter in head.parameters():
        if parameter.requires_grad:
            torch.nn.init.constant_(parameter, float("inf"))
    with pytest.raises(ValueError, match="^Image 0 gets a map that is not finite; look for NaN or infinity in its"):
        pipeline("saliency", model=head)(PICTURES[0], top_k=2)


def test_target_list_must_fit_the_images(pipe):
    with pytest.raises(ValueError, match="`target` has 2 entries for 3 images"):
        pipe(PICTURES[:3], target=[0, 1])


@pytest.mark.parametrize("value", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 7), np.uint8), np.zeros(5)])
def test_bad_arrays(pipe, value):
    with pytest.raises(ValueError, match="An image array must have shape"):
        pipe(value)


def test_normalised_arrays_are_refused(pipe):
    with pytest.raises(ValueError, match=r"A floating image array must lie in \[0, 1\], got \[-1, 1\]"):
        pipe(np.stack([np.full((5, 5), v) for v in (-1.0, 0.0, 1.0)], axis=-1))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_corrupt_files_are_named_and_the_others_come_back_if_asked(pipe, tmp_path, batch_size):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    PICTURES[0].save(good)
    bad.write_bytes(good.read_bytes()[:100])
    with pytest.raises(ValueError, match=re.escape(f"The image {str(bad)!r} cannot be read: ")):
        pipe([str(good), str(bad)], batch_size=batch_size)
    with pytest.raises(FileNotFoundError, match="none.png' does not exist"):
        pipe(str(tmp_path / "none.png"))
    results = pipe([str(good), str(bad), str(good)], batch_size=batch_size, on_error="return")
    check(results[0], PICTURES[0].size)
    check(results[2], PICTURES[0].size)
    assert list(results[1][0]) == ["error"] and str(bad) in results[1][0]["error"]


def test_a_directory_is_the_list_of_its_pictures(pipe, tmp_path):
    for name in ("b.png", "a/c.JPG", "a/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PICTURES[0].save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.png").write_bytes(b"x")
    for directory in (tmp_path, str(tmp_path)):
        results = pipe(directory, on_error="return", target=[0, 1, 2, 3])
        assert [each[0].get("label", "error") for each in results] == [*LABELS[:3], "error"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' has no picture below it"):
        pipe(tmp_path / "empty")


@pytest.mark.parametrize("source", ["classifier_dir", "head_dir"])
def test_saved_and_loaded_again(source, request, tmp_path):
    pipe = pipeline("saliency", model=request.getfixturevalue(source))
    before = pipe.model.config.to_dict()
    pipe.save_pretrained(tmp_path / "saved")
    assert pipe.model.config.to_dict() == before and not hasattr(pipe.model.config, "custom_pipelines")
    again = pipeline("saliency", model=str(tmp_path / "saved"))
    np.testing.assert_array_equal(again(PICTURES[0])[0]["saliency_map"], pipe(PICTURES[0])[0]["saliency_map"])
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="`save_directory` '.*file' is a file; give a directory"):
        pipe.save_pretrained(tmp_path / "file")


def test_a_processor_that_does_otherwise_than_it_says(classifier_dir):
    class Halving:
        size, do_resize = {"height": 64, "width": 64}, True

        def __call__(self, images, **kwargs):
            return {"pixel_values": torch.zeros(1, 3, 32, 64)}

    pipe = pipeline("saliency", model=classifier_dir)
    pipe.image_processor = Halving()
    with pytest.raises(ValueError, match=r"Halving makes \(32, 64\) pixels .* its settings say \(64, 64\)"):
        pipe(picture())


def test_pixel_limit(pipe, monkeypatch):
    monkeypatch.setattr("hf_explain.io.images.MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="has 70x50 pixels, more than the limit of 100"):
        pipe(picture())


def test_not_an_image(pipe):
    with pytest.raises(TypeError, match="must be an image or many images, got int"):
        pipe(3)
    with pytest.raises(ValueError, match="needs the key 'image'"):
        pipe({"picture": picture()})


# what one image costs for one class, as (images that enter as pixels, images that enter at an inner layer)
COSTS = {"gradcam": (1, 1), "rise": (1 + 20, 0), "random": (1, 0)}


@pytest.mark.parametrize("method", COSTS)
def test_no_pass_for_a_target_that_nobody_asked_for(classifier_dir, method):
    """Two images with one and three targets in one batch: four maps, and the passes of four."""
    pipe = pipeline("saliency", model=classifier_dir)
    options = {"num_masks": 20} if method == "rise" else {}
    images, targets = [picture(40, 40), picture(52, 44)], [2, [0, 1, 2]]
    with PassCounter(pipe.classifier) as counter:
        together = pipe(images, target=targets, method=method, batch_size=2, **options)
    assert (counter.full, counter.tail) == tuple(4 * each for each in COSTS[method])
    with PassCounter(pipe.classifier) as counter:
        pipe(images, method=method, batch_size=2, **options)  # the top class is found in the method's own pass
    assert (counter.full, counter.tail) == tuple(2 * each for each in COSTS[method])
    alone = [pipe(image, target=target, method=method, **options) for image, target in zip(images, targets)]
    assert [len(result) for result in together] == [1, 3]
    for many, few in zip(together, alone):
        assert [one["label"] for one in many] == [one["label"] for one in few]
        for one, other in zip(many, few):
            np.testing.assert_allclose(one["saliency_map"], other["saliency_map"], atol=1e-5)


@pytest.mark.parametrize("head_class", [LCamForSaliency, ScanForSaliency], ids=["lcam", "scan"])
def test_a_heads_maps_of_some_images_only(classifier_dir, head_class, tmp_path, monkeypatch):
    """One pass of the classifier for all targets, one of the head per target; maps as from single calls."""
    head_class.from_classifier(classifier_dir).save_pretrained(tmp_path / "head")
    pipe = pipeline("saliency", model=str(tmp_path / "head"))
    images, targets = [picture(40, 40), picture(52, 44), picture(36, 60)], [2, [0, 1, 2], [1, 0]]
    explained, explain = [], pipe.head.forward_head

    def counted(features, target):
        explained.append(len(target))
        return explain(features, target)

    monkeypatch.setattr(pipe.head, "forward_head", counted)
    with PassCounter(pipe.classifier) as counter:
        together = pipe(images, target=targets, batch_size=3)
    assert explained == [3, 2, 1]
    assert counter.full == 3
    assert counter.tail == (0 if head_class is LCamForSaliency else 3 + 2 + 1)
    for image, target, many in zip(images, targets, together):
        for one, other in zip(many, pipe(image, target=target), strict=True):
            assert one["label"] == other["label"]
            np.testing.assert_allclose(one["saliency_map"], other["saliency_map"], atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- precision


def test_half_precision(pipe, head_pipe, monkeypatch):
    monkeypatch.setattr(LCamForSaliency, "allows_bfloat16", True)
    monkeypatch.setattr("hf_explain.classifiers.precision.has_bfloat16", lambda device: True)
    image = picture()
    exact, found = head_pipe(image, target=1), head_pipe(image, target=1, dtype="bfloat16")
    check(found, image.size)
    stated = {"asked": "bfloat16", "dtype": "bfloat16", "reason": "asked for"}
    assert head_pipe.stated_precision() == {"precision": stated}
    assert found[0]["score"] != exact[0]["score"] and found[0]["score"] == pytest.approx(exact[0]["score"], abs=0.02)
    np.testing.assert_allclose(found[0]["saliency_map"], exact[0]["saliency_map"], atol=0.1)
    # what was not measured to make the same maps does not run in it
    assert not pipe.allows_bfloat16("input_x_gradient")
    found = pipe(image, method="input_x_gradient", dtype="bfloat16")
    assert found[0]["score"] == pipe(image, method="input_x_gradient")[0]["score"]
    head_pipe([image, picture(seed=1)], batch_size=2, dtype="auto")
    assert "on the first 2 images bfloat16 changes" in head_pipe.stated_precision()["precision"]["reason"]
    assert head_pipe(image, target=1)[0]["score"] == exact[0]["score"]
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, auto, got 'half'"):
        head_pipe(image, dtype="half")
