"""Where the linear layers of a transformer block are, one row a model family.

Keys are `config.model_type` of transformers. "blocks" is the path of the list of
blocks; the other paths start inside a block. "query_key_value" is one layer for all three,
queries first. Roles that end in "_norm" are normalisations.
"""

_BERT = {
    "blocks": "encoder.layer",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_norm": "output.LayerNorm",
}

_DECODER = {
    "blocks": "layers",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_in": "mlp.up_proj",
    "ffn_out": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# Normalises what goes into a sub-layer and what comes out of it.
_GEMMA = {
    **_DECODER,
    "attention_output_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_output_norm": "post_feedforward_layernorm",
}

# Whose rows have the same bits on a CPU whatever goes through with them. Those of DeBERTa-v2
# and of the decoders have not.
ROWWISE = {
    "bert",
    "camembert",
    "electra",
    "roberta",
    "xlm-roberta",
    "mpnet",
    "distilbert",
    "albert",
    "modernbert",
}

# Whose passes are the same kernels for every batch of a shape, which a GPU can replay. Code
# of MPNet, DeBERTa-v2 and Gemma 3 copies numbers from the CPU; decoders may make tables of
# positions anew.
STEADY = {
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "modernbert",
    "roberta",
    "xlm-roberta",
}

FAMILIES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "mpnet": {
        **_BERT,
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "attention_output": "attention.attn.o",
        "attention_norm": "attention.LayerNorm",
    },
    "distilbert": {
        "blocks": "transformer.layer",
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "ffn_in": "ffn.lin1",
        "ffn_out": "ffn.lin2",
        "attention_norm": "sa_layer_norm",
        "ffn_norm": "output_layer_norm",
    },
    "deberta-v2": {
        **_BERT,
        "query": "attention.self.query_proj",
        "key": "attention.self.key_proj",
        "value": "attention.self.value_proj",
    },
    # One block for all layers, or one for each group of them.
    "albert": {
        "blocks": "encoder.albert_layer_groups",
        "query": "albert_layers.0.attention.query",
        "key": "albert_layers.0.attention.key",
        "value": "albert_layers.0.attention.value",
        "attention_output": "albert_layers.0.attention.dense",
        "ffn_in": "albert_layers.0.ffn",
        "ffn_out": "albert_layers.0.ffn_output",
        "attention_norm": "albert_layers.0.attention.LayerNorm",
        "ffn_norm": "albert_layers.0.full_layer_layer_norm",
    },
    # The first feed-forward layer computes gate and values at once.
    "modernbert": {
        "blocks": "layers",
        "query_key_value": "attn.Wqkv",
        "attention_output": "attn.Wo",
        "ffn_in": "mlp.Wi",
        "ffn_out": "mlp.Wo",
        "attention_norm": "attn_norm",
        "ffn_norm": "mlp_norm",
    },
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
}
