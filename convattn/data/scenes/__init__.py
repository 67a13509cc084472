"""Generated pictures of shapes with boxes and masks, for a first run and for tests."""

from convattn.data.scenes.make import make_portrait, make_scene
from convattn.data.scenes.scene import CLASS_NAMES, Scene, SceneObject
from convattn.data.scenes.write import write_scenes

__all__ = ["CLASS_NAMES", "Scene", "SceneObject", "make_portrait", "make_scene", "write_scenes"]
