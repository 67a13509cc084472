from __future__ import annotations

import threading
import warnings

import pytest

from convattn.data.quiet import no_warnings


def test_warnings_are_ignored_inside_alone() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with no_warnings:
            warnings.warn("inside", stacklevel=1)
        warnings.warn("after", stacklevel=1)
    assert [str(warning.message) for warning in said] == ["after"]


def test_the_filters_are_those_of_before_when_the_first_thread_leaves_last() -> None:
    before = list(warnings.filters)
    entered, left = threading.Event(), threading.Event()

    def stay() -> None:
        with no_warnings:
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=stay)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        within = list(warnings.filters)
        with no_warnings:
            thread.start()
            entered.wait(10)
        warnings.warn("the other thread still reads", stacklevel=1)
        left.set()
        thread.join()
        assert said == []
        assert list(warnings.filters) == within
    assert list(warnings.filters) == before


def test_an_error_ends_the_silence() -> None:
    before = list(warnings.filters)
    with pytest.raises(KeyError), no_warnings:
        raise KeyError
    assert list(warnings.filters) == before
