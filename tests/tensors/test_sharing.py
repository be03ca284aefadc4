import threading

import torch

from hf_explain.tensors.sharing import shared, sharing


def counted():
    calls = []

    @shared
    def double(tensor, more):
        calls.append(more)
        return tensor * 2

    return double, calls


def test_work_is_shared_inside_the_block_alone():
    double, calls = counted()
    tensor = torch.ones(2)
    assert double(tensor, 1) is not double(tensor, 1) and len(calls) == 2
    with sharing():
        first = double(tensor, [1, 2])
        with sharing():
            assert double(tensor, (1, 2)) is first
        assert double(tensor, [1, 2]) is first and len(calls) == 3
        assert double(tensor, [1, 3]) is not first and double(tensor.clone(), [1, 2]) is not first
    with sharing():
        assert double(tensor, [1, 2]) is not first


def test_a_tensor_that_was_written_to_is_another_one():
    double, _ = counted()
    tensor = torch.ones(2)
    with sharing():
        double(tensor, 1)
        tensor.add_(1)
        assert double(tensor, 1).tolist() == [4.0, 4.0]


def test_an_id_is_not_given_to_another_tensor_while_it_counts():
    double, _ = counted()
    with sharing():
        assert [double(torch.full((1,), float(value)), 0).item() for value in range(50)] == list(range(0, 100, 2))


def test_threads_share_nothing():
    double, calls = counted()
    tensor = torch.ones(2)
    with sharing():
        double(tensor, 1)
        thread = threading.Thread(target=lambda: double(tensor, 1))
        thread.start()
        thread.join()
    assert len(calls) == 2
