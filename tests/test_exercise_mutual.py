"""The exercise on a peer that is worse, graded: each slip costs its own parts only."""

import torch
from exercises import exercise_tests

from kdcourse.grading.key import Key
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
REVERSED = ("(peer.exp() * (peer - student))", "(student.exp() * (student - peer))")
NO_DETACH = ("logits.detach() / temperature", "logits / temperature")
FACTOR = ("value + temperature**2 * divergence / len(peers)", "value + divergence / len(peers)")
SUM = ("temperature**2 * divergence / len(peers)", "temperature**2 * divergence")
MEAN_OF_LOGITS = (
    "for logits in peers:",
    "for logits in [sum(peers) / len(peers)] if peers else []:",
)
MEAN_OF_PROBABILITIES = (
    "for logits in peers:",
    "softened = [(logits / temperature).softmax(dim=1) for logits in peers]\n"
    "    for logits in [temperature * (sum(softened) / len(peers)).log()] if peers else []:",
)
NO_LABELS = (
    "value = F.cross_entropy(own, labels)\n    student",
    "value = 0 * own.sum()\n    student",
)
ONE_TRAINED = (
    "trained = [parameter for network in networks for parameter in network.parameters()]",
    "trained = list(networks[0].parameters())",
)
PEERS_WITHOUT_STEP = (
    "for i, own in enumerate(logits):",
    "for i, own in list(enumerate(logits))[:1]:",
)
FROZEN_PEERS = (
    "logits = [network(images[batch]) for network in networks]",
    "with torch.no_grad():\n"
    "                others = [network.eval()(images[batch]) for network in networks[1:]]\n"
    "            logits = [networks[0](images[batch]), *others]",
)
ITSELF = ("peers = logits[:i] + logits[i + 1 :]", "peers = logits")
OTHER_PICTURES = (
    "logits[:i] + logits[i + 1 :]",
    "[peer.roll(1, dims=0) for peer in logits[:i] + logits[i + 1 :]]",
)
NO_STEP = ("optimizer.step()", "")
DEAF = ("[student, *peers], images, labels", "[student], images, labels")
SAME_WEIGHTS = ("build(1000 * number + seed)", "build(seed)")
OTHER_STUDENTS = ("student = make_student(seed)", "student = make_student(len(groups))")
UNPAIRED = (
    "interval([a - b for a, b in zip(one, other, strict=True)])",
    "interval([a - sum(other) / len(other) for a in one])",
)
HIGHER_MEAN = ("if found.low > 0:", "if found.mean > 0:")
PACKAGE = (
    "value = F.cross_entropy(own, labels)\n",
    "import kdcourse; value = kdcourse.hard_target_loss(own, labels)\n",
)
# Slips (in the master's solution → in the submission) and the parts that they cost.
SLIPS = {
    "reversed": ([REVERSED, SAME_WEIGHTS], {"value", "own"}),
    "no_detach": ([NO_DETACH, SUM], {"gradients", "several"}),
    "no_factor": ([FACTOR, HIGHER_MEAN], {"factor", "verdict"}),
    "mean_of_logits": ([MEAN_OF_LOGITS, ONE_TRAINED], {"several", "everyone", "exchange"}),
    "mean_of_probabilities": ([MEAN_OF_PROBABILITIES, ITSELF], {"several", "exchange"}),
    "no_labels": ([NO_LABELS, OTHER_STUDENTS], {"value", "none", "paired"}),
    "peers_without_step": (
        [PEERS_WITHOUT_STEP, UNPAIRED],
        {"everyone", "exchange", "interval", "verdict"},
    ),
    "frozen_peers": ([FROZEN_PEERS], {"everyone", "exchange"}),
    "other_pictures": ([OTHER_PICTURES], {"exchange", "students"}),
    "deaf": ([DEAF], {"students", "own"}),
    "no_step": ([NO_STEP], {"everyone", "exchange", "students"}),
    "package": ([PACKAGE], {"value", "none", "several", "factor", "gradients"}),
}

(
    table,
    test_the_master_earns_everything_and_an_untouched_notebook_nothing,
    test_a_slip_costs_the_parts_concerned_and_only_these,
) = exercise_tests("mutual", PARTS, SLIPS)


def test_a_student_that_learned_nothing_earns_nothing_by_chance(table, tmp_path_factory):
    key = Key(tmp_path_factory.getbasetemp() / "mutual0" / "assigned" / "key")
    for seed in range(60):
        torch.manual_seed(seed)
        weights = {name: value.numpy() for name, value in small_convnet(20).state_dict().items()}
        answers = {"exchange_first": weights, "exchange_last": weights}
        assert key.functions["judge_exchange"](answers, key.context)[0] == 0, seed
