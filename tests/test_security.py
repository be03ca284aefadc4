"""What somebody else's files may do here: nothing but explain images, or be refused with one sentence.

The fuzz tests run a few cases by default. All 2,000: `python -m pytest tests/test_security.py -m slow`.
"""

import contextlib
import io
import json
import logging
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import GUEST_TOKEN, OWNER_TOKEN
from hub_clients import push_classifier, push_quietly, tiny_classifier, tiny_head, tiny_image, tiny_processor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_explain import AutoModelForSaliency, FrozenClassifier, LCamForSaliency
from hf_explain.apps.demo_explainers import Demo
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.io.images import MAX_PIXELS, load_rgb
from hf_explain.pipeline import load_pipeline


REFUSALS = (ValueError, TypeError, OSError)  # OSError: FileNotFoundError, PermissionError, ConnectionError among it


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


@pytest.fixture
def saved(tmp_path):
    tiny_classifier().save_pretrained(tmp_path / "classifier")
    tiny_processor().save_pretrained(tmp_path / "classifier")
    tiny_head(tmp_path / "classifier").save_pretrained(tmp_path / "head")
    return tmp_path / "head"


# ---- code


def test_a_repository_with_only_a_pickle_is_refused(hub, tmp_path):
    push_classifier()
    tiny_head().save_pretrained(tmp_path / "head")
    push_quietly(tmp_path / "head", "user/head")
    for source, target, load in (
        ("user/resnet", "user/pickled-classifier", FrozenClassifier.from_pretrained),
        ("user/head", "user/pickled-head", AutoModelForSaliency.from_pretrained),
    ):
        files = {name: text for name, text in hub.files(source).items() if name != "model.safetensors"}
        hub.add_repo(target, {**files, "pytorch_model.bin": pickle.dumps(Bomb())})
        hub.requests.clear()
        with pytest.raises(ValueError, match=f"'{target}' has its weights as a pickle only .*can run code"):
            load(target)
        assert not hub.seen("GET", "pytorch_model.bin|/cdn/")
        assert not hub.seen("POST")  # nobody was asked to convert it
    directory = tmp_path / "local"
    tiny_classifier().save_pretrained(directory)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="has its weights as a pickle only"):
        FrozenClassifier.from_pretrained(directory)


def test_nothing_from_a_repository_is_executed(hub, tmp_path):
    push_classifier()
    tiny_head().save_pretrained(tmp_path / "head")
    push_quietly(tmp_path / "head", "user/head")
    code = b"raise SystemExit('code from a repository was executed')"
    auto_map = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoModelForImageClassification": "evil.Model",
    }
    for name, change in (
        ("known", {}),
        ("unknown", {"model_type": "evil"}),
    ):
        config = {**json.loads(hub.files("user/head")["config.json"]), "auto_map": auto_map, **change}
        hub.add_repo(f"user/{name}", {**hub.files("user/head"), "config.json": json.dumps(config).encode()})
        hub.add_repo(f"user/{name}", {"evil.py": code})
    assert type(AutoModelForSaliency.from_pretrained("user/known")) is LCamForSaliency
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForSaliency.from_pretrained("user/unknown")
    config = {**json.loads(hub.files("user/resnet")["config.json"]), "auto_map": auto_map, "model_type": "evil"}
    hub.add_repo(
        "user/evil", {**hub.files("user/resnet"), "config.json": json.dumps(config).encode(), "evil.py": code}
    )
    with pytest.raises(ValueError, match="trust_remote_code"):
        FrozenClassifier.from_pretrained("user/evil")
    assert not hub.seen("GET", r"evil\.py")


# ---- paths and secrets


