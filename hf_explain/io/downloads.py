"""Between here and the Hub: one commit for all files of a repository, whole files only, and errors in one sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from hf_explain.io.files import read_json_file
from hf_explain.io.paths import check_source
from hf_explain.io.transformers_names import cached_file, extract_commit_hash


logger = logging.get_logger(__name__)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
TOKEN = re.compile(rb"\b(hf|api_org)_[A-Za-z0-9]{16,}")
HUB_OPTIONS = ("cache_dir", "token", "local_files_only", "subfolder")
_UNTRUSTED = re.compile(r"'[^'\n]*' brings code of its own[^\n]*")
_WEIGHTS = "model.safetensors"
# how the Hub tags files: SHA-256 of large ones, git's SHA-1 of small ones
_HUB_TAG = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
# the checksums that a tag of this length can be
_TAGS = {64: ("sha256",), 40: ("git", "sha1"), 32: ("md5",)}
_UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_MAX_SIZE = 2**16  # the largest number a configuration may have, unless `_LIMITS` says otherwise for its key
_DEPTHS = ("depths", "num_hidden_layers", "num_layers", "num_stages", "layers")
# sizes of a text model that comes with an image model, as in CLIP
_VOCABULARY = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
# what Transformers takes for granted
_KINDS: dict[str, tuple[type, str]] = {
    "model_type": (str, "a text"),
    "num_labels": (int, "a whole number"),
    "id2label": (dict, "a dictionary"),
    "label2id": (dict, "a dictionary"),
    "architectures": (list, "a list"),
    "auto_map": (dict, "a dictionary"),
}
_LIMITS = {
    "num_labels": 2**18,
    "label2id": 2**18,
    **dict.fromkeys(_VOCABULARY, 2**21),
    **dict.fromkeys(_DEPTHS, 1000),
}


# ---- loading


def pin_revision(name: str, revision: str | None = None, **options) -> str | None:
    """
    The commit a branch or tag stands for now, so that every file of a model comes from the same one.

    Loading a commit also keeps Transformers from asking a service to convert pickled weights.

    Args:
        name (`str`): Directory or Hub id.
        revision (`str`, *optional*): Branch, tag or commit; `main` when not given.
        options: cache_dir, token, local_files_only, subfolder.

    Returns:
        `str`, *optional*: The commit; `revision` as it is for a directory.

    Raises:
        OSError: If the repository or revision does not exist or cannot be reached.
    """
    check_source(name)
    if os.path.isdir(name):
        return revision
    found = cached_file(name, "config.json", revision=revision or "main", **options)
    if found is None:
        _check_links(name, **options)
        raise FileNotFoundError(f"{name!r} has no config.json on the Hub, so it is not a Transformers model.")
    return extract_commit_hash(found, None) or revision


@contextlib.contextmanager
def whole_downloads(name: str, revision: str | None = None, what: str = "", **options) -> Iterator[str | None]:
    """
    Around loading a model: all its files come from one commit, those from the Hub's cache are compared with their
    checksums, a configuration that nothing can be built from and pickles are refused by name, and errors of the Hub
    client become one sentence.

    The client compares lengths only. A file that is proven to have arrived with the right length and the wrong bytes
    is removed from the cache, so that loading again downloads it again. The client waits for a server as long as it
    sends something every `HF_HUB_DOWNLOAD_TIMEOUT` seconds (10 by default), however little: it knows no least speed.

    Args:
        name (`str`): Directory or Hub id.
        revision (`str`, *optional*): Branch, tag or commit; `main` when not given.
        what (`str`, *optional*): What it is, in front of its name, such as `"the head "`.
        options: cache_dir, token, local_files_only, subfolder.

    Yields:
        `str`, *optional*: The commit, as of [`pin_revision`].

    Raises:
        OSError: If there is no such model, a file of it is damaged, or the Hub fails.
        ValueError: If the configuration cannot be used, or the weights are there as a pickle only.
    """
    with hub_errors(name, f"loading {what}{name!r}"):
        revision = pin_revision(name, revision, **options)
    try:
        with hub_errors(name, f"loading {name!r}"), usable_files(name):
            _check_index(name, options.get("subfolder") or "")
            read_config(name, revision, **options)
            yield revision
    except (OSError, ValueError) as error:
        check_downloads(name, revision, **options)
        names = _file_names(name, revision, **options)
        if "does not appear to have a file" in str(error) and names is not None and _WEIGHTS in names:
            where = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
            with hub_errors(name, f"loading {name!r}"):
                hf_hub_download(name, _WEIGHTS, revision=revision, **where)  # whose own error says more
        if names is None or any(entry.endswith((".safetensors", ".safetensors.index.json")) for entry in names):
            raise
        pickled = [entry for entry in names if any(Path(entry).match(pattern) for pattern in PICKLES)]
        if pickled:
            raise ValueError(
                f"{name!r} has its weights as a pickle only ({pickled[0]}), which can run code on this machine when "
                "it is loaded; ask its author for model.safetensors, or convert it where you trust it."
            ) from error
        if "config.json" not in names:
            raise
        raise FileNotFoundError(f"{name!r} has no weights: there is no model.safetensors in it.") from error


class UntrustedCodeError(ValueError):
    """A repository wants to run code of its own, and nobody said that it may."""


@contextlib.contextmanager
def no_code_of_its_own(name: str) -> Iterator[None]:
    """
    Around loading: Transformers' refusal to run a repository's code, in one sentence.

    Args:
        name (`str`): Directory or Hub id the error names.

    Raises:
        UntrustedCodeError: In the place of Transformers' `ValueError`.
    """
    try:
        yield
    except UntrustedCodeError:
        raise  # names a repository that this one needs
    except ValueError as error:
        if "`trust_remote_code=True`" not in str(error):
            raise
        said = _UNTRUSTED.search(str(error))  # Transformers' pipeline quotes the errors of what it tried
        raise UntrustedCodeError(
            said[0]
            if said
            else f"{name!r} brings code of its own, which would run on this machine, and that is refused; read the "
            "code, and if you trust it, load it with `trust_remote_code=True` (in a terminal: --trust_remote_code)."
        ) from None


@contextlib.contextmanager
def usable_files(name: str) -> Iterator[None]:
    """
    Around reading a configuration and weights that somebody else wrote: any error they cause in a library becomes one
    `ValueError`.

    Args:
        name (`str`): Directory or Hub id the error names.

    Raises:
        UntrustedCodeError: If the repository's own code would have to run.
        ValueError: In the place of errors that say nothing to a user (`KeyError`, `AttributeError`, ...).
        OSError, ValueError, TypeError, ImportError: As the library says, in one line.
    """
    try:
        with no_code_of_its_own(name):
            yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, TypeError, ImportError) as error:
        first, *more = str(error).strip().split("\n")
        if not more and "`" not in first and isinstance(error, TypeError):  # Python's own, of a value somewhere
            raise TypeError(f"{name!r} cannot be loaded with its config.json and these arguments: {first}.") from error
        if not more:
            raise
        # what follows in a library's message is advice, or a list of all it knows
        kind = next(kind for kind in (OSError, ValueError, TypeError, ImportError) if isinstance(error, kind))
        raise kind(f"{name!r} cannot be loaded: {first}") from error
    except SafetensorError as error:
        raise ValueError(f"The weights of {name!r} are not a valid safetensors file: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"The config.json of {name!r} is nested too deeply to be one.") from error
    except Exception as error:
        if torch.get_default_device().type == "meta":
            raise  # where nothing can be loaded, which Transformers says
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"The config.json and weights of {name!r} do not fit together or are broken ({type(error).__name__}: "
            f"{reason}); save or download the model again."
        ) from error


def check_sizes(values, where: str = "config.json", limit: int = _MAX_SIZE) -> None:
    """
    Refuse numbers in a configuration that no classifier has: building from them would hang or fill the memory.

    Args:
        values (`dict`, `list` or a scalar): A configuration's content.
        where (`str`, *optional*): What the error names.
        limit (`int`, *optional*): Of keys that have none of their own.

    Raises:
        ValueError: If a number is out of all proportion; the message names its place.
    """
    waiting = [(where, values, limit)]
    while waiting:
        place, value, most = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}.{key}", item, _LIMITS.get(str(key), limit)) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{place}[{index}]", item, most) for index, item in enumerate(value)]
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) <= most:
            raise ValueError(f"`{place}` is {value}, more than any image classifier has ({most}).")


def read_config(name: str, revision: str | None = None, **options) -> dict[str, Any]:
    """
    A model's config.json; one whose numbers no classifier has is refused, before anything is built from it.

    Args:
        name (`str`): Directory or Hub id.
        revision (`str`, *optional*): Commit, from [`pin_revision`].
        options: cache_dir, token, local_files_only, subfolder.

    Returns:
        `dict`: Its content; empty where there is none, which loading complains about.

    Raises:
        ValueError: If a number is out of all proportion, or the file holds no JSON object.
    """
    found = cached_file(name, "config.json", revision=revision or "main", **options)
    if found is None:
        return {}
    try:
        values = read_json_file(Path(found))
    except ValueError as error:
        raise ValueError(f"The configuration of {name!r} cannot be used: {error}") from error
    check_sizes(values)
    for key, (kind, words) in _KINDS.items():
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise ValueError(f"`config.json.{key}` of {name!r} must be {words}, got {_short(values[key])}.")
    if isinstance(labels := values.get("num_labels"), int) and labels < 1:
        raise ValueError(f"`config.json.num_labels` of {name!r} must be at least 1, got {labels}.")
    for label in values.get("id2label") or ():
        if not label.isdecimal():
            raise ValueError(
                f"`config.json.id2label` of {name!r} must have numbers of classes as keys, got {label!r}."
            )
    for key, code in (values.get("auto_map") or {}).items():
        if not isinstance(code, (str, list)):
            raise ValueError(f"`config.json.auto_map.{key}` of {name!r} must name a class, got {_short(code)}.")
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."


def check_shapes(mismatched: Iterable[tuple[str, Any, Any]], name: str, what: str) -> None:
    """
    Refuse weights that the configuration beside them does not describe.

    Args:
        mismatched (list of `(name of the tensor, shape in the file, shape by the configuration)`): From Transformers'
            loading info.
        name (`str`): Directory or Hub id.
        what (`str`): What it is, in front of its name, such as `"the head "`.

    Raises:
        ValueError: If there is one; the message names it and both shapes.
    """
    for tensor, found, described in sorted(mismatched, key=lambda entry: entry[0]):
        raise ValueError(
            f"The weights of {what}{name!r} do not fit its config.json: {tensor!r} has the shape {tuple(found)} in "
            f"the one and {tuple(described)} by the other; save or download it again."
        )


def check_downloads(name: str, revision: str | None = None, **options) -> None:
    """
    Compare a model's cached configuration and weights with the checksums they are filed under.

    The Hub tags a file with its checksum, a mirror with whatever it likes: a tag that is not a checksum of the file
    proves nothing. The repository's own listing decides then. Where that cannot be had, a file that does not parse as
    JSON or safetensors is damaged, and any other is taken as it is.

    Args:
        name (`str`): Hub id; nothing is compared for a directory.
        revision (`str`, *optional*): Commit, from [`pin_revision`].
        options: cache_dir, token, local_files_only, subfolder.

    Raises:
        OSError: If a file is proven to be damaged; it is removed from the cache.
    """
    if os.path.isdir(name):
        return
    _check_links(name, **options)
    subfolder, cache_dir = options.get("subfolder") or "", options.get("cache_dir")
    index = _cached(name, revision, subfolder, cache_dir, f"{_WEIGHTS}.index.json")
    files = ["config.json", _WEIGHTS]
    if index is not None:
        with contextlib.suppress(ValueError, AttributeError, TypeError):  # a damaged index is refused on loading
            files += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    cached = {file: _cached(name, revision, subfolder, cache_dir, file) for file in files}
    doubtful = {file: path.resolve() for file, path in cached.items() if path is not None and not _is_tagged(path)}
    if not doubtful:
        return
    listed = _listed(name, revision, **options)
    for file, blob in doubtful.items():
        kind, checksum = listed.get("/".join(filter(None, (subfolder, file))), (None, None))
        if not _is_readable(file, blob) if kind is None else _checksum(blob, kind) != checksum:
            blob.unlink(missing_ok=True)
            raise OSError(
                f"{file!r} of {name!r} was damaged on its way from the Hub "
                f"({'it cannot be read' if kind is None else 'its checksum is another'}); it has been removed from "
                "the cache, load again to download it again."
            )
        if kind is None and _HUB_TAG.fullmatch(blob.name):
            logger.warning_once(
                f"{file!r} of {name!r} is filed under a checksum that is not its own, and the server's list of "
                "checksums could not be had: it comes from a mirror that tags files in another way, or it is damaged."
            )


def _check_index(name: str, subfolder: str) -> None:
    """A directory's list of weight files must not lead out of it; the Hub client holds its cache to the same."""
    path = Path(name, subfolder, f"{_WEIGHTS}.index.json")
    if not path.is_file():
        return
    for file in set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()):
        if Path(file).name != file:
            raise ValueError(
                f"{path.name} of {name!r} names a file outside its directory, {file!r}, which is refused."
            )


