"""The demo: everything behind the page without Gradio, and (slow) the page itself in headless Chromium.

`python -m pytest tests/test_demo.py -m slow --basetemp DIR` leaves screenshots below DIR, to be looked at. It needs
Gradio, Selenium, Chromium and its driver.
"""

import base64
import builtins
import contextlib
import inspect
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path
from threading import Barrier

import evaluate
import numpy as np
import pytest
import yaml
from PIL import Image
from testing_common import LABELS, save_classifier
from testing_zero_shot import save_zero_shot

from hf_explain import LCamForSaliency, ScanForSaliency
from hf_explain.apps import demo as demo_module
from hf_explain.apps.demo import _CSS, _Page, launch, write_space
from hf_explain.apps.demo_explainers import (
    MAX_SIDE,
    Demo,
    Visit,
    class_choices,
    download_files,
    example_files,
)
from hf_explain.apps.demo_link import REMOVED, Links, View
from hf_explain.apps.demo_removal import about, chart, shades
from hf_explain.cli import main
from hf_explain.io.colors import KINDS, OPACITY
from hf_explain.io.pictures import overlay
from hf_explain.methods.controls import oracle
from hf_explain.metrics import path as metric_path
from hf_explain.metrics.functional import auc_d
from hf_explain.metrics.module import build_demo
from hf_explain.registry import METHODS, methods_for


ID2LABEL = dict(enumerate(LABELS))
SCORES = [0.1, 0.2, 0.4, 0.25, 0.05]


def save_head(cls, classifier, directory):
    cls.from_classifier(classifier).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier, an L-CAM and a SCAN head of it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny-resnet").mkdir()
    classifier = save_classifier("resnet", folder / "tiny-resnet")
    lcam, scan = (
        save_head(cls, classifier, folder / name)
        for cls, name in ((LCamForSaliency, "tiny-lcam"), (ScanForSaliency, "tiny-scan"))
    )
    return {"classifier": classifier, "lcam": lcam, "scan": scan}


@pytest.fixture(scope="module")
def demo(models):
    return Demo([models["lcam"], models["scan"]])


@pytest.fixture
def visit():
    return Visit(image=photo())


def photo(size=(90, 60), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


# ------------------------------------------------------------------------------------------------------------- classes


def test_choices_are_the_most_probable_classes():
    assert class_choices(ID2LABEL, SCORES, limit=2) == [("tiger cat (40.0%)", 2), ("French horn (25.0%)", 3)]
    assert [index for _, index in class_choices(ID2LABEL, SCORES)] == [2, 3, 1, 0, 4]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("cat", [2, 1]),  # both start a word, so the more probable first
        ("  CAT  tiger ", [2]),  # any case, any order
        ("ch", [4, 3, 0]),  # church starts with it; the others have it inside, by probability
        ("3", [3]),
        ("tinca", [0]),  # synonyms count
        ("(", []),
        ("zebra", []),
    ],
)
def test_search(query, expected):
    assert [index for _, index in class_choices(ID2LABEL, SCORES, query)] == expected


def test_search_keeps_the_chosen_class_in_sight():
    assert [index for _, index in class_choices(ID2LABEL, SCORES, "church", keep=2)] == [4, 2]
    assert [index for _, index in class_choices(ID2LABEL, SCORES, "church", keep=99)] == [4]


def test_search_without_a_picture_has_no_scores():
    assert class_choices(ID2LABEL, None, "cat") == [("cat", 1), ("tiger cat", 2)]


def test_search_lists_a_page_and_not_a_thousand():
    many = {index: f"class {index}" for index in range(1000)}
    assert len(class_choices(many, None, "class")) == 12 and len(class_choices(many)) == 5


# ---------------------------------------------------------------------------------------------------------- explainers


