"""What the site needs beyond its pages: typeset mathematics, links to the glossary, a page for each object of api.md.

Formulas become SVG while the site is built, so that no page loads a script or a font from elsewhere, and all browsers
show the same.
"""

import html
import importlib
import inspect
import re
import sys
import typing
from types import NoneType, UnionType
from typing import Any

import griffe
import ziamath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ziamath.config.svg2 = False  # whole paths: names of glyphs would be those of the page's first formula
SIZE = 20.0
PLAIN = ("glossary.md", "changes.md", "contributing.md")  # without links to the glossary
ENTRY = re.compile(r"^::: (\S+)\n((?:    .*\n)*)", re.M)


class PluralExamples(griffe.Extension):
    """Sections ``Example:`` are shown as code too, which mkdocstrings does of ``Examples:`` alone."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in the docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)


def on_page_content(html_text: str, page: Page, **_: Any) -> str:
    """Typeset what the extension arithmatex has marked."""
    for tag, opening, closing in (("span", r"\\\(", r"\\\)"), ("div", r"\\\[", r"\\\]")):
        pattern = rf'<{tag} class="arithmatex">{opening}(.*?){closing}</{tag}>'

        def typeset(match: re.Match[str], tag: str = tag) -> str:
            return f'<{tag} class="math">{picture(html.unescape(match[1]).strip(), inline=tag == "span")}</{tag}>'

        html_text = re.sub(pattern, typeset, html_text, flags=re.S)
    return html_text


def picture(latex: str, inline: bool) -> str:
    """An SVG as large as the text around it, on its baseline."""
    svg = ziamath.Latex(latex, size=SIZE, inline=inline).svg()
    _, top, width, height = map(float, re.search(r'viewBox="([^"]*)"', svg)[1].split())  # type: ignore[index]
    place = f"width:{width / SIZE:.3f}em;height:{height / SIZE:.3f}em;vertical-align:{-(height + top) / SIZE:.3f}em"
    label = html.escape(" ".join(latex.split()), quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" style="{place}" ', 1)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API, and list them under it, in the sections of api.md."""
    source = files.get_file_from_path("api.md")
    assert source is not None
    assert config.nav is not None
    listed: list[Any] = ["api.md"]
    for section in source.content_string.split("\n## ")[1:]:
        entries = ENTRY.findall(section)
        listed.append({section.split("\n")[0]: [page_of(name) for name, _ in entries]})
        for name, options in entries:
            text = f"---\ntitle: {name.rsplit('.', 1)[1]}\n---\n\n::: {name}\n{options}{literals(name)}"
            files.append(File.generated(config, page_of(name), content=text))
    config.nav = [{"API": listed} if entry == {"API": "api.md"} else entry for entry in config.nav]
    return files


def page_of(name: str) -> str:
    """Where the page of an object is."""
    return f"api/{name.rsplit('.', 1)[1]}.md"


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """A link to the glossary at the first use of each of its terms; in api.md, a line for each object."""
    if page.file.src_uri != "api.md":
        return markdown if page.file.src_uri in PLAIN or "/" in page.file.src_uri else linked(markdown, files)
    return ENTRY.sub(lambda m: f"- [`{m[1].rsplit('.', 1)[1]}`]({page_of(m[1])}): {summary(m[1])}", markdown)


def linked(markdown: str, files: Files) -> str:
    """The text with the first use of each term in a paragraph or list linked to the glossary."""
    glossary = files.get_file_from_path("glossary.md")
    assert glossary is not None
    terms = {term.lower() for term in re.findall(r"^## (\w+)$", glossary.content_string, re.M)}
    blocks = re.split(r"(^```.*?^```$|\n{2,})", markdown, flags=re.M | re.S)
    for number, block in enumerate(blocks):
        if not re.match(r"[\w*`(]|- |\d\. ", block) or block.startswith("```"):
            continue
        parts = re.split(r"(`[^`]*`|!?\[[^\]]*\]\([^)]*\)|\$[^$]*\$)", block)  # code, links and mathematics stay
        for term in sorted(terms):
            word = rf"\b{term[:-1]}(?:y|ies)\b" if term.endswith("y") else rf"\b{term}(?:e?s)?\b"
            for place in range(0, len(parts), 2):
                if match := re.search(word, parts[place], re.I):
                    link = f"[{match[0]}](glossary.md#{term})"
                    before, after = parts[place][: match.start()], parts[place][match.end() :]
                    parts[place : place + 1] = [before, link, after]
                    terms.remove(term)
                    break
        blocks[number] = "".join(parts)
    return "".join(blocks)


def found(name: str) -> Any:
    """The object with this dotted name."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def summary(name: str) -> str:
    """The first sentence of its docstring."""
    first = (inspect.getdoc(found(name)) or "").split("\n\n")[0].replace("\n", " ")
    return first.replace("``", "`")


def literals(name: str) -> str:
    """A list of the arguments that take one of a few words, with the words."""
    thing = found(name)
    function = thing.__init__ if inspect.isclass(thing) else thing
    if not callable(function):
        return ""
    lines = []
    for argument, kind in inspect.get_annotations(function).items():
        if isinstance(kind, str):  # of a module that postpones annotations
            try:
                kind = eval(kind, sys.modules[thing.__module__].__dict__)
            except NameError:  # imported for type checkers alone, as the class of figures is
                continue
        words = [word for word in _words(kind) if word is not None]
        if words and argument != "return":
            shown = ", ".join(f"`{word!r}`".replace("'", '"') for word in words)
            lines.append(f"- `{argument}`: {shown}{' or a number' if _is_numeric(kind) else ''}")
    return "\n## Values\n\n" + "\n".join(lines) + "\n" if lines else ""


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, UnionType) else (kind,)


def _words(kind: Any) -> list[Any]:
    return [w for part in _parts(kind) if typing.get_origin(part) is typing.Literal for w in typing.get_args(part)]


def _is_numeric(kind: Any) -> bool:
    return any(part in (int, float) for part in _parts(kind) if part is not NoneType)
