"""Tiny seeded classifiers of every family, and the one tester that every head passes.

A head's test is a subclass of [`ExplainerTesterMixin`] that names its class and its variants:

```python
class TestLCam(ExplainerTesterMixin):
    head_class = LCamForSaliency
    variants = {"img": {"variant": "img"}, "fm": {"variant": "fm"}}
```
"""

import copy
import errno
import functools
import importlib.util
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_explain.classifiers.frozen_classifier import FrozenClassifier

# not from the top level, which hands out a placeholder that demands torchvision
from hf_explain.io.transformers_names import AutoImageProcessor


LABELS = ("tench, Tinca tinca", "cat", "tiger cat", "French horn", "church")
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
_NORMALIZE = {"do_normalize": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "do_rescale": True}
_CROP_PCT = {
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "crop_pct": 0.875,
    **_NORMALIZE,
}
_DEIT_CROP = {
    "image_processor_type": "DeiTImageProcessor",
    "do_resize": True,
    "size": {"height": 36, "width": 36},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    **_NORMALIZE,
}
# family: (class, config, native image size, another size whose grid is not square, image processor)
_FAMILIES = {
    "vit": (
        ViTForImageClassification,
        lambda **labels: ViTConfig(**_TRANSFORMER, **labels),
        (32, 32),
        (32, 48),
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": 32, "width": 32},
            **_NORMALIZE,
            "image_mean": [0.5, 0.4, 0.3],  # nobody's default: what the processor says must be what is used
            "image_std": [0.5, 0.25, 0.2],
        },
    ),
    "deit": (
        DeiTForImageClassification,
        lambda **labels: DeiTConfig(**_TRANSFORMER, **labels),
        (32, 32),
        (48, 32),
        _DEIT_CROP,
    ),
    "deit-teacher": (
        DeiTForImageClassificationWithTeacher,
        lambda **labels: DeiTConfig(**_TRANSFORMER, **labels),
        (32, 32),
        (32, 48),
        _DEIT_CROP,
    ),
    "convnext": (
        ConvNextForImageClassification,
        lambda **labels: ConvNextConfig(
            hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_scale_init_value=0.5, image_size=64, **labels
        ),
        (64, 64),
        (64, 96),
        _CROP_PCT,
    ),
    "resnet": (
        ResNetForImageClassification,
        lambda **labels: ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic", **labels
        ),
        (64, 64),
        (96, 64),
        _CROP_PCT,
    ),
}
FAMILIES = tuple(_FAMILIES)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """
    Weights of unit gain and BatchNorm statistics that are not 0 and 1, so that every part of the network shows in its
    logits; freshly initialised networks hardly depend on their input.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim >= 2:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
            else:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


class _Copier(pickle.Pickler):
    """Copies a module as `copy.deepcopy` does, several times faster: only its tensors are copied one by one."""

    def __init__(self, module: nn.Module):
        super().__init__(buffer := io.BytesIO(), protocol=5)
        self.tensors: dict[int, torch.Tensor] = {}
        self.dump(module)
        self.recipe = buffer.getvalue()

    def persistent_id(self, value):
        if isinstance(value, torch.Tensor):
            self.tensors[id(value)] = value
            return id(value)

    def copy(self) -> nn.Module:
        unpickler, memo = pickle.Unpickler(io.BytesIO(self.recipe)), {}
        unpickler.persistent_load = lambda key: copy.deepcopy(self.tensors[key], memo)
        return unpickler.load()


@functools.cache
def _template(family: str, num_labels: int, seed: int) -> _Copier:
    cls, config, *_ = _FAMILIES[family]
    names = (LABELS + tuple(f"class {index}" for index in range(len(LABELS), num_labels)))[:num_labels]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    with torch.random.fork_rng(devices=[]):  # some biases keep their first values, which torch draws
        torch.manual_seed(seed)
        model = cls(config(**labels))
    return _Copier(randomize(model, seed))


def tiny_model(family: str, num_labels: int = len(LABELS), seed: int = 0) -> nn.Module:
    """A Transformers classifier of one family, a fresh copy each time, in eval mode."""
    return _template(family, num_labels, seed).copy()


def tiny_processor(family: str, directory):
    """The family's image processor, through a file as a user gets it; naming its class would warn."""
    with open(os.path.join(directory, "preprocessor_config.json"), "w") as file:
        json.dump(_FAMILIES[family][-1], file)
    return AutoImageProcessor.from_pretrained(directory)


def tiny_classifier(family: str, num_labels: int = len(LABELS), seed: int = 0) -> FrozenClassifier:
    """A [`FrozenClassifier`] of one family, a fresh copy each time."""
    return FrozenClassifier(tiny_model(family, num_labels, seed))


def needed(head: str) -> dict[str, Any]:
    """What a head of this name is made with besides the classifier."""
    return {"auxiliary": tiny_classifier("resnet", num_labels=3, seed=7)} if head == "ptame" else {}


