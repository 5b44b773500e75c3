"""report.html from a run's metrics and rows.

The template engine escapes everything that comes from models or data. By its content security policy the
page allows no network, no foreign style or image, and no script but the one in page.html, named by its hash.
"""

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pandas import isna

from mathse.chat import question_text
from mathse.jsonl import replace
from mathse.report.figures import draw_figures
from mathse.report.gallery import KINDS, draw_cards
from mathse.report.metrics import label, read_columns, verified_files
from mathse.report.statistics import right_rate

TEMPLATE = Path(__file__).parent / "page.html"
LOGGED = ("step", "loss", "lr", "grad_norm", "tokens_per_second")
FILTERS = {
    "percent": lambda share: "–" if isna(share) else f"{100 * share:.1f}",
    "points": lambda share: f"{100 * share:+.1f}",
    "count": lambda number: "–" if isna(number) else f"{round(number):,}".replace(",", "\u202f"),
    "minutes": lambda seconds: "{}:{:02d}".format(*divmod(round(seconds), 60)),
    "p_value": lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
    "label": label,
    "question": question_text,
    "agreement": right_rate,
}


def write_page(run: Path, metrics: dict, settings: dict[str, str], folders: list[Path]) -> None:
    """Write RUN/report.html. `folders`: of the run's stages and ORMs."""
    source = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1].encode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    logs = {folder.name: read_columns(folder / "model" / "train_log.jsonl", *LOGGED) for folder in folders}
    logs = {label(name).removeprefix("+ "): steps for name, steps in logs.items() if len(steps)}
    figures = draw_figures(metrics, logs)
    text = environment.from_string(source).render(
        run=run.resolve().name,
        settings=settings,
        metrics=metrics,
        figures={section: [Markup(drawing) for drawing in drawn] for section, drawn in figures.items()},
        logs=logs,
        cards=draw_cards(verified_files(folders, settings)),
        kinds=KINDS,
        script_hash=base64.b64encode(hashlib.sha256(script).digest()).decode(),
    )
    part = run / "report.html.part"
    part.write_text(text, encoding="utf-8")
    replace(part, run / "report.html")
