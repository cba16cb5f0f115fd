"""Inputs of strangers that were once answered wrongly: each folder of shared/cases is run and judged.

A case has a run.sh, which calls the tools on data that it makes, and an expect.txt in words, which the judges here say
in assertions. Cases that consist of many run one or two of them; ODE_DETECT_ALL_CASES=1 runs them whole.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ..conftest import ROOT

CASES = Path(os.environ.get("ODE_DETECT_SHARED_DATA", ROOT.parent / "shared" / "data")).parent / "cases"
FEWER = {} if os.environ.get("ODE_DETECT_ALL_CASES") else {"class-names": "dollar", "mask-forms": "short null"}


class Outcome:
    """What a case printed, and the folder that it worked in."""

    def __init__(self, text: str, folder: Path) -> None:
        self.text, self.folder = text, folder
        # In front of it may stand what uniq counts.
        self.codes = list(map(int, re.findall(r"^(?: +\d+ )?exit code (\d+)$", text, re.MULTILINE)))

    def names(self) -> list[str]:
        """Of what the case consists."""
        return re.findall(r"^=== (\w+)$", self.text, re.MULTILINE)

    def part(self, begin: str, end: str | None = None) -> str:
        """What was printed from the first place of a text on, up to another one."""
        assert begin in self.text, self.text
        part = self.text[self.text.index(begin) :]
        return part[: part.index(end, len(begin))] if end and end in part[len(begin) :] else part

    def json(self, file: str) -> Any:
        return json.loads((self.folder / file).read_text())

    def checked(self, folder: str) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """The counts of the one data set that was checked, and its problems."""
        (dataset,) = self.json(f"{folder}/check.json")["datasets"]
        return dataset["counts"], dataset["problems"]


def metrics(outcome: Outcome, folder: str) -> dict[str, float]:
    (row,) = outcome.json(f"{folder}/results.json")["rows"]
    return {key: value for key, value in row["metrics"].items() if not key.endswith("minutes")}


def all_crowd(outcome: Outcome) -> None:
    assert outcome.codes[:2] == [1, 1], "check_dataset calls it wrong"
    crowd, nothing, *_ = outcome.text.split("kinds of mistakes found")
    assert "without an object that counts: 4 of 4 objects have iscrowd 1" in crowd
    assert "write 0" in crowd
    assert "without an object that counts" in nothing
    train_crowd, test_crowd, none, difficult = re.split(r"^exit code \d+$", outcome.text, flags=re.MULTILINE)[2:6]
    assert outcome.codes[2] == 2
    assert "my_train has none: 4 of 4 objects have iscrowd 1" in train_crowd
    assert "write 0" in train_crowd
    assert outcome.codes[4] == 2
    assert re.search("my_t(rain|est) has none", none)
    # An error, or a loud line.
    for code, text in ((outcome.codes[3], test_crowd), (outcome.codes[5], difficult)):
        assert code == 2 or "WARNING" in text
        assert "my_test has none" in text


def bom_coco_json(outcome: Outcome) -> None:
    assert outcome.codes == [1, 0, 1, 0], "the same pictures in training and test are all that is wrong"
    assert "Traceback" not in outcome.text
    assert metrics(outcome, "out_bom") == metrics(outcome, "out_utf16") != {}
    for name in ("bom", "utf16"):
        found = outcome.json(f"check_{name}/check.json")
        assert [one["counts"]["objects"] for one in found["datasets"]] == [4, 4]
        assert [one["problems"] for one in found["datasets"]] == [[], []]


def box_forms(outcome: Outcome) -> None:
    assert outcome.codes == [1, 1, 1, 1, 0, 0]
    for folder in ("check_shares", "check_voc"):
        _, problems = outcome.checked(folder)
        assert any("within one pixel, probably shares" in problem["rule"] for problem in problems), problems
    for folder in ("check_corners", "check_corners_inside"):
        _, problems = outcome.checked(folder)
        assert any("corners" in problem["rule"] and "x1 - x0" in str(problem) for problem in problems), problems
        assert not any("clipped" in problem["done"] for problem in problems)
    fixed = outcome.json("fixed_shares/shares_fixed.json")["annotations"]
    assert len(fixed) == 8
    assert all(box["bbox"][2] < 1 for box in fixed), "left to the user, who knows what they are"
    training = outcome.text.split("exit code 1")[-1].split("exit code 0")[0]
    assert "WARNING" in training, "of boxes that are shares"
    assert "2/2" in training


def class_names(outcome: Outcome) -> None:
    assert outcome.codes == [1, 0, 0] * len(outcome.names())
    assert "Traceback" not in outcome.text
    assert "could not" not in outcome.text
    (train, _) = outcome.json("check_dollar/check.json")["datasets"]
    assert train["classes"] == {"US$_front_5$": 2, "$x_{1$": 2}
    for name in ("my_train.png", "my_train_samples.jpg"):
        assert (outcome.folder / "check_dollar" / name).stat().st_size > 1000


def class_order(outcome: Outcome) -> None:
    def ap50(text: str) -> float:
        return float(re.search(r"evaluated on my_test: .*?AP50 ([\d.]+)", text)[1])

    trained = ap50(outcome.part("$ tools", "--- swapped") if "$ tools" in outcome.text else outcome.text)
    assert trained > 0.5
    swapped, others = outcome.part("--- swapped", "--- others"), outcome.part("--- others")
    assert "exit code 0" in swapped
    assert ap50(swapped) == pytest.approx(trained, abs=0.02), "a cat is a cat, whatever its number"
    # Other names: refused, by the evaluation and by the training.
    assert others.count("exit code 2") == 2
    for name in ("cat", "dog", "horse", "cow"):
        assert name in others


def doubled_images(outcome: Outcome) -> None:
    assert outcome.codes == [1]
    assert "objects before 9 after --fix 9" in outcome.text
    counts, problems = outcome.checked("check")
    assert counts["objects"] == 9
    assert any("spread over several entries" in problem["rule"] for problem in problems)
    assert len(outcome.json("fixed/doubled_fixed.json")["images"]) == 3


def drawn_clash(outcome: Outcome) -> None:
    assert outcome.codes == [0]
    entries = outcome.json("found/predictions.json")["images"]
    assert sorted(entry["file_name"] for entry in entries) == ["b.gif", "b.gif.jpg", "scan.tif", "scan.tif.jpg"]
    drawn = {entry["drawn"] for entry in entries}
    assert len(drawn) == 4
    assert drawn == {f"drawn/{path.name}" for path in (outcome.folder / "found" / "drawn").iterdir()}


def foreign_bytes(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.text
    assert outcome.codes[:2] == [0, 0]
    assert set(outcome.codes[2:]) <= {0, 1}, "check_dataset may call it wrong"
    names = [entry["file_name"] for entry in outcome.json("found/predictions.json")["images"]]
    assert len(names) == 4
    assert "caf\udce9.png" in names


def mask_forms(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.text
    assert "Kill" not in outcome.text
    assert outcome.names()
    for name in outcome.names():
        code, trained = map(int, re.findall(r"exit code (\d+)", outcome.part(f"=== {name}\n", "===")))
        counts, problems = outcome.checked(f"check_{name}")
        assert (code, bool(problems)) == ((0, False) if name == "plain" else (1, True))
        assert trained in (0, 2), f"{name}: neither an end in order nor a message"
        assert counts["objects"] == 4, "the box of a mask that is none is one all the same"
        fixed = outcome.json(f"fixed_{name}/{name}_fixed.json")
        assert len(fixed["annotations"]) == 4


def resume_rate(outcome: Outcome) -> None:
    assert outcome.codes[-1] == 0
    records = outcome.part("metrics.json:").split("\n")[0]
    assert "0.0001)" in records, "the rate that was asked for is used"
    assert "(0.0001, 0.001, None)" in outcome.part("optimizer:"), "and so is the decay"
    assert "now 0.0001" in outcome.text


def split_bom(outcome: Outcome) -> None:
    assert outcome.codes == [0] * 5
    assert "Traceback" not in outcome.text
    for name in ("plain", "bom", "utf16"):
        counts, problems = outcome.checked(f"check_{name}")
        assert (counts["pictures"], counts["objects"], problems) == (3, 3, [])


def voc_beside_pictures(outcome: Outcome) -> None:
    assert set(outcome.codes) == {0}
    for kind in ("same", "nosuffix", "renamed"):
        for folder in (f"check_{kind}", f"check_apart_{kind}"):
            counts, problems = outcome.checked(folder)
            assert (counts["pictures"], counts["objects"], problems) == (3, 3, [])
    counts, problems = outcome.checked("check_labels")
    assert (counts["pictures"], counts["objects"], problems) == (3, 3, [])


JUDGES: dict[str, Callable[[Outcome], None]] = {
    judge.__name__.replace("_", "-"): judge
    for judge in (
        *(all_crowd, bom_coco_json, box_forms, class_names, class_order, doubled_images, drawn_clash),
        *(foreign_bytes, mask_forms, resume_rate, split_bom, voc_beside_pictures),
    )
}
FOUND = sorted(path.parent.name for path in CASES.glob("*/run.sh"))


def run(name: str, folder: Path) -> Outcome:
    """Run a case in a folder."""
    environment = {**os.environ, "PY": sys.executable, "ROOT": str(ROOT), "WORK": str(folder)}
    environment |= {"CASES": FEWER[name]} if name in FEWER else {}
    done = subprocess.run(
        ["bash", str(CASES / name / "run.sh")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        timeout=850,
        check=False,
    )
    return Outcome(done.stdout, folder)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The cases that were asked for, two at a time, since a file of tests stays in one process; each by its name."""
    asked = [item.callspec.params["name"] for item in request.session.items if "running" in item.fixturenames]
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(run, name, tmp_path_factory.mktemp(name)) for name in asked if name in FOUND}
    pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(JUDGES))
def test_a_case_has_its_outcome(name: str, running: dict[str, Future[Outcome]]) -> None:
    if name not in running:
        pytest.skip(f"needs {name}: put it into ../shared/cases, or beside $ODE_DETECT_SHARED_DATA")
    JUDGES[name](running[name].result())


def test_every_case_has_a_judge() -> None:
    assert set(FOUND) <= set(JUDGES)