@pytest.mark.parametrize("place", ["/etc", "../classifier", "./classifier", "~/classifier", "a/b/c", "C:\\classifier"])
def test_a_configuration_from_the_hub_names_no_local_path(hub, tmp_path, place):
    push_classifier()
    tiny_head().save_pretrained(tmp_path / "head")
    push_quietly(tmp_path / "head", "user/head")
    config = {**json.loads(hub.files("user/head")["config.json"]), "backbone": place}
    hub.add_repo("user/head", {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match="names a local path, .* as its classifier, which is refused"):
        AutoModelForSaliency.from_pretrained("user/head")


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "sub/../../secret.safetensors"])
def test_an_index_of_shards_stays_in_its_directory(saved, shard):
    (saved / "model.safetensors").rename(saved.parent / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {"attention.weight": shard, "attention.bias": shard}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model.safetensors.index.json .* outside"):
        LCamForSaliency.from_pretrained(saved)


def test_a_local_classifier_is_not_published_by_the_head_itself(hub, saved):
    head = LCamForSaliency.from_pretrained(saved)
    with pytest.raises(ValueError, match="classifier .* is a local directory"):
        head.push_to_hub("user/head")
    assert ("model", "user/head") not in hub.repos
    head.config.self_contained = True
    head.push_to_hub("user/whole")
    assert str(saved.parent).encode() not in b"".join(hub.files("user/whole").values())
    assert head.config.backbone == str(saved.parent / "classifier")


def test_tokens_and_paths_stay_here(hub, tmp_path, caplog, capfd):
    push_classifier()
    tiny_head().save_pretrained(tmp_path / "head")
    with contextlib.ExitStack() as stack:
        for name in ("", "huggingface_hub", "transformers", "hf_explain"):
            stack.enter_context(caplog.at_level(logging.DEBUG, logger=name))
        push_quietly(tmp_path / "head", "user/head", report=print)
        AutoModelForSaliency.from_pretrained("user/head", token=OWNER_TOKEN)
        errors = []
        hub.inject("status", "/api/repos/create", status=500, message=f"bad token {OWNER_TOKEN}")
        hub.inject("status", "/user/head/resolve/", status=403, message=f"bad token {OWNER_TOKEN}")
        for action in (
            lambda: push_quietly(tmp_path / "head", "user/other"),
            lambda: AutoModelForSaliency.from_pretrained("user/head", token=OWNER_TOKEN, force_download=True),
            lambda: AutoModelForSaliency.from_pretrained("user/none", token=GUEST_TOKEN),
        ):
            with pytest.raises(OSError) as refusal:
                action()
            errors.append(f"{refusal.value!r} {refusal.value.__cause__!r}")
    printed = capfd.readouterr()
    published = b"".join(hub.files("user/head").values()).decode("latin-1")
    for text in (caplog.text, printed.out, printed.err, *errors, published):
        assert OWNER_TOKEN not in text and GUEST_TOKEN not in text
    assert str(tmp_path) not in published


# ---- images


def png(width, height, body=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_an_image_that_unpacks_to_gigabytes_is_refused(tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(50_000, 50_000, zlib.compress(b"\0" * 10_000) + b"\0" * 1_000_000))
    with pytest.raises(ValueError, match=f"has more than the limit of {MAX_PIXELS} pixels"):
        load_rgb(str(bomb))
    pipe = pipeline("saliency", model=tiny_classifier(), image_processor=tiny_processor())
    with pytest.raises(ValueError, match="more than the limit"):
        pipe(str(bomb))
    answers = pipe([str(bomb), tiny_image()], on_error="return")
    assert "more than the limit" in answers[0][0]["error"] and "saliency" in answers[1][0]


def images():
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        tiny_image().save(buffer, kind)
        found.append(buffer.getvalue())
    return found


# ---- fuzz

CASES = [
    pytest.param(0.05, id="quick"),
    pytest.param(1.0, id="thorough", marks=pytest.mark.slow),
]


def fuzz(part, of, *strategies):
    """Run a check on `of` drawn cases, or a part of them; a case that hangs for 5 s fails the thorough run."""

    def run(check):
        options = settings(
            max_examples=max(1, int(of * part)),
            deadline=5000 if part == 1 else None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        options(given(*strategies)(check))()

    return run


@st.composite
def mutated(draw, content):
    """Bytes with a part cut off, overwritten or doubled."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(["cut", "write", "insert", "drop"]))
        if action == "cut":
            del data[start:]
        elif action == "drop":
            del data[start : start + draw(st.integers(1, 64))]
        else:
            new = draw(st.binary(min_size=1, max_size=16))
            data[start : start + (len(new) if action == "write" else 0)] = new
    return bytes(data)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**9]),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(-5, 2**40), max_size=5),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.integers(1, 3000).map(lambda depth: json.loads("[" * min(depth, 400) + "]" * min(depth, 400))),
)


def places(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from places(item, (*path, key))


def changed(config, path, value):
    config = json.loads(json.dumps(config))
    parent = config
    for key in path[:-1]:
        parent = parent[key]
        if not isinstance(parent, dict):
            return config
    parent[path[-1]] = value
    return config


@pytest.mark.parametrize("part", CASES)
def test_fuzzed_configurations(saved, part):
    text = (saved / "config.json").read_text()
    config = json.loads(text)
    known = sorted(places(config))

    def load(content):
        (saved / "config.json").write_bytes(content)
        try:
            LCamForSaliency.from_pretrained(saved)
        except REFUSALS as error:
            assert str(error)

    @fuzz(part, 500, st.lists(st.tuples(st.sampled_from(known), VALUES), min_size=1, max_size=3))
    def values(changes):
        edited = config
        for path, value in changes:
            edited = changed(edited, path, value)
        load(json.dumps(edited).encode())

    @fuzz(part, 200, mutated(text.encode()))
    def raw(content):
        load(content)

    classifier = saved.parent / "classifier"
    described = json.loads((classifier / "config.json").read_text())

    @fuzz(part, 200, st.lists(st.tuples(st.sampled_from(sorted(places(described))), VALUES), min_size=1, max_size=3))
    def classifiers(changes):
        edited = described
        for path, value in changes:
            edited = changed(edited, path, value)
        (classifier / "config.json").write_text(json.dumps(edited))
        try:
            FrozenClassifier.from_pretrained(classifier)
        except REFUSALS as error:
            assert str(error)

    (classifier / "config.json").write_text(json.dumps(described))
    for content in (b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000):
        load(content)


def test_numbers_that_no_classifier_has(saved):
    """A billion layers would be built for hours; a text tower's vocabulary is large and fine."""
    classifier = saved.parent / "classifier"
    described = json.loads((classifier / "config.json").read_text())
    for fields, place in (
        ({"depths": [10**9, 1]}, r"depths\[0\]"),
        ({"hidden_sizes": [8, 2**40]}, r"hidden_sizes\[1\]"),
        ({"text_config": {"vocab_size": 2**40}}, "text_config.vocab_size"),
    ):
        (classifier / "config.json").write_text(json.dumps({**described, **fields}))
        with pytest.raises(ValueError, match=rf"`config.json.{place}` is \d+, more than any image classifier has"):
            FrozenClassifier.from_pretrained(classifier)
    (classifier / "config.json").write_text(json.dumps({**described, "text_config": {"vocab_size": 256_000}}))
    assert FrozenClassifier.from_pretrained(classifier).num_labels == 3


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"size": {"shortest_edge": 60_000}}, "size.shortest_edge"),
        ({"size": {"height": 32, "width": 10**7}}, "size.width"),
        ({"crop_size": {"height": 10**7, "width": 32}, "do_center_crop": True}, "crop_size.height"),
        ({"crop_pct": 1e-6, "image_processor_type": "ConvNextImageProcessor"}, "crop_pct"),
    ],
)
def test_pictures_that_no_memory_holds(saved, fields, place, nested):
    """Every door that loads an image processor: building it is quick, its first picture would not be."""
    classifier, own = saved.parent / "classifier", saved.parent / "own"
    tiny_head(classifier).save_pretrained(own, self_contained=True)
    described = {**json.loads((classifier / "preprocessor_config.json").read_text()), **fields}
    for directory in (classifier, own):
        (directory / "preprocessor_config.json").unlink(missing_ok=True)
        if nested:
            (directory / "processor_config.json").write_text(json.dumps({"image_processor": described}))
        else:
            (directory / "preprocessor_config.json").write_text(json.dumps(described))
    model = tiny_classifier()
    model.config._name_or_path = str(classifier)
    for load in (
        lambda: FrozenClassifier.from_pretrained(classifier),
        lambda: FrozenClassifier(model).image_processor,
        lambda: AutoModelForSaliency.from_pretrained(saved),
        lambda: AutoModelForSaliency.from_pretrained(own),
        lambda: pipeline("saliency", model=str(classifier)),
        lambda: pipeline("saliency", model=str(own)),
    ):
        with pytest.raises(
            ValueError, match=rf"`preprocessor_config.json.{place}` is [\de.-]+, (more|less) than any image"
        ):
            load()


