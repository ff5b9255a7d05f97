import pytest
import torch

from rankwise.spectral import each


def test_results_come_in_order_and_threads_are_restored():
    before = torch.get_num_threads()
    assert list(each(lambda i: (i, torch.get_num_threads()), range(20), workers=3)) == [(i, 1) for i in range(20)]
    assert torch.get_num_threads() == before


def test_an_exception_is_raised_where_its_result_would_be():
    results = each(lambda i: 1 // (3 - i), range(10), workers=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_items_are_read_lazily():
    read = []

    def items():
        for i in range(50):
            read.append(i)
            yield i

    results = each(lambda i: i, items(), workers=2)
    next(results)
    assert len(read) <= 4
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_are_not_recorded_with_any_number_of_workers(workers):
    x = torch.ones(2, requires_grad=True)
    assert not any(y.requires_grad for y in each(lambda i: x * i, range(4), workers=workers))
    assert torch.is_grad_enabled()
