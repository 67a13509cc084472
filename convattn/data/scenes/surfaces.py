"""Textures and colours of shapes; several classes share each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from convattn.data.scenes.shapes import UNIT

HUES = 1536  # the hues of the colour circle
Texture = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def _plain(u: np.ndarray, v: np.ndarray, period: int) -> np.ndarray:
    return np.zeros_like(u)


def _stripes(u: np.ndarray, v: np.ndarray, period: int) -> np.ndarray:
    return (u // period & 1) * 255


def _checks(u: np.ndarray, v: np.ndarray, period: int) -> np.ndarray:
    return (u // period + v // period & 1) * 255


def _dots(u: np.ndarray, v: np.ndarray, period: int) -> np.ndarray:
    pitch = 2 * period
    u, v = u % pitch - period, v % pitch - period
    return (u * u + v * v <= period * period * 4 // 9) * 255


def _rings(u: np.ndarray, v: np.ndarray, period: int) -> np.ndarray:
    return (np.sqrt(u * u + v * v).astype(np.int64) // period & 1) * 255


def _gradient(u: np.ndarray, v: np.ndarray, period: int) -> np.ndarray:
    return np.clip(128 + u // 8, 0, 255)


def _grain(u: np.ndarray, v: np.ndarray, period: int) -> np.ndarray:
    column, row = u // (period // 2 + 1), v // (period // 2 + 1)
    return (column * 0x9E3779B1 + row * 0x85EBCA77 ^ column * row * 0xC2B2AE3D) >> 13 & 255


TEXTURES: Mapping[str, Texture] = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "gradient": _gradient,
    "grain": _grain,
}
# Each class prefers two textures and a fourth of the hues. One texture of six is chosen among all
# textures, and one hue of six among all hues.
PREFERRED: Mapping[str, tuple[str, str]] = {
    "disc": ("stripes", "checks"),
    "ball": ("plain", "stripes"),
    "square": ("dots", "grain"),
    "triangle": ("gradient", "stripes"),
    "star": ("plain", "gradient"),
    "ring": ("checks", "plain"),
    "cross": ("grain", "rings"),
    "crescent": ("rings", "dots"),
}


def choose_texture(rng: np.random.Generator, name: str) -> Texture:
    """Return a texture for an object of class ``name``, or for clutter."""
    known = tuple(TEXTURES)
    if name in PREFERRED and rng.integers(6):
        known = PREFERRED[name]
    return TEXTURES[known[rng.integers(len(known))]]


def choose_colors(rng: np.random.Generator, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the two colours of a texture, for an object of class ``name`` or for clutter."""
    hue = int(rng.integers(HUES))
    if name in PREFERRED and rng.integers(6):
        centre = tuple(PREFERRED).index(name) * HUES // len(PREFERRED)
        hue = centre + int(rng.integers(-HUES // 8, HUES // 8))
    value, pale = int(rng.integers(130, 256)), int(rng.integers(20, 150))
    other = hue + int(rng.integers(HUES // 4, 3 * HUES // 4))
    contrast = max(30, value - int(rng.integers(60, 130)))
    return _color(hue, value, pale), _color(other, contrast, int(rng.integers(40, 200)))


def _color(hue: int, value: int, pale: int) -> np.ndarray:
    """Return the RGB colour of a hue; ``pale`` of 255 makes it grey."""
    ramps = [abs((hue + shift) % HUES - HUES // 2) - HUES // 6 for shift in (0, 1024, 512)]
    pure = [min(max(ramp, 0), 255) for ramp in ramps]
    return np.array([(p + (255 - p) * pale // 255) * value // 255 for p in pure])


def shade(color: np.ndarray, u: np.ndarray, v: np.ndarray, light: tuple[int, int]) -> np.ndarray:
    """Return the colours (H, W, 3) of a sphere under light from a direction, with a highlight."""
    lit = ((u - light[0]) ** 2 + (v - light[1]) ** 2) >> 10  # UNIT is 2 ** 10
    gain = np.clip(300 - lit * 215 // UNIT, 40, 300)
    gleam = np.clip(190 - lit * 5 // 2, 0, 190)
    return color * gain[..., None] // 256 + gleam[..., None]
