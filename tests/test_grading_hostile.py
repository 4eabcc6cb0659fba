"""What submissions do to break or fool a grader; where it teaches, a naive grader falls for it."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from cells import earned, make_key
from classroom import MASTER, printed, result, rows
from hostile import EVIL, EXPECTED, FOOLS, MARK, OFTEN, PLAIN, graded_class
from playwright.sync_api import sync_playwright
from programs import launch_chromium

from kdcourse.grading import compare, feedback, files, gradebook, sandbox


@pytest.fixture(scope="module")
def hostile(assigned, student, tmp_path_factory):
    """The hostile class, but for what is seldom looked at."""
    return graded_class(assigned, student, tmp_path_factory.mktemp("hostile"), OFTEN)


def results(hostile):
    """The result of every student in the class."""
    found = [json.loads(path.read_text()) for path in (hostile / "results").glob("*.json")]
    return {each["student"]: each for each in found}


def test_every_attack_ends_in_the_expected_status_and_score(hostile):
    got = {
        name: [each["status"], *(part["score"] for part in each["parts"])]
        for name, each in results(hostile).items()
    }
    assert got == {name: EXPECTED[name] for name in got}
    assert got.keys() in (OFTEN, EXPECTED.keys())


DOUBLE, FIT = (
    'def double(x):\n    """Twice x."""\n    return [2 * value for value in x]',
    'return {"slope": (x * y).sum() / (x * x).sum()}',
)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return make_key(str(MASTER), tmp_path_factory.mktemp("double") / "key")


@pytest.mark.parametrize("name", PLAIN)
def test_a_wrong_answer_in_the_form_of_a_right_one_earns_nothing(key, tmp_path, name):
    edits = [(DOUBLE, FOOLS[name]), (FIT, "raise NotImplementedError")]
    assert earned(key, tmp_path / "answers", edits) == {"double": 0, "fit": 0}


def test_the_note_says_which_limit_was_broken(hostile):
    notes = {
        "child-bomb": "more than 700 MiB of memory",
        "starts": "more than 64 processes",
        "disk-bomb": "more than 512 MiB of files",
        **dict.fromkeys(("unlinked", "nameless", "many-files", "many-in-tmp"), "512 MiB of files"),
        **dict.fromkeys(("page-tables", "sockets", "pipes", "programs"), "700 MiB of memory"),
        "headless": "700 MiB of memory",
        "spike": "more than 700 MiB of memory",
        "stops": "stopped after 5 seconds",
        "500-megabytes": "too large: 500.0 MiB",
        "many-values": "more than 2000000 values",
        "blocks": "not an ordinary file",
    }
    found = results(hostile)
    for name in notes.keys() & found.keys():
        assert notes[name] in found[name]["note"]


def test_no_process_and_no_file_outlives_the_run(hostile):
    scratch = str(hostile.parent / "scratch")
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert MARK not in line
        assert scratch not in line
    assert not list(Path(scratch).iterdir())
    assert sorted(path.name for path in hostile.parent.iterdir()) == [
        *("in", "many", "out", "roster.csv", "scratch", "slow"),
    ]
    assert sorted(path.name for path in hostile.iterdir()) == [
        *("answers", "canvas.csv", "feedback", "grades.csv", "gradescope", "moodle.csv"),
        "results",
    ]


def test_what_is_kept_of_a_flood_is_small(hostile):
    for path in hostile.rglob("*"):
        assert path.stat().st_size < 200_000


def test_calls_that_hide_memory_are_closed(hostile):
    assert printed(hostile, "closed").splitlines()[-9:] == [
        "a file without a name: Function not implemented",
        "segments: [-1, -1, -1]",
        "shared pages: Operation not permitted",
        "folder rights: Function not implemented",
        "netlink: Address family not supported by protocol",
        "large buffers: False",
        "messages of the kernel: Illegal seek",
        "messages of the run: Illegal seek",
        "a large file in /tmp: No space left on device",
    ]


def test_what_is_forged_in_a_runs_own_report_harms_nobody(hostile):
    assert result(hostile, "forged-text")["errors"][0]["name"] == "\\ud800"
    assert result(hostile, "forged-seconds")["seconds"]["cells"] == 0


def test_limits_hold_for_the_children_of_a_run(hostile):
    assert result(hostile, "child-bomb")["peak_mib"] < 1400
    assert result(hostile, "child-flood")["peak_mib"] < 6000


def test_the_number_of_processes_is_limited_in_each_sandbox_unless_it_is_roots():
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    starts = "ulimit -u 40; for number in $(seq 80); do sleep 5 & done; echo started"
    command = ["bwrap", *sandbox.ISOLATION, "--ro-bind", "/", "/", "--dev", "/dev", "--"]
    run = subprocess.run(
        [*command, "bash", "-c", starts], capture_output=True, text=True, cwd="/", **nobody
    )
    assert "Resource temporarily unavailable" in run.stderr


def test_a_run_that_looks_around_finds_nothing(hostile):
    assert "found: []\nlooked\n" in printed(hostile, "looks")


def test_a_run_finds_nothing_of_the_one_before(hostile):
    for number in (1, 2, 3):
        assert "found: []" in printed(hostile, f"leaves-{number}")


def test_an_exercise_in_the_sandbox_has_no_reference_answers(hostile):
    assert printed(hostile, "calls-the-grader").split()[:4] == ["ValueError"] * 4


# Each attack on a grader that is built the obvious way


def naive_scores(code):
    """Points from assertions that run in the process of the submission."""
    space = {}
    exec(code, space)
    points = 0
    with_points = {"double([1, 2]) == [2, 4]": 4, "fit(1, 2)['slope'] == 2": 2}
    for test, worth in with_points.items():
        points += worth if eval(f"bool({test})", space) else 0
    return points


SAME = """
class Same:
    def __eq__(self, other): return True
