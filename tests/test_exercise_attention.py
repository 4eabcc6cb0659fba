"""The exercise on attention and padding: each slip costs its own parts only, and is told so."""

import pytest
from cells import earned, make_key, told
from exercises import sandbox_test, told_test

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
DIVERGENCE = "divergence = target * (target.log() - own.log())"
MEAN = "return divergence.sum(dim=-1).mean()"
NORMALIZE = "row = row / row.sum(dim=-1, keepdim=True)"
MAP = "[(2 * i * (num_teacher - 1) + last) // (2 * last) for i in range(num_student)]"
ANSWERS = "F.cross_entropy(logits[real], answers[rows][real])"
STEP = "        value.backward()\n        optimizer.step()\n    return student"
REVERSED = (DIVERGENCE, "divergence = own * (own.log() - target.log())")
CROSS_ENTROPY = (DIVERGENCE, "divergence = -target * own.log()")
SQUARES = (DIVERGENCE, "divergence = (own - target).square()")
MEAN_OVER_KEYS = (MEAN, "return divergence.mean()")
SUM_OVER_HEADS = (MEAN, "return divergence.sum(dim=(1, 2)).mean()")
ALL_ROWS = (MEAN, "return divergence.sum() / (student.shape[1] * mask.numel())")
EVERY_SEQUENCE = (
    MEAN,
    "of_rows = divergence.sum(dim=-1).mean(dim=1)\n"
    "    lengths = mask.sum(dim=1)\n"
    "    return torch.stack([x.mean() for x in of_rows.split(lengths.tolist())]).mean()",
)
SOFTMAX = (NORMALIZE, "row = row.softmax(dim=-1)")
NOT_NORMALIZED = (NORMALIZE, "row = row / 1")
TIMES_MASK = ("row = torch.where(real_keys, of_queries, 0)", "row = of_queries * real_keys")
NO_CLAMP = ("rows.append(row.clamp_min(torch.finfo(row.dtype).tiny))", "rows.append(row)")
NO_DETACH = ("(student, teacher.detach())", "(student, teacher)")
WRONG_DETACH = ("(student, teacher.detach())", "(student.detach(), teacher)")
FLOOR = (MAP, "[i * (num_teacher - 1) // last for i in range(num_student)]")
OFTEN_SEEN = (MAP, "[i * (num_teacher // num_student) for i in range(num_student)]")
ONE_STATE = ("return [num_teacher - 1]", "return [0]")
ALL_TOKENS = (ANSWERS, "F.cross_entropy(logits.flatten(0, 1), answers[rows].flatten())")
NO_MASK = ("student(tokens[rows], real)", "student(tokens[rows], torch.ones_like(real))")
NO_ZERO_GRAD = (f"        optimizer.zero_grad()\n{STEP}", STEP)
NO_STEP = (STEP, "    return student")
NO_ATTENTION = ("if weight:", "if weight < 0:")
NO_WEIGHT = ("value + weight * loss(own", "value + loss(own")
SWAPPED = ("loss(own, goal, real)", "loss(goal, own, real)")
PACKAGE = (
    "real_keys = mask",
    "import kdcourse; return kdcourse.attention_loss(student, teacher, mask=mask)\n"
    "    real_keys = mask",
)
# Submissions with several slips, and the parts that they cost.
SLIPS = {
    "reversed": ([REVERSED, OFTEN_SEEN], {"value", "map"}),
    "times_mask": ([TIMES_MASK, NO_ATTENTION], {"padding", "gradients", "learned"}),
    "package": ([PACKAGE, NO_MASK], {"value", "padding", "leak", "zero", "gradients", "deaf"}),
}

test_master_unchanged_and_wrong_in_the_sandbox = sandbox_test("attention", PARTS, SLIPS)

