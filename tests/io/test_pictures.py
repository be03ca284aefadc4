"""Pictures: colours where they belong, sizes right, one clear sentence for every bad input."""

import doctest
import inspect
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from testing_processes import start

from hf_explain.io.charts import PALETTE, bar_chart, plot_curves
from hf_explain.io.colors import KINDS
from hf_explain.io.pictures import COLORMAPS, colorize, overlay, saliency_grid, save_image


RED = np.zeros((4, 6, 3), dtype=np.uint8)
RED[..., 0] = 255


def test_overlay_leaves_the_image_where_the_map_is_zero_and_keeps_rgb_order():
    saliency = np.zeros((4, 6), dtype=np.float32)
    saliency[:, 3:] = 1
    out = np.asarray(overlay(RED, saliency, alpha=1.0))
    assert out.shape == (4, 6, 3)
    assert (out[:, :3] == [255, 0, 0]).all()
    top = (np.array(matplotlib.colormaps["viridis"](1.0)[:3]) * 255).round()
    assert (out[:, 3:] == top).all()
    assert top[0] > top[2]  # viridis ends in yellow: a swapped blue would show here


def test_overlay_blends_in_proportion_to_the_map():
    out = np.asarray(overlay(RED, np.full((4, 6), 0.5, dtype=np.float32), alpha=0.6)).astype(float)
    color = np.array(matplotlib.colormaps["viridis"](0.5)[:3]) * 255
    expected = RED[0, 0] + 0.3 * (color - RED[0, 0])
    assert np.abs(out - expected).max() <= 0.51


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RED),
        Image.fromarray(RED).convert("RGBA"),
        Image.fromarray(RED).convert("P"),
        RED,
        (RED / 255).astype(np.float32),
        torch.from_numpy(RED),
        torch.from_numpy(RED).permute(2, 0, 1).float() / 255,
        torch.from_numpy(RED).permute(2, 0, 1).to(torch.bfloat16) / 255,
    ],
)
def test_every_kind_of_image_shows_the_same_picture(image):
    out = overlay(image, torch.zeros(4, 6))
    assert out.mode == "RGB" and out.size == (6, 4)
    assert (np.asarray(out) == RED).all()


@pytest.mark.parametrize(
    "saliency", [Image.new("L", (6, 4), 255), np.ones((4, 6)), torch.ones(4, 6, dtype=torch.bfloat16)]
)
def test_every_kind_of_map_is_read_on_the_same_scale(saliency):
    assert (np.asarray(overlay(RED, saliency)) == np.asarray(overlay(RED, np.ones((4, 6))))).all()


def test_exif_rotation_is_applied_so_that_map_and_image_agree():
    image = Image.fromarray(RED)
    image.getexif()[0x0112] = 6  # a quarter turn
    assert overlay(image, np.zeros((6, 4))).size == (4, 6)


def test_grayscale_shows_only_the_colours_of_the_map():
    out = np.asarray(overlay(RED, np.zeros((4, 6)), grayscale=True))
    assert (out == out[..., :1]).all()


def test_legend_adds_a_strip_below():
    plain = overlay(Image.new("RGB", (200, 100), "red"), np.zeros((100, 200)))
    out = overlay(Image.new("RGB", (200, 100), "red"), np.zeros((100, 200)), legend=True)
    assert out.width == 200 and out.height > 100
    assert (np.asarray(out)[:100] == np.asarray(plain)).all()
    assert (np.asarray(out)[100:] < 200).any()  # the scale and its numbers
    assert overlay(RED, np.zeros((4, 6)), legend=True).width == 6  # too small for a scale, no crash


def picture_of(saliency, **options) -> np.ndarray:
    return np.asarray(overlay(np.zeros((10, 20, 3), np.uint8), saliency, **options))


def test_a_map_of_few_high_pixels_is_drawn_brighter_until_they_reach_a_half():
    sparse = np.zeros((10, 20), dtype=np.float32)
    sparse.flat[:10] = 0.2  # the highest 5 % of the pixels, so that 0.4 is drawn as 1
    sparse[5, 5] = 1.0
    assert (picture_of(sparse) == picture_of(np.minimum(sparse / 0.4, 1), stretch=False)).all()
    assert (picture_of(sparse) != picture_of(sparse, stretch=False)).any()


