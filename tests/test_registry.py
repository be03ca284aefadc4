"""The registry: a head from outside the package goes everywhere the package's own heads go."""

import dataclasses
import importlib
import inspect
import json
import re
import sys

import pytest
import torch
from hub_clients import pixels, push_classifier, push_quietly, tiny_image
from huggingface_hub import ModelCard
from testing_common import needed, random_pixels, tiny_classifier
from testing_training import parquet_shards, picture_dataset
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, pipeline

from hf_explain import AutoModelForSaliency
from hf_explain.apps.demo_explainers import Demo
from hf_explain.classifiers.precision import passes_in
from hf_explain.cli import main
from hf_explain.evaluation.comparison import compare, parse_explainers
from hf_explain.evaluation.explainer import PassCounter
from hf_explain.heads.lcam import LCamForSaliency
from hf_explain.registry import (
    CONTROLS,
    HEADS,
    METHOD_ENTRIES,
    METHODS,
    SLOW_METHODS,
    methods_for,
    register_head,
    resolve_head,
    resolve_method,
)


@pytest.fixture
def registries(monkeypatch):
    """What is registered in a test is forgotten after it."""
    for registry in (CONFIG_MAPPING, MODEL_MAPPING, AutoModelForSaliency._model_mapping):
        monkeypatch.setattr(registry, "_extra_content", dict(registry._extra_content))
    before = dict(HEADS)
    yield
    HEADS.clear()
    HEADS.update(before)


@pytest.fixture
def outside(registries, monkeypatch):
    for name in ("outside_head", "outside_head.modeling_outside", "outside_head.masking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("outside_head")


@pytest.fixture
def trained(hub, outside, tmp_path):
    """A head from outside, trained for two steps by the command."""
    push_classifier()
    data = str(parquet_shards(tmp_path / "data", count=4, shards=1))
    what = ["--classifier", "user/resnet", "--dataset", data, "--head", "outside", "--preset", "double"]
    how = ["--max_steps", "2", "--per_device_batch_size", "2", "--disable_tqdm"]
    assert main(["train", *what, *how, "--output_dir", str(tmp_path / "trained")]) == 0
    return tmp_path / "trained"


def test_a_head_from_outside_is_trained_loaded_compared_and_published(hub, outside, trained, tmp_path, monkeypatch):
    assert json.loads((trained / "training_record.json").read_text())["steps"] == 2
    head = AutoModelForSaliency.from_pretrained(trained)
    assert type(head) is type(AutoModel.from_pretrained(trained)) is outside.OutsideForSaliency
    torch.manual_seed(0)
    new = resolve_head("outside").from_classifier("user/resnet", preset="double")
    assert head.config.scale == 2.0 and not torch.equal(head.mix.weight, new.mix.weight)
    (found,) = pipeline("saliency", model=str(trained))(tiny_image())
    assert found["saliency_map"].shape == (40, 60) and found["saliency_map"].max() > 0
    assert Demo([trained]).default == ["trained", "gradcam", "random"]

    result = compare(
        "user/resnet", picture_dataset(2), {"outside": trained}, "auc_d", output_dir=tmp_path / "results", pictures=0,
        sanity=True, sanity_examples=2, progress=False, report=lambda line: None,
    )  # fmt: skip
    assert set(result["explainers"]) == {"outside", *CONTROLS} and "sanity" in result["explainers"]["outside"]

    push_quietly(trained, "user/outside", evaluation=tmp_path / "results" / "results.json")
    card = ModelCard.load("user/outside")
    assert "outside" in card.data.tags and card.data.base_model == "user/resnet"
    assert "Outside (with this package's scale; not in the paper) explainer head for the image" in card.text
    assert "| method | [A Head From Outside](https://example.org/outside) |" in card.text
    assert "| AUC-D | higher |" in card.text and "@misc{outside2026}" in card.text
    tiny_image().save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL).group(1)
    assert "import outside_head  # registers this head" in snippet
    exec(compile(snippet, "card", "exec"), {})
    assert len(list(tmp_path.glob("saliency_*.png"))) == 2


