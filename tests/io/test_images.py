"""One decoder: every kind of image, through every door of the package, against pixels written down by hand."""

import base64
import io
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import tiny_classifier
from testing_training import processor
from transformers import pipeline

import hf_explain.pipeline  # noqa: F401  registers the task
from hf_explain.apps.demo_explainers import FORMATS, Demo
from hf_explain.apps.export import _ExportPipeline
from hf_explain.apps.export_inputs import ExportArguments, ExportRows, ExportSource
from hf_explain.apps.quickstart.classifier import load_pixels
from hf_explain.evaluation.inputs import ExampleReader
from hf_explain.io.image_processor import normalisation, to_picture, to_pixel_values
from hf_explain.io.images import load_reduced_rgb, load_rgb, open_image
from hf_explain.io.pictures import overlay
from hf_explain.training.batches import ImageBatches, prepare_columns, prepare_stream
from hf_explain.training.transforms import TrainingTransform


RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 2, (5, 7), dtype=np.uint8) * 255
ALPHA[0, :3] = 0, 127, 255
BRIGHT = (np.arange(35, dtype=np.uint16) * 1927).reshape(5, 7)
DARK = (np.arange(35, dtype=np.uint16) * 5).reshape(5, 7)  # up to 170: an 8-bit picture, by its values alone
PALETTE = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
# what lies in the file for an upright picture, by the EXIF orientation that says how to turn it back
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def grey(values):
    return np.stack([values] * 3, axis=-1).astype(np.uint8)


def sixteen(values):
    """65535 to 255, rounded."""
    return grey(np.round(values / 257))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(image, kind="PNG", **options):
    return Image.open(io.BytesIO(encoded(image, kind, **options)))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(np.ascontiguousarray(STORED[orientation](COLOUR))), {"exif": exif}


def paletted(mode="P"):
    image = Image.fromarray(GREY if mode == "P" else np.stack([GREY, ALPHA], -1), mode="L" if mode == "P" else "LA")
    image.putpalette(PALETTE.tobytes())
    return image


def raw(mode, values):
    return Image.frombytes(mode, values.shape[1::-1], np.ascontiguousarray(values).tobytes())