def test_a_heads_own_image_processor_is_checked(saved):
    """Training saves one beside the head; the pipeline takes it in the place of the classifier's."""
    tiny_processor().save_pretrained(saved)
    described = json.loads((saved / "preprocessor_config.json").read_text())
    (saved / "preprocessor_config.json").write_text(json.dumps({**described, "size": {"height": 32, "width": 10**7}}))
    with pytest.raises(ValueError, match=r"`preprocessor_config.json.size.width` is 10000000, more than any image"):
        pipeline("saliency", model=str(saved))


@pytest.mark.parametrize(
    "lost", [["classifier.1.weight"], ["classifier.1.bias", "resnet.embedder.embedder.convolution.weight"]]
)
def test_a_classifier_with_missing_tensors_is_refused(saved, lost):
    """Transformers fills them with random numbers and goes on."""
    classifier = saved.parent / "classifier"
    tensors = load_file(classifier / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if name not in lost},
        classifier / "model.safetensors",
        {"format": "pt"},
    )
    for load in (
        lambda: FrozenClassifier.from_pretrained(classifier),
        lambda: AutoModelForSaliency.from_pretrained(saved),
        lambda: pipeline("saliency", model=str(classifier)),
        lambda: pipeline("saliency", model=str(saved)),
        lambda: load_pipeline(classifier),
        lambda: resolve_explainer(str(classifier)),
        lambda: Demo(str(classifier)),
    ):
        with pytest.raises(
            ValueError, match=rf"^.*classifier '.*classifier' lack {len(lost)} of its tensors \({', '.join(lost)}\).*$"
        ):
            load()


