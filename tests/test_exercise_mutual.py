"""The exercise on a worse peer: each slip is told what it is and costs its own part only."""

import pytest
import torch
from cells import earned, make_key, told
from exercises import sandbox_test, slip_test

from kdcourse.models import small_convnet

PARTS = {
    "value": 2,
    "none": 1,
    "several": 2,
    "factor": 1,
    "gradients": 2,
    "everyone": 3,
    "exchange": 2,
    "students": 2,
    "paired": 1,
    "own": 1,
    "interval": 1,
    "verdict": 2,
}
PEER = """\
        peer = F.log_softmax(logits.detach() / temperature, dim=1)
        divergence = (peer.exp() * (peer - student)).sum(dim=1).mean()
        value = value + temperature**2 * divergence / len(peers)
"""


def adds(formula):
    """The master with another term for each peer: a formula of the logits s and t and of T."""
    names = "s, t, T = own, logits.detach(), temperature"
    return (PEER, f"        {names}\n        value = value + ({formula}) / len(peers)\n")


def kl(student, peer, factor="T**2", reduction="batchmean"):
    """The term by `F.kl_div`."""
    return adds(f"{factor} * F.kl_div({student}, {peer}, reduction={reduction!r})")


def target(peer):
    """The master with a single target in place of the peers."""
    return ("for logits in peers:", f"for logits in [{peer}] * len(peers) if peers else []:")


OWN, TARGET = "F.log_softmax(s / T, 1)", "F.softmax(t / T, 1)"
DEFAULT_REDUCTION = kl(OWN, TARGET, reduction="mean")
NO_LOGARITHM = kl("F.softmax(s / T, 1)", TARGET)
WRONG_DIMENSION = kl("F.log_softmax(s / T, 0)", "F.softmax(t / T, 0)")
REVERSED = kl("F.log_softmax(t / T, 1)", "F.softmax(s / T, 1)")
CROSS_ENTROPY = adds(f"T**2 * F.cross_entropy(s / T, {TARGET})")
OVER_PICTURES = kl(OWN, TARGET, reduction="sum")
NO_FACTOR = kl(OWN, TARGET, factor="1")
NOT_SQUARED = kl(OWN, TARGET, factor="T")
ONE_SIDED = kl("F.log_softmax(s, 1)", TARGET)
NO_LABELS = (
    "value = F.cross_entropy(own, labels)\n    student",
    "value = 0 * own.sum()\n    student",
)
NO_DETACH = ("logits.detach() / temperature", "logits / temperature")
CUT = ("temperature**2 * divergence /", "temperature**2 * divergence.item() /")
SUM = ("temperature**2 * divergence / len(peers)", "temperature**2 * divergence")
MEAN_OF_LOGITS = target("sum(peers) / len(peers)")
MEAN_OF_PROBABILITIES = target(
    "temperature * (sum((z / temperature).softmax(1) for z in peers) / len(peers)).log()"
)
FIRST_PEER = target("peers[0]")
TRAINED = "trained = [parameter for network in networks for parameter in network.parameters()]"
ONE_TRAINED = (TRAINED, "trained = list(networks[0].parameters())")
LOSSES = "for i, own in enumerate(logits):"
ONE_LOSS = (LOSSES, "for i, own in list(enumerate(logits))[:1]:")
FROZEN_PEERS = (
    "logits = [network(images[batch]) for network in networks]",
    "with torch.no_grad():\n"
    "                others = [network.eval()(images[batch]) for network in networks[1:]]\n"
    "            logits = [networks[0](images[batch]), *others]",
)
OTHERS = "peers = logits[:i] + logits[i + 1 :]"
ITSELF = (OTHERS, "peers = [logits[i], logits[i - 1]][: len(logits) - 1]")
ALL = (OTHERS, "peers = logits")
OTHER_PICTURES = (OTHERS, f"{OTHERS}\n                peers = [z.roll(1, dims=0) for z in peers]")
LABELS_ALONE = ("loss(own, peers, labels[batch])", "F.cross_entropy(own, labels[batch])")
NO_ZERO_GRAD = ("            optimizer.zero_grad()\n", "")
NO_STEP = ("            optimizer.step()\n", "")
EVAL = ("logits = [network(images", "logits = [network.eval()(images")
CALL = """\
groups[name, seed] = learn_together(
                [student, *peers], images, labels, loss=loss, epochs=epochs, seed=seed
            )"""
