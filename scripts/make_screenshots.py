#!/usr/bin/env python
"""
Make the screenshots of the demo: start it, open it in Chromium, wait for its maps, and take the whole page.

    pip install ".[demo]" selenium    # and Chromium with its driver: apt-get install chromium chromium-driver
    python scripts/make_screenshots.py --model ttame-efficientnet-lite0 --classifier classifiers/efficientnet-lite0 \
        --explainers ttame-efficientnet-lite0 gradcam random --examples church.png hf_explain/apps/photographs/c*.jpg \
        --query 'picture=church&class=church&removed=30' --output_dir shots --pictures model_cards/pictures

A file per width and colour scheme, `WIDTH-SCHEME.png`, to be looked at: 1280 pixels for a desk, 390 (twice as dense)
for a phone. `--pictures DIR` puts two of them where README has them: the desk's light one, and three screens of the
phone's dark one side by side. `--query` adds to the page's link, which holds every setting:
`picture=coffee&removed=30`. `scripts/make_pictures.py` says where the church is from.
"""

import argparse
import base64
import contextlib
import io
import shutil
import tempfile
import time
from itertools import product
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from hf_explain.apps.demo import launch
from hf_explain.io.pictures import save_image


SIZES = {"desktop": (1280, 900, 1), "phone": (390, 844, 2)}  # width, height, device pixels per pixel
SCHEMES = ("light", "dark")
PATIENCE = 300  # seconds until a page must have shown its maps
# How many maps have come and how many curves, and whether more are on their way
SHOWN = """
    const loaded = [...document.querySelectorAll('.panel img')].filter(one => one.complete && one.naturalWidth);
    return [loaded.length, document.querySelectorAll('#removal img').length,
            document.querySelectorAll('.generating, .progress-text, .eta-bar').length];
"""
MISSING = "The link asks for what is not here"  # as the page says it, which then shows something else
SCREENS = {"h1": 10, ".panel": 75, "#removed": 10}  # what three screens of a phone begin with, and the pixels above it
TOPS = "return arguments[0].map(one => document.querySelector(one).getBoundingClientRect().top + window.scrollY)"


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="head or classifier that the demo shows")
    parser.add_argument("--classifier", help="of the head, where it is not where its config says")
    parser.add_argument("--explainers", nargs="*", default=[], help="shown side by side (default: as the demo has it)")
    parser.add_argument("--examples", nargs="+", help="pictures to choose from (default: as the demo has them)")
    parser.add_argument("--query", default="", help="added to the page's link")
    parser.add_argument("--output_dir", required=True, type=Path, help="a file per width and colour scheme")
    parser.add_argument("--pictures", type=Path, help="demo.jpg and demo-phone.jpg, as README has them")
    return parser.parse_args(argv)


def browser(profile: str):
    """Chromium without a window, whose files are in a folder that goes with it."""
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        raise SystemExit("error: Chromium and its driver are needed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={profile}")
    return webdriver.Chrome(service=webdriver.ChromeService(driver), options=options)


def take(chromium, url: str, width: int, height: int, density: int) -> Image.Image:
    """The whole page, once its maps and curves are there."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": density > 1}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chromium.get(url)
    end = time.monotonic() + PATIENCE
    while True:
        maps, curves, busy = chromium.execute_script(SHOWN)
        if maps and curves and not busy:
            break
        if time.monotonic() > end:
            raise SystemExit(f"error: {url} showed {maps} maps and {curves} curves within {PATIENCE} s.")
        time.sleep(0.3)
    if MISSING in (text := chromium.find_element("css selector", "body").text):
        said = next(line for line in text.splitlines() if MISSING in line)
        raise SystemExit(f"error: {said} Give --explainers and --query names that this demo has.")
    time.sleep(1.5)  # what fades in
    size = chromium.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    if size["width"] > width:
        raise SystemExit(f"error: at {width} px the page is {size['width']} px wide.")
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    taken = chromium.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


def screens(chromium, page: Image.Image, width: int, height: int, density: int) -> Image.Image:
    """Three screens of a page side by side, one pixel a pixel of the page."""
    page = page.resize((page.width // density, page.height // density), Image.Resampling.LANCZOS)
    found = zip(chromium.execute_script(TOPS, list(SCREENS)), SCREENS.values())
    tops = [min(max(int(top) - above, 0), page.height - height) for top, above in found]
    sheet = Image.new("RGB", (len(tops) * width + (len(tops) - 1) * 24, height), "white")
    for place, top in enumerate(tops):
        sheet.paste(page.crop((0, top, width, top + height)), (place * (width + 24), 0))
    return sheet


def main(argv=None) -> None:
    args = parse(argv)
    with contextlib.ExitStack() as stack:
        app = launch(args.model, args.classifier, examples=args.examples, block=False)
        stack.callback(app.close)
        chromium = browser(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        stack.callback(chromium.quit)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        settings = "&".join(filter(None, [urlencode([("explainer", one) for one in args.explainers]), args.query]))
        for (name, size), scheme in product(SIZES.items(), SCHEMES):
            page = take(chromium, f"{app.local_url}?__theme={scheme}&{settings}", *size)
            print(save_image(page, args.output_dir / f"{size[0]}-{scheme}.png"), flush=True)
            if args.pictures and (name, scheme) == ("desktop", "light"):
                print(save_image(page, args.pictures / "demo.jpg"), flush=True)
            if args.pictures and (name, scheme) == ("phone", "dark"):
                print(save_image(screens(chromium, page, *size), args.pictures / "demo-phone.jpg"), flush=True)


if __name__ == "__main__":
    main()
