"""One page of feedback per student. Everything from the submission is escaped."""

from functools import lru_cache
from typing import Any

from .gradebook import Grade

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'">
<title>Feedback for {{ student }}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto;
         padding: 0 1rem; }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
           border-bottom: 1px solid #8886; }
  td.points { white-space: nowrap; text-align: right; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem; border: 1px solid #8886; }
  .score { font-size: 1.6rem; }
</style>
</head>
<body>
<main>
<h1>Feedback for {{ student }}</h1>
<p class="score">{% if grade.final is none %}No grade{% else %}
{{ number(grade.final) }} of {{ number(max_score) }} points{% endif %}</p>
<p>{{ meaning }}{% if note %} ({{ note }}){% endif %}.
{% if submission %}Graded file: <code>{{ submission }}</code>.{% endif %}
{% if sandbox == "none" %}Run without a sandbox.{% endif %}</p>
<table>
<caption>Points by part</caption>
<thead>
<tr><th scope="col">Part</th><th scope="col">Points</th><th scope="col">Finding</th></tr>
</thead>
<tbody>
{% for part in parts %}
<tr><th scope="row">{{ part.title }}</th>
<td class="points">{{ number(part.score) }} / {{ number(part.points) }}</td>
<td>{{ part.message }}</td></tr>
{% endfor %}
{% if grade.penalty or grade.days_late %}
<tr><th scope="row">Lateness</th><td class="points">{{ number(0 - grade.penalty) }}</td>
<td>{{ grade.lateness }}, at {{ grade.submitted }}</td></tr>
{% endif %}
{% if grade.manual or grade.comments %}
<tr><th scope="row">From your instructor</th><td class="points">{{ number(grade.manual) }}</td>
<td>{% for title, text in grade.comments %}
{% if not loop.first %}<br>{% endif %}{% if title %}{{ title }}: {% endif %}{{ text }}
{% endfor %}</td></tr>
{% endif %}
</tbody>
</table>
{% if errors %}
<h2>Cells that raised an exception</h2>
<ul>
{% for error in errors %}
<li>cell <code>{{ error.cell }}</code>: <code>{{ error.name }}: {{ error.message }}</code></li>
{% endfor %}
</ul>
{% endif %}
{% if outputs %}
<h2>What your cells printed</h2>
{% for output in outputs %}
<p>cell <code>{{ output.cell }}</code></p>
<pre>{{ output.text }}</pre>
{% endfor %}
{% endif %}
</main>
</body>
</html>
"""

MEANINGS = {
    "graded": "Your notebook ran to its end",
    "error": "Your notebook ran, but not without exceptions; all other cells were graded",
    "timeout": "Your notebook took too long; what was answered before counts",
    "memory": "Your notebook needed too much memory; what was answered before counts",
    "killed": "Your notebook's process ended early; what was answered before counts",
    "invalid": "Your file could not be graded",
    "missing": "There is no submission",
    "duplicate": "There is more than one submission",
}


def page(result: dict[str, Any], grade: Grade) -> str:
    """The HTML page for one result and the grade that became of it."""
    return _template().render(result, grade=grade, meaning=MEANINGS[result["status"]])


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["number"] = lambda value: f"{value:.10g}"
    return environment.from_string(TEMPLATE)
