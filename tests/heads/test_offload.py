"""Heads whose weights are elsewhere, are changed by an adapter, or explain a quantised classifier."""

import logging

import accelerate
import pytest
import torch
from testing_common import random_pixels, save_classifier, tiny_classifier, tiny_model, train_steps
from torch import nn

from hf_explain.classifiers.fingerprint import fingerprint, fingerprints
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.lcam import LCamForSaliency
from hf_explain.heads.scan import ScanForSaliency
from hf_explain.heads.ttame import TTameForSaliency


HEADS = {"lcam": (LCamForSaliency, {}), "ttame": (TTameForSaliency, {"context_size": 3}),
         "scan": (ScanForSaliency, {"decoder_width": 2, "levels": 1})}  # fmt: skip
FAMILIES = ("vit", "resnet")


def make_head(name, classifier):
    torch.manual_seed(0)
    head_class, fields = HEADS[name]
    return head_class.from_classifier(classifier, **fields)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", HEADS)
def test_weights_on_the_cpu_or_on_disk(name, family, tmp_path):
    head = make_head(name, save_classifier(family, tmp_path / "classifier"))
    pixels = random_pixels(family)
    train_steps(head, pixels, steps=1)
    head.save_pretrained(tmp_path / "head", self_contained=True)
    expected = head(pixels, target=[1, 3])
    for offload in (accelerate.cpu_offload, lambda model: accelerate.disk_offload(model, tmp_path / "offload")):
        loaded = type(head).from_pretrained(tmp_path / "head")
        offload(loaded)
        assert {parameter.device.type for parameter in loaded.parameters()} == {"meta"}
        assert loaded.backbone.device.type == "cpu"
        found = loaded(pixels, target=[1, 3])
        torch.testing.assert_close(found.saliency, expected.saliency, rtol=1e-4, atol=1e-4)
        assert fingerprint(loaded.backbone.model) == fingerprint(head.backbone.model)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_without_its_classifier_inside(name):
    head, pixels = make_head(name, tiny_classifier("vit")), random_pixels("vit")
    expected = head(pixels)
    head.config.self_contained = True
    accelerate.cpu_offload(head)
    torch.testing.assert_close(head(pixels).saliency, expected.saliency, rtol=1e-4, atol=1e-4)
    head = make_head(name, tiny_classifier("vit"))
    accelerate.cpu_offload(head)
    with pytest.raises(ValueError, match="were lost when the head was offloaded.*set config.self_contained to"):
        head(pixels)


def test_by_a_device_map(tmp_path):
    head = make_head("ttame", save_classifier("vit", tmp_path / "classifier"))
    head.save_pretrained(tmp_path / "head")
    pixels = random_pixels("vit")
    loaded = TTameForSaliency.from_pretrained(
        tmp_path / "head", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    assert next(loaded.backbone.parameters()).is_meta  # and its fingerprint was checked all the same
    torch.testing.assert_close(loaded(pixels).saliency, head(pixels).saliency, rtol=1e-4, atol=1e-4)


class Adapter(nn.Module):
    """A layer and a small addition, as LoRA stands around a convolution."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        # as PEFT makes its own: of the layer's class, by the arguments of a convolution
        kind, shape = type(layer), {"kernel_size": layer.kernel_size, "stride": layer.stride, "bias": False}
        self.down = kind(layer.in_channels, 2, padding=layer.padding, **shape)
        self.up = kind(2, layer.out_channels, padding=layer.padding, **shape)

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, pixels):
        return self.layer(pixels) + self.up(self.down(pixels))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "places"), [("lcam", ["attention"]), ("ttame", ["fuser", "convs.0", "convs.2"])])
def test_an_adapter_around_a_layer(name, places, family):
    head, merged = (make_head(name, tiny_classifier(family)) for _ in range(2))
    for place in places:
        adapter = Adapter(head.get_submodule(place))
        head.set_submodule(place, adapter)
        plain = merged.get_submodule(place)
        with torch.no_grad():
            plain.weight += torch.einsum("orhw,rihw->oihw", adapter.up.weight, adapter.down.weight)
    pixels = random_pixels(family)
    for call in ({"target": [1, 3]}, {"target": [1, 3], "return_loss": True}):
        found, expected = head(pixels, **call), merged(pixels, **call)
        torch.testing.assert_close(found.saliency_logits, expected.saliency_logits, rtol=1e-4, atol=1e-5)
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected.loss)
    assert all(parameter.grad is not None for parameter in head.get_submodule(places[0]).up.parameters())


def quantized(family):
    return torch.ao.quantization.quantize_dynamic(tiny_model(family), {nn.Linear})


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_a_quantised_classifier(tmp_path, caplog):
    head = make_head("lcam", save_classifier("vit", tmp_path / "classifier"))
    head.save_pretrained(tmp_path / "head")
    pixels = random_pixels("vit")
    with caplog.at_level(logging.WARNING, "transformers"):
        loaded = LCamForSaliency.from_pretrained(tmp_path / "head", classifier=quantized("vit"))
    torch.testing.assert_close(loaded(pixels, target=2).saliency, head(pixels, target=2).saliency, rtol=0, atol=0.2)
    assert "is quantised: its weights have no fingerprint" in caplog.text
    assert fingerprints(loaded.backbone.model) == {}
    assert fingerprint(loaded.backbone.model) == fingerprint(quantized("vit"))
    for explain in (lambda: loaded(pixels, labels=[1, 2]), lambda: make_head("scan", quantized("vit"))(pixels)):
        with pytest.raises(ValueError, match="are quantised by PyTorch and have no gradients; it can be explained by"):
            explain()


def test_a_quantisation_config_is_the_classifiers(tmp_path, monkeypatch):
    head = make_head("lcam", save_classifier("vit", tmp_path / "classifier"))
    head.save_pretrained(tmp_path / "head")
    head.save_pretrained(tmp_path / "whole", self_contained=True)
    given, load = [], FrozenClassifier.from_pretrained
    monkeypatch.setattr(
        FrozenClassifier, "from_pretrained",
        lambda name, quantization_config=None, **kwargs: given.append(quantization_config) or load(name, **kwargs),
    )  # fmt: skip
    LCamForSaliency.from_pretrained(tmp_path / "head", quantization_config="int8")
    LCamForSaliency.from_classifier(str(tmp_path / "classifier"), quantization_config="int4")
    assert given == ["int8", "int4"]
    with pytest.raises(ValueError, match="`quantization_config` is for a classifier that is loaded, but .*whole"):
        LCamForSaliency.from_pretrained(tmp_path / "whole", quantization_config="int8")
