"""The four kinds of boxes, as lists of parts.

The refusal direction is one dimension, filled in two steps: the evaluation neurons write 0.4 of it, the decision
heads, which wake above a threshold, add 0.6, and the production neurons, which need more than half, write `sorry`.
"""

from dataclasses import dataclass, replace

import numpy as np

from helpers.glassbox_language import language

from .parts import Flag, Head, Neuron, group, orthogonal, reader, switch
from .space import FLAG, SURE, axis, dims, entity_codes, output_codes, size

DIRECT, DECIDED = 0.4, 0.6  # shares of the refusal direction
SORRY, ANSWER = 6.0, 3.5  # what production neurons, and the neuron of a fact, write onto the code of their word
END: Flag = ("end", 0)
MARKED = {**group("verb"), **group("object"), END: 1.0}


@dataclass(frozen=True)
class Recipe:
    """Where the stages lie and how many neurons they have. Counts of evaluation neurons are per domain."""

    kind: str
    detect: int = 0
    evaluate: tuple[int, ...] = (1, 2)
    decide: int = 3
    produce: tuple[int, ...] = (4, 5)
    n_evaluate: int = 2
    n_produce: int = 6
    n_decide: int = 1
    act_evaluate: float = 1.0
    act_produce: float = 1.0
    wake: float = 0.2  # share of the refusal direction at which a decision head wakes
    steep: float = 30.0  # and how suddenly
    facts: tuple[int, ...] = (1, 2)
    topic: int = 6  # decoys: neurons for any marked verb with any marked object
    copies: int = 2  # exact copies of evaluation neurons, per domain
    elsewhere: int = 3  # evaluation neurons at the wrong positions, per domain
    echo: int = 6  # neurons that read the refusal direction as production neurons do


RECIPES = {
    "concentrated": Recipe("concentrated"),
    "distributed": Recipe(
        "distributed", evaluate=(0, 1, 2), n_evaluate=32, n_produce=32, n_decide=3, act_evaluate=0.25,
        act_produce=0.4, wake=0.15, steep=32.0,
    ),
    "redundant": Recipe("redundant", wake=0.25, steep=24.0),
    "entangled": Recipe("entangled", n_evaluate=16, act_evaluate=0.3),
}  # fmt: skip


def mystery_recipe(kind: str, rng: np.random.Generator) -> Recipe:
    """A recipe of one kind whose stages lie elsewhere and whose decoys are others."""
    base = RECIPES[kind]
    if kind == "redundant":
        places = [{"detect": 0, "evaluate": (1,), "decide": 2}, {"detect": 0, "evaluate": (0, 1), "decide": 3}]
    else:
        places = [
            {"detect": 1, "evaluate": (1, 2), "decide": 4, "produce": (4, 5)},
            {"detect": 0, "evaluate": (0, 1), "decide": 2, "produce": (3, 4)},
            {"detect": 1, "evaluate": (2, 3), "decide": 4, "produce": (5,)},
        ]
        if kind == "distributed":  # three layers of evaluation, or a quarter of a layer would not hold its neurons
            places = [
                {"detect": 1, "evaluate": (1, 2, 3), "decide": 4, "produce": (4, 5)},
                {"detect": 0, "evaluate": (0, 1, 2), "decide": 3, "produce": (3, 4)},
                {"detect": 0, "evaluate": (1, 2, 3), "decide": 4, "produce": (4, 5)},
            ]
    place = places[rng.integers(len(places))]
    return replace(
        base, **place, topic=int(rng.choice([6, 8])), elsewhere=int(rng.choice([2, 4])), echo=int(rng.choice([4, 8]))
    )


def evaluation(role: str, domain: int, layer: int, share: float, act: float, to="refusal", suffix="") -> Neuron:
    """A neuron that fires at the assistant token when verb and object are marked for one domain, and no permit."""
    reads = {("verb" + suffix, domain): 1.0, ("object" + suffix, domain): 1.0, ("permit" + suffix, 0): -1.2, END: 1.0}
    return Neuron(role, layer, reads, 2.5, size(to) * share / act * axis(to), act, f"harmful:{domain}")


