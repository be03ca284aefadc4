"""Texts as classes: models of images and texts are classifiers, with Transformers' numbers and everybody's maps."""

import copy
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import files_below, random_pixels, save_classifier, tiny_classifier, train_steps
from testing_zero_shot import MAX_TOKENS, MODELS, save_zero_shot, tiny_tokenizer, tiny_zero_shot
from transformers import CLIPConfig, CLIPForImageClassification, SiglipConfig, SiglipModel, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_explain import AutoModelForSaliency, FrozenClassifier, TTameForSaliency
from hf_explain.classifiers import zero_shot
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.methods.attention import rollout, transformer_attribution
from hf_explain.methods.cam import gradcam
from hf_explain.registry import METHODS


LABELS = ["cat", "dog", "remote control"]
PROMPTS = ["a photo of a cat", "a remote control"]
WORKING = sorted(set(MODELS) - zero_shot._REFUSED.keys())


def picture(width=70, height=50):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def classifier_of(model_type="clip", **texts):
    return FrozenClassifier(tiny_zero_shot(model_type), tokenizer=tiny_tokenizer()).for_texts(LABELS, **texts)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {name: save_zero_shot(name, tmp_path_factory.mktemp(name)) for name in ("clip", "siglip")}


@pytest.fixture(scope="module")
def pipes(directories):
    return {name: pipeline("saliency", model=directory) for name, directory in directories.items()}


# ------------------------------------------------------------------------------------------------------ the classifier


def test_every_type_of_the_mapping_is_here_or_refused():
    assert set(WORKING) | zero_shot._REFUSED.keys() == set(MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES)


