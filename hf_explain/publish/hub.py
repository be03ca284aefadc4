"""Publishing heads and metrics on the Hub: what goes up is checked and listed first, and goes up in one commit."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from safetensors import SafetensorError, safe_open

from hf_explain.io.downloads import PICKLES, TOKEN, hub_errors
from hf_explain.io.files import RECORD_FILE
from hf_explain.io.paths import is_hub_id, is_local_path
from hf_explain.publish.card_facts import read_config, read_json
from hf_explain.publish.cards import build_model_card
from hf_explain.publish.remote_code import auto_map, remote_code_files
from hf_explain.registry import HEADS


WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
# What a head's repository is made of; anything else in the directory is listed, and not uploaded.
PUBLISHED = (
    "config.json",
    *WEIGHTS,
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "LICENSE*",
    RECORD_FILE,
    "evaluation*.json",
    "*.png",
    "*.jpg",
    "*.jpeg",
    "*.webp",
)
METRICS = Path(__file__).parents[1] / "metrics"
_REMOVED = "(local path removed)"
_CLASSES = ("id2label", "label2id")


@dataclass
class PushedFile:
    """One file of a commit: its name in the repository, its bytes, and what was done to it."""

    name: str
    content: bytes
    note: str = ""


@dataclass
class PushPlan:
    """
    What a push uploads and, afterwards, where it went.

    Args:
        repo_id (`str`): The repository.
        files (`list[PushedFile]`): Everything that is uploaded, in one commit.
        left_out (`list[str]`): Names in the directory that are not uploaded.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"space"`.
        private (`bool`, *optional*, defaults to `False`): Whether a new repository is private.
        create_pr (`bool`, *optional*, defaults to `False`): Whether it becomes a pull request.
        commit (`str`, *optional*): The commit, once pushed.
        url (`str`, *optional*): Where to look at it, once pushed.
    """

    repo_id: str
    files: list[PushedFile]
    left_out: list[str] = field(default_factory=list)
    repo_type: str = "model"
    private: bool = False
    create_pr: bool = False
    commit: str | None = None
    url: str | None = None

    def __str__(self) -> str:
        where = f"{self.repo_type} {self.repo_id}" + (" (private if new)" if self.private else "")
        where += ", as a pull request" if self.create_pr else ""
        lines = [f"To {where}, in one commit:"]
        width = max((len(file.name) for file in self.files), default=0)
        for file in self.files:
            note = f"  {file.note}" if file.note else ""
            lines.append(f"  {file.name:<{width}}  {_size(len(file.content)):>9}{note}")
        if self.left_out:
            lines.append(f"Not uploaded: {', '.join(self.left_out)}")
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- pushing


def push_explainer(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    code: str | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] | None = print,
    **card_fields,
) -> PushPlan:
    """
    Publish a trained head: weights, configuration, image processor, card, records and pictures in one commit.

    The list of files is reported before anything is sent. A card is written where the directory has none.

    Args:
        directory (`str` or `os.PathLike`): What a head's `save_pretrained`, or training, wrote.
        repo_id (`str`): `user/name`; created where missing.
        private (`bool`, *optional*, defaults to `False`): Make a new repository private.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request on an existing repository instead.
        revision (`str`, *optional*): Branch to commit to; `main` when not given.
        token (`str`, *optional*): Hub token; the one signed in with when not given.
        code (`str`, *optional*): `None` uploads no code (users `pip install hf-explain`); `"stub"` adds a file that
            imports it and says so where it is missing; `"self-contained"` adds a flat copy of the code that works with
            Transformers alone. Both need `trust_remote_code=True` only from users without the package.
        dry_run (`bool`, *optional*, defaults to `False`): Check and report, send nothing.
        report (`Callable[[str], None]`, *optional*): Receives the list; `print` by default.
        card_fields: Passed to [`build_model_card`] where the directory has no README.md.

    Returns:
        [`PushPlan`], with `commit` and `url` filled in after a push.

    Raises:
        FileNotFoundError: If the directory, its config or its weights are missing, or the repository for a pull
            request or branch.
        ValueError: If something in it must not be published: a pickle, a token, a local path in the configuration, a
            classifier without a pinned revision, unreadable weights, a broken card.
        PermissionError: If the token is missing, wrong, or may not write there.
        ConnectionError: If the Hub fails or cannot be reached; nothing is published then, and it can be repeated.
    """
    plan = plan_explainer(directory, repo_id, private=private, create_pr=create_pr, code=code, **card_fields)
    return _push(plan, revision, token, dry_run, report, f"Upload {plan.files[0].note or 'explainer head'}")


def plan_explainer(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    code: str | None = None,
    **card_fields,
) -> PushPlan:
    """
    What [`push_explainer`] would upload, checked, without touching the network.

    Args and Raises: As there.
    """
    check_repo_id(repo_id)
    if code not in (None, "stub", "self-contained"):
        raise ValueError(f"`code` must be None, 'stub' or 'self-contained', got {code!r}.")
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"`directory` {os.fspath(directory)!r} does not exist; give a saved head's directory.")
    config = read_config(path)
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    pickles = [name for name in names if _matches(name, PICKLES)]
    if pickles:
        raise ValueError(
            f"{pickles[0]!r} in {path.name!r} is a pickle, which can run code on whoever loads it; remove it, weights "
            "are published as safetensors only (save_pretrained writes them)."
        )
    _check_classifiers(config)
    chosen = [name for name in names if _matches(name, PUBLISHED)]
    left_out = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir() if entry.name not in chosen)
    if not any(_matches(name, WEIGHTS) for name in chosen):
        raise FileNotFoundError(f"{path.name!r} has no model.safetensors; save the head there first.")
    files = []
    for name in chosen:
        content = (path / name).read_bytes()
        if _matches(name, WEIGHTS):
            _check_weights(path / name)
            files.append(PushedFile(name, content, "weights"))
        elif name == "config.json":
            files.append(PushedFile(name, _dump(_config_with_code(config, code)), "configuration"))
        elif name.endswith(".json"):
            value, removed = _without_paths(read_json(path / name, name))
            note = f"{len(removed)} local path{'s' * (len(removed) > 1)} removed" if removed else ""
            files.append(PushedFile(name, _dump(value) if removed else content, note))
        else:
            files.append(PushedFile(name, content))
    if "README.md" not in chosen:
        pictures = [name for name in chosen if name.endswith((".png", ".jpg", ".jpeg", ".webp"))]
        card_fields.setdefault("picture", pictures[0] if pictures else None)
        card = build_model_card(path, repo_id=repo_id, **card_fields)
        files.append(PushedFile("README.md", str(card).encode(), "model card, written now"))
    elif card_fields:
        raise ValueError(
            f"{path.name!r} has a README.md, so {', '.join(sorted(card_fields))} would be ignored; remove one."
        )
    files += [PushedFile(name, text.encode(), "code") for name, text in remote_code_files(config, code).items()]
    check_contents(files, path)
    return PushPlan(repo_id, files, left_out, private=private, create_pr=create_pr)


def push_metric(
    name: str,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] | None = print,
) -> PushPlan:
    """
    Publish one of the package's metrics as a Space, where `evaluate.load(repo_id)` finds it.

    Args:
        name (`str`): A directory of `hf_explain/metrics`, for example `"auc_d"`.
        repo_id (`str`): `user/name`; `evaluate` looks for `name.py` in there, so it should end in the metric's name.
        private, token, dry_run, report: As for [`push_explainer`].

    Returns:
        [`PushPlan`].

    Raises:
        ValueError: If there is no such metric, or `repo_id` does not end in its name.
        PermissionError, ConnectionError: As for [`push_explainer`].
    """
    check_repo_id(repo_id)
    known = sorted(entry.name for entry in METRICS.iterdir() if (entry / f"{entry.name}.py").is_file())
    if name not in known:
        raise ValueError(f"`name` {name!r} is not a metric of this package; it has {', '.join(known) or 'none'}.")
    if repo_id.split("/")[-1] != name:
        raise ValueError(f"`repo_id` {repo_id!r} must end in /{name}: evaluate.load looks for {name}.py in it.")
    entries = sorted(
        entry for entry in (METRICS / name).iterdir() if entry.suffix in (".py", ".md") and entry.is_file()
    )
    files = [PushedFile(entry.name, entry.read_bytes()) for entry in entries if entry.name != "__init__.py"]
    files.append(PushedFile("requirements.txt", b"hf-explain\nevaluate\n"))
    check_contents(files, METRICS)
    plan = PushPlan(repo_id, files, repo_type="space", private=private)
    return _push(plan, None, token, dry_run, report, f"Upload the metric {name}")


def _push(plan: PushPlan, revision, token, dry_run: bool, report, message: str) -> PushPlan:
    if report is not None:
        report(str(plan))
    if dry_run:
        return plan
    api = HfApi(token=token, library_name="hf-explain")
    again = "Nothing was published; it can be repeated as it is."
    with hub_errors(plan.repo_id, f"publishing to {plan.repo_id!r}", again):
        if not plan.create_pr:
            sdk = "gradio" if plan.repo_type == "space" else None
            api.create_repo(
                plan.repo_id, repo_type=plan.repo_type, private=plan.private or None, exist_ok=True, space_sdk=sdk
            )
        if revision is not None and revision != "main" and not plan.create_pr:
            api.create_branch(plan.repo_id, repo_type=plan.repo_type, branch=revision, exist_ok=True)
        info = api.create_commit(
            plan.repo_id,
            [CommitOperationAdd(file.name, file.content) for file in plan.files],
            commit_message=message,
            repo_type=plan.repo_type,
            revision=revision,
            create_pr=plan.create_pr,
        )
    plan.commit, plan.url = info.oid, info.pr_url or info.commit_url
    if report is not None:
        report(f"Published: {plan.url}")
    return plan


# ------------------------------------------------------------------------------------------------------------ checking


def check_repo_id(repo_id: str) -> None:
    """
    Refuse what cannot be a repository on the Hub.

    Raises:
        ValueError: If it is not `user/name`.
    """
    if "/" not in repo_id or not is_hub_id(repo_id):
        raise ValueError(f"`repo_id` {repo_id!r} is not a repository on the Hub; write user/name.")


def check_contents(files: list[PushedFile], directory: Path) -> None:
    """
    Refuse tokens anywhere, local paths in the configuration and this machine's directories in any text.

    Raises:
        ValueError: With the file's name and never the secret itself.
    """
    secrets = {value.encode() for value in (get_token(), os.environ.get("HF_TOKEN")) if value}
    own = {str(directory.resolve()), str(Path.home()), os.getcwd()}
    places = {place.encode() for place in own if len(Path(place).parts) > 2 or place == str(Path.home())} - {b"/"}
    for file in files:
        if TOKEN.search(file.content) or any(secret in file.content for secret in secrets):
            raise ValueError(f"{file.name!r} contains a Hub token; remove it, and revoke the token if it was shared.")
        if file.name == "config.json":
            _, found = _without_paths(json.loads(file.content))
            if found:
                raise ValueError(
                    f"config.json names a local path in `{found[0]}`; it would mean nothing to others, so set it to a "
                    "Hub id or remove it."
                )
        if file.name.endswith((".md", ".json", ".py", ".txt")) and any(place in file.content for place in places):
            raise ValueError(f"{file.name!r} contains a path of this machine; remove it before publishing.")


def _check_classifiers(config: dict[str, Any]) -> None:
    if config.get("self_contained"):
        return
    for name in HEADS[config["model_type"]].config.classifiers:
        source, revision = config.get(name), config.get(f"{name}_revision")
        words = "classifier" if name == "backbone" else f"{name} classifier"
        if not source:
            raise ValueError(
                f"config.json names no {words} (`{name}`), so nobody could load this head; save it with "
                "self_contained=True, or train it on a classifier from the Hub."
            )
        if not is_hub_id(source):
            raise ValueError(
                f"The head's {words} (`{name}`) is a local directory, which nobody else has; push the classifier "
                f"first and set config.{name} and config.{name}_revision to where it is, or save the head with "
                "self_contained=True."
            )
        if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
            raise ValueError(
                f"The head's {words} {source!r} is not pinned: `{name}_revision` is {revision!r} instead of a commit "
                "of 40 digits; load the classifier from the Hub before attaching it, or set the commit."
            )


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as weights:
            empty = not list(weights.keys())
    except SafetensorError as error:
        raise ValueError(f"{path.name!r} is not a valid safetensors file ({error}); save the head again.") from error
    if empty:
        raise ValueError(f"{path.name!r} holds no weights; save the head again.")


def _config_with_code(config: dict[str, Any], code: str | None) -> dict[str, Any]:
    config = {key: value for key, value in config.items() if key not in ("auto_map", "custom_pipelines")}
    # A self-contained head brings its classifiers; the local directories they came from stay private.
    for name in HEADS[config["model_type"]].config.classifiers:
        if config.get("self_contained") and config.get(name) and not is_hub_id(config[name]):
            config[name] = None
    if code is not None:
        config["auto_map"] = auto_map(config, code)
    return config


def _without_paths(value: Any, where: str = "") -> tuple[Any, list[str]]:
    """A JSON value with its local paths replaced, and where they were; names of classes may look like paths."""
    if where.rpartition(".")[2] in _CLASSES:
        return value, []
    if isinstance(value, dict):
        parts = {key: _without_paths(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
        return {key: part[0] for key, part in parts.items()}, [place for _, found in parts.values() for place in found]
    if isinstance(value, list):
        items = [_without_paths(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return [item for item, _ in items], [place for _, found in items for place in found]
    if isinstance(value, str) and is_local_path(value) and len(value) > 1:
        return _REMOVED, [where]
    return value, []


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
