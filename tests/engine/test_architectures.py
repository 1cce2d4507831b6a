"""What is read out of the source files of transformers is what transformers itself says."""

from __future__ import annotations

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from studio.model_files import known_architectures


def test_the_architectures_are_those_of_transformers() -> None:
    causal, known = known_architectures()
    assert causal == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert {"t5", "vit"} <= known - causal
    assert known <= set(CONFIG_MAPPING.keys()) | causal
    assert len(known) > 500
