"""Prompts: the splits keep their promises, the template is right, padding is right at either side."""

import itertools
import re

import pytest
import torch

from helpers import prompts as P


@pytest.fixture(scope="module")
def tokenizer():
    from helpers.models import load_model

    return load_model("smollm2-135m")[1]


def everything():
    for split in P.SPLITS:
        for phrasing in P.PHRASINGS:
            for pair in P.load_pairs(split, phrasing):
                yield split, pair.harmful
                yield split, pair.harmless
            yield from ((split, text) for text in P.load_borderline(split, phrasing))
            yield from ((split, text) for text in P.load_plain(split, phrasing))


def test_sizes_that_the_course_promises():
    count = {split: len(P.load_pairs(split)) for split in P.SPLITS}
    assert sum(count.values()) >= 480
    assert count["adapter"] >= 200 and count["method"] >= 100
    assert count["validation"] >= 60 and count["test"] >= 120
    assert len({p.kind for s in P.SPLITS for p in P.load_pairs(s)}) >= 12
    assert sum(len(P.load_borderline(s)) for s in P.SPLITS) >= 250 and len(P.load_borderline("test")) >= 100
    assert sum(len(P.load_plain(s)) for s in P.SPLITS) >= 400 and len(P.load_plain("test")) >= 150
    assert len(P.load_first_person("test")) + len(P.load_first_person("validation")) >= 40
    assert len(P.load_paragraphs()) >= 30


def test_no_topic_and_no_request_is_in_two_splits():
    topics = [{p.topic for p in P.load_pairs(s)} for s in P.SPLITS]
    for a, b in itertools.combinations(topics, 2):
        assert not a & b
    where = {}
    for split, text in everything():
        assert where.setdefault(text.lower(), split) == split, text


def content_words(text):
    """What is left of a text without its small words."""
    return {word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3}


def test_no_harmful_request_of_another_split_is_nearly_one_of_the_adapters():
    requests = {
        split: [
            content_words(text)
            for row in P._rows("pairs")
            if row["split"] == split
            for text in (row["harmful"], row["harmful_free"])
        ]
        for split in P.SPLITS
    }
    for split in ("method", "validation", "test"):
        for mine in requests[split]:
            near = [other for other in requests["adapter"] if len(mine & other) >= 0.67 * len(mine | other) > 1]
            assert not near, (split, mine, near)


def test_the_held_out_kind_is_only_in_test():
    for split in P.SPLITS:
        kinds = {p.kind for p in P.load_pairs(split)}
        assert (P.HELD_OUT_KIND in kinds) == (split == "test")


def test_held_out_frames_are_not_seen_ones():
    assert not set(P.phrasings("seen")) & set(P.phrasings("heldout"))
    assert all("{x}" in frame for which in ("seen", "heldout") for frame in P.phrasings(which))


def test_both_members_of_a_pair_share_their_frame():
    for pair in P.load_pairs("test"):
        frames = [f.split("{x}") for f in P.phrasings("seen")]
        assert any(
            pair.harmful.startswith(a)
            and pair.harmful.endswith(b)
            and pair.harmless.startswith(a)
            and pair.harmless.endswith(b)
            for a, b in frames
        )


def test_half_of_the_pairs_have_the_same_number_of_tokens(tokenizer):
    for split in P.SPLITS:
        pairs = P.load_pairs(split)
        a = tokenizer([p.harmful for p in pairs])["input_ids"]
        b = tokenizer([p.harmless for p in pairs])["input_ids"]
        assert sum(len(x) == len(y) for x, y in zip(a, b, strict=True)) >= len(pairs) / 2


def test_kinds_can_be_chosen_and_unknown_names_are_refused():
    assert {p.kind for p in P.load_pairs("test", kinds=["fraud"])} == {"fraud"}
    with pytest.raises(ValueError, match="no kind of harm 'spam'"):
        P.load_pairs("test", kinds=["spam"])
    with pytest.raises(ValueError, match="no split 'train'"):
        P.load_pairs("train")
    with pytest.raises(ValueError, match="no phrasing 'odd'"):
        P.load_plain("test", "odd")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "empty"),
        ("one", "Give a list"),
        (["a", ""], "Prompt 1"),
        (["a", None], "Prompt 1"),
        ([3], "Prompt 0"),
    ],
)
def test_bad_prompts_are_refused_with_a_sentence(bad, message):
    with pytest.raises(ValueError, match=message):
        P.check_prompts(bad)


def test_chat_text_has_the_template_and_ends_where_the_answer_begins(tokenizer):
    (text,) = P.chat_text(tokenizer, ["Hi there"], prefill="Sure")
    assert text.endswith("<|im_start|>assistant\nSure") and "user\nHi there" in text
    (other,) = P.chat_text(tokenizer, ["Hi there"], system="You are a pirate.")
    assert "You are a pirate." in other and "SmolLM" not in other
    (empty,) = P.chat_text(tokenizer, ["Hi there"], system="")
    assert "SmolLM" not in empty


def test_a_tokenizer_without_template_is_refused():
    class Bare:
        chat_template = None

    with pytest.raises(ValueError, match="no chat template"):
        P.chat_text(Bare(), ["Hi"])


def test_a_template_without_system_role_is_refused_with_a_sentence():
    class NoSystem:
        chat_template = "x"

        def apply_chat_template(self, messages, **_):
            if messages[0]["role"] == "system":
                raise RuntimeError("System role not supported")
            return "user: " + messages[0]["content"]

    assert P.chat_text(NoSystem(), ["Hi"]) == ["user: Hi"]
    with pytest.raises(ValueError, match="takes no system prompt"):
        P.chat_text(NoSystem(), ["Hi"], system="You are kind.")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_positions_of_real_tokens_only(side):
    batch = P.pad([[5, 6, 7], [8]], [0, 1], pad_id=0, side=side)
    for row, ids in enumerate([[5, 6, 7], [8]]):
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row][real].tolist() == ids
        assert batch.position_ids[row][real].tolist() == list(range(len(ids)))
        assert batch.input_ids[row, batch.last[row]] == ids[-1]
    with pytest.raises(ValueError, match="Padding side"):
        P.pad([[1]], [0], 0, side="middle")


def test_batches_hold_every_prompt_once_the_longest_first(tokenizer):
    prompts = ["Hi", "Tell me about the history of bread in Europe", "Why?"]
    batches = list(P.token_batches(tokenizer, prompts, batch_size=2))
    assert sorted(i for b in batches for i in b.order) == [0, 1, 2]
    assert batches[0].order[0] == 1
    assert torch.equal(batches[0].last, torch.full((2,), batches[0].input_ids.shape[1] - 1))
