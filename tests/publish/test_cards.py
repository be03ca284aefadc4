"""Model cards: what they say is what was recorded, what nobody recorded is named, and their snippets run."""

import argparse
import copy
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from hub_clients import push_classifier, push_quietly, tiny_classifier, tiny_head, tiny_image, tiny_processor
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from testing_training import picture_dataset

from hf_explain import (
    HEADS,
    AutoModelForSaliency,
    FrozenClassifier,
    LCamForSaliency,
    PTameForSaliency,
    SaliencyEvaluator,
    TTameForSaliency,
    metrics,
)
from hf_explain.apps.command_line import add_options, read_options
from hf_explain.cli import COMMANDS, main
from hf_explain.evaluation.comparison import compare
from hf_explain.evaluation.results import Comparison
from hf_explain.metrics.number import Number
from hf_explain.publish.card_facts import read_measurements
from hf_explain.publish.cards import build_model_card, write_model_cards


MODEL_CARDS = Path(__file__).parents[2] / "model_cards"
KINDS = {name: head.model for name, head in HEADS.items()}


def save_classifier(directory):
    tiny_classifier().save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


def run_snippet(text, folder, monkeypatch):
    """Run a card's code where an `image.jpg` lies; what it writes is what it promises."""
    tiny_image().save(folder / "image.jpg")
    monkeypatch.chdir(folder)
    exec(compile(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), "card", "exec"), {})
    assert len(list(folder.glob("saliency_*.png"))) == 2
    for picture in folder.glob("saliency_*.png"):
        picture.unlink()


# ---- one head, on the Hub


@pytest.fixture
def saved(hub, tmp_path):
    push_classifier()
    tiny_head().save_pretrained(tmp_path / "head")
    return tmp_path / "head"


EVALUATION = {
    "explainers": {
        "lcam": {
            "auc_d": {
                "auc_d": 41.25,
                "auc_d_interval": [40.0, 42.5],
                "seconds_per_image": 3.0,
                "protocol": {"score": "agreement", "fill": "black"},
            },
            "average_drop": {"average_drop_50": 12.5, "protocol": {"percents": [50], "mask_space": "pixel"}},
            "sanity": {
                "passed": True,
                "verdict": "passes",
                "checks": {"random_weights": {"similarity": 0.25, "passed": True}},
            },
        },
        "random": {"auc_d": {"auc_d": -0.5}, "average_drop": {"average_drop_50": 80.0}},
    },
    "dataset": {"name": "user/photographs", "split": "validation"},
    "num_images": 12,
}
RECORD = {
    "dataset": "user/photographs",
    "train_split": "train",
    "epochs": 2.0,
    "global_batch_size": 32,
    "arguments": {"optimizer": "sgd", "learning_rate": 0.05},
    "versions": {"torch": "2.13.0"},
}


def test_the_card_says_what_was_recorded_and_runs(hub, saved, tmp_path, monkeypatch):
    (saved / "training_record.json").write_text(json.dumps(RECORD))
    (saved / "evaluation.json").write_text(json.dumps(EVALUATION))
    tiny_image().save(saved / "maps.png")
    push_quietly(saved, "user/head", license="apache-2.0", data_terms="Research use only.")
    card = ModelCard.load("user/head")
    data = card.data
    assert (data.base_model, data.base_model_relation) == ("user/resnet", "adapter")
    assert data.base_model_revision == hub.repo("user/resnet").head
    assert data.datasets == ["user/photographs"] and data.license == "apache-2.0"
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {"auc_d": 41.25, "average_drop": 12.5}
    assert results["average_drop"].metric_name == "Average drop at 50 %"
    places = {(result.dataset_type, result.dataset_name, result.dataset_split) for result in data.eval_results}
    assert places == {("user/photographs", "user/photographs", "validation")}
    assert "- AUC-D: score agreement; fill black\n" in card.text
    assert "- Average drop at 50 %: percents 50; mask_space pixel\n" in card.text
    assert "| AUC-D | higher | 41.25 [40.00, 42.50] | -0.50 |" in card.text
    assert "| random weights | passed: similarity 0.25 |" in card.text and "| verdict | passes |" in card.text
    assert "![Saliency maps of user/head](maps.png)" in card.text and "maps.png" in hub.files("user/head")
    assert "gkartzonika2022lcam" in card.text and "| learning rate | 0.05 |" in card.text
    assert "- The training data (user/photographs): Research use only." in card.text
    assert "## Not known" not in card.text and "## Limitations" in card.text
    run_snippet(card.text, tmp_path, monkeypatch)


