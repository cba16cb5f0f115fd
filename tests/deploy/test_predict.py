"""Predicting with a random network on small pictures and videos."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torch import nn

from ode_detect.deploy import predict as predicting
from ode_detect.deploy.predict import Summary, predict, read_ahead, same_size_batches
from ode_detect.detection import predict as drawing
from ode_detect.detection.optimize import optimize_detector
from ode_detect.engine.build import build_network
from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.config import load_config
from ode_detect.engine.run import Run
from ode_detect.engine.tasks import get_task
from ode_detect.engine.train import evaluate
from ode_detect.engine.trainer import Trainer
from ode_detect.media import VideoReader, VideoWriter
from ode_detect.media.errors import DatasetError
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART, overrides_for

SMALL = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "16",
    "MODEL.FPN.OUT_CHANNELS",
    "16",
]
SMALL += ["MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.DEVICE", "cpu"]
TEST = ["INPUT.MIN_SIZE_TEST", "64", "TEST.SCORE_THRESHOLD", "0.3", "TEST.DETECTIONS_PER_IMAGE", "20"]
TEST += ["MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"]


@pytest.fixture(autouse=True)
def plain(request: pytest.FixtureRequest, monkeypatch) -> None:
    """Drawing is tested elsewhere, and takes longer than all the rest."""
    monkeypatch.setattr(drawing, "draw_detections", lambda image, **numbers: image)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A network with scores that are far apart, and the name of its class."""
    torch.manual_seed(0)
    model = build_network(load_config(QUICKSTART, SMALL))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(80)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(80)
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(80)
    folder = tmp_path_factory.mktemp("weights")
    checkpointer = Checkpointer(model, str(folder))
    checkpointer.notes["categories"] = [{"id": 4, "name": "square"}]
    checkpointer.save("model")
    return str(folder / "model.pth")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of two sizes in turn, five and three."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for index in range(8):
        size = (64, 96) if index % 2 and index < 6 else (96, 64)
        image = cv2.resize(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8), size, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / "in" / f"{index}.png"), image)
    return tmp_path / "in"


def a_video(path: Path, frames: int = 5, codec: str = "") -> Path:
    rng = np.random.default_rng(1)
    with VideoWriter(path, rate=Fraction(10), codec=codec) as writer:
        for index in range(frames):
            image = cv2.resize(
                rng.integers(0, 255, (5, 5, 3), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_NEAREST
            )
            writer.write(image, index / 10)
    return path


def a_run(output: Path, *more: str) -> Run:
    cfg = load_config(QUICKSTART, [*SMALL, *TEST, "OUTPUT_DIR", str(output / "none"), *more])
    return Run(cfg, get_task(cfg), output, "test", str(QUICKSTART))


def content(output: Path) -> dict:
    return json.loads((output / "predictions.json").read_text())


def assert_same_annotations(first: list[dict], second: list[dict]) -> None:
    """The same but for float32.

    oneDNN takes another algorithm for another batch size: features differ by 1e-6 of the largest, and boxes by 1e-5
    pixels before they are rounded to 1e-4 (without oneDNN, not at all).
    """
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert all(a.get(key) == b.get(key) for key in ("image_id", "category_id", "file_name"))
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1e-4, rtol=1e-5)
        np.testing.assert_allclose(a["score"], b["score"], atol=1e-5)


def test_a_prediction_does_not_depend_on_the_batch(weights: str, pictures: Path, tmp_path: Path) -> None:
    for batch in (1, 4):
        predict(a_run(tmp_path / f"{batch}"), [str(pictures)], weights=weights, batch=batch)
    one, four = content(tmp_path / "1"), content(tmp_path / "4")
    assert one["images"] == four["images"]
    assert len({a["image_id"] for a in one["annotations"]}) == 8
    assert_same_annotations(one["annotations"], four["annotations"])