def kinds():
    """Name, image (content of a file, PIL picture, array or tensor) and its pixels."""
    wide = np.dstack([COLOUR, ALPHA])
    yield from (
        ("RGB", Image.fromarray(COLOUR), COLOUR),
        ("RGB file", encoded(Image.fromarray(COLOUR), "BMP"), COLOUR),
        ("L", Image.fromarray(GREY), grey(GREY)),
        ("1", Image.fromarray(GREY > 99), grey((GREY > 99) * 255)),
        ("P", paletted(), PALETTE[GREY]),
        ("P with a transparent colour", encoded(paletted(), transparency=int(GREY[0, 0])), PALETTE[GREY]),
        ("P with an alpha of each colour", encoded(paletted(), transparency=bytes(range(256))), PALETTE[GREY]),
        ("GIF with a transparent colour", encoded(paletted(), "GIF", transparency=3, optimize=False), PALETTE[GREY]),
        ("PA", paletted("PA"), PALETTE[GREY]),
        ("LA", Image.fromarray(np.stack([GREY, ALPHA], -1)), grey(GREY)),
        ("LA file", encoded(Image.fromarray(np.stack([GREY, ALPHA], -1))), grey(GREY)),
        ("RGBA", Image.fromarray(wide), COLOUR),
        ("RGBA file", encoded(Image.fromarray(wide)), COLOUR),
        ("RGBX", raw("RGBX", wide), COLOUR),
        ("La", raw("La", np.stack([GREY, GREY * 0 + 255], -1)), grey(GREY)),
        ("RGBa", raw("RGBa", np.dstack([COLOUR, GREY * 0 + 255])), COLOUR),
        ("float TIFF", encoded(Image.fromarray(np.float32(GREY) / 255), "TIFF"), grey(GREY)),
        ("F in [0, 1]", Image.fromarray(np.float32(GREY) / 255), grey(GREY)),
        ("F in [0, 255]", Image.fromarray(GREY).convert("F"), grey(GREY)),
        ("F in [0, 65535]", Image.fromarray(np.float32(BRIGHT)), sixteen(BRIGHT)),
        ("I in [0, 255]", Image.fromarray(GREY).convert("I"), grey(GREY)),
        ("I in [0, 65535]", Image.fromarray(np.int32(BRIGHT)), sixteen(BRIGHT)),
        ("I TIFF", encoded(Image.fromarray(np.int32(BRIGHT)), "TIFF"), sixteen(BRIGHT)),
        ("uint8 array", COLOUR, COLOUR),
        ("grey array", GREY, grey(GREY)),
        ("array with one channel", GREY[..., None], grey(GREY)),
        ("array with one channel first", GREY[None], grey(GREY)),
        ("array with channels first", COLOUR.transpose(2, 0, 1), COLOUR),
        ("RGBA array", wide, COLOUR),
        ("RGBA array with channels first", wide.transpose(2, 0, 1), COLOUR),
        ("bool array", GREY > 99, grey((GREY > 99) * 255)),
        ("int64 array", COLOUR.astype(np.int64), COLOUR),
        ("int64 grey array", GREY.astype(np.int64), grey(GREY)),
        ("float32 array", np.float32(COLOUR) / 255, COLOUR),
        ("float64 array with channels first", COLOUR.transpose(2, 0, 1) / 255, COLOUR),
        ("float32 grey array", np.float32(GREY) / 255, grey(GREY)),
        ("float16 array", (COLOUR / 255).astype(np.float16), COLOUR),
        ("16-bit colour array", COLOUR.astype(np.uint16) * 257, COLOUR),
        ("uint8 tensor", torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
        ("float tensor", torch.from_numpy(COLOUR).permute(2, 0, 1) / 255, COLOUR),
        ("grey float tensor", torch.from_numpy(GREY)[None] / 255, grey(GREY)),
        ("bfloat16 tensor", torch.from_numpy(GREY // 255).bfloat16(), grey(GREY // 255 * 255)),
    )
    for name, values in (("dark", DARK), ("bright", BRIGHT)):
        image = Image.fromarray(values)
        yield from (
            (f"{name} I;16", image, sixteen(values)),
            (f"{name} I;16B", raw("I;16B", values.astype(">u2")), sixteen(values)),
            (f"{name} 16-bit PNG", encoded(image), sixteen(values)),
            (f"{name} 16-bit TIFF", encoded(image, "TIFF"), sixteen(values)),
            (f"{name} 16-bit PGM", encoded(image, "PPM"), sixteen(values)),
            (f"{name} uint16 array", values, sixteen(values)),
            (f"{name} uint16 tensor", torch.from_numpy(values), sixteen(values)),
        )
    for orientation in STORED:
        image, options = turned(orientation)
        yield f"EXIF {orientation}", encoded(image, **options), COLOUR
        yield f"EXIF {orientation}, opened", opened(image, **options), COLOUR
    for mode in ("CMYK", "YCbCr", "HSV", "LAB"):  # Pillow's to convert
        image = Image.fromarray(COLOUR).convert(mode)
        yield mode, image, np.asarray(image.convert("RGB"))
        if mode in ("CMYK", "LAB"):
            yield f"{mode} TIFF", encoded(image, "TIFF"), np.asarray(image.convert("RGB"))


KINDS = {name: (source, pixels) for name, source, pixels in kinds()}
# what `datasets` cannot put in an image column, or makes something else of
NOT_STORED = {"PA", "La", "RGBa", "HSV", "YCbCr", "float32 array", "float16 array", "16-bit colour array"}
NOT_STORED |= {name for name in KINDS if name.startswith("EXIF") and name.endswith("opened")}
NOT_STORED |= {name for name in KINDS if "one channel" in name or "channels first" in name}
STORABLE = [
    name for name, (source, _) in KINDS.items() if not isinstance(source, torch.Tensor) and name not in NOT_STORED
]
PROCESSOR = processor(16)
EXPLAINER = SimpleNamespace(image_processor=PROCESSOR, classifier=SimpleNamespace(config=None))


@pytest.fixture(scope="module")
def pipe():
    return pipeline("saliency", model=tiny_classifier("vit").model, image_processor=PROCESSOR,
                    pipeline_class=_ExportPipeline)  # fmt: skip


@pytest.fixture(scope="module")
def stored():
    """The images that `datasets` takes, in an image column."""
    cells = [KINDS[name][0] for name in STORABLE]
    cells = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that int64 becomes int32 or uint8
        return datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))


@pytest.fixture(scope="module")
def parquet(stored, tmp_path_factory):
    directory = tmp_path_factory.mktemp("parquet")
    stored.to_parquet(directory / "train.parquet")
    return str(directory)


def cells(names):
    return [{"image": KINDS[name][0]} for name in names]


def trained(rows, keys_only=False):
    """Through the workers of training; one by one, so that an error names its image."""
    batches = ImageBatches(rows if keys_only else None, "image", TrainingTransform(PROCESSOR, "none"))
    samples = [((0, index), None if keys_only else row) for index, row in enumerate(rows)]
    found = [batches.__getitems__([sample]) for sample in samples]
    assert not [batch["error"] for batch in found if "error" in batch]
    return [batch["pixel_values"][0] for batch in found]


def evaluated(data):
    reader = ExampleReader(data, EXPLAINER, image_column="image")
    return [reader.read(*entry).pixel_values for _, rows in reader.shards(4, lambda shard: True) for entry in rows]


def exported(pipe, parquet, tmp_path, streaming):
    source = ExportSource.load(
        ExportArguments(
            model="model", dataset=parquet, streaming=streaming, cache_dir=str(tmp_path), image_column="image"
        )
    )
    if streaming:
        return [pipe.preprocess({"image": row["image"]})["pixel_values"][0] for row in source.dataset]
    rows = ExportRows(source.dataset, "image", [None] * len(source.dataset))
    return [pipe.preprocess(rows[index])["pixel_values"][0] for index in range(len(rows))]


def demonstrated(names, tmp_path):
    pictures = []
    for name in names:
        (tmp_path / "picture").write_bytes(KINDS[name][0])
        pictures.append(Demo.open(None, str(tmp_path / "picture")))
    return to_pixel_values(PROCESSOR, pictures)


def drawn(names):
    """Under a map of zeros, which colours nothing."""
    pictures = [overlay(KINDS[name][0], np.zeros(KINDS[name][1].shape[:2])) for name in names]
    return to_pixel_values(PROCESSOR, pictures)


FILES = [name for name, (source, _) in KINDS.items() if isinstance(source, bytes)]
# a visitor of the demo may upload these
UPLOADS = [name for name in FILES if Image.open(io.BytesIO(KINDS[name][0])).format in FORMATS]
PICTURES = [name for name, (source, _) in KINDS.items() if isinstance(source, Image.Image)]
# the names that go through, and how: with the pipeline, the data set, its parquet file and a directory
DOORS = {
    "pipeline": (KINDS, lambda pipe, *_: [pipe.preprocess(cell)["pixel_values"][0] for cell in cells(KINDS)]),
    "pipeline, data set": (
        STORABLE,
        lambda pipe, stored, *_: [
            pipe.preprocess(cell)["pixel_values"][0] for cell in hf_explain.pipeline._image_column(stored)
        ],
    ),
    "pipeline, column": (
        STORABLE,
        lambda pipe, stored, *_: [pipe.preprocess(image)["pixel_values"][0] for image in stored["image"]],
    ),
    "training, rows": (KINDS, lambda *_: trained(cells(KINDS), keys_only=True)),
    "training": (STORABLE, lambda pipe, stored, *_: trained(prepare_columns(stored, ["image"]), keys_only=True)),
    "training, torch format": (
        STORABLE,
        lambda pipe, stored, *_: trained(prepare_columns(stored.with_format("torch"), ["image"]), keys_only=True),
    ),
    "training, decoded": (STORABLE, lambda pipe, stored, *_: trained(list(stored))),
    "training, stream": (
        STORABLE,
        lambda pipe, stored, *_: trained(list(prepare_stream(stored.to_iterable_dataset(), ["image"], 0, 0, 1))),
    ),
    "evaluation, rows": (KINDS, lambda *_: evaluated(cells(KINDS))),
    "evaluation": (STORABLE, lambda pipe, stored, *_: evaluated(stored)),
    "evaluation, stream": (STORABLE, lambda pipe, stored, *_: evaluated(stored.to_iterable_dataset())),
    "export": (STORABLE, lambda pipe, stored, parquet, path: exported(pipe, parquet, path, streaming=False)),
    "export, stream": (STORABLE, lambda pipe, stored, parquet, path: exported(pipe, parquet, path, streaming=True)),
    "demo": (UPLOADS, lambda pipe, stored, parquet, path: demonstrated(UPLOADS, path)),
    "quickstart": (STORABLE, lambda pipe, stored, *_: load_pixels(stored, PROCESSOR)),
    "overlay": (PICTURES, lambda *_: drawn(PICTURES)),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_reads_the_same_pixels(door, pipe, stored, parquet, tmp_path):
    names, read = DOORS[door]
    found = read(pipe, stored, parquet, tmp_path)
    assert len(found) == len(names) > 20
    expected = to_pixel_values(PROCESSOR, [Image.fromarray(KINDS[name][1]) for name in names])
    wrong = [name for name, one, other in zip(names, found, expected) if not torch.equal(one, other)]
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_pixels(kind, recwarn):
    source, pixels = KINDS[kind]
    image = load_rgb(source)
    assert image.mode == "RGB" and np.array_equal(image, pixels)
    assert not recwarn.list


def test_where_a_file_lies_changes_nothing(tmp_path):
    """On the disk, in an archive, on another file system of `datasets`, on a web server, or in a URL itself."""
    content, pixels = KINDS["dark 16-bit PNG"]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("picture.png", content)
    with fsspec.open("memory://pictures/picture.png", "wb") as file:
        file.write(content)

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/picture.png" else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/picture.png"
        for source in (
            path,
            str(path),
            bytearray(content),
            {"path": str(path), "bytes": None},
            {"path": str(path)},
            {"path": "elsewhere.png", "bytes": content},
            {"path": f"zip://picture.png::{tmp_path}/pictures.zip", "bytes": None},
            {"path": "memory://pictures/picture.png", "bytes": None},
            "memory://pictures/picture.png",
            {"path": url, "bytes": None},
            url,
            "data:image/png;base64," + base64.b64encode(content).decode(),
        ):
            assert np.array_equal(load_rgb(source, timeout=5), pixels), source
        with pytest.raises(ValueError, match="/none.png' cannot be read: the server answers 404 Not Found.$"):
            load_rgb(url.replace("picture", "none"))
        server.shutdown()


def test_an_upright_rgb_picture_is_not_copied():
    image = Image.fromarray(COLOUR)
    assert load_rgb(image) is image and open_image(image) is image
    assert load_rgb(Image.fromarray(GREY)).size == (7, 5)


def test_the_demo_shrinks_a_copy():
    image = Image.new("RGB", (2000, 10))
    assert Demo.open(None, image).size == (1600, 8) and image.size == (2000, 10)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Image.fromarray(np.full((5, 7), -0.5, np.float32)), r"mode F must lie in \[0, 65535\], got \[-0.5, -0.5\]"),
        (Image.fromarray(np.full((5, 7), np.nan, np.float32)), r"mode F must lie in \[0, 65535\], got \[nan, nan\]"),
        (Image.fromarray(np.full((5, 7), 70000, np.int32)), r"mode I must lie in \[0, 65535\], got \[70000, 70000\]"),
        (np.full((5, 7), 256), r"An integer image array must lie in \[0, 255\], got \[256, 256\]; .*pass uint16"),
        (
            np.full((5, 7), 1.5),
            r"A floating image array must lie in \[0, 1\], got \[1.5, 1.5\]; undo any normalisation",
        ),
        (np.full((5, 7), np.nan), r"A floating image array must lie in \[0, 1\], got \[nan, nan\]"),
        (np.zeros((5, 7, 2)), r"An image array must have shape .*, got \(5, 7, 2\)"),
        (Image.new("RGB", (0, 5)), "is empty: it has 0x5 pixels"),
        (b"text", "The image of 4 bytes cannot be read: cannot identify image file: it is in no known image format."),
        (
            {"bytes": None, "path": None},
            "The image of type dict cannot be read: the cell has neither bytes nor a path.",
        ),
        ({"bytes": None, "path": "/a/gone.png"}, "The image 'gone.png' cannot be read: No such file or directory.$"),
        ({"bytes": b"text", "path": "/a/b.png"}, "The image 'b.png' cannot be read: cannot identify image file"),
        ("memory://gone.png", "The image 'memory://gone.png' cannot be read"),
        ("data:image/png;base64,AAAA", "The image 'data:image/png;base64,AAAA' cannot be read: cannot identify"),
    ],
)
def test_what_is_no_image_is_one_sentence(source, message):
    with pytest.raises(ValueError, match=message) as error:
        load_rgb(source)
    assert "/a/" not in str(error.value) and ".." not in str(error.value)


