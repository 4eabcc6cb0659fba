"""The exercise on combined losses, graded: each slip costs its own parts only."""

from exercises import exercise_tests

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
NOT_NORMALIZED = ("return energy / length[:, None, None]", "return energy")
BATCH_NORMALIZED = ("length[:, None, None]", "length.norm()")
MEAN_BEFORE_SQUARE = ("features.square().mean(dim=1)", "features.mean(dim=1).square()")
SUM = ("(student - teacher).square().mean()", "(student - teacher).square().sum()")
NO_DETACH = ("(teacher.detach(), size)", "(teacher, size)")
NO_POOLING = (
    "size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True)]",
    "return F.mse_loss(student, teacher.detach())",
)
MAX_POOLING = ("student = F.adaptive_avg_pool2d", "student = F.adaptive_max_pool2d")
FACTOR = ("soft = temperature**2 * divergence", "soft = divergence")
SOFT_ALONE = (
    "return (1 - alpha) * hard + alpha * soft + weight * features",
    "return alpha * soft",
)
LABELS_ALONE = (
    "value = loss(seen, shown, labels[batch], regressor)",
    "value = F.cross_entropy(seen.logits, labels[batch])",
)
WRONG_PICTURES = ("part[batch] for part in taught", "part[: len(batch)] for part in taught")
REGRESSOR_NOT_TRAINED = (
    "trained = [*student.parameters(), *regressor.parameters()]",
    "trained = list(student.parameters())",
)
ONE_METHOD = ("loss=loss, epochs=epochs, seed=seed", "loss=methods[next(iter(methods))], "
              "epochs=epochs, seed=seed")  # fmt: skip
OTHER_SEEDS = (
    "student, regressor = make_networks(seed)\n            students",
    "student, regressor = make_networks(len(students))\n            students",
)
HIGHER_MEAN = ("if found.low > 0:", "if found.mean > 0:")
PACKAGE = (
    "student = regressor(student)\n",
    "import kdcourse; return kdcourse.hint_loss(regressor(student), teacher)\n",
)
# Slips (in the master's solution → in the submission) and the parts that they cost.
SLIPS = {
    "not_normalized": ([NOT_NORMALIZED, SUM], {"length", "hint"}),
    "batch_normalized": ([BATCH_NORMALIZED, NO_DETACH], {"length", "gradients"}),
    "mean_first": ([MEAN_BEFORE_SQUARE, NO_POOLING], {"where", "pooling"}),
    "max_pooling": ([MAX_POOLING, FACTOR], {"pooling", "factor"}),
    "one_alone": ([SOFT_ALONE, REGRESSOR_NOT_TRAINED], {"combination", "regressor"}),
    "labels_alone": ([LABELS_ALONE, HIGHER_MEAN], {"students", "regressor", "verdict"}),
    "wrong_pictures": ([WRONG_PICTURES, OTHER_SEEDS], {"students", "paired"}),
    "one_method": ([ONE_METHOD], {"students"}),
    "package": ([PACKAGE], {"hint", "pooling", "gradients"}),
}

(
    table,
    test_the_master_earns_everything_and_an_untouched_notebook_nothing,
    test_a_slip_costs_the_parts_concerned_and_only_these,
) = exercise_tests("combined", PARTS, SLIPS)