def test_the_card_names_what_it_does_not_know(saved):
    card = build_model_card(saved, repo_id="user/head")
    for field in ("datasets", "license", "metrics", "eval_results"):
        assert getattr(card.data, field) is None
    unknown = card.text.split("## Not known")[1].split("##")[0]
    things = ("training data", "Terms of", "Licence", "How the head was trained", "How faithful", "Sanity checks")
    assert all(thing in unknown for thing in things)
    head = tiny_head()
    head.config.removal_weight = 1.0
    assert "(with this package's removal term; not in the paper)" in build_model_card(head).text
    head.config.ranking_weight, head.config.mask_fills, head.config.contrast = 1.0, ["black", "blur"], 2.0
    ours = "(with this package's removal term, ranking term, drawn fills and contrast of its own; not in the paper)"
    assert ours in build_model_card(head).text
    head.config.backbone = str(saved)
    card = build_model_card(head)
    assert not [field for field in card.data.to_dict() if field.startswith("base_model")]
    assert str(saved) not in str(card)
    assert "for a `resnet` image classifier, `head`, whose place on the Hub is not known" in card.text
    assert "- The classifier's place on the Hub (base_model): " in card.text
    assert f"`{head.config.backbone_fingerprint['float32']}` (float32)" in card.text
    head.config.backbone = None
    assert "- The classifier's name: the head was trained on a model in memory." in build_model_card(head).text
    local = build_model_card(saved, training_record={**RECORD, "dataset": "train.parquet"})
    assert "- The training data: only the local name `train.parquet` was recorded." in local.text
    failing = copy.deepcopy(EVALUATION)
    failing["explainers"]["lcam"]["sanity"] = {"passed": False, "verdict": "fails: no better than random maps"}
    assert (
        "- **It fails a sanity check**: no better than random maps." in build_model_card(head, evaluation=failing).text
    )


def read_command(text):
    """The options of a card's training command, as the program reads them."""
    command = re.search(r"not on the Hub yet.*?```bash\n(.*?)```", text, re.DOTALL).group(1)
    program, name, *words = shlex.split(command.replace("\\\n", " "))
    assert (program, name) == ("hf-explain", "train")
    parser = argparse.ArgumentParser()
    add_options(parser, COMMANDS[name].options)
    return read_options(COMMANDS[name].options, parser.parse_args(words))


def test_the_card_of_weights_that_are_not_on_the_hub_yet(saved):
    """It says so and names the command, whose words the command knows; the numbers stand above everything else."""
    head = TTameForSaliency.from_classifier("user/resnet", mask_fills=["black", "blur"])
    card = build_model_card(head, training_record=RECORD, evaluation=EVALUATION, explainer="lcam", unreleased=True)
    assert "**AUC-D: 41.25 [40.00, 42.50]** (higher is better), random -0.50;" in "".join(card.text.splitlines()[:5])
    read = read_command(card.text)
    assert (read.dataset, read.optimizer, read.learning_rate) == ("user/photographs", "sgd", 0.05)
    assert read.dataset_config is read.preset is None
    assert read.head_options == {"mask_fills": ["black", "blur"]}  # the rest is T-TAME's own choice
    assert "not on the Hub yet" not in build_model_card(head, training_record=RECORD).text
    own = {"lr_scheduler": "exponential", "lr_decay": 0.5, "momentum": 0.9, "max_grad_norm": None, "pct_start": 0.1}
    recorded = {**RECORD, "arguments": {**RECORD["arguments"], **own}}
    card = build_model_card(head, training_record=recorded, unreleased=True)
    read = read_command(card.text)
    assert (read.lr_scheduler, read.lr_decay, read.pct_start) == ("exponential", 0.5, 0.1)
    assert "--momentum" not in card.text and "| lr decay | 0.5 |" in card.text


