# %% [markdown]
# # 00 · Meet the model
#
# You are about to open up a language model and look inside. It is small enough for a laptop, it chats, and when somebody
# asks it for something harmful it says no. One question runs through this whole course: **where in the model does that
# "no" live?** Today you get to know the model, and the tools you will use from here on.
#
# **After this lesson you can**
#
# * write down exactly what a chat model reads, token by token;
# * read any activation while the model runs: residual stream, heads, neurons;
# * measure refusal in two ways, and say how each of them is fooled;
# * compare a safety-tuned model with the model it came from, and tell how many tokens deep the difference goes;
# * read a logit lens without reading too much into it.
#
# **Time:** about 90 minutes, of which the computer needs about three. **To know before:** some Python and PyTorch, and that a
# transformer is a stack of attention and MLP layers. You need never have opened one.
#
# There are six exercises. None of them can stop you: where yours is missing or not right yet, the course's own version takes
# its place, a line tells you so, and the lesson goes on.
#
# *A word on care.* The harmful requests in this course name a harm and explain nothing. We print how a refusal begins, and
# never an answer to a harmful request.

# %% [markdown]
# ## Set-up

# %%
from contextlib import contextmanager

import numpy as np
import torch

from helpers.checks import check, hint
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.hooks import edit, read, record
from helpers.models import (
    attention_of, dims_of, down_projection_of, final_norm_of, layers_of, load_model, unembedding_of
)  # fmt: skip
from helpers.plots import bars, figure, lines_with_band, logit_lens_grid, show, token_strip
from helpers.prompts import (
    chat_text, load_borderline, load_first_person, load_pairs, load_plain, pad, token_batches, tokenize
)  # fmt: skip
from helpers.quiz import quiz, reveal
from helpers.refusal import RefusalScore, classify_answer, generate, is_refusal, refusal_score_of
from helpers.statistics import bootstrap_interval

model, tokenizer = load_model("smollm2-135m-refusal")  # the one that says no
base, _ = load_model("smollm2-135m")  # the same model, before it learned to

# %% [markdown]
# `model` is SmolLM2-135M-Instruct plus a small adapter that we trained to refuse. `base` is what it was before: a chat model
# too, but one that answers nearly everything. Two models that differ in *one* behaviour are a rare gift: whatever is
# different inside has to do with that behaviour.
#
# ## Predict before you run
#
# A guess that turns out wrong teaches more than an answer you were told. Commit to these three; the lesson will measure each.

# %%
quiz("00.p1")

# %%
quiz("00.p2")

# %%
quiz("00.p3")

# %% [markdown]
# ## 1 · Say hello
#
# Our prompts come in **twins**: a harmful request and a harmless one in the same sentence, so that what differs is the topic
# and nothing else. Here are 24 pairs that the adapter has never seen. The model answers all of them; this takes a moment.

# %%
pairs = load_pairs("test")[:96:4]
requests = {"harmful": [p.harmful for p in pairs], "harmless twins": [p.harmless for p in pairs]}
answers = {("tuned", group): generate(model, tokenizer, asked, max_new_tokens=16) for group, asked in requests.items()}


def refused(said):
    """Which answers refuse, by their words: [answer], 0 or 1."""
    return np.array([is_refusal(answer) for answer in said], dtype=float)


def first_words(answer, count=7):
    """How an answer begins."""
    return " ".join(answer.split()[:count]) + " …"


print(f"refused: {refused(answers['tuned', 'harmful']).mean():.0%} of the harmful requests, "
      f"{refused(answers['tuned', 'harmless twins']).mean():.0%} of their harmless twins")  # fmt: skip

# %% [markdown]
# For a closer look we take a pair that the model tells apart, and whose members have equally many tokens. It stays with us for
# the rest of the lesson.


# %%
def same_length(pair):
    """Whether the two requests have equally many tokens."""
    return len(tokenizer.tokenize(pair.harmful)) == len(tokenizer.tokenize(pair.harmless))


told_apart = refused(answers["tuned", "harmful"]) > refused(answers["tuned", "harmless twins"])
chosen = next((i for i, pair in enumerate(pairs) if told_apart[i] and same_length(pair)), 0)
pair = pairs[chosen]
print("asked:   ", pair.harmful, "\nanswered:", first_words(answers["tuned", "harmful"][chosen]))
print("asked:   ", pair.harmless, "\nanswered:", first_words(answers["tuned", "harmless twins"][chosen]))

# %% [markdown]
# ## 2 · What the model reads
#
# A language model does one thing: given some text, it says how likely each token is to come next. It knows nothing of users and
# assistants. That a *conversation* is going on is written into the text, by the **chat template**: special marks for who is
# speaking, a system prompt in front, and at the end an open invitation to speak as the assistant.

# %%
text = chat_text(tokenizer, [pair.harmful])[0]
print(text)

# %%
ids = tokenize(tokenizer, [text])[0]
show(
    token_strip([tokenizer.decode(i) for i in ids], ids, label="token id", fmt="{:.0f}", title="What the model reads"),
    alt=f"The templated request as {len(ids)} coloured tokens in rows, each with its id written underneath: a system prompt, "
    "then the user's request, then the marks that open the assistant's turn.",
    caption="One box a token, its number in the vocabulary below it (␣ is a space, ↵ a line end). Frequent pieces of text "
    "got low numbers. The request is the smaller part.",
)

# %% [markdown]
# Look at the end of the strip. The last tokens are the same in every prompt: they open the assistant's turn. **The last one is
# where the model decides how its answer begins**, so it is the place where we will look most often.
#
# {{exercise 00.1}}
#
# Half of all mistakes with chat models happen here. Return the text that the model should see for one request, up to the point
# where its answer begins. Every chat tokenizer of the transformers library can write its own template; write it by hand if you
# prefer. The model's default system prompt belongs to it.


# %% exercise="00.1"
def my_chat_text(tokenizer, request):
    """What the model sees when a user asks `request`: a text, up to where the answer begins."""
    ### BEGIN SOLUTION
    conversation = [{"role": "user", "content": request}]
    return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    ### END SOLUTION


# %%
as_chat = check("00.1", my_chat_text, tokenizer=tokenizer)

# %% [markdown]
# How much hangs on these marks? Give the same harmful requests to the same model once with the template and once as bare text.


# %%
def continue_texts(texts, new_tokens=16):
    """What the model writes after texts that are given to it exactly as they are."""
    batch = pad(tokenize(tokenizer, texts), list(range(len(texts))), tokenizer.pad_token_id)
    out = model.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


with_template = refused(continue_texts([as_chat(tokenizer, request) for request in requests["harmful"]]))
without_template = refused(continue_texts(requests["harmful"]))

# %%
both = (with_template, without_template)
low, high = zip(*map(bootstrap_interval, both), strict=True)
show(
    bars(["with the chat template", "as bare text"], [r.mean() for r in both], intervals=(low, high),
         ylabel="harmful requests refused", ylim=(0, 1.08)),
    alt=f"Two bars: {with_template.mean():.0%} of the harmful requests are refused with the chat template, "
    f"{without_template.mean():.0%} without it.",
    caption=f"The same model and the same {len(pairs)} requests. Whiskers: where the figure would fall for other topics like "
    "these (95% bootstrap intervals).",
)  # fmt: skip
reveal("00.p1", without_template.mean())

# %% [markdown]
# The same weights and the same words: only the marks around them differ. So a study of refusal that forgets the template is a
# study of something else. From here on the helpers put it there for you.
