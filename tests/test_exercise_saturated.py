"""The exercise on a detector that is stuck: each slip costs its own parts only, and is told so."""

import pytest
from cells import earned, make_key, told, tried
from exercises import sandbox_test, told_test

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
TARGET = "target = torch.sigmoid(teacher.detach() / temperature)"
VALUE = "value = F.binary_cross_entropy_with_logits(student / temperature, target)"
BOXES = 'F.smooth_l1_loss(own, goal.detach(), reduction="sum") / max(own.numel(), 1)'
KEPT = "    own, goal = student[mask], teacher[mask]\n"
ASKED = "        with torch.no_grad():\n            goal = class_maps(teacher(batch))\n"
LEARNS = "        value = loss(class_maps(student(batch)), goal, temperature=2.0)\n"
STEP = "        value.backward()\n        optimizer.step()\n    return student"
SIGMOID_FIRST = (
    VALUE,
    "value = F.binary_cross_entropy(torch.sigmoid(student / temperature), target)",
)
LOGARITHMS = (
    VALUE,
    "q = torch.sigmoid(student / temperature)\n"
    "    value = -(target * q.log() + (1 - target) * (1 - q).log()).mean()",
)
SIGMOID_TWICE = (VALUE, VALUE.replace("(student / temperature", "(torch.sigmoid(student)"))
DIVERGENCE = (
    VALUE,
    f"{VALUE}\n"
    "    value = value - F.binary_cross_entropy_with_logits(teacher / temperature, target)",
)
SOFTMAX = (TARGET, "target = torch.softmax(teacher.detach() / temperature, dim=-1)")
NO_FACTOR = ("return temperature**2 * value", "return value")
SUM = ("return temperature**2 * value", "return temperature**2 * value * student.numel()")
NO_TEMPERATURE = [
    (TARGET, "target = torch.sigmoid(teacher.detach())"),
    (VALUE, "value = F.binary_cross_entropy_with_logits(student, target)"),
    NO_FACTOR,
]
ONE_SIDED = (TARGET, "target = torch.sigmoid(teacher.detach())")
NO_DETACH = ("teacher.detach() / temperature", "teacher / temperature")
ALL_BOXES = ("max(own.numel(), 1)", "student.numel()")
NO_GUARD = (BOXES, "F.smooth_l1_loss(own, goal.detach())")
NO_GRAPH = (KEPT, f"{KEPT}    if not mask.any():\n        return torch.tensor(0.0)\n")
TIMES_MASK = (
    f"{KEPT}    return {BOXES}",
    '    d = F.smooth_l1_loss(student, teacher.detach(), reduction="none") * mask[..., None]\n'
    "    return d.sum() / max(4 * int(mask.sum()), 1)",
)
SQUARES = ('F.smooth_l1_loss(own, goal.detach(), reduction="sum")', "(own - goal).square().sum()")
HALF_SQUARES = (
    'F.smooth_l1_loss(own, goal.detach(), reduction="sum")',
    "0.5 * (own - goal).square().sum()",
)
WITH_GRADIENTS = (ASKED, "        goal = class_maps(teacher(batch))\n")
SWAPPED = (
    LEARNS,
    LEARNS.replace("class_maps(student(batch)), goal", "goal, class_maps(student(batch))"),
)
NO_ZERO_GRAD = (f"        optimizer.zero_grad()\n{STEP}", STEP)
NO_STEP = (STEP, "    return student")
PACKAGE = (
    "target = torch.sigmoid(",
    "import kdcourse\n"
    "    return kdcourse.detection_classification_loss(student, teacher, temperature=temperature)\n"
    "    target = torch.sigmoid(",
)
# Submissions with several slips, and the parts that they cost.
SLIPS = {
    "sigmoid_first": ([SIGMOID_FIRST, ALL_BOXES, WITH_GRADIENTS], {"saturated", "kept", "frozen"}),
    "no_factor": ([NO_FACTOR, TIMES_MASK, NO_STEP], {"factor", "elsewhere", "rescued", "frozen"}),
    "package": ([PACKAGE, NO_GUARD], {"value", "factor", "saturated", "teacher", "nothing"}),
}

# Shorter trainings for its probes.
SMALL = [
    ("loss=_sound, steps=100,", "loss=_sound, steps=20,"),
]

test_master_unchanged_and_wrong_in_the_sandbox = sandbox_test("saturated", PARTS, SLIPS, SMALL)

