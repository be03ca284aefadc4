"""One classifier explained by several threads at once, as a web service does: the maps of one thread, each time."""

import contextlib
import copy
import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import needed, random_pixels, tiny_classifier, tiny_model, tiny_processor
from torch import nn
from transformers import pipeline

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.thread_hooks import thread_hooks
from hf_explain.evaluation.explainer import PassCounter, evaluating
from hf_explain.registry import HEADS, METHODS, methods_for


# what keeps a method cheap
OPTIONS = {
    "ablationcam": {"batch_size": 8},
    "scorecam": {"batch_size": 8},
    "rise": {"num_masks": 8},
    "occlusion": {"window_size": 16, "stride": 16},
    "oracle": {"grid": (2, 2)},
    "integrated_gradients": {"steps": 4},
    "smoothgrad": {"num_samples": 3},
    "fgvis": {"budget": 4, "rounds": 2},
    "lime": {"num_samples": 6, "grid_size": 2},
    "kernel_shap": {"num_samples": 6, "grid_size": 2},
}
NUM_THREADS = 8


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((48, 40))


def jobs_on(family: str, directory) -> tuple[nn.Module, dict]:
    """A model, and every method and head on it by name, each behind a pipeline: a call gives a map."""
    model, processor, image = tiny_model(family), tiny_processor(family, directory), picture()
    pipe = pipeline("saliency", model=model, image_processor=processor)
    calls = {
        name: functools.partial(pipe, method=name, **OPTIONS.get(name, {})) for name in methods_for(pipe.classifier)
    }
    for name, head in HEADS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # a second FrozenClassifier around the same model, as another pipeline has it
            frozen = FrozenClassifier(model, image_processor=processor)
            explainer = head.model.from_classifier(frozen, **needed(name))
        calls[name] = pipeline("saliency", model=explainer, image_processor=processor)
    return model, {
        name: lambda call=call: torch.from_numpy(call(image)[0]["saliency_map"]) for name, call in calls.items()
    }


class Plain(nn.Module):
    """A classifier that no table knows: its layers are read and replaced by hooks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(
            nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.classifier = nn.Linear(8, 5)

    def forward(self, pixel_values):
        return self.classifier(self.stage(self.stem(pixel_values)).mean((2, 3)))


def jobs_on_hooks() -> tuple[nn.Module, dict]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Plain()
    classifier, pixel_values = FrozenClassifier(model, image_size=(32, 32)), random_pixels("vit", 2)
    calls = {
        (name, layer): functools.partial(METHODS[name], classifier, pixel_values, layer=layer, **OPTIONS.get(name, {}))
        for name in methods_for(classifier)
        for layer in (None, "stem")
    }
    return model, {name: lambda call=call: call().saliency for name, call in calls.items()}


def state_of(model: nn.Module) -> tuple:
    """What a method could leave behind."""
    hooks = [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()]
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return hooks, attention, [module.training for module in model.modules()]


def check(model: nn.Module, jobs: dict, rounds: float = 0.25) -> None:
    """
    Every job in a quarter of the threads, or in every one `rounds` times, each thread starting with another one, and
    FGVis beside them all the time.
    """
    expected = {name: job() for name, job in jobs.items()}
    before, names = state_of(model), list(jobs)
    each = round(rounds * len(names))
    fgvis = next(job for name, job in jobs.items() if "fgvis" in name)
    barrier, done = threading.Barrier(NUM_THREADS + 1), threading.Event()
    wrong, errors = [], []

    def compare(name, job):
        found = job()
        difference = (found - expected[name]).abs().max().item()
        if not difference <= 1e-6:
            wrong.append((name, difference))

    def guarded(run):
        try:
            barrier.wait()
            run()
        except BaseException as error:  # it would be lost with the thread
            errors.append(error)

    def work(start):
        for place in range(start, start + each):
            name = names[place % len(names)]
            compare(name, jobs[name])

    def disturb():
        while not done.is_set():
            fgvis()

    threads = [
        threading.Thread(target=guarded, args=[functools.partial(work, index * len(names) // NUM_THREADS)])
        for index in range(NUM_THREADS)
    ]
    beside = threading.Thread(target=guarded, args=[disturb])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # so that threads meet in the middle of a pass, also where passes are short
    try:
        for thread in (beside, *threads):
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        done.set()
        beside.join()
        sys.setswitchinterval(interval)
    assert not errors, errors
    assert not wrong, f"{len(wrong)} of {NUM_THREADS * each} maps are wrong: {sorted(wrong)}"
    assert state_of(model) == before


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_every_method_and_head_in_threads(family, tmp_path):
    check(*jobs_on(family, tmp_path))


def test_layers_read_through_hooks_in_threads():
    check(*jobs_on_hooks())


def in_another_thread(function):
    """What `function` gives in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_passes_are_counted_for_the_thread_that_counts():
    classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet", 3)
    with PassCounter(classifier) as counter:
        features = classifier.features(pixel_values)
        classifier.forward_from_features(features)

        def elsewhere():
            classifier(pixel_values)
            with PassCounter(classifier) as own:
                classifier(pixel_values=pixel_values)
            # a copy is no longer the classifier that is counted
            copy.deepcopy(classifier)(pixel_values)
            return own.full, own.tail

        assert in_another_thread(elsewhere) == (3, 0)
        copy.deepcopy(classifier)(pixel_values)
        classifier(pixel_values)
    classifier(pixel_values)
    assert (counter.full, counter.tail) == (6, 3)


def test_a_head_in_training_is_evaluated_until_the_last_thread_is_done():
    head = HEADS["lcam"].model.from_classifier(tiny_classifier("resnet")).train()
    with contextlib.ExitStack() as outer:
        outer.enter_context(evaluating(head))

        def elsewhere():
            with evaluating(head):
                outer.close()  # the other one is done first
                return head.training

        assert in_another_thread(elsewhere) is False
    assert head.training


def test_hooks_of_a_thread_act_in_no_other_and_not_in_copies():
    classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
    block = classifier.model.vit.layers[0]
    expected = classifier(pixel_values)
    with thread_hooks([(block, lambda module, inputs, output: torch.zeros_like(output))]):
        assert not torch.equal(classifier(pixel_values), expected)
        assert torch.equal(in_another_thread(lambda: classifier(pixel_values)), expected)
        duplicate = copy.deepcopy(classifier)
    assert torch.equal(classifier(pixel_values), expected) and torch.equal(duplicate(pixel_values), expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "convnext", "vit", "deit", "deit-teacher"])
def test_every_method_and_head_in_threads_for_long(family, tmp_path):
    check(*jobs_on(family, tmp_path), rounds=4)


@pytest.mark.slow
def test_layers_read_through_hooks_in_threads_for_long():
    check(*jobs_on_hooks(), rounds=8)
