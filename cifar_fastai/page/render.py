"""From a template and values to one HTML file, with style and script inside; Jinja2 escapes all text."""
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from ..recipe import counted

__all__ = ["render"]

HERE = Path(__file__).parent / "templates"


def render(
    template: str,               # in `templates`; it may use `style` and `script`
    values: Mapping,
    script: str | None = None,   # a file there
) -> str:
    "The page"
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                             lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    env.filters |= {"percent": lambda v, n=2: f"{100 * v:.{n}f} %", "thousands": lambda v: f"{v:,}",
                    "counted": counted}
    inline = {"style": _inline("page.css"), "script": _inline(script) if script else ""}
    return env.get_template(template).render(**inline, **values)


def _inline(name: str) -> Markup: return Markup((HERE / name).read_text(encoding="utf-8"))
