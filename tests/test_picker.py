"""The slider over figures: it turns the picture and the words, and asks for alt text."""

import pytest

from helpers import picker
from helpers.figures import figure

WORDS = {name: f"A figure that shows the case called {name}." for name in ("few", "many")}


def figures():
    return {name: figure(size=(2, 1))[0] for name in WORDS}


def test_the_slider_turns_picture_and_words():
    pictures = {name: picker._png(one) for name, one in figures().items()}
    view = picker._view(pictures, "how many", WORDS)
    slider, image, words = view.children
    assert bytes(image.value) == pictures["few"] and WORDS["few"] in words.value
    slider.value = "many"
    assert bytes(image.value) == pictures["many"] and WORDS["many"] in words.value


def test_without_a_notebook_it_says_where_to_look(capsys):
    picker.pick(figures(), "how many", WORDS)
    assert "how many, one of few, many" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'many' has none"):
        picker.pick(figures(), "how many", {"few": WORDS["few"]})