def test_methods_are_those_that_the_classifier_has(models, tmp_path):
    convolutional, transformer = Demo(models["classifier"]), Demo(save_classifier("vit", tmp_path))
    assert {"rollout", "raw_attention"}.isdisjoint(convolutional.explainers)
    assert {"rollout", "raw_attention"} <= set(transformer.explainers)
    assert set(transformer.explainers) == set(METHODS)
    assert convolutional.default == ["gradcam", "input_x_gradient", "random"]  # side by side with what chance does
    assert transformer.default == ["transformer_attribution", "gradcam", "random"]


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_left_out_methods_refuse_the_classifier_and_no_other_does(family, tmp_path, monkeypatch):
    monkeypatch.setitem(inspect.unwrap(oracle).__kwdefaults__, "grid", (2, 2))  # thousands of passes fewer
    demo = Demo(save_classifier(family, tmp_path))
    pipe = demo.explainers["gradcam"].pipe
    offered = methods_for(pipe.classifier)
    quick = [name for name in offered if METHODS[name].__module__.endswith((".cam", ".attention", ".controls"))]
    explained = [demo.explain(Visit(image=photo()), [name], 1)[0] for name in quick]
    assert all(one.saliency.size == (90, 60) for one in explained)
    for name in set(METHODS) - set(offered):
        with pytest.raises(ValueError, match="needs attention"):
            pipe(photo(), method=name)


def test_heads_share_their_classifier_and_come_first(demo):
    assert list(demo.explainers)[:2] == ["tiny-lcam", "tiny-scan"]
    assert demo.default == ["tiny-lcam", "tiny-scan", "gradcam"]
    assert [demo.explainers[name].kind for name in ("tiny-lcam", "gradcam", "random")] == list(KINDS)
    assert len({id(explainer.pipe.classifier) for explainer in demo.explainers.values()}) == 1
    assert all(
        one.pipe.head is None or one.pipe.head.backbone is one.pipe.classifier for one in demo.explainers.values()
    )
    assert "gradcam" in demo.explainers


def test_methods_of_two_classifiers_say_whose_they_are(models, tmp_path):
    other = save_classifier("convnext", tmp_path)
    names = list(Demo([models["classifier"], other]).explainers)
    assert "gradcam (tiny-resnet)" in names and f"gradcam ({tmp_path.name})" in names and "gradcam" not in names


def test_different_classes_cannot_share_a_page(models, tmp_path):
    with pytest.raises(ValueError, match="have different classes.*start one demo for each"):
        Demo([models["classifier"], save_classifier("convnext", tmp_path, num_labels=3)])


def test_another_classifier_for_a_head(models, tmp_path):
    copy = shutil.copytree(models["classifier"], tmp_path / "moved")
    demo = Demo(models["lcam"], classifier=copy)
    assert demo.explainers["tiny-lcam"].pipe.classifier.name_or_path == str(copy)


def test_texts_as_classes(tmp_path):
    model = save_zero_shot("clip", tmp_path / "clip")
    demo = Demo(model, candidate_labels=["cat", "remote control"], hypothesis_template="a {}")
    assert demo.id2label == {0: "cat", 1: "remote control"} and "legrad" in demo.explainers
    assert demo.explain(Visit(image=photo()), ["gradcam"], 1)[0].saliency.size == (90, 60)
    with pytest.raises(ValueError, match="`candidate_labels` are missing"):
        Demo(model)
    space = tmp_path / "space"
    words = ["demo", "--model", "me/clip", "--write-space", str(space), "--candidate_labels", "a 'cat'", "dog"]
    assert main(words) == 0
    assert """launch(["me/clip"], candidate_labels=["a 'cat'", 'dog'])""" in (space / "app.py").read_text()


def test_no_model():
    with pytest.raises(ValueError, match="`models` is empty; give at least one"):
        Demo([])


# ----------------------------------------------------------------------------------------------------------- comparing


def test_compare_equals_the_pipeline(demo, visit):
    shown = demo.explain(visit, ["tiny-scan", "gradcam", "tiny-lcam"], 3)
    assert [one.explainer for one in shown] == ["tiny-scan", "gradcam", "tiny-lcam"] and visit.shown == shown
    for one, method in zip(shown, (None, "gradcam", None)):
        expected = demo.explainers[one.explainer].pipe(visit.image, target=3, method=method)[0]
        assert (one.label, one.score) == (expected["label"], expected["score"])
        assert np.array_equal(one.saliency, expected["saliency"])
        assert one.caption == f"French horn {expected['score']:.1%}"


def test_the_class_is_the_most_probable_one_until_chosen(demo, visit):
    expected = demo.explainers["gradcam"].pipe(visit.image, method="gradcam")[0]
    assert demo.explain(visit, ["gradcam"])[0].label == expected["label"]
    scores = demo.scores(visit, demo.explainers["gradcam"])
    assert scores[LABELS.index(expected["label"])] == max(scores) == pytest.approx(expected["score"])


