"""The exercise on combined losses: each slip is told what it is and costs its own part only."""

import pytest
from cells import earned, make_key, told
from exercises import sandbox_test, slip_test

PARTS = {
    "where": 2,
    "length": 1,
    "hint": 2,
    "pooling": 2,
    "gradients": 2,
    "combination": 3,
    "factor": 1,
    "regressor": 1,
    "students": 3,
    "paired": 1,
    "verdict": 2,
}
ENERGY, MAP = "features.square().mean(dim=1)", "return energy / length[:, None, None]"
SQUARES, POOL = "(student - teacher).square().mean()", "F.adaptive_avg_pool2d"
SIZE = "[min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True)]"
SOFT = """\
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=1).mean()
    soft = temperature**2 * divergence
"""
SUM_OF_TERMS = "return (1 - alpha) * hard + alpha * soft + weight * features"
STEP = "value = loss(seen, shown, labels[batch], regressor)"


def soft(formula):
    """The master with another soft term: a formula of the logits s and t and of T."""
    names = "s, t, T = student_logits, teacher_logits.detach(), temperature"
    return (SOFT, f"    {names}\n    soft = {formula}\n")


def kl(student, teacher, factor="T**2", reduction="batchmean"):
    """The soft term by `F.kl_div`."""
    return soft(f"{factor} * F.kl_div({student}, {teacher}, reduction={reduction!r})")


OWN, TARGET = "F.log_softmax(s / T, 1)", "F.softmax(t / T, 1)"
NOT_NORMALIZED = (MAP, "return energy")
BATCH_NORMALIZED = (MAP, "return energy / length.norm()")
ROWS_NORMALIZED = (MAP, "return F.normalize(energy, dim=-1)")
MEAN_BEFORE_SQUARE = (ENERGY, "features.mean(dim=1).square()")
NO_SQUARE = (ENERGY, "features.abs().mean(dim=1)")
WRONG_MEAN = (ENERGY, "features.square().mean(dim=2)")
SUM = (SQUARES, "(student - teacher).square().sum()")
DISTANCE = (SQUARES, "(student - teacher).abs().mean()")
NO_DETACH = ("(teacher.detach(), size)", "(teacher, size)")
CUT = ("student = regressor(student)", "student = regressor(student.detach())")
NO_REGRESSOR = ("student = regressor(student)\n", "pass\n")
MAX_POOLING = (f"student = {POOL}", "student = F.adaptive_max_pool2d")
TO_THE_STUDENT = (SIZE, "student.shape[2:]")
TO_THE_TEACHER = (SIZE, "teacher.shape[2:]")
DEFAULT_REDUCTION = kl(OWN, TARGET, reduction="mean")
NO_LOGARITHM = kl("F.softmax(s / T, 1)", TARGET)
WRONG_DIMENSION = kl("F.log_softmax(s / T, 0)", "F.softmax(t / T, 0)")
REVERSED = kl("F.log_softmax(t / T, 1)", "F.softmax(s / T, 1)")
OVER_PICTURES = kl(OWN, TARGET, reduction="sum")
NO_FACTOR = kl(OWN, TARGET, factor="1")
ONE_SIDED = kl(OWN, "F.softmax(t, 1)")
EXCHANGED = (SUM_OF_TERMS, "return alpha * hard + (1 - alpha) * soft + weight * features")
LABELS_IN_FULL = (SUM_OF_TERMS, "return hard + alpha * soft + weight * features")
NO_WEIGHT = (SUM_OF_TERMS, "return (1 - alpha) * hard + alpha * soft + features")
SOFT_ALONE = (SUM_OF_TERMS, "return alpha * soft")
NO_ZERO_GRAD = ("            optimizer.zero_grad()\n", "")
NO_STEP = ("            optimizer.step()\n", "")
LABELS_ALONE = (STEP, "value = F.cross_entropy(seen.logits, labels[batch])")
EVAL = ("seen = look(student, images", "seen = look(student.eval(), images")
WRONG_PICTURES = ("part[batch] for part in taught", "part[: len(batch)] for part in taught")
REGRESSOR_NOT_TRAINED = (
    "trained = [*student.parameters(), *regressor.parameters()]",
    "trained = list(student.parameters())",
)
CALL = """\
students[name, seed] = distil(
                student, regressor, images, labels, taught, loss=loss, epochs=epochs, seed=seed
            )"""