def test_the_card_says_what_a_head_was_distilled_from(saved):
    head = TTameForSaliency.from_classifier("user/resnet")
    none = {"distill_method": None, "distill_steps": None, "method_options": {}}
    card = build_model_card(head, training_record={**RECORD, "arguments": {**RECORD["arguments"], **none}})
    assert "distill" not in card.text
    given = {"num_masks": 2000, "grid": [4, 4]}
    own = {"distill_method": "rise", "distill_steps": 40, "method_options": {"rise": given}}
    recorded = {**RECORD, "arguments": {**RECORD["arguments"], **own}}
    card = build_model_card(head, training_record=recorded, unreleased=True)
    assert "| distilled from | rise |\n| distilling steps | 40 |" in card.text
    assert "| distilling options | num_masks 2000, grid [4, 4] |" in card.text
    read = read_command(card.text)
    assert {name: getattr(read, name) for name in own} == own


@pytest.mark.parametrize("options", [{}, {"contrast": 3.0, "mask_space": "normalized"}])
def test_the_command_names_the_preset_and_what_is_not_of_it(saved, options):
    head = TTameForSaliency.from_classifier("user/resnet", preset="ranking", **options)
    recorded = {**RECORD, "dataset_config": "160px"}
    read = read_command(build_model_card(head, training_record=recorded, unreleased=True).text)
    assert (read.preset, read.head_options, read.dataset_config) == ("ranking", options, "160px")
    again = TTameForSaliency.from_classifier("user/resnet", preset=read.preset, **read.head_options)
    assert again.config.to_dict() == head.config.to_dict()
    card = build_model_card(head, training_record=recorded, dataset_config="full_size", unreleased=True)
    assert read_command(card.text).dataset_config == "full_size"


def test_the_command_of_a_head_over_two_classifiers_and_where_a_preset_is_refused(saved, tmp_path, monkeypatch):
    tiny_classifier(seed=3).save_pretrained(tmp_path / "small")
    head = PTameForSaliency.from_classifier("user/resnet", auxiliary=tmp_path / "small", preset="ranking")
    read = read_command(build_model_card(head, training_record=RECORD, unreleased=True).text)
    assert (read.head, read.preset, read.head_options) == ("ptame", "ranking", {"auxiliary": "small"})

    head = TTameForSaliency.from_classifier("user/resnet", ce_weight=0.5)
    monkeypatch.setitem(TTameForSaliency.presets, "ranking", {"ce_weight": -1.0})
    read = read_command(build_model_card(head, training_record=RECORD, unreleased=True).text)
    assert read.preset is None and read.head_options == {"ce_weight": 0.5}


def test_cards_that_cannot_be_made(saved):
    with pytest.raises(ValueError, match="compares several explainers .*ttame, other.*; say with `explainer`"):
        several = {"explainers": {"ttame": {"auc_d": {"auc_d": 1.0}}, "other": {"auc_d": {"auc_d": 2.0}}}}
        build_model_card(saved, evaluation=several)
    with pytest.raises(ValueError, match="`explainer` 'x' is not in the evaluation; it has lcam, random"):
        build_model_card(saved, evaluation=EVALUATION, explainer="x")
    other = {"explainers": {"lcam": {"auc_d": {"auc_d": 1.0}, "explainer": {"head_fingerprint": "0" * 32}}}}
    with pytest.raises(ValueError, match="`evaluation` measured no head with these weights; it has lcam"):
        build_model_card(saved, evaluation=other)
    with pytest.raises(ValueError, match="`explainer` 'lcam' .* other weights .fingerprint 0+., .* not this head's"):
        build_model_card(saved, evaluation=other, explainer="lcam")
    with pytest.raises(FileNotFoundError, match="`picture` 'no.png'"):
        build_model_card(saved, picture="no.png")
    with pytest.raises(FileNotFoundError, match="`evaluation` 'no.json' does not exist"):
        build_model_card(saved, evaluation="no.json")
    (saved / "evaluation.json").write_text('{"auc_d": 1.0}')
    with pytest.raises(
        ValueError, match="`evaluation` 'evaluation.json' is not an evaluation: it has no `explainers`; give"
    ):
        build_model_card(saved)


