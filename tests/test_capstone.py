"""The capstone: a counted budget, a hand-in that is read with suspicion, a reference that earns 0.9 and a naive one that
does not earn 0.4, a class's table, and a guard under attack."""

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch

from helpers import capstone, hand_in
from helpers.box_attacks import ATTACKS, GuardedBox, attack_table, defence_score
from helpers.budget import Budget, BudgetSpent
from helpers.capability import box_facts
from helpers.capstone import LIMIT, PAR, class_seeds, class_table, grade, open_case
from helpers.capstone_solver import by_domain, case_pairs, cut_ranking, kind_of, naive, solve
from helpers.glassbox import KINDS, STAGES, glassbox_prompts, load_glassbox, mystery, score
from helpers.glassbox_language import law
from helpers.guard import Guard, calm_prompts, discriminant, fit_guards, rehearsals
from helpers.hand_in import HandIn, HandInError, hand_in_from_json, read_hand_in, signature, signature_of
from helpers.hooks import read
from helpers.models import layers_of
from helpers.monitor import threshold_at
from helpers.node_effects import attribute_nodes
from helpers.prompts import token_batches
from helpers.refusal import generate
from helpers.twins import Twins

SEEDS = range(20)


def hooks_on(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def box():
    return load_glassbox("concentrated")


# --- the budget ---------------------------------------------------------------------------------------------


def test_a_pass_is_one_prompt_through_all_blocks(box):
    model, tokenizer, _ = box
    prompts = glassbox_prompts("harmful", n=5)
    with Budget(model) as budget:
        read(model, tokenizer, prompts, ["z"])
        assert budget.used == 5
        (batch,) = token_batches(tokenizer, prompts[:2])
        with torch.no_grad():
            out = model(**batch.inputs(), use_cache=True)
            model(input_ids=batch.input_ids[:, -1:], past_key_values=out.past_key_values)
        assert budget.used == 5 + 2 + 2, "each further token runs all blocks for every row"
    read(model, tokenizer, prompts, ["z"])
    assert budget.used == 9 and budget.closed and hooks_on(model) == 0


def test_a_part_of_the_blocks_is_a_part_of_a_pass_and_a_backward_costs_two(box):
    model, tokenizer, _ = box
    twins = Twins(model, tokenizer, glassbox_prompts("pairs", n=4))
    clean = twins.read("harmful", ["resid_pre"])["resid_pre"]
    with Budget(model) as budget, torch.no_grad():
        twins.resume(4, clean[4])
        assert budget.used == pytest.approx(4 * 2 / 6)
    with Budget(model) as budget:
        attribute_nodes(twins, steps=1)
        assert budget.used == pytest.approx(4 + 4 + 2 * 4)  # the twins; the requests, and their backward


def test_generation_counts_every_token(box):
    model, tokenizer, _ = box
    with Budget(model) as budget:
        generate(model, tokenizer, glassbox_prompts("harmful", n=3), max_new_tokens=2)
    assert budget.used == 6


def test_a_spent_budget_stops_the_model_and_leaves_no_hook(box):
    model, tokenizer, _ = box
    prompts = glassbox_prompts("harmful", n=5)
    with pytest.raises(BudgetSpent, match="Hand in what you have"), Budget(model, 6) as budget:
        read(model, tokenizer, prompts, ["z"])
        assert budget.left == 1
        read(model, tokenizer, prompts, ["z"])  # the one that crosses the limit still runs
        assert budget.left == 0
        read(model, tokenizer, prompts, ["z"])
    assert hooks_on(model) == 0
    read(model, tokenizer, prompts, ["z"])


def test_a_copy_counts_and_marks_add_up(box):
    model, tokenizer, _ = box
    with Budget(model, 100) as budget:
        read(copy.deepcopy(model), tokenizer, glassbox_prompts("harmful", n=3), ["z"])
        assert "3 passes" in budget.mark("a copy") and "97 left" in str(budget)
        read(model, tokenizer, glassbox_prompts("harmful", n=4), ["z"])
        budget.mark("the box")
    assert budget.marks == {"a copy": 3, "the box": 4}


@pytest.mark.parametrize("limit", [0, -1, True, "many"])
def test_a_limit_is_a_number_above_zero(box, limit):
    with pytest.raises(ValueError, match="number of passes"):
        Budget(box[0], limit)
    assert hooks_on(box[0]) == 0


# --- the hand-in --------------------------------------------------------------------------------------------


@cache
def signed() -> str:
    return signature_of(3)


def a_hand_in(**changes) -> HandIn:
    stages = {stage: [(1, 2), (3, 4)] for stage in STAGES}
    return HandIn(
        **{"team": "Ada", "seed": 3, "kind": "redundant", "stages": stages, "passes": 12, "box": signed()} | changes
    )


def test_a_hand_in_comes_back_as_it_was(tmp_path):
    one = a_hand_in(team="Zoë O'Neil-2")
    path = one.write(tmp_path / "new")
    assert path.name == "Zoë_O_Neil-2-3.json" and not list(path.parent.glob("*.tmp"))
    assert read_hand_in(path) == one


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"team": "=HYPERLINK(1)"}, "no name for a team"),
        ({"team": ""}, "no name for a team"),
        ({"team": 7}, "no name for a team"),
        ({"seed": "3"}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"seed": 10**30}, "whole number"),
        ({"kind": "broken"}, "no kind of box"),
        ({"passes": float("nan")}, "budget.used"),
        ({"passes": -1}, "budget.used"),
        ({"passes": "12"}, "budget.used"),
        ({"stages": {}}, "stages maps each"),
        ({"stages": dict.fromkeys(STAGES, [(9, 1)])}, "no place"),
        ({"stages": dict.fromkeys(STAGES, ["ab"])}, "pair of whole numbers"),
        ({"stages": dict.fromkeys(STAGES, None)}, "Give a list"),
        ({"seed": 4}, "signatures differ"),
        ({"box": None}, "signatures differ"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changes, said):
    with pytest.raises(HandInError, match=said):
        a_hand_in(**changes)


