"""The exercise on born-again networks: each slip costs its own parts only, and is told so."""

import pytest
from cells import earned, make_key, told
from exercises import sandbox_test, slip_test, told_test

PARTS = {
    "frozen": 2,
    "fresh": 2,
    "taught": 3,
    "temperatures": 2,
    "labels": 2,
    "students": 3,
    "accuracies": 2,
    "first": 2,
    "before": 2,
}
ONCE = "            teacher_logits = teacher.eval()(images)\n"
LOSS = "value = loss(logits, teacher_logits[batch], labels[batch], temperature)"
TEACHER = "teacher = generations[-1] if generations else None"
STUDENT = "student = make_student(own_seed)"
TABLE = "return torch.tensor(table), chains"
GENERATION = "    if teacher is not None:\n        with torch.no_grad():\n"
SAME_WEIGHTS = (STUDENT, "student = make_student(seed)")
TRAINED_FURTHER = (STUDENT, "student = generations[-1] if generations else make_student(seed)")
TRAINING_MODE = (ONCE, "            teacher_logits = teacher(images)\n")
GRADIENTS = (LOSS, LOSS.replace("teacher_logits[batch]", "teacher.eval()(images[batch])"))
OTHER_PICTURES = (LOSS, LOSS.replace("teacher_logits[batch]", "teacher_logits[: len(batch)]"))
SOFTENED = (LOSS, LOSS.replace("teacher_logits[batch]", "teacher_logits[batch] / temperature"))
ANOTHER_LOSS = (LOSS, LOSS.replace("= loss(", "= born_again_loss("))
LAST_BY_FIRST = (
    TEACHER,
    "teacher = generations[-1 if generation < 3 else 0] if generations else None",
)
ALL_BY_FIRST = (TEACHER, "teacher = generations[0] if generations else None")
LABELS_ONLY = ("if teacher is None:", "if teacher is None or temperature is not None:")
FIRST_TEMPERATURE = (
    "loss=loss, temperature=temperature, epochs=epochs, seed=own_seed",
    "loss=loss, temperature=temperatures[0], epochs=epochs, seed=own_seed",
)
REVERSED = ("enumerate([None, *temperatures])", "enumerate([None, *reversed(temperatures)])")
TRANSPOSED = (TABLE, "return torch.tensor(table).T, chains")
FRACTIONS = (TABLE, "return torch.tensor(table) / 100, chains")
SHOWN_IMAGES = ("accuracy(network, new_images, new_labels)", "accuracy(network, images, labels)")
ONE_SEED = ("loss=loss, epochs=epochs, seed=seed)\n", "loss=loss, epochs=epochs, seed=0)\n")
HIGHER_MEAN = ("if found.low > 0:", "if found.mean > 0:")
UNPAIRED = ("verdict(table[:, k] - table[:, 0])", "verdict(table[:, k] - table[:, 0].mean())")
TURNED_ROUND = ("verdict(table[:, k] - table[:, 0])", "verdict(table[:, 0] - table[:, k])")
ALWAYS_THE_FIRST = ("table[:, k] - table[:, k - 1]", "table[:, k] - table[:, 0]")
NO_ZERO_GRAD = ("            optimizer.zero_grad()\n", "")
NO_STEP = ("            optimizer.step()\n", "")
COPY = (
    GENERATION,
    "    if teacher is not None:\n"
    "        student.load_state_dict(teacher.state_dict())\n"
    f"        return student.eval()\n{GENERATION}",
)
PACKAGE = (
    "generations = []",
    "import kdcourse\n    kdcourse.BornAgainNetworks(lambda: make_student(seed), temperatures)",
)
# Shorter trainings for its probes.
SMALL = [
    ("loss=_seven_on, epochs=6", "loss=_seven_on, epochs=2"),
    ("loss=_by_temperature, epochs=6", "loss=_by_temperature, epochs=2"),
    ("temperature=4, epochs=6", "temperature=4, epochs=2"),
    ("loss=_sound_loss, epochs=20", "loss=_sound_loss, epochs=2"),
]
# Submissions with several slips, and the parts that they cost.
SLIPS = {
    "same_weights": ([SAME_WEIGHTS, HIGHER_MEAN], {"fresh", "first", "before"}),
    "labels_only": (
        [LABELS_ONLY, TRANSPOSED],
        {"frozen", "students", "taught", "temperatures", "accuracies"},
    ),
    "copy": (
        [COPY, ALWAYS_THE_FIRST],
        {"frozen", "fresh", "taught", "temperatures", "students", "before"},
    ),
    "no_step": ([NO_STEP], {"frozen", "taught", "temperatures", "labels", "students"}),
    "package": ([PACKAGE], set(PARTS) - {"frozen", "first", "before"}),
}

