"""A real pretrained chat model: SmolLM2-135M-Instruct, as `make smollm2` brings it."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer


def test_the_fetched_model_answers_a_question(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
