"""The site: built without a warning, complete, and with nothing that a browser would fetch from elsewhere."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from manual.links import inside
from manual.navigation import in_order
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from tests.docs.pages import ROOT

import fedelta
from fedelta.config import Config
from fedelta.settings.explain import annotation_of, chosen_in, is_settings


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> MkDocsConfig:
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path_factory.mktemp("site")))
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    return config


@pytest.fixture(scope="module")
def site(config: MkDocsConfig) -> Path:
    """The site; a warning, such as a link or an anchor that leads nowhere, ends its making."""
    assert config.strict
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return Path(config.site_dir)


def test_every_page_of_docs_is_in_the_navigation(site: Path, config: MkDocsConfig):
    shown = set(in_order(config.nav))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} <= shown
    assert {page.relative_to(site).as_posix() for page in site.rglob("*.html")} == {
        "404.html", *(name.removesuffix(".md") + ".html" for name in shown)
    }  # fmt: skip


def test_a_browser_fetches_nothing_from_elsewhere(site: Path):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        # Links that a reader follows are elsewhere; scripts, styles, fonts and pictures are not.
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", text)
        assert [target for target in fetched if re.match("(https?:)?//", target)] == [], page
        assert 'class="mermaid"' not in text, "the theme fetches the program that draws these"
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", style.read_text(encoding="utf-8"))


def test_code_is_shown_as_code(site: Path):
    for page in site.rglob("*.html"):
        # A fence that is not understood is a paragraph or a line of text.
        assert "```" not in re.sub(r"<code>.*?</code>", "", page.read_text(encoding="utf-8")), page


def test_links_of_every_page_lead_somewhere(site: Path):
    for page in site.rglob("*.html"):
        for target in re.findall(r"<a\b[^>]*?href=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            if page.name == "404.html" or re.match(r"https?:|mailto:|javascript:", target):
                continue
            path, _, anchor = target.partition("#")
            goal = (page.parent / path).resolve() if path and path != "." else page
            goal = goal / "index.html" if goal.is_dir() else goal
            assert goal.is_file(), (page, target)
            if anchor and goal.suffix == ".html" and not anchor.startswith("__"):
                assert f'id="{anchor}"' in goal.read_text(encoding="utf-8"), (page, target)


def test_the_reference_has_every_key_and_every_public_name(site: Path):
    names = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert [name for name in fedelta.__all__ if f">fedelta.{name}<" not in names] == []
    keys = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    for section in Config.model_fields:
        annotation = annotation_of(Config, section)
        chosen = chosen_in(annotation)
        kinds = [annotation] if is_settings(annotation) else [] if chosen is None else list(chosen.classes.values())
        for kind in kinds:
            # A key with a table of its own has a heading, such as data.audio.
            for key in set(kind.model_fields) - {"name"}:
                assert f"<code>{key}</code>" in keys or f'id="{section}{key}"' in keys, (section, kind, key)


def test_llms_txt_has_a_sentence_for_every_page(site: Path, config: MkDocsConfig):
    lines = (site / "llms.txt").read_text(encoding="utf-8").splitlines()
    entries = [re.fullmatch(r"- \[(.+)\]\((.+)\): (.+)", line) for line in lines if line.startswith("- ")]
    assert [entry[2] for entry in entries] == [name.removesuffix(".md") + ".html" for name in in_order(config.nav)]
    assert [entry[2] for entry in entries if not re.search(r"[.:]$", entry[3]) or len(entry[3]) > 250] == []


def test_links_to_what_is_not_on_the_site_become_names():
    on_site = {"privacy.md", "results/privacy.md"}
    text = "[a](../privacy.md#b), [benchmarks/x.py](../../benchmarks/x.py), [rules](../../CONTRIBUTING.md), [c](#c)"
    assert inside(text, "results/privacy.md", on_site, {"contributing.md": "CONTRIBUTING.md"}) == (
        "[a](../privacy.md#b), benchmarks/x.py, [rules](../contributing.md), [c](#c)"
    )