def test_percentile_reaches_scan_alone(demo, visit):
    assert [name for name, one in demo.explainers.items() if one.takes_percentile] == ["tiny-scan"]
    first = demo.explain(visit, ["tiny-scan", "tiny-lcam"], 1, percentile=95)
    second = demo.explain(visit, ["tiny-scan", "tiny-lcam"], 1, percentile=5)
    assert not np.array_equal(first[0].saliency, second[0].saliency) and first[1] is second[1]


def test_maps_are_remembered_but_not_for_ever(demo, visit):
    first = demo.explain(visit, ["centre"], 0)[0]
    assert demo.explain(visit, ["centre", "random"], 0)[0] is first
    for percentile in range(20):
        demo.explain(visit, ["tiny-scan"], 0, percentile)
    assert len(visit.maps) == 12


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([], "No explainer is chosen; choose one"),
        (["gradcam", "eigencam", "centre", "random"], "4 explainers are chosen; at most 3"),
        (["gradcan"], "There is no explainer 'gradcan'; there are tiny-lcam,"),
    ],
)
def test_choices_that_do_not_work(demo, visit, chosen, message):
    with pytest.raises(ValueError, match=message):
        demo.explain(visit, chosen)


def test_no_picture_yet(demo):
    with pytest.raises(ValueError, match="There is no picture yet; upload one"):
        demo.explain(Visit(), ["gradcam"])


# ------------------------------------------------------------------------------------------------------------ pictures


def test_large_pictures_are_shrunk(demo, tmp_path):
    Image.new("RGB", (3200, 1000)).save(tmp_path / "large.png")
    assert demo.open(str(tmp_path / "large.png")).size == (MAX_SIDE, 500)
    assert demo.open(photo()).size == (90, 60)


