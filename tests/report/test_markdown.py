import pytest

from ode_detect.report import markdown

RULES = pytest.importorskip("markdown")

NASTY = [
    "[click](javascript:alert(1))",
    "![](http://elsewhere/tracker.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b",
    "`code`",
    "*bold* __init__ _x_ ~~gone~~",
    "# heading",
    "- item",
    "1. item",
    "---",
    "> quote",
    "a\n\n# b\r\n- c",
    "back\\slash \\[x](y)",
    "&lt;b&gt;",
    "tailing |",
    "",
]


@pytest.mark.parametrize("name", NASTY)
def test_text_stays_text(name: str) -> None:
    html = RULES.markdown(f"{markdown.text(name)}\n", extensions=["tables"])
    shown = html.removeprefix("<p>").removesuffix("</p>")
    assert "<" not in shown
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        shown = shown.replace(entity, sign)
    assert shown.replace("\\~", "~").replace("\\|", "|").strip() == " ".join(name.splitlines()).strip()


@pytest.mark.parametrize("name", NASTY)
def test_a_cell_is_one_cell(name: str) -> None:
    table = f"| name | n |\n| --- | --- |\n| {markdown.text(name)} | 1 |\n| {markdown.code(name)} | 2 |\n"
    html = RULES.markdown(table, extensions=["tables"])
    assert html.count("<tr>") == 3
    assert html.count("<td") == 4
    for tag in ("<script", "<img", "<a ", "<em", "<strong", "<h1", "<li"):
        assert tag not in html


def test_usual_names_and_numbers_stay_as_they_are() -> None:
    for name in (
        "trees_ode",
        "0.5 ± 0.1",
        "-0.3",
        "AP\u00a0↑ (%)",
        "1.5",
        "output/a_b.yaml",
        "10 cores",
        "× 0.9",
        "AP50",
    ):
        assert markdown.text(name) == name
        assert markdown.code(name) == f"`{name}`"


def test_code_and_fences_are_longer_than_what_is_in_them() -> None:
    assert markdown.code("a ``b`` c") == "``` a ``b`` c ```"
    assert markdown.fence("python tools/x.py\n```\n# out") == "````"
    assert markdown.fence("plain") == "```"


def test_an_address_has_no_blank_or_bracket() -> None:
    assert markdown.address("figures/a b (1).png") == "figures/a%20b%20%281%29.png"
    assert markdown.address("figures/trees_ode.png") == "figures/trees_ode.png"
    assert markdown.address("caf\udce9.png") == "caf%E9.png"