def test_a_map_is_drawn_at_most_ten_times_brighter():
    one = np.zeros((10, 20), dtype=np.float32)
    one[0, 0], one[0, 1] = 1.0, 0.01
    assert (picture_of(one) == picture_of(np.minimum(one * 10, 1), stretch=False)).all()


@pytest.mark.parametrize(
    "saliency", [np.zeros((10, 20)), np.linspace(0, 1, 200).reshape(10, 20), np.full((10, 20), 0.5)]
)
def test_every_other_map_is_drawn_as_it_is(saliency):
    assert (picture_of(saliency) == picture_of(saliency, stretch=False)).all()


def test_the_legend_of_a_stretched_map_ends_at_the_value_drawn_as_the_highest():
    sparse = np.zeros((100, 200), dtype=np.float32)
    sparse[:10] = 0.2
    options = {"image": Image.new("RGB", (200, 100)), "legend": True}
    stretched, plain = (
        np.asarray(overlay(saliency_map=sparse, stretch=stretch, **options)) for stretch in (True, False)
    )
    left, right = (slice(100, None), slice(0, 60)), (slice(100, None), slice(120, None))
    assert (stretched[left] < 255).any() and (stretched[right] != plain[right]).any()


def test_a_map_with_a_sign_is_red_above_0_and_blue_below():
    image = np.full((10, 30, 3), 128, np.uint8)
    signed = np.repeat(np.repeat([[-1.0, 0.0, 1.0]], 10, axis=1), 10, axis=0).astype(np.float32)
    against, neither, speaks_for = np.asarray(overlay(image, signed, signed=True))[0, ::10].astype(int)
    assert against[2] > against[0] + 30 and speaks_for[0] > speaks_for[2] + 30 and neither.tolist() == [128] * 3
    strip = np.asarray(overlay(np.full((100, 200, 3), 128, np.uint8), np.zeros((100, 200)), signed=True, legend=True))
    red, blue = (strip[100:, :, channel].astype(int) for channel in (0, 2))
    left, right = (slice(0, 100), slice(100, 200))
    assert (blue - red)[:, left].max() > 30 > (red - blue)[:, left].max()
    assert (red - blue)[:, right].max() > 30 > (blue - red)[:, right].max()
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got values from -2 to 0; scale .*signed_maps"):
        overlay(image, np.pad(np.full((10, 29), -2.0), ((0, 0), (0, 1))), signed=True)


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_colormaps_rise_in_lightness(colormap):
    ramp = np.asarray(colorize(np.linspace(0, 1, 256, dtype=np.float32)[None], colormap=colormap).convert("L"))
    assert (np.diff(ramp[0].astype(int)) >= -1).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: overlay(RED, np.zeros((6, 4))), ValueError, r"`saliency_map` is 6x4 .* and `image` is 4x6"),
        (lambda: overlay(RED, np.full((4, 6), np.nan)), ValueError, r"`saliency_map` must lie in \[0, 1\], got .*nan"),
        (lambda: overlay(RED, np.full((4, 6), 3.0)), ValueError, r"from 3 to 3; .*min_max"),
        (lambda: overlay(RED, np.zeros((1, 4, 6))), ValueError, r"`saliency_map` must have shape \(height, width\)"),
        (lambda: overlay(RED - 1.5, np.zeros((4, 6))), ValueError, r"`image` must lie in \[0, 1\].*normalisation"),
        (lambda: overlay(np.zeros((4, 6, 2)), np.zeros((4, 6))), ValueError, r"`image` must have shape"),
        (lambda: overlay("cat.png", np.zeros((4, 6))), TypeError, r"`image` must be a PIL image.*got str"),
        (lambda: overlay(RED, [[0.0]]), TypeError, r"`saliency_map` must be .*got list"),
        (lambda: overlay(RED, np.zeros((4, 6)), colormap="jet"), ValueError, r"`colormap` is 'jet'.*viridis"),
        (lambda: overlay(RED, np.zeros((4, 6)), alpha=2), ValueError, r"`alpha` .* \[0, 1\], got 2"),
        (lambda: overlay(np.zeros((0, 6, 3)), np.zeros((0, 6))), ValueError, r"`image` is empty"),
        (lambda: saliency_grid([]), ValueError, r"`rows` holds no pictures"),
        (lambda: saliency_grid([[RED]], columns=["a", "b"]), ValueError, r"`columns` has 2 entries.*needs 1"),
        (lambda: saliency_grid([[RED]], captions=[["a", "b"]]), ValueError, r"`captions\[0\]` has 2 entries"),
        (lambda: saliency_grid([[RED]], row_labels=[]), ValueError, r"`row_labels` has 0 entries.*1 rows"),
        (lambda: saliency_grid([[RED]], cell_size=3), ValueError, r"`cell_size` must be at least 32"),
        (lambda: plot_curves({}), ValueError, r"`curves` is empty"),
        (lambda: plot_curves({"a": [1, 2]}, [1, 2, 3]), ValueError, r"'a' has 2 values, but there are 3 steps"),
        (lambda: plot_curves({"a": [1, float("nan")]}), ValueError, r"`curves\['a'\]` must be a list of finite"),
        (lambda: plot_curves({"a": [1]}, bands={"b": ([0], [1])}), ValueError, r"`bands` names 'b'"),
        (lambda: bar_chart({}), ValueError, r"`values` is empty"),
        (lambda: bar_chart({"a": 1}, {"b": 1}), ValueError, r"`errors` names 'b'"),
        (lambda: bar_chart({"a": 1}, highlight="b"), ValueError, r"`highlight` names 'b'"),
        (lambda: bar_chart({"a": 1}, {"a": (2, 3)}), ValueError, r"`errors\['a'\]` spans 2 to 3"),
        (
            lambda: bar_chart({"a": 1}, kinds={"a": "mine"}),
            ValueError,
            r"`kinds` says 'mine' of 'a'; it must",
        ),
        (
            lambda: bar_chart({"a": 1}, files=["a.what"]),
            ValueError,
            r"`files` has 'a.what'; a chart is written",
        ),
        (lambda: bar_chart({"a": float("inf")}), ValueError, r"`values` must be a list of finite numbers"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_grid_holds_every_picture_at_its_place():
    green = np.zeros((8, 4, 3), dtype=np.uint8)
    green[..., 1] = 255
    sheet = np.asarray(
        saliency_grid(
            [[RED, green], [None, RED]],
            columns=["image", "a heading far too long for its cell, however one looks at it"],
            captions=[["one", None], ["", "two"]],
            row_labels=["first", "second"],
            cell_size=64,
        )
    ).astype(int)
    red, green = ((sheet == color).all(-1) for color in ([255, 0, 0], [0, 255, 0]))
    # 4x6 fitted into 64x64 is 43x64, 8x4 is 64x32
    assert red.sum() == 2 * 43 * 64 and green.sum() == 64 * 32
    assert red[: len(sheet) // 2].sum() == red[len(sheet) // 2 :].sum()
    assert green.nonzero()[1].min() > red[: len(sheet) // 2].nonzero()[1].max()
    # every column fits the sheet: the long heading was cut, the margin is still white
    assert (sheet[:, -2:] == 255).all()


def _has_color(image: Image.Image, color: str) -> bool:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(np.asarray(image).astype(int) - wanted).max(-1) <= 2).any())


@pytest.mark.parametrize("number", [1, 6, 8])
def test_curves_draw_every_line(number):
    curves = {f"method {index}": np.linspace(1, 0, 5) ** (index + 1) for index in range(number)}
    bands = {"method 0": (np.zeros(5), np.ones(5))}
    image = plot_curves(curves, [0, 25, 50, 75, 100], bands=bands, title="Title")
    assert image.mode == "RGB" and image.width == 720
    assert all(_has_color(image, color) for color in PALETTE[: min(number, len(PALETTE))])


def test_end_labels_do_not_cover_each_other():
    # Four curves with the same end: their labels must stand on four different lines
    image = np.asarray(plot_curves({f"a long name {i}": [i, 0.0, 0.0] for i in range(4)})).astype(int)
    right = image[:, 620:]
    rows = []
    for color in PALETTE[:4]:
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        hits = (np.abs(right - wanted).max(-1) <= 2).any(1).nonzero()[0]
        rows.append((hits.min(), hits.max()))
    rows.sort()
    assert all(below[0] > above[1] for above, below in zip(rows, rows[1:]))


def test_bars_have_lengths_in_proportion_and_errors():
    plain = np.asarray(bar_chart({"a": 10.0, "b": 20.0})).astype(int)
    blue = np.abs(plain - [0, 114, 178]).max(-1) <= 2
    lengths = sorted(set(blue.sum(1)[blue.sum(1) > 0]))
    assert lengths[-1] == pytest.approx(2 * lengths[0], abs=3)
    with_errors = bar_chart({"a": 10.0, "b": -20.0}, {"a": 2.0, "b": (-21.0, -18.0)}, highlight="a", title="t")
    assert _has_color(with_errors, PALETTE[1]) and _has_color(with_errors, PALETTE[0])


def test_colours_say_what_an_explainer_is(tmp_path):
    kinds = {"a": "trained head", "b": "training-free method", "c": "control", "d": "control"}
    image = bar_chart(dict.fromkeys(kinds, 1.0), kinds=kinds)
    assert all(_has_color(image, colors[0]) for colors in KINDS.values())
    image = plot_curves({name: [0, index] for index, name in enumerate(kinds)}, kinds=kinds)
    assert all(_has_color(image, color) for color in (KINDS["trained head"][0], *KINDS["control"]))

    def contrast(color):  # with white, by WCAG
        channels = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)

    assert all(contrast(color) >= 3 for colors in KINDS.values() for color in colors)


