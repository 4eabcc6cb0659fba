"""The exercise on attention and padding, graded: each slip costs its own parts only."""

from exercises import exercise_tests

PARTS = {
    "value": 3,
    "padding": 4,
    "leak": 2,
    "zero": 1,
    "gradients": 3,
    "map": 2,
    "learned": 3,
    "deaf": 2,
}
REVERSED = (
    "divergence = target * (target.log() - own.log())",
    "divergence = own * (own.log() - target.log())",
)
OF_LOGITS = ("row = row / row.sum(dim=-1, keepdim=True)", "row = row.softmax(dim=-1)")
NOT_NORMALIZED = ("row = row / row.sum(dim=-1, keepdim=True)", "row = row / 1")
TIMES_MASK = (
    "row = torch.where(real_keys, of_queries, 0)",
    "row = of_queries * real_keys",
)
NO_CLAMP = ("rows.append(row.clamp_min(torch.finfo(row.dtype).tiny))", "rows.append(row)")
NO_DETACH = ("(student, teacher.detach())", "(student, teacher)")
ALL_ROWS = (
    "return divergence.sum(dim=-1).mean()",
    "return divergence.sum(dim=-1).sum() / (student.shape[1] * mask.numel())",
)
EVERY_SEQUENCE = (
    "return divergence.sum(dim=-1).mean()",
    "of_rows = divergence.sum(dim=-1).mean(dim=1)\n"
    "    lengths = mask.sum(dim=1)\n"
    "    return torch.stack([x.mean() for x in of_rows.split(lengths.tolist())]).mean()",
)
FLOOR_MAP = (
    "[(2 * i * (num_teacher - 1) + last) // (2 * last) for i in range(num_student)]",
    "[i * (num_teacher // num_student) for i in range(num_student)]",
)
ONE_STATE = ("return [num_teacher - 1]", "return [0]")
ALL_TOKENS = (
    "F.cross_entropy(logits[real], answers[rows][real])",
    "F.cross_entropy(logits.flatten(0, 1), answers[rows].flatten())",
)
NO_MASK = ("student(tokens[rows], real)", "student(tokens[rows], torch.ones_like(real))")
NO_STEP = (
    "        value.backward()\n        optimizer.step()\n    return student",
    "    return student",
)
NO_ATTENTION = ("if weight:", "if weight < 0:")
PACKAGE = (
    "real_keys = mask",
    "import kdcourse; return kdcourse.attention_loss(student, teacher, mask=mask)\n"
    "    real_keys = mask",
)
# Slips (in the master's solution → in the submission) and the parts that they cost.
SLIPS = {
    "reversed": ([REVERSED, FLOOR_MAP], {"value", "map"}),
    "of_logits": ([OF_LOGITS, NO_STEP], {"value", "padding", "leak", "learned", "deaf"}),
    "not_normalized": ([NOT_NORMALIZED, ONE_STATE], {"leak", "map"}),
    "times_mask": ([TIMES_MASK, NO_ATTENTION], {"padding", "gradients", "learned"}),
    "no_clamp": ([NO_CLAMP], {"padding", "leak", "zero"}),
    "no_detach": ([NO_DETACH, ALL_TOKENS], {"gradients", "deaf"}),
    "all_rows": ([ALL_ROWS, NO_MASK], {"padding", "deaf"}),
    "every_sequence": ([EVERY_SEQUENCE], {"padding"}),
    "package": ([PACKAGE], {"value", "padding", "leak", "zero", "gradients"}),
}

(
    table,
    test_the_master_earns_everything_and_an_untouched_notebook_nothing,
    test_a_slip_costs_the_parts_concerned_and_only_these,
) = exercise_tests("attention", PARTS, SLIPS)