def test_a_classifier_of_another_number_of_classes_is_the_users_business(saved):
    found = FrozenClassifier.from_pretrained(saved.parent / "classifier", num_labels=7, ignore_mismatched_sizes=True)
    assert found.num_labels == 7


@pytest.mark.parametrize("part", CASES)
def test_fuzzed_weights(saved, part):
    content = (saved / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])

    def load(data):
        # another file, as what was mapped into memory before must not change
        (saved / "new").write_bytes(data)
        (saved / "new").rename(saved / "model.safetensors")
        try:
            LCamForSaliency.from_pretrained(saved)
        except REFUSALS as error:
            assert str(error)

    @fuzz(part, 300, mutated(content[: 8 + length]))
    def header(data):
        load(data + content[8 + length :])

    @fuzz(part, 200, st.integers(0, 2**64 - 1), st.integers(0, len(content)))
    def lengths(claimed, kept):
        load(struct.pack("<Q", claimed) + content[8:kept])

    @fuzz(part, 200, st.sampled_from(["dtype", "shape", "data_offsets"]), VALUES)
    def entries(key, value):
        described = json.loads(content[8 : 8 + length])
        described["attention.weight"][key] = value
        new = json.dumps(described).encode()
        load(struct.pack("<Q", len(new)) + new + content[8 + length :])


@pytest.mark.parametrize("part", CASES)
def test_fuzzed_images(tmp_path, part):
    path = tmp_path / "image"

    @fuzz(part, 2000, st.one_of([mutated(content) for content in images()]))
    def files(content):
        path.write_bytes(content)
        try:
            image = load_rgb(str(path))
            assert image.mode == "RGB" and np.asarray(image).size
        except REFUSALS as error:
            assert "image" in str(error)


def test_nan_weights_explain_nothing(saved):
    """A head of NaNs is an error, neither NaN in a picture nor a map of zeros that looks like an answer."""
    head = LCamForSaliency.from_pretrained(saved)
    with torch.no_grad():
        head.attention.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="Image 0 gets a map that is not finite"):
        head(torch.zeros(1, 3, 32, 32))