@pytest.mark.parametrize("source", [3, None, {}, {"image": b""}, ["a.png"]])
def test_what_can_be_no_image_is_a_type_error(source):
    with pytest.raises(TypeError, match=f"An image must be a path, .*got {type(source).__name__}"):
        load_rgb(source)


def test_a_bad_image_of_a_data_set_is_named(pipe):
    """By whoever reads it, instead of an error of `datasets` that does not say which it is."""
    cell = {"bytes": encoded(Image.fromarray(COLOUR)), "path": None}
    column = {"image": [cell, {"bytes": b"no image", "path": None}, cell]}
    data = datasets.Dataset.from_dict(column, features=datasets.Features({"image": datasets.Image()}))
    for form in (data, data.to_iterable_dataset()):
        with pytest.raises(ValueError, match="image 1 of `data` cannot be used: The image of 8 bytes cannot be read"):
            evaluated(form)
        first, second, third = pipe(form, on_error="return")
        assert second == [{"error": "The image of 8 bytes cannot be read: cannot identify image file: it is in no "
                           "known image format."}]  # fmt: skip
        assert "saliency" in first[0] and "saliency" in third[0]


SLOPE = Image.fromarray(grey(np.linspace(0, 255, 203)[None] * np.ones((155, 1))))  # no multiple of 8 wide or high


