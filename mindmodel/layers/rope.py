"""Rotary position embedding: the tables of cosines and sines. Pure NumPy."""

from __future__ import annotations

import numpy as np

from mindmodel.recipe.schema import ModelSection, RopeScaling


def _llama3_scaled(inv_freq: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Low frequencies divided by the factor, high ones kept, those between blended linearly."""
    wavelength = 2 * np.pi / inv_freq
    old_context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_share = np.clip((old_context / wavelength - low) / (high - low), 0.0, 1.0)
    return inv_freq * (kept_share + (1 - kept_share) / scaling.factor)


def inverse_frequencies(model: ModelSection) -> np.ndarray:
    """Angle per position of each pair of dims, shape [head_size / 2], float32.

    Source: RoFormer (arXiv 2104.09864) eq. 15; scaling as transformers' `modeling_rope_utils` (linear and llama3).
    """
    size = model.head_size
    inv_freq = 1.0 / model.rope_theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    scaling = model.rope_scaling
    if scaling is not None:
        inv_freq = inv_freq / scaling.factor if scaling.type == "linear" else _llama3_scaled(inv_freq, scaling)
    return inv_freq.astype(np.float32)


def rope_tables(model: ModelSection, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every position, each float32 [num_positions, head_size], halves repeated (rotate_half).

    The angles are products in float32, as in transformers' `LlamaRotaryEmbedding`, so that long positions agree.
    """
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * inverse_frequencies(model)[None, :]
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles), np.sin(angles)


def rotation_matrix(head_size: int) -> np.ndarray:
    """The matrix R with x @ R = concat(-x2, x1) for the halves x1, x2 of x; float32 [head_size, head_size]."""
    half = head_size // 2
    matrix = np.zeros((head_size, head_size), np.float32)
    matrix[half:, :half] = -np.eye(half)
    matrix[:half, half:] = np.eye(half)
    return matrix
