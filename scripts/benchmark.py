#!/usr/bin/env python
"""Time the package against named baselines, in one run, as ratios.

    python scripts/benchmark.py                       # everything, ResNet-50 and ViT-B/16 shapes, random weights
    python scripts/benchmark.py --only onnx --shapes resnet-50 convnext-tiny vit-b-16 deit-b-16
    python scripts/benchmark.py --only lcam --repeats 9
    python scripts/benchmark.py --only loader scaling --shapes resnet-small --images photographs.parquet
    python scripts/benchmark.py --device cuda --batch_size 64

Each case runs `ours` and `baseline` in turn, A B A B ..., and prints the median of the pairwise ratios: machine speed
drifts, ratios taken side by side do not. Absolute times are printed for orientation alone, and so are the images per
second and their share of what the classifier alone does in batches of the same size. On a GPU the clock is read once
it has done all that was asked of it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    DeiTConfig,
    ResNetConfig,
    ViTConfig,
    pipeline,
)

import hf_explain
from hf_explain import FrozenClassifier, LCamForSaliency, ScanForSaliency, TTameForSaliency
from hf_explain.apps.export import export_saliency
from hf_explain.apps.export_inputs import ExportArguments
from hf_explain.evaluation.evaluator import SaliencyEvaluator
from hf_explain.io.datasets import load_image_dataset, resolve_columns
from hf_explain.io.memory import keep_memory
from hf_explain.io.processes import choose_device
from hf_explain.io.transformers_names import AutoImageProcessor
from hf_explain.metrics import functional as metrics
from hf_explain.registry import METHODS
from hf_explain.training.arguments import ExplainerTrainingArguments
from hf_explain.training.batches import ImageBatches, MapBatchSampler, make_loader, prepare_columns
from hf_explain.training.checkpoints import LOG_FILE
from hf_explain.training.loop import train
from hf_explain.training.transforms import TrainingTransform


PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
SHAPES = {
    "resnet-50": lambda: ResNetConfig(num_labels=1000),
    "vit-b-16": lambda: ViTConfig(num_labels=1000),
    "convnext-tiny": lambda: ConvNextConfig(num_labels=1000),
    "deit-b-16": lambda: DeiTConfig(num_labels=1000, architectures=["DeiTForImageClassification"]),
    # as fast as those the README measures heads on, for which data is hardest to keep up with
    "resnet-small": lambda: ResNetConfig(
        embedding_size=48, hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    ),
}
_BATCH = 32  # images of a training step, where data has to keep up with it


@dataclass
class Result:
    case: str
    shape: str
    baseline: str
    ratio: float
    at_most: float | None
    ours_ms: float
    baseline_ms: float
    images_per_second: float | None = None
    share_of_classifier: float | None = None


class Bench:
    """Models of one shape, made once, and the clock."""

    def __init__(
        self, shape: str, directory: str, batch_size: int, repeats: int, device: torch.device, images: str | None
    ):
        self.shape, self.batch_size, self.repeats, self.device = shape, batch_size, repeats, device
        self.source = images
        self.directory = os.path.join(directory, shape)
        torch.manual_seed(0)
        AutoModelForImageClassification.from_config(SHAPES[shape]()).save_pretrained(self.directory)
        with open(os.path.join(self.directory, "preprocessor_config.json"), "w") as file:
            json.dump(PROCESSOR, file)
        self.classifier = FrozenClassifier.from_pretrained(self.directory).to(device)
        # the same in the memory format that Transformers runs it in
        self.default_layout = copy.deepcopy(self.classifier).to(memory_format=torch.contiguous_format)
        self.pixel_values = torch.randn(batch_size, 3, 224, 224, device=device)
        self.target = torch.arange(batch_size, device=device) % self.classifier.num_labels
        self.images = [Image.effect_noise((500, 375), 60).convert("RGB") for _ in range(batch_size)]
        self.results: list[Result] = []

    def seconds(self, function: Callable) -> float:
        """By the clock on the wall, from an idle device to an idle device."""
        self.synchronize()
        began = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - began

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @cached_property
    def classifier_rate(self) -> float:
        """Images per second of the classifier alone, in batches of the benchmark's size."""

        def run() -> None:
            with torch.no_grad():
                self.classifier(self.pixel_values)

        run()
        return self.batch_size / statistics.median(self.seconds(run) for _ in range(self.repeats))

    def compare(
        self,
        case: str,
        baseline: str,
        ours: Callable,
        other: Callable,
        at_most: float | None = None,
        repeats: int | None = None,
        images: int | None = None,
    ):
        """Ours and the baseline in turn, each once before it counts; `images` of each call, a batch unless given."""
        for function in (ours, other):
            function()
        clocks = partial(self.seconds, ours), partial(self.seconds, other)
        self.compare_numbers(case, baseline, *clocks, at_most, repeats, self.batch_size if images is None else images)

    def compare_numbers(
        self,
        case: str,
        baseline: str,
        ours: Callable[[], float],
        other: Callable[[], float],
        at_most: float | None = None,
        repeats: int | None = None,
        images: int = 0,
    ):
        """The same for functions that say themselves how many seconds they took."""
        pairs = [(ours(), other()) for _ in range(repeats or self.repeats)]
        ours_ms, baseline_ms = (1e3 * statistics.median(pair[place] for pair in pairs) for place in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        self.record(Result(case, self.shape, baseline, ratio, at_most, ours_ms, baseline_ms), images)

    def record(self, result: Result, images: int = 0, unit: str = "ms") -> None:
        """Keep and print a result; `images` that ours took its time for, where it took images."""
        self.results.append(result)
        speed = ""
        if images:
            result.images_per_second = 1e3 * images / result.ours_ms
            result.share_of_classifier = result.images_per_second / self.classifier_rate
            speed = f", {result.images_per_second:.1f} images/s, {result.share_of_classifier:.3f} of the classifier's"
        bar = ""
        if result.at_most is not None:
            bar = f"   bar {result.at_most:.2f} {'ok' if result.ratio <= result.at_most else 'MISSED'}"
        print(
            f"{self.shape:13s} {result.case:32s} {result.ratio:6.3f}x of {result.baseline} "
            f"({result.ours_ms:.0f} / {result.baseline_ms:.0f} {unit}{speed}){bar}",
            flush=True,
        )

    def note(self, case: str, text: str) -> None:
        print(f"{self.shape:13s} {case:32s} {text}", flush=True)

    def compare_step(
        self, case: str, baseline: str, head: nn.Module, floor: Callable[[FrozenClassifier], None], at_most: float
    ):
        """A training step and its floor, the classifier's own passes: as the package runs it, and as Transformers."""
        step = self.step(head)
        self.compare(case, baseline, step, partial(floor, self.classifier), at_most)
        if self.classifier.memory_format != self.default_layout.memory_format:
            self.compare(case, f"{baseline}, default layout", step, partial(floor, self.default_layout), 1.0)

    # ------------------------------------------------------------------ floors

    def input_step(self, classifier: FrozenClassifier, copies: int = 1):
        """The classifier's own share of a step that asks about so many masked copies of the images in one pass."""
        with torch.no_grad():
            classifier(self.pixel_values)
        masked = self.pixel_values.repeat(copies, 1, 1, 1).requires_grad_()
        nn.functional.cross_entropy(classifier(masked), self.target.repeat(copies)).backward()

    def tail_step(self, classifier: FrozenClassifier, layer: str):
        """The same for a step that masks one layer's features."""
        with torch.no_grad():
            tapped = classifier.features(self.pixel_values, [layer])[layer]
        feature_map = tapped.feature_map.clone().requires_grad_()
        logits = classifier.forward_from_features(tapped.replace(feature_map=feature_map))
        nn.functional.cross_entropy(logits, self.target).backward()

    def logit_gradient(self, layer: str):
        with torch.no_grad():
            tapped = self.classifier.features(self.pixel_values, [layer])[layer]
        feature_map = tapped.feature_map.clone().requires_grad_()
        logits = self.classifier.forward_from_features(tapped.replace(feature_map=feature_map))
        logits.gather(1, self.target[:, None]).sum().backward()

    def forward_backward(self):
        pixel_values = self.pixel_values.clone().requires_grad_()
        self.classifier(pixel_values).gather(1, self.target[:, None]).sum().backward()

    # ------------------------------------------------------------------ ours

    def step(self, head):
        head.train()

        def run():
            head.zero_grad(set_to_none=True)
            head(self.pixel_values, target=self.target, return_loss=True).loss.backward()

        return run

    def pipeline_bar(self, turned: float, default: float) -> float:
        """What a head's pipeline may take of classifying: less where the memory format gains something."""
        return turned if self.classifier.memory_format is torch.channels_last else default

    def saved(self, head) -> str:
        directory = os.path.join(self.directory, f"head-{type(head).__name__}")
        head.save_pretrained(directory)
        return directory

    def pipelines(self, head_directory: str) -> tuple[Callable, Callable]:
        ours = pipeline("saliency", model=head_directory, device=self.device)
        other = pipeline(
            "image-classification",
            model=self.directory,
            image_processor=AutoImageProcessor.from_pretrained(self.directory),
            device=self.device,
        )
        size = self.batch_size
        return lambda: ours(self.images, batch_size=size), lambda: other(self.images, batch_size=size)


def lcam(bench: Bench) -> None:
    head = LCamForSaliency.from_classifier(bench.classifier, variant="img")
    ours, other = bench.pipelines(bench.saved(head))
    bench.compare("L-CAM pipeline", "image-classification pipeline", ours, other, bench.pipeline_bar(0.95, 1.10))
    bench.compare_step("L-CAM-Img training step", "forward + forward + backward", head, bench.input_step, 1.10)
    head = LCamForSaliency.from_classifier(bench.classifier, variant="fm")
    floor = partial(bench.tail_step, layer=head.config.feature_layers[0])
    bench.compare_step("L-CAM-Fm training step", "forward + tail forward + backward", head, floor, 1.15)


def memory(bench: Bench) -> None:
    """Peak memory, of the device or resident, of a process that explains a batch against one that classifies it."""
    head = bench.saved(LCamForSaliency.from_classifier(bench.classifier, variant="img"))
    peaks = []
    for task, model in (("saliency", head), ("image-classification", bench.directory)):
        code = (
            "import re, hf_explain\nfrom PIL import Image\nfrom transformers import pipeline\n"
            "from transformers.models.auto.image_processing_auto import AutoImageProcessor\n"
            f"processor = AutoImageProcessor.from_pretrained({bench.directory!r})\n"
            f"pipe = pipeline({task!r}, model={model!r}, image_processor=processor, device={str(bench.device)!r})\n"
            f"images = [Image.effect_noise((500, 375), 60).convert('RGB')] * {bench.batch_size}\n"
            f"for _ in range(3): pipe(images, batch_size={bench.batch_size})\n"
        )
        if bench.device.type == "cuda":
            code += "import torch\nprint(torch.cuda.max_memory_allocated() // 1024)"
        else:  # not getrusage: its peak is inherited from the process that started this one
            code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        peaks.append(int(output.split()[-1]) / 1024)
    result = Result("peak memory, MB", bench.shape, "image-classification", peaks[0] / peaks[1], 1.10, *peaks)
    bench.record(result, unit="MB")


def kept_memory(bench: Bench) -> None:
    """The classifier's forward pass in a process that keeps the memory it frees, and in one that does not."""
    if bench.device.type != "cpu":
        print("kept_memory is about the CPU's memory: --device cpu")
        return
    code = (
        "import statistics, time, torch\nfrom hf_explain import FrozenClassifier\n"
        "from hf_explain.io.memory import keep_memory\n{call}\ntorch.set_flush_denormal(True)\n"
        f"classifier = FrozenClassifier.from_pretrained({bench.directory!r})\n"
        f"images = torch.randn({bench.batch_size}, 3, 224, 224)\n"
        "def seconds():\n"
        "    began = time.perf_counter()\n"
        "    with torch.no_grad(), torch.autocast('cpu', enabled={half}): classifier(images)\n"
        "    return time.perf_counter() - began\n"
        "seconds()\n"
        f"print(statistics.median(seconds() for _ in range({bench.repeats})))"
    )

    def forward(call: str, half: bool) -> Callable[[], float]:
        words = [sys.executable, "-c", code.format(call=call, half=half)]
        return lambda: float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])

    for name, half in (("float32", False), ("bfloat16", True)):
        ours, other = forward("keep_memory()", half), forward("", half)
        case = f"forward pass, {name}, memory kept"
        bench.compare_numbers(case, "the same, not kept", ours, other, 1.0, 3, bench.batch_size)