def test_a_damaged_picture_is_named_without_the_server_s_directories(demo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    with pytest.raises(ValueError, match="The image 'broken.png' cannot be read") as error:
        demo.open(str(tmp_path / "broken.png"))
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(FileNotFoundError, match="The image 'none.png' does not exist"):
        demo.open(str(tmp_path / "none.png"))


def test_downloads_are_the_map_and_the_overlay(demo, visit, tmp_path):
    explained = demo.explain(visit, ["gradcam++"], 0)[0]
    map_path, overlay_path = download_files(tmp_path, visit.image, explained, alpha=0.5)
    assert map_path == str(tmp_path / "tench-gradcam++-map.png")
    assert overlay_path == str(tmp_path / "tench-gradcam++-overlay.png")
    with Image.open(map_path) as picture:
        assert picture.mode == "L" and np.array_equal(picture, explained.saliency)
    with Image.open(overlay_path) as picture:
        assert np.array_equal(picture, overlay(visit.image, explained.saliency, alpha=0.5))


def test_examples_are_one_s_own(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    photo().save(own / "b.jpg"), photo().save(own / "a.png"), (own / "notes.txt").write_text("no picture")
    assert example_files([own]) == [str(own / "a.png"), str(own / "b.jpg")]
    assert example_files([own / "b.jpg"]) == [str(own / "b.jpg")]
    with pytest.raises(FileNotFoundError, match="`examples` .*none.png' is neither a picture nor a folder"):
        example_files([own / "none.png"])


def test_photographs_come_with_their_sources():
    names = [Path(path).name for path in example_files()]
    assert names == ["coffee.jpg", "cat.jpg", "rocket.jpg"]
    sources = Path(example_files()[0]).with_name("SOURCES.md").read_text()
    for path in map(Path, example_files()):
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and max(picture.size) <= 640 and path.stat().st_size < 60_000
        [row] = [line for line in sources.splitlines() if line.startswith(f"| `{path.name}`")]
        assert "CC0" in row or "public domain" in row


class Updates:
    """Gradio as far as the page's handlers know it."""

    @staticmethod
    def update(**changes):
        return changes


def shown_files(panels):
    return [value for value in panels if isinstance(value, str) and value.endswith(".png")]


def test_events_that_overtake_one_another_find_their_files(demo, tmp_path):
    """A slider is dragged while another one's maps are drawn: no event may take the files of the other."""
    page = _Page(demo, Updates, str(tmp_path))
    photo().save(tmp_path / "photo.png")
    visit = Visit()
    chosen = ["tiny-lcam", "gradcam"]
    page.uploads.sent([str(tmp_path / "photo.png")])
    page.new_image(visit, {"path": str(tmp_path / "photo.png")}, chosen, 95, 0.5)
    missing, both = [], Barrier(2)

    def drag(start):
        for step in range(15):
            panels = page.draw(visit, (start + step) / 30) if start else page.explain(visit, chosen, 95, step / 30)
            missing.extend(path for path in shown_files(panels) if not Path(path).is_file())
            both.wait(60)  # two events at a time, as two sliders send them, however the threads are scheduled

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(drag, (0, 1)))
    assert missing == []
    assert len(visit.folders) <= 6  # and old ones do not pile up
    assert len(list(tmp_path.iterdir())) == len(visit.folders) + 1
    page.new_image(visit, None, chosen, 95, 0.5)
    assert shown_files(page.draw(visit, 0.5)) == []


# ------------------------------------------------------------------------------------------------- removing pixels


def test_curves_are_those_of_the_metric(demo, visit):
    """Its probability variant, step by step; each map is measured once."""
    demo.explain(visit, ["tiny-lcam", "random"], 3)
    assert [one.removal for one in visit.shown] == [None, None]  # maps are shown first
    demo.measure(visit)
    first, second = (one.removal for one in visit.shown)
    for one in visit.shown:
        pipe, pixel_values, saliency, logits, target = one.seen
        mean, std = pipe.classifier.image_mean, pipe.classifier.image_std
        settings = {"target": 3, "score": "probability", "image_mean": mean, "image_std": std}
        expected = auc_d(pipe.classifier, pixel_values, saliency, **settings)
        assert one.removal.positive == pytest.approx(expected.curves.positive[0].tolist(), abs=1e-5)
        assert one.removal.negative == pytest.approx(expected.curves.negative[0].tolist(), abs=1e-5)
        assert one.removal.auc_d == pytest.approx(expected.auc_d.item(), abs=1e-3)
        assert one.removal.positive[0] == pytest.approx(one.score)
    demo.explain(visit, ["random", "tiny-lcam"], 3)
    demo.measure(visit)
    assert [one.removal for one in visit.shown] == [second, first]


def test_the_picture_loses_the_most_salient_pixels(demo, visit):
    [one] = demo.explain(visit, ["centre"], 0)
    demo.measure(visit)
    whole, half, empty = (np.asarray(one.removal.picture(step)) for step in (0, 5, 10))
    assert np.array_equal(whole, one.removal.seen) and empty.max() == 0
    gone = (half == 0).all(-1) & (whole != 0).any(-1)
    assert gone[16, 16] and not gone[0, 0]  # a map of the centre
    assert (half == 0).all(-1).sum() >= half.shape[0] * half.shape[1] // 2
    assert np.array_equal(half[~gone], whole[~gone])


def test_probabilities_are_the_classifier_s_own(models):
    """Of several labels at once each has a sigmoid; a regression has none, and no chart."""
    demo = Demo(models["classifier"])
    for problem in ("multi_label_classification", "regression"):
        demo.explainers["gradcam"].pipe.classifier.config.problem_type = problem
        visit = Visit(image=photo())
        [one] = demo.explain(visit, ["gradcam"], 1)
        demo.measure(visit)
        if problem == "regression":
            assert one.removal is None
        else:
            assert one.removal.positive[0] == pytest.approx(one.score)


def test_chart_marks_the_step_and_holds_no_markup(demo, visit):
    demo.explain(visit, ["tiny-lcam", "random"], 3)
    demo.measure(visit)
    lines = [(one.choice, one.removal) for one in visit.shown]
    drawn = chart(lines, "<b>French</b> horn", 4)
    assert (drawn.count("<figure"), drawn.count("<polyline")) == (2, 4)
    assert "French" in drawn and "<b>French" not in drawn
    removal = visit.shown[0].removal
    assert f"{removal.positive[0]:.0%} → {removal.positive[4]:.0%}" in drawn
    assert drawn.count("left:40%;bottom:") == 4  # a point on each curve
    assert chart(lines, "horn", 5) != drawn
    assert "Random" not in about([one.choice for one in visit.shown]) and "uniform" in about([visit.shown[1].choice])


def test_a_colour_says_what_an_explainer_is():
    assert shades(["trained head", "training-free method", "control", "training-free method"]) == [
        "head0",
        "free0",
        "control0",
        "free1",
    ]
    assert [f".head0 {{--kind: {KINDS['trained head'][0]}}}" in _CSS, "white 35%" in _CSS] == [True, True]


# ------------------------------------------------------------------------------------------------------------- links


@pytest.fixture
def links():
    return Links({**ID2LABEL, 5: "church"}, ["mine", "gradcam", "random"], ["mine", "gradcam"], ["coffee", "cat"])


@pytest.mark.parametrize(
    ("view", "query"),
    [
        (View("coffee", None, ("mine", "gradcam")), "picture=coffee"),
        (View("", 2, ("mine", "gradcam")), "picture=&class=tiger+cat"),
        (View("cat", 5, ("mine", "gradcam")), "picture=cat&class=5"),  # there are two churches
        (
            View("cat", 3, ("random",), 70, 0.25, 40),
            "picture=cat&class=French+horn&explainer=random&removed=70&opacity=0.25&percentile=40",
        ),
    ],
)
def test_a_link_says_what_is_not_as_it_is_by_itself(links, view, query):
    assert links.write(view) == query
    assert links.read("?" + query) == (view, None)


def test_an_address_without_settings_is_the_first_example(links):
    for query in ("", "?", "?__theme=dark&utm_source=mail"):
        assert links.read(query) == (View("coffee", None, ("mine", "gradcam"), REMOVED, OPACITY), None)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("picture=dog", "no example 'dog'"),
        ("class=zebra&explainer=gradcam&explainer=lime", "no class 'zebra', no explainer 'lime'"),
        ("class=99", "no class '99'"),
        ("removed=101&opacity=nan&percentile=x", "no removed '101', no opacity 'nan', no percentile 'x'"),
        ("picture=" + "x" * 5000, "no example 'xx"),
    ],
)
def test_what_a_link_asks_for_in_vain_is_said(links, query, said):
    view, problem = links.read(query)
    assert problem.startswith("The link asks for what is not here: " + said) and len(problem) < 300
    assert view.target is None and view.removed == REMOVED and view.explainers in (("mine", "gradcam"), ("gradcam",))
    assert links.read("a=1&" * 50)[1] == "The link cannot be read; it has too many parts."


