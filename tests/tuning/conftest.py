"""The small models as fixtures."""

import pytest
import torch

from small_models import bert, gpt2, llama

MODELS = {"bert": bert, "llama": llama, "gpt2": gpt2}


@pytest.fixture(params=list(MODELS))
def any_model(request):
    return MODELS[request.param]()


@pytest.fixture
def model():
    return bert()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (4, 9), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 5:], mask[3, 2:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}