DEAF = (CALL, CALL.replace("[student, *peers]", "[student]"))
STUDENT_LAST = (CALL, CALL.replace("[student, *peers]", "[*peers, student]"))
OTHER_ORDER = (CALL, CALL.replace("seed=seed", "seed=len(groups)"))
UNTRAINED = (CALL, "groups[name, seed] = [student, *peers]")
SAME_WEIGHTS = ("build(1000 * number + seed)", "build(seed)")
PEERS_ALIKE = ("build(1000 * number + seed)", "build(1000 + seed)")
OWN_PEERS = ("build(1000 * number + seed)", "make_student(1000 * number + seed)")
OTHER_STUDENTS = ("student = make_student(seed)", "student = make_student(len(groups))")
ONE_STUDENT = ("student = make_student(seed)", "student = make_student(0)")
UNPAIRED = (
    "interval([a - b for a, b in zip(one, other, strict=True)])",
    "interval([a - sum(other) / len(other) for a in one])",
)
HIGHER_MEAN = ("if found.low > 0:", "if found.mean > 0:")
UNDECIDED = ("return word, found.low, found.high", "return 'undecided', found.low, found.high")
CHUNKED = adds(
    "__import__('kdcourse').chunked_soft_target_loss"
    "(s, torch.eye(s.shape[1]), t, torch.eye(s.shape[1]), temperature=T)"
)

# Slips of loss and verdict, the parts that they cost, and what the first check that sees them says.
TOLD = {
    "default_reduction": (DEFAULT_REDUCTION, {"value"}, "unless `reduction` says otherwise"),
    "no_logarithm": (
        NO_LOGARITHM,
        {"value", "several", "factor", "gradients"},
        "takes the student's log-probabilities",
    ),
    "wrong_dimension": (WRONG_DIMENSION, {"value"}, "Over which dimension"),
    "reversed": (REVERSED, {"value"}, "from the student to the peer"),
    "cross_entropy": (CROSS_ENTROPY, {"value"}, "adds the cross-entropy"),
    "over_pictures": (OVER_PICTURES, {"value"}, "take the mean over the pictures"),
    "no_labels": (NO_LABELS, {"value", "none"}, "with the labels is missing"),
    "sum": (SUM, {"several"}, "the sum of both divergences"),
    "mean_of_logits": (MEAN_OF_LOGITS, {"several"}, "from the mean of the logits"),
    "mean_of_probabilities": (
        MEAN_OF_PROBABILITIES,
        {"several"},
        "from the mean of the probabilities",
    ),
    "first_peer": (FIRST_PEER, {"several"}, "only the first peer is heard"),
    "no_factor": (NO_FACTOR, {"factor"}, "the factor T² is missing"),
    "not_squared": (NOT_SQUARED, {"factor"}, "the factor is T, not T²"),
    "one_sided": (ONE_SIDED, {"factor"}, "only one of the two logits"),
    "not_detached": (NO_DETACH, {"gradients"}, "targets are detached"),
    "cut": (CUT, {"gradients"}, "the same whatever its peer says"),
    "unpaired": (UNPAIRED, {"interval", "verdict"}, "the differences are 2, 1, 2 and 1.5"),
    "higher_mean": (HIGHER_MEAN, {"verdict"}, "the differences are 9, −2, −1 and 1"),
}
# Slips of the training and what the learner reads; the class below grades some of them.
TOLD_OF_TRAINING = {
    "no_zero_grad": (NO_ZERO_GRAD, "they added up to 8"),
    "no_step": (NO_STEP, "compute new ones, and use them?"),
    "one_trained": (ONE_TRAINED, "does the optimizer hold its weights?"),
    "one_loss": (ONE_LOSS, "not every network has a loss of its own"),
    "frozen_peers": (FROZEN_PEERS, "in eval mode while it trains"),
    "itself": (ITSELF, "a network is among its own peers"),
    "all": (ALL, "everyone has 2 peers, not 3"),
    "other_pictures": (OTHER_PICTURES, "logits and labels are of different pictures"),
    "labels_alone": (LABELS_ALONE, "was never called"),
    "eval": (EVAL, "in eval mode while it trains"),
    "deaf": (DEAF, "got 1 networks"),
    "student_last": (STUDENT_LAST, "Is it the first of its list?"),
    "other_order": (OTHER_ORDER, "depend on anything but the seed?"),
    "other_students": (OTHER_STUDENTS, "depend on anything but the seed?"),
    "one_student": (ONE_STUDENT, "did not begin with the weights of make_student(3)"),
    "same_weights": (SAME_WEIGHTS, "began with the same weights"),
    "peers_alike": (PEERS_ALIKE, "began with the same weights"),
}
OF_PEERS = {"value", "several", "factor", "gradients"}
# Answers that ignore what they are about, and the parts that they must not earn.
TRICKS = {
    "student_to_uniform": (kl(OWN, "torch.full_like(s, 1 / s.shape[1])"), OF_PEERS),
    "peers_entropy": (adds(f"T**2 * ({TARGET} * F.log_softmax(t / T, 1)).sum(1).mean()"), OF_PEERS),
    "peers_decisions": (adds("T**2 * F.cross_entropy(s / T, t.argmax(1))"), OF_PEERS),
    "only_labels": (adds("0"), OF_PEERS),
    "constant": (adds("T**2"), OF_PEERS),
    "random": (adds("torch.rand(()) + (torch.rand_like(s) * s).sum()"), OF_PEERS),
    "logits": (adds("T**2 * F.mse_loss(s / T, t / T)"), OF_PEERS),
    "undecided": (UNDECIDED, {"verdict"}),
}
TRICKS_OF_TRAINING = {
    "untrained": (UNTRAINED, {"paired"}),
    "one_student": (ONE_STUDENT, {"paired"}),
    "own_peers": (OWN_PEERS, {"own"}),
    "same_weights": (SAME_WEIGHTS, {"own"}),
}
CHECKS = {"check-together", "check-compare", "run-compare", "conclude"}
LONG = {"probe-everyone", "probe-exchange", "probe-students"}
PROBES = {*LONG, "probe-paired", "probe-own"}