test_master_unchanged_and_wrong_in_the_sandbox = sandbox_test("born_again", PARTS, SLIPS, SMALL)
test_a_slip_costs_its_own_parts = slip_test(PARTS, SLIPS)

# Left out in this process: what trains for long.
LONG = {"run-table", "conclude", "probe-labels", "probe-students", "probe-accuracies"}
CHAIN = {"probe-fresh", "probe-taught", "probe-temperatures"}
END = {"probe-first", "probe-before"}
OF_GENERATION = {*LONG, *CHAIN, *END, "check-chain", "check-table"}
OF_TABLE = {*LONG, *CHAIN, *END, "check-batch", "check-chain", "probe-frozen"}
OF_END = {*OF_TABLE, "check-generation", "check-table"} - END


def of_chain(part):
    """What is left out where one part of the chain is looked at."""
    return {*LONG, *CHAIN, *END, "check-batch", "check-table"} - {f"probe-{part}"}


# Slips, what is left out for speed, the parts that they cost, and what the learner reads.
TOLD = {
    "no_zero_grad": ([NO_ZERO_GRAD], OF_GENERATION, set(), "clear the old gradients"),
    "no_step": ([NO_STEP], OF_GENERATION, {"frozen"}, "compute new ones, and use them"),
    "training_mode": ([TRAINING_MODE], OF_GENERATION, {"frozen"}, "in eval mode they do not"),
    "gradients": ([GRADIENTS], OF_GENERATION, {"frozen"}, "inside torch.no_grad()"),
    "other_pictures": ([OTHER_PICTURES], OF_GENERATION, {"frozen"}, "second, the teacher's logits"),
    "softened": ([SOFTENED], OF_GENERATION, set(), "and nothing done to them"),
    "another_loss": ([ANOTHER_LOSS], OF_GENERATION, {"frozen"}, "the loss was called 0 times"),
    "same_weights": ([SAME_WEIGHTS], of_chain("fresh"), {"fresh"}, "they began with the same"),
    "trained_further": ([TRAINED_FURTHER], of_chain("fresh"), {"fresh"}, "are the same network"),
    "all_by_first": ([ALL_BY_FIRST], of_chain("taught"), {"taught"}, "what teaches generation 2"),
    "first_temperature": (
        [FIRST_TEMPERATURE],
        of_chain("temperatures"),
        {"temperatures"},
        "expected 8, 4 and 2 in this order, got [8.0, 8.0, 8.0]",
    ),
    "fractions": ([FRACTIONS], OF_TABLE, set(), "percent of the new images"),
    "shown_images": ([SHOWN_IMAGES], OF_TABLE, set(), "percent of the new images"),
    "one_seed": ([ONE_SEED], OF_TABLE, set(), "the chains of two seeds are the same"),
    "higher_mean": ([HIGHER_MEAN], OF_END, {"first", "before"}, "a mean above 0 is not enough"),
    "unpaired": ([UNPAIRED], OF_END, {"first"}, "subtract seed by seed"),
    "turned_round": ([TURNED_ROUND], OF_END, {"first"}, "subtract generation 0 from the later"),
    "always_the_first": ([ALWAYS_THE_FIRST], OF_END, {"before"}, "that is against generation 0"),
}


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key("born_again", tmp_path_factory.mktemp("born_again") / "key", small=SMALL)


test_a_learner_reads_what_is_wrong_and_loses_the_parts_concerned = told_test(TOLD)


def test_a_right_answer_passes_every_check():
    assert all(line[0] == "✓" for line in told("born_again"))


VERDICT = "    def verdict(differences):\n"


@pytest.mark.parametrize("word", ["better", "undecided", "worse"])
def test_a_verdict_without_a_look_at_the_table_earns_nothing(key, tmp_path, word):
    guess = f"    return 2 * [(table.shape[1] - 1) * [{word!r}]]\n"
    points = earned(key, tmp_path / "answers", [(VERDICT, guess + VERDICT)], OF_END)
    assert points["first"] == points["before"] == 0


IDLE = {
    "nothing": "    return student.eval()\n",
    "at_random": "    for p in student.parameters():\n"
    "        p.data += 0.1 * torch.randn_like(p)\n    return student.eval()\n",
}


@pytest.mark.parametrize("name", IDLE)
def test_a_generation_that_learns_nothing_earns_nothing(key, tmp_path, name):
    points = earned(key, tmp_path / "answers", [(GENERATION, IDLE[name] + GENERATION)], LONG)
    assert [points[part] for part in ("frozen", "fresh", "taught", "temperatures")] == [0, 0, 0, 0]
