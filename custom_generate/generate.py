"""``model.generate(ids, custom_generate=FOLDER, trust_remote_code=True, ea_model_path=..., hsd=True)``, where FOLDER
holds this folder: ``speculative_generate`` with what ``generate`` does not hand on to a function, as stop strings.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel, StoppingCriteriaList, StopStringCriteria

from eagle import speculative_generate


def generate(model: PreTrainedModel, **arguments: Any) -> Any:
    """``generate``, decoding speculatively.

    Args:
        model: that was asked.
        **arguments: of ``generate``, and of ``eagle.speculative_generate``.

    Raises:
        ValueError: something that is not honoured, or stop strings without a tokenizer.
    """
    tokenizer = arguments.pop("tokenizer", None)
    config = copy.deepcopy(arguments.pop("generation_config", None) or model.generation_config)
    stop_strings = arguments.pop("stop_strings", None) or config.stop_strings
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings need the tokenizer: model.generate(..., tokenizer=tokenizer)")
        config.stop_strings = None
        criteria = StoppingCriteriaList(arguments.pop("stopping_criteria", None) or [])
        criteria.append(StopStringCriteria(stop_strings=stop_strings, tokenizer=tokenizer))
        arguments["stopping_criteria"] = criteria
    return model.generate(generation_config=config, custom_generate=speculative_generate, **arguments)