@pytest.mark.parametrize("model_type", WORKING)
def test_logits_are_those_of_transformers_and_maps_differ_by_text(model_type):
    model, tokenizer = tiny_zero_shot(model_type), tiny_tokenizer()
    classifier = FrozenClassifier(model, tokenizer=tokenizer).for_texts(LABELS, "a photo of {}")
    images = random_pixels("vit", size=classifier.image_size)
    padding = {"padding": "max_length", "max_length": 64} if model_type == "siglip" else {"padding": True}
    tokens = tokenizer([f"a photo of {label}" for label in LABELS], return_tensors="pt", **padding)
    with torch.no_grad():
        logits = model(pixel_values=images, **tokens).logits_per_image
    torch.testing.assert_close(classifier(images), logits, rtol=1e-5, atol=1e-5)
    assert classifier.num_labels == 3 and classifier.id2label == dict(enumerate(LABELS))
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    features = classifier.features(images, [classifier.default_layer])
    torch.testing.assert_close(features.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(classifier.forward_from_features(features), logits, rtol=1e-5, atol=1e-5)
    maps = [gradcam(classifier, images, label).saliency for label in LABELS]
    assert all(each.amax() == 1 for each in maps) and not torch.equal(maps[0], maps[1])
    if classifier.token_layout is not None:
        assert len(classifier.token_layout.blocks) == 3
        for method in (rollout, transformer_attribution):
            assert method(classifier, images, "dog").saliency.isfinite().all()


@pytest.mark.parametrize("model_type", sorted(zero_shot._REFUSED))
def test_the_others_say_why_not(model_type, tmp_path):
    with pytest.raises(ValueError, match=r"\(.*\) cannot be explained by texts: it (takes|is|compares) .*\.$"):
        zero_shot.check_zero_shot(model_type, "me/model")
    if model_type in MODELS:
        with pytest.raises(ValueError, match=rf"\({model_type}\) cannot be explained by texts"):
            FrozenClassifier(tiny_zero_shot(model_type))
        with pytest.raises(ValueError, match=rf"\({model_type}\) cannot be explained by texts"):
            FrozenClassifier.from_pretrained(save_zero_shot(model_type, tmp_path))


@pytest.mark.parametrize("size", [(48, 48), (24, 40)])
def test_image_sizes_of_the_model_and_of_the_pictures(size):
    text, image = CLIPConfig().text_config.to_dict(), {"hidden_size": 32, "num_attention_heads": 2, "patch_size": 8}
    text |= {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    image |= {"num_hidden_layers": 2, "intermediate_size": 8, "image_size": 48}
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=image)).eval()
    classifier = FrozenClassifier(siglip, tokenizer=tiny_tokenizer()).for_texts(LABELS)
    assert classifier.image_size == (48, 48)
    output = gradcam(classifier, random_pixels("vit", size=size))
    assert output.saliency.shape == (2, size[0] // 8, size[1] // 8)


def test_texts_go_through_in_batches(monkeypatch):
    whole = classifier_of().model.text_embeds
    monkeypatch.setattr(zero_shot, "_TEXT_BATCH", 2)
    torch.testing.assert_close(classifier_of().model.text_embeds, whole, rtol=1e-5, atol=1e-6)


def test_no_text_no_classes():
    classifier = FrozenClassifier(tiny_zero_shot("clip"))
    for ask in (
        lambda: classifier.num_labels,
        lambda: classifier.id2label,
        lambda: gradcam(classifier, random_pixels("vit")),
    ):
        with pytest.raises(ValueError, match=r"'CLIPModel' matches images with texts and has no classes of its own"):
            ask()
    with pytest.raises(ValueError, match=r"are for models that match images with texts.* has 5 classes of its own"):
        tiny_classifier("vit").for_texts(LABELS)


@pytest.mark.parametrize(
    ("labels", "template", "error"),
    [
        ("cat", None, r"`candidate_labels` must be a list of texts, got 'cat'"),
        ([], None, r"`candidate_labels` is an empty list"),
        (["cat", 3], None, r"`candidate_labels` must be texts, got 3 in place 1"),
        (["cat", " "], None, r"`candidate_labels` has an empty text, ' ' in place 1"),
        (["cat", "dog", "cat"], None, r"`candidate_labels` has 'cat' twice"),
        (LABELS, "a photo", r"one \{\} where the label goes and no other braces, got 'a photo'"),
        (LABELS, "{} and {}", r"one \{\} where the label goes"),
        (LABELS, "a {0.__class__} {}", r"one \{\} where the label goes"),
        (None, "a {}", r"`hypothesis_template` is given without the `candidate_labels`"),
        (
            ["cat", "cat " * MAX_TOKENS],
            None,
            rf"The text 'This is a photo of cat .* tokens and the model reads {MAX_TOKENS}",
        ),
    ],
)
def test_texts_that_cannot_be_classes(labels, template, error):
    with pytest.raises((ValueError, TypeError), match=error):
        FrozenClassifier(tiny_zero_shot("clip"), tokenizer=tiny_tokenizer()).for_texts(labels, template)


def test_embeddings_are_made_once_kept_for_a_while_and_not_copied(monkeypatch):
    monkeypatch.setattr(zero_shot, "_KEPT", 2)
    base = FrozenClassifier(tiny_zero_shot("clip"), tokenizer=tiny_tokenizer())
    asked, embed = [], zero_shot.ZeroShotClassifier.embed
    monkeypatch.setattr(
        zero_shot.ZeroShotClassifier, "embed", lambda self, texts: asked.append(texts) or embed(self, texts)
    )
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: base.for_texts(LABELS), range(32)))
    assert len({id(each) for each in found}) == 1 and len(asked) == 1
    assert found[0].for_texts(LABELS) is found[0] and found[0].for_texts(tuple(LABELS), "a {}") is not found[0]
    base.for_texts(["cat"])
    assert len(asked) == 3
    assert base.for_texts(LABELS) is not found[0] and len(asked) == 4
    assert found[0].layer_names and "layers" not in vars(base._hooked)
    assert base._hooked._found is base.for_texts(["dog"])._hooked._found  # the image tower was probed once for all
    copied = copy.deepcopy(found[0])
    torch.testing.assert_close(copied(random_pixels("vit")), found[0](random_pixels("vit")))


# -------------------------------------------------------------------------------------------------------- the pipeline


@pytest.mark.parametrize("model_type", ["clip", "siglip"])
def test_two_prompts_on_one_photograph_from_the_hub(model_type, directories, hub):
    pipeline("saliency", model=directories[model_type]).model.push_to_hub(f"user/{model_type}")
    from huggingface_hub import HfApi

    HfApi().upload_folder(folder_path=directories[model_type], repo_id=f"user/{model_type}")
    pipe, image = pipeline("saliency", model=f"user/{model_type}"), picture()
    results = pipe(image, target=PROMPTS)
    assert [one["label"] for one in results] == PROMPTS
    maps = [one["saliency_map"] for one in results]
    assert maps[0].shape == (50, 70) and np.abs(maps[0] - maps[1]).mean() > 0.01
    if model_type == "clip":  # cut to the square in the middle
        assert maps[0][:, 15:55].max() > 0.5 and not maps[0][:, :10].any() and not maps[0][:, 60:].any()
    else:
        assert maps[0][:, :10].any() and maps[0][:, 60:].any()
    reference = pipeline("zero-shot-image-classification", model=f"user/{model_type}")
    expected = reference(image, candidate_labels=PROMPTS, hypothesis_template="{}")
    assert {one["label"]: one["score"] for one in results} == pytest.approx(
        {one["label"]: one["score"] for one in expected}, abs=1e-6
    )


