"""The ordered parallel map."""

import itertools
import threading

import pytest

from jaxkd.data.ordered_map import ordered_map


def test_order_is_kept_when_later_items_finish_first():
    first_may_finish = threading.Event()

    def work(item):
        if item == 0:
            assert first_may_finish.wait(10)
        elif item == 1:
            first_may_finish.set()
        return item * item

    assert list(ordered_map(work, range(20), threads=2)) == [i * i for i in range(20)]
    assert list(ordered_map(work, [])) == []


def test_infinite_items_are_read_no_further_than_asked():
    read = []

    def items():
        for i in itertools.count():
            read.append(i)
            yield i

    results = ordered_map(lambda i: -i, items(), threads=2, ahead=3)
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(read) == 5 + 3
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("jaxkd-map")]


def test_an_exception_is_raised_in_its_place():
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    results = ordered_map(work, range(6), threads=3)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