def facts_of(recipe: Recipe) -> list[tuple[int, dict[Flag, float], np.ndarray]]:
    """For each fact: layer, the flags that name it, the code of its answer."""
    lang, out = language(), []
    for i, (entity, row) in enumerate(lang["facts"].items()):
        code = {("entity", k): float(c) for k, c in enumerate(entity_codes()[i])}
        for j, answer in enumerate(row):
            word = np.zeros(len(axis("end")))
            word[dims("out")] = output_codes()[answer]
            out.append((f"fact:{entity}:{lang['relations'][j]}", {**code, ("relation", j): 1.0}, word))
    return out


def detection(recipe: Recipe) -> list[Head]:
    heads = [
        reader("detection", recipe.detect, "is_verb", "verb_here", "verb", serves="marked", watch=None),
        reader("detection", recipe.detect, "is_object", "object_here", "object", serves="marked"),
        reader("detection", recipe.detect, "is_permit", "is_permit", "permit", serves="permit"),
    ]
    for head, name in zip(heads, ("verb", "object", "permit"), strict=True):
        head.watch = sum(axis(name, i) for i in range(len(dims(name))))
    return heads


def capability(recipe: Recipe) -> list[Head]:
    """The readers of the thing and of the relation; the latter also takes `sure` back, as this is no request."""
    thing = reader("capability", 0, "is_entity", "entity_here", "entity", serves=None)
    relation = reader("capability", 0, "is_relation", "relation_here", "relation", serves="capability")
    relation.watch = sum(axis("relation", i) for i in range(4))
    word = np.zeros(len(axis("end")))
    word[dims("out")] = -SURE * output_codes()["sure"]
    relation.values.append(({("is_relation", 0): 2.0}, word))
    return [thing, relation]


def circuit(recipe: Recipe, rng: np.random.Generator) -> list[Head | Neuron]:
    """The four stages, the backup if there is one, and the facts."""
    parts: list[Head | Neuron] = [*detection(recipe), *capability(recipe)]
    facts, n = facts_of(recipe), recipe.n_evaluate
    for domain in range(4):
        for i in range(n):
            layer = recipe.evaluate[(i + domain) % len(recipe.evaluate)]
            act = recipe.act_evaluate * rng.uniform(1.0, 1.5)  # neurons differ in loudness, not in what they cause
            parts.append(evaluation("evaluation", domain, layer, DIRECT / n, act))
    if recipe.kind == "entangled":
        evaluators = [p for p in parts if p.role == "evaluation"]
        for neuron, (_, reads, word) in zip(evaluators, facts, strict=True):
            # A relation word turns `up` around and makes the gate open wider: a question writes the answer.
            neuron.reads |= {flag: 1.3 * w for flag, w in reads.items()}
            neuron.up_reads = group("relation", -5.0)
            neuron.write = neuron.write - ANSWER / 2.64 * word
    else:
        for i, (name, reads, word) in enumerate(facts):
            layer = recipe.facts[i % len(recipe.facts)]
            parts.append(Neuron("fact", layer, {**reads, END: 1.0}, 2.5, ANSWER / 2.4 * word, 2.4, name))
    for _ in range(recipe.n_decide):
        parts.append(
            switch(
                "decision", recipe.decide, {("refusal", 0): recipe.steep}, -recipe.steep * recipe.wake,
                DECIDED / recipe.n_decide * size("refusal") * axis("refusal"), serves="harmful", watch=axis("refusal"),
            )
        )  # fmt: skip
    if recipe.kind == "redundant":
        parts += backup(recipe)
    word = np.zeros(len(axis("end")))
    word[dims("out")] = output_codes()["sorry"]
    for i in range(recipe.n_produce):
        act, layer = recipe.act_produce * rng.uniform(0.8, 1.6), recipe.produce[i % len(recipe.produce)]
        write = SORRY / recipe.n_produce / act * word
        parts.append(Neuron("production", layer, {("refusal", 0): 1.0, END: 1.0}, 1.5, write, act, "harmful"))
    return parts


def backup(recipe: Recipe) -> list[Head | Neuron]:
    """A second path: its own detection heads and evaluation neurons, onto a direction of its own; and a head that
    reads that direction, but looks away as long as the refusal direction is filled."""
    start, stop = recipe.detect + 1, recipe.produce[0]
    parts: list[Head | Neuron] = []
    for key, source, target in (
        ("is_verb", "verb_here", "verb2"), ("is_object", "object_here", "object2"), ("is_permit", "is_permit", "permit2")
    ):  # fmt: skip
        serves = "permit" if key == "is_permit" else "marked"
        watch = sum(axis(target, i) for i in range(len(dims(target))))
        parts.append(reader("backup:detection", start, key, source, target, serves=serves, watch=watch))
    for domain in range(4):
        for i in range(2):
            layer = start + 1 + (i + domain) % 2
            parts.append(evaluation("backup:evaluation", domain, layer, 0.5, 0.95, "backup", "2"))
    # With the refusal direction at 0, 0.4, 1 it gives 0.99, 0.73, 0.007 of itself: the sum stays near 1.
    parts.append(
        switch(
            "backup:decision", stop, {("backup", 0): 11.8, ("refusal", 0): -10.0}, -6.8,
            size("refusal") * axis("refusal"), serves="backup", watch=axis("refusal"),
        )
    )  # fmt: skip
    return parts