LOSS = {"value", "padding", "leak", "zero", "gradients"}
OF_LOSS = {"check-train", "run-compare", "probe-learned", "probe-deaf"}
OF_TRAINING = {"check-padding", "run-compare"}
# Slips, what is left out for speed, the parts that they cost, and what the learner reads.
TOLD = {
    "reversed": ([REVERSED], OF_LOSS, {"value"}, "from the student to the teacher"),
    "cross_entropy": ([CROSS_ENTROPY], OF_LOSS, {"value"}, "that is the cross-entropy"),
    "mean": ([MEAN_OVER_KEYS], OF_LOSS, {"value", "padding"}, "averaged and not summed"),
    "heads": ([SUM_OVER_HEADS], OF_LOSS, {"value"}, "the rows of both heads count in N"),
    "softmax": ([SOFTMAX], OF_LOSS, {"value", "padding", "leak"}, "is a probability already"),
    "all_rows": ([ALL_ROWS], OF_LOSS, {"padding"}, "do padded queries count in N?"),
    "every_sequence": ([EVERY_SEQUENCE], OF_LOSS, {"padding"}, "all 3 weigh the same"),
    "not_normalized": ([NOT_NORMALIZED], OF_LOSS, {"leak"}, "then divide by what is left"),
    "times_mask": ([TIMES_MASK], OF_LOSS, {"padding", "gradients"}, "nan times 0 is nan"),
    "no_clamp": ([NO_CLAMP], OF_LOSS, {"padding", "leak", "zero"}, "what is log 0?"),
    "no_detach": ([NO_DETACH], OF_LOSS, {"gradients"}, "the teacher gets a gradient"),
    "wrong_detach": ([WRONG_DETACH], OF_LOSS, {"gradients"}, "no gradient reaches the student"),
    "floor": ([FLOOR], OF_LOSS, {"map"}, "½ is added"),
    "often_seen": ([OFTEN_SEEN], OF_LOSS, {"map"}, "the last state must learn from the last"),
    "one_state": ([ONE_STATE], OF_LOSS, {"map"}, "a single state learns from the teacher's last"),
    "all_tokens": ([ALL_TOKENS], OF_TRAINING, {"deaf"}, "only the real ones count"),
    "no_mask": ([NO_MASK], OF_TRAINING, {"deaf"}, "the network needs the mask"),
    "no_zero_grad": ([NO_ZERO_GRAD], OF_TRAINING, {"learned"}, "clear the old gradients"),
    "no_attention": ([NO_ATTENTION], OF_TRAINING, {"learned"}, "look at the attention"),
    "no_weight": ([NO_WEIGHT], OF_TRAINING, {"learned"}, "as if it were larger"),
    "swapped": ([SWAPPED], OF_TRAINING, {"learned"}, "called as loss(own, goal, mask)"),
}


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key("attention", tmp_path_factory.mktemp("attention") / "key")


test_a_learner_reads_what_is_wrong_and_loses_the_parts_concerned = told_test(TOLD)


def test_a_right_answer_passes_every_check():
    assert all(line[0] == "✓" for line in told("attention"))


FIRST = "    real_keys = mask[:, None, :]"
REAL = "student[(mask[:, :, None] & mask[:, None])[:, None].expand_as(student)]"
# Losses that cannot teach anybody where to look.
IDLE = {
    "constant": (FIRST, f"    return torch.tensor(1.0)\n{FIRST}"),
    "no_gradient": (FIRST, f"    return 1 + 0 * {REAL}.sum()\n{FIRST}"),
    "random": (FIRST, f"    return torch.rand(()) * {REAL}.sum()\n{FIRST}"),
    "entropy_of_the_student": (DIVERGENCE, "divergence = -own * own.log()"),
    "evenness_of_the_student": (DIVERGENCE, "divergence = -own.log()"),
    "entropy_of_the_teacher": (DIVERGENCE, "divergence = 0 * own - target * target.log()"),
    "away_from_the_teacher": (DIVERGENCE, "divergence = target * (own.log() - target.log())"),
}


@pytest.mark.parametrize("name", IDLE)
def test_a_loss_that_does_not_draw_the_student_to_its_teacher_earns_nothing(key, tmp_path, name):
    points = earned(key, tmp_path / "answers", [IDLE[name]], OF_LOSS)
    assert {part: points[part] for part in LOSS} == dict.fromkeys(LOSS, 0)


def test_another_distance_costs_the_value_only(key, tmp_path):
    points = earned(key, tmp_path / "answers", [SQUARES], OF_LOSS)
    assert {part for part in LOSS if points[part] < PARTS[part]} == {"value"}


BODY = "        real = mask[rows]\n"
MOVES = "        for p in student.parameters():\n            p.data += {}\n        continue\n"


@pytest.mark.parametrize("amount", ["0.01", "0.01 * torch.randn_like(p)"])
def test_a_training_that_ignores_its_rooms_earns_nothing(key, tmp_path, amount):
    edits = [(BODY, MOVES.format(amount) + BODY)]
    points = earned(key, tmp_path / "answers", edits)
    assert points["learned"] == points["deaf"] == 0
