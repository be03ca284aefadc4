"""The classifiers of the evidence: EfficientNet-Lite0 as a directory, and students that learn from a teacher."""

import json

import datasets
import pytest
import torch
from PIL import Image
from testing_common import LABELS, load_script, save_classifier
from testing_training import encoded
from torch.nn import functional
from transformers import pipeline

from hf_explain import FrozenClassifier, TTameForSaliency


STAGES = (  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def lite0_weights(classes=1000):
    """Random tensors under the names of the published ones."""
    generator, state = torch.Generator().manual_seed(0), {}

    def draw(name, *shape):
        fan = torch.tensor(shape[1:]).prod().item()
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (1.4 / fan**0.5)

    def norm(name, channels):
        for part, low in (("weight", 0.8), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.8)):
            state[f"{name}.{part}"] = low + 0.4 * torch.rand(channels, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    draw("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    before, index = 32, 0
    for kernel, _, expansion, channels, repeats in STAGES:
        for _ in range(repeats):
            name, inner = f"_blocks.{index}", before * expansion
            if expansion > 1:
                draw(f"{name}._expand_conv", inner, before, 1, 1)
                norm(f"{name}._bn0", inner)
            draw(f"{name}._depthwise_conv", inner, 1, kernel, kernel)
            norm(f"{name}._bn1", inner)
            draw(f"{name}._project_conv", channels, inner, 1, 1)
            norm(f"{name}._bn2", channels)
            before, index = channels, index + 1
    draw("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    draw("_fc", classes, 1280)
    state["_fc.bias"] = torch.randn(classes, generator=generator)
    return state


def lite0_logits(state, x):
    """EfficientNet-Lite0 written down once more: no module, TensorFlow's "same" padding worked out for every layer."""

    def convolve(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        kernel, padding = weight.shape[-1], []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, padding), weight, stride=stride, groups=groups)

    def norm(x, name):
        tensors = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *tensors, eps=1e-3)

    x, index = functional.relu6(norm(convolve(x, "_conv_stem", 2), "_bn0")), 0
    for _, stride, _, _, repeats in STAGES:
        for repeat in range(repeats):
            name, start = f"_blocks.{index}", x
            if f"{name}._expand_conv.weight" in state:
                x = functional.relu6(norm(convolve(x, f"{name}._expand_conv"), f"{name}._bn0"))
            x = convolve(x, f"{name}._depthwise_conv", 1 if repeat else stride, groups=x.shape[1])
            x = functional.relu6(norm(x, f"{name}._bn1"))
            x = norm(convolve(x, f"{name}._project_conv"), f"{name}._bn2")
            x, index = x + start if repeat else x, index + 1
    x = functional.relu6(norm(convolve(x, "_conv_head"), "_bn1")).mean((-2, -1))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


def test_efficientnet_lite0_is_a_classifier_like_any_other(tmp_path, capsys):
    script, state = load_script("make_classifiers"), lite0_weights()
    torch.save(state, tmp_path / "weights.pth")
    names = {str(index): f"class {index}, kind {index}" for index in range(1000)}
    (tmp_path / "names.json").write_text(json.dumps(names))
    words = ["teacher", "--weights", str(tmp_path / "weights.pth"), "--output_dir", str(tmp_path / "lite0")]
    assert script.main([*words, "--class_names", str(tmp_path / "names.json")]) == 0
    classifier = FrozenClassifier.from_pretrained(tmp_path / "lite0")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = lite0_logits(state, pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(classifier(pixels), expected, rtol=1e-4, atol=1e-4)
    assert classifier.image_size == (224, 224) and classifier.id2label[7] == "class 7, kind 7"
    # pixels (x - 127) / 128, and the central 224 of a shorter side of 256
    picture = torch.full((300, 600, 3), 255, dtype=torch.uint8).numpy()
    pixel_values = classifier.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 224, 224) and torch.allclose(pixel_values, torch.tensor(1.0))
    del state["_fc.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(SystemExit, match="no weights of EfficientNet-Lite0: 'classifier.bias' is missing or too many"):
        script.main([*words, "--class_names", str(tmp_path / "names.json")])
    (tmp_path / "names.json").write_text("{}")
    with pytest.raises(SystemExit, match="does not name ImageNet's classes 0 to 999"):
        script.main([*words, "--class_names", str(tmp_path / "names.json")])


@pytest.mark.slow
def test_efficientnet_lite0_goes_through_the_product(tmp_path):
    script = load_script("make_classifiers")
    torch.save(lite0_weights(), tmp_path / "weights.pth")
    (tmp_path / "names.json").write_text(json.dumps({str(index): f"class {index}" for index in range(1000)}))
    words = ["teacher", "--weights", str(tmp_path / "weights.pth"), "--output_dir", str(tmp_path / "lite0")]
    assert script.main([*words, "--class_names", str(tmp_path / "names.json")]) == 0
    saliency = pipeline("saliency", model=str(tmp_path / "lite0"), method="gradcam")
    ((found,),) = saliency([Image.effect_noise((600, 300), 90).convert("RGB")])
    assert found["saliency_map"].shape == (300, 600)
    assert found["saliency_map"][:, :168].max() == 0 < found["saliency_map"].max()  # the rest is cropped away
    head = TTameForSaliency.from_classifier(saliency.classifier)
    output = head(torch.randn(2, 3, 224, 224), return_loss=True)
    output.loss.backward()
    assert output.loss.isfinite() and len(output.saliency) == 2
    trained = [weight.grad for weight in head.parameters() if weight.requires_grad]
    assert trained and all(gradient is not None for gradient in trained)


@pytest.fixture
def students(tmp_path, monkeypatch):
    """The script on seven pictures of two of a tiny teacher's classes, and one tiny family."""
    script = load_script("make_classifiers")
    monkeypatch.setattr(script, "SIZE", 32)
    fields = {"embedding_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1], "layer_type": "basic"}
    monkeypatch.setitem(script.FAMILIES, "resnet", ("ResNet", "", fields))
    save_classifier("resnet", tmp_path / "teacher")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS[2:0:-1]))})
    rows = {"image": [{"bytes": encoded(i), "path": None} for i in range(7)], "label": [i % 2 for i in range(7)]}
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")

    def train(output, epochs=2, **options):
        words = ["train", "--families", "resnet", "--teacher", str(tmp_path / "teacher"), "--views", "2"]
        words += ["--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / output), "--batch_size", "4"]
        words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return script.main([*words, "--epochs", str(epochs)])

    return script, train


def test_a_student_goes_on_where_it_was_killed(students, tmp_path, monkeypatch, capsys):
    script, train = students
    assert train("whole", 3) == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == [f"resnet, epoch {epoch}" for epoch in (1, 2, 3)]
    views = sorted((tmp_path / "whole/views").iterdir())
    assert [file.name for file in views] == ["seed0-7-own-0.safetensors", "seed0-7-own-1.safetensors"]
    logits = script.load_file(views[0])["logits"]
    assert logits.shape == (7, 2) and logits.std() > 0
    measured, real = [], script.top1

    def killed(*arguments):
        measured.append(arguments)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(script, "top1", killed)
    with pytest.raises(KeyboardInterrupt):
        train("killed", 3)
    with pytest.raises(SystemExit, match="was begun with other settings; give them again, or remove it"):
        train("killed", 3, learning_rate=0.5)
    capsys.readouterr()
    assert train("killed", 3) == 0
    assert "1 epochs are done, the rest follows" in capsys.readouterr().out
    whole, resumed = (FrozenClassifier.from_pretrained(tmp_path / name / "resnet-imagenette128") for name in
                      ("whole", "killed"))  # fmt: skip
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert list(whole.id2label.values()) == list(LABELS[2:0:-1])
    history = json.loads((tmp_path / "killed/resnet-imagenette128/accuracy.json").read_text())["history"]
    assert [one["epoch"] for one in history] == [1, 2, 3]
    assert train("killed", 3) == 0 and "is there already" in capsys.readouterr().out


def test_accuracy_is_among_the_classes_of_the_data_set(students, tmp_path, capsys):
    script, _ = students
    words = ["accuracy", "--classifier", str(tmp_path / "teacher"), "--dataset", str(tmp_path / "data")]
    assert script.main(words) == 0
    model, processor = script.load(tmp_path / "teacher")
    data = script.read(script.parse(words), "validation")
    pixels = torch.stack([pixels for _, pixels, _ in script.Photographs(data, processor)])
    best = model(pixels).logits[:, [2, 1]].argmax(-1)
    expected = 100 * (best == torch.tensor(data["label"])).float().mean().item()
    assert f": {expected:.2f} % of 7 photographs of validation" in capsys.readouterr().out
    save_classifier("resnet", tmp_path / "other", num_labels=1)
    with pytest.raises(SystemExit, match="has no classes of the names in column 'label'"):
        script.main([*words[:2], str(tmp_path / "other"), *words[3:]])
    with pytest.raises(SystemExit):
        script.parse(["train", "--teacher", "t", "--output_dir", "o", "--views", "0"])
