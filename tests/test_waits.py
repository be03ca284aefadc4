"""
Nothing that runs for every batch waits for the device.

The meta device stands for a GPU: it holds no values, so whatever asks it for one fails. A copy from the CPU that is
not `non_blocking` would make a GPU finish first, and is counted.
"""

import pytest
import torch
from testing_common import image_size, needed, tiny_classifier
from testing_training import TinyHead, picture_dataset, processor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_explain.metrics import functional as metrics
from hf_explain.registry import METHODS, methods_for, resolve_head
from hf_explain.tensors.checks import checks_together, gathered_checks, refuse
from hf_explain.training.arguments import ExplainerTrainingArguments
from hf_explain.training.loop import train


class Copies(TorchDispatchMode):
    """Copies from one device to another that are waited for."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            target, source = (found, args[0]) if function is torch.ops.aten._to_copy.default else args[:2]
            blocking = not (kwargs.get("non_blocking") or len(args) > 2 and args[2])
            if source.device != target.device and source.numel() and blocking:
                self.waited.append((function, tuple(source.shape)))
        return found


def gpu(kind):
    classifier = tiny_classifier(kind)
    classifier.image_mean, classifier.image_std, classifier.num_labels, classifier.default_layer  # noqa: B018
    return classifier.to("meta")


def images(kind, count=4):
    return torch.randn(count, 3, *image_size(kind), device="meta")


HEADS = {
    "lcam": ("resnet", {}),
    "ttame": ("vit", {"preset": "ranking"}),
    "scan": ("convnext", {}),
    "shapley": ("vit", {"num_coalitions": 2}),
    "ptame": ("vit", needed("ptame")),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_training_step_and_an_explanation_ask_nothing(name):
    kind, options = HEADS[name]
    head = resolve_head(name).from_classifier(tiny_classifier(kind), **options).to("meta").train()
    pixel_values, target = images(kind), torch.zeros(4, dtype=torch.long, device="meta")
    for call in ({"target": target, "return_loss": True}, {}):
        with Copies() as copies, gathered_checks() as checks:
            output = head(pixel_values, **call)
            if output.loss is not None:
                output.loss.backward()
            assert checks.any_wrong(pixel_values.device).shape == ()
        assert not copies.waited, copies.waited
        head.eval()


@pytest.mark.parametrize("name", ["auc_d", "auc_d_fills", "average_drop", "insertion_deletion"])
def test_a_metric_asks_nothing(name):
    classifier = gpu("resnet")
    saliency = torch.rand(4, 8, 8, device="meta")
    target = torch.zeros(4, dtype=torch.long, device="meta")
    options = {"target": target, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "image_ids": torch.arange(4)}
    with Copies() as copies, gathered_checks():
        getattr(metrics, name)(classifier, images("resnet"), saliency, **options)
    assert not copies.waited, copies.waited


# captum asks for every image, and FGVis once in every iteration of its search
ASKING = {"lime", "kernel_shap", "fgvis"}
OPTIONS = {
    "ablationcam": {"batch_size": 32},
    "scorecam": {"batch_size": 32},
    "oracle": {"grid": (2, 2)},
    "rise": {"num_masks": 8},
    "occlusion": {"window_size": 16, "stride": 16},
    "integrated_gradients": {"steps": 2},
    "smoothgrad": {"num_samples": 2},
}


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_methods_ask_nothing(kind):
    classifier = gpu(kind)
    for name in set(methods_for(tiny_classifier(kind))) - ASKING:
        with Copies() as copies, gathered_checks():
            METHODS[name](classifier, images(kind, 2), None, **OPTIONS.get(name, {}))
        assert not copies.waited, (name, copies.waited)


class Questions(TorchDispatchMode):
    """What is asked of tensors, wherever they are."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        asking = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += function in asking
        return function(*args, **(kwargs or {}))


def test_a_step_of_the_loop_asks_once(tmp_path):
    counts = []
    for steps in (2, 5):
        args = ExplainerTrainingArguments(
            output_dir=str(tmp_path / str(steps)), max_steps=steps, per_device_batch_size=4, dataloader_num_workers=0,
            save_steps=0, logging_steps=10, target="label", progress=False,
        )  # fmt: skip
        with Questions() as questions:
            train(TinyHead(), picture_dataset(), None, processor(), args)
        counts.append(questions.count)
    assert counts[1] - counts[0] == 3


def wrong(value, message):
    refuse(torch.tensor(value), lambda: ValueError(message))


def test_what_is_wrong_is_said_at_once_or_together():
    with pytest.raises(ValueError, match="at once"):
        wrong(True, "at once")
    reached = []
    with pytest.raises(ValueError, match="second"), checks_together():
        wrong(False, "first")
        with checks_together():  # inside of another one it says nothing
            wrong(True, "second")
        wrong(True, "third")
        reached.append(True)
    assert reached
    wrong(False, "nothing is left of it")


def test_an_error_that_came_of_a_wrong_value_is_not_what_is_said():
    with pytest.raises(ValueError, match="the cause"), checks_together():
        wrong(True, "the cause")
        raise KeyError("what came of it")
    with pytest.raises(KeyError), checks_together():
        wrong(False, "no cause")
        raise KeyError("by itself")
