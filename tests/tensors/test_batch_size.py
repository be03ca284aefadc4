import pytest
import torch
from torch import nn

from hf_explain.tensors import batch_size
from hf_explain.tensors.batch_size import batches


IMAGES = torch.zeros(1, 3, 4, 4)
SECONDS = {64: 5.0, 32: 3.0, 16: 2.0, 8: 2.2}  # per image


@pytest.fixture
def clock(monkeypatch):
    """A clock that only passes of images move."""
    time = [0.0]
    monkeypatch.setattr(batch_size, "_clock", lambda device: time[0])
    return time


def run(model, clock, total, at_most=64, images=IMAGES, seconds=SECONDS):
    sizes, seen = [], []
    for span in batches(model, images, total, at_most):
        count = span.stop - span.start
        clock[0] += count * seconds.get(count, 2.5)
        sizes.append(count)
        seen.extend(range(total)[span])
    assert seen == list(range(total))
    return sizes


def test_every_size_is_tried_on_work_that_had_to_be_done_and_the_fastest_is_kept(clock):
    model = nn.Identity()
    assert run(model, clock, 300) == [64, 64, 32, 32, 16, 16, 8, 8, 15, 15, 15, 15]  # 60 in parts of at most 16
    assert run(model, clock, 100) == [15, 15, 14, 14, 14, 14, 14]
    assert run(model, clock, 100, at_most=8) == [8] * 9 + [7] * 4  # nothing above what is allowed
    assert run(model, clock, 5) == [5]


def test_what_is_known_holds_for_one_model_and_kind_of_image(clock):
    model = nn.Identity()
    run(model, clock, 300)
    for other, images in (
        (nn.Identity(), IMAGES),
        (model, torch.zeros(1, 3, 4, 5)),
        (model, IMAGES.bfloat16()),
    ):
        assert run(other, clock, 64, images=images) == [64], images.dtype
    model.memory_format = torch.channels_last
    assert run(model, clock, 64) == [64]


def test_things_that_stand_for_several_images_are_kept_together(clock):
    model = nn.Identity()
    spans = list(batches(model, IMAGES, 20, 64, each=10))
    assert [span.stop - span.start for span in spans] == [6, 6, 3, 3, 1, 1]  # 60 images, 30 and 10, each twice
    assert [span.stop - span.start for span in batches(model, IMAGES, 3, 2, each=10)] == [1, 1, 1]


def test_little_work_is_not_cut_to_try_sizes(clock):
    model = nn.Identity()
    for _ in range(5):
        assert run(model, clock, 24) == [24]


def test_a_larger_batch_is_taken_where_the_clock_hardly_tells(clock):
    assert run(nn.Identity(), clock, 400, seconds={64: 1.02, 32: 1.0, 16: 1.0, 8: 2.0})[8:] == [54, 53, 53]


def test_a_function_gets_what_it_asks_for(clock):
    assert run(lambda images: images, clock, 300) == [64, 64, 64, 64, 44]
