"""Figures: one colour per role, every seed visible, alt text always, light and dark pages alike.

Figures are shown as inline SVG whose text takes the page's colour, so that they are sharp at every
size and readable on a light and on a dark page.
"""

import hashlib
import html
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ._checks import require
from .claims import Interval, interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

# Okabe and Ito's colour-blind-safe set, one colour a role; never colour alone.
COLOURS = {
    "teacher": "#0072B2",
    "scratch": "#7F7F7F",
    "distilled": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
}
MARKERS = {
    "teacher": "s",
    "scratch": "o",
    "distilled": "D",
    "green": "^",
    "purple": "v",
    "orange": "P",
    "sky": "X",
}
PAGE_WIDTH = 7.0  # inches
# Stands for the page's text colour until the figure becomes SVG.
_INK = "#010203"

_STYLE: Any = {
    "figure.figsize": (PAGE_WIDTH, 3.4),
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": "cividis",
    "svg.fonttype": "none",
    "svg.hashsalt": "kdcourse",
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.titlecolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        _INK,
    ),
}


@contextmanager
def figure(alt: str, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[Any]:
    """A figure in the course's style, shown when the block ends.

    Args:
        alt: what a reader who cannot see the figure should know; never empty.
        rows: of axes.
        columns: of axes.
        options: as for `matplotlib.pyplot.subplots`, for instance `figsize` in inches.

    Yields:
        The axes, or an array of them.
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML, display

    with plt.rc_context(_STYLE):
        drawn, axes = plt.subplots(rows, columns, **options)
        try:
            yield axes
            display(HTML(f'<figure class="kd-figure">{to_svg(drawn, alt)}</figure>'))
        finally:
            plt.close(drawn)


def to_svg(drawn: "Figure", alt: str) -> str:
    """A figure as inline SVG with alt text; its ids are its own, its ink is the page's."""
    require(bool(alt.strip()), "alt must say what the figure shows, got an empty text")
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([^;\"]*?)(['\"]?DejaVu Sans.*?)(?=[;\"])", r"font: \1sans-serif", svg)
    prefix = "f" + hashlib.sha256((svg + alt).encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    label = html.escape(alt, quote=True)
    opening = (
        f'<svg role="img" aria-label="{label}" style="width: 100%; min-width: 30rem; '
        f'max-width: {drawn.get_figwidth()}in; height: auto"'
    )
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2).replace("<svg", opening, 1)
    return f'<div style="overflow-x: auto" tabindex="0">{svg}</div>'


def plot_means(
    axes: "Axes",
    table: "pd.DataFrame",
    value: str,
    *,
    roles: Mapping[str, str] | None = None,
    by: str = "configuration",
) -> None:
    """Mean and 95 % interval of each group as a row of dots, every seed's point behind them.

    Args:
        axes: drawn on; the groups run from top to bottom in the table's order.
        table: tidy, a row a seed.
        value: column on the horizontal axis.
        roles: group → role in `COLOURS`; "scratch" where nothing is said.
        by: column of the groups.
    """
    names = list(dict.fromkeys(table[by]))
    for height, name in enumerate(names):
        values = table.loc[table[by] == name, value].to_numpy(dtype=float)
        role = (roles or {}).get(name, "scratch")
        mean = interval(values)
        axes.plot(values, [height] * len(values), "|", color=COLOURS[role], alpha=0.55, ms=11)
        _draw_mean(axes, mean, height, role)
        axes.annotate(
            f"{mean.mean:.1f}", (mean.mean, height), (0, 9), textcoords="offset points", ha="center"
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.75)
    axes.grid(axis="y", visible=False)


def _draw_mean(axes: "Axes", mean: Any, height: float, role: str) -> None:
    axes.plot(mean.mean, height, MARKERS[role], color=COLOURS[role], ms=8, zorder=3)
    if mean.n > 1:
        axes.plot([mean.low, mean.high], [height] * 2, color=COLOURS[role], lw=2.5, zorder=2)


def plot_curve(
    axes: "Axes",
    table: "pd.DataFrame",
    x: str,
    value: str,
    *,
    role: str = "distilled",
    label: str = "",
    nudge: float = 0.0,
    log: bool = False,
) -> None:
    """Mean over seeds against a numeric column, with its 95 % interval and every seed's point.

    Args:
        axes: drawn on.
        table: tidy, a row for each seed and `x`.
        x: column on the horizontal axis.
        value: column on the vertical axis.
        role: colour and marker, see `COLOURS`.
        label: written beside the last point.
        nudge: the label upwards, in points, where two curves end close together.
        log: logarithmic horizontal axis.
    """
    colour = COLOURS[role]
    means = {float(key): interval(group) for key, group in table.groupby(x)[value]}
    places = list(means)
    axes.plot(table[x], table[value], ".", color=colour, alpha=0.35, ms=5)
    axes.plot(places, [m.mean for m in means.values()], marker=MARKERS[role], color=colour)
    if all(m.n > 1 for m in means.values()):
        low, high = [m.low for m in means.values()], [m.high for m in means.values()]
        axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(places, [f"{place:g}" for place in places])
    if label:
        last = (places[-1], means[places[-1]].mean)
        axes.annotate(
            label, last, (8, nudge), textcoords="offset points", va="center", color=colour
        )


def plot_search(
    axes: "Axes",
    table: "pd.DataFrame",
    x: str,
    y: str,
    value: str,
    *,
    low: float,
    high: float,
) -> None:
    """Means over a grid of two settings, as numbers on coloured squares; the best one is framed.

    Args:
        axes: drawn on.
        table: tidy, a row for each seed and combination.
        x: column of the horizontal setting.
        y: column of the vertical setting.
        value: column of the numbers.
        low: the darkest colour stands for this and everything below.
        high: the brightest colour.
    """
    from matplotlib.patches import Rectangle

    means = table.groupby([y, x])[value].mean().unstack()
    axes.pcolormesh(means.to_numpy(), vmin=low, vmax=high, edgecolors="face", lw=0.3)
    for row, numbers in enumerate(means.to_numpy()):
        for column, number in enumerate(numbers):
            if math.isnan(number):  # not tried
                continue
            dark = number < (low + high) / 2
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{number:.0f}",
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
    best = divmod(int(means.fillna(low).to_numpy().argmax()), means.shape[1])
    frame = Rectangle(
        (best[1], best[0]), 1, 1, fill=False, ec=COLOURS["distilled"], lw=3, clip_on=False, zorder=4
    )
    axes.add_patch(frame)
    axes.set_xticks([i + 0.5 for i in range(means.shape[1])], [f"{v:g}" for v in means.columns])
    axes.set_yticks([i + 0.5 for i in range(means.shape[0])], [f"{v:g}" for v in means.index])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)


def show_images(
    images: "Tensor", titles: Sequence[str], alt: str, *, columns: int = 10, size: float = 0.7
) -> None:
    """A contact sheet of grey images.

    Args:
        images: `[N, H, W]` or `[N, 1, H, W]`.
        titles: one a picture.
        alt: what the sheet shows.
        columns: pictures in a row.
        size: of a picture, in inches.
    """
    rows = -(-len(images) // columns)
    height = rows * (size + 0.28)
    with figure(alt, rows, columns, figsize=(columns * size, height), squeeze=False) as axes:
        for place in axes.flat:
            place.axis("off")
        for place, image, title in zip(axes.flat, images, titles, strict=False):
            place.imshow(image.squeeze().numpy(), cmap="gray")
            place.set_title(title, fontsize=8, loc="center", pad=2)


def live_frames(
    draw: Callable[[Any, Any], None],
    items: Mapping[str, Any],
    alts: Sequence[str],
    *,
    name: str,
    rows: int = 1,
    columns: int = 1,
    **options: Any,
) -> None:
    """A slider that turns the pages of a stack of figures, with and without a kernel.

    Args:
        draw: called with the axes and an item; draws one frame.
        items: label read out beside the slider → what `draw` needs for that frame.
        alts: alt text of each frame.
        name: of the slider: what it changes.
        rows: of axes in a frame.
        columns: of axes in a frame.
        options: as for `matplotlib.pyplot.subplots`.
    """
    import ipywidgets as widgets
    import matplotlib.pyplot as plt
    from IPython.display import display

    require(
        len(items) == len(alts) > 0,
        f"items and alts must be equally many and at least one, got {len(items)} and {len(alts)}",
    )
    pages = []
    with plt.rc_context(_STYLE):
        for item, alt in zip(items.values(), alts, strict=True):
            drawn, axes = plt.subplots(rows, columns, **options)
            draw(axes, item)
            pages.append(widgets.HTML(to_svg(drawn, alt)))
            plt.close(drawn)
    slider = widgets.SelectionSlider(
        options=list(items),
        description=name,
        style={"description_width": "initial"},
        layout={"width": "100%", "max_width": f"{PAGE_WIDTH}in"},
    )
    stack = widgets.Stack(pages, selected_index=0)
    widgets.jslink((slider, "index"), (stack, "selected_index"))
    display(widgets.VBox([slider, stack]))


def live_softmax(
    logits: "Tensor",
    class_names: Sequence[str],
    examples: Sequence[str],
    *,
    temperatures: tuple[float, float] = (0.5, 20.0),
) -> None:
    """The softmax of real logits at a temperature that the reader sets.

    The formula runs in the reader's browser: no kernel, no library, no request.

    Args:
        logits: `[N, C]`, one row an example.
        class_names: `C` names.
        examples: `N` descriptions to choose from.
        temperatures: ends of the slider, which is logarithmic.
    """
    from IPython.display import HTML, display

    require(
        logits.dim() == 2 and logits.shape == (len(examples), len(class_names)),
        f"logits must be [{len(examples)}, {len(class_names)}] for as many examples and class "
        f"names, got {list(logits.shape)}",
    )
    data = {
        "logits": [[round(value, 3) for value in row] for row in logits.tolist()],
        "low": temperatures[0],
        "high": temperatures[1],
    }
    key = "softmax-" + hashlib.sha256(json.dumps(data).encode()).hexdigest()[:8]
    options = "".join(
        f'<option value="{i}">{html.escape(text)}</option>' for i, text in enumerate(examples)
    )
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td><div class="bar"></div></td>'
        f'<td class="value"></td></tr>'
        for name in class_names
    )
    page = _LIVE_SOFTMAX.replace("KEY", key).replace("OPTIONS", options).replace("ROWS", rows)
    display(HTML(page.replace("DATA", json.dumps(data).replace("<", "\\u003c"))))


class Advice(NamedTuple):
    """One thing to try, for `live_chooser`.

    Attributes:
        text: what to do.
        fits: question → the answers with which it can be done; a question left out does not matter.
        gain: what it brought, where it was measured.
        against: what it was compared with.
    """

    text: str
    fits: Mapping[str, Sequence[str]]
    gain: Interval
    against: str


def live_chooser(questions: Mapping[str, Sequence[str]], advice: Sequence[Advice]) -> None:
    """What to try first, given what the reader has: measured gains, the largest first.

    Advice that does not fit the reader's answers is hidden; what did not gain stands last and says
    so. The choice runs in the reader's browser: no kernel, no library, no request.

    Args:
        questions: question → possible answers, the first of which is chosen at the start.
        advice: at least one; ordered by the lower end of the interval.

    Raises:
        ValueError: for advice that names a question or an answer which does not exist.
    """
    from IPython.display import HTML, display

    require(bool(advice), "advice must hold at least one item, got none")
    for item in advice:
        for question, answers in item.fits.items():
            known = questions.get(question, ())
            require(
                bool(answers) and set(answers) <= set(known),
                f"advice {item.text!r} must name answers to a question, got {question!r}: "
                f"{list(answers)}; known: {list(known)}",
            )
    controls = "".join(
        f"<label>{html.escape(question)} <select>"
        + "".join(f"<option>{html.escape(answer)}</option>" for answer in answers)
        + "</select></label>"
        for question, answers in questions.items()
    )
    rows = ""
    for item in sorted(advice, key=lambda item: item.gain.low, reverse=True):
        fits = json.dumps([list(item.fits.get(question, ())) for question in questions])
        gained = "gains" if item.gain.low > 0 else "no reliable gain"
        rows += (
            f'<tr data-fits="{html.escape(fits)}"><th scope="row">{html.escape(item.text)}</th>'
            f"<td>{gained}</td><td>{html.escape(str(item.gain))}</td>"
            f"<td>{html.escape(item.against)}</td></tr>"
        )
    page = _LIVE_CHOOSER.replace("CONTROLS", controls).replace("ROWS", rows)
    key = "chooser-" + hashlib.sha256(page.encode()).hexdigest()[:8]
    display(HTML(page.replace("KEY", key)))


_LIVE_CHOOSER = """
<style>
  #KEY { font-size: 0.9rem; }
  #KEY .controls { display: grid; gap: 0.5rem 1.5rem;
    grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
  #KEY label { display: flex; flex-direction: column; margin: 0; font-weight: 600; }
  #KEY select { font: inherit; font-weight: normal; color: inherit; background: transparent;
    max-width: 100%; padding: 0.2rem; }
  #KEY option { color: #000; background: #fff; }
  #KEY .scroll { overflow-x: auto; }
  #KEY table { width: 100%; margin: 0.75rem 0; border-collapse: collapse; display: table; }
  #KEY th, #KEY td { text-align: left; padding: 0.3rem 0.8rem 0.3rem 0; vertical-align: top;
    font-weight: normal; background: none; border: 0; border-bottom: 1px solid #8886; }
  #KEY thead th { font-weight: 600; }
  #KEY td:nth-child(3) { white-space: nowrap; font-variant-numeric: tabular-nums; }
</style>
<div id="KEY" class="kd-live">
  <div class="controls">CONTROLS</div>
  <div class="scroll" tabindex="0" role="region" aria-label="What to try">
  <table aria-live="polite">
    <thead><tr><th scope="col">try</th><th scope="col">here</th><th scope="col">points</th>
      <th scope="col">measured against</th></tr></thead>
    <tbody>ROWS</tbody>
  </table></div>
  <p class="nothing" hidden>Nothing here was measured for these answers.</p>
</div>
<script>
(() => {
  const root = document.getElementById("KEY");
  const choices = [...root.querySelectorAll("select")];
  const draw = () => {
    let shown = 0;
    root.querySelectorAll("tbody tr").forEach((row) => {
      const fits = JSON.parse(row.dataset.fits).every(
        (answers, i) => answers.length === 0 || answers.includes(choices[i].value));
      row.hidden = !fits;
      shown += fits;
    });
    root.querySelector(".nothing").hidden = shown > 0;
  };
  choices.forEach((choice) => choice.addEventListener("change", draw));
  draw();
})();
</script>
"""

_LIVE_SOFTMAX = """
<style>
  #KEY { max-width: 42rem; font-size: 0.9rem; }
  #KEY .controls { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; align-items: center; }
  #KEY label { display: flex; gap: 0.5rem; align-items: center; margin: 0; }
  #KEY input { width: 14rem; max-width: 100%; accent-color: #D55E00; }
  #KEY select { font: inherit; color: inherit; background: transparent; max-width: 100%; }
  #KEY option { color: #000; background: #fff; }
  #KEY table { width: 100%; margin: 0.5rem 0; border-collapse: collapse; display: table; }
  #KEY th, #KEY td { padding: 0 0.4rem 0 0; border: 0; text-align: left; font-weight: normal;
    background: none; line-height: 1.35; white-space: nowrap; }
  #KEY td:nth-child(2) { width: 100%; }
  #KEY .bar { height: 0.75rem; background: #0072B2; min-width: 1px; }
  #KEY .value { text-align: right; font-variant-numeric: tabular-nums; }
</style>
<div id="KEY" class="kd-live">
  <div class="controls">
    <label>Temperature <input type="range" min="0" max="1" step="0.01" value="0"
      aria-label="Temperature"></label>
    <output aria-live="polite"></output>
    <label>Image <select>OPTIONS</select></label>
  </div>
  <table aria-label="The teacher's probabilities at this temperature"><tbody>ROWS</tbody></table>
</div>
<script>
(() => {
  const data = DATA;
  const root = document.getElementById("KEY");
  const slider = root.querySelector("input"), choice = root.querySelector("select");
  const ratio = Math.log(data.high / data.low);
  const position = (temperature) => Math.log(temperature / data.low) / ratio;
  const draw = () => {
    const temperature = data.low * Math.exp(ratio * slider.value);
    const logits = data.logits[choice.value];
    const top = Math.max(...logits);
    const weights = logits.map((z) => Math.exp((z - top) / temperature));
    const sum = weights.reduce((a, b) => a + b, 0);
    const probabilities = weights.map((w) => w / sum);
    const entropy = -probabilities.reduce((a, p) => a + (p > 0 ? p * Math.log2(p) : 0), 0);
    const text = `T = ${temperature.toFixed(1)}, entropy ${entropy.toFixed(2)} bits`;
    root.querySelector("output").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    root.querySelectorAll("tr").forEach((row, i) => {
      row.querySelector(".bar").style.width = `${100 * probabilities[i]}%`;
      row.querySelector(".value").textContent = `${(100 * probabilities[i]).toFixed(1)} %`;
    });
  };
  slider.value = position(1);
  slider.addEventListener("input", draw);
  choice.addEventListener("change", draw);
  draw();
})();
</script>
"""