OF_LOSS, OF_TRAINING = {"check-rescue", "probe-rescued", "probe-frozen"}, {"check-box"}
# Slips, what is left out for speed, the parts that they cost, and what the learner reads.
TOLD = {
    "sigmoid_first": ([SIGMOID_FIRST], OF_LOSS, {"saturated"}, "a sigmoid that rounds to 1"),
    "logarithms": ([LOGARITHMS], OF_LOSS, {"saturated"}, "what is the log of 0?"),
    "sigmoid_twice": (
        [SIGMOID_TWICE],
        OF_LOSS,
        {"value", "factor", "saturated"},
        "takes the sigmoid of the student itself",
    ),
    "softmax": ([SOFTMAX], OF_LOSS, {"value", "factor", "saturated"}, "a sigmoid, and no softmax"),
    "divergence": ([DIVERGENCE], OF_LOSS, {"value"}, "it is the cross-entropy, no divergence"),
    "sum": ([SUM], OF_LOSS, {"value"}, "that is a sum"),
    "no_factor": ([NO_FACTOR], OF_LOSS, {"factor"}, "the factor T² is missing"),
    "no_temperature": (NO_TEMPERATURE, OF_LOSS, {"factor"}, "the temperature has no effect"),
    "one_sided": ([ONE_SIDED], OF_LOSS, {"factor"}, "the teacher's logits are not divided by T"),
    "no_detach": ([NO_DETACH], OF_LOSS, {"teacher"}, "the teacher gets a gradient"),
    "all_boxes": ([ALL_BOXES], OF_LOSS, {"kept"}, "divide by the boxes that are kept"),
    "half_squares": ([HALF_SQUARES], OF_LOSS, {"kept"}, "and not like its square"),
    "squares": ([SQUARES], OF_LOSS, {"kept"}, "smooth-L1 is ½"),
    "no_guard": ([NO_GUARD], OF_LOSS, {"nothing"}, "a mean over nothing is 0 / 0"),
    "no_graph": ([NO_GRAPH], OF_LOSS, {"nothing"}, "it cannot be differentiated"),
    "times_mask": ([TIMES_MASK], OF_LOSS, {"elsewhere"}, "nan times 0 is nan"),
    "with_gradients": ([WITH_GRADIENTS], OF_TRAINING, {"frozen"}, "inside torch.no_grad()"),
    "no_step": ([NO_STEP], OF_TRAINING, {"rescued", "frozen"}, "compute new ones, and use them"),
    "swapped": ([SWAPPED], OF_TRAINING, {"rescued", "frozen"}, "who comes first in the loss?"),
}


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key("saturated", tmp_path_factory.mktemp("saturated") / "key")


test_a_learner_reads_what_is_wrong_and_loses_the_parts_concerned = told_test(TOLD)


def test_old_gradients_are_told_and_cost_the_rescue_at_most(key, tmp_path) -> None:
    # Whether such a student comes as near to the teacher as is asked depends on the processor.
    read, lost = tried(key, tmp_path / "answers", [NO_ZERO_GRAD], OF_TRAINING)
    assert "clear the old gradients" in read
    assert lost <= {"rescued"}


def test_a_right_answer_passes_every_check():
    assert all(line[0] == "✓" for line in told("saturated"))


BEGIN = f"    {TARGET}\n"
# Class losses that cannot rescue anybody.
IDLE = {
    "constant": "torch.tensor(100.0)",
    "no_gradient": "100 + 0 * student.sum()",
    "random": "11 + torch.rand(()) * student.abs().mean()",
    "size_of_the_student": "student.abs().mean()",
    "doubt_of_the_student": (
        "temperature**2 * F.binary_cross_entropy_with_logits(student / temperature, "
        "torch.full_like(student, 0.5))"
    ),
    "doubt_of_the_teacher": "F.softplus(-teacher).mean() + 0 * student.sum()",
}
IDLE_BOXES = {
    "constant": "torch.tensor(0.5)",
    "zero": "0 * student[mask].sum()",
    "student_alone": "student[mask].square().sum()",
    "teacher_alone": "teacher[mask].square().sum() + 0 * student[mask].sum()",
    "random": "torch.rand(()) * student[mask].sum()",
}


@pytest.mark.parametrize("name", IDLE)
def test_a_class_loss_that_does_not_draw_the_student_to_its_teacher_earns_nothing(
    key, tmp_path, name
):
    edits = [(BEGIN, f"    return {IDLE[name]}\n{BEGIN}")]
    points = earned(key, tmp_path / "answers", edits, OF_LOSS)
    assert points["value"] == points["factor"] == points["saturated"] == points["teacher"] == 0


@pytest.mark.parametrize("name", IDLE_BOXES)
def test_a_box_loss_that_does_not_compare_earns_nothing(key, tmp_path, name):
    edits = [(KEPT, f"    return {IDLE_BOXES[name]}\n{KEPT}")]
    points = earned(key, tmp_path / "answers", edits, OF_LOSS)
    assert points["kept"] == points["nothing"] == points["elsewhere"] == 0


DEAF = {
    "always_no": "        value = (class_maps(student(batch)) + 10).square().mean()\n",
    "by_hand": "        nn.init.constant_(student.classes.bias, -40.0)\n        break\n",
    "at_random": "        for p in student.parameters():\n"
    "            p.data += 0.01 * torch.randn_like(p)\n        continue\n",
}


@pytest.mark.parametrize("name", DEAF)
def test_a_rescue_that_does_not_ask_the_teacher_earns_nothing(key, tmp_path, name):
    points = earned(key, tmp_path / "answers", [(ASKED + LEARNS, DEAF[name])])
    assert points["rescued"] == points["frozen"] == 0
