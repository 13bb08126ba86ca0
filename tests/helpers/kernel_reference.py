"""The plain truth for kernel tests: pico models from local configs and one-example-at-a-time, unpadded autograd."""

from __future__ import annotations

import numpy as np
import torch
import transformers as tf

from stopwise.linearized.coding import coding_matrix

VOCAB = 97
VERBALIZERS = [11, 23, 42]

_COMMON = {"vocab_size": VOCAB, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_GROUPED = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _configs() -> dict:
    return {
        "gpt2": lambda: tf.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=64, **_COMMON),
        "gpt-neo": lambda: tf.GPTNeoConfig(
            hidden_size=16,
            num_layers=4,
            num_heads=2,
            attention_types=[[["global", "local"], 2]],
            window_size=4,
            max_position_embeddings=64,
            **_COMMON,
        ),
        "gpt-neox": lambda: tf.GPTNeoXConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
            **_COMMON,
        ),
        "llama": lambda: tf.LlamaConfig(tie_word_embeddings=True, **_GROUPED, **_COMMON),
        "qwen2": lambda: tf.Qwen2Config(tie_word_embeddings=False, **_GROUPED, **_COMMON),
        "opt": lambda: tf.OPTConfig(
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
            word_embed_proj_dim=8,
            init_std=0.02,
            **{k: v for k, v in _COMMON.items() if k != "initializer_range"},
        ),
        "gemma": lambda: tf.GemmaConfig(head_dim=8, **_GROUPED, **_COMMON),
        "gemma2": lambda: tf.Gemma2Config(
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            **(_GROUPED | {"num_hidden_layers": 4}),
            **_COMMON,
        ),
        "qwen3": lambda: tf.Qwen3Config(head_dim=8, tie_word_embeddings=True, **_GROUPED, **_COMMON),
        "bert": lambda: tf.BertConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
            **_COMMON,
        ),
        "roberta": lambda: tf.RobertaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
            **_COMMON,
        ),
    }


def pico(arch: str, dtype: torch.dtype = torch.float64, seed: int = 0, attention: str = "eager") -> torch.nn.Module:
    """Return a frozen pico model; biases and norm weights are moved off their trivial start so that they matter."""
    config = _configs()[arch]()
    config._attn_implementation = attention
    maker = tf.AutoModelForMaskedLM if arch in ("bert", "roberta") else tf.AutoModelForCausalLM
    torch.manual_seed(seed)
    model = maker.from_config(config, attn_implementation=attention)
    return shaken(model, seed + 1).to(dtype).eval().requires_grad_(False)


def prompts(lengths: list[int], seed: int = 0, side: str = "right", positions: list[int] | None = None) -> dict:
    """Return a padded batch of random prompts; the padding is a real token, so that reading it would show."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), 7)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(longest - length, longest)
        ids[row, where] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, where] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "verbalizers": torch.tensor(VERBALIZERS)}
    if positions is not None:
        shift = [0 if side == "right" else longest - length for length in lengths]
        batch["positions"] = torch.tensor([p + s for p, s in zip(positions, shift, strict=True)])
    return batch


def shaken(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Move biases and norm weights off their trivial start and make weights larger, so that all of them matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter *= 3
    return model


def pairs_of_texts(batch: dict) -> dict:
    """Return a batch whose examples' second halves are a second text."""
    mask = batch["attention_mask"]
    place = mask.cumsum(1) - 1
    return batch | {"token_type_ids": (mask.bool() & (2 * place >= mask.sum(1, keepdim=True))).long()}


def _classified(model: torch.nn.Module, batch: dict, row: int) -> torch.Tensor:
    """Return the logits of one example of a sequence classifier, called as its users call it."""
    keep = batch["attention_mask"][row].bool()
    named = {key: batch[key][row, keep][None] for key in ("input_ids", "token_type_ids") if key in batch}
    return model(**named).logits[0]


def plain_outputs(model: torch.nn.Module, batch: dict, outputs: str = "contrast") -> list[torch.Tensor]:
    """Return f of every example [columns], each from its own unpadded pass through the whole head."""
    if "verbalizers" not in batch:
        logits = [_classified(model, batch, row) for row in range(len(batch["input_ids"]))]
        coding = torch.as_tensor(coding_matrix(len(logits[0]), outputs))
        return [coding.to(one.dtype) @ one for one in logits]
    coding = torch.as_tensor(coding_matrix(len(batch["verbalizers"]), outputs))
    rows = []
    for row in range(len(batch["input_ids"])):
        keep = batch["attention_mask"][row].bool()
        position = -1 if "positions" not in batch else int(keep[: int(batch["positions"][row])].sum())
        result = model(input_ids=batch["input_ids"][row, keep][None], output_hidden_states=outputs == "head")
        if outputs == "head":
            logits = model.class_head(result.hidden_states[-1][0, position])
        elif outputs == "vocabulary":
            log_p = result.logits[0, position].log_softmax(0)
            words = batch["verbalizers"]
            rest = torch.ones(len(log_p), dtype=torch.bool).index_fill(0, words, False)
            logits = torch.cat([log_p[words], log_p[rest].exp().sum().log()[None]])
        else:
            logits = result.logits[0, position, batch["verbalizers"]]
        rows.append(coding.to(logits.dtype) @ logits)
    return rows


def plain_jacobian(model: torch.nn.Module, batch: dict, names: list[str], outputs: str = "contrast") -> torch.Tensor:
    """Return J [n * columns, P] in float64 by autograd, one example and one column at a time."""
    chosen = [dict(model.named_parameters())[name] for name in names]
    for parameter in chosen:
        parameter.requires_grad_(True)
    rows = []
    for f in plain_outputs(model, batch, outputs):
        for value in f:
            grads = torch.autograd.grad(value, chosen, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(chosen, grads, strict=True)]
            rows.append(torch.cat([g.reshape(-1) for g in filled]).double())
    for parameter in chosen:
        parameter.requires_grad_(False)
    return torch.stack(rows)


def relative(found, wanted) -> float:
    """Return the relative Frobenius error."""
    found, wanted = (torch.tensor(np.asarray(x), dtype=torch.float64) for x in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())