# Shorter trainings for its probes.
SMALL = [
    ("loss=_sound_loss, epochs=20,", "loss=_sound_loss, epochs=2,"),
    ("loss=_seven_on, epochs=6,", "loss=_seven_on, epochs=3,"),
    ("seeds=[_seed], epochs=12)", "seeds=[_seed], epochs=2)"),
]


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key("mutual", tmp_path_factory.mktemp("mutual") / "key", small=SMALL)


@pytest.mark.parametrize("name", TOLD)
def test_a_learner_reads_what_is_wrong_and_loses_the_parts_concerned(key, tmp_path, name):
    edit, lost, words = TOLD[name]
    wrong = [line for line in told("mutual", [edit], CHECKS) if line[0] == "✗"]
    assert words in wrong[0]
    points = earned(key, tmp_path / "answers", [edit], CHECKS | PROBES)
    quick = PARTS.keys() - {"everyone", "exchange", "students", "paired", "own"}
    assert {part for part in quick if points[part] < PARTS[part]} == lost


@pytest.mark.parametrize("name", TOLD_OF_TRAINING)
def test_a_learner_reads_what_is_wrong_with_the_training(name):
    edit, words = TOLD_OF_TRAINING[name]
    wrong = [line for line in told("mutual", [edit], {"run-compare", "conclude"}) if line[0] == "✗"]
    assert any(words in line for line in wrong)


@pytest.mark.parametrize("name", TRICKS)
def test_an_answer_that_ignores_what_it_is_about_earns_nothing(key, tmp_path, name):
    edit, parts = TRICKS[name]
    points = earned(key, tmp_path / "answers", [edit], CHECKS | PROBES)
    assert {part: points[part] for part in parts} == dict.fromkeys(parts, 0)


@pytest.mark.parametrize("name", TRICKS_OF_TRAINING)
def test_networks_that_are_not_what_is_asked_for_earn_nothing(key, tmp_path, name):
    edit, parts = TRICKS_OF_TRAINING[name]
    points = earned(key, tmp_path / "answers", [edit], CHECKS | LONG)
    assert {part: points[part] for part in parts} == dict.fromkeys(parts, 0)


def test_a_right_answer_passes_every_check():
    assert all(line[0] == "✓" for line in told("mutual"))


def test_a_student_that_learned_nothing_earns_nothing_by_chance(key):
    for seed in range(30):
        torch.manual_seed(seed)
        weights = {name: value.numpy() for name, value in small_convnet(20).state_dict().items()}
        answers = {"exchange_first": weights, "exchange_last": weights}
        assert key.functions["judge_exchange"](answers, key.context)[0] == 0, seed


# Submissions with several slips, and the parts that they cost.
SLIPS = {
    "one_trained": ([ONE_TRAINED, MEAN_OF_LOGITS], {"several", "everyone", "exchange"}),
    "one_loss": ([ONE_LOSS, UNPAIRED], {"everyone", "exchange", "interval", "verdict"}),
    "frozen_peers": ([FROZEN_PEERS], {"everyone", "exchange"}),
    "other_pictures": ([OTHER_PICTURES], {"exchange", "students"}),
    "deaf": ([DEAF], {"students", "own"}),
    "no_step": ([NO_STEP], {"everyone", "exchange", "students"}),
    "package": ([CHUNKED], {"value", "several", "factor", "gradients"}),
}

test_master_unchanged_and_wrong_in_the_sandbox = sandbox_test("mutual", PARTS, SLIPS, SMALL)
test_a_slip_costs_its_own_parts = slip_test(PARTS, SLIPS, trained={"everyone"})