def test_a_jpeg_is_decoded_smaller_and_nothing_moves():
    """The columns of a smooth slope are where they are in the whole picture, up to its right edge."""
    content = encoded(SLOPE, "JPEG", quality=100)
    whole = load_rgb(content)
    for shorter_side, factor in ((80, 1), (77, 2), (38, 4), (19, 8), (5, 8)):
        found = load_reduced_rgb(content, shorter_side)
        assert found.size == (203, 155) and found.box == (0, 0, 203 / factor, 155 / factor)
        assert found.image.size == (-(-203 // factor), -(-155 // factor))
        resized = (picture.resize((26, 20), 2, box) for picture, box in ((whole, None), (found.image, found.box)))
        one, other = (np.asarray(picture).astype(int) for picture in resized)
        assert np.abs(one - other).max() <= 3, factor  # without the box it is more


def test_what_is_not_decoded_smaller():
    turned = SLOPE.getexif()
    turned[0x0112] = 3
    lazy = Image.open(io.BytesIO(encoded(SLOPE, "JPEG")))
    for source in (encoded(SLOPE), encoded(SLOPE, "JPEG", exif=turned), lazy, {"bytes": encoded(SLOPE), "path": None}):
        found = load_reduced_rgb(source, 10)
        assert found.image.size == found.size == (203, 155) and found.box == (0, 0, 203, 155)
    with pytest.raises(ValueError, match="of 4 bytes cannot be read"):
        load_reduced_rgb(b"JPEG", 10)


def test_training_crops_the_same_of_a_picture_decoded_smaller():
    rows = [{"image": {"bytes": encoded(SLOPE, "JPEG", quality=100), "path": None}}] * 8
    samples = [((0, index), row) for index, row in enumerate(rows)]
    whole, reduced = (
        ImageBatches(None, "image", TrainingTransform(PROCESSOR, decode_draft=draft)).__getitems__(samples)
        for draft in (False, True)
    )
    difference = (whole["pixel_values"] - reduced["pixel_values"]).abs() * 0.5 * 255
    assert 0 < difference.max() <= 4


def test_a_mask_keeps_its_values():
    """Whatever is not 0 is the object: the least of a 16-bit value, a dark colour of a palette, but no opacity."""
    values = np.where(DARK % 2, DARK, 0).astype(np.uint16)
    expected = torch.from_numpy(values != 0)
    masks = {
        "array": values,
        "16 bit": Image.fromarray(values),
        "16 bit, big-endian": raw("I;16B", values.astype(">u2")),
        "file": {"bytes": encoded(Image.fromarray((values > 0).astype(np.uint16))), "path": None},
        "palette": Image.frombytes("P", (7, 5), values.astype(np.uint8).tobytes()),
        "with opacity": Image.fromarray(np.stack([values.astype(np.uint8), ALPHA], -1)),
        "colours": Image.fromarray(np.stack([values.astype(np.uint8) * one for one in (0, 0, 1)], -1)),
    }
    masks["palette"].putpalette(bytes(768))
    rows = [{"image": COLOUR, "mask": mask} for mask in masks.values()]
    explainer = SimpleNamespace(image_processor=None, classifier=EXPLAINER.classifier)
    reader = ExampleReader(rows, explainer, image_column="image", mask_column="mask")
    reader._processor = lambda images, **_: {"pixel_values": torch.zeros(1, 3, 5, 7)}
    found = {name: reader.read(index, row).mask for index, (name, row) in enumerate(zip(masks, rows))}
    assert [name for name, mask in found.items() if not torch.equal(mask.bool(), expected)] == []


# ------------------------------------------------------------------------------------------------------- pixel_values


def with_settings(**settings):
    changed = processor(16)
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


PROCESSORS = {
    "usual": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]},
    "no normalisation": {"do_normalize": False},
    "no rescaling": {"do_rescale": False, "image_mean": [128.0, 120.0, 110.0], "image_std": [64.0, 60.0, 50.0]},
    "neither": {"do_rescale": False, "do_normalize": False},
    "to [0, 2]": {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    "one number": {"image_mean": 0.4, "image_std": 0.2},
}


@pytest.mark.parametrize("settings", PROCESSORS)
def test_there_and_back(settings):
    """What the processor does to a picture, a random crop's arithmetic does too, and `to_picture` undoes."""
    image_processor = with_settings(**PROCESSORS[settings])
    image = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    (pixel_values,) = to_pixel_values(image_processor, [image])
    mean, std = normalisation(image_processor)
    for pixel, channel, value in ((image.getpixel((3, 5)), c, pixel_values[c, 5, 3].item()) for c in range(3)):
        assert (pixel[channel] / 255 - mean[channel]) / std[channel] == pytest.approx(value, rel=1e-5, abs=1e-5)
    assert np.array_equal(to_picture(pixel_values, mean, std), image)
    transform = TrainingTransform(image_processor, "crop", resize_size=16)
    cropped = transform([image], [(0, 1)])[0]  # of all there is: at most turned
    difference = min((cropped - turn).abs().max() for turn in (pixel_values, pixel_values.flip(-1)))
    assert difference < 1e-4 * max(1, 1 / std[0])


def test_a_picture_of_pixels_outside_the_range_is_cut_off():
    pixels = torch.stack([torch.full((2, 2), value) for value in (-3.0, 0.0, 3.0)]).bfloat16()
    assert to_picture(pixels, (0.5,) * 3, (0.5,) * 3).getpixel((1, 0)) == (0, 128, 255)


@pytest.mark.parametrize("size", [(1, 5), (3, 4), (4, 3), (5, 1)])
def test_small_sides_are_not_taken_for_channels(size):
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    (found,) = to_pixel_values(with_settings(do_resize=False, do_normalize=False), [image])
    assert torch.allclose(found, expected)