class LiteralTTame(nn.Module):
    """T-TAME as its equations read: every branch resized, all K maps made, the target's picked."""

    def __init__(self, head: TTameForSaliency):
        super().__init__()
        self.head = head

    def maps(self, features) -> torch.Tensor:
        head, branches = self.head, []
        size = None
        for index, layer in enumerate(head.config.feature_layers):
            tapped = features[layer]
            if head.config.feature_kind == "pre_norm":
                tapped = head.backbone.pre_attention_norm(tapped)
            feature_map = tapped.feature_map.contiguous()
            size = size or tuple(min(side, 56) for side in feature_map.shape[-2:])
            branch = nn.functional.relu(head.bns[index](head.convs[index](feature_map)) + feature_map)
            branches.append(nn.functional.interpolate(branch, size=size, mode="bilinear", align_corners=False))
        return head.fuser(torch.cat(branches, dim=1))

    def step(self, pixel_values: torch.Tensor, target: torch.Tensor) -> None:
        features = self.head.forward_features(pixel_values)
        attention = self.maps(features).sigmoid()
        own = attention[torch.arange(len(target), device=target.device), target]
        kept = nn.functional.interpolate(own[:, None], size=pixel_values.shape[-2:], mode="bilinear")
        logits = self.head.backbone(pixel_values * kept)
        (nn.functional.cross_entropy(logits, target) + own.add(5e-4).pow(0.3).mean()).backward()


