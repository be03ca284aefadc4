#!/usr/bin/env python
"""Time the package against named baselines, in one run, as ratios.

    python scripts/benchmark.py                       # everything, ResNet-50 and ViT-B/16 shapes, random weights
    python scripts/benchmark.py --only onnx --shapes resnet-50 convnext-tiny vit-b-16 deit-b-16
    python scripts/benchmark.py --only lcam --repeats 9

Each case runs `ours` and `baseline` in turn, A B A B ..., and prints the median of the pairwise ratios: machine speed
drifts, ratios taken side by side do not. Absolute times are printed for orientation alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from PIL import Image
from torch import nn
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
from hf_explain.io.transformers_names import AutoImageProcessor
from hf_explain.metrics import functional as metrics
from hf_explain.registry import METHODS


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
}


@dataclass
class Result:
    case: str
    shape: str
    baseline: str
    ratio: float
    at_most: float | None
    ours_ms: float
    baseline_ms: float


def seconds(function: Callable) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


class Bench:
    """Models of one shape, made once, and the clock."""

    def __init__(self, shape: str, directory: str, batch_size: int, repeats: int):
        self.shape, self.batch_size, self.repeats = shape, batch_size, repeats
        self.directory = os.path.join(directory, shape)
        torch.manual_seed(0)
        AutoModelForImageClassification.from_config(SHAPES[shape]()).save_pretrained(self.directory)
        with open(os.path.join(self.directory, "preprocessor_config.json"), "w") as file:
            json.dump(PROCESSOR, file)
        self.classifier = FrozenClassifier.from_pretrained(self.directory)
        # the same in the memory format that Transformers runs it in
        self.default_layout = copy.deepcopy(self.classifier).to(memory_format=torch.contiguous_format)
        self.pixel_values = torch.randn(batch_size, 3, 224, 224)
        self.target = torch.arange(batch_size)
        self.images = [Image.effect_noise((500, 375), 60).convert("RGB") for _ in range(batch_size)]
        self.results: list[Result] = []

    def compare(
        self,
        case: str,
        baseline: str,
        ours: Callable,
        other: Callable,
        at_most: float | None = None,
        repeats: int | None = None,
    ):
        """Ours and the baseline in turn, by the clock on the wall, each once before it counts."""
        for function in (ours, other):
            function()
        self.compare_numbers(case, baseline, partial(seconds, ours), partial(seconds, other), at_most, repeats)

    def compare_numbers(
        self,
        case: str,
        baseline: str,
        ours: Callable[[], float],
        other: Callable[[], float],
        at_most: float | None = None,
        repeats: int | None = None,
    ):
        """The same for functions that say themselves how many seconds they took."""
        pairs = [(ours(), other()) for _ in range(repeats or self.repeats)]
        result = Result(
            case,
            self.shape,
            baseline,
            statistics.median(a / b for a, b in pairs),
            at_most,
            1e3 * statistics.median(a for a, _ in pairs),
            1e3 * statistics.median(b for _, b in pairs),
        )
        self.results.append(result)
        bar = "" if at_most is None else f"   bar {at_most:.2f} {'ok' if result.ratio <= at_most else 'MISSED'}"
        print(
            f"{self.shape:13s} {case:32s} {result.ratio:6.3f}x of {baseline} "
            f"({result.ours_ms:.0f} / {result.baseline_ms:.0f} ms){bar}",
            flush=True,
        )

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
        ours = pipeline("saliency", model=head_directory, device="cpu")
        other = pipeline(
            "image-classification",
            model=self.directory,
            image_processor=AutoImageProcessor.from_pretrained(self.directory),
            device="cpu",
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
    """Peak resident memory of a process that explains a batch against one that classifies it."""
    head = bench.saved(LCamForSaliency.from_classifier(bench.classifier, variant="img"))
    peaks = []
    for task, model in (("saliency", head), ("image-classification", bench.directory)):
        code = (
            "import re, hf_explain\nfrom PIL import Image\nfrom transformers import pipeline\n"
            "from transformers.models.auto.image_processing_auto import AutoImageProcessor\n"
            f"processor = AutoImageProcessor.from_pretrained({bench.directory!r})\n"
            f"pipe = pipeline({task!r}, model={model!r}, image_processor=processor, device='cpu')\n"
            f"images = [Image.effect_noise((500, 375), 60).convert('RGB')] * {bench.batch_size}\n"
            f"for _ in range(3): pipe(images, batch_size={bench.batch_size})\n"
            # not getrusage: its peak is inherited from the process that started this one
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        peaks.append(int(output.split()[-1]) / 1024)
    result = Result("peak memory, MB", bench.shape, "image-classification", peaks[0] / peaks[1], 1.10, *peaks)
    bench.results.append(result)
    print(
        f"{bench.shape:10s} {'peak memory':32s} {result.ratio:6.3f}x of image-classification "
        f"({peaks[0]:.0f} / {peaks[1]:.0f} MB)   bar 1.10 {'ok' if result.ratio <= 1.1 else 'MISSED'}",
        flush=True,
    )


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
        own = attention[torch.arange(len(target)), target]
        kept = nn.functional.interpolate(own[:, None], size=pixel_values.shape[-2:], mode="bilinear")
        logits = self.head.backbone(pixel_values * kept)
        (nn.functional.cross_entropy(logits, target) + own.add(5e-4).pow(0.3).mean()).backward()


def ttame(bench: Bench) -> None:
    head = TTameForSaliency.from_classifier(bench.classifier, regularize="own")
    ours, other = bench.pipelines(bench.saved(head))
    bench.compare("T-TAME pipeline", "image-classification pipeline", ours, other, bench.pipeline_bar(1.00, 1.15))
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
        head = TTameForSaliency.from_classifier(classifier, preset="ranking").train()
        pixel_values = torch.randn(bench.batch_size, 3, size, size)

        def step(implementation: str, head=head, pixel_values=pixel_values):
            head.set_attn_implementation(implementation)
            head.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                loss = head(pixel_values, target=bench.target, return_loss=True).loss
            loss.backward()

        case = f"bf16 step, ViT-Ti/16, {size} px, eager"
        bench.compare(case, "the same with fused attention", partial(step, "eager"), partial(step, "sdpa"))


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
    model = AutoModelForImageClassification.from_pretrained(bench.directory).eval()

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
    arrays = bench.pixel_values.numpy(), bench.target.numpy(), saliency[:, None].numpy()

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
        flipping(Logits().eval(), *arrays, device="cpu", softmax=False, batch_size=bench.batch_size)

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
    unknown = removed.flatten().numpy()
    values = image.double().flatten(1).numpy().copy()
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
    masks = torch.stack(masks).view(-1, 224, 224)
    images = bench.pixel_values[:1].expand(len(masks), -1, -1, -1)
    bench.compare(
        "ROAD's imputation, 18 masks",
        "sparse direct solve",
        lambda: linear_imputation(images, masks),
        lambda: [literal_imputation(image, mask) for image, mask in zip(images, masks)],
        repeats=3,
    )


def onnx(bench: Bench) -> None:
    """One image in ONNX Runtime: the head's graph, which holds the classifier, beside the classifier's own."""
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
        bench.compare(f"{name} ONNX, one image", "classifier's ONNX", passes(path, True), passes(own, False), 1.15, 15)


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


CASES = {
    "start": start,
    "lcam": lcam,
    "memory": memory,
    "ttame": ttame,
    "scan": scan,
    "attention": attention,
    "fgvis": fgvis,
    "methods": methods,
    "auc_d": auc_d,
    "quantus": quantus,
    "road": road,
    "onnx": onnx,
}


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases to run")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[:2], help="classifiers")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    # The logits of random weights reach 80: gradients are then subnormal numbers in some draws of a step, and a CPU
    # takes three times as long for it. The logits of trained classifiers are far smaller.
    torch.set_flush_denormal(True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hf_explain": hf_explain.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for shape in args.shapes:
            bench = Bench(shape, directory, args.batch_size, args.repeats)
            for case in args.only:
                CASES[case](bench)
            results.extend(asdict(result) for result in bench.results)
    if args.output:
        with open(args.output, "w") as file:
            json.dump({"machine": machine, "batch_size": args.batch_size, "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