def test_padding_to_a_neighbour_would_change_a_prediction(weights: str) -> None:
    """Why only pictures of one size go together."""
    model = build_network(load_config(QUICKSTART, SMALL)).eval()
    model.load_state_dict(torch.load(weights)["model"])
    generator = torch.Generator().manual_seed(0)
    small, large = ({"image": torch.rand(3, h, w, generator=generator) * 255} for h, w in ((64, 96), (96, 64)))
    with torch.no_grad():
        alone, padded = (
            model.backbone(model.preprocess_image(batch).tensor)["p2"][0, :, :16, :24]
            for batch in ([small], [small, large])
        )
    assert alone.shape == padded.shape
    assert float((alone - padded).norm() / alone.norm()) > 0.01


def test_batches_hold_one_size_and_few_wait() -> None:
    drawn: list[int] = []
    sizes = [1, 2, 1, 2, 1, 3, 4, 5, 6, 7, 8, 9]
    given = ((drawn.append(i), i)[1] for i in range(len(sizes)))
    batches = []
    for batch in same_size_batches(given, 2, lambda i: (sizes[i],)):
        batches.append(batch)
        assert len(drawn) - sum(map(len, batches)) < 8
    assert batches[:2] == [[0, 2], [1, 3]]
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(len({sizes[i] for i in batch}) == 1 for batch in batches)
    # Frames of a video stay in order.
    assert list(same_size_batches(range(5), 2, lambda i: (0,))) == [[0, 1], [2, 3], [4]]


def test_few_pictures_are_read_ahead_and_an_error_comes_with_its_picture(pictures: Path) -> None:
    (pictures / "2.png").write_bytes(b"no picture")
    paths = {path.name: path for path in sorted(pictures.iterdir())}
    with ThreadPoolExecutor(1) as pool, mock.patch.object(pool, "submit", wraps=pool.submit) as submit:
        for index, (key, reading) in enumerate(read_ahead(pool, paths, 3)):
            assert key == f"{index}.png"
            assert submit.call_count == min(index + 4, 8)
            if index == 2:
                with pytest.raises(DatasetError, match=r"2\.png"):
                    reading.result()
            else:
                np.testing.assert_array_equal(reading.result(), cv2.imread(str(paths[key]))[:, :, ::-1])