def test_the_card_of_a_single_evaluation(saved):
    """What `SaliencyEvaluator` returns is an evaluation, too, of one explainer, whose weights must be the head's."""
    head = AutoModelForSaliency.from_pretrained(saved)
    result = SaliencyEvaluator().compute(
        head, [{"image": tiny_image()}] * 2, metric_options={"auc_d": {"steps": 2}}, progress=False,
        dataset_info={"name": "user/photographs"}, return_columns=True,
    )  # fmt: skip
    card = build_model_card(saved, evaluation=json.loads(json.dumps(result)))
    (main_number,) = card.data.eval_results
    assert (main_number.metric_type, main_number.metric_value) == ("auc_d", result["auc_d"]["auc_d"])
    for title, key in (("AUC-D", "auc_d"), ("Positive AUC", "positive_auc"), ("Negative AUC", "negative_auc")):
        assert f"| {title} | " in card.text and f" {result['auc_d'][key]:.2f} " in card.text
    assert "On user/photographs, 2 images." in card.text and "| metric | better | this head |\n" in card.text
    result["explainer"]["head_fingerprint"] = "0" * 32
    with pytest.raises(ValueError, match="`evaluation` measured no head with these weights; it has lcam"):
        build_model_card(saved, evaluation=result)


def test_the_card_shows_a_metric_of_ones_own(saved):
    evaluation = copy.deepcopy(EVALUATION)
    evaluation["explainers"]["lcam"]["mine"] = {"my_number": 3.0, "aside": 4.0, "protocol": {"metric": "mine"}}
    numbers = [Number("my_number", "my number", False), Number("aside", "aside", None)]
    evaluation |= {"format": 2, "numbers": {"mine": [number.to_json() for number in numbers]}}
    table = build_model_card(saved, evaluation=evaluation).text.partition("## Evaluation")[2]
    assert "| My number | lower | 3.00 |  |" in table and "| Aside" not in table


