"""
Transformers' own tests of a model, over our heads.

They are not in the wheel: they are fetched from the source distribution of the version that is installed, into a
directory that the caller names, and are never part of this repository.
"""

import copy
import importlib
import re
import subprocess
import sys
import tarfile
import unittest
from importlib import metadata

import torch
from testing_common import image_size, random_pixels, tiny_classifier


# What the tests import and the source distribution lacks; heads need none of it: they do not generate, and exporting
# them is tested elsewhere
_ABSENT = {
    "__init__": "",
    "exporters/test_export": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils": "config_common_kwargs = {}\n",
}


def fetch(directory, pytest_config):
    """
    `(ModelTesterMixin, ConfigTester)` of the installed version of Transformers.

    Raises:
        OSError: If the package index cannot be reached or does not have it.
    """
    version = metadata.version("transformers")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = ["download", "--no-binary", ":all:", "--no-deps", "--dest", str(directory), f"transformers=={version}"]
    needed = ["install", "--no-deps", "--target", str(directory / "site"), "parameterized"]
    for words in (source, needed):
        done = subprocess.run([*pip, *words], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[-1])
    with tarfile.open(directory / f"transformers-{version}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    package = (directory / f"transformers-{version}" / "tests").rename(directory / "transformers_tests")
    for name, content in _ABSENT.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(content)
    for mark in sorted(set(re.findall(r"\bmark\.(\w+)", (package / "test_modeling_common.py").read_text()))):
        pytest_config.addinivalue_line("markers", f"{mark}: of Transformers' own tests")
    sys.path += [str(directory), str(directory / "site")]
    modeling, configuration = (
        importlib.import_module(f"transformers_tests.test_{kind}_common") for kind in ("modeling", "configuration")
    )
    return modeling.ModelTesterMixin, configuration.ConfigTester


class HeadTester:
    """What Transformers calls a model tester: a small configuration, and inputs."""

    is_training = True
    batch_size = 2

    def __init__(self, parent, head_class, family, **fields):
        self.parent, self.head_class, self.family = parent, head_class, family
        self.image_size = image_size(family)[0]
        self.num_hidden_layers = 2
        torch.manual_seed(0)
        self._config = head_class.from_classifier(tiny_classifier(family), self_contained=True, **fields).config

    def get_config(self):
        return copy.deepcopy(self._config)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": random_pixels(self.family, self.batch_size)}


def run(mixin, config_tester, head_class, family, **fields):
    """
    Run all of it on one head and family.

    Returns:
        `dict[str, str]`: test to `"passed"`, `"skipped"`, or the traceback of its failure.
    """

    class HeadTest(mixin, unittest.TestCase):
        all_model_classes = (head_class,)
        test_resize_embeddings = False
        has_attentions = False
        _is_composite = True

        def setUp(self):
            self.model_tester = HeadTester(self, head_class, family, **fields)
            known = self.model_tester.get_config().to_dict()
            # without the classifier's own: it is wanted back with its place, which stays on the machine it is on
            names = ("feature_layers", "feature_channels", "image_mean", "image_std")
            inputs = {name: known[name] for name in names}
            self.config_tester = config_tester(
                self, config_class=head_class.config_class, has_text_modality=False, **inputs
            )

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
            if return_labels:
                inputs["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
            return inputs

        def test_config(self):
            self.config_tester.run_common_tests()

    found = {}

    class Result(unittest.TestResult):
        def startTest(self, test):
            super().startTest(test)
            found[test._testMethodName] = "passed"

        def addSkip(self, test, reason):
            found[getattr(test, "test_case", test)._testMethodName] = "skipped"

        def addFailure(self, test, err):
            found[test._testMethodName] = self._exc_info_to_string(err, test)

        addError = addFailure

        def addSubTest(self, test, subtest, err):
            if err is not None:
                found[test._testMethodName] = self._exc_info_to_string(err, test)

    unittest.TestLoader().loadTestsFromTestCase(HeadTest).run(Result())
    return found
