"""The exercise on born-again networks, graded: each slip costs its own parts only."""

from exercises import exercise_tests

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
SAME_WEIGHTS = ("student = make_student(own_seed)", "student = make_student(seed)")
TRAINING_MODE = ("teacher_logits = teacher.eval()(images)", "teacher_logits = teacher(images)")
GRADIENTS = (
    "value = loss(logits, teacher_logits[batch], labels[batch], temperature)",
    "value = loss(logits, teacher.eval()(images[batch]), labels[batch], temperature)",
)
LAST_BY_FIRST = (
    "teacher = generations[-1] if generations else None",
    "teacher = generations[-1 if generation < 3 else 0] if generations else None",
)
ALL_BY_FIRST = (
    "teacher = generations[-1] if generations else None",
    "teacher = generations[0] if generations else None",
)
LABELS_ONLY = ("if teacher is None:", "if teacher is None or temperature is not None:")
FIRST_TEMPERATURE = (
    "loss=loss, temperature=temperature, epochs=epochs, seed=own_seed",
    "loss=loss, temperature=temperatures[0], epochs=epochs, seed=own_seed",
)
REVERSED = ("enumerate([None, *temperatures])", "enumerate([None, *reversed(temperatures)])")
TRANSPOSED = ("return torch.tensor(table), chains", "return torch.tensor(table).T, chains")
HIGHER_MEAN = ("if found.low > 0:", "if found.mean > 0:")
ALWAYS_THE_FIRST = ("table[:, k] - table[:, k - 1]", "table[:, k] - table[:, 0]")
NO_STEP = ("optimizer.step()", "")
PACKAGE = (
    "generations = []",
    "import kdcourse\n    kdcourse.BornAgainNetworks(lambda: make_student(seed), temperatures)",
)
# Slips (in the master's solution → in the submission) and the parts that they cost.
SLIPS = {
    "same_weights": ([SAME_WEIGHTS, HIGHER_MEAN], {"fresh", "first", "before"}),
    "training_mode": ([TRAINING_MODE, LAST_BY_FIRST], {"frozen", "taught"}),
    "gradients": ([GRADIENTS, REVERSED], {"frozen", "temperatures"}),
    "all_by_first": ([ALL_BY_FIRST, TRANSPOSED], {"taught", "accuracies"}),
    "labels_only": ([LABELS_ONLY], {"students", "taught", "temperatures"}),
    "first_temperature": (
        [FIRST_TEMPERATURE, ALWAYS_THE_FIRST],
        {"temperatures", "before"},
    ),
    "no_step": ([NO_STEP], {"taught", "temperatures", "labels", "students"}),
    "package": ([PACKAGE], set(PARTS) - {"frozen", "first", "before"}),
}

(
    table,
    test_the_master_earns_everything_and_an_untouched_notebook_nothing,
    test_a_slip_costs_the_parts_concerned_and_only_these,
) = exercise_tests("born_again", PARTS, SLIPS)