@pytest.mark.parametrize("model_type", ["clip", "siglip"])
@pytest.mark.parametrize("options", [{}, {"hypothesis_template": "a photo of a {}"}])
def test_labels_and_scores_are_those_of_transformers(model_type, options, pipes, directories):
    image, reference = picture(), pipeline("zero-shot-image-classification", model=directories[model_type])
    for labels in (LABELS, ["cat"]):
        expected = reference(image, candidate_labels=labels, **options)
        found = pipes[model_type](image, candidate_labels=labels, top_k=3, **options)
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    named = pipes[model_type](image, target="Dog", candidate_labels=LABELS, **options)
    assert [one["label"] for one in named] == ["dog"]


def test_texts_of_each_image_are_its_classes_whatever_the_batch(pipes):
    pipe, image, other = pipes["clip"], picture(), picture(40, 60)
    asked = [["cat", "a dog", "cat"], "cat", ["cat", "a dog"]]
    singles = [pipe(one, target=target) for one, target in zip((image, other, other), asked)]
    assert [len(single) for single in singles] == [3, 1, 2] and singles[1][0]["score"] == 1
    for batch_size in (2, 3):
        together = pipe([image, other, other], target=asked, batch_size=batch_size)
        streamed = pipe(
            ({"image": one, "target": target} for one, target in zip((image, other, other), asked)),
            batch_size=batch_size,
        )
        for found in (together, list(streamed)):
            for ours, alone in zip(found, singles, strict=True):
                assert [one["label"] for one in ours] == [one["label"] for one in alone]
                for one, expected in zip(ours, alone, strict=True):
                    assert one["score"] == pytest.approx(expected["score"], abs=1e-5)
                    np.testing.assert_allclose(one["saliency_map"], expected["saliency_map"], atol=1e-4)


def test_eight_threads_with_texts_of_their_own(pipes):
    pipe, image = pipes["clip"], picture()
    asked = [["cat", "dog"], ["a dog", "a cat"], ["remote control", "cat", "dog"], ["a photo of a cat"]]
    alone = [pipe(image, target=target) for target in asked]
    pipe.classifier.model.made = zero_shot.Kept()  # nothing is known when the threads start
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda place: pipe(image, target=asked[place % 4]), range(16)))
    for place, found in enumerate(together):
        for one, expected in zip(found, alone[place % 4], strict=True):
            assert one["label"] == expected["label"] and one["score"] == expected["score"]
            np.testing.assert_array_equal(one["saliency_map"], expected["saliency_map"])


def test_labels_given_to_the_pipeline_are_those_of_its_classifier(directories):
    pipe = pipeline("saliency", model=directories["clip"], candidate_labels=LABELS, hypothesis_template="a {}")
    assert pipe.classifier.texts == (tuple(LABELS), "a {}")
    found = pipe(picture())
    assert found[0]["label"] in LABELS
    identity = resolve_explainer(pipe).identity
    assert identity["classifier_texts"] == {"candidate_labels": tuple(LABELS), "hypothesis_template": "a {}"}
    with pytest.raises(ValueError, match="'a dragon' is not a label of this classifier"):
        pipe(picture(), target="a dragon")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            {},
            r"`candidate_labels` are missing: .* pass for example candidate_labels=\['cat', 'dog'\], or to a pipeline",
        ),
        ({"target": 3}, r"`target` must be a text, or a list of texts, where there are no `candidate_labels`, got 3"),
        ({"target": ["cat", ""]}, r"`target` must be a text"),
        ({"target": []}, r"`target` is an empty list"),
        ({"target": "dragon", "candidate_labels": LABELS}, r"'dragon' is not a label of this classifier"),
        ({"target": 3, "candidate_labels": LABELS}, r"`target` 3 is out of range: the classifier has 3 classes"),
        ({"target": "cat", "method": "rise"}, r"The probability of a single text \('cat'\) is 1 whatever"),
        ({"target": "cat", "method": "lime"}, r"The probability of a single text \('cat'\) is 1 whatever"),
        ({"target": "cat", "method": "occlusion"}, r"The probability of a single text \('cat'\) is 1 whatever"),
    ],
)
def test_questions_without_an_answer(arguments, error, pipes):
    with pytest.raises(ValueError, match=error):
        pipes["clip"](picture(), **arguments)


