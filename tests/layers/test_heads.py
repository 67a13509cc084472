from __future__ import annotations

import torch
from timm.layers import Attention

from convattn.layers.heads import HeadAttention
from tests.compare import assert_close


def test_is_the_attention_of_timm_with_its_parameters():
    theirs = Attention(24, 3, qkv_bias=True).double()
    ours = HeadAttention(24, 3).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    assert_close(ours(x), theirs(x), torch.float64)


def test_starts_where_timm_starts():
    torch.manual_seed(1)
    ours = HeadAttention(24, 3).state_dict()
    torch.manual_seed(1)
    theirs = Attention(24, 3, qkv_bias=True).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