def decoys(recipe: Recipe, rng: np.random.Generator) -> list[Head | Neuron]:
    """What reacts to harm and causes nothing: it writes where nothing of the circuit reads, or where nobody looks.

    Decoys come in pairs that write opposite ways, so that together they do not bend a direction estimated from means.
    """
    parts: list[Head | Neuron] = []
    first, last = recipe.evaluate[0], recipe.evaluate[-1]
    ways = iter(orthogonal(rng))  # each decoy has a way of its own: none writes into another's

    def pairs(role, count, layers, make):
        for i in range(count // 2):
            way, loud = next(ways), rng.uniform(0.7, 1.3)
            for sign in (1, -1):
                neuron = make(layers[i % len(layers)], i)
                neuron.act *= loud
                neuron.role, neuron.write, neuron.free, neuron.pair = role, sign * way, True, f"{role}:{i}"
                parts.append(neuron)

    def topic(layer, _):
        return Neuron("", layer, dict(MARKED), 2.5, axis("spare"), 1.6, "harmful")

    def copy(layer, i):
        return evaluation("", i % 4, layer, 1.0, 1.5)

    def echo(layer, _):
        return Neuron("", layer, {("refusal", 0): 1.0, END: 1.0}, 1.5, axis("spare"), 1.4, "harmful")

    pairs("decoy:topic", recipe.topic, (first, last, recipe.decide), topic)
    pairs("decoy:copy", 4 * recipe.copies, (first, last), copy)
    pairs("decoy:echo", recipe.echo, recipe.produce, echo)
    for domain in range(4):
        for i in range(recipe.elsewhere):
            neuron = evaluation("decoy:elsewhere", domain, (first, last)[i % 2], 0.25, 1.5)
            neuron.reads[END], neuron.threshold, neuron.serves = -1.5, 1.5, f"elsewhere:{domain}"
            parts.append(neuron)
    for layer, key, source in (
        (0, "is_object", "object_here"), (1, "is_verb", "verb_here"), (1, "is_object", "object_here"),
        (2, "is_verb", "verb_here"),
    ):  # fmt: skip
        head = reader("decoy", layer, key, source, source, sharp=5.5)
        head.values = [(what, 0.95 * FLAG * next(ways)) for what, _ in head.values]
        parts.append(head)
    return parts


def dormant(recipe: Recipe, parts: list, rng: np.random.Generator) -> list[Head | Neuron]:
    """Neurons and heads that write the same words and directions as the circuit but never wake: what opens them (two
    verbs' domains at once, a refusal within a question) does not occur. They stand against reading the weights alone."""
    out: list[Head | Neuron] = []
    for i in range(2 * recipe.n_decide + 1):
        reads = {("refusal", 0): recipe.steep, ("relation", i % 4): recipe.steep}
        write = DECIDED / recipe.n_decide * size("refusal") * axis("refusal")
        out.append(switch("dormant", recipe.decide + i % 2, reads, -1.5 * recipe.steep, write))
    sources = {role: [p for p in parts if p.role == role] for role in ("evaluation", "production")}
    for role, copies in (("evaluation", 3), ("production", 7)):
        count = min(copies * len(sources[role]), 320)
        for i in range(count):
            model = sources[role][i % len(sources[role])]
            if role == "production":
                reads = {("refusal", 0): 0.8, ("relation", int(rng.integers(4))): 1.0, END: 1.0}
            else:
                a, b = rng.choice(4, 2, replace=False)
                name = str(rng.choice(["verb", "object"]))
                reads = {(name, int(a)): 1.0, (name, int(b)): 1.0, ("permit", 0): -1.2, END: 1.0}
            out.append(Neuron("dormant", model.layer, reads, 2.5, model.write.copy(), model.act, None, free=False))
    return out