def double(x): return Same()
def fit(x, y): return {"slope": Same()}
"""


def test_an_always_equal_object_fools_assertions_but_not_the_comparison(tmp_path):
    assert naive_scores(SAME) == 6
    space = {}
    exec(SAME, space)
    with pytest.raises(TypeError, match="plain data"):
        from kdcourse.grading import probe

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDCOURSE_ANSWERS", str(tmp_path))
            probe.answer("small", space["double"]([1]))


def test_printed_scores_fool_who_reads_them_but_earn_nothing(hostile):
    def naive(text):
        return json.loads(re.findall(r"{.*}", text)[-1])["score"]

    said = printed(hostile, "prints")
    assert naive(said) == 6
    assert rows(hostile)["prints"]["score"] == "0"


def test_unpickling_runs_what_a_student_wrote_and_never_happens(hostile, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    np.save(tmp_path / "small.npy", np.array([Bomb()]), allow_pickle=True)
    np.load(tmp_path / "small.npy", allow_pickle=True)
    assert (tmp_path / "run").is_dir()

    (tmp_path / "run").rmdir()
    with pytest.raises(compare.BadAnswer, match="cannot be read"):
        compare.read_answer(tmp_path, "small")
    for name in ("slope.json", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(compare.BadAnswer, match="cannot be read"):
            compare.read_answer(tmp_path, name.split(".")[0])
    assert not (tmp_path / "run").exists()
    assert "cannot be read" in result(hostile, "pickles")["parts"][0]["message"]
    assert not (hostile.parent / "unpickled").exists()


def test_a_link_to_the_key_fools_who_follows_it(tmp_path):
    reference, answers = tmp_path / "key", tmp_path / "answers"
    for folder in (reference, answers):
        folder.mkdir()
    (reference / "small.json").write_text("[2, 4]")
    (answers / "small.json").symlink_to(reference / "small.json")
    naive = json.loads((answers / "small.json").read_text())
    assert naive == json.loads((reference / "small.json").read_text())
    with pytest.raises(compare.BadAnswer, match="not an ordinary file"):
        compare.read_answer(answers, "small")
    (tmp_path / "elsewhere").symlink_to(reference)
    with pytest.raises(compare.BadAnswer, match="not an ordinary file"):
        compare.read_answer(tmp_path / "elsewhere", "small")


def test_small_files_that_would_fill_the_graders_memory_are_refused():
    def seconds_and_mib(action):
        code = "import json\nfrom kdcourse.grading.files import parse_json\n"
        code += f"data = b'[' + b'[],' * 5_000_000 + b'0]'\n{action}\n"
        # Not ru_maxrss: a process inherits that from the one that started it.
        code += "status = open('/proc/self/status').read()\n"
        code += "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return int(run.stdout)

    refused = "try: parse_json(data)\nexcept ValueError: pass"
    assert seconds_and_mib("json.loads(data)") > 300
    assert seconds_and_mib(refused) < 150
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json(b"[" * 10**6 + b"]" * 10**6)
    assert files.parse_json(b'{"a": [1, 2]}') == {"a": [1, 2]}


def test_no_script_runs_on_a_page_of_feedback(hostile, tmp_path):
    found = result(hostile, "markup")
    assert EVIL in found["errors"][0]["message"]
    assert EVIL in "".join(output["text"] for output in found["outputs"])
    naive = tmp_path / "naive.html"
    naive.write_text(f"<!doctype html><title>naive</title><p>{found['outputs'][-1]['text']}</p>")
    pages = sorted((hostile / "feedback").glob("*.html"))
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        page = browser.new_page()
        page.goto(naive.as_uri())
        assert page.title() in ("owned", "o")
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        for path in pages:
            page.goto(path.as_uri())
            assert page.title().startswith("Feedback for ")
            assert page.locator("script, img, iframe, b, object, embed, link").count() == 0
        assert requests == [path.as_uri() for path in pages]
        page.goto(next(path for path in pages if path.name.startswith("markup")).as_uri())
        assert "<script>" in page.inner_text("main")
        browser.close()


def test_escaping_holds_without_the_policy_of_the_page():
    assert "default-src 'none'" in feedback.TEMPLATE
    part = {"title": EVIL, "message": EVIL, "points": 2, "score": 1.5, "part": "a"}
    made = feedback.page(
        {
            **dict.fromkeys(("student", "submission", "note"), EVIL),
            **{"status": "error", "sandbox": "bwrap", "score": 1.5, "max_score": 2},
            "parts": [part],
            "errors": [{"cell": EVIL, "name": EVIL, "message": EVIL}],
            "outputs": [{"cell": EVIL, "text": EVIL}],
        },
        gradebook.Grade(1, 0.5, 1.0, 2.0, ((EVIL, EVIL),), EVIL),
    )
    unprotected = re.sub(r"<meta http-equiv.*?>", "", made, flags=re.S)
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        page = browser.new_page()
        page.set_content(unprotected)
        assert page.title().startswith("Feedback for ")
        assert page.locator("script, img").count() == 0
        browser.close()
