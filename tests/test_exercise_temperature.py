"""The real exercise: each slip is told what it is and costs its own part, a trick earns nothing."""

import pytest
from cells import earned, make_key, told
from exercises import sandbox_test, slip_test

PARTS = {
    "divergence": 5,
    "scale": 3,
    "gradients": 2,
    "students": 4,
    "accuracies": 2,
    "best": 2,
    "undecided": 2,
}
LOSS = """\
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)
    return temperature**2 * divergence.mean()"""


def loss(formula):
    """The master with another loss: a formula of the logits s and t and of T."""
    names = "s, t, T = student_logits, teacher_logits.detach(), temperature"
    return (LOSS, f"    {names}\n    return {formula}")


def kl(student, teacher, factor="T**2", reduction="batchmean"):
    """The loss by `F.kl_div`."""
    return loss(f"{factor} * F.kl_div({student}, {teacher}, reduction={reduction!r})")


OWN, TARGET = "F.log_softmax(s / T, 1)", "F.softmax(t / T, 1)"
DEFAULT_REDUCTION = kl(OWN, TARGET, reduction="mean")
NO_LOGARITHM = kl("F.softmax(s / T, 1)", TARGET)
LOG_TARGET = kl(OWN, "F.log_softmax(t / T, 1)")
WRONG_DIMENSION = kl("F.log_softmax(s / T, 0)", "F.softmax(t / T, 0)")
REVERSED = kl("F.log_softmax(t / T, 1)", "F.softmax(s / T, 1)")
ONE_SIDED = kl("F.log_softmax(s, 1)", TARGET)
NO_FACTOR = kl(OWN, TARGET, factor="1")
NOT_SQUARED = kl(OWN, TARGET, factor="T")
SUM = kl(OWN, TARGET, reduction="sum")
ROUNDED = kl("F.softmax(s / T, 1).log()", TARGET)
CROSS_ENTROPY = loss(f"T**2 * F.cross_entropy(s / T, {TARGET})")
TEACHER_GETS_GRADIENTS = ("teacher_logits.detach()", "teacher_logits")
NO_ZERO_GRAD = ("            optimizer.zero_grad()\n", "")
NO_BACKWARD = ("            value.backward()\n", "")
WRONG_PICTURES = ("teacher_logits[batch], temperature", "teacher_logits[: len(batch)], temperature")
EVAL = ("loss(student(images[batch])", "loss(student.eval()(images[batch])")
OTHER_LOSS = ("value = loss(student(images", "value = soft_target_loss(student(images")
HARD_LABELS = (
    "value = loss(student(images[batch]), teacher_logits[batch], temperature)",
    "value = F.cross_entropy(student(images[batch]), teacher_logits[batch].argmax(1))",
)
FRACTIONS = ("= accuracy(student, *validation)", "= accuracy(student, *validation) / 100")
TRANSPOSED = ("return accuracies, students", "return accuracies.T, students")
STRING_KEYS = ("students[temperature, seed] =", 'students[f"{temperature}, {seed}"] =')
WRONG_AXIS = ("accuracies.mean(dim=1)", "accuracies.mean(dim=0)")
UNPAIRED = ("(accuracies[top] - row).tolist()", "(accuracies[top] - row.mean()).tolist()")
BEST_LEFT_OUT = (
    "if difference.low <= 0 <= difference.high:",
    "if difference.low <= 0 <= difference.high and temperature != temperatures[top]:",
)
CHUNKED = loss(
    "__import__('kdcourse').chunked_soft_target_loss"
    "(s, torch.eye(s.shape[1]), t, torch.eye(s.shape[1]), temperature=T)"
)

