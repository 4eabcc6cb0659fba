import re
from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from kdcourse import plotting
from kdcourse.claims import Interval

matplotlib.use("agg")


@pytest.fixture
def shown(monkeypatch) -> list:
    """What a notebook cell would display."""
    outputs: list = []
    monkeypatch.setattr("IPython.display.display", outputs.append)
    return outputs


def draw_one(alt: str = "a line") -> None:
    with plotting.figure(alt) as axes:
        axes.plot([0, 1], [0, 1])
        axes.set_title("A title & more")


def test_figure_is_one_valid_svg_with_alt_text(shown) -> None:
    draw_one('rises from "0" to <1>')
    svg = re.search(r"<svg.*</svg>", shown[0].data, re.DOTALL)[0]
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'rises from "0" to <1>'
    assert "A title &amp; more" in svg


def test_ink_is_the_pages_colour(shown) -> None:
    draw_one()
    assert "currentColor" in shown[0].data
    assert plotting._INK not in shown[0].data
    assert "#000000" not in shown[0].data


def test_alt_text_is_required(shown) -> None:
    with pytest.raises(ValueError, match="alt must say what the figure shows"):
        draw_one("  ")
    assert not shown
    assert not plt.get_fignums()


def test_ids_are_unique_to_the_figure_and_deterministic(shown) -> None:
    draw_one("first")
    draw_one("second")
    draw_one("first")
    ids = [set(re.findall(r'\bid="([^"]+)"', output.data)) for output in shown]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert shown[0].data == shown[2].data
    used = re.findall(r'(?:url\(|href=")#([\w-]+)', shown[0].data)
    assert used
    assert set(used) <= ids[0]


def test_style_does_not_leak() -> None:
    before = dict(matplotlib.rcParams)
    fig = plt.figure()
    plt.close(fig)
    assert dict(matplotlib.rcParams) == before


def test_a_search_shows_every_mean_and_frames_the_best(shown) -> None:
    table = pd.DataFrame(
        {
            "lr": [0.1, 0.1, 0.2, 0.2, 0.1, 0.2],
            "decay": [1.0, 1.0, 1.0, 1.0, 3.0, 3.0],
            "y": [10.0, 20.0, 60.0, 70.0, 40.0, 30.0],
        }
    )
    with plotting.figure("search") as axes:
        plotting.plot_search(axes, table, "lr", "decay", "y", low=10, high=70)
        assert [text.get_text() for text in axes.texts] == ["15", "65", "40", "30"]
        assert [text.get_color() for text in axes.texts] == ["white", "black", "black", "white"]
        assert axes.patches[0].get_xy() == (1, 0)


def test_means_show_every_seed(shown) -> None:
    table = pd.DataFrame({"configuration": ["a"] * 5 + ["b"], "y": [1.0, 2, 3, 4, 5, 9]})
    with plotting.figure("means") as axes:
        plotting.plot_means(axes, table, "y", roles={"a": "teacher"})
        points = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "|"]
        texts = [text.get_text() for text in axes.texts]
    assert points == [[1, 2, 3, 4, 5], [9]]
    assert texts == ["3.0", "9.0"]
    assert plotting.COLOURS["teacher"].lower() in shown[0].data.lower()


def test_curve_has_an_interval_and_plain_ticks(shown) -> None:
    table = pd.DataFrame({"T": [1, 1, 4, 4], "y": [1.0, 3.0, 5.0, 7.0]})
    with plotting.figure("curve") as axes:
        plotting.plot_curve(axes, table, "T", "y", label="distilled", nudge=5, log=True)
        assert axes.texts[0].get_position() == (8, 5)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]
        assert len(axes.collections) == 1
        assert axes.lines[1].get_ydata() == pytest.approx([2.0, 6.0])


def test_live_softmax_checks_its_shape_and_escapes(shown) -> None:
    plotting.live_softmax(torch.tensor([[1.0, 2.0]]), ["<b>", "dog"], ["it's </script>"])
    assert "&lt;b&gt;" in shown[0].data
    assert "it&#x27;s &lt;/script&gt;" in shown[0].data
    assert "KEY" not in shown[0].data
    assert "DATA" not in shown[0].data
    with pytest.raises(ValueError, match=r"logits must be \[2, 2\]"):
        plotting.live_softmax(torch.zeros(1, 2), ["a", "b"], ["x", "y"])


def test_live_frames_link_slider_and_pages(shown) -> None:
    drawn = []

    def draw(axes, item) -> None:
        drawn.append(item)
        axes.plot([0, item])

    plotting.live_frames(draw, {"one": 1, "two": 2}, ["first", "second"], name="Frame")
    slider, stack = shown[0].children
    assert slider.options == ("one", "two")
    assert [page.value.count("<svg") for page in stack.children] == [1, 1]
    assert drawn == [1, 2]
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="equally many"):
        plotting.live_frames(draw, {"one": 1}, [], name="Frame")


def test_images_fill_the_sheet(shown) -> None:
    plotting.show_images(torch.rand(3, 1, 4, 4), ["a", "b", "c"], "three squares", columns=2)
    assert shown[0].data.count("<image") == 3


QUESTIONS = {"Labels": ["few", "many"], "Teacher": ["answers", "layers"]}
BEST = plotting.Advice("hints", {"Teacher": ["layers"]}, Interval(9.0, 7.0, 11.0, 5), "labels")
WORST = plotting.Advice("<b>", {"Labels": ["many"]}, Interval(1.0, -2.0, 4.0, 5), "nothing")


def test_chooser_orders_by_the_lower_end_and_escapes(shown) -> None:
    plotting.live_chooser(QUESTIONS, [WORST, BEST])
    page = shown[0].data
    assert page.index("hints") < page.index("&lt;b&gt;")
    assert "+9.0 [+7.0, +11.0]" in page
    assert "<td>gains</td>" in page
    assert "<td>no reliable gain</td>" in page
    assert not any(word in page for word in ("KEY", "ROWS", "CONTROLS"))


def test_chooser_refuses_answers_that_nobody_can_give() -> None:
    for fits in ({"Labels": ["some"]}, {"Time": ["long"]}, {"Labels": []}):
        with pytest.raises(ValueError, match="must name answers to a question"):
            plotting.live_chooser(QUESTIONS, [BEST._replace(fits=fits)])
    with pytest.raises(ValueError, match="at least one item"):
        plotting.live_chooser(QUESTIONS, [])