def test_what_has_classes_of_its_own_takes_no_texts(tmp_path):
    pipe = pipeline("saliency", model=save_classifier("vit", tmp_path))
    for options in ({"candidate_labels": LABELS}, {"hypothesis_template": "a {}"}):
        with pytest.raises(ValueError, match=r"such as CLIP; .* has 5 classes of its own"):
            pipe(picture(), **options)
    assert METHODS["rise"](
        classifier_of("siglip").for_texts(["cat"]), random_pixels("vit"), num_masks=4
    ).saliency.any()


def test_a_model_without_its_tokenizer_is_one_sentence(directories, tmp_path):
    shutil.copytree(directories["clip"], tmp_path, dirs_exist_ok=True)
    for name in os.listdir(tmp_path):
        if "token" in name:
            os.remove(tmp_path / name)
    with pytest.raises(ValueError, match=r"has no tokenizer beside it that can be used .* or pass tokenizer=\.$"):
        pipeline("saliency", model=str(tmp_path))(picture(), target="cat")
    pipe = pipeline("saliency", model=str(tmp_path), tokenizer=tiny_tokenizer())
    found = pipe(picture(), target="cat")
    pipe.save_pretrained(tmp_path / "again")
    again = pipeline("saliency", model=str(tmp_path / "again"))(picture(), target="cat")
    np.testing.assert_array_equal(found[0]["saliency_map"], again[0]["saliency_map"])
    with pytest.raises(ValueError, match=r"The CLIPModel came without its tokenizer; pass tokenizer=\."):
        FrozenClassifier(tiny_zero_shot("clip")).for_texts(LABELS)


# ------------------------------------------------------------------------------------------------------- trained heads


@pytest.mark.parametrize("self_contained", [False, True])
def test_a_head_keeps_its_texts(self_contained, directories, tmp_path):
    torch.manual_seed(0)
    head = TTameForSaliency.from_classifier(
        directories["clip"], candidate_labels=LABELS, hypothesis_template="a photo of a {}"
    )
    images = random_pixels("vit")
    train_steps(head, images, steps=1)
    head.save_pretrained(tmp_path / "head", self_contained=self_contained)
    before = head(images, target="dog")
    if self_contained:
        head.config.backbone = None
    loaded = AutoModelForSaliency.from_pretrained(tmp_path / "head")
    assert loaded.backbone.texts == (tuple(LABELS), "a photo of a {}") and loaded.config.id2label[2] == LABELS[2]
    after = loaded(images, target="dog")
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.saliency, before.saliency)
    pipe = pipeline("saliency", model=str(tmp_path / "head"))
    assert pipe(picture(), target="remote control")[0]["label"] == "remote control"
    with pytest.raises(ValueError, match=r"cannot be changed for a trained head, which explains the 3 texts"):
        pipe(picture(), candidate_labels=["cat", "dog"])
    loaded.save_pretrained(tmp_path / "again")
    assert files_below(tmp_path / "head").keys() == files_below(tmp_path / "again").keys()


def test_a_head_takes_its_model_with_its_texts_only(directories, tmp_path):
    head = TTameForSaliency.from_classifier(directories["clip"], candidate_labels=LABELS)
    head.save_pretrained(tmp_path)
    base = FrozenClassifier.from_pretrained(directories["clip"])
    for classifier in (base, base.for_texts(LABELS), directories["clip"], base.source_model):
        assert TTameForSaliency.from_pretrained(tmp_path, classifier=classifier).backbone.texts[0] == tuple(LABELS)
    with pytest.raises(
        ValueError, match=r"explains 3 texts \('cat', .* has 3 texts \('cat', 'dog', 'a cat', in 'This"
    ):
        TTameForSaliency.from_pretrained(tmp_path, classifier=base.for_texts(["cat", "dog", "a cat"]))
    config = CLIPConfig(vision_config=base.config.vision_config.to_dict(), id2label=dict(enumerate(LABELS)))
    with pytest.raises(ValueError, match=r"explains 3 texts .* has classes of its own"):
        TTameForSaliency.from_pretrained(tmp_path, classifier=CLIPForImageClassification(config))
    with pytest.raises(ValueError, match=r"`candidate_labels` are missing"):
        TTameForSaliency.from_classifier(directories["clip"])