# ---- many heads, on a classifier that is in a directory only


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two heads of a local classifier and a comparison of them, as `hf-explain evaluate` writes it."""
    root = tmp_path_factory.mktemp("measured")
    classifier = FrozenClassifier.from_pretrained(save_classifier(root / "tiny-resnet"))
    torch.manual_seed(0)
    for kind in ("lcam", "ttame"):
        KINDS[kind].from_classifier(classifier).save_pretrained(root / kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "hf_explain.evaluation.comparison_report.write_charts", lambda *args: None
        )  # drawn in test_comparison.py
        compare(
            classifier, picture_dataset(2), {"lcam-fm": root / "lcam", "ttame": root / "ttame", "gradcam": None},
            "auc_d,average_drop", output_dir=root / "results", pictures=0, progress=False, report=lambda line: None,
            sanity=True, sanity_examples=2, metric_options={"auc_d": {"steps": 2}},
            dataset_info={"name": "photographs.parquet", "split": "validation", "config": None, "revision": None},
        )  # fmt: skip
    return root


def card_command(measured, output, *more):
    heads = [str(measured / "lcam"), str(measured / "ttame")]
    results = ["--evaluation", str(measured / "results" / "results.json"), "--user", "user"]
    return ["card", *heads, "-o", str(output), *results, *more]


def test_one_command_writes_the_cards_of_many_heads(measured, tmp_path, capsys):
    (tmp_path / "cards" / "pictures").mkdir(parents=True)
    tiny_image().save(tmp_path / "cards" / "pictures" / "ttame-tiny-resnet.jpg")
    known = ["--license", "mit", "--dataset", "Photographs", "--data-terms", "Research use only."]
    known += ["--evaluation-dataset", "Photographs at 32 px (user/photographs)"]
    assert main(card_command(measured, tmp_path / "cards", *known)) == 0
    names = ["lcam-fm-tiny-resnet", "ttame-tiny-resnet"]
    paths = [tmp_path / "cards" / f"{name}.md" for name in names]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    results = json.loads((measured / "results" / "results.json").read_text())["explainers"]
    comparison = Comparison.from_json(json.loads((measured / "results" / "results.json").read_text()))
    for path, name in zip(paths, names):
        card = ModelCard.load(path)
        known_as = name.removesuffix("-tiny-resnet")
        own = results[known_as]
        recorded = read_measurements(comparison, comparison.measured[known_as])
        values = {one.metric: one.value for one in recorded}
        assert {"auc_d", "average_drop_100", "increase_in_confidence_15", "mask_area_50"} <= set(values)
        # every number in the text, with the protocol it was measured by
        for one in recorded:
            assert one.protocol["metric"] == one.metric_id and one.protocol["seed"] == 0
            shown = next(line for line in card.text.splitlines() if line.startswith(f"| {one.title} |"))
            assert float(shown.split("|")[3].split("[")[0]) == pytest.approx(one.value, abs=0.0051)
        protocols = card.text.partition("How it was measured:</summary>")[2].partition("</details>")[0]
        protocols = protocols.strip().split("\n")
        assert [line.split(":")[0].count(",") + 1 for line in protocols] == [3, 9]
        assert all("; image_size 32, 32; seed 0" in line for line in protocols)
        # and the main ones for the Hub, unrounded
        assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {
            "auc_d": values["auc_d"], "average_drop": values["average_drop_100"],
        }  # fmt: skip
        places = {(one.dataset_type, one.dataset_name, one.dataset_split) for one in card.data.eval_results}
        assert places == {("user/photographs", "Photographs at 32 px", "validation")}
        assert "On Photographs at 32 px (user/photographs), split `validation`, 2 images." in card.text
        assert "| this head | gradcam | random | centre |" in card.text
        assert f"| verdict | {own['sanity']['verdict']} |" in card.text and "| random label | " in card.text
        assert "95 % bootstrap intervals" in card.text and "AUC-D removes the pixels" in card.text
        assert "only the local name `Photographs` was" not in card.text and card.data.datasets is None
        assert (f"![Saliency maps of user/{name}](pictures/{name}.jpg)" in card.text) == (name == names[1])


def test_cards_of_heads_that_nothing_measured(measured, tmp_path, capsys):
    other = LCamForSaliency.from_classifier(measured / "tiny-resnet")
    other.save_pretrained(tmp_path / "other")
    results = str(measured / "results" / "results.json")
    argv = ["card", str(measured / "lcam"), str(tmp_path / "other"), "-o", str(tmp_path / "cards")]
    assert main([*argv, "--evaluation", results]) == 1
    assert "None of `evaluations` (" in capsys.readouterr().err and not (tmp_path / "cards").exists()
    assert main(argv) == 1  # not measured and of one kind: no name tells them apart
    assert "has two heads for the card lcam-img-tiny-resnet.md" in capsys.readouterr().err
    # a number that nobody can place is for people alone
    card = build_model_card(measured / "lcam", evaluation=results)
    assert "only the local name `photographs.parquet` was recorded" in card.text
    assert card.data.eval_results is None and "| AUC-D | higher | " in card.text
    (path,) = write_model_cards([tmp_path / "other"], tmp_path / "cards")
    assert "Its faithfulness has not been measured" in path.read_text()
    assert main(["card", str(tmp_path), "-o", str(tmp_path / "cards")]) == 1
    assert "has no config.json" in capsys.readouterr().err


# ---- cards as they are released


FIELDS = {
    "base_model", "base_model_relation", "base_model_revision", "datasets", "library_name", "license", "model-index",
    "pipeline_tag", "tags",
}  # fmt: skip


def check_front_matter(text):
    """The Hub's fields, identifiers that exist, and short enough that the title is on the first screen."""
    assert text.count("\n") <= 40
    fields = yaml.safe_load(text)
    assert set(fields) <= FIELDS and fields["pipeline_tag"] == "image-classification"
    data = ModelCardData(**copy.deepcopy(fields))  # which checks the results
    assert data.to_dict() == fields
    results = data.eval_results or []
    for dataset in (*(data.datasets or []), *(result.dataset_type for result in results)):
        validate_repo_id(dataset)
        assert dataset.count("/") == 1
    for result in results:
        assert result.task_type == data.pipeline_tag and result.dataset_name and result.dataset_split
        assert Path(metrics.path(result.metric_type)).exists()
    assert len({result.metric_type for result in results}) == len(results)


