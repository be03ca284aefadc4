#!/usr/bin/env python
"""
Make the pictures of README.md: images of free licences, explained by a classifier of ImageNet's classes.

    python scripts/make_pictures.py --classifier classifiers/efficientnet-lite0 \
        --images coffee camera --output model_cards/pictures/photographs.jpg
    python scripts/make_pictures.py --classifier classifiers/efficientnet-lite0 --head ttame-efficientnet-lite0 \
        --images church --output model_cards/pictures/church.jpg
    python scripts/make_pictures.py --classifier classifiers/efficientnet-lite0 --head ttame-efficientnet-lite0 \
        --overlay --images church --output model_cards/pictures/overlay.jpg

Every image stands beside Grad-CAM's map, RISE's and one of random numbers; with `--head DIR`, a head trained on the
same classifier, its map stands before them; with `--overlay` the first map of the first image is drawn alone, with its
legend. The classifier must know the image's class, and the head must have seen it in training.
`scripts/make_classifiers.py` makes the classifier.

The images come inside packages; nothing is downloaded (`pip install scikit-image`; for those of Debian
`dpkg -x PACKAGE.deb ROOT`, and `--debian_root ROOT`):

{table}
"""

import argparse
import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from hf_explain import AutoModelForSaliency
from hf_explain.io.images import load_rgb
from hf_explain.io.pictures import overlay, saliency_grid, save_image
from hf_explain.pipeline import load_pipeline
from hf_explain.registry import HEADS


@dataclass(frozen=True)
class Photograph:
    """A picture inside a package, its author and licence, and the class to explain."""

    file: str
    package: str
    author: str
    licence: str
    target: str
    said: str  # the class in a word
    credit: str  # beneath the picture
    crop: tuple[int, int, int, int] | None = None  # left, upper, right, lower: the part that is explained

    def read(self, root: Path) -> bytes:
        """The file; of one inside a resource of Qt (`file#start`) the WebP picture that starts there."""
        name, _, start = self.file.partition("#")
        if self.package.startswith("Debian's "):
            path = root / name
        else:
            module, _, inside = name.partition("/")
            found = importlib.util.find_spec(module)
            folder = (found.submodule_search_locations or [""])[0] if found else ""
            path = Path(folder, inside)
        if not path.is_file():
            raise SystemExit(f"error: {str(path)!r} is not there; it comes with {self.package}: install that first.")
        data = path.read_bytes()
        if start:
            data = data[int(start) :]
            data = data[: int.from_bytes(data[4:8], "little") + 8]  # RIFF: how long it is stands behind the name
        return data


SKIMAGE = "scikit-image 0.26"
PHOTOGRAPHS = {
    "coffee": Photograph(
        "skimage/data/coffee.png", SKIMAGE, "Rachel Michetti", "CC0", "espresso", "espresso", "Rachel Michetti, CC0",
    ),
    "camera": Photograph(
        "skimage/data/camera.png", SKIMAGE, "Lav Varshney", "CC0", "tripod", "tripod", "Lav Varshney, CC0",
    ),
    "chelsea": Photograph(
        "skimage/data/chelsea.png", SKIMAGE, "Stéfan van der Walt", "CC0", "tiger cat", "tiger cat",
        "S. van der Walt, CC0",
    ),
    "church": Photograph(
        "usr/share/gcompris-qt/rcc/categorization.rcc#2413676", "Debian's gcompris-qt-data 3.1",
        "Peter Haas (Franz-von-Assisi-Kirche, Wikimedia Commons)", "CC-BY-SA-3.0", "church", "church",
        "Peter Haas, CC-BY-SA", crop=(69, 32, 250, 213),
    ),
}  # fmt: skip
MASKS = 300  # of RISE: as many passes and one
METHODS = {  # heading: method and its options
    "Grad-CAM": ("gradcam", {}),
    "RISE": ("rise", {"num_masks": MASKS}),
    "random": ("random", {}),
}
CELL, TEXT = 300, 27  # pixels of a picture and of its text, which a phone still shows


def parse(argv=None) -> argparse.Namespace:
    table = "\n".join(
        f"- {name}: {one.file} of {one.package}; {one.author}; {one.licence}"
        + (f"; cropped to {one.crop}" if one.crop else "")
        for name, one in PHOTOGRAPHS.items()
    )
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(table=table), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", required=True, help="directory or Hub id of one of ImageNet's classes")
    parser.add_argument("--head", help="directory of a head trained on it")
    parser.add_argument("--images", nargs="+", choices=PHOTOGRAPHS, default=["coffee", "camera", "chelsea"])
    parser.add_argument("--overlay", action="store_true", help="the first map of the first image alone")
    parser.add_argument("--debian_root", type=Path, default=Path("/"), help="where Debian packages are unpacked")
    parser.add_argument("--output", required=True, type=Path, help="file of the picture")
    return parser.parse_args(argv)


def picture(args) -> Image.Image:
    """The grid: a row per photograph."""
    pipe = load_pipeline(args.classifier)
    explainers = [(heading, pipe, method, options) for heading, (method, options) in METHODS.items()]
    if args.head:
        head = AutoModelForSaliency.from_pretrained(args.head, classifier=args.classifier)
        entry = HEADS[head.config.model_type]
        heading = entry.variants.get(getattr(head.config, "variant", ""), entry.name)
        explainers.insert(0, (heading, load_pipeline(head), None, {}))
    rows, captions = [], []
    for name in args.images:
        photograph = PHOTOGRAPHS[name]
        image = on_white(photograph.read(args.debian_root))
        image = image if photograph.crop is None else image.crop(photograph.crop)
        image.thumbnail((2 * CELL, 2 * CELL))
        if args.overlay:
            image = ImageOps.contain(image, (2 * CELL, 2 * CELL))
        row, said = [image], [photograph.credit]
        for _, explainer, method, options in explainers:
            chosen = {} if method is None else {"method": method, **options}
            (found,) = explainer(image, target=photograph.target, **chosen)
            if args.overlay:
                return overlay(image, found["saliency_map"], legend=True)
            row.append(overlay(image, found["saliency_map"], colormap="inferno", grayscale=True))
            said.append(f"{photograph.said}, {100 * found['score']:.0f} %")
        rows.append(row)
        captions.append(said)
    return saliency_grid(rows, ["image", *(one[0] for one in explainers)], captions, None, CELL, TEXT)


def on_white(data: bytes) -> Image.Image:
    """A picture without transparency."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGBA")
    sheet = Image.new("RGBA", image.size, "white")
    sheet.alpha_composite(image)
    return load_rgb(sheet.convert("RGB"))


def main(argv=None) -> None:
    args = parse(argv)
    print(save_image(picture(args), args.output))


if __name__ == "__main__":
    sys.exit(main())
