"""What a head owes to its classifiers: made for them, loaded with them, saved without them, which stay as they are."""

from __future__ import annotations

import copy
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_explain.classifiers.fingerprint import fingerprints, is_quantized, matches
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.zero_shot import texts_of
from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.io.downloads import HUB_OPTIONS, check_downloads, check_shapes, usable_files, whole_downloads
from hf_explain.io.files import write_directory
from hf_explain.io.image_processor import load_image_processor
from hf_explain.io.paths import base_name, is_hub_id, portable_name, resolved_name


logger = logging.get_logger(__name__)
# What `from_pretrained` is told about loading that the classifier must hear too
_SHARED_LOADING = (
    "dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_buffers", "token", "cache_dir",
    "local_files_only", "trust_remote_code",
)  # fmt: skip
# And what is the classifier's alone
_CLASSIFIER_LOADING = ("attn_implementation", "quantization_config")
_TEXTS = ("candidate_labels", "hypothesis_template")


class BoundPreTrainedModel(PreTrainedModel):
    """
    A model around frozen classifiers, which its configuration names with a fingerprint of their weights.

    Subclasses say which layers they tap and which fields of the configuration follow from the classifier.
    """

    config_class = ExplainerConfig
    config: ExplainerConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # fields of the config that go together, by name
    base_model_prefix = "explainer"
    main_input_name = "pixel_values"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # what the classifier supports
    _keys_to_ignore_on_load_unexpected = [r"^backbone\."]
    _no_split_modules = ["FrozenClassifier"]

    def __init__(self, config: ExplainerConfig):
        super().__init__(config)
        if config.feature_channels is None:
            raise ValueError(
                f"The configuration of {type(self).__name__} names no tapped layers and their channels, so it belongs "
                f"to no head; make a new head for a classifier with {type(self).__name__}.from_classifier(classifier)."
            )
        self.backbone: FrozenClassifier | None = None
        for name in config.classifiers:
            nested = getattr(config, f"{name}_config")
            if config.self_contained and nested is None:
                raise ValueError(f"`self_contained` is true but the config has no `{name}_config` to build it from.")
            setattr(self, name, FrozenClassifier.from_config(nested) if config.self_contained else None)
        self.register_state_dict_post_hook(_drop_classifiers)
        self.register_load_state_dict_post_hook(_forget_classifiers)

    # ------------------------------------------------------------------ what follows from the classifier

    @classmethod
    def default_feature_layers(cls, classifier: FrozenClassifier, config: Any) -> list[str]:
        """Layers to tap where the config, of the head's own class, names none."""
        return [classifier.default_layer]

    @classmethod
    def take_classifiers(
        cls, classifier: FrozenClassifier, fields: dict[str, Any], loading: dict[str, Any]
    ) -> dict[str, FrozenClassifier]:
        """
        The frozen classifiers of a new head, by the names of `config_class.classifiers`. Heads with others beside the
        explained one take them out of `fields`, load them with `loading`, and may put in what depends on several.
        """
        return {"backbone": classifier}

    @classmethod
    def published_fields(cls, classifier: FrozenClassifier) -> dict[str, Any]:
        """Without a preset: fields whose published value depends on the classifier and differs from the default."""
        return {}

    @classmethod
    def preset_fields(cls, preset: str, classifier: FrozenClassifier) -> dict[str, Any]:
        """The fields a preset of this head stands for; heads add what depends on the classifier."""
        if preset not in cls.presets:
            known = " and ".join(map(repr, cls.presets)) or "none, so leave it out"
            raise ValueError(f"`preset` {preset!r} does not exist; {cls.__name__} has {known}.")
        return copy.deepcopy(cls.presets[preset])  # a config is its owner's to change

    @classmethod
    def preset_taps(cls, preset: str, tapped: FrozenClassifier) -> dict[str, Any]:
        """And the fields that depend on the classifier whose layers are tapped."""
        return {}

    @classmethod
    def complete_taps(cls, tapped: FrozenClassifier, config: Any) -> None:
        """As [`~BoundPreTrainedModel.complete_config`], by the classifier whose layers are tapped."""

    @classmethod
    def complete_config(cls, classifier: FrozenClassifier, config: Any) -> None:
        """
        Fill in, in place, fields of the config (of the head's own class) whose default depends on the classifier; the
        tapped layers are known by then.
        """

    # ------------------------------------------------------------------ the classifiers stay as they are

    @property
    def attached(self) -> FrozenClassifier:
        """
        The classifier.

        Raises:
            ValueError: If the head has none yet.
        """
        if self.backbone is None:
            raise ValueError(
                f"{type(self).__name__} has no classifier; build it with from_classifier or from_pretrained, or call "
                "attach(classifier)."
            )
        return self.backbone

    @property
    def frozen(self) -> dict[str, FrozenClassifier]:
        """The classifiers it is made around, as far as it has them, by the names of `config.classifiers`."""
        found = {name: getattr(self, name) for name in self.config.classifiers}
        return {name: classifier for name, classifier in found.items() if classifier is not None}

    def train(self, mode: bool = True) -> Self:
        """Train or evaluate the head; the classifier stays in eval mode."""
        return super().train(mode)  # FrozenClassifier.train ignores the mode

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Switch gradients of the head's parameters; the classifier's stay off."""
        super().requires_grad_(requires_grad)
        self.freeze()
        return self

    def freeze(self) -> None:
        """Switch the gradients of the classifiers' parameters off, whatever switched them on."""
        for classifier in self.frozen.values():
            classifier.requires_grad_(False)

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], *args: Any, **kwargs: Any) -> None:
        """
        Heads have no attention of their own: this sets the classifier's, and the configurations'.

        Args:
            attn_implementation (`str` or `dict`): One for all; or by name, `"backbone_config"` for the classifier.
            args, kwargs: As for `PreTrainedModel.set_attn_implementation`.

        Raises:
            TypeError: If the classifier is not one of Transformers'.
            ValueError: If the classifier does not have this attention.
        """
        model = None if self.backbone is None else self.backbone.source_model
        if model is not None and not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"The classifier is a {type(model).__name__}, whose attention Transformers cannot switch; give a "
                "Transformers classifier."
            )
        parts: dict[str, Any] = {"": attn_implementation, "backbone_config": attn_implementation}
        if isinstance(attn_implementation, dict):
            parts = dict(attn_implementation)
        if model is not None and "backbone_config" in parts:
            model.set_attn_implementation(parts["backbone_config"], *args, **kwargs)
            parts["backbone_config"] = model.config._attn_implementation
        if "" in parts:
            self.get_correct_attn_implementation(parts[""])
        # not by the base class, which finds no classifier for the copy of its configuration inside the head's
        config: Any = self.config
        config._attn_implementation = parts

    # ------------------------------------------------------------------ attaching a classifier

    def attach(self, classifier: FrozenClassifier, *, verify_fingerprint: bool = True) -> Self:
        """
        Give the head its classifier.

        Args:
            classifier ([`FrozenClassifier`]): The classifier.
            verify_fingerprint (`bool`, *optional*, defaults to `True`): Refuse one whose weights are not those the
                head was trained on.

        Returns:
            The head itself.

        Raises:
            ValueError: If the classifier has another number of classes or other texts as classes, lacks a tapped
                layer, or its weights differ.
        """
        config, texts = self.config, texts_of(self.config.backbone_config)
        if texts is not None and classifier.takes_texts and classifier.texts is None:
            classifier = classifier.for_texts(*texts)
        if texts != classifier.texts:
            named = classifier.name_or_path or classifier.model_class
            raise ValueError(
                f"This head explains {_in_words(texts)}, the classifier {named!r} has {_in_words(classifier.texts)}; "
                "give the model the head was trained on, with these texts or without any."
            )
        if classifier.num_labels != config.num_labels:
            raise ValueError(
                f"This head explains {config.num_labels} classes, the classifier "
                f"{classifier.name_or_path or classifier.model_class!r} has {classifier.num_labels}; "
                "load the classifier the head was trained on."
            )
        self.check_classifier("backbone", classifier, verify_fingerprint)
        self.backbone = classifier
        return self

    def check_classifier(self, name: str, classifier: FrozenClassifier, verify_fingerprint: bool) -> None:
        """
        Refuse one of the head's frozen classifiers if it is not what the configuration says.

        Args:
            name (`str`): Which one, of `config.classifiers`.
            classifier ([`FrozenClassifier`]): The classifier.
            verify_fingerprint (`bool`): Whether its weights must be those that were recorded.

        Raises:
            ValueError: If it lacks a tapped layer, or its weights differ.
        """
        config, role = self.config, _role(name)
        if name == config.tapped:
            channels = [classifier.num_channels(layer) for layer in config.taps]
            if channels != list(config.taps.values()):
                raise ValueError(
                    f"This head taps {list(config.taps)} with {list(config.taps.values())} channels, the "
                    f"{role} has {channels} there; load the {role} the head was trained on."
                )
        recorded = getattr(config, f"{name}_fingerprint") if verify_fingerprint else None
        if recorded and is_quantized(classifier.model):
            logger.warning(
                f"The {role} {classifier.name_or_path or classifier.model_class!r} is quantised: its "
                "weights have no fingerprint that shows whether it is the one this head was trained on."
            )
        elif recorded and not matches(classifier.model, recorded):
            raise ValueError(
                f"The {role} {classifier.name_or_path or classifier.model_class!r} is not the one this "
                f"head was trained on: its weights have another fingerprint. Load the right {role}, or pass "
                f"verify_fingerprint=False to {'explain' if name == 'backbone' else 'use'} this one all the same."
            )

    @classmethod
    def from_classifier(
        cls,
        classifier: str | os.PathLike[str] | nn.Module,
        *,
        preset: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        A new, untrained head for a classifier.

        Args:
            classifier (`str`, `os.PathLike`, `torch.nn.Module` or [`FrozenClassifier`]): Directory, Hub id or
                instance.
            preset (`str`, *optional*): Fields that go together, by the name the head knows them under (see its class);
                a field given beside it wins. By default every field is as published.
            revision (`str`, *optional*): Branch, tag or commit of a Hub id.
            kwargs: Fields of the head's configuration; `candidate_labels` and `hypothesis_template` of a model that
                matches images with texts ([`~FrozenClassifier.for_texts`]); and, for a directory or Hub id, what
                `AutoModelForImageClassification.from_pretrained` takes (dtype, device_map, attn_implementation,
                token, ...).

        Returns:
            The head, with the classifier attached, in eval mode.

        Raises:
            TypeError: If a keyword is neither a field of the configuration nor a loading option, or is one for
                loading while the classifier is loaded already.
            ValueError: If a field's value does not fit, or there is no such preset; the message names it.
        """
        kwargs = {cls.config_class.renamed.get(name, name): value for name, value in kwargs.items()}
        known = {field.name for field in fields(cls.config_class)}
        own = {field.name for field in fields(ExplainerConfig)} - {"feature_layers", "self_contained"}
        loading = {key: kwargs.pop(key) for key in (*_SHARED_LOADING, *_CLASSIFIER_LOADING) if key in kwargs}
        loading = {key: value for key, value in loading.items() if value is not None}
        texts = {key: value for key in _TEXTS if (value := kwargs.pop(key, None)) is not None}
        unknown = set(kwargs) - known
        if unknown:
            raise TypeError(
                f"{cls.config_class.__name__} has no field {sorted(unknown)[0]!r}; its fields are "
                f"{', '.join(sorted(known - own - {field.name for field in fields(PreTrainedConfig)}))}, "
                "feature_layers, self_contained."
            )
        if isinstance(classifier, (str, os.PathLike)):
            classifier = FrozenClassifier.from_pretrained(classifier, revision=revision, **loading)
        elif loading or revision is not None:
            option = next(iter(loading), "revision")
            raise TypeError(
                f"`{option}` says how to load a classifier, but `classifier` is loaded already (a "
                f"{type(classifier).__name__}); leave it out, or give a directory or Hub id."
            )
        elif not isinstance(classifier, FrozenClassifier):
            classifier = FrozenClassifier(classifier)
        if texts:
            classifier = classifier.for_texts(texts.get("candidate_labels"), texts.get("hypothesis_template"))
        others = {key: value for key, value in loading.items() if key in _SHARED_LOADING}
        frozen = cls.take_classifiers(classifier, kwargs, others)
        tapped = frozen[cls.config_class.tapped]
        self_contained = kwargs.pop("self_contained", False)
        for one in frozen.values():
            if self_contained and not isinstance(one.config, PreTrainedConfig):
                raise ValueError(
                    f"`self_contained` needs a Transformers classifier; {one.model_class} has no config to rebuild it "
                    "from."
                )
        if preset is None:
            kwargs = cls.published_fields(classifier) | kwargs
        else:
            kwargs = cls.preset_fields(preset, classifier) | cls.preset_taps(preset, tapped) | kwargs
        config = cls.config_class(**kwargs)
        for name, one in frozen.items():
            setattr(config, name, portable_name(one.name_or_path))
            setattr(config, f"{name}_revision", one.revision)
            if isinstance(one.config, PreTrainedConfig):
                # a copy: the live config would share its attention implementation with the head's
                nested = copy.deepcopy(one.config)
                nested._name_or_path = ""
                # a config that was never saved does not say its class, and "deit" alone has two
                nested.architectures = [one.model_class]
                setattr(config, f"{name}_config", nested)
            setattr(config, f"{name}_fingerprint", fingerprints(one.model) or None)
        config.id2label = dict(classifier.id2label)
        config.label2id = {label: index for index, label in classifier.id2label.items()}
        config.image_mean, config.image_std = list(classifier.image_mean), list(classifier.image_std)
        layers = config.feature_layers or cls.default_feature_layers(tapped, config)
        names = [tapped.resolve_layer(layer) for layer in layers]
        config.feature_layers, config.feature_channels = names, [tapped.num_channels(name) for name in names]
        cls.complete_taps(tapped, config)
        cls.complete_config(classifier, config)
        config.validate_explainer()
        model = cls(config)
        nn.Module.to(model, device=classifier.device, dtype=classifier.dtype)
        for name, one in frozen.items():
            model._attach(name, one, verify_fingerprint=False)
        config.self_contained = self_contained
        return model.eval()

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(  # what it does not name goes on to Transformers' as it is
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        classifier: str | os.PathLike[str] | nn.Module | None = None,
        verify_fingerprint: bool = True,
        **kwargs: Any,
    ) -> Self:
        """
        Load a head and its classifier.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id of a saved head; `None` with
                `config=` and `state_dict=`, for one that is in memory.
            classifier (`str`, `os.PathLike`, `torch.nn.Module` or [`FrozenClassifier`], *optional*): Used instead of
                the classifier the head names.
            verify_fingerprint (`bool`, *optional*, defaults to `True`): Refuse a classifier whose weights differ from
                those the head was trained on.
            kwargs: As for `PreTrainedModel.from_pretrained`; dtype, device_map, token, cache_dir, local_files_only,
                trust_remote_code and the options of offloading also reach the classifier, attn_implementation and
                quantization_config the classifier alone. A head's other classifiers are given as `classifier` is, by
                their names (`auxiliary=`).

        Returns:
            The head in eval mode, with its classifier attached.

        Raises:
            FileNotFoundError: If the classifier's directory is missing.
            ValueError: If the classifier is not the one the head was trained on, or a self-contained head was saved
                without its classifier's weights.
        """
        in_memory = pretrained_model_name_or_path is None
        name = cls.__name__ if pretrained_model_name_or_path is None else os.fspath(pretrained_model_name_or_path)
        given = {each: kwargs.pop(each, None) for each in cls.config_class.classifiers if each != "backbone"}
        given["backbone"] = classifier
        own = {key: kwargs.pop(key) for key in _CLASSIFIER_LOADING if key in kwargs}
        own = {key: value for key, value in own.items() if value is not None}
        attn_implementation = own.get("attn_implementation")
        want_info = kwargs.pop("output_loading_info", False)
        shared = {key: kwargs[key] for key in _SHARED_LOADING if kwargs.get(key) is not None}
        fill_up = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["use_safetensors"] = True  # a pickle can run code; heads are never saved as one
        hub_options = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
        loaded: Any
        loading = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        if in_memory:
            loaded = super().from_pretrained(None, *model_args, **loading)
        else:
            with whole_downloads(name, kwargs.get("revision"), "the head ", **hub_options) as revision:
                kwargs["revision"] = revision or "main"
                loaded = super().from_pretrained(name, *model_args, **{**loading, "revision": kwargs["revision"]})
            check_downloads(name, kwargs["revision"], **hub_options)
        model, info = loaded
        if not fill_up:
            check_shapes(info["mismatched_keys"], name, "the head ")
        missing = sorted(info["missing_keys"])  # filled with random numbers, which explain nothing
        lost = [key for key in missing if key.partition(".")[0] in model.config.classifiers]
        if lost:
            raise ValueError(
                f"{name!r} says self_contained=true but its weights lack the classifier ({len(lost)} tensors, "
                f"such as {lost[0]!r}); save it again with self_contained=True or set it to false."
            )
        if missing:
            raise ValueError(
                f"The weights of the head {name!r} lack {len(missing)} tensors, such as {missing[0]!r}; it was saved "
                "incompletely or by another version: save or download it again."
            )
        for each in model.config.classifiers:
            if (source := getattr(model.config, each)) and os.path.isdir(name):
                setattr(model.config, each, resolved_name(source, name))
        if model.config.self_contained:
            model.freeze()  # the meta device forgets what __init__ froze and laid out
            for inside in model.frozen.values():
                inside.lay_out()
            if texts := texts_of(model.config.backbone_config):
                options = {**hub_options, "trust_remote_code": bool(shared.get("trust_remote_code"))}
                model.backbone.model.tokenizer_source = {"name": "" if in_memory else name, **options}
                model.backbone.model.tokenizer_source["revision"] = kwargs.get("revision")
                model.backbone = model.backbone.for_texts(*texts)
            if not in_memory:
                model.backbone.image_processor = load_image_processor(
                    name, kwargs["revision"], trust_remote_code=shared.get("trust_remote_code"), **hub_options
                )
            if classifier is None and "quantization_config" in own:
                raise ValueError(
                    f"`quantization_config` is for a classifier that is loaded, but {name!r} has its own inside; pass "
                    "from_pretrained(..., classifier=...) as well."
                )
        for each, source in given.items():
            if source is None and model.config.self_contained:
                continue
            options = shared | own if each == "backbone" else shared
            with usable_files(name):
                found = model._load_classifier(each, name, source, options, in_memory)
            if "device_map" not in shared and not isinstance(source, (nn.Module,)):
                found.to(model.device)
            try:
                with usable_files(name):
                    model._attach(each, found, verify_fingerprint=verify_fingerprint)
                if verify_fingerprint and not getattr(model.config, f"{each}_fingerprint"):
                    logger.warning(
                        f"The head {name!r} has no fingerprint of its {_role(each)} (`{each}_fingerprint`): nothing "
                        f"shows whether {found.name_or_path or found.model_class!r} is the one it was "
                        "trained on."
                    )
            except ValueError:
                if found.revision is not None:  # a damaged download is not another classifier
                    check_downloads(found.name_or_path, found.revision, **hub_options)
                raise
        if attn_implementation is not None and not isinstance(classifier, nn.Module):
            model.set_attn_implementation(attn_implementation)  # the classifier has it already, unless it was inside
        model.eval()
        result: Any = (model, info) if want_info else model  # Transformers' annotation leaves the pair out, too
        return result

    def _attach(self, name: str, classifier: FrozenClassifier, *, verify_fingerprint: bool) -> None:
        attach = self.attach if name == "backbone" else getattr(self, f"attach_{name}")
        attach(classifier, verify_fingerprint=verify_fingerprint)

    def _load_classifier(
        self,
        role: str,
        head_name: str,
        classifier: str | os.PathLike[str] | nn.Module | None,
        options: dict[str, Any],
        in_memory: bool,
    ) -> FrozenClassifier:
        if isinstance(classifier, FrozenClassifier):
            return classifier
        if isinstance(classifier, nn.Module):
            return FrozenClassifier(classifier)
        if classifier is not None:
            return FrozenClassifier.from_pretrained(classifier, **options)
        name, revision = getattr(self.config, role), getattr(self.config, f"{role}_revision")
        words, given = _role(role), f"from_pretrained(..., {'classifier' if role == 'backbone' else role}=...)"
        if not name:
            raise ValueError(
                f"The head {head_name!r} does not name its {words} (it was trained on an instance); pass {given}."
            )
        if not in_memory and os.path.isdir(head_name):
            name = _find_classifier(name, head_name, words, given)
        elif not in_memory and not is_hub_id(name):
            raise ValueError(
                f"The head {head_name!r} from the Hub names a local path, {name!r}, as its {words}, which is refused; "
                f"pass {given} with the {words} you mean."
            )
        try:
            return FrozenClassifier.from_pretrained(name, revision=revision, **options)
        except OSError as error:
            kind = type(error) if type(error) in (FileNotFoundError, PermissionError, ConnectionError) else OSError
            raise kind(f"The head {head_name!r} needs its {words}, which did not load: {error}") from error

    # ------------------------------------------------------------------ saving

    def save_pretrained(  # type: ignore[override]  # every option by keyword: the order of Transformers' changes
        self,
        save_directory: str | os.PathLike[str],
        *,
        self_contained: bool | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Save the head (and with `self_contained=True` its classifiers) and its image processor, all or nothing.

        Everything is written to a temporary directory first and then moved in place, a new directory as a whole and
        the files of an existing one with a way back, so a failed save leaves what was there before.

        Args:
            save_directory (`str` or `os.PathLike`): Directory; created where missing.
            self_contained (`bool`, *optional*): Whether to save the classifiers' weights too; the config's setting
                when not given.
            push_to_hub (`bool`, *optional*, defaults to `False`): Upload afterwards, as in Transformers.
            kwargs: As for `PreTrainedModel.save_pretrained`.

        Raises:
            OSError: If the directory cannot be written; nothing is left behind.
        """
        target = Path(os.path.abspath(save_directory))
        if target.is_file():
            raise NotADirectoryError(f"`save_directory` {str(target)!r} is a file; give a directory.")
        before = self.config.self_contained
        if self_contained:
            if any(getattr(self.config, f"{name}_config") is None for name in self.config.classifiers):
                raise ValueError("`self_contained` needs a Transformers classifier; this one has no config to save.")
        hub = {key: kwargs.pop(key) for key in ("repo_id", "commit_message", "private", "token") if key in kwargs}
        try:
            if self_contained is not None:
                self.config.self_contained = self_contained
            with write_directory(target, "save_directory") as new:
                super().save_pretrained(new, **kwargs)
                processor = self.backbone.image_processor if self.backbone is not None else None
                if processor is not None:
                    processor.save_pretrained(new)
                if self.config.self_contained and self.backbone is not None and self.backbone.takes_texts:
                    self.backbone.tokenizer.save_pretrained(new)
        finally:
            self.config.self_contained = before
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", target.name), **hub)

    # Transformers' decorator hides `self` from a type checker
    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # `self` is hidden
        """
        Upload the head as Transformers does; [`~hf_explain.publish.hub.push_explainer`] also checks, lists and writes
        a card.

        Args:
            repo_id (`str`): Repository on the Hub.
            args, kwargs: As for `PreTrainedModel.push_to_hub`.

        Raises:
            ValueError: If a classifier is a local directory, which nobody else has.
        """
        sources = {name: getattr(self.config, name) for name in self.config.classifiers}
        local = {name: source for name, source in sources.items() if source and not is_hub_id(source)}
        for name in local:
            if not self.config.self_contained:
                raise ValueError(
                    f"The head's {_role(name)} (`{name}`) is a local directory, which nobody else has; push the "
                    "classifier first and train or attach the head from there, or set config.self_contained to true."
                )
        try:
            for name in local:
                setattr(self.config, name, None)  # its weights go along; where they came from stays private
            return super().push_to_hub(repo_id, *args, **kwargs)  # type: ignore[arg-type]  # `self` is hidden
        finally:
            for name, source in local.items():
                setattr(self.config, name, source)


def _role(name: str) -> str:
    """What messages call a classifier of `config.classifiers`."""
    return "classifier" if name == "backbone" else f"{name} classifier"


def _in_words(texts: tuple[tuple[str, ...], str] | None) -> str:
    if texts is None:
        return "classes of its own"
    shown = ", ".join(map(repr, texts[0][:3])) + (", ..." if len(texts[0]) > 3 else "")
    return f"{len(texts[0])} texts ({shown}, in {texts[1]!r})"


def _drop_classifiers(module: Any, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """A head's state is its own: kilobytes on disk and in every checkpoint."""
    if not module.config.self_contained:
        inside = tuple(f"{prefix}{name}." for name in module.config.classifiers)
        for key in [key for key in state_dict if key.startswith(inside)]:
            del state_dict[key]


def _forget_classifiers(module: Any, incompatible_keys: Any) -> None:
    """What is deliberately not saved is not missing."""
    if not module.config.self_contained:
        missing = incompatible_keys.missing_keys  # with the prefixes of whatever wraps the head
        inside = [f".{name}." for name in module.config.classifiers]
        missing[:] = [key for key in missing if not any(name in f".{key}" for name in inside)]


def _find_classifier(source: str, head_directory: str, words: str, given: str) -> str:
    """The classifier's directory, also where it moved together with the head's; the fingerprint guards the guess."""
    if is_hub_id(source) or os.path.isdir(source):
        return source
    name = base_name(source)
    head_directory = os.path.abspath(head_directory)
    for candidate in (os.path.join(os.path.dirname(head_directory), name), os.path.join(head_directory, name)):
        if os.path.isdir(candidate) and candidate != head_directory:
            return candidate
    raise FileNotFoundError(
        f"The {words} directory {source!r} that the head {head_directory!r} was trained on does not exist; put it "
        f"back or pass {given}."
    )
