"""The exercise on a detector that is stuck, graded: each slip costs its own parts only."""

from exercises import exercise_tests

PARTS = {
    "value": 3,
    "factor": 2,
    "saturated": 3,
    "teacher": 1,
    "kept": 2,
    "nothing": 1,
    "elsewhere": 2,
    "rescued": 4,
    "frozen": 2,
}
SIGMOID_FIRST = (
    "value = F.binary_cross_entropy_with_logits(student / temperature, target)",
    "value = F.binary_cross_entropy(torch.sigmoid(student / temperature), target)",
)
LOGARITHMS = (
    "value = F.binary_cross_entropy_with_logits(student / temperature, target)",
    "q = torch.sigmoid(student / temperature)\n"
    "    value = -(target * q.log() + (1 - target) * (1 - q).log()).mean()",
)
SOFTMAX = (
    "target = torch.sigmoid(teacher.detach() / temperature)",
    "target = torch.softmax(teacher.detach() / temperature, dim=-1)",
)
NO_FACTOR = ("return temperature**2 * value", "return value")
SUM = ("return temperature**2 * value", "return temperature**2 * value * student.numel()")
NO_DETACH = ("teacher.detach() / temperature", "teacher / temperature")
ALL_BOXES = ("max(own.numel(), 1)", "student.numel()")
NO_GUARD = (
    'F.smooth_l1_loss(own, goal.detach(), reduction="sum") / max(own.numel(), 1)',
    "F.smooth_l1_loss(own, goal.detach())",
)
TIMES_MASK = (
    "own, goal = student[mask], teacher[mask]\n"
    '    return F.smooth_l1_loss(own, goal.detach(), reduction="sum") / max(own.numel(), 1)',
    'd = F.smooth_l1_loss(student, teacher.detach(), reduction="none") * mask[..., None]\n'
    "    return d.sum() / max(4 * int(mask.sum()), 1)",
)
SQUARES = ('F.smooth_l1_loss(own, goal.detach(), reduction="sum")', "(own - goal).square().sum()")
WITH_GRADIENTS = (
    "with torch.no_grad():\n            goal = class_maps(teacher(batch))",
    "goal = class_maps(teacher(batch))",
)
WRONG_IMAGES = ("loss(class_maps(student(batch)), goal", "loss(class_maps(student(batch)), -goal")
NO_STEP = (
    "        value.backward()\n        optimizer.step()\n    return student",
    "    return student",
)
PACKAGE = (
    "target = torch.sigmoid(",
    "import kdcourse\n"
    "    return kdcourse.detection_classification_loss(student, teacher, temperature=temperature)\n"
    "    target = torch.sigmoid(",
)
# Slips (in the master's solution → in the submission) and the parts that they cost.
SLIPS = {
    "sigmoid_first": ([SIGMOID_FIRST, ALL_BOXES], {"saturated", "kept"}),
    "logarithms": ([LOGARITHMS, WITH_GRADIENTS], {"saturated", "frozen"}),
    "softmax": ([SOFTMAX, NO_GUARD], {"value", "factor", "saturated", "nothing"}),
    "no_factor": ([NO_FACTOR, TIMES_MASK], {"factor", "elsewhere"}),
    "sum": ([SUM, WRONG_IMAGES], {"value", "rescued"}),
    "no_detach": ([NO_DETACH, SQUARES], {"teacher", "kept"}),
    "no_step": ([NO_STEP], {"rescued", "frozen"}),
    "package": ([PACKAGE], {"value", "factor", "saturated", "teacher"}),
}

(
    table,
    test_the_master_earns_everything_and_an_untouched_notebook_nothing,
    test_a_slip_costs_the_parts_concerned_and_only_these,
) = exercise_tests("saturated", PARTS, SLIPS)
