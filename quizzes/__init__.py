"""One YAML file a lesson: its quiz, its hints and what its checks say. `helpers.quiz` reads them."""