def test_a_link_opens_what_it_was_written_from(demo, tmp_path):
    examples = [str(tmp_path / "one.png"), str(tmp_path / "two.png")]
    for seed, path in enumerate(examples):
        photo(seed=seed).save(path)
    page = _Page(demo, Updates, str(tmp_path), examples)
    visit = Visit()
    page.arrive(visit, "?picture=two&class=church&explainer=random&removed=50")
    shown = page.new_image(visit, {"path": examples[1]}, ["random"], 95, OPACITY, 50)
    assert shown[-1] == "picture=two&class=church&explainer=random&removed=50" and visit.shown[0].label == "church"
    assert page.remove(visit, 70)[-1].endswith("&removed=70")
    link = page.choose(visit, 2, ["tiny-scan"], 40, OPACITY, 70)[-1]
    again = Visit()
    settings = page.arrive(again, "?" + link)
    assert [one.get("value") for one in settings[2:]] == [examples[1], ["tiny-scan"], 40, OPACITY, 70]
    assert page.new_image(again, {"path": examples[1]}, ["tiny-scan"], 40, OPACITY, 70)[-1] == link
    page.new_image(again, {"path": examples[0]}, ["tiny-scan"], 40, OPACITY, 70)
    assert again.target != 2 or again.shown[0].score == max(next(iter(again.scores.values())))  # its own class


# ------------------------------------------------------------------------------------------------- starting, and Space


