"""Ultralytics without a network: it reads these when it is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_CONFIG = Path(tempfile.mkdtemp(prefix="convattn-ultralytics-"))
atexit.register(shutil.rmtree, _CONFIG, ignore_errors=True)
os.environ["YOLO_CONFIG_DIR"] = str(_CONFIG)
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