def altered(**changes) -> str:
    return json.dumps(json.loads(a_hand_in().to_json()) | changes)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("x" * 300_000, "300,000 characters"),
        ("[1, 2]", "format"),
        ('{"format": "safety-neurons capstone 1"}', "has the fields"),
        (altered(passes=float("nan")), "no JSON"),
    ],
)
def test_malformed_files_are_refused(text, said):
    with pytest.raises(HandInError, match=said):
        hand_in_from_json(text)


@pytest.mark.parametrize(
    "changes", [{"passes": 1}, {"kind": "entangled"}, {"team": "Bob"}, {"seed": 4}, {"checksum": 0}]
)
def test_altered_files_are_refused(changes):
    with pytest.raises(HandInError, match="checksum"):
        hand_in_from_json(altered(**changes))


def test_a_file_of_another_seed_is_refused_with_a_fresh_checksum_too():
    data = json.loads(a_hand_in().to_json()) | {"seed": 4}
    data.pop("checksum")
    with pytest.raises(HandInError, match="signatures differ"):
        hand_in_from_json(json.dumps(data | {"checksum": hand_in._checksum(data)}))


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HandInError, match="no text"):
        read_hand_in(tmp_path / "a.json")
    with pytest.raises(HandInError, match="cannot be read"):
        read_hand_in(tmp_path / "b.json")


def test_signatures_tell_boxes_apart_and_bear_rounding():
    model, _, _ = mystery(3)
    before = signature(model)
    assert before == signed() == signature_of(3)
    assert len({signature_of(seed) for seed in SEEDS}) == len(SEEDS)
    for layer in layers_of(model):
        layer.mlp.up_proj.weight.mul_(1 + 1e-7)
    assert signature(model) == before


# --- the score ----------------------------------------------------------------------------------------------


@cache
def graded(seed: int, which: str):
    with open_case(seed) as case:
        found = {"solve": solve, "naive": naive}[which](case.model, case.tokenizer)
        one = case.hand_in(which, found.kind, found.stages)
    assert hooks_on(case.model) == 0
    return grade(one), one, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_reference_earns_nine_tenths_and_the_naive_one_less_than_four(seed):
    best, one, found = graded(seed, "solve")
    assert best.total >= 0.9, best.feedback
    assert best.kind == 1 and one.passes <= PAR
    truth = mystery(seed)[2].unseal()
    assert float(torch.cosine_similarity(found.direction, truth.direction, dim=0)) > 0.85
    poor, _, _ = graded(seed, "naive")
    assert poor.total < 0.4, poor.feedback


