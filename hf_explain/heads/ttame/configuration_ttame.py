from hf_explain.heads.modeling_branches import BranchedConfig


class TTameConfig(BranchedConfig):
    """
    Configuration of a T-TAME (or, on a convolutional classifier, TAME) head.

    Source: Ntrougkas, Gkalelis, Mezaris, "TAME: Attention Mechanism Based Feature Fusion for Generating Explanation
    Maps of Convolutional Neural Networks", ISM 2022; "T-TAME: Trainable Attention Mechanism for Explaining
    Convolutional Networks and Vision Transformers", IEEE Access 2024.

    Args:
        feature_layers (`list[str]`, *optional*): Tapped layers, any number; the first one sets the map's size. By
            default the last three stages of ConvNeXt and ResNet, the inputs of the last three blocks of ViT and DeiT,
            and the last spatial layer of any other classifier.
        kwargs: The branches, see [`BranchedConfig`], and the loss, see [`MaskTrainedConfig`].
    """

    model_type = "ttame"