ONE_METHOD = (CALL, CALL.replace("loss=loss", "loss=methods[next(iter(methods))]"))
OTHER_ORDER = (CALL, CALL.replace("seed=seed", "seed=len(students)"))
UNTRAINED = (CALL, "students[name, seed] = student")
MAKE = "student, regressor = make_networks(seed)\n            students"
OTHER_SEEDS = (MAKE, MAKE.replace("(seed)", "(len(students))"))
ONE_SEED = (MAKE, MAKE.replace("(seed)", "(0)"))
NOISE = (
    "return student.eval()",
    "torch.nn.init.normal_(regressor.projection.weight)\n    return student.eval()",
)
UNPAIRED = (
    "interval([one - other for one, other in zip(pair, alone, strict=True)])",
    "interval([one - sum(alone) / len(alone) for one in pair])",
)
HIGHER_MEAN = ("if found.low > 0:", "if found.mean > 0:")
UNDECIDED = ("    if found.low > 0:", "    if False:")
FITNET = (
    "student = regressor(student)\n",
    "import kdcourse\n"
    "    pairs = kdcourse.FeatureDistillation(student_channels=[3], teacher_channels=[5])\n"
    "    pairs.regressors[0] = regressor\n"
    "    return pairs([student], [teacher])['fitnet']\n",
)

TRAINING = {"check-distil", "check-compare", "run-compare", "conclude"}
PROBES = {"probe-regressor", "probe-students", "probe-paired"}
# Slips of the losses, the parts that they cost, and what the first check that sees them says.
TOLD = {
    "not_normalized": (NOT_NORMALIZED, {"length"}, "the lengths of two maps are [9.899"),
    "batch_normalized": (BATCH_NORMALIZED, {"length"}, "each picture has a length of its own"),
    "rows_normalized": (ROWS_NORMALIZED, {"where", "length"}, "over all rows and columns"),
    "mean_first": (MEAN_BEFORE_SQUARE, {"where"}, "squares first"),
    "no_square": (NO_SQUARE, {"where"}, "it is 2.00 times"),
    "wrong_mean": (WRONG_MEAN, {"where", "length"}, "expected shape [1, 3, 2], got [1, 2, 2]"),
    "sum": (SUM, {"hint"}, "the sum over all 64 numbers"),
    "distance": (DISTANCE, {"hint"}, "and not its square"),
    "no_regressor": (NO_REGRESSOR, {"hint", "pooling", "gradients"}, "regress the student's"),
    "not_detached": (NO_DETACH, {"gradients"}, "targets are detached"),
    "cut": (CUT, {"gradients"}, "no gradient finds its way to the student"),
    "max_pooling": (MAX_POOLING, {"pooling"}, "averaged to the size of the smaller"),
    "to_the_student": (TO_THE_STUDENT, {"pooling"}, "averaged to the size of the smaller"),
    "to_the_teacher": (TO_THE_TEACHER, {"pooling"}, "which is not stretched"),
    "default_reduction": (DEFAULT_REDUCTION, {"combination"}, "unless `reduction` says otherwise"),
    "no_logarithm": (NO_LOGARITHM, {"combination", "factor"}, "takes the student's log-prob"),
    "wrong_dimension": (WRONG_DIMENSION, {"combination"}, "over which dimension"),
    "reversed": (REVERSED, {"combination"}, "from the student to the teacher"),
    "over_pictures": (OVER_PICTURES, {"combination"}, "take the mean over the pictures"),
    "exchanged": (EXCHANGED, {"combination"}, "which weight is whose?"),
    "labels_in_full": (LABELS_IN_FULL, {"combination"}, "should have the weight 1 − α"),
    "no_weight": (NO_WEIGHT, {"combination"}, "with weight 1, whatever w is"),
    "soft_alone": (SOFT_ALONE, {"combination"}, "the labels are missing"),
    "no_factor": (NO_FACTOR, {"factor"}, "the factor T² is missing"),
    "one_sided": (ONE_SIDED, {"factor"}, "only one of the two logits"),
    "unpaired": (UNPAIRED, {"verdict"}, "the differences are 2, 1, 2 and 1.5"),
    "higher_mean": (HIGHER_MEAN, {"verdict"}, "the differences are 9, −2, −1 and 1"),
}
# Slips of the training and what the learner reads; the class below grades some of them.
TOLD_OF_TRAINING = {
    "no_zero_grad": (NO_ZERO_GRAD, "they added up to 4"),
    "no_step": (NO_STEP, "the student is still what it was"),
    "labels_alone": (LABELS_ALONE, "was never called"),
    "wrong_pictures": (WRONG_PICTURES, "other pictures than the batch's"),
    "eval": (EVAL, "in eval mode while it trains"),
    "regressor": (REGRESSOR_NOT_TRAINED, "the regressor is still what it was"),
    "other_seeds": (OTHER_SEEDS, "depend on anything but the seed?"),
    "other_order": (OTHER_ORDER, "depend on anything but the seed?"),
    "one_seed": (ONE_SEED, "did not begin with the weights of make_networks(3)"),
    "one_method": (ONE_METHOD, "two methods give the same student"),
}
LENGTH, HINT, FACTOR = (
    {"where", "length"},
    {"hint", "pooling", "gradients"},
    {"combination", "factor"},
)
HINT_IS = "return (student - teacher).square().mean()"
# Answers that ignore what they are about, and the parts that they must not earn.
TRICKS = {
    "no_map": ((MAP, "return 0 * energy"), LENGTH),
    "same_everywhere": ((MAP, "return 0 * energy + energy[0].numel() ** -0.5"), LENGTH),
    "random_map": ((MAP, "return F.normalize(torch.rand_like(energy), dim=(1, 2))"), LENGTH),
    "student_alone": ((HINT_IS, "return student.square().mean()"), HINT),
    "teacher_alone": ((HINT_IS, "return teacher.square().mean() + 0 * student.sum()"), HINT),
    "constant": ((HINT_IS, "return 1 + 0 * student.sum()"), HINT),
    "means": ((HINT_IS, "return (student.mean() - teacher.mean()).square()"), HINT),
    "random": (
        (HINT_IS, "return torch.rand(()) + (torch.rand_like(student) * student).sum()"),
        HINT,
    ),
    "student_to_uniform": (kl(OWN, "torch.full_like(s, 1 / s.shape[1])"), FACTOR),
    "teachers_entropy": (
        soft(f"T**2 * ({TARGET} * F.log_softmax(t / T, 1)).sum(1).mean()"),
        FACTOR,
    ),
    "only_labels": (soft("hard"), FACTOR),
    "only_T": (soft("T**2"), FACTOR),
    "logits": (soft("T**2 * F.mse_loss(s / T, t / T)"), FACTOR),
    "undecided": (UNDECIDED, {"verdict"}),
}
TRICKS_OF_TRAINING = {
    "untrained": (UNTRAINED, {"paired"}),
    "one_seed": (ONE_SEED, {"paired"}),
    "noise": (NOISE, {"regressor"}),
}


