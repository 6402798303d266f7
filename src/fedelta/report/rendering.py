"""Renders values as HTML with Jinja2 templates, in which every text is escaped.

The templates of a package are in its folder `templates/`; the frame (`page.html`) and the elements (`macros.html`) in
the folder of this package serve them all.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from fedelta.record.neutral import paragraphs
from fedelta.report.drawing import Spec, library

SHARED = "fedelta.report"


def render(template: str, values: Mapping[str, object], package: str = SHARED) -> str:
    """Renders `template` of `package` with `values`, which it reads by name.

    Raises:
        jinja2.TemplateError: the template does not exist, or reads a missing value.
    """
    return _environment(package).get_template(template).render(values)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, SHARED))]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"version": _version(), "library": library}
    environment.filters["packed"] = _packed
    return environment


def _packed(spec: Spec) -> str:
    """A specification as base64 of its gzip: it is a tenth as long, and the first paint waits for less."""
    content = json.dumps(spec, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, mtime=0)).decode("ascii")


def _visible(value: object) -> object:
    """`value` without control characters and marks that change the direction of writing; HTML is unchanged.

    Units follow an ordinary no-break space: few fonts have the narrow one, and to find one delays the first paint.
    """
    return paragraphs(value).replace("\N{NARROW NO-BREAK SPACE}", "\N{NO-BREAK SPACE}") if type(value) is str else value


def _version() -> str:
    try:
        return metadata.version("fedelta")
    except metadata.PackageNotFoundError:
        return ""