def check_released(path, hub, folder, monkeypatch, ran):
    """A card parses, says what it knows of the classifier, names no path, and its snippet runs on a stand-in."""
    card, content = ModelCard.load(path), path.read_text()
    data = yaml.safe_load(content.split("---\n")[1])
    unknown = content.partition("## Not known")[2]
    assert data["library_name"] == "hf-explain"
    assert data.get("license") or "Licence of the weights" in unknown
    if data.get("base_model") is None:
        assert "(base_model)" in unknown or "The classifier's name" in unknown
        assert "base_model_revision" not in data
    else:
        assert data["base_model_relation"] == "adapter"
        assert re.fullmatch(r"[0-9a-f]{40}", data["base_model_revision"])
    check_front_matter(content.split("---\n")[1])
    for result in card.data.eval_results or []:
        assert f"| {result.metric_name} | " in card.text
    assert not re.search(r"""(^|[\s"'`(])(/|~/|[A-Za-z]:\\)\w""", content), "a path of some machine"
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", content):
        assert (path.parent / picture).is_file()
    # The released weights are not in this repository: a tiny head of the same kind and a tiny classifier stand in,
    # under the names that the card uses.
    snippet = re.search(r"```python\n(.*?)```", content, re.DOTALL).group(1)
    names = re.findall(r'(?:model=|from_pretrained\()"(.*?)"', snippet)
    classifier, auxiliary = (re.search(rf'{name}="(.*?)"', snippet) for name in ("classifier", "auxiliary"))
    (kind,) = set(KINDS) & set(data["tags"])
    form = (kind, *snippet.split('"')[::2])
    if form in ran:
        return  # the same code but for the names
    ran.add(form)
    home = folder / f"{len(ran)}"
    home.mkdir()
    stand_in = data.get("base_model")
    if stand_in:
        save_classifier(home / "classifier")
        hub.add_repo(stand_in, {file.name: file.read_bytes() for file in (home / "classifier").iterdir()})
    else:
        stand_in = save_classifier(home / (classifier.group(1) if classifier else "classifier"))
    others = {"auxiliary": save_classifier(home / auxiliary.group(1))} if auxiliary else {}
    head = KINDS[kind].from_classifier(stand_in, **others)
    head.save_pretrained(home / names[0], self_contained=classifier is None and not data.get("base_model"))
    if "/" in names[0]:
        hub.add_repo(names[0], {file.name: file.read_bytes() for file in (home / names[0]).iterdir()})
        for file in (home / names[0]).iterdir():
            file.unlink()
        (home / names[0]).rmdir()
    run_snippet(content, home, monkeypatch)


def test_released_cards_are_whole(hub, saved, measured, tmp_path, monkeypatch):
    ran = set()
    # Cards as they are made today, so that the check itself is checked: on the Hub, and on a local classifier
    write_model_cards([measured / "lcam", measured / "ttame"], tmp_path / "made", user="user")
    build_model_card(saved, repo_id="user/head").save(tmp_path / "made" / "head.md")
    made = sorted((tmp_path / "made").glob("*.md"))
    assert len(made) == 3
    for path in [*made, *sorted(MODEL_CARDS.glob("*.md"))]:
        if path.name not in ("README.md", "findings.md", "supported_models.md"):  # no cards
            check_released(path, hub, tmp_path, monkeypatch, ran)
    assert len(ran) >= 3


def test_the_commands_of_released_cards_can_be_given():
    """Their options exist, and the fields they set are the head's; data of the Hub is named with its configuration."""
    commands = 0
    for path in sorted(MODEL_CARDS.glob("*.md")):
        if "not on the Hub yet.**" in (text := path.read_text()):
            read = read_command(text)
            head = KINDS[read.head]
            assert read.preset is None or read.preset in head.presets
            head.config_class(**read.head_options).validate_explainer()
            fields = {field.name for field in dataclasses.fields(head.config_class)}
            assert {head.config_class.renamed.get(name, name) for name in read.head_options} <= fields
            assert read.dataset == "frgfm/imagenette" and read.dataset_config == "160px"
            commands += 1
    assert commands == 17
