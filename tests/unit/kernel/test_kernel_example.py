"""The five lines of the Python tutorial work on any model folder and its tokenizer."""

from __future__ import annotations

import numpy as np

from kernel_reference import pico


def test_a_users_own_model_in_five_lines(tmp_path):
    from stopwise.network.pico import pico_tokenizer

    model, tokenizer = pico("llama"), pico_tokenizer()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    folder, texts, words = str(tmp_path), ["good film", "bad", "a long and dull film"], [" a", " b"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stopwise import empirical_ntk

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    kernel = empirical_ntk(model, batch, verbalizers=[tokenizer.encode(word)[-1] for word in words])

    assert kernel.matrix.shape == (3, 3)
    assert np.linalg.eigvalsh(kernel.matrix)[0] > -1e-6 * np.trace(kernel.matrix)
