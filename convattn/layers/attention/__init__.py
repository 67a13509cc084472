"""The attentions of ACmix, and the attention block of GLNet."""
