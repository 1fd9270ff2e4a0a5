"""A meter for forward passes: what an investigation costs, and a limit to it. Taught in lesson 08.

One *pass* is one prompt through all blocks of the model once. What runs only a part of the blocks (a sweep, a patch that
begins half-way) costs that part; a batch costs one pass a row; each token that is generated costs one, since all blocks
run for it; a backward costs two, the usual estimate of its work. How long a prompt is does not count, so nobody
has to save on words. Not counted is what never reaches a block: comparing activations that were read, looking at columns of
weights. A helper that calls a block and then skips its work (`rank_heads`) is charged for it all the same.
"""

import weakref

from .models import layers_of


class BudgetSpent(RuntimeError):
    """The limit is reached, and the model does not run any more."""


class Budget:
    """Counts the passes of a model from now on, until `close()` or the end of a `with` block.

    limit: passes; the forward that comes after it raises BudgetSpent (None: only count). Copies of the model, made by
    fine-tuning for example, count too. `used`, `left`: passes. Raises ValueError for a limit that is not above 0.
    """

    def __init__(self, model, limit: float | None = None):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
            raise ValueError(f"A budget is a number of passes above 0, or None; {limit!r} is neither.")
        layers = layers_of(model)
        self.limit, self.marks = limit, {}
        self._rows, self._last = 0, 0.0
        self._n_layers, self._handles = len(layers), []
        count, spend = self._counters()
        for layer in layers:
            self._handles.append(layer.register_forward_pre_hook(count, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(spend))

    def _counters(self):
        """The two hooks. They hold the budget weakly and are plain functions: a deep copy of the model shares them."""
        me = weakref.ref(self)

        def count(_, args, kwargs) -> None:
            budget = me()
            if budget is None or budget.closed:
                return
            if budget.limit is not None and budget.used >= budget.limit:
                raise BudgetSpent(
                    f"The budget of {budget.limit:,} passes is spent. Hand in what you have; or open the case again, "
                    "and count what you have spent so far as well."
                )
            budget._rows += len(args[0] if args else kwargs["hidden_states"])

        def backward(rows: int):
            def function(_) -> None:
                if (budget := me()) is not None and not budget.closed:
                    budget._rows += 2 * rows

            return function

        def spend(_, args, output) -> None:
            x = output[0] if isinstance(output, tuple) else output
            if x.requires_grad:
                x.register_hook(backward(len(x)))

        return count, spend

    @property
    def used(self) -> float:
        """Passes so far."""
        return self._rows / self._n_layers

    @property
    def left(self) -> float:
        """Passes that are left, never below 0; infinite without a limit."""
        return float("inf") if self.limit is None else max(0.0, self.limit - self.used)

    @property
    def closed(self) -> bool:
        """Whether it has stopped counting."""
        return not self._handles

    def mark(self, name: str) -> str:
        """Note what was used since the last mark under a name, in `marks`; returns a line to print."""
        spent, self._last = self.used - self._last, self.used
        self.marks[name] = self.marks.get(name, 0.0) + spent
        return f"{name}: {spent:,.0f} passes. {self}"

    def close(self) -> None:
        """Take the hooks off the model; the figures stay. A second time does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.used:,.0f} passes used."
        return f"{self.used:,.0f} of {self.limit:,} passes used, {self.left:,.0f} left."

    def __enter__(self) -> "Budget":
        return self

    def __exit__(self, *_) -> None:
        self.close()