def save_classifier(family: str, directory, num_labels: int = len(LABELS), seed: int = 0) -> str:
    """A classifier with its image processor in a directory, as the Hub holds them."""
    tiny_model(family, num_labels, seed).save_pretrained(directory)
    tiny_processor(family, directory)
    return str(directory)


def load_script(name: str) -> Any:
    """A program of `scripts/` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def image_size(family: str) -> tuple[int, int]:
    return _FAMILIES[family][2]


def other_size(family: str) -> tuple[int, int]:
    """A size the family accepts that is not square and neither is its grid."""
    return _FAMILIES[family][3]


def random_pixels(family: str, batch_size: int = 2, size: tuple[int, int] | None = None, seed: int = 0):
    """Smooth and noisy at once, as pictures are, normalised."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size or image_size(family)
    coarse = torch.randn(batch_size, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return smooth + 0.3 * torch.randn(batch_size, 3, height, width, generator=generator)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, also those that state_dict leaves out, copied."""
    return {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def assert_unchanged(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = snapshot(module)
    assert after.keys() == before.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"{len(changed)} tensors changed, such as {changed[0]}"


def assert_frozen(classifier: FrozenClassifier) -> None:
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert not any(module.training for module in classifier.modules())


def train_steps(head: nn.Module, pixel_values: torch.Tensor, steps: int = 3, lr: float = 0.05) -> list[float]:
    """A plain loop over one batch, the way any trainer drives a head."""
    head.train()
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        output = head(pixel_values, return_loss=True)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    head.eval()
    return losses


def files_below(directory) -> dict[str, bytes]:
    """Every file below a directory with its content: what a failed save must not have changed."""
    found = {}
    for root, directories, files in os.walk(directory):
        for name in (*files, *(d + os.sep for d in directories)):
            path = os.path.join(root, name)
            found[os.path.relpath(path, directory)] = open(path, "rb").read() if os.path.isfile(path) else b""
    return found


class LargestMaps(TorchDispatchMode):
    """Records every tensor an operation returns that holds values per place for all of `num_labels` classes."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels, self.operations, self.maps = num_labels, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim >= 3 and self.num_labels in tensor.shape[1:]:
                self.maps.append((str(func), tuple(tensor.shape)))  # weights and their gradients have classes first
        return result


class ExplainerTesterMixin:
    """
    What every trained head must do on every family. Subclasses set:

    - `head_class`: the head.
    - `variants`: name to configuration fields; most tests run on the first, those of arithmetic on all.
    - `max_kilobytes`: how large the saved head of a tiny classifier may be.
    - `quick_families`: the families in the default suite; tests on the others are slow ones.
    - `from_classifier(classifier, **options)`: how a head is made, where it takes more than a classifier.
    - `first_layers`: the names of the first layers that it could tap in a ViT, for an error that lists them.
    - `expected_size(head, pixel_values)`: the map's size where it is not the first tapped layer's.

    A test of what depends on the family takes `family` and runs on every one; `options` adds the variants, the first
    on every family, the others on two. Any other test takes `either`: a transformer, then a convolutional network.
    """

    head_class = None
    variants: dict[str, dict] = {"default": {}}
    max_kilobytes = 64
    quick_families = FAMILIES
    first_layers = "stem, layer1"

    def pytest_generate_tests(self, metafunc):
        first, *others = self.variants
        if "options" in metafunc.fixturenames:
            cases = [(family, first) for family in FAMILIES]
            cases += [(family, name) for family in ("deit", "resnet") for name in others]
            made = [self.case(family, name, self.variants[name]) for family, name in cases]
            metafunc.parametrize(("family", "options"), made)
        for name, families in (("family", FAMILIES), ("either", ("vit", "resnet"))):
            if name in metafunc.fixturenames and "options" not in metafunc.fixturenames:
                metafunc.parametrize(name, [self.case(family, first) for family in families])

    def case(self, family, name, *options):
        marks = () if family in self.quick_families else pytest.mark.slow
        return pytest.param(family, *options, marks=marks, id=f"{family}-{name}")

    # ------------------------------------------------------------------ for subclasses to say

    def expected_size(self, head, pixel_values) -> tuple[int, int]:
        layer = head.config.feature_layers[0]
        return tuple(head.backbone.forward_to_features(pixel_values, layer).feature_map.shape[-2:])

    @staticmethod
    def prefixes(head) -> tuple[str, ...]:
        """What the names of the frozen classifiers' tensors start with."""
        return tuple(f"{name}." for name in head.config.classifiers)

    def make_head(self, classifier, seed: int = 1, **options):
        """A head whose own weights are as large as its inputs, so that its maps differ from place to place."""
        options = options or next(iter(self.variants.values()))
        if isinstance(classifier, str) and not os.path.isdir(classifier):
            classifier = tiny_classifier(classifier)
        torch.manual_seed(seed)
        return self.from_classifier(classifier, **options)

    def from_classifier(self, classifier, **options):
        return self.head_class.from_classifier(classifier, **options)

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory):
        """`trained(family)`: a head trained a little on a classifier, and the directory that both are saved in."""

        @functools.cache
        def build(family, **save_options):
            directory = tmp_path_factory.mktemp("trained")
            head = self.make_head(save_classifier(family, directory / "classifier"))
            train_steps(head, random_pixels(family), steps=1)
            head.save_pretrained(directory / "head", **save_options)
            return head, directory

        return build

    @pytest.fixture
    def saved(self, trained, tmp_path):
        """`saved(family)`: a trained head, its directory and its classifier's; a test may change all three."""

        def build(family, **save_options):
            head, directory = trained(family, **save_options)
            shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
            return copy.deepcopy(head), tmp_path / "head", tmp_path / "classifier"

        return build

    # ------------------------------------------------------------------ the map

    def test_map_is_finite_between_0_and_1_and_of_the_taps_size(self, family, options):
        head = self.make_head(family, **options)
        for size in (image_size(family), other_size(family)):
            pixel_values = random_pixels(family, 2, size)
            output = head(pixel_values)
            assert output.saliency.shape == (2, *self.expected_size(head, pixel_values))
            assert output.saliency.isfinite().all()
            assert torch.equal(output.saliency.amin((1, 2)), torch.zeros(2))
            assert torch.equal(output.saliency.amax((1, 2)), torch.ones(2))
            assert not output.saliency.requires_grad
            torch.testing.assert_close(
                output.logits,
                head.backbone.model(pixel_values, **head.backbone._input_options(pixel_values)).logits,
                rtol=0,
                atol=0,
            )
            assert torch.equal(output.target, output.logits.argmax(-1))
            assert output.loss is None

    def test_batch_equals_singles(self, family, options):
        head = self.make_head(family, **options)
        pixel_values = random_pixels(family, 3)
        together = head(pixel_values, target=[0, 3, 1])
        for index, target in enumerate([0, 3, 1]):
            alone = head(pixel_values[index : index + 1], target=target)
            torch.testing.assert_close(alone.saliency[0], together.saliency[index], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone.logits[0], together.logits[index], rtol=1e-4, atol=1e-4)

    def test_any_class_as_target(self, either):
        head = self.make_head(either)
        pixel_values = random_pixels(either)
        maps = {}
        for index, label in enumerate(LABELS):
            by_index = head(pixel_values, target=index)
            maps[index] = by_index.saliency
            assert by_index.target.tolist() == [index, index]
            numpy = (np.int64(index), np.array(index), np.array(label), np.array([index, index]))
            for same in (label, [label, index], torch.tensor(index), torch.tensor([index, index]), *numpy):
                again = head(pixel_values, target=same)
                assert torch.equal(again.saliency, by_index.saliency)
                assert again.target.tolist() == [index, index]
        assert torch.equal(head(pixel_values, target="tinca TINCA").target, torch.tensor([0, 0]))
        mixed = head(pixel_values, target=["cat", 4])
        assert torch.equal(mixed.saliency[0], maps[1][0]) and torch.equal(mixed.saliency[1], maps[4][1])

    def test_misspelled_arguments_are_refused(self):
        with pytest.raises(TypeError, match="targets"):
            self.make_head("vit")(random_pixels("vit"), targets=3)

    def test_several_classes_share_one_pass(self, family):
        head = self.make_head(family)
        pixel_values = random_pixels(family)
        features = head.forward_features(pixel_values)
        for target in range(len(LABELS)):
            shared = head.forward_head(features, target)
            assert torch.equal(shared.saliency, head(pixel_values, target=target).saliency)

    # one family in the default suite: a graph takes seconds
    @pytest.mark.parametrize(
        "kind", ["resnet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES if kind != "resnet")]
    )
    def test_exported_is_one_graph_for_any_batch_and_class(self, kind):
        dynamic = {0: torch.export.Dim.DYNAMIC}
        self.check_graph(
            kind, lambda head, *inputs: torch.export.export(head, inputs, dynamic_shapes=(dynamic, dynamic)).module()
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_compiled_is_one_graph_for_any_batch_and_class(self, kind):
        torch.compiler.reset()  # which counts how often `forward` was compiled, over all heads of the process
        self.check_graph(kind, lambda head, *_: torch.compile(head, fullgraph=True, dynamic=True, backend="eager"))

    def check_graph(self, kind, trace):
        head = self.make_head(kind)
        train_steps(head, random_pixels(kind), steps=1)
        batches = (
            (random_pixels(kind, 3), torch.tensor([0, 3, 1])),
            (random_pixels(kind, 1, seed=5), torch.tensor([4])),
        )
        graph = trace(head, *batches[0])
        for pixel_values, target in batches:
            found, expected = graph(pixel_values, target), head(pixel_values, target)
            torch.testing.assert_close(found.saliency, expected.saliency, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
        for outside in (-1, len(LABELS)):
            with pytest.raises(RuntimeError, match="`target` is out of range"):
                graph(batches[0][0], torch.tensor([0, outside, 1]))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, either, dtype):
        head = self.make_head(either)
        pixel_values = random_pixels(either)
        full = head(pixel_values, target=1)
        half = head.to(dtype)(pixel_values.to(dtype), target=1)
        assert head.backbone.dtype == dtype and half.logits.dtype == dtype
        assert half.saliency.dtype == torch.float32 and half.saliency.isfinite().all()
        torch.testing.assert_close(half.saliency, full.saliency, rtol=0, atol=0.25)
        assert_frozen(head.backbone)

    def test_trains_in_bfloat16(self, either):
        head = self.make_head(either).to(torch.bfloat16)
        before = snapshot(head.backbone)
        losses = train_steps(head, random_pixels(either).to(torch.bfloat16), steps=2)
        assert all(loss == loss for loss in losses)
        assert all(p.isfinite().all() for p in head.parameters())
        assert_unchanged(head.backbone, before)

    @pytest.mark.parametrize("training", [False, True])
    def test_outputs_as_everywhere(self, training):
        """In declared order, the loss first; as a tuple where asked; with `labels`, or a `target` to train on."""
        head, pixel_values = self.make_head("vit").train(training), random_pixels("vit")
        labels = torch.tensor([3, 1])
        asked = [{"labels": labels}, {"target": labels, "return_loss": True}]
        if training:
            asked.append({"target": labels})
        for call in asked:
            torch.manual_seed(0)
            output = head(pixel_values, **call)
            assert list(output)[:4] == ["loss", "saliency", "logits", "target"]
            assert output["loss"] is output.loss is output[0] and torch.equal(output.target, labels)
            torch.manual_seed(0)
            found = head(pixel_values, **call, return_dict=False)
            assert type(found) is tuple and len(found) == len(output)
            assert all(torch.equal(one, output[name]) for one, name in zip(found[:4], output))
        maps = head(pixel_values)
        assert maps.loss is None and list(maps)[:3] == ["saliency", "logits", "target"]
        assert head(pixel_values, target=labels, return_loss=False).loss is None
        head.config.return_dict = False
        assert type(head(pixel_values)) is tuple
        with pytest.raises(ValueError, match="`labels` is another name of `target`.*; give one of them"):
            head(pixel_values, target=1, labels=labels)

    # ------------------------------------------------------------------ training touches the head alone

    def test_training_leaves_the_classifier_bit_identical(self, family, options):
        head = self.make_head(family, **options)
        classifier, before = snapshot(head.backbone), snapshot(head)
        losses = train_steps(head, random_pixels(family), steps=3)
        assert all(map(torch.isfinite, map(torch.tensor, losses)))
        assert_unchanged(head.backbone, classifier)
        after = snapshot(head)
        own = [name for name, _ in head.named_parameters() if not name.startswith(self.prefixes(head))]
        assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(self.prefixes(head)))
        assert any(not torch.equal(after[name], before[name]) for name in own)

    def test_training_with_self_contained_weights_leaves_the_classifier_too(self, either):
        head = self.make_head(either)
        head.config.self_contained = True
        before = snapshot(head.backbone)
        train_steps(head, random_pixels(either), steps=2)
        assert_unchanged(head.backbone, before)

    def test_only_the_heads_parameters_get_gradients(self, family, options):
        head = self.make_head(family, **options).train()
        output = head(random_pixels(family, size=other_size(family)), return_loss=True)
        assert output.loss.shape == () and output.loss.isfinite()
        assert output.saliency is not None and output.logits is not None and output.target is not None
        assert not output.logits.requires_grad
        assert all(not term.requires_grad and term.shape == () for term in output.loss_terms.values())
        torch.testing.assert_close(sum(output.loss_terms.values()), output.loss.detach())
        output.loss.backward()
        for name, parameter in head.named_parameters():
            if name.startswith(self.prefixes(head)):
                assert parameter.grad is None, name
            else:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert any(p.grad.abs().sum() > 0 for p in head.parameters() if p.grad is not None)

    def test_frozen_whatever_is_called(self, family):
        head = self.make_head(family)
        pixel_values = random_pixels(family)
        before = snapshot(head.backbone)
        logits = head(pixel_values).logits
        calls = (
            lambda h: h.train(),
            lambda h: h.train(True).eval().train(),
            lambda h: h.requires_grad_(True),
            lambda h: h.apply(lambda module: module.train()),
            lambda h: h.apply(lambda module: module.requires_grad_(True)),
            lambda h: h.backbone.train(),
            lambda h: h.backbone.requires_grad_(True),
            lambda h: h.zero_grad(),
            lambda h: h.float(),
            lambda h: h.to("cpu"),
            lambda h: nn.Sequential(nn.ModuleDict({"head": h})).apply(lambda module: module.train()),
        )
        for call in calls:
            call(head)
            for classifier in head.frozen.values():
                assert_frozen(classifier)
            assert_unchanged(head.backbone, before)
            assert torch.equal(head(pixel_values).logits, logits)
        head.requires_grad_(False)
        head.requires_grad_(True)
        own = [p for name, p in head.named_parameters() if not name.startswith(self.prefixes(head))]
        assert own and all(p.requires_grad for p in own)
        # a container's requires_grad_ reaches the parameters directly; training must not notice
        container = nn.ModuleList([head]).train().requires_grad_(True)
        optimizer = torch.optim.SGD(container.parameters(), lr=0.1, weight_decay=0.1)
        head(pixel_values, return_loss=True).loss.backward()
        optimizer.step()
        assert_frozen(head.backbone)
        assert_unchanged(head.backbone, before)

    def test_copies_are_frozen_and_give_the_same_map(self, either):
        head = self.make_head(either).train()
        pixel_values = random_pixels(either)
        expected = head.eval()(pixel_values)
        for made in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            made.train().requires_grad_(True)
            assert_frozen(made.backbone)
            assert not any(key.startswith(self.prefixes(head)) for key in made.state_dict())
            again = made.eval()(pixel_values)
            assert torch.equal(again.saliency, expected.saliency) and torch.equal(again.logits, expected.logits)
            before = snapshot(head)
            train_steps(made, pixel_values, steps=1)
            assert_unchanged(head, before)

    def test_deterministic_under_a_seed(self, either):
        trained = []
        for _ in range(2):
            head = self.make_head(either, seed=5)
            torch.manual_seed(11)
            losses = train_steps(head, random_pixels(either), steps=2)
            trained.append((losses, snapshot(head), head(random_pixels(either)).saliency))
        assert trained[0][0] == trained[1][0]
        assert trained[0][1].keys() == trained[1][1].keys()
        assert all(torch.equal(trained[0][1][name], trained[1][1][name]) for name in trained[0][1])
        assert torch.equal(trained[0][2], trained[1][2])
        other = self.make_head(either, seed=6)
        assert any(not torch.equal(p, trained[0][1][name]) for name, p in other.named_parameters())

    @pytest.mark.parametrize("training", [False, True])
    def test_no_map_of_every_class_is_built(self, family, options, training):
        """With 1000 classes, forward and backward: rows of 1000 weights, but never 1000 values per place."""
        head = self.make_head(tiny_classifier(family, num_labels=1000), **options).train(training)
        with LargestMaps(1000) as seen:
            output = head(random_pixels(family), target=[3, 999], return_loss=training)
            if training:
                output.loss.backward()
        assert seen.operations > 20
        assert not seen.maps, f"{len(seen.maps)} operations build maps of every class, such as {seen.maps[0]}"

    # ------------------------------------------------------------------ saving and loading

    def test_head_only_round_trip(self, family, options, tmp_path):
        classifier = save_classifier(family, tmp_path / "classifier")
        head = self.make_head(classifier, **options)
        train_steps(head, random_pixels(family), steps=1)
        head.save_pretrained(tmp_path / "head")
        tensors = safetensors.torch.load_file(tmp_path / "head" / "model.safetensors")
        assert tensors and not any(name.startswith(self.prefixes(head)) for name in tensors)
        size = sum(path.stat().st_size for path in (tmp_path / "head").iterdir())
        assert size < self.max_kilobytes * 1024
        assert size < (tmp_path / "classifier" / "model.safetensors").stat().st_size

        loaded, info = self.head_class.from_pretrained(tmp_path / "head", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert not any(tensor.is_meta for tensor in snapshot(loaded).values())
        assert type(loaded.config) is type(head.config)
        assert {**loaded.config.to_dict(), "_name_or_path": ""} == {**head.config.to_dict(), "_name_or_path": ""}
        assert_frozen(loaded.backbone)
        assert_unchanged(loaded.backbone.model, snapshot(tiny_model(family)))
        assert not loaded.training
        for size in (image_size(family), other_size(family)):
            pixel_values = random_pixels(family, 2, size)
            expected, found = head(pixel_values), loaded(pixel_values)
            assert torch.equal(found.saliency, expected.saliency) and torch.equal(found.logits, expected.logits)
        torch.manual_seed(0)
        first = head.train()(pixel_values, return_loss=True).loss
        torch.manual_seed(0)
        assert torch.equal(loaded.train()(pixel_values, return_loss=True).loss, first)

    def test_self_contained_round_trip(self, family, saved, caplog):
        head, directory, _ = saved(family, self_contained=True)
        assert head.config.self_contained is False  # saving does not change the head
        for beside in directory.parent.iterdir():
            if beside != directory:
                shutil.rmtree(beside)
        tensors = safetensors.torch.load_file(directory / "model.safetensors")
        assert all(any(name.startswith(prefix) for name in tensors) for prefix in self.prefixes(head))
        loaded = self.head_class.from_pretrained(directory)
        assert_frozen(loaded.backbone)
        assert_unchanged(loaded.backbone.model, snapshot(tiny_model(family)))
        loaded.train().requires_grad_(True)
        assert_frozen(loaded.eval().backbone)
        pixel_values = random_pixels(family)
        expected, found = head(pixel_values), loaded(pixel_values)
        assert torch.equal(found.saliency, expected.saliency) and torch.equal(found.logits, expected.logits)
        assert loaded.backbone.image_mean == head.backbone.image_mean
        assert loaded.backbone.image_std == head.backbone.image_std
        # and again, from the loaded one, with nothing of the first left
        loaded.save_pretrained(directory.parent / "again")
        shutil.rmtree(directory)
        again = self.head_class.from_pretrained(directory.parent / "again")
        assert torch.equal(again(pixel_values).saliency, expected.saliency)
        assert again.backbone.image_processor is not None

    def test_self_contained_without_the_classifiers_weights_is_refused(self, either, saved):
        _, directory, _ = saved(either)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "self_contained": True}))
        with pytest.raises(ValueError, match="self_contained=true but its weights lack the classifier"):
            self.head_class.from_pretrained(directory)

    def test_config_names_no_local_path_but_the_classifiers(self, either, saved):
        _, directory, classifier = saved(either)
        config = json.loads((directory / "config.json").read_text())
        assert config.pop("backbone") == f"../{classifier.name}" and classifier.parent == directory.parent
        assert str(directory.parent) not in json.dumps(config)
        assert "_name_or_path" not in config["backbone_config"]
        assert config["backbone_config"]["id2label"] == dict(zip("01234", LABELS))
        assert config["id2label"] == dict(zip("01234", LABELS))

    def test_state_dict_is_the_heads_alone(self, either):
        """What Accelerate checkpoints, also when the head sits inside a wrapper as DistributedDataParallel has it."""
        head = self.make_head(either)
        state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        assert state and not any(name.startswith(self.prefixes(head)) for name in state)
        other = self.make_head(either, seed=2)
        classifier = snapshot(other.backbone)
        result = other.load_state_dict(state)
        assert not result.missing_keys and not result.unexpected_keys
        assert_unchanged(other.backbone, classifier)
        pixel_values = random_pixels(either)
        assert torch.equal(other(pixel_values).saliency, head(pixel_values).saliency)

        wrapped = nn.ModuleDict({"module": self.make_head(either, seed=3)})
        state = {f"module.{name}": tensor for name, tensor in state.items()}
        assert wrapped.state_dict().keys() == state.keys()
        result = wrapped.load_state_dict(state)
        assert not result.missing_keys and not result.unexpected_keys
        assert torch.equal(wrapped["module"](pixel_values).saliency, head(pixel_values).saliency)
        with pytest.raises(RuntimeError, match="Missing key"):
            wrapped.load_state_dict({})

    def test_wrong_classifier_is_refused(self, either, saved, tmp_path):
        head, directory, classifier = saved(either)
        other = save_classifier(either, tmp_path / "other", seed=3)
        with pytest.raises(ValueError, match="another fingerprint.*verify_fingerprint=False"):
            self.head_class.from_pretrained(directory, classifier=other)
        shutil.rmtree(classifier)
        shutil.copytree(other, classifier)
        with pytest.raises(ValueError, match="not the one this head was trained on"):
            self.head_class.from_pretrained(directory)
        loaded = self.head_class.from_pretrained(directory, verify_fingerprint=False)
        assert_unchanged(loaded.backbone.model, snapshot(tiny_model(either, seed=3)))
        fewer = save_classifier(either, tmp_path / "fewer", num_labels=3)
        with pytest.raises(ValueError, match="explains 5 classes, the classifier .* has 3"):
            self.head_class.from_pretrained(directory, classifier=fewer, verify_fingerprint=False)
        head.config.backbone_config = None  # as a head of a plain module has it
        with pytest.raises(ValueError, match="explains 5 classes, the classifier .* has 3"):
            head.attach(tiny_classifier(either, num_labels=3), verify_fingerprint=False)

    def test_missing_classifier_is_named(self, either, saved):
        _, directory, classifier = saved(either)
        shutil.rmtree(classifier)
        with pytest.raises(FileNotFoundError, match="does not exist; put it back or pass") as error:
            self.head_class.from_pretrained(directory)
        assert str(classifier) in str(error.value)

    def test_moved_together_with_its_classifier(self, either, saved, tmp_path):
        head, directory, _ = saved(either)
        (tmp_path / "elsewhere").mkdir()
        for beside in set(directory.parent.iterdir()) - {tmp_path / "elsewhere"}:
            shutil.move(beside, tmp_path / "elsewhere" / beside.name)
        loaded = self.head_class.from_pretrained(tmp_path / "elsewhere" / "head")
        pixel_values = random_pixels(either)
        assert torch.equal(loaded(pixel_values).saliency, head(pixel_values).saliency)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_dtype_arrives_at_the_classifier(self, either, saved, dtype):
        _, directory, _ = saved(either)
        loaded = self.head_class.from_pretrained(directory, dtype=dtype)
        for name, tensor in snapshot(loaded).items():
            assert tensor.dtype == dtype or not tensor.is_floating_point(), name
        assert loaded(random_pixels(either)).saliency.isfinite().all()

    def test_head_made_in_bfloat16_finds_its_classifier_again(self, either, tmp_path):
        """The rounded weights are what was explained; the file on disk is not rounded, and is the same classifier."""
        classifier = save_classifier(either, tmp_path / "classifier")
        torch.manual_seed(0)
        head = self.from_classifier(classifier, dtype=torch.bfloat16)
        assert head.backbone.dtype == torch.bfloat16
        assert {p.dtype for p in head.parameters()} == {torch.bfloat16}
        head.save_pretrained(tmp_path / "head")
        for options in ({}, {"dtype": torch.bfloat16}, {"dtype": torch.float32}):
            loaded = self.head_class.from_pretrained(tmp_path / "head", **options)
            assert loaded(random_pixels(either)).saliency.isfinite().all()
        save_classifier(either, classifier, seed=4)
        with pytest.raises(ValueError, match="another fingerprint"):
            self.head_class.from_pretrained(tmp_path / "head")

    @pytest.mark.parametrize("self_contained", [False, True])
    def test_attn_implementation_and_device_map_arrive(self, either, saved, self_contained):
        head, directory, classifier = saved(either, self_contained=self_contained)
        loaded = self.head_class.from_pretrained(directory, device_map="cpu")
        assert loaded.device == loaded.backbone.device == torch.device("cpu")
        assert_frozen(loaded.backbone)
        pixel_values = random_pixels(either)
        assert torch.equal(loaded(pixel_values).saliency, head(pixel_values).saliency)
        if loaded.backbone.is_transformer:
            for name in ("eager", "sdpa"):
                loaded = self.head_class.from_pretrained(directory, attn_implementation=name)
                assert loaded.backbone.model.config._attn_implementation == name
                made = self.from_classifier(str(classifier), attn_implementation=name)
                assert made.backbone.model.config._attn_implementation == name
                made.set_attn_implementation("eager")
                assert made.backbone.model.config._attn_implementation == "eager"
                assert made.config._attn_implementation == "eager"
                assert made.config.backbone_config._attn_implementation == "eager"

    # ------------------------------------------------------------------ failures leave nothing behind

    @pytest.mark.parametrize("broken", ["weights", "config", "first_move", "last_move"])
    @pytest.mark.parametrize("existing", [False, True])
    def test_failed_save_leaves_what_was_there(self, saved, monkeypatch, tmp_path, broken, existing):
        head, directory, _ = saved("vit")
        target = directory if existing else tmp_path / "new" / "head"
        before = files_below(tmp_path)
        train_steps(head, random_pixels("vit"), steps=1)
        real_replace, moves = os.replace, []

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def replace_until_full(source, destination, **kwargs):
            moves.append(destination)
            last = not existing or os.path.basename(destination) == "config.json"
            if broken == "first_move" and len(moves) == 1 or broken == "last_move" and last:
                full()
            return real_replace(source, destination, **kwargs)

        if broken == "weights":
            monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
        elif broken == "config":
            monkeypatch.setattr(type(head.config), "save_pretrained", full)
        else:
            monkeypatch.setattr(os, "replace", replace_until_full)
        with pytest.raises(OSError, match="No space left on device") as error:
            head.save_pretrained(target)
        assert str(target) in str(error.value)
        monkeypatch.undo()
        assert files_below(tmp_path) == before
        head.save_pretrained(target)
        loaded = self.head_class.from_pretrained(target)
        assert torch.equal(loaded(random_pixels("vit")).saliency, head(random_pixels("vit")).saliency)

    def test_directory_that_cannot_be_written(self, tmp_path, monkeypatch):
        head = self.make_head("vit")
        (tmp_path / "file").write_text("x")
        with pytest.raises(NotADirectoryError, match="is a file; give a directory"):
            head.save_pretrained(tmp_path / "file")
        with pytest.raises(OSError, match="could not save to .*head': .* or choose another save_directory"):
            head.save_pretrained(tmp_path / "file" / "head")
        assert files_below(tmp_path) == {"file": b"x"}

        def refuse(*args, **kwargs):  # what mkdtemp says in a read-only directory; root may write everywhere
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr("tempfile.mkdtemp", refuse)
        with pytest.raises(OSError, match="could not save to .*head': Permission denied"):
            head.save_pretrained(tmp_path / "new" / "head")
        assert files_below(tmp_path) == {"file": b"x"}

    def test_saved_files_have_the_usual_permissions(self, tmp_path):
        """The umask's, for the weights too: neither a temporary directory's privacy nor that of safetensors sticks."""
        head = self.make_head("vit")
        head.backbone.model.save_pretrained(tmp_path / "plain")
        head.save_pretrained(tmp_path / "head")
        assert (tmp_path / "head").stat().st_mode == (tmp_path / "plain").stat().st_mode
        usual = (tmp_path / "plain" / "config.json").stat().st_mode
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "head" / name).stat().st_mode == usual, name

    # ------------------------------------------------------------------ bad input

    def test_bad_input_is_one_clear_sentence(self):
        head = self.make_head("vit")
        pixel_values = random_pixels("vit")
        for target, error, message in (
            (5, ValueError, "`target` 5 is out of range: the classifier has 5 classes, 0 to 4"),
            (-1, ValueError, "`target` -1 is out of range"),
            (torch.tensor([0, 9]), ValueError, "`target` 9 is out of range"),
            ("tenhc", ValueError, "`target` 'tenhc' is not a label of this classifier; the nearest are 'tench"),
            ([1, 2, 3], ValueError, "`target` has 3 entries for 2 images"),
            ([1.5, 2], TypeError, "`target` must be a class index or a label name, got 1.5"),
            (torch.tensor(1.5), TypeError, "`target` must hold class indices"),
            (torch.tensor([0.0, 1.0]), TypeError, "`target` must hold class indices"),
            (True, TypeError, "`target` must be a class index"),
            (1.0, TypeError, "`target` must be a class index"),
            (np.array(1.0), TypeError, "`target` must be a class index"),
            (np.array("dgo"), ValueError, "`target` 'dgo' is not a label of this classifier; the nearest are"),
        ):
            with pytest.raises(error, match=message):
                head(pixel_values, target=target)
        with pytest.raises(ValueError, match=r"`pixel_values` must have shape \(batch_size, 3, height, width\)"):
            head(pixel_values[0])
        with pytest.raises(ValueError, match=r"got \(2, 1, 32, 32\)"):
            head(pixel_values[:, :1])
        with pytest.raises(TypeError, match="has no field 'varant'; its fields are"):
            self.from_classifier(tiny_classifier("vit"), varant="fm")
        with pytest.raises(ValueError, match=f"`layer` 'stage9' does not exist; the layers are {self.first_layers}"):
            self.from_classifier(tiny_classifier("vit"), feature_layers=["stage9"])
        with pytest.raises(ValueError, match="`feature_layers` is empty"):
            self.from_classifier(tiny_classifier("vit"), feature_layers=[])

    def test_what_is_not_finite_is_no_map_of_zeros(self, family, options):
        head, pixel_values = self.make_head(family, **options), random_pixels(family, 3)
        for value in (float("nan"), float("inf"), -float("inf")):
            broken = pixel_values.clone()
            broken[1, 0, 2, 2] = value
            # SCAN's gradients notice first
            with pytest.raises(
                ValueError, match="^Image 1 gets (logits that are|a gradient that is) not finite"
            ) as error:
                head(broken, target=0)
            assert "`pixel_values`" in str(error.value)
        head.requires_grad_(False)
        for parameter in head.parameters():
            if not any(parameter is other for other in head.backbone.parameters()):
                parameter.fill_(float("nan"))
        with pytest.raises(ValueError, match="^Image 0 gets a map that is not finite; look for NaN or infinity in"):
            head(pixel_values)
        head.train()  # a training loop has its own word for it, with the step and the samples in it
        assert head(pixel_values, return_loss=True).loss.isnan()

    def test_a_config_alone_is_no_head(self, tmp_path):
        with pytest.raises(ValueError, match="from_classifier"):
            self.head_class(self.head_class.config_class())
        classifier = save_classifier("vit", tmp_path)
        with pytest.raises(ValueError, match="from_classifier"):
            self.head_class.from_pretrained(classifier)

    def test_head_without_its_weights_is_refused(self, saved):
        _, directory, _ = saved("vit")
        tensors = safetensors.torch.load_file(directory / "model.safetensors")
        lost = sorted(tensors)[0]
        safetensors.torch.save_file(
            {k: v for k, v in tensors.items() if k != lost} or {"x": torch.zeros(1)},
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        with pytest.raises(ValueError, match="lack") as error:
            self.head_class.from_pretrained(directory)
        assert lost in str(error.value)
