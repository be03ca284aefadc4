from hf_explain.tensors.maps import resize_maps


def masked(pixel_values, maps):
    return pixel_values * resize_maps(maps, tuple(pixel_values.shape[-2:]))[:, None]
