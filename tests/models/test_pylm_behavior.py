from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pylm import behavior, evaluate

from conftest import library_text, save_model, save_tokenizer


@pytest.mark.parametrize("n_tokens", [1, 9, 10, 11, 14, 15, 37])
@pytest.mark.parametrize("stride", [4, 10])
def test_windows_score_every_token_once_and_with_enough_before_it(
    n_tokens: int, stride: int
) -> None:
    width = 10
    scored = []
    for start, first in evaluate.windows(n_tokens, width, stride):
        assert start == 0 or first - start == width - stride
        scored += range(first, min(start + width, n_tokens))
    assert scored == list(range(n_tokens))


def test_loss_in_windows_is_the_loss_of_the_model_read_by_hand(tmp_path: Path) -> None:
    model = save_model(tmp_path, max_position_embeddings=16).float().eval()
    document = np.random.default_rng(0).integers(1, 512, 24).astype(np.uint16)
    found = evaluate.nats(model, [document, document[:3]], stride=8)

    def by_hand(start: int, at: int) -> float:
        ids = torch.tensor([[0, *document[start:at].tolist()]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].float()
        return -float(torch.log_softmax(logits, 0)[int(document[at])])

    # windows of 15 tokens: the second starts at 8 and scores from 15 on
    for at, start in ((0, 0), (14, 0), (15, 8), (22, 8), (23, 16)):
        assert found[0][at] == pytest.approx(by_hand(start, at), abs=1e-4)
    np.testing.assert_allclose(found[1], found[0][:3], atol=1e-4)


def test_interval_is_of_the_ratio_of_sums() -> None:
    found = evaluate.interval([1.0, 4.0, 1.0, 2.0], [1, 2, 1, 4], seed=0)
    assert found["value"] == 1.0
    assert found["low"] < 1 < found["high"]
    assert found["n"] == 4


@pytest.mark.parametrize(
    ("snippet", "right"),
    [
        ("def f():\n    return 1\n", True),
        ("\n    def f(self):\n        pass\n\ndef g():\n    pass\n", True),
        ("        x = 1\n    y = 2\nz = 3\n", True),
        ("def f():\n", False),
        ("def f():\n    return (1\n", False),
        ("\n    def f(self):\n        pass\n  x = 1\n", False),
        ("\n  \n", False),
    ],
)
def test_a_cut_of_a_file_parses_where_it_stands(snippet: str, right: bool) -> None:
    assert behavior.parses(snippet) is right


def test_only_whole_lines_of_a_continuation_count() -> None:
    prompt = behavior.Prompt(0, (1,), "def f():", "")
    assert behavior.continued(prompt, "\n    return 1\n    return (")
    assert not behavior.continued(prompt, "\n    return (\n    return 1")
    assert not behavior.continued(prompt, " return 1")


def test_prompts_end_at_a_header_and_are_the_document_s_own_tokens(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    texts = library_text(6)
    found = behavior.prompts(texts, tokenizer, 12, seed=0)
    assert len(found) == 12
    assert found == behavior.prompts(texts, tokenizer, 12, seed=0)
    for prompt in found:
        assert prompt.text.endswith(":")
        assert prompt.text.rsplit("\n", 1)[-1].lstrip().startswith(("def ", "async def "))
        assert len(prompt.ids) <= behavior.HEADER_TOKENS
        assert tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False) == prompt.text
        assert prompt.text + prompt.truth in texts[prompt.document]


def test_head_scores_read_the_right_diagonals() -> None:
    length = 5

    class Attention:
        """One layer of two heads: one looks at the token before, one at what followed last time."""

        config = type("Config", (), {"vocab_size": 50})

        def __call__(self, input_ids: torch.Tensor, **_: object) -> object:
            size = input_ids.shape[1]
            attention = torch.zeros(len(input_ids), 2, size, size)
            attention[:, :, 0, 0] = 1
            for q in range(1, size):
                attention[:, 0, q, q - 1] = 1
                for row, ids in enumerate(input_ids):
                    earlier = (ids[:q] == ids[q]).nonzero().flatten()
                    attention[row, 1, q, int(earlier[0]) + 1 if len(earlier) else 0] = 1
            return type("Output", (), {"attentions": (attention,)})

    # few tokens of fifty: drawn without a repeat within the half, or the second head is ambiguous
    seed = next(s for s in range(99) if len(set(behavior.repeated(length, 1, 50, s)[0])) == 6)
    scores = behavior.heads(Attention(), length, 1, seed)
    np.testing.assert_allclose(scores["previous_token"][0, 0], 1)
    np.testing.assert_allclose(scores["induction"][0], [0, 1])
