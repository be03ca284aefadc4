"""
Wrong `config.json` and `preprocessor_config.json` of a classifier: one sentence that names the file and the key, or it
works; nothing hangs, nothing fills the memory.
"""

import json
import math
import resource

import pytest
import torch
from hub_clients import tiny_classifier, tiny_image, tiny_processor

from hf_explain import FrozenClassifier
from hf_explain.io.image_processor import to_pixel_values


NONE = ...  # the key is left out; its name is the same in every process
HUGE = 10**9


def deep(depth, inner="1"):
    return '{"a":' * depth + inner + "}" * depth


# what the file says instead of what it said, and what the sentence names; `None` where it works all the same
RAW = [
    ("", "not valid JSON"),
    ("null", "must hold a JSON object, got NoneType"),
    ("[]", "must hold a JSON object, got list"),
    ("7", "must hold a JSON object, got int"),
    ('"text"', "must hold a JSON object, got str"),
    ("{", "not valid JSON"),
    ("{'a': 1}", "not valid JSON"),
    ('{"a": 1,}', "not valid JSON"),
    ('{"a": 1} trailing', "not valid JSON"),
    ("// comment\n{}", "not valid JSON"),
    (b"\xff\xfe\x00", "not valid JSON"),
    (b"\x80abc", "not valid JSON"),
    (b"\0" * 64, "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    (deep(100_000), "not valid JSON"),
    ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
]
CONFIGURATIONS = RAW + [
    ({"depths": "many"}, "depths"),
    ({"depths": None}, "NoneType"),
    ({"depths": {}}, "depths"),
    ({"depths": [-1, 1]}, None),
    ({"depths": [0, 0]}, None),
    ({"depths": [HUGE, 1]}, r"depths\[0\]"),
    ({"depths": [1, math.nan]}, r"depths\[1\]"),
    ({"depths": [1, 1, 1]}, None),
    ({"hidden_sizes": "x"}, "hidden_sizes"),
    ({"hidden_sizes": [8]}, r"classifier.1.weight.*\(3, 8\)"),
    ({"hidden_sizes": [8, "16"]}, "hidden_sizes"),
    ({"hidden_sizes": [8, -16]}, "negative dimension -16"),
    ({"hidden_sizes": [8, [16]]}, "hidden_sizes"),
    ({"embedding_size": "8"}, "embedding_size"),
    ({"embedding_size": None}, "embedding_size"),
    ({"embedding_size": 0}, r"embedder.*\(0, 3, 7, 7\)"),
    ({"embedding_size": -8}, "negative dimension -8"),
    ({"embedding_size": 2**40}, "embedding_size"),
    ({"embedding_size": math.nan}, "embedding_size"),
    ({"embedding_size": math.inf}, "embedding_size"),
    ({"embedding_size": 8.5}, "embedding_size"),
    ({"embedding_size": NONE}, "embedder"),
    ({"layer_type": "evil"}, "layer_type"),
    ({"layer_type": 7}, "layer_type"),
    ({"hidden_act": "evil"}, "evil"),
    ({"hidden_act": None}, "hidden_act"),
    ({"num_channels": 0}, r"embedder.*\(8, 0, 7, 7\)"),
    ({"num_channels": "3"}, "num_channels"),
    ({"num_channels": HUGE}, "num_channels"),
    ({"id2label": []}, "id2label"),
    ({"id2label": "x"}, "id2label"),
    ({"id2label": {"a": "b"}}, "id2label"),
    ({"id2label": {"0": "a"}}, "classifier.1"),
    ({"id2label": NONE}, "classifier.1"),
    ({"label2id": 5}, "label2id"),
    ({"num_labels": HUGE}, "num_labels"),
    ({"num_labels": -1}, "num_labels"),
    ({"num_labels": "three"}, "num_labels"),
    ({"problem_type": "evil"}, None),
    ({"architectures": "x"}, "architectures"),
    ({"architectures": {"a": 1}}, "architectures"),
    ({"model_type": None}, "model type `None`"),
    ({"model_type": ["resnet"]}, "model_type"),
    ({"model_type": NONE}, "model_type"),
    ({"model_type": "../resnet"}, "model type"),
    ({"dtype": "evil"}, "evil"),
    ({"dtype": 7}, "is_floating_point"),
    ({"auto_map": "x"}, "auto_map"),
    ({"auto_map": {"AutoConfig": 5}}, "auto_map.AutoConfig"),
    ({"quantization_config": {"quant_method": "evil"}}, None),
    ({"downsample_in_first_stage": "x"}, "downsample_in_first_stage"),
    ({"output_hidden_states": "x"}, None),
    ({"text_config": {"layers": HUGE}}, "text_config.layers"),
]
PROCESSORS = RAW + [
    ({"size": "x"}, "size"),
    ({"size": {}}, "size"),
    ({"size": None}, "size"),
    ({"size": NONE}, None),
    ({"size": {"height": -32, "width": 32}}, "size"),
    ({"size": {"height": 0, "width": 0}}, "size"),
    ({"size": {"height": "32", "width": 32}}, "size"),
    ({"size": {"height": 32.5, "width": 32}}, "size"),
    ({"size": {"height": HUGE, "width": 32}}, "size.height"),
    ({"size": {"height": math.nan, "width": 32}}, "size.height"),
    ({"size": {"height": [32], "width": 32}}, "size"),
    ({"size": {"evil": 32}}, "size"),
    ({"image_mean": [0.5]}, "mean must have 3"),
    ({"image_mean": "x"}, "image_mean"),
    ({"image_mean": [math.nan] * 3}, "image_mean"),
    ({"image_mean": [[0.5]] * 3}, "shapes"),
    ({"image_mean": None}, "image_mean"),
    ({"image_std": [0, 0, 0]}, "image_std"),
    ({"image_std": 0}, "image_std"),
    ({"image_std": [math.inf] * 3}, "image_std"),
    ({"image_std": {"a": 1}}, "image_std"),
    ({"rescale_factor": "x"}, "rescale_factor"),
    ({"rescale_factor": math.nan}, "rescale_factor"),
    ({"rescale_factor": math.inf}, "rescale_factor"),
    ({"rescale_factor": HUGE}, "rescale_factor"),
    ({"resample": 99}, "resampling filter"),
    ({"resample": "evil"}, "resample"),
    ({"do_resize": "no"}, "do_resize"),
    ({"do_normalize": "no"}, "do_normalize"),
    ({"do_center_crop": True, "crop_size": "x"}, "size"),
    ({"do_center_crop": True, "crop_size": {"height": -1, "width": 8}}, "size"),
    ({"image_processor_type": "evil"}, "image_processor_type"),
    ({"image_processor_type": 5}, "int"),
    ({"image_processor_type": None}, "ConvNextImageProcessor"),
    ({"data_format": "evil"}, None),
    ({"do_convert_rgb": 5}, "do_convert_rgb"),
    ({"auto_map": "x"}, None),
    ({"device": "evil"}, None),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    tiny_classifier().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def honest(classifier):
    return logits(classifier)


def logits(folder):
    found = FrozenClassifier.from_pretrained(folder)
    return found(to_pixel_values(found.image_processor, [tiny_image()]))


def written(fields, content):
    """The file's bytes with other fields, or other bytes."""
    if not isinstance(fields, dict):
        return fields.encode() if isinstance(fields, str) else fields
    described = {**json.loads(content), **fields}
    return json.dumps({key: value for key, value in described.items() if value is not NONE}).encode()


CASES = [
    pytest.param(file, fields, said, id=f"{file.partition('_')[0].partition('.')[0]}-{str(fields)[:50]}")
    for file, cases in (("config.json", CONFIGURATIONS), ("preprocessor_config.json", PROCESSORS))
    for fields, said in cases
]


@pytest.mark.parametrize(("file", "fields", "said"), CASES)
def test_wrong_configurations(classifier, honest, file, fields, said):
    path = classifier / file
    content = path.read_bytes()
    path.write_bytes(written(fields, content))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        if said is None:
            assert torch.equal(logits(classifier), honest) or "size" in fields
        else:
            with pytest.raises((ValueError, TypeError), match=said) as refusal:
                logits(classifier)
            text = str(refusal.value)
            assert "\n" not in text and len(text) < 700
            assert file in text or "model type" in text
    finally:
        path.write_bytes(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # kB


def test_a_key_that_is_there_twice(classifier, honest):
    """JSON leaves it open; Python takes the last, here and in Transformers."""
    path = classifier / "config.json"
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b'"model_type"', b'"model_type": "bert", "model_type"'))
        assert torch.equal(logits(classifier), honest)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_other_encodings_are_refused(classifier, file, encoding):
    path = classifier / file
    content = path.read_bytes()
    path.write_bytes(content.decode().encode(encoding))
    try:
        with pytest.raises((ValueError, OSError), match=f"{file}|utf-8") as refusal:
            logits(classifier)
        assert "\n" not in str(refusal.value)
    finally:
        path.write_bytes(content)
