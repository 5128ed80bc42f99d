"""Marks of rows that look fair and are not: a budget that does not bind or is too small, and a run that diverged."""

from made_records import byte_budget, exemplar_budget

from cil.report import table


def only(content):
    (row,) = [row for section in content.sections for row in section.rows]
    return row.standing, {note.mark: note.text for note in row.notes}


def test_a_budget_that_does_not_bind_is_marked(run):
    standing, marks = only(table([run(exemplars=400, budget=exemplar_budget(1000))]))
    assert standing == "ranked"
    assert marks["keeps every image"].endswith("all 400 training images, so the budget does not bind")
    _, marks = only(table([run(exemplars=100, parameters=1000, budget=byte_budget(34_407))]))  # carries 20,300
    assert marks == {"budget unused 41%": "budget unused 41%: 14,107 of 34,407 bytes"}
    assert only(table([run(exemplars=100, parameters=1000, budget=byte_budget(21_000))]))[1] == {}
    assert only(table([run(exemplars=400, budget=exemplar_budget(400), bound=True)]))[1] == {}


def test_who_may_train_on_images_that_are_held_out_is_marked(run):
    held = {"stream": {"name": "toy", "order_seed": 7, "validation": 0.1}}
    _, marks = only(table([run(config=held, uses_validation=True)]))
    assert marks == {"held-out images": "held-out images: may train on those that stream.validation holds out"}
    assert only(table([run(config=held, seed=1)]))[1] == {}
    assert only(table([run(uses_validation=True, seed=2)]))[1] == {}


def test_classes_without_exemplars_are_marked(run):
    results = {"exemplars": [4, 0]}
    _, marks = only(table([run(budget=exemplar_budget(3), results=results)]))
    words = "0 exemplars for 4 classes at the end, so 4 or more have none"
    assert marks == {"classes without exemplars": f"classes without exemplars: {words}"}


def test_a_run_that_diverged_is_marked_and_not_ranked(run):
    chance = ((50.0, None), (25.0, 25.0))
    standing, marks = only(table([run(matrix=chance, results={"losses": [1.0, 29_500.0]})]))
    assert standing == "unranked"
    assert marks == {"diverged": "diverged, so not ranked: seed 0 had a loss of 29,500 and 25.0 % after experience 1"}
    learned = ((50.0, None), (60.0, 70.0))
    for matrix, losses in ((chance, [1.0, 1.4]), (learned, [1.0, 29_500.0]), (chance, [None, None])):
        assert only(table([run(matrix=matrix, seed=len(str(matrix)), results={"losses": losses})]))[1] == {}


def test_a_seed_that_diverged_is_named_beside_others(run):
    bad = run(seed=1, matrix=((50.0, None), (25.0, 25.0)), results={"losses": [1.0, 29_500.0]})
    standing, marks = only(table([run(seed=0, results={"losses": [1.0, 1.0]}), bad]))
    assert standing == "ranked" and "1 of 2 diverged" in marks
