"""The ONNX graph is the same function as the head, and the page shows what it says."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import (
    FAMILIES,
    LABELS,
    image_size,
    needed,
    random_pixels,
    save_classifier,
    tiny_classifier,
    train_steps,
)

from hf_explain import LCamForSaliency, PTameForSaliency, ScanForSaliency, TTameForSaliency
from hf_explain.cli import main
from hf_explain.publish import onnx as exporting
from hf_explain.publish.onnx import SaliencyGraph, export_onnx, write_page


runtime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

HEADS = {"lcam": LCamForSaliency, "ttame": TTameForSaliency, "ptame": PTameForSaliency}
FIELDS = {"ttame": {"tap_products": True}}


def make_head(kind, family, classifier=None):
    more = needed(kind)
    if more and classifier:  # beside it on disk
        more = {"auxiliary": save_classifier("resnet", Path(classifier).parent / "auxiliary", seed=7)}
    torch.manual_seed(1)
    head = HEADS[kind].from_classifier(classifier or tiny_classifier(family), **more, **FIELDS.get(kind, {}))
    train_steps(head, random_pixels(family), steps=1)
    return head


def run(path, pixel_values, target):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixel_values.numpy(), "target": np.array(target)})


@pytest.mark.parametrize(("kind", "family"), [
    pytest.param(kind, family, marks=[] if (kind, family) == ("ttame", "resnet") else pytest.mark.slow)
    for kind in HEADS for family in FAMILIES
])  # fmt: skip
def test_the_graph_is_the_head(kind, family, tmp_path, capsys):
    save_classifier(family, tmp_path / "classifier")
    head = make_head(kind, family, str(tmp_path / "classifier"))
    head.save_pretrained(tmp_path / "head")
    path = tmp_path / "new" / "head.onnx"
    assert main(["onnx", str(tmp_path / "head"), "-o", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"{path}: {type(head).__name__} on {type(head.backbone.model).__name__}, opset 18, " in printed
    assert [file.name for file in path.parent.iterdir()] == ["head.onnx"]

    pixel_values, target = random_pixels(family, 5, seed=3), [4, -1, 0, 2, -3]
    saliency, logits = run(path, pixel_values, target)
    classes = torch.where(torch.tensor(target) < 0, torch.from_numpy(logits).argmax(-1), torch.tensor(target))
    expected = head(pixel_values, target=classes)
    np.testing.assert_allclose(saliency, expected.saliency.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)
    assert np.ptp(saliency[0] - saliency[2]) > 0.1
    with pytest.raises(Exception, match="invalid index|out of data bounds"):
        run(path, pixel_values, [0, 1, 2, 3, len(LABELS)])

    model = onnx.load(path)
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert [one.version for one in model.opset_import if one.domain == ""] == [18]
    assert json.loads(known["labels"]) == list(LABELS) and known["head"] == kind
    assert json.loads(known["image_size"]) == list(image_size(family))
    assert json.loads(known["image_mean"]) == list(head.backbone.image_mean)
    assert str(tmp_path) not in str(known)  # a local directory is nobody else's business


def test_an_older_exporter_gives_the_same_map(tmp_path):
    head, pixel_values, target = make_head("ttame", "resnet"), random_pixels("resnet"), torch.tensor([0, 3])
    torch.onnx.export(
        SaliencyGraph(head).eval(), (pixel_values, target), tmp_path / "x.onnx", dynamo=False,
        input_names=["pixel_values", "target"],
    )  # fmt: skip
    saliency, _ = run(tmp_path / "x.onnx", pixel_values, target)
    np.testing.assert_allclose(saliency, head(pixel_values, target).saliency.numpy(), rtol=0, atol=1e-4)


def test_what_cannot_be_kept_is_refused(tmp_path, monkeypatch, capsys):
    head = make_head("lcam", "resnet")
    with pytest.raises(ValueError, match=r"`head` is in torch.bfloat16 .*load both with dtype=torch.float32"):
        export_onnx(make_head("lcam", "resnet").to(torch.bfloat16), tmp_path / "x.onnx")
    scan = ScanForSaliency.from_classifier(tiny_classifier("resnet"), decoder_width=2, num_residual_modules=0)
    with pytest.raises(ValueError, match="`head` is a ScanForSaliency, whose map takes a gradient"):
        export_onnx(scan, tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_text("of before")
    # a graph of another head
    other = SaliencyGraph(make_head("lcam", "resnet"))
    other.head.attention.weight.data.neg_()
    differences = exporting._differences
    monkeypatch.setattr(exporting, "_differences", lambda session, graph, head: differences(session, other, head))
    with pytest.raises(ValueError, match=r"gives other answers than PyTorch \(maps differ by \d"):
        export_onnx(head, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_text() == "of before"
    head.save_pretrained(tmp_path / "head")
    assert main(["onnx", str(tmp_path / "head"), "-o", str(tmp_path)]) == 1
    assert "is a folder; name a file" in capsys.readouterr().err


def test_without_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_EXTRA", ("onnx", "no_such_package"))
    with pytest.raises(ImportError, match=r"pip install 'hf-explain\[onnx\]'"):
        export_onnx(make_head("lcam", "resnet"), tmp_path / "x.onnx")


# -------------------------------------------------------------------------------------------------------- the web page


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver and shutil.which("npm")):
        pytest.skip("needs chromium, chromedriver and npm")
    site = tmp_path / "site"
    save_classifier("resnet", tmp_path / "classifier")
    head = make_head("ttame", "resnet", str(tmp_path / "classifier"))
    write_page(head, site, runtime="ort")
    subprocess.run(["npm", "pack", "onnxruntime-web@1.30.0"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["tar", "xzf", "onnxruntime-web-1.30.0.tgz"], cwd=tmp_path, check=True)
    (site / "ort").mkdir()
    for file in (tmp_path / "package" / "dist").glob("ort*wasm*"):
        shutil.copy(file, site / "ort")
    picture = Image.linear_gradient("L").resize((90, 70)).convert("RGB")
    picture.save(tmp_path / "picture.png")

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,900"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        from selenium.webdriver.support.ui import WebDriverWait

        browser.get(f"http://127.0.0.1:{server.server_port}/index.html")
        status = browser.find_element("id", "status")
        WebDriverWait(browser, 60).until(lambda _: not status.text.startswith("Loading"))
        assert status.text == "Ready." and browser.title.startswith("T-TAME on ")
        browser.find_element("id", "file").send_keys(str(tmp_path / "picture.png"))
        WebDriverWait(browser, 60).until(lambda _: status.text.startswith(("Where", "That")))
        expected = head(head.backbone.image_processor(picture, return_tensors="pt")["pixel_values"])
        top = LABELS[int(expected.target)]
        assert status.text.startswith(f"Where it looked for {top}: ")
        buttons = browser.find_elements("css selector", "#classes button")
        assert len(buttons) == 5 and buttons[0].text.startswith(top)
        assert buttons[0].get_attribute("aria-pressed") == "true"
        canvas = "const c = document.getElementById('canvas'); return c.toDataURL()"
        first = browser.execute_script(canvas)
        second = buttons[1].text.rsplit(" ", 1)[0]
        buttons[1].click()  # which makes the buttons anew
        WebDriverWait(browser, 60).until(lambda _: status.text.startswith(f"Where it looked for {second}: "))
        assert browser.execute_script(canvas) != first
        browser.save_screenshot(os.environ.get("SCREENSHOT", str(tmp_path / "page.png")))
    finally:
        browser.quit()
        server.shutdown()