def _cached(name: str, revision: str | None, subfolder: str, cache_dir, file: str) -> Path | None:
    try:
        found = try_to_load_from_cache(
            name, "/".join(filter(None, (subfolder, file))), cache_dir=cache_dir, revision=revision
        )
    except HFValidationError:
        return None  # no Hub id: loading says so
    return Path(found) if isinstance(found, str) and os.path.exists(found) else None


def _check_links(name: str, **options) -> None:
    """The cache files by tags, so an empty one leads to the folder of all files, for good: nobody finds the file."""
    cache = Path(options.get("cache_dir") or constants.HF_HUB_CACHE)
    for link in cache.joinpath(repo_folder_name(repo_id=name, repo_type="model")).glob("snapshots/*/**/*"):
        if link.is_symlink() and link.is_dir():
            raise OSError(
                f"{link.name!r} of {name!r} cannot be kept, because the server gives it an empty ETag: ask whoever "
                f"runs the server or a proxy before it for one, and then remove the link {str(link)!r}."
            )


def _is_tagged(path: Path) -> bool:
    """Whether the tag of a cached file, which the cache names it after, is a checksum of its bytes."""
    blob = path.resolve()
    if blob.parent.name != "blobs":
        return True  # a cache without symbolic links keeps no tags
    tag = blob.name.lower()
    return any(_checksum(blob, kind) == tag for kind in _TAGS.get(len(tag), ()))