def test_without_gradio_one_sentence_says_what_to_install(models, monkeypatch, capsys):
    find = util.find_spec
    monkeypatch.setattr(demo_module.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    message = "The demo needs Gradio, which is not installed: pip install 'hf-explain[demo]'."
    with pytest.raises(ImportError) as error:
        launch(models["classifier"])
    assert str(error.value) == message
    assert main(["demo", "--model", models["classifier"]]) == 1
    assert capsys.readouterr().err == f"hf-explain demo: {message}\n"


def test_the_module_itself_does_not_import_gradio(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert name.split(".")[0] != "gradio"
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "hf_explain.apps.demo")
    # the package keeps its module in an attribute as well, which the second import replaces
    monkeypatch.setattr("hf_explain.apps.demo", demo_module)
    __import__("hf_explain.apps.demo")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none(port):
    with pytest.raises(ValueError, match=f"`port` must lie in 1 to 65535, got {port}"):
        launch("anything", port=port)


def test_command_line(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(demo_module, "launch", lambda *args, **kwargs: calls.append((args, kwargs)))
    assert main(["demo", "a", "--model", "b", "--classifier", "c", "--share", "--port", "7000"]) == 0
    assert calls == [
        (
            (["a", "b"], "c"),
            {
                "examples": None,
                "device": None,
                "dtype": "float32",
                "share": True,
                "port": 7000,
                "trust_remote_code": False,
            },
        ),
    ]
    assert main(["demo"]) == 1
    assert "MODEL is missing; name a head or a classifier" in capsys.readouterr().err
    assert main(["demo", "--model", "me/head", "--write-space", str(tmp_path / "space")]) == 0
    assert len(calls) == 1 and "Wrote " in capsys.readouterr().out
    trusted = ["demo", "--model", "me/head", "--write-space", str(tmp_path / "trusted"), "--trust_remote_code"]
    assert main(trusted) == 0
    spaces = [(tmp_path / name / "app.py").read_text() for name in ("space", "trusted")]
    assert ["trust_remote_code=True" in space for space in spaces] == [False, True]


def test_space(tmp_path, monkeypatch):
    space = write_space(tmp_path / "space", ["me/lcam-resnet-50", "me/scan-resnet-50"], classifier="me/resnet")
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert (space / "requirements.txt").read_text() == "hf-explain[demo]\n"
    _, header, body = (space / "README.md").read_text().split("---\n")
    front = yaml.safe_load(header)
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py"
    assert front["models"] == ["me/lcam-resnet-50", "me/scan-resnet-50", "me/resnet"]
    assert "[me/scan-resnet-50](https://huggingface.co/me/scan-resnet-50)" in body
    calls = []
    monkeypatch.setattr(demo_module, "launch", lambda *args, **kwargs: calls.append((args, kwargs)))
    exec(compile((space / "app.py").read_text(), "app.py", "exec"), {})
    assert calls == [((["me/lcam-resnet-50", "me/scan-resnet-50"],), {"classifier": "me/resnet"})]
    write_space(space, "me/other")  # again: replaced
    assert 'launch(["me/other"])' in (space / "app.py").read_text()


@pytest.mark.parametrize("name", ["./head", "/head", "a b/c", "justaname"])
def test_a_space_needs_hub_ids(tmp_path, name):
    with pytest.raises(ValueError, match="is a directory of this machine|is not a repository on the Hub"):
        write_space(tmp_path / "space", name)
    assert not (tmp_path / "space").exists()


def test_a_space_refuses_a_directory_that_looks_like_an_id(tmp_path, monkeypatch):
    (tmp_path / "runs" / "head").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`model` 'runs/head' is a directory of this machine"):
        write_space("space", "runs/head")


# ---------------------------------------------------------------------------------------------------- the page itself


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the page did not change in time"
        time.sleep(0.2)
    return value


@pytest.fixture
def page(models, tmp_path):
    pytest.importorskip("gradio")
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary and driver_path, "this test needs Chromium and its driver: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1200"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    with contextlib.ExitStack() as stack:  # a browser that does not start must not leave the server running
        app = launch([models["lcam"], models["scan"]], block=False)
        stack.callback(app.close)
        browser = webdriver.Chrome(service=webdriver.ChromeService(driver_path), options=options)
        stack.callback(browser.quit)
        browser.get(app.local_url + "?picture=")
        yield browser, app.local_url


@pytest.mark.slow
def test_the_page_in_a_browser(page, tmp_path):
    browser, url = page

    def all_of(selector):
        return browser.find_elements("css selector", selector)

    def source(place=0):
        script = f"let e = document.querySelector('#overlay{place} img'); return e ? e.src : null"
        return browser.execute_script(script)

    def screenshot(name):
        """The whole page, for a person to look at."""
        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        picture = browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        (tmp_path / name).write_bytes(base64.b64decode(picture))

    def watch():
        browser.execute_script(
            "window.toasts = []; new MutationObserver(() => document.querySelectorAll('.toast-body').forEach("
            "toast => window.toasts.push(toast.innerText))).observe(document.body, {childList: true, subtree: true})"
        )

    watch()
    photo((300, 200)).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    wait(lambda: all_of("#picture input[type=file]"))[0].send_keys(str(tmp_path / "photo.png"))
    wait(lambda: source(0) and source(1))  # both heads
    wait(lambda: len(all_of("#classes label")) == 5)

    before = source()  # another class of the top five
    browser.execute_script("document.querySelectorAll('#classes input')[2].click()")
    wait(lambda: source() not in (before, None))

    before = source()  # a class by search
    search = all_of("#search textarea, #search input")[0]
    search.send_keys("church")
    wait(lambda: all_of("#classes label")[0].text.startswith("church"))
    search.send_keys("\ue007")
    wait(lambda: "church" in (source() or "") and source() != before)

    for selector, steps in (("#opacity", 4), ("#percentile", 40)):
        before = source(1)
        all_of(f"{selector} input[type=range]")[0].send_keys("\ue012" * steps)
        wait(lambda before=before: source(1) not in (before, None))

    def removals():
        script = "return [...document.querySelectorAll('#removal img')].map(one => one.src)"
        return browser.execute_script(script)

    before = wait(removals)
    all_of("#removed input[type=range]")[0].send_keys("\ue014" * 2)
    wait(lambda: len(removals()) == 3 and not set(removals()) & set(before))
    wait(lambda: "removed=50" in browser.current_url)
    assert "picture=&class=church" in browser.current_url and "opacity=0.6" in browser.current_url

    wait(lambda: all_of("#map0"))[0].click()
    saved = tmp_path / "downloads" / "church-tiny-lcam-map.png"
    wait(saved.is_file)
    with Image.open(saved) as picture:
        assert picture.mode == "L" and picture.size == (300, 200)
    screenshot("desktop.png")

    assert browser.execute_script("return window.toasts") == []  # Gradio's way to show what went wrong
    browser.get(browser.current_url.replace("picture=", "picture=cat"))  # a link, with a picture that it can hold
    watch()
    wait(lambda: "church" in (source() or "") and len(removals()) == 3)
    assert "picture=cat&class=church" in browser.current_url and "removed=50" in browser.current_url
    assert all_of("#removed input[type=number]")[0].get_attribute("value") == "50"
    screenshot("link.png")

    browser.set_window_size(500, 900)  # the narrowest window there is; narrower by emulation
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait(lambda: browser.execute_script("return window.innerWidth") == 390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    screenshot("phone.png")

    browser.execute_script("document.querySelector('#picture button[aria-label=\"Remove Image\"]').click()")
    wait(lambda: not source())
    wait(lambda: all_of("#picture input[type=file]"))[0].send_keys(str(tmp_path / "broken.png"))
    message = "The image 'broken.png' cannot be read"
    wait(lambda: any(message in one.text for one in all_of("#message")))
    screenshot("phone-message.png")

    assert browser.execute_script("return window.toasts") == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
    assert [one for one in addresses if not one.startswith((url, "data:", "blob:"))] == []


@pytest.mark.slow
def test_the_page_of_a_metric(tmp_path):
    """In Gradio itself, laid out as in a Space."""
    pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    folder = shutil.copytree(metric_path("average_drop"), tmp_path / "app")
    page = build_demo(folder / "average_drop.py")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        metric = evaluate.load(metric_path("average_drop"))
        columns = {name: [[10.0, 20.0, 30.0], [0.0, 40.0, 50.0]] for name in metric.features}
        columns["average_drop"] = [10.0, 0.0]
        visitor = client.Client(url, verbose=False)
        result = visitor.predict(json.dumps(columns), api_name="/compute")
        assert result["num_images"] == 2 and result["average_drop"] == metric.compute(**columns)["average_drop"] == 5.0
        with pytest.raises(client.exceptions.AppError, match="needs one entry per image in every column"):
            visitor.predict(json.dumps({**columns, next(iter(columns)): []}), api_name="/compute")
    finally:
        page.close()
