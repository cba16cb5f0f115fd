"""The page: valid, with everything in it, and not wider than a phone."""

import html
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from ode_detect.report.comparison import Cell, Compared, Line, Table, differences, group, numbers, summary
from ode_detect.report.page import Figure, Page, PageError, Section
from ode_detect.report.rows import Row

LONG = "faster_rcnn_r101_fpn_with_a_shared_field_in_each_stage"
VOID = ("meta", "img", "br", "wbr", "link", "input", "hr")


class Reader(HTMLParser):
    """Collects tags and attributes, and sees that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_page(folder: Path) -> Page:
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "plot.png"), np.full((360, 460, 3), 200, dtype=np.uint8))
    cv2.imwrite(str(folder / "wide.jpg"), np.full((420, 1600, 3), 120, dtype=np.uint8))
    rows = [
        Row(name, role, seed, "c.yaml", {"AP50": 0.5 + 0.01 * seed, **extra}, {"parameters": 2e6, "latency_ms": 20.5})
        for name, role, extra in ((LONG, "ode", {}), ("twin", "twin", {"precision": 0.5}), ("<cut>", "ablation", {}))
        for seed in (0, 1)
    ]
    twins = {LONG: "twin", "<cut>": "twin"}
    compared = Compared(group(rows), twins=twins, reasons={(LONG, "precision"): "an <earlier> version"})
    plot = Figure(folder / "plot.png", 'loss of "all" & more', "loss")
    wide = Figure(folder / "wide.jpg", "the dial", "the dial", wide=True)
    return Page(
        title="A page",
        about="detection on trees_test",
        summary=summary(compared, "AP50"),
        warnings=("not trained alike: SOLVER.MAX_ITER: 1, 2.",),
        numbers=numbers(compared),
        differences=differences(compared),
        sections=(
            Section("Training", (plot, plot), "smoothed"),
            Section("The dial", (wide,)),
            Section("Pictures", (plot, plot, plot), rows=3, legend=(("#FF0000", "missed"),)),
        ),
        keys={"MODEL.ODE.ROLE": ("ode", "twin", "a|b"), "MODEL.ODE.FLOWS": ("[" + "x" * 300 + "]", "[]", "[]")},
        protocol=("trained on a", "tested on b"),
        commands=("python tools/train_net.py --config-file " + "long/" * 60, "python tools/compare.py"),
        machine={"cpu": "any", "cores": 2},
        commit="abc",
        date="2026-01-01",
    )


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    written, _ = make_page(tmp_path / "pictures").write(tmp_path)
    text = written.read_text(encoding="utf-8")
    page = Reader(text)
    assert page.open == []
    assert not page.of("script")
    assert not page.of("link")
    for attributes in (attributes for _, attributes in page.tags):
        for key in ("src", "href", "srcset", "data", "poster", "action"):
            assert re.match(r"data:image/|#", attributes.get(key) or "#"), attributes
    assert not re.search(r"url\(|@import|https?://", text)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"].removeprefix("#") for a in page.of("a")} <= ids


def test_readers_who_do_not_see_are_told_what_is_there(tmp_path: Path) -> None:
    page = Reader(make_page(tmp_path).html())
    pictures = page.of("img")
    assert len(pictures) == 6
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in pictures)
    assert pictures[0]["alt"] == 'loss of "all" & more'
    assert {cell.get("scope") for cell in page.of("th")} == {"col", "row", "rowgroup"}
    assert page.of("html")[0]["lang"] == "en"
    assert [t for t, _ in page.tags].count("h1") == 1


def test_numbers_notes_and_names_are_on_the_page_and_escaped(tmp_path: Path) -> None:
    text = make_page(tmp_path).html()
    assert "50.5 ± 0.7" in text
    assert "an &lt;earlier&gt; version" in text
    assert "&lt;cut&gt;" in text
    assert "<cut>" not in text
    assert "within the spread of 2 seeds" in text
    assert "--config-file" in text


def test_without_a_twin_there_is_no_such_section(tmp_path: Path) -> None:
    text = replace(make_page(tmp_path), differences=None, keys={}).html()
    assert "Against the twin" not in text
    assert "Nothing but the folders" in text


def test_markdown_says_the_same_and_names_the_pictures(tmp_path: Path) -> None:
    page = make_page(tmp_path / "pictures")
    text = page.write(tmp_path)[1].read_text(encoding="utf-8")
    assert "![the dial](pictures/wide.jpg)" in text
    assert "| AP50 (%)\u00a0↑ | 50.5 ± 0.7 | 50.5 ± 0.7 | 50.5 ± 0.7 |" in text
    assert "(1) an &lt;earlier&gt; version" in text
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


NASTY = "<script>alert(1)</script> [x](javascript:y) ![](http://z) `|` | *b*"


def test_no_name_is_more_than_text_in_markdown(tmp_path: Path) -> None:
    markdown = pytest.importorskip("markdown")
    page = make_page(tmp_path / "pictures")
    nasty = Table(NASTY, ((NASTY, NASTY),), ((NASTY, (Line(NASTY, (Cell(NASTY, NASTY, 1),)),)),), (NASTY,))
    figure = Figure(tmp_path / "pictures" / "wide.jpg", NASTY, NASTY)
    page = replace(
        page,
        **dict.fromkeys(("title", "about", "commit", "date"), NASTY),
        **dict.fromkeys(("summary", "warnings", "protocol", "commands"), (NASTY, f"```\n{NASTY}")),
        **dict.fromkeys(("numbers", "differences"), nasty),
        sections=(Section(NASTY, (figure,), NASTY),),
        keys={NASTY: (NASTY,)},
        machine={NASTY: NASTY},
    )
    html = markdown.markdown(page.markdown(tmp_path), extensions=["tables", "fenced_code"], output_format="html")
    tags = Reader(html).tags
    assert {name for name, _ in tags}.isdisjoint({"script", "a", "em"})
    assert [attributes["src"] for name, attributes in tags if name == "img"] == ["pictures/wide.jpg"]


def test_a_figure_needs_a_description_and_a_known_format(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="needs a description"):
        Figure(tmp_path / "a.png", " ")
    with pytest.raises(PageError, match=r"not a\.svg"):
        Figure(tmp_path / "a.svg", "a")


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_not_wider_than_the_window(tmp_path: Path, width: int) -> None:
    # In a frame, since a headless window may not be as narrow as a phone.
    inside = html.escape(make_page(tmp_path).html(), quote=True)
    measure = "const d = f.contentDocument.documentElement; document.title = `${d.scrollWidth} in ${d.clientWidth}`"
    outside = tmp_path / "frame.html"
    outside.write_text(
        f'<!doctype html><body style="margin:0"><iframe id="f" style="border:0;width:{width}px;height:20000px" '
        f'srcdoc="{inside}"></iframe><script>f.onload = () => {{ {measure} }}</script>',
        encoding="utf-8",
    )
    picture = tmp_path / "screen.png"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000", profile]

    def browse(*more: str) -> str:
        command = [BROWSER, *flags, *more, outside.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    title = re.search(r"<title>(\d+) in (\d+)</title>", browse("--dump-dom"))
    assert title is not None
    assert title[1] == title[2] == str(width)
    browse(f"--screenshot={picture}", f"--window-size={max(width, 500)},2000")
    shown = cv2.imread(str(picture))
    assert shown[:, :width].std() > 10
    assert (shown[:200, width:] == 255).all()