def test_the_records_are_those_of_the_evaluator(weights: str, squares: Path, tmp_path: Path) -> None:
    """Detectron2 reads the pictures, runs the network and writes results its own way."""
    more = overrides_for(squares, tmp_path / "none", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2")
    run = a_run(tmp_path / "out", *more, "TEST.SCORE_THRESHOLD", "0.0", "INPUT.MIN_SIZE_TEST", "64")
    predict(run, [str(squares / "images")], weights=weights)
    model = build_network(run.cfg)
    model.load_state_dict(torch.load(weights)["model"])
    evaluate(run, model)
    expected = json.loads((run.folder / "inference" / "squares" / "coco_instances_results.json").read_text())
    truth = COCO(str(squares / "train.json"))
    ids = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
    given = [{**a, "image_id": ids[a["file_name"]], "category_id": 1} for a in content(run.folder)["annotations"]]
    assert len(given) == len(expected) > 10
    assert len(truth.loadRes(given).getAnnIds()) == len(given)
    first, second = (
        sorted([a["image_id"], a["category_id"], a["score"], *a["bbox"]] for a in some) for some in (given, expected)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_a_stopped_command_goes_on(weights: str, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    predict(a_run(tmp_path / "whole"), [str(pictures)], weights=weights)
    read, seen = predicting.read_image, []

    def stop_at_the_fourth(path: Path, format: str) -> np.ndarray:
        seen.append(path.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(path, format)

    monkeypatch.setattr(predicting, "read_image", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt, match=r"3 of 8 inputs are done\. The same command again goes on"):
        predict(a_run(tmp_path / "parts"), [str(pictures)], weights=weights)
    assert not (tmp_path / "parts" / "predictions.json").exists()
    assert len(list((tmp_path / "parts" / "drawn").iterdir())) == 3
    summary = predict(a_run(tmp_path / "parts"), [str(pictures)], weights=weights)
    assert (summary.done, summary.kept, summary.pictures) == (8, 3, 5)
    assert [seen.count(f"{index}.png") for index in range(3)] == [1, 1, 1]  # not even read again
    whole, parts = content(tmp_path / "whole"), content(tmp_path / "parts")
    assert whole == {**parts, "info": whole["info"]}


def test_other_settings_and_changed_pictures_are_done_anew(
    weights: str, pictures: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    read, stops = predicting.read_image, ["6.png", "6.png", "none"]

    def stop(path: Path, format: str) -> np.ndarray:
        if path.name == stops[0]:
            raise KeyboardInterrupt
        return read(path, format)

    monkeypatch.setattr(predicting, "read_image", stop)
    for threshold in ("0.3", "0.4"):
        with pytest.raises(KeyboardInterrupt, match="6 of 8"):
            predict(a_run(tmp_path / "out", "TEST.SCORE_THRESHOLD", threshold), [str(pictures)], weights=weights)
        stops.pop(0)
    assert "other settings; beginning again" in capsys.readouterr().err
    cv2.imwrite(str(pictures / "0.png"), np.zeros((70, 70, 3), dtype=np.uint8))
    summary = predict(a_run(tmp_path / "out", "TEST.SCORE_THRESHOLD", "0.4"), [str(pictures)], weights=weights)
    assert (summary.done, summary.kept) == (8, 5)
    assert content(tmp_path / "out")["images"][0]["width"] == 70


def test_broken_inputs_are_told_and_the_rest_is_done(weights: str, pictures: Path, tmp_path: Path, capsys) -> None:
    whole = (pictures / "1.png").read_bytes()
    (pictures / "1.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (pictures / "no.mp4").write_bytes(b"no video")
    given = [str(pictures), str(tmp_path / "empty"), str(tmp_path / "none.png")]
    summary = predict(a_run(tmp_path / "out"), given, weights=weights, batch=3)
    assert summary.done == 7
    failed = {Path(path).name for path, _ in summary.failed}
    assert failed == {"1.png", "text.jpg", "no.mp4", "empty", "none.png"}
    assert {Path(f["file_name"]).name for f in content(tmp_path / "out")["failed"]} == failed
    assert all(f"skipped: {path} " in err for err in [capsys.readouterr().err] for path, _ in summary.failed)
    assert "7 inputs done\n5 failed" in str(summary)


def test_nothing_to_predict_on_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to predict on\. .*none\.png is not there\. Give pictures"):
        predict(a_run(tmp_path / "out"), [str(tmp_path / "none.png")])
    assert not (tmp_path / "out").exists()


def test_output_in_the_input_folder_is_not_predicted_on(weights: str, pictures: Path) -> None:
    for picture in sorted(pictures.iterdir())[2:]:
        picture.unlink()
    for output in (pictures, pictures / "out", pictures):
        assert predict(a_run(output), [str(pictures)], weights=weights).done == 2


def test_inputs_are_never_overwritten(weights: str, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(5)
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    for folder in (tmp_path, work):
        cv2.imwrite(str(folder / "x.png"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    monkeypatch.chdir(work)
    # As it was written from "..", the drawing of the first was the second.
    summary = predict(a_run(work / "out"), ["../../x.png", "x.png"], weights=weights)
    assert summary.done == 2
    assert {path: path.read_bytes() for path in before} == before
    told = content(work / "out")["images"]
    assert [entry["file_name"] for entry in told] == ["x.png", "a/b/x.png"]
    assert [entry["drawn"] for entry in told] == ["drawn/x.png", "drawn/a/b/x.png"]
    with pytest.raises(ConfigError, match=r"drawn/x\.png would be written, and is what is read"):
        predict(a_run(work / "out"), [str(work / "out" / "drawn" / "x.png")], weights=weights)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "drawn").symlink_to(pictures)
    with pytest.raises(ConfigError, match=r"drawn leads to .*in\. Remove that link"):
        predict(a_run(tmp_path / "other"), [str(tmp_path / "x.png")], weights=weights)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_name_or_a_shape_that_nothing_can_hold_costs_no_other_input(
    batch: int, weights: str, pictures: Path, tmp_path: Path
) -> None:
    long = "l" * 250 + ".png"
    (pictures / "1.png").rename(pictures / "caf\udce9.png")
    (pictures / "2.png").rename(pictures / long)
    (pictures / "3.png").rename(pictures / "k\u00f6ln.png")
    grey = np.full((1, 4000, 3), 90, np.uint8)
    cv2.imwrite(str(pictures / "strip.png"), grey)
    cv2.imwrite(str(pictures / "wide.png"), np.full((2, 66_000, 3), 90, np.uint8))
    (pictures / "wide.png").rename(pictures / "wide.jpg")
    predict(a_run(tmp_path / "out"), [str(pictures)], weights=weights, batch=batch)
    text = (tmp_path / "out" / "predictions.json").read_text(encoding="utf-8")
    assert "caf\\udce9.png" in text
    assert "k\u00f6ln.png" in text
    told = {entry["file_name"]: entry for entry in json.loads(text)["images"]}
    assert len(told) == 10
    assert json.loads(text)["failed"] == []
    for name in ("caf\udce9.png", long, "k\u00f6ln.png", "strip.png", "wide.jpg"):
        assert (tmp_path / "out" / told[name]["drawn"]).is_file()
    assert told["wide.jpg"]["drawn"] == "drawn/wide.jpg.png"
    assert cv2.imread(str(tmp_path / "out" / "drawn" / "wide.jpg.png")).shape == (2, 66_000, 3)
    assert len({entry["drawn"] for entry in told.values()}) == 10


def test_what_cannot_be_drawn_is_predicted_all_the_same(
    weights: str, pictures: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def draw(image: np.ndarray, **_: object) -> np.ndarray:
        if image.shape[:2] == (64, 96):
            raise MemoryError("no room")
        return image

    expected = content_of(weights, pictures, tmp_path / "all")
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_detections", draw)
        summary = predict(a_run(tmp_path / "out"), [str(pictures)], weights=weights)
    assert (summary.done, len(summary.failed)) == (8, 5)
    told = content(tmp_path / "out")
    assert_same_annotations(told["annotations"], expected["annotations"])
    assert sum("drawn" in entry for entry in told["images"]) == 3
    assert "is not drawn (no room)" in capsys.readouterr().err


def content_of(weights: str, pictures: Path, output: Path) -> dict:
    predict(a_run(output), [str(pictures)], weights=weights)
    return content(output)


def test_a_full_disk_stops_the_command_which_then_goes_on(
    weights: str, pictures: Path, tmp_path: Path, monkeypatch
) -> None:
    def full(path: Path, *_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "write_picture", full)
        with pytest.raises(OSError, match="No space left"):
            predict(a_run(tmp_path / "out"), [str(pictures)], weights=weights)
    assert predict(a_run(tmp_path / "out"), [str(pictures)], weights=weights).done == 8


def test_a_video_is_drawn_and_told_frame_by_frame(weights: str, tmp_path: Path) -> None:
    video = a_video(tmp_path / "clip.mp4")
    for batch in (1, 2):
        summary = predict(a_run(tmp_path / f"{batch}"), [str(video)], weights=weights, batch=batch)
        assert (summary.done, summary.pictures, summary.failed) == (1, 5, [])
    entry = content(tmp_path / "1")["videos"][0]
    assert (entry["file_name"], entry["frames"], entry["rate"]) == ("clip.mp4", 5, 10.0)
    lines = [[json.loads(line) for line in (tmp_path / b / entry["records"]).read_text().splitlines()] for b in "12"]
    assert [(line["frame"], line["time"]) for line in lines[0]] == [(i, i / 10) for i in range(5)]
    assert all(line["annotations"] for line in lines[0])
    for one, two in zip(*lines, strict=True):
        assert_same_annotations(one["annotations"], two["annotations"])
    with VideoReader(tmp_path / "1" / entry["drawn"]) as reader:
        times = [frame.time for frame in reader]
        assert reader.rate == 10
    np.testing.assert_allclose(times, [0, 0.1, 0.2, 0.3, 0.4], atol=1e-3)


def test_a_video_that_is_cut_short_is_done_in_part(weights: str, tmp_path: Path, capsys) -> None:
    video = a_video(tmp_path / "clip.mp4", frames=12, codec="mpeg4")
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    summary = predict(a_run(tmp_path / "out"), [str(video)], weights=weights)
    entry = content(tmp_path / "out")["videos"][0]
    assert 2 <= entry["frames"] < 10
    assert len((tmp_path / "out" / entry["records"]).read_text().splitlines()) == entry["frames"]
    assert [path for path, _ in summary.failed] == [str(video)]
    assert f"done in part: {video} is cut short or damaged: {entry['frames']} of the 12" in capsys.readouterr().err


def test_a_stopped_video_can_be_watched_and_is_begun_anew(weights: str, tmp_path: Path, monkeypatch) -> None:
    video = a_video(tmp_path / "clip.mp4")
    write, count = VideoWriter.write, iter(range(100))

    def stop_at_the_third(*arguments: object) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(VideoWriter, "write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt, match="0 of 1 inputs"):
        predict(a_run(tmp_path / "out"), [str(video)], weights=weights)
    with VideoReader(tmp_path / "out" / "drawn" / "clip.mp4") as reader:
        assert len(list(reader)) == 2
    assert len((tmp_path / "out" / "frames" / "clip.mp4.jsonl").read_text().splitlines()) == 2
    predict(a_run(tmp_path / "out"), [str(video)], weights=weights)
    assert content(tmp_path / "out")["videos"][0]["frames"] == 5
    assert not list((tmp_path / "out").rglob("*.partial*"))


def test_an_optimised_network_predicts_the_same(
    weights: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is optimised on the first batch of the input: there is no test set here."""
    predict(a_run(tmp_path / "a"), [str(pictures)], weights=weights)
    seen = []
    run = a_run(tmp_path / "b", "MODEL.OPTIMIZE_FOR_INFERENCE", "True")

    def float32(model: nn.Module, batch: list[dict]) -> tuple[nn.Module, object]:
        seen.append(len(batch))
        return optimize_detector(model, batch, precision="float32")

    monkeypatch.setattr(run.task, "optimize", float32)
    predict(run, [str(pictures)], weights=weights, batch=2)
    assert seen == [2]
    assert_same_annotations(content(tmp_path / "a")["annotations"], content(tmp_path / "b")["annotations"])


def test_the_checkpoint_names_the_classes(weights: str, pictures: Path, tmp_path: Path) -> None:
    predict(a_run(tmp_path / "out"), [str(pictures / "0.png")], weights=weights)
    given = content(tmp_path / "out")
    assert given["categories"] == [{"id": 4, "name": "square"}]
    assert {(a["category_id"], a["category_name"]) for a in given["annotations"]} == {(4, "square")}


def test_training_writes_the_classes_into_checkpoints(squares: Path, tmp_path: Path) -> None:
    cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path / "run", *SMALL, "SOLVER.MAX_ITER", "1"))
    (tmp_path / "run").mkdir()
    Trainer(cfg, get_task(cfg), lambda model: {}).train()
    written = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert written["categories"] == [{"id": 1, "name": "square"}]


def test_a_gpu_that_is_not_there(weights: str, pictures: Path, tmp_path: Path, capsys) -> None:
    """As in the config that a run on another machine wrote."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    predict(a_run(tmp_path / "out", "MODEL.DEVICE", "cuda"), [str(pictures / "0.png")], weights=weights)
    assert "there is no GPU here; computing on the CPU" in capsys.readouterr().err


def test_an_adaptive_method_in_batches_is_told(weights: str, pictures: Path, tmp_path: Path, capsys) -> None:
    adaptive = ["MODEL.ODE.METHOD", "bosh3", "MODEL.ODE.PROJECTION", "none"]
    predict(a_run(tmp_path / "out", *adaptive), [str(pictures / "0.png")], weights=weights, batch=2)
    assert "predictions depend on --batch" in capsys.readouterr().err


def test_the_summary_tells_the_speed() -> None:
    summary = Summary(done=3, pictures=10, file=Path("out/predictions.json"))
    summary.seconds.update(network=2.0, loading=1.0, drawing=2.0)
    assert "10 pictures: 5.00 a second in the network, 2.00 in all" in str(summary)
