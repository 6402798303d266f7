"""What MkDocs calls while it builds the site (`hooks` in mkdocs.yml)."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path, and knows nothing of the package around it

from manual.links import TAKEN, inside  # noqa: E402
from manual.llms import index  # noqa: E402
from manual.navigation import completed, in_order  # noqa: E402
from manual.pages import GENERATED  # noqa: E402
from manual.showing import shown  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds pages that the navigation does not name to their section."""
    docs = Path(config.docs_dir)
    config.nav = completed(config.nav, [page.relative_to(docs).as_posix() for page in docs.rglob("*.md")])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for path, write in GENERATED.items():
        files.append(File.generated(config, path, content=write()))
    for path, origin in TAKEN.items():
        files.append(File.generated(config, path, content=(ROOT / origin).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Turns links to files of the repository that are not on the site into plain names, and fits code and tables."""
    return shown(inside(markdown, page.file.src_uri, {file.src_uri for file in files}))


def on_env(_: object, config: MkDocsConfig, files: Files) -> None:
    """Adds llms.txt, when every page is known."""
    pages = [files.get_file_from_path(path).page for path in in_order(config["nav"])]
    content = index(config["site_description"], [(page.url, page.title, page.markdown) for page in pages])
    files.append(File.generated(config, "llms.txt", content=content))
