from pathlib import Path

from ode_detect.report.protocol import from_words, full_settings
from ode_detect.report.results import Results, Row


def run_folder(folder: Path, role: str, protocol: str = "p") -> Path:
    row = Row(name=role, role=role, seed=0, config="c.yaml", metrics={"AP50": 0.5}, cost={"parameters": 7})
    Results(
        what="w",
        command=f"train {role}",
        commit="abc",
        date="2026-01-01",
        machine={"cores": 2},
        protocol=from_words(protocol),
        rows=(row,),
    ).write(folder / "results.json")
    return folder


def test_runs_are_joined_into_one_file(tool, tmp_path: Path, capsys) -> None:
    runs = [str(run_folder(tmp_path / role, role)) for role in ("ode", "twin", "ablation")]
    assert tool.main([*runs, "--output", str(tmp_path / "all.json")]) == 0
    joined = Results.read(tmp_path / "all.json")
    assert [row.role for row in joined.rows] == ["ode", "twin", "ablation"]
    assert joined.command.splitlines() == ["train ode", "train twin", "train ablation"]
    assert "AP50" in capsys.readouterr().out


def test_what_cannot_be_joined_is_told(tool, tmp_path: Path, capsys) -> None:
    runs = [str(run_folder(tmp_path / "a", "ode")), str(run_folder(tmp_path / "b", "twin", protocol="another"))]
    assert tool.main([*runs, "--output", str(tmp_path / "all.json")]) == 2
    assert "protocol" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "none"), "--output", str(tmp_path / "all.json")]) == 2
    assert not (tmp_path / "all.json").exists()


def test_dials_are_joined_under_names_and_drawn(tool, tmp_path: Path) -> None:
    for name in ("before", "after"):
        rows = tuple(
            Row(f"euler_{steps}", "ode", 0, "c.yaml", {"top1": 0.1 * steps}, {"evaluations": steps})
            for steps in (1, 2, 4)
        )
        protocol = f"weights of {name}; full steps: euler_4; statistics of the full steps: those of {name}"
        results = Results(
            what="The dial of it",
            command="c",
            commit="abc",
            date="2026-01-01",
            machine={},
            protocol=from_words(protocol),
            rows=rows,
        )
        results.write(tmp_path / f"{name}.json")
    runs = [str(tmp_path / "before.json"), f"dial={tmp_path / 'after.json'}"]
    assert tool.main([*runs, "--output", str(tmp_path / "all.json"), "--plot", "top1"]) == 0
    names = [row.name for row in Results.read(tmp_path / "all.json").rows]
    assert full_settings(Results.read(tmp_path / "all.json").protocol) == ["euler_4", "dial_euler_4"]
    assert names == ["euler_1", "euler_2", "euler_4", "dial_euler_1", "dial_euler_2", "dial_euler_4"]
    assert (tmp_path / "all.png").stat().st_size > 1000
    assert tool.main([*runs, "--output", str(tmp_path / "all.json"), "--plot", "AP"]) == 2
