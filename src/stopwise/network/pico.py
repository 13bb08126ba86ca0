"""Pico models and their tokenizer: the real architectures, small enough for a test and built without a network.

Every model is drawn by the architecture's own initialiser with standard deviation 0.02, as pretrained families are, so
that the code paths of a large model run in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

STD = 0.02  # the initializer_range of GPT-2, GPT-Neo and Llama
PAD, EOS = "<pad>", "<eos>"

# Words that follow a space: verbalizers of the built-in tasks, then the vocabulary of the generated test data.
_WORDS = (
    "positive negative good bad spam ham entity human description number location abbreviation person place "
    "red blue green happy sad calm yes no true false relevant irrelevant other business sports sport politics "
    "technology entertainment world "
    "the a of and is in to it was this that we saw near with very one day "
    "rose fire ruby brick cherry sea sky ocean ink denim "
    "party gift song smile dance rain grave tears loss storm lake tea book nap garden"
)
# Words and marks that open a prompt or a line.
_OPENERS = "The Text Review Sentiment Message Type Question Answer Colour Mood Topic Label Sentence Passage"


@lru_cache(maxsize=1)
def _tokenizer_json() -> str:
    """Return the pico tokenizer as the text of a tokenizer.json: a byte-level BPE whose whole words are in the list."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = [PAD, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"Ġ{word}" for word in _WORDS.split()] + _OPENERS.split()
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    # ignore_merges: a word of the vocabulary is one token, any other is spelt in bytes; no trained merge can drift.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(PAD, special=True), AddedToken(EOS, special=True)])
    return tokenizer.to_str()


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """Return a fresh tokenizer of about 350 tokens with pad and eos, the same on every machine.

    Byte-level, so every text can be encoded; " positive", " spam", " red" and the other words of the list are single
    tokens. ``save_pretrained`` writes an ordinary tokenizer.json folder.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()), pad_token=PAD, eos_token=EOS, padding_side="right"
    )


def _gpt2(**options: Any) -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    defaults = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(**defaults | {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} | options))


def _gpt_neo(**options: Any) -> PreTrainedModel:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    # Two global and two local layers; a window of 8 makes the local ones differ at the length of a prompt.
    defaults: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": 128,
        "window_size": 8,
    }
    defaults |= {"attention_types": [[["global", "local"], 2]], "resid_dropout": 0, "embed_dropout": 0}
    return GPTNeoForCausalLM(GPTNeoConfig(**defaults | {"attention_dropout": 0} | options))


def _gpt_neox(**options: Any) -> PreTrainedModel:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    defaults = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**defaults | {"max_position_embeddings": 128} | options))


def _llama(**options: Any) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_grouped_heads() | {"tie_word_embeddings": True} | options))


def _qwen2(**options: Any) -> PreTrainedModel:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_grouped_heads() | {"tie_word_embeddings": False} | options))


def _gemma(**options: Any) -> PreTrainedModel:
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**_grouped_heads() | {"head_dim": 8} | options))


def _grouped_heads() -> dict[str, Any]:
    """Return the shape of the Llama family here: 4 query heads share 2 key/value heads, as in SmolLM2 (9 and 3)."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return shape | {"intermediate_size": 64, "max_position_embeddings": 128}


def _opt(**options: Any) -> PreTrainedModel:
    from transformers import OPTConfig, OPTForCausalLM

    defaults: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    defaults |= {"init_std": STD}
    defaults |= {"max_position_embeddings": 128, "word_embed_proj_dim": 32, "dropout": 0.0, "bos_token_id": 1}
    return OPTForCausalLM(OPTConfig(**defaults | options))


def _bert(**options: Any) -> PreTrainedModel:
    from transformers import BertConfig, BertLMHeadModel

    defaults: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    defaults |= {"intermediate_size": 64}
    defaults |= {"max_position_embeddings": 128, "is_decoder": True, "hidden_dropout_prob": 0.0}
    return BertLMHeadModel(BertConfig(**defaults | {"attention_probs_dropout_prob": 0.0} | options))


_BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": _bert,
    "gemma": _gemma,
    "gpt-neo": _gpt_neo,
    "gpt-neox": _gpt_neox,
    "gpt2": _gpt2,
    "llama": _llama,
    "opt": _opt,
    "qwen2": _qwen2,
}
ARCHITECTURES = tuple(_BUILDERS)


def pico_model(arch: str, *, dtype: str | torch.dtype = "float64", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a random model of ``arch`` with 2 to 4 layers, width 32 and the vocabulary of ``pico_tokenizer``.

    In evaluation mode, without a cache, weights frozen, eager attention. The weights depend on ``seed`` alone (they are
    drawn in float32, then cast, and the global generator is left as it was). ``overrides`` are fields of the
    architecture's config. Raises ValueError for an unknown architecture. Cost: about 10 ms.
    """
    if arch not in _BUILDERS:
        raise ValueError(f"pico architecture {arch!r} is not one of {', '.join(ARCHITECTURES)}")
    tokenizer = pico_tokenizer()
    options: dict[str, Any] = {"vocab_size": len(tokenizer), "attn_implementation": "eager", "use_cache": False}
    options |= {"initializer_range": STD} if arch != "opt" else {}
    options |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    options |= {"bos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[arch](**options | overrides)
    model.eval().requires_grad_(False)
    torch.nn.Module.to(model, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    return model


_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TALL: dict[str, Any] = _WIDE | {"max_position_embeddings": 128}
_DEBERTA = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
_DEBERTA |= {
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}
# The classes of transformers' configurations and what makes them small; dropout stays as the architecture has it.
_CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _TALL),
    "deberta-v2": ("DebertaV2Config", _TALL | _DEBERTA),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 128},
    ),
    "electra": ("ElectraConfig", _TALL | {"embedding_size": 16}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "llama": ("LlamaConfig", _TALL | {"num_key_value_heads": 2}),
    "modernbert": ("ModernBertConfig", _TALL | {"local_attention": 8, "num_hidden_layers": 4}),
    "roberta": ("RobertaConfig", _TALL | {"max_position_embeddings": 130, "type_vocab_size": 1}),
}
CLASSIFIERS = tuple(_CLASSIFIERS)


def pico_classifier(
    arch: str, num_labels: int = 2, *, dtype: str | torch.dtype = "float64", seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Return a random sequence classifier of ``arch`` (one of ``CLASSIFIERS``), as small as ``pico_model``.

    In evaluation mode, weights frozen, the attention function that transformers chooses; the weights depend on ``seed``
    and ``num_labels`` alone.
    ``overrides`` are fields of the architecture's config. Raises ValueError for an unknown architecture.
    """
    import transformers

    if arch not in _CLASSIFIERS:
        raise ValueError(f"pico classifier {arch!r} is not one of {', '.join(CLASSIFIERS)}")
    name, shape = _CLASSIFIERS[arch]
    tokenizer = pico_tokenizer()
    options: dict[str, Any] = {"vocab_size": len(tokenizer), "initializer_range": STD, "num_labels": num_labels}
    options |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    options |= {"bos_token_id": tokenizer.eos_token_id}
    options |= {"cls_token_id": tokenizer.eos_token_id, "sep_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, name)(**options | shape | overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.config.use_cache = False
    model.eval().requires_grad_(False)
    torch.nn.Module.to(model, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    return model
