"""A continued model's context: what is named changes, the rest stays."""

import pytest
from pydantic import ValidationError

from puna.model.config import SIZES, RopeScaling
from puna.stages.model_choice import ContextChoice
from puna.stages.pretrain import PretrainRecipe


def test_only_what_is_named_changes():
    shape = SIZES["8B"].model_copy(update={"max_seq_len": 8192, "rope_scaling": None})
    assert ContextChoice().apply(shape) == shape
    longer = ContextChoice(max_seq_len=131_072, rope_scaling=RopeScaling()).apply(shape)
    assert longer == SIZES["8B"]


def test_a_new_model_has_no_context_to_change():
    given = {"out": "x", "data": {"shards": ["s"]}, "context": {"max_seq_len": 16}}
    with pytest.raises(ValidationError, match=r"model\.max_seq_len"):
        PretrainRecipe.model_validate(given | {"tokenizer": "t"})
    assert PretrainRecipe.model_validate(given | {"start_from": "m"}).context.max_seq_len == 16
