"""HTML pages of results, from the templates that are beside this file."""

import re
from html import escape

from engine.extras import need


def page(template: str, **values: object) -> str:
    """A template with values filled in; what they say is text, never markup.

    Raises:
        InputError: jinja2 is not installed.
    """
    need("report", "report")
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("agents.reporting")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["with_code"] = _with_code
    return environment.get_template(template).render(**values)


def _with_code(text: str) -> str:
    """A text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