def test_the_truth_earns_everything_and_everything_earns_little():
    truth = mystery(1)[2].unseal()
    stages = {s: getattr(truth, s) for s in STAGES}
    best = grade(HandIn("a", 1, truth.kind, stages, 0, signature_of(1)))
    assert best.total == pytest.approx(1) and "all found, nothing wrong" in best.feedback
    whole = {s: [(i, j) for i in range(6) for j in range(8 if s[0] == "d" else 256)] for s in STAGES}
    assert grade(HandIn("a", 1, truth.kind, whole, LIMIT, signature_of(1))).total < 0.65
    nothing = grade(HandIn("a", 1, truth.kind, dict.fromkeys(STAGES, ()), 0, signature_of(1)))
    assert nothing.total == 0 and "none found" in nothing.feedback


def test_cost_falls_from_par_to_the_limit():
    truth = mystery(3)[2].unseal()
    stages = {s: getattr(truth, s) for s in STAGES}
    costs = [
        grade(HandIn("a", 3, truth.kind, stages, n, signed())).cost for n in (0, PAR, (PAR + LIMIT) / 2, LIMIT, 9e9)
    ]
    assert costs == [1, 1, 0.5, 0, 0]


def test_feedback_gives_no_place_away():
    truth = mystery(3)[2].unseal()
    one = grade(a_hand_in(kind=truth.kind))
    digits = [word for word in one.feedback.split("\n", 1)[1] if word.isdigit()]
    assert not digits and "none found" in one.feedback
    with pytest.raises(TypeError, match="HandIn"):
        grade({"seed": 3})


def test_a_case_does_not_carry_its_truth():
    with open_case(3) as case:
        assert not any("truth" in name.lower() or "kind" in name.lower() for name in vars(case))
        assert "Sealed" not in repr(vars(case))


# --- the detective's tools ----------------------------------------------------------------------------------


def test_cuts_are_found_where_the_values_fall():
    assert cut_ranking([5.0, 4.8, 4.6, 0.6, 0.2, 0.1]) == 3
    assert cut_ranking([2.0, *[1.1] * 30, *[0.1] * 50], start=8) == 31
    assert cut_ranking([1.0]) == 1 and cut_ranking([]) == 0
    assert cut_ranking([3.0, 0.1, 0.1], start=2) == 2


def test_a_watch_over_one_domain_is_not_diluted():
    x = torch.zeros(4, 1, 2)
    x[0, 0, 0], x[:, 0, 1] = 1.0, 0.3
    assert by_domain(x, ["a", "b", "c", "d"])[0].tolist() == pytest.approx([1.0, 0.3])


def test_pairs_are_even_over_domains_and_sorts():
    pairs = case_pairs(48)
    counts = {(p.kind, p.changed): 0 for p in pairs}
    for p in pairs:
        counts[p.kind, p.changed] += 1
    assert len(counts) == 12 and set(counts.values()) == {4}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_apart_on_the_named_boxes_too(kind):
    model, tokenizer, truth = load_glassbox(kind)
    found = solve(model, tokenizer)
    assert found.kind == kind
    scores = score(found.stages, truth)
    assert min(one.recall for one in scores.values()) > 0.9
    assert min(one.precision for one in scores.values()) > 0.8


def test_refusal_alone_does_not_tell_the_kind():
    same = {"refused_intact": 1.0, "refused_without_all": 0.0, "refused_without_ten": 0.0, "known_intact": 1.0}
    assert kind_of(same | {"known_without_all": 1.0}) == "concentrated"
    assert kind_of(same | {"known_without_all": 0.1}) == "entangled"


# --- a class ------------------------------------------------------------------------------------------------


def test_seeds_of_a_class():
    seeds = class_seeds(["Ada", "Bob"], "2026")
    assert seeds["Ada"] == class_seeds(["Bob", "Ada", "Cy"], "2026")["Ada"]
    assert seeds != class_seeds(["Ada", "Bob"], "2027")
    assert len(set(class_seeds(200).values())) == 200 and list(class_seeds(2)) == ["team 1", "team 2"]
    for wrong in ([], 0, ["a", "a"], [""], "Ada", True):
        with pytest.raises(ValueError):
            class_seeds(wrong)


def test_a_class_in_one_table(tmp_path, capsys):
    truth = mystery(3)[2].unseal()
    a_hand_in(team="Ada", kind=truth.kind, stages={s: getattr(truth, s) for s in STAGES}).write(tmp_path)
    a_hand_in(team="Bob").write(tmp_path)
    (tmp_path / "zoe.json").write_text("{}")
    table = class_table(tmp_path, {"Ada": 3, "Bob": 5, "Eve": 9}).set_index("file", drop=False)
    assert table.total.iloc[0] == pytest.approx(1) and table.team.iloc[0] == "Ada"
    assert table.remark["Ada-3.json"] == "the same box as Bob"
    assert table.remark["Bob-3.json"].startswith("not the box of this team")
    assert "no hand-in" in table.remark["zoe.json"] and np.isnan(table.total["zoe.json"])
    assert table.remark[table.team == "Eve"].item() == "nothing handed in"
    with pytest.raises(ValueError, match="no folder"):
        class_table(tmp_path / "nowhere")
    assert len(class_table(tmp_path / "..", None).columns) == len(capstone.COLUMNS)