def ttame(bench: Bench) -> None:
    head = TTameForSaliency.from_classifier(bench.classifier, regularize="own")
    preset = TTameForSaliency.from_classifier(bench.classifier, preset="ranking")
    for name, explainer, at_most in (
        ("T-TAME pipeline", head, bench.pipeline_bar(1.00, 1.15)),
        ("T-TAME pipeline, preset ranking", preset, 1.15),
    ):
        ours, other = bench.pipelines(bench.saved(explainer))
        bench.compare(name, "image-classification pipeline", ours, other, at_most)
    step = bench.step(head)
    bench.compare_step("T-TAME step, own", "forward + forward + backward", head, bench.input_step, 1.20)
    literal = LiteralTTame(head)
    bench.compare(
        "T-TAME step, own", "literal K-map step", step, lambda: literal.step(bench.pixel_values, bench.target), 1 / 1.5
    )
    batch = TTameForSaliency.from_classifier(bench.classifier, regularize="batch")
    bench.compare_step("T-TAME step, batch", "forward + forward + backward", batch, bench.input_step, 1.35)
    for name, copies, fields in (
        ("T-TAME step, own, removal", 2, {"regularize": "own", "removal_weight": 1.0}),
        (
            "T-TAME step, own, ranking",
            2,
            {"regularize": "own", "ranking_weight": 1.0, "ce_weight": 0.0, "area_weight": 0.0},
        ),
        ("T-TAME step, preset ranking", 3, {"preset": "ranking"}),
    ):
        head = TTameForSaliency.from_classifier(bench.classifier, **fields)
        floor = partial(bench.input_step, copies=copies)
        bench.compare_step(name, f"forward + forward and backward of {copies} copies", head, floor, 1.25)