# Slips, the parts that they cost, and what the first public check that sees them says.
TOLD = {
    "default_reduction": (DEFAULT_REDUCTION, {"divergence"}, "unless `reduction` says otherwise"),
    "no_logarithm": (NO_LOGARITHM, {"divergence", "scale", "gradients"}, "log-probabilities"),
    "log_target": (LOG_TARGET, {"divergence", "scale", "gradients"}, "not their logarithms"),
    "wrong_dimension": (WRONG_DIMENSION, {"divergence"}, "over which dimension"),
    "reversed": (REVERSED, {"divergence"}, "from the student to the teacher"),
    "cross_entropy": (CROSS_ENTROPY, {"divergence"}, "is it a cross-entropy?"),
    "sum": (SUM, {"divergence"}, "mean over the pictures"),
    "rounded": (ROUNDED, {"divergence"}, "log softmax in one step"),
    "one_sided": (ONE_SIDED, {"scale"}, "only one of the two logits"),
    "no_factor": (NO_FACTOR, {"scale"}, "the factor T² is missing"),
    "not_squared": (NOT_SQUARED, {"scale"}, "T times the divergence"),
    "not_detached": (TEACHER_GETS_GRADIENTS, {"gradients"}, "targets are detached"),
    "wrong_axis": (WRONG_AXIS, {"best", "undecided"}, "the means over the seeds are"),
    "unpaired": (UNPAIRED, {"undecided"}, "subtract seed by seed"),
    "best_left_out": (BEST_LEFT_OUT, {"undecided"}, "the best itself"),
}
# Slips of the training, which the class below and no quick test grades.
TOLD_OF_TRAINING = {
    "no_zero_grad": (NO_ZERO_GRAD, "they added up to 4"),
    "no_backward": (NO_BACKWARD, "compute new ones, and use them"),
    "wrong_pictures": (WRONG_PICTURES, "belong to other pictures"),
    "eval": (EVAL, "in eval mode while it trains"),
    "other_loss": (OTHER_LOSS, "was never called"),
    "fractions": (FRACTIONS, "are they percentages"),
    "transposed": (TRANSPOSED, "each at its place"),
    "string_keys": (STRING_KEYS, "a student for every temperature and seed"),
}
# Losses that ignore what a divergence is about.
TRICKS = {
    "student_to_uniform": kl(OWN, "torch.full_like(s, 1 / s.shape[1])"),
    "student_alone": loss("s.square().mean()"),
    "teacher_alone": loss(
        f"T**2 * ({TARGET} * F.log_softmax(t / T, 1)).sum(1).mean() + 0 * s.sum()"
    ),
    "teachers_decisions": loss("T**2 * F.cross_entropy(s / T, t.argmax(1))"),
    "constant": loss("T**2 * (1 + 0 * s.sum())"),
    "no_gradient": loss("0 * s.sum()"),
    "random": loss("torch.rand(()) + (torch.rand_like(s) * s).sum()"),
    "logits": loss("T**2 * F.mse_loss(s / T, t / T)"),
}
QUICK = {"check-distil", "run-sweep", "probe-sweep", "probe-accuracies", "conclude"}
GRADED_QUICKLY = PARTS.keys() - {"students", "accuracies"}


# Shorter trainings for its probes.
SMALL = [
    ("    epochs=40,\n", "    epochs=4,\n"),
]


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key("temperature", tmp_path_factory.mktemp("temperature") / "key", small=SMALL)


@pytest.mark.parametrize("name", TOLD)
def test_a_learner_reads_what_is_wrong_and_loses_the_parts_concerned(key, tmp_path, name):
    edit, lost, words = TOLD[name]
    wrong = [line for line in told("temperature", [edit], QUICK) if line[0] == "✗"]
    assert words in wrong[0]
    points = earned(key, tmp_path / "answers", [edit], QUICK)
    assert {part for part in GRADED_QUICKLY if points[part] < PARTS[part]} == lost


@pytest.mark.parametrize("name", TOLD_OF_TRAINING)
def test_a_learner_reads_what_is_wrong_with_the_training(name):
    edit, words = TOLD_OF_TRAINING[name]
    wrong = [line for line in told("temperature", [edit]) if line[0] == "✗"]
    assert words in wrong[0]


@pytest.mark.parametrize("name", TRICKS)
def test_a_loss_that_ignores_what_it_compares_earns_nothing(key, tmp_path, name):
    points = earned(key, tmp_path / "answers", [TRICKS[name]], QUICK)
    assert points["divergence"] == points["scale"] == points["gradients"] == 0


@pytest.mark.parametrize("answer", ["8, [1, 2, 4, 8, 16]", "8, [8]", "16, [4, 8, 16]"])
def test_a_conclusion_without_a_look_at_the_data_earns_nothing(key, tmp_path, answer):
    edit = ("return temperatures[top], undecided", f"return {answer}")
    points = earned(key, tmp_path / "answers", [edit], QUICK)
    assert points["best"] == points["undecided"] == 0


def test_a_right_answer_passes_every_check():
    assert all(line[0] == "✓" for line in told("temperature"))


# Submissions with several slips, and the parts that they cost.
SLIPS = {
    "hard_labels": ([HARD_LABELS, REVERSED], {"divergence", "students"}),
    "no_zero_grad": ([NO_ZERO_GRAD, FRACTIONS], {"students", "accuracies"}),
    "package": ([CHUNKED], {"divergence", "scale", "gradients"}),
}

test_master_unchanged_and_wrong_in_the_sandbox = sandbox_test("temperature", PARTS, SLIPS, SMALL)
test_a_slip_costs_its_own_parts = slip_test(PARTS, SLIPS, trained={"students"})
