"""What more than one target's tests export."""

from __future__ import annotations

import pytest

from sleepc.api import Program
from tests.natives import KEPT, YARN, converted, qwen3


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A Qwen3 with YaRN, two of whose three layers are native."""
    return converted(tmp_path_factory.mktemp("native"), qwen3(tie_word_embeddings=True, rope_parameters=YARN), KEPT)
