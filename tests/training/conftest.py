"""One short run that many tests look at."""

from tests.tasks.classification.conftest import finished

__all__ = ["finished"]
