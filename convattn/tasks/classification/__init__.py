"""Training, evaluating and using image classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from convattn.data import DataSource
from convattn.runs.card import ModelCard as ModelCard
from convattn.tasks.classification.config import TrainConfig as TrainConfig
from convattn.tasks.classification.evaluation import ClassificationEvaluation as Evaluation
from convattn.tasks.classification.predict import predict as predict
from convattn.tasks.classification.settings import list_recipes as list_recipes
from convattn.tasks.classification.settings import load_config as load_config
from convattn.tasks.classification.task import Classification as Classification
from convattn.training import evaluate as _evaluate
from convattn.training import run as _run
