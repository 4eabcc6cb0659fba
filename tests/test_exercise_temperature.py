"""The real exercise, graded: full score for the master, and each slip costs its own part only."""

from exercises import exercise_tests

PARTS = {
    "divergence": 5,
    "scale": 3,
    "gradients": 2,
    "students": 4,
    "accuracies": 2,
    "best": 2,
    "undecided": 2,
}
FACTOR = ("return temperature**2 * ", "return ")
REVERSED = ("(teacher.exp() * (teacher - student))", "(student.exp() * (student - teacher))")
MEAN_OVER_CLASSES = (".sum(dim=-1)", ".mean(dim=-1)")
TEACHER_GETS_GRADIENTS = ("teacher_logits.detach()", "teacher_logits")
HARD_LABELS = (
    "value = loss(student(images[batch]), teacher_logits[batch], temperature)",
    "value = F.cross_entropy(student(images[batch]), teacher_logits[batch].argmax(1))",
)
UNPAIRED = (
    "interval((accuracies[top] - row).tolist())",
    "interval((accuracies[top] - row.flip(0)).tolist())",
)
PACKAGE = (
    "student = F.log_softmax(student_logits / temperature, dim=-1)",
    "import kdcourse; return kdcourse.soft_target_loss(student_logits, teacher_logits)",
)
# Slips (in the master's solution → in the submission) and the parts that they cost.
SLIPS = {
    "factor": ([FACTOR, UNPAIRED], {"scale", "undecided"}),
    "reversed": ([REVERSED, HARD_LABELS], {"divergence", "students"}),
    "mean": ([MEAN_OVER_CLASSES, TEACHER_GETS_GRADIENTS], {"divergence", "gradients"}),
    "package": ([PACKAGE], {"divergence", "scale", "gradients"}),
}

(
    table,
    test_the_master_earns_everything_and_an_untouched_notebook_nothing,
    test_a_slip_costs_the_parts_concerned_and_only_these,
) = exercise_tests("temperature", PARTS, SLIPS)