def scan(bench: Bench) -> None:
    head = ScanForSaliency.from_classifier(bench.classifier)
    layer = head.config.feature_layers[0]
    head.eval()

    def ours():
        with torch.no_grad():
            head(bench.pixel_values, target=bench.target)

    with torch.no_grad():
        masked = head.masked_features(head.forward_features(bench.pixel_values), bench.target)

    def floor():
        bench.logit_gradient(layer)
        with torch.no_grad():
            head.decoder(masked.feature_map, masked.prefix_tokens)

    bench.compare("SCAN", "forward + backward to the tap", ours, lambda: bench.logit_gradient(layer))
    bench.compare("SCAN", "the same + its decoder", ours, floor, 1.10)


def attention(bench: Bench) -> None:
    """What `hf-explain train --attn_implementation eager` is worth on a CPU, with bfloat16 and a ViT-Ti/16."""
    if not bench.classifier.is_transformer:
        return
    for size in (128, 224):
        config = ViTConfig(
            image_size=size, hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000
        )
        classifier = FrozenClassifier(
            AutoModelForImageClassification.from_config(config), image_processor=bench.classifier.image_processor
        )
        head = TTameForSaliency.from_classifier(classifier, preset="ranking").to(bench.device).train()
        pixel_values = torch.randn(bench.batch_size, 3, size, size, device=bench.device)

        def step(implementation: str, head=head, pixel_values=pixel_values):
            head.set_attn_implementation(implementation)
            head.zero_grad(set_to_none=True)
            with torch.autocast(bench.device.type, torch.bfloat16):
                loss = head(pixel_values, target=bench.target, return_loss=True).loss
            loss.backward()

        case = f"bf16 step, ViT-Ti/16, {size} px, eager"
        bench.compare(case, "the same with fused attention", partial(step, "eager"), partial(step, "sdpa"))


def compiled(bench: Bench) -> None:
    """What `hf-explain train --torch_compile` is worth, and how long its first step takes; from an empty cache."""
    step = bench.step(TTameForSaliency.from_classifier(bench.classifier, regularize="own"))
    step()
    plain = statistics.median(bench.seconds(step) for _ in range(bench.repeats))
    with torch._inductor.config.patch(force_disable_caches=True), bench.classifier.compiled():
        first = bench.seconds(step)
        step()
        ours = statistics.median(bench.seconds(step) for _ in range(bench.repeats))
    case = "T-TAME step, own, compiled"
    bench.note(case, f"the first step takes {first:.0f} s")
    result = Result(case, bench.shape, "the same without", ours / plain, None, 1e3 * ours, 1e3 * plain)
    bench.record(result, bench.batch_size)


def fgvis(bench: Bench) -> None:
    steps = 4
    options = {"budget": steps, "rounds": 1, "l1_weight": 0.01, "goal": 1e-30}

    def ours():
        METHODS["fgvis"](bench.classifier, bench.pixel_values, bench.target, **options)

    def floor():
        with torch.no_grad():
            bench.classifier(bench.pixel_values)
        for _ in range(steps):
            bench.forward_backward()

    bench.compare(f"FGVis, {steps} iterations", "forward + backward each", ours, floor, 1.15)


