"""What is said of a model that cannot be loaded, by every command and by the pipeline; and whose code may run."""

import json
import shutil
from importlib import util

import pytest
from datasets import ClassLabel, Dataset, Features, Image
from hub_clients import FOREIGN_CODE, tiny_classifier, tiny_head, tiny_image, tiny_processor
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_explain import SaliencyPipeline
from hf_explain.cli import main
from hf_explain.pipeline import load_pipeline


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A classifier, a head of it, and pictures."""
    folder = tmp_path_factory.mktemp("honest")
    tiny_classifier().save_pretrained(folder / "classifier")
    tiny_processor().save_pretrained(folder / "classifier")
    tiny_head(folder / "classifier").save_pretrained(folder / "head")
    tiny_image().save(folder / "image.png")
    features = Features({"image": Image(), "label": ClassLabel(names=["tench", "church", "parachute"])})
    rows = {"image": [tiny_image()] * 2, "label": [0, 1]}
    Dataset.from_dict(rows, features).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture
def broken(honest, tmp_path):
    return shutil.copytree(honest / "classifier", tmp_path / "classifier")


def commands(honest, classifier, output):
    """Every command that loads models, with a classifier."""
    data = ["--dataset", str(honest / "train.parquet"), "--split", "train"]
    output, model = str(output), ["--model", str(classifier)]
    return {
        "explain": [str(honest / "image.png"), *model, "-o", f"{output}.png"],
        "evaluate": ["--classifier", str(classifier), "--explainers", "gradcam", "--max_examples", "2",
                     "--metrics", "average_drop", "--pictures", "0", *data, "-o", output],
        "errors": [*model, *data, "-o", output],
        "export": [*model, *data, "-o", output],
        "train": ["--classifier", str(classifier), *data, "--output_dir", output, "--max_steps", "1",
                  "--per_device_batch_size", "2", "--dataloader_num_workers", "0"],
        "demo": model,
    }  # fmt: skip


NO_GRADIO = pytest.mark.skipif(util.find_spec("gradio") is None, reason="the demo needs Gradio")
COMMANDS = ("explain", "evaluate", "errors", "export", "train", pytest.param("demo", marks=NO_GRADIO))


# ---- what cannot be loaded


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_tensors_are_named_by_every_command(honest, broken, tmp_path, capsys, command):
    tensors = load_file(broken / "model.safetensors")
    del tensors["classifier.1.bias"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert main([command, *commands(honest, broken, tmp_path / "out")[command]]) == 1
    *before, said = capsys.readouterr().err.strip().splitlines()
    assert said == (
        f"hf-explain {command}: The weights of the classifier {str(broken)!r} lack 1 of its tensors "
        "(classifier.1.bias); it was saved incompletely or as another kind of model: save or download it again, as an "
        "image classifier."
    )
    assert "Traceback" not in "".join(before)


def without(name):
    return lambda folder: (folder / name).unlink()


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def configured(**fields):
    def change(folder):
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**described, **fields}))

    return change


BROKEN = {
    "no directory": (shutil.rmtree, "does not exist"),
    "no configuration": (without("config.json"), "config.json"),
    "no weights": (without("model.safetensors"), "no weights"),
    "no image processor": (without("preprocessor_config.json"), "no image processor"),
    "weights that are none": (written("model.safetensors", b"{}" * 40), "not a valid safetensors file"),
    "a configuration that is no JSON": (written("config.json", b"{"), "not valid JSON"),
    "a kind nobody knows": (configured(model_type="evil"), "model type `evil`"),
    "another kind of model": (configured(model_type="bert"), "model type 'bert', and image classifiers only"),
    "another shape": (
        configured(hidden_sizes=[8, 24]),
        "config.json: 'classifier.1.weight' has the shape (3, 16) in the one and (3, 24)",
    ),
    "a field of another type": (configured(depths="many"), "depths"),
}


@pytest.mark.parametrize(("change", "cause"), BROKEN.values(), ids=BROKEN)
def test_loading_errors_are_one_sentence_with_the_cause(honest, broken, tmp_path, capsys, change, cause):
    change(broken)
    name = str(broken)
    with pytest.raises((ValueError, OSError)) as refusal:
        load_pipeline(name)
    assert cause in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 600
    assert main(["explain", *commands(honest, name, tmp_path / "out")["explain"]]) == 1
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1] == f"hf-explain explain: {refusal.value}" and "Traceback" not in error
    with pytest.raises(Exception) as through:  # its first step, reading the configuration, is Transformers' alone
        pipeline("saliency", model=name)
    assert "Traceback" not in str(through.value) and str(through.value).count("\n") < 3


def test_the_pipeline_raises_what_the_loader_raised(honest, tmp_path):
    """Not one message with the tracebacks of every class that Transformers has tried."""
    head = shutil.copytree(honest / "head", tmp_path / "head")
    described = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**described, "backbone": str(tmp_path / "gone")}))
    with pytest.raises(FileNotFoundError, match=r"^The classifier directory '.*gone' that the head '.*head' was .*"):
        pipeline("saliency", model=str(head))


# ---- code of a repository


@pytest.fixture
def own(honest, tmp_path):
    """A classifier of a repository's own class, with an image processor of its own; its code leaves a trace."""
    place = shutil.copytree(honest / "classifier", tmp_path / f"own-{tmp_path.name}")
    code = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    configured(model_type="evil", auto_map=code)(place)
    described = json.loads((place / "preprocessor_config.json").read_text())
    described |= {"image_processor_type": "Processor", "auto_map": {"AutoImageProcessor": "own.Processor"}}
    (place / "preprocessor_config.json").write_text(json.dumps(described))
    (place / "own.py").write_text(FOREIGN_CODE.format(canary=str(tmp_path / "canary")))
    return place


def test_a_classifier_of_a_repositorys_own_class(own, tmp_path):
    pipe = pipeline("saliency", model=str(own), trust_remote_code=True)
    assert isinstance(pipe, SaliencyPipeline) and type(pipe.classifier.model).__name__ == "Model"
    assert type(pipe.image_processor).__name__ == "Processor" and (tmp_path / "canary").exists()
    assert pipe(tiny_image())[0]["saliency_map"].max() == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_code_runs_where_the_command_is_told_so(honest, own, tmp_path, capsys, monkeypatch, command):
    shown = []
    monkeypatch.setattr("hf_explain.apps.demo.build_app", lambda demo, examples: shown.append(demo) or App())
    words = [command, *commands(honest, own, tmp_path / "out")[command]]
    for refused in ([], ["--no_trust_remote_code"]):
        assert main(words + refused) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{str(own)!r} brings code of its own" in said and "--trust_remote_code" in said
        assert not (tmp_path / "canary").exists()
    assert main([*words, "--trust-remote-code"]) == 0, capsys.readouterr().err
    assert (tmp_path / "canary").exists() and len(shown) == (command == "demo")


class App:
    """Starts no server."""

    guard = None

    def launch(self, **options):
        pass

    def close(self):
        pass


def test_a_head_with_code_beside_it_is_the_packages_own(honest, tmp_path):
    """The copy is for people without the package, also where it is trusted."""
    shutil.copytree(honest / "classifier", tmp_path / "classifier")  # which the head names by the way from its folder
    head = shutil.copytree(honest / "head", tmp_path / "head")
    code = {"AutoConfig": "copy.Config", "AutoModel": "copy.Model"}
    (head / "config.json").write_text(json.dumps({**json.loads((head / "config.json").read_text()), "auto_map": code}))
    (head / "copy.py").write_text("raise SystemExit('the copy was run')")
    assert load_pipeline(head, trust_remote_code=True).head is not None