# Shorter trainings for its probes.
SMALL = [
    ("seeds=[_seed], epochs=20,", "seeds=[_seed], epochs=2,"),
]


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key("combined", tmp_path_factory.mktemp("combined") / "key", small=SMALL)


@pytest.mark.parametrize("name", TOLD)
def test_a_learner_reads_what_is_wrong_and_loses_the_parts_concerned(key, tmp_path, name):
    edit, lost, words = TOLD[name]
    wrong = [line for line in told("combined", [edit], TRAINING) if line[0] == "✗"]
    assert words in wrong[0]
    points = earned(key, tmp_path / "answers", [edit], TRAINING | PROBES)
    quick = PARTS.keys() - {"regressor", "students", "paired"}
    assert {part for part in quick if points[part] < PARTS[part]} == lost


@pytest.mark.parametrize("name", TOLD_OF_TRAINING)
def test_a_learner_reads_what_is_wrong_with_the_training(name):
    edit, words = TOLD_OF_TRAINING[name]
    wrong = [
        line for line in told("combined", [edit], {"run-compare", "conclude"}) if line[0] == "✗"
    ]
    assert any(words in line for line in wrong)


@pytest.mark.parametrize("name", TRICKS)
def test_an_answer_that_ignores_what_it_is_about_earns_nothing(key, tmp_path, name):
    edit, parts = TRICKS[name]
    points = earned(key, tmp_path / "answers", [edit], TRAINING | PROBES)
    assert {part: points[part] for part in parts} == dict.fromkeys(parts, 0)


@pytest.mark.parametrize("name", TRICKS_OF_TRAINING)
def test_networks_that_were_not_trained_earn_nothing(key, tmp_path, name):
    edit, parts = TRICKS_OF_TRAINING[name]
    points = earned(key, tmp_path / "answers", [edit], {*TRAINING, "probe-students"})
    assert {part: points[part] for part in parts} == dict.fromkeys(parts, 0)


def test_a_right_answer_passes_every_check():
    assert all(line[0] == "✓" for line in told("combined"))


# Submissions with several slips, and the parts that they cost.
SLIPS = {
    "no_zero_grad": ([NO_ZERO_GRAD, NOT_NORMALIZED], {"length", "students"}),
    "labels_alone": ([LABELS_ALONE, HIGHER_MEAN], {"students", "regressor", "verdict"}),
    "wrong_pictures": ([WRONG_PICTURES, OTHER_SEEDS], {"students", "paired"}),
    "one_method": ([ONE_METHOD], {"students"}),
    "package": ([FITNET], {"hint", "pooling", "gradients"}),
}

test_master_unchanged_and_wrong_in_the_sandbox = sandbox_test("combined", PARTS, SLIPS, SMALL)
test_a_slip_costs_its_own_parts = slip_test(PARTS, SLIPS, trained={"students"})