def methods(bench: Bench) -> None:
    masks = 64

    def rise():
        METHODS["rise"](bench.classifier, bench.pixel_values, bench.target, num_masks=masks, batch_size=32)

    def bare():
        with torch.no_grad():
            bench.classifier(bench.pixel_values)
            images = bench.pixel_values.repeat(32 // bench.batch_size, 1, 1, 1)
            for _ in range(masks * bench.batch_size // 32):
                bench.classifier(images)

    bench.compare(f"RISE, {masks} masks", "its bare forward passes", rise, bare, 1.10)
    try:
        from torchcam.methods import GradCAM
    except ImportError:
        print("torchcam is not installed: pip install --no-deps torchcam; Grad-CAM against it is left out")
        return
    if bench.shape != "resnet-50":
        return
    model = AutoModelForImageClassification.from_pretrained(bench.directory).eval().to(bench.device)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    wrapped = Logits().eval()
    extractor = GradCAM(wrapped, target_layer=model.resnet.encoder.stages[-1])

    def other():
        scores = wrapped(bench.pixel_values.clone().requires_grad_())
        extractor(bench.target.tolist(), scores)

    bench.compare(
        "Grad-CAM",
        "torchcam",
        lambda: METHODS["gradcam"](bench.classifier, bench.pixel_values, bench.target),
        other,
        1.0,
    )


def auc_d(bench: Bench) -> None:
    saliency = torch.rand(bench.batch_size, 14, 14)
    mean, std = bench.classifier.image_mean, bench.classifier.image_std

    def ours():
        with torch.no_grad():
            metrics.auc_d(bench.classifier, bench.pixel_values, saliency, image_mean=mean, image_std=std, max_batch=32)

    def bare():
        # the image, 9 steps in each of two orders, and the black image: 20 distinct images
        with torch.no_grad():
            images = bench.pixel_values.repeat(32 // bench.batch_size, 1, 1, 1)
            for _ in range(20 * bench.batch_size // 32):
                bench.classifier(images)

    bench.compare("AUC-D", "its 20 bare forward passes", ours, bare, 1.15)


def quantus(bench: Bench) -> None:
    """The same number of perturbed images through Quantus' PixelFlipping and through ours."""
    try:
        from quantus import PixelFlipping
    except ImportError:
        print("quantus is not installed: pip install quantus; AUC-D against it is left out")
        return
    steps, side = 28, 224
    saliency = torch.rand(bench.batch_size, side, side)
    mean, std = bench.classifier.image_mean, bench.classifier.image_std
    fractions = torch.linspace(0, 1, steps // 2 + 1).tolist()  # both orders share their ends: 28 distinct images

    class Logits(nn.Module):
        def forward(self, pixel_values):
            return bench.classifier(pixel_values)

    flipping = PixelFlipping(features_in_step=side * side // steps, normalise=False, disable_warnings=True)
    arrays = bench.pixel_values.cpu().numpy(), bench.target.cpu().numpy(), saliency[:, None].numpy()

    def ours():
        with torch.no_grad():
            metrics.auc_d(
                bench.classifier,
                bench.pixel_values,
                saliency,
                fractions=fractions,
                image_mean=mean,
                image_std=std,
                max_batch=32,
            )

    def other():
        flipping(Logits().eval(), *arrays, device=str(bench.device), softmax=False, batch_size=bench.batch_size)

    bench.compare(f"AUC-D, {steps} steps", "Quantus PixelFlipping", ours, other, 1 / 5, repeats=3)


def literal_imputation(image: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """ROAD's linear system of one image and one mask, solved directly by SciPy, as the usual implementations do."""
    import numpy as np
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    _, height, width = image.shape
    places = np.arange(height * width).reshape(height, width)
    weights = sparse.csr_matrix((height * width,) * 2)
    for down, along, weight in ((0, 1, 1 / 6), (1, 0, 1 / 6), (1, 1, 1 / 12), (1, -1, 1 / 12)):
        first = places[: height - down, max(0, -along) : width - max(0, along)].ravel()
        second = places[down:, max(0, along) : width + min(0, along)].ravel()
        one_way = sparse.csr_matrix((np.full(len(first), weight), (first, second)), (height * width,) * 2)
        weights = weights + one_way + one_way.T
    operator = (sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()
    unknown = removed.flatten().cpu().numpy()
    values = image.double().flatten(1).cpu().numpy().copy()
    right = -(operator[unknown][:, ~unknown] @ values[:, ~unknown].T)
    values[:, unknown] = spsolve(operator[unknown][:, unknown].tocsc(), right).T
    return torch.from_numpy(values).view(image.shape)


def road(bench: Bench) -> None:
    """ROAD's removal alone: one image, most and least relevant first, 10 to 90 %."""
    from hf_explain.metrics.imputation import linear_imputation

    saliency = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    ranks = nn.functional.interpolate(saliency, (224, 224), mode="bilinear").flatten().argsort().argsort()
    counts = [part * ranks.numel() // 10 for part in range(1, 10)]
    masks = [ranks < count for count in counts] + [ranks >= ranks.numel() - count for count in counts]
    masks = torch.stack(masks).view(-1, 224, 224).to(bench.device)
    images = bench.pixel_values[:1].expand(len(masks), -1, -1, -1)
    bench.compare(
        "ROAD's imputation, 18 masks",
        "sparse direct solve",
        lambda: linear_imputation(images, masks),
        lambda: [literal_imputation(image, mask) for image, mask in zip(images, masks)],
        repeats=3,
        images=1,
    )
    spec = importlib.util.find_spec("pytorch_grad_cam")
    if spec is None:
        print("grad-cam is not installed: pip install --no-deps grad-cam opencv-python-headless; ROAD's imputation "
              "against it is left out")  # fmt: skip
        return
    # The package by itself imports torchvision, which its ROAD does not need
    sys.modules.setdefault("pytorch_grad_cam", importlib.util.module_from_spec(spec))
    impute = importlib.import_module("pytorch_grad_cam.metrics.road").NoisyLinearImputer()
    image, kept = images[0].cpu(), (~masks).float().cpu()
    bench.compare(
        "ROAD's imputation, 18 masks",
        "pytorch-grad-cam",
        lambda: linear_imputation(images, masks),
        lambda: [impute(image, mask) for mask in kept],
        1 / 50,
        repeats=3,
        images=1,
    )


def onnx(bench: Bench) -> None:
    """One image in ONNX Runtime on the CPU: the head's graph, which holds the classifier, beside its own."""
    if bench.device.type != "cpu":
        print("ONNX Runtime is measured on the CPU alone: --device cpu")
        return
    import onnxruntime

    from hf_explain.publish.onnx import OPSET, export_onnx

    def passes(path: str, target: bool) -> Callable:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # as for PyTorch, see `main`
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = {"pixel_values": bench.pixel_values[:1].numpy()}
        if target:
            inputs["target"] = bench.target[:1].numpy()
        return lambda: session.run(None, inputs)

    own = os.path.join(bench.directory, "classifier.onnx")
    torch.onnx.export(
        bench.classifier,
        (bench.pixel_values[:2],),
        own,
        dynamo=True,
        input_names=["pixel_values"],
        dynamic_shapes=({0: torch.export.Dim("batch_size")},),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    for name, cls in (("L-CAM", LCamForSaliency), ("T-TAME", TTameForSaliency)):
        path = os.path.join(bench.directory, f"{name}.onnx")
        export_onnx(cls.from_classifier(bench.classifier), path)
        bench.compare(
            f"{name} ONNX, one image", "classifier's ONNX", passes(path, True), passes(own, False), 1.15, 15, 1
        )


def cpu_seconds(*words: str) -> float:
    """CPU time of a Python process and of what it started."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, words
    return used.ru_utime + used.ru_stime


def start(bench: Bench):
    """CPU time from nothing: no clock on the wall, which a busy machine stretches."""
    bench.compare_numbers(
        "hf-explain --help, CPU time",
        "import torch",
        partial(cpu_seconds, "-m", "hf_explain.cli", "--help"),
        partial(cpu_seconds, "-c", "import torch"),
        at_most=0.5,
    )
    bench.compare_numbers(
        "import hf_explain, CPU time",
        "import torch, transformers.pipelines",
        partial(cpu_seconds, "-c", "import hf_explain"),
        partial(cpu_seconds, "-c", "import torch, transformers.pipelines"),
        at_most=1.2,
    )


def photographs(count: int, size: tuple[int, int]) -> list[dict]:
    """JPEGs as hard to decode as photographs: of 500 by 375 pixels they have as many bytes as ImageNet has."""
    generator, rows = np.random.default_rng(0), []
    width, height = size
    for _ in range(count):
        values = np.zeros((height, width, 3))
        for octave in range(7):
            coarse = generator.normal(size=(-(-height >> octave) + 1, -(-width >> octave) + 1, 3))
            fields = [Image.fromarray(coarse[..., channel]).resize(size, 3) for channel in range(3)]
            values += np.stack([np.asarray(field) for field in fields], axis=-1) * 2 ** (octave / 2)
        values = 127.5 + values * (60 / values.std())
        buffer = io.BytesIO()
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=95)
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}})
    return rows


def loader(bench: Bench) -> None:
    """
    Whether data keeps up with a training step: at 128 px on this machine, at 224 px by calculation.

    The images are those of `--images`, or made: 213 by 160 pixels, as Imagenette's smallest, 500 by 375, as ImageNet's
    mean, and twice that, where decoding at a smaller size begins to pay.
    """
    kinds: dict[str, tuple] = {}
    made = {"128 px": (128, (213, 160)), "224 px": (224, (500, 375)), "224 px, large": (224, (1000, 750))}
    for kind, (side, size) in made.items():
        if bench.source is None:
            kinds[kind] = side, photographs(128 if side == 128 else _BATCH, size), "image"
        elif side not in [found[0] for found in kinds.values()]:
            data = load_image_dataset(bench.source)
            column, _ = resolve_columns(data, None, None, False)
            kinds[kind] = side, prepare_columns(data, [column]), column

    def batches(kind: str, draft: bool = False) -> ImageBatches:
        side, rows, column = kinds[kind]
        processor = copy.deepcopy(bench.classifier.image_processor)
        processor.size = {"shortest_edge": side}
        return ImageBatches(rows, column, TrainingTransform(processor, decode_draft=draft))

    # one core: CPU time, which no other process stretches
    threads, rate = torch.get_num_threads(), 0.0
    torch.set_num_threads(1)
    levels = 255 * torch.tensor(bench.classifier.image_std)[:, None, None]
    for kind, (_, rows, column) in kinds.items():
        rates, ready = {}, {}
        for draft in (False, True):
            one = batches(kind, draft)
            times = []
            for _ in range(bench.repeats):
                began = time.process_time()
                ready[draft] = one.__getitems__([((0, place), None) for place in range(_BATCH)])["pixel_values"]
                times.append(time.process_time() - began)
            rates[draft] = _BATCH / statistics.median(times)
        moved = ((ready[True] - ready[False]).abs() * levels).mean().item()
        cells = [rows[place][column] for place in range(_BATCH)]
        size = Image.open(io.BytesIO(cells[0]["bytes"])).size if cells[0]["bytes"] is not None else "?"
        kilobytes = sum(len(cell["bytes"] or b"") for cell in cells) / len(cells) / 1000
        bench.note(
            f"loading, {kind}",
            f"{rates[False]:.0f} images/s of one core, {rates[True]:.0f} with decode_draft, which moves a pixel by "
            f"{moved:.1f} of 255 grey levels (JPEGs such as {size[0]}x{size[1]}, {kilobytes:.0f} kB each)",
        )
        rate = rates[False] if kind == "224 px" else rate
    torch.set_num_threads(threads)
    bench.note(
        "loading, 224 px, 16 cores",
        f"15 x {rate:.0f} = {15 * rate:.0f} images/s while one core feeds the device: data keeps up with any step up "
        "to that",
    )

    head = TTameForSaliency.from_classifier(bench.classifier, regularize="own").train()
    fixed = torch.randn(_BATCH, 3, 128, 128)
    _, rows, _ = kinds["128 px"]

    def step(pixel_values: torch.Tensor) -> None:
        head.zero_grad(set_to_none=True)
        head(pixel_values.to(bench.device, non_blocking=True), return_loss=True).loss.backward()

    def stream():
        sampler = MapBatchSampler(len(rows), _BATCH, 0, 0, 10**6)
        return iter(make_loader(batches("128 px"), sampler, 2, bench.device.type == "cuda", 0))

    steps, waited, alone, both = 6, [], [], []
    for _ in range(bench.repeats):
        found = stream()
        next(found)  # starts the processes
        loading = bench.seconds(lambda found=found: [next(found) for _ in range(2 * steps)]) / (2 * steps)
        del found
        step(fixed)
        alone.append(bench.seconds(lambda: [step(fixed) for _ in range(steps)]) / steps)
        found, waiting = stream(), 0.0
        for _ in range(2):  # the processes start, and what they read ahead while nothing was trained is used up
            step(next(found)["pixel_values"])
        bench.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(found)
            waiting += time.perf_counter() - asked
            step(batch["pixel_values"])
        bench.synchronize()
        both.append((time.perf_counter() - began) / steps)
        waited.append((waiting / steps, both[-1], loading))
        del found
    waiting, whole, loading = (statistics.median(times) for times in zip(*waited))
    share = statistics.median(waiting / whole for waiting, whole, _ in waited)
    bench.note(
        "128 px, two processes that decode",
        f"{_BATCH / loading:.0f} images/s of the loader alone, {_BATCH / statistics.median(alone):.0f} of the step "
        f"alone, {_BATCH / whole:.0f} of both",
    )
    whole, waiting, step_alone = 1e3 * whole, 1e3 * waiting, 1e3 * statistics.median(alone)
    bench.record(Result("waiting for data, 128 px", bench.shape, "a step's time", share, 0.05, waiting, whole))
    ratio = statistics.median(a / b for a, b in zip(both, alone))
    bench.record(Result("step with its loader, 128 px", bench.shape, "the step alone", ratio, None, whole, step_alone))


class Traffic(TorchDispatchMode):
    """Counts the bytes that are handed to `torch.distributed` in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            leaves = torch.utils._pytree.tree_leaves((args, kwargs))
            tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return function(*args, **(kwargs or {}))


def scaling_worker(directory: str) -> None:
    """What one process of `scaling` does; the first one prints what it found."""
    world, folder = int(os.environ["WORLD_SIZE"]), Path(directory)
    data, out = folder / "photographs.parquet", folder / f"out-{world}"
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    classifier = FrozenClassifier.from_pretrained(folder)
    dataset = load_image_dataset(data)
    head = TTameForSaliency.from_classifier(classifier, regularize="own")
    found: dict[str, dict[str, float]] = {}

    def fit(name: str, steps: int) -> None:
        arguments = ExplainerTrainingArguments(
            output_dir=str(out / name),
            max_steps=steps,
            per_device_batch_size=16 // world,
            logging_steps=5,
            save_steps=0,
            dataloader_num_workers=0,
            device="cpu",
            progress=False,
        )
        train(head, dataset, None, classifier.image_processor, arguments)

    def evaluate(count: int) -> None:
        SaliencyEvaluator().compute(
            head, dataset, metric="auc_d", max_examples=count, batch_size=16, device="cpu", progress=False
        )

    def export(name: str, count: int) -> None:
        options = {"shard_size": count // 2, "max_examples": count, "device": "cpu", "progress": False}
        export_saliency(
            out / name, ExportArguments(model=str(folder / "head"), dataset=str(data), batch_size=16, **options)
        )

    def task(name: str, images: int, run: Callable[[], object]) -> float:
        """Images per second, with the peak of the memory from here on."""
        Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        run()
        rate = images / (time.perf_counter() - began)
        status = Path("/proc/self/status").read_text()
        found[name] = {"rate": rate, "peak": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024}
        return rate

    task("training", 240, lambda: fit("run", 15))
    lines = [json.loads(line) for line in (out / "run" / LOG_FILE).read_text().splitlines()]
    found["training"]["rate"] = statistics.median(line["images_per_second"] for line in lines[1:])
    evaluate(32)  # the number of images per pass is found
    task("evaluation", 32, lambda: evaluate(32))
    export("warm", 32)
    task("export", 96, lambda: export("maps", 96))
    counted = {}
    for name, run in {
        "two steps": lambda: fit("two", 2),
        "three steps": lambda: fit("three", 3),
        "evaluation": lambda: evaluate(32),
        "export": lambda: export("counted", 32),
    }.items():
        with Traffic() as traffic:
            run()
        counted[name] = traffic.bytes
    found["bytes"] = counted
    found["gradients"] = {"bytes": sum(4 * p.numel() for p in head.parameters() if p.requires_grad)}
    print("FOUND", json.dumps(found), flush=True)


def scaling(bench: Bench) -> None:
    """
    Two processes of one thread against one process of two, on the same global batch; the memory of each, and how many
    bytes go between them. On the CPU.
    """
    import datasets

    folder = Path(bench.directory) / "scaling"
    bench.classifier.source_model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": {"shortest_edge": 128}}))
    head = TTameForSaliency.from_classifier(FrozenClassifier.from_pretrained(folder), regularize="own")
    head.save_pretrained(folder / "head")
    rows = {"image": [row["image"] for row in photographs(96, (213, 160))], "label": [0] * 96}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "photographs.parquet")

    def launch(world: int) -> list[dict]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        processes = []
        for rank in range(world):
            environment = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank,
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
                           "OMP_NUM_THREADS": 2 // world, "PYTHONWARNINGS": "ignore"}  # fmt: skip
            words = [sys.executable, __file__, "--scaling_worker", str(folder)]
            environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
            processes.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
        assert not any(process.returncode for process in processes)
        return [json.loads(re.search(r"^FOUND (.*)$", output, re.MULTILINE)[1]) for output in outputs]

    (one,), two = launch(1), launch(2)
    for name in ("training", "evaluation", "export"):
        rates, peaks = (one[name]["rate"], two[0][name]["rate"]), [each[name]["peak"] for each in (one, *two)]
        bench.note(
            f"scaling of {name}",
            f"efficiency {rates[1] / rates[0]:.2f}: {rates[1]:.1f} images/s in two processes of one thread, "
            f"{rates[0]:.1f} in one of two; peak memory {peaks[1]:.0f} and {peaks[2]:.0f} MB, {peaks[0]:.0f} MB",
        )
    sent = two[0]["bytes"]
    step, gradients = sent["three steps"] - sent["two steps"], two[0]["gradients"]["bytes"]
    bench.note(
        "bytes between two processes",
        f"a training step hands over {step}, of which gradients {gradients}, other numbers {step - gradients}; "
        f"evaluating 32 images {sent['evaluation']}, exporting 32 {sent['export']}",
    )


CASES = {
    "start": start,
    "lcam": lcam,
    "memory": memory,
    "kept_memory": kept_memory,
    "ttame": ttame,
    "scan": scan,
    "attention": attention,
    "compile": compiled,
    "fgvis": fgvis,
    "methods": methods,
    "auc_d": auc_d,
    "quantus": quantus,
    "road": road,
    "onnx": onnx,
    "loader": loader,
    "scaling": scaling,
}


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[:2], help="classifiers")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one"
    )
    parser.add_argument("--images", help="data set for `loader`, as of `hf-explain train`; made-up JPEGs unless given")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--scaling_worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.scaling_worker:
        return scaling_worker(args.scaling_worker)
    device = choose_device(None if args.device == "auto" else args.device)
    keep_memory()  # as the commands of `hf-explain` do; for the baselines alike
    # The logits of random weights reach 80: gradients are then subnormal numbers in some draws of a step, and a CPU
    # takes three times as long for it. The logits of trained classifiers are far smaller.
    torch.set_flush_denormal(True)
    machine = {
        "processor": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hf_explain": hf_explain.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for shape in args.shapes:
            bench = Bench(shape, directory, args.batch_size, args.repeats, device, args.images)
            for case in args.only:
                CASES[case](bench)
            results.extend(asdict(result) for result in bench.results)
    if args.output:
        with open(args.output, "w") as file:
            json.dump({"machine": machine, "batch_size": args.batch_size, "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