def test_remote_code_of_a_head_from_outside(hub, outside, trained, monkeypatch):
    push_quietly(trained, "user/flat", code="self-contained")
    push_quietly(trained, "user/stub", code="stub")
    files = {name: text.decode() for name, text in hub.files("user/flat").items() if name.endswith(".py")}
    assert {"modeling_outside.py", "masking.py", "modeling_explainer.py", "maps.py"} <= set(files)
    assert not any(re.search(r"^\s*(from|import) (hf_explain|outside_head)", text, re.M) for text in files.values())
    expected = outside.OutsideForSaliency.from_pretrained(trained)(pixels(), target="church").saliency

    # as for somebody without that package
    del HEADS["outside"]
    for registry in (CONFIG_MAPPING, MODEL_MAPPING, AutoModelForSaliency._model_mapping):
        registry._extra_content.pop("outside", None)
        registry._extra_content.pop(outside.OutsideForSaliency.config_class, None)
    flat = AutoModel.from_pretrained("user/flat", trust_remote_code=True)
    assert type(flat).__module__.startswith("transformers_modules.")
    assert torch.equal(flat(pixels(), target="church").saliency, expected)
    stub = AutoModel.from_pretrained("user/stub", trust_remote_code=True)
    assert type(stub) is outside.OutsideForSaliency
    text = hub.files("user/stub")["modeling_hf_explain.py"].decode()
    assert "from outside_head import OutsideForSaliency\n" in text
    monkeypatch.setitem(sys.modules, "outside_head", None)
    with pytest.raises(ImportError, match="This explainer head needs the outside_head package: install it, then"):
        exec(compile(text, "stub", "exec"), {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import hf_explain.tensors.maps", "modeling_outside line 1: write `from hf_explain.x import y`"),
        (
            "from hf_explain import METHODS",
            "line 1: import from the module .*, not from hf_explain, so",
        ),
        ("from . import masking", r"line 1: import from the module that defines the name, not from \., so"),
        ("from hf_explain.registry import register_head", "hf_explain.registry line .*, not from hf_explain.heads,"),
    ],
)
def test_code_that_cannot_be_copied_flat(outside, tmp_path, monkeypatch, line, message):
    from hf_explain.publish.remote_code import remote_code_files

    module = sys.modules["outside_head.modeling_outside"]
    (tmp_path / "modeling_outside.py").write_text(line)
    monkeypatch.setattr(module.__spec__, "origin", str(tmp_path / "modeling_outside.py"))
    with pytest.raises(ValueError, match=message):
        remote_code_files({"model_type": "outside"}, "self-contained")
    for own in (outside.OutsideForSaliency, outside.OutsideForSaliency.config_class):
        monkeypatch.setattr(own, "__module__", "__main__")
    with pytest.raises(ValueError, match="in '__main__', which is not a file to copy: define it in a module"):
        remote_code_files({"model_type": "outside"}, "self-contained")


def test_heads_that_cannot_be_registered(outside):
    (entry,) = (head for head in HEADS.values() if head.model is outside.OutsideForSaliency)
    register_head(entry)  # a second time changes nothing
    assert HEADS["outside"] is entry
    for name, owner in (
        ("lcam", "LCamForSaliency"),
        ("vit", "ViTConfig"),
        ("saliency_explainer", "ExplainerConfig"),  # of the base class: it has none of its own
    ):
        entry.config.model_type = name
        with pytest.raises(ValueError, match=f"`head` has model_type '{name}', which is {owner}'s; give its config"):
            register_head(entry)
    assert HEADS["lcam"].model is LCamForSaliency
    object.__setattr__(entry, "model", torch.nn.Linear)
    with pytest.raises(TypeError, match="`head.model` must be a subclass of ExplainerPreTrainedModel"):
        register_head(entry)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_title_tells_what_is_not_in_the_paper(head):
    assert set(head.config.additions) <= {field.name for field in dataclasses.fields(head.config)}
    assert "not in the paper" not in head.title(head.config().to_dict())
    for fields in ({"variant": "fm"}, {"variant": None}, {}):
        assert head.title(fields) == ("L-CAM-Fm" if fields.get("variant") and head.variants else head.name)
    for fields in head.model.presets.values():
        assert head.title(fields).endswith("; not in the paper)")


