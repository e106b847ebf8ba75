"""Instructions as vectors, by a frozen encoder of sentences whose weights are in its package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from diffusion_core.errors import WorkbenchError

DIM = 256
"""Numbers of an embedding."""


def embed(texts: Sequence[str]) -> Float32[np.ndarray, "n 256"]:
    """Mean token embeddings of WordLlama, scaled so that entries have the size 1 on average.

    Args:
        texts: instructions in plain English.

    Raises:
        WorkbenchError: an empty instruction, or the package is not installed.

    Source: Miller 2024, WordLlama (github.com/dleemiller/WordLlama, MIT licence): token embeddings of large language
    models, trained on.
    """
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise WorkbenchError(f"instruction {empty[0]}: got an empty one; expected what to do, in plain English.")
    return np.stack([_one(text) for text in texts]) if len(texts) else np.zeros((0, DIM), np.float32)


@lru_cache(maxsize=4096)
def _one(text: str) -> np.ndarray:
    found = np.asarray(_encoder().embed([text])[0], np.float32)
    return found * np.float32(DIM**0.5 / max(float(np.linalg.norm(found)), 1e-6))


@lru_cache(maxsize=1)
def _encoder() -> Any:
    try:
        import wordllama
    except ImportError as error:
        raise WorkbenchError(
            f"instructions need WordLlama, which cannot be imported ({error}); expected it: pip install "
            "'diffusion-workbench[language]'."
        ) from error
    # its own search looks for the tokenizer in a folder of another name than the one that it ships
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
