"""Tests that ask for ``device`` run kernels: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels.triton.interpreter import call, interpreter


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    names = pyfuncitem._fixtureinfo.argnames
    if "device" not in names or torch.cuda.is_available():
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    interpreter().submit(
        call, pyfuncitem.module.__name__, pyfuncitem.function.__name__, arguments
    ).result()
    return True


def pytest_unconfigure() -> None:
    if interpreter.cache_info().currsize:
        interpreter().shutdown()