def _listed(name: str, revision: str | None, **options) -> dict[str, tuple[str, str]]:
    """Kind and value of the checksums that the repository lists, by file; empty where it lists none."""
    if options.get("local_files_only") or constants.HF_HUB_OFFLINE:
        return {}
    try:
        with hub_errors(name, f"listing {name!r}"):
            info = HfApi(token=options.get("token")).model_info(
                name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        entries = {
            entry.rfilename: ("sha256", entry.lfs.sha256) if entry.lfs else ("git", entry.blob_id)
            for entry in info.siblings or ()
        }
        return {file: (kind, value) for file, (kind, value) in entries.items() if value and _HUB_TAG.fullmatch(value)}
    except Exception as error:  # a mirror's listing may be anything
        logger.debug("The files of %s could not be listed: %s", name, redact(str(error)))
        return {}


def _is_readable(file: str, blob: Path) -> bool:
    try:
        if file.endswith(".json"):
            json.loads(blob.read_bytes())
        else:
            with safe_open(blob, "pt"):  # compares the lengths of the tensors with that of the file
                pass
    except (ValueError, SafetensorError):
        return False
    except RecursionError:
        pass  # that is how it was written
    return True


def _checksum(path: Path, kind: str) -> str:
    """A checksum of `hashlib`, or `git`: SHA-1 with the length in front."""
    digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _file_names(name: str, revision: str | None, **options) -> list[str] | None:
    """The files of a model, or `None` where they cannot be listed. Only asked after loading failed."""
    subfolder = options.get("subfolder") or ""
    if os.path.isdir(name):
        return sorted(entry.name for entry in Path(name, subfolder).glob("*"))
    if options.get("local_files_only"):
        return None
    try:
        with hub_errors(name, f"listing {name!r}"):
            listed = HfApi(token=options.get("token")).list_repo_files(name, revision=revision)
    except (OSError, HFValidationError):
        return None  # asked only to explain an error better; that error is raised anyway
    prefix = f"{subfolder}/" if subfolder else ""
    return [entry.removeprefix(prefix) for entry in listed if entry.startswith(prefix)]


# ---- errors


def redact(text: str) -> str:
    """A text without the Hub tokens in it."""
    for secret in filter(None, {get_token(), os.environ.get("HF_TOKEN")}):
        text = text.replace(secret, "hf_***")
    return TOKEN.sub(b"hf_***", text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def hub_errors(repo_id: str, doing: str, again: str = "Try again later.") -> Iterator[None]:
    """
    Turn what the Hub client raises into one sentence of a built-in error type, without tokens in it.

    Args:
        repo_id (`str`): The repository the sentence names.
        doing (`str`): What is going on, for example `"publishing to 'me/head'"`.
        again (`str`, *optional*): What to do where the Hub or the network failed.

    Raises:
        FileNotFoundError: If the repository or revision does not exist.
        PermissionError: If the token is missing, wrong or may not.
        ConnectionError: If the Hub fails or cannot be reached.
        OSError: If the Hub refuses for another reason.
    """
    try:
        yield
    except Exception as error:
        translated = _translate(error, repo_id, doing, again)
        if translated is None:
            raise
        # without its cause: the client's errors carry the request, and with it the token
        raise translated from None


def _translate(error: BaseException, repo_id: str, doing: str, again: str) -> OSError | None:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    # `runs/head` may be meant as a directory: say that there is none
    nowhere = f" There is no directory {repo_id!r} here either." if doing.startswith("loading") else ""
    http = next((entry for entry in chain if isinstance(entry, HfHubHTTPError)), None)
    if http is None:
        for entry in chain:
            if isinstance(entry, OSError) and entry.errno in _UNWRITABLE and not os.path.isdir(repo_id):
                place = f": {entry.filename}" if entry.filename else ""
                return OSError(
                    f"The Hub's cache on this machine could not be written while {doing} ({entry.strerror}{place}); "
                    "free some space, or set HF_HOME to a directory that can be written."
                )
        if unlabelled := next((entry for entry in chain if isinstance(entry, FileMetadataError)), None):
            reason = redact(str(unlabelled)).rstrip(".")
            return OSError(
                f"The server leaves out what the Hub says of its files, while {doing} ({reason}): ask whoever runs it "
                "or a proxy before it, or unset HF_ENDPOINT."
            )
        transport = sys.modules[type(get_session()).__module__.split(".")[0]].HTTPError  # httpx or httpx2
        lost = next((entry for entry in chain if isinstance(entry, (transport, ConnectionError, TimeoutError))), None)
        if lost is None:
            return None
        reason = redact(str(lost)) or type(lost).__name__
        return ConnectionError(f"The Hub could not be reached while {doing} ({reason}). {again}{nowhere}")
    status = http.response.status_code if http.response is not None else 0
    said = redact(getattr(http, "server_message", None) or "")
    said = f": {said}" if said else ""
    if isinstance(http, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id!r} has no such branch, tag or commit ({doing}).")
    if isinstance(http, GatedRepoError):
        return PermissionError(
            f"{repo_id!r} is gated ({doing}): ask for access on its page on the Hub, then sign in with "
            "`hf auth login`."
        )
    if "Invalid credentials" in said:
        return PermissionError(f"The Hub does not accept this token ({doing}): sign in with `hf auth login`.")
    if isinstance(http, RepositoryNotFoundError):
        return FileNotFoundError(
            f"{repo_id!r} does not exist on the Hub, or is private and this token may not see it ({doing}): check the "
            f"name, sign in with `hf auth login`, or pass token=.{nowhere}"
        )
    if status == 401:
        return PermissionError(
            f"The Hub does not know who is {doing}: sign in with `hf auth login`, set HF_TOKEN, or pass token=."
        )
    if status == 403:
        return PermissionError(f"This token has no permission for {doing}{said}.")
    if status == 429:
        wait = http.response.headers.get("Retry-After")
        wait = f"; wait {wait} s" if wait else ""
        return ConnectionError(f"The Hub limits the rate of requests while {doing}{wait}. {again}")
    if status == 412:
        return ConnectionError(f"Somebody else changed {repo_id!r} at the same time. {again}")
    if status >= 500:
        return ConnectionError(f"The Hub failed with error {status} while {doing}. {again}")
    return OSError(f"The Hub refused {doing} with error {status}{said}.")
