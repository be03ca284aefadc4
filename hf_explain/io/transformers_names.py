"""What is used of Transformers beyond what its documentation promises: all of it here, so that a loss is named."""

from __future__ import annotations

import transformers


# the newest version that the tests were run with
TESTED = "5.24"

try:
    from transformers import dynamic_module_utils, initialization
    from transformers.image_utils import httpx  # whichever of httpx and its successor Transformers uses
    from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    # not from the top level, which hands out a placeholder that demands torchvision
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
    from transformers.utils import cached_file, extract_commit_hash
except ImportError as error:
    raise ImportError(
        f"Transformers {transformers.__version__} lacks something that hf_explain uses ({error}); install one that it "
        f"was tested with: pip install 'transformers=={TESTED}.*'."
    ) from error

__all__ = [
    "CONFIG_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoImageProcessor",
    "_BaseAutoModelClass",
    "_LazyAutoMapping",
    "cached_file",
    "dynamic_module_utils",
    "extract_commit_hash",
    "httpx",
    "initialization",
]
