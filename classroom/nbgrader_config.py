"""For a course on nbgrader: copy this file into the instructors' course folder (see TEACHING.md).

The solutions in `solutions/*.ipynb` are nbgrader sources as they are: exercises and checks carry its metadata, and a
check is worth as many points as its exercise is difficult (1 to 3).
"""

import os

c = get_config()  # noqa: F821 (nbgrader gives it)

# Learners' notebooks must reach their end: the default stub, `raise NotImplementedError()`, would stop them.
c.ClearSolutions.code_stub = {"python": "...  # your code here"}

# While grading, a check of a wrong answer has to fail. Where learners work it must not: keep this file away from there.
os.environ["COURSE_STRICT"] = "1"
os.environ["COURSE_PROGRESS"] = "off"

# A lesson's slowest cell takes half a minute on a usual laptop; many graded at once take longer.
c.ExecutePreprocessor.timeout = 900