def test_the_order_of_additions():
    ttame = HEADS["ttame"]
    added = "drawn fills, contrast of its own and context"
    assert added in ttame.title({"context_size": 3, "contrast": 2.0, "mask_fills": ["black"]})
    assert ttame.title({"context_size": 1, "contrast": None, "removal_weight": 0}) == "T-TAME"


def test_what_is_known_of_the_methods():
    assert list(METHODS) == list(METHOD_ENTRIES) and CONTROLS == ("random", "centre")
    many_passes = {"ablationcam", "scorecam", "rise", "occlusion", "lime", "kernel_shap", "fgvis", "oracle"}
    assert set(SLOW_METHODS) == many_passes


# Fewer of what a method draws, where a hundred passes say no more than three
_FEWER = {
    "rise": "num_masks", "integrated_gradients": "steps", "smoothgrad": "num_samples", "lime": "num_samples",
    "kernel_shap": "num_samples", "fgvis": "budget",
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_passes_are_as_stated(name):
    entry = METHOD_ENTRIES[name]
    classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")[:1]
    if name in ("lime", "kernel_shap"):
        pytest.importorskip("captum")
        pytest.importorskip("sklearn")
    option, count = _FEWER.get(name), 9
    with PassCounter(classifier) as passes:
        entry.function(classifier, pixel_values, **{option: count} if option else {})
    found, tails = passes.full, passes.tail
    if option:  # one for the class, and one for each that is drawn
        most = int(entry.passes.removeprefix("up to "))
        extra = most - inspect.signature(entry.function).parameters[option].default
        assert extra == 2 if name == "fgvis" else extra == 1
        assert tails == 0 and (found <= count + extra if name == "fgvis" else found == count + extra)
    elif " per " in entry.passes:
        assert 3 < (tails if "tail" in entry.passes else found) or name == "legrad" and tails == 3
    else:
        assert entry.passes == f"{found}{' + tail' * tails}"


def test_what_lists_say_of_a_method():
    for name, entry in METHOD_ENTRIES.items():
        assert entry.title and entry.summary and not entry.summary.endswith("."), name
        without = entry.control or name == "raw_attention"
        assert (entry.paper is None) == without and (without or "(https://" in entry.paper), name
    everywhere = {name for name, entry in METHOD_ENTRIES.items() if entry.architectures.startswith("every classifier")}
    assert set(methods_for(tiny_classifier("resnet"))) == everywhere < set(methods_for(tiny_classifier("vit")))
    assert METHOD_ENTRIES["gradcam++"].title == "Grad-CAM++"
    assert METHOD_ENTRIES["fgvis"].architectures == "every classifier of 2 classes or more"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("GradCAM", "gradcam"), ("grad-cam", "gradcam"), ("Grad-CAM++", "gradcam++"), ("center", "centre"),
     ("GradCAMPlusPlus", "gradcam++"), ("SHAP", "kernel_shap"), ("attention rollout", "rollout"),
     ("gradcm", "gradcam")],
)  # fmt: skip
def test_did_you_mean(asked, meant):
    end = f"Did you mean '{re.escape(meant)}'\\?$"
    with pytest.raises(ValueError, match=end):
        resolve_method(asked)
    with pytest.raises(ValueError, match=end):
        parse_explainers(asked)
    with pytest.raises(ValueError, match="oracle\\.$"):
        resolve_method("zzz")
    with pytest.raises(ValueError, match="Did you mean 'ttame'"):
        resolve_head("T-TAME")


def test_maps_are_float32_in_any_precision():
    classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
    with passes_in(torch.bfloat16), torch.no_grad():
        fast = [name for name in methods_for(classifier) if name not in SLOW_METHODS]
        explained = {name: METHODS[name](classifier, pixel_values) for name in fast}
        explained["rise"] = METHODS["rise"](classifier, pixel_values, num_masks=4)
        heads = {name: entry.model.from_classifier(classifier, **needed(name)) for name, entry in HEADS.items()}
        explained |= {name: head(pixel_values) for name, head in heads.items()}
    for name, output in explained.items():
        assert output.saliency.dtype == torch.float32, name
        assert 0 <= output.saliency.min() and output.saliency.max() <= 1, name
    assert explained["rise"].logits.dtype == torch.bfloat16  # it was not only asked for