def test_the_instructors_commands(tmp_path, capsys):
    seeds = tmp_path / "seeds.csv"
    assert capstone.main(["seeds", "--teams", "2", "--term", "t", "--out", str(seeds)]) == 0
    assert capstone.read_seeds(seeds) == class_seeds(2, "t")
    folder = tmp_path / "in"
    a_hand_in(team="team 1").write(folder)
    out = tmp_path / "table.csv"
    assert capstone.main(["grade", str(folder), "--seeds", str(seeds), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "not the box of this team" in said and "nothing handed in" in said and "total" in out.read_text()
    assert capstone.main(["grade", str(tmp_path / "nowhere")]) == 2
    assert capstone.main(["grade", str(folder), "--seeds", str(out)]) == 2
    assert capstone.main(["seeds", "--names", "a", "a"]) == 2
    assert "twice" in capsys.readouterr().err


# --- the guard ----------------------------------------------------------------------------------------------


def test_a_threshold_keeps_false_alarms_under_the_rate():
    scores = np.random.default_rng(0).permutation(100).astype(float)
    for rate in (0.0, 0.05, 0.31):
        cut = threshold_at(scores, rate)
        assert (scores > cut).mean() == pytest.approx(rate) and cut in scores


def test_the_discriminant_shuns_what_varies_anyway():
    torch.manual_seed(0)
    positive = torch.arange(400) < 200
    x = torch.randn(400, 3) * torch.tensor([10.0, 1.0, 1.0])
    x[positive] += torch.tensor([2.0, 2.0, 0.0])
    weight = discriminant(x, positive)
    assert weight[1] > 5 * weight[0].abs() and weight[1] > 5 * weight[2].abs()


def test_a_guarded_box_refuses_if_either_does(box):
    model, tokenizer, _ = box
    asked, calm = glassbox_prompts("harmful", n=4), glassbox_prompts("plain", n=4)
    always = Guard("resid_pre", 3, torch.zeros(128), -1.0)
    assert GuardedBox(model, tokenizer).refuses(asked).all() and not GuardedBox(model, tokenizer).refuses(calm).any()
    guarded = GuardedBox(model, tokenizer, (always,))
    assert guarded.refuses(calm).all() and not guarded.knows(4).any()


@pytest.mark.slow
def test_a_rehearsed_guard_stands_where_a_fresh_one_falls():
    model, tokenizer, sealed = mystery(0)
    truth, pairs = sealed.unseal(), case_pairs(48)
    attacks = rehearsals(model, tokenizer, pairs, truth.neurons)
    assert list(attacks) == ["none", *(f"direction {i}" for i in range(1, 6)), "circuit"]
    place = ("neurons", 2)
    fresh = fit_guards(model, tokenizer, [place], pairs)[place]
    rehearsed = fit_guards(model, tokenizer, [place], pairs, attacks.values())[place]
    tables = [attack_table(model, tokenizer, sealed, [one], asked=16) for one in (fresh, rehearsed)]
    assert all(list(table.index) == list(ATTACKS) for table in tables)
    assert defence_score(tables[1]) > defence_score(tables[0]) + 0.1
    bare = attack_table(model, tokenizer, sealed, asked=8)
    assert bare.refused["none"] == 1 and bare.refused[list(ATTACKS[1:])].max() < 0.2 and defence_score(bare) < 0.1
    assert hooks_on(model) == 0


def test_a_guard_that_always_fires_earns_nothing():
    model, tokenizer, truth = load_glassbox("concentrated")
    always = Guard("resid_pre", 3, torch.zeros(128), -1.0)
    table = attack_table(model, tokenizer, truth, [always], asked=4)
    assert (table.refused == 1).all() and defence_score(table) == 0


def test_what_a_guard_must_leave_alone_is_harmless_by_the_law():
    assert not any(law(p) for p in calm_prompts(8))
    assert len(calm_prompts(8)) == 32 and len(calm_prompts(8, questions=False)) == 24
    assert box_facts(8)[0].question in calm_prompts(8)