def test_vectors_are_the_same_every_time_and_letters_stay_letters(tmp_path):
    for name in ("one", "two"):
        bar_chart({"a": 1.0}, files=[tmp_path / f"{name}.svg", tmp_path / f"{name}.pdf"])
    for kind in ("svg", "pdf"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert b"/Type3" not in (tmp_path / "one.pdf").read_bytes()


def test_charts_work_in_threads_and_are_deterministic():
    def draw(_):
        return bar_chart({"a": 1.0, "b": 2.0}).tobytes() + plot_curves({"a": [1, 2, 3]}).tobytes()

    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(draw, range(8)))
    assert len(set(pictures)) == 1


def draw(pipe):
    bar_chart({"a": 1.0})
    pipe.send("matplotlib.pyplot" in sys.modules)


@pytest.mark.processes
def test_pyplot_is_never_imported():
    process, pipe = start(draw)
    assert pipe.recv() is False
    process.join()


def test_save_image_is_atomic_and_explains_itself(tmp_path):
    image = Image.fromarray(RED)
    path = save_image(image, tmp_path / "picture.png")
    assert (np.asarray(Image.open(path)) == RED).all()
    with pytest.raises(ValueError, match=r"'.what' names no image format"):
        save_image(image, tmp_path / "picture.what")
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere' does not exist"):
        save_image(image, tmp_path / "nowhere" / "picture.png")
    with pytest.raises(OSError):  # JPEG has no alpha: the failed write must not touch what was there
        save_image(image.convert("RGBA"), path.rename(tmp_path / "picture.jpg"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.jpg"]
    assert (np.asarray(Image.open(tmp_path / "picture.jpg")) == RED).all()


@pytest.mark.parametrize("function", [overlay, plot_curves])
def test_examples_in_docstrings_run(function):
    text = inspect.getdoc(function).replace("```", "")
    example = doctest.DocTestParser().get_doctest(text, {}, function.__name__, None, 0)
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(0, len(example.examples)) and example.examples
