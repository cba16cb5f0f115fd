"""Predicting on pictures and videos: read, batch, run, draw, write; the same for every task."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.evaluator import inference_context
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from ode_detect.engine.build import build_network
from ode_detect.engine.lock import alone_in
from ode_detect.engine.provenance import provenance
from ode_detect.engine.run import Run, tested
from ode_detect.engine.train import fill
from ode_detect.media import Input, VideoError, VideoReader, VideoWriter, find_inputs
from ode_detect.media.files import whole
from ode_detect.media.images import read_image
from ode_detect.ode import Adaptive
from ode_detect.ode.flows import flows_of
from ode_detect.task import ConfigError, Example, Predictor

from .drawings import DRAWN, drawn_paths, frames_path, refuse_overwriting, write_picture
from .predictions import FILE, PARTIAL, Predictions

T = TypeVar("T")
# A disk that takes no more, or nothing at all: what the next input would meet too.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Summary:
    """What a command did.

    Attributes:
        done: inputs that were predicted on, those of an earlier, stopped command included.
        kept: how many of them are of the earlier command.
        failed: (path, what was wrong) of the others, and of videos that were done in part.
        pictures: pictures and frames that went through the network.
        seconds: spent in waiting for "loading", in "network", and "drawing" (with writing).
        file: the file of predictions.
    """

    done: int = 0
    kept: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    pictures: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    file: Path = Path()

    def __str__(self) -> str:
        parts = [f"{key} {value:.1f} s" for key, value in self.seconds.items()]
        total, network = sum(self.seconds.values()), self.seconds.get("network", 0.0)
        lines = [f"{self.done} inputs done" + (f", {self.kept} of them before" if self.kept else "")]
        if self.failed:
            lines.append(f"{len(self.failed)} failed: " + ", ".join(path for path, _ in self.failed[:5]))
        if self.pictures:
            lines.append(
                f"{self.pictures} pictures: {self.pictures / network:.2f} a second in the network, "
                f"{self.pictures / total:.2f} in all ({', '.join(parts)})"
            )
        return "\n".join([*lines, f"all of it is in {self.file.parent}/: {self.file.name}, {DRAWN}/"])


def predict(run: Run, given: Sequence[str], *, weights: str = "", batch: int = 1) -> Summary:
    """Predict on pictures and videos, and write what was found into the run's folder.

    ``predictions.json`` holds all records of pictures, ``drawn/`` the pictures and videos, ``frames/`` a file of JSON
    lines for each video. What cannot be read is named and left out. A command that was stopped goes on when it is given
    again with the same settings; a video that was stopped starts again from its beginning.

    Args:
        run: config, task, and the folder for the output; no data set needs to be there.
        given: files, folders and globs.
        weights: a checkpoint; "" takes what `ode_detect.engine.train.fill` takes.
        batch: pictures that go through the network together; only those of the same size do.

    Raises:
        ConfigError: there is nothing to predict on, the network cannot be optimised, or another command is writing
            into the folder.
        CheckpointError: there are no weights, or they do not fill the network.
        KeyboardInterrupt: stopped, with a message on how to go on.
    """
    summary = Summary()
    inputs = _inputs(given, summary)
    paths = drawn_paths(run.folder, inputs)
    frames = (frames_path(run.folder, item) for item in inputs if item.video)
    refuse_overwriting(run.folder, [*paths, *frames, run.folder / FILE, run.folder / PARTIAL], inputs)
    drawn = {_key(item, path): path for item, path in zip(inputs, paths, strict=True)}
    _use_a_device(run.cfg)
    network = Network(run, weights, batch, summary)
    with alone_in(run.folder), Predictions(run.folder, _settings(run.cfg, network.weights)) as kept:
        if kept.dropped:
            _say(f"{run.folder} holds a stopped command with other settings; beginning again.")
        keys = dict(zip(drawn, inputs, strict=True))
        rest = {key: item for key, item in keys.items() if key not in kept}
        summary.kept = len(keys) - len(rest)
        if summary.kept:
            _say(f"going on: {summary.kept} of {len(keys)} inputs are done.")
        try:
            _pictures(run.folder, {k: i for k, i in rest.items() if not i.video}, drawn, network, kept)
            for key, item in rest.items():
                if item.video:
                    _video(run.folder, key, item, drawn[key], network, kept)
        except KeyboardInterrupt:
            done = sum(key in kept for key in keys)
            raise KeyboardInterrupt(
                f"stopped: {done} of {len(keys)} inputs are done. The same command again goes on with the rest."
            ) from None
        summary.done = sum(key in kept for key in keys)
        summary.file = kept.finish(
            list(keys),
            info={**provenance(run.command), "config": run.config_file, "weights": network.weights},
            categories=network.predictor.categories,
            failed=[{"file_name": path, "error": error} for path, error in summary.failed],
        )
    return summary


class Network:
    """The network of a run, filled, with what its task says of its inputs and outputs.

    Args:
        run: the run.
        weights: a checkpoint, as for `predict`.
        batch: pictures at a time.
        summary: where pictures, times and failures are counted.

    Attributes:
        batch: pictures at a time.
        summary: where pictures, times and failures are counted.
        weights: the file that it was filled from.
        predictor: of the task.
    """

    def __init__(self, run: Run, weights: str, batch: int, summary: Summary) -> None:
        self._run, self.batch, self.summary = run, batch, summary
        self._model: nn.Module = build_network(run.cfg)
        self.weights, loaded = fill(run, self._model, weights)
        try:
            self.predictor: Predictor = run.task.predictor(run.cfg, loaded.categories or run.task.categories(run.cfg))
        except ValueError as error:
            raise ConfigError(f"{self.weights}: {error} Give the config that the weights were trained with.") from error
        self._optimized = not run.cfg.MODEL.OPTIMIZE_FOR_INFERENCE
        if self._optimized:
            self._model = tested(run, self._model)
        if batch > 1 and any(isinstance(flow.solver, Adaptive) for flow in flows_of(self._model).values()):
            _say("an adaptive method chooses its steps for a whole batch: predictions depend on --batch, except for 1.")

    def outputs(
        self, images: Iterable[tuple[T, NDArray[np.uint8]]], name: Callable[[T], str]
    ) -> Iterator[tuple[T, NDArray[np.uint8], Any]]:
        """Run the network on pictures.

        Args:
            images: what the picture belongs to, and the picture (RGB, uint8, (H, W, 3)).
            name: what it is called in a message.

        Yields:
            The same with the network's output; in the order of ``images`` if these have one size.
        """
        prepared = self._prepared(images, name)
        for group in same_size_batches(prepared, self.batch, lambda item: tuple(item[2]["image"].shape)):
            try:
                outputs = self._forward([example for _, _, example in group])
            except ConfigError:
                raise
            except (RuntimeError, ValueError) as error:  # a failed solve, or a shape that the network cannot take
                for what, _, _ in group:
                    _fail(self.summary, name(what), _reason(error))
                continue
            for (what, image, _), output in zip(group, outputs, strict=True):
                yield what, image, output

    def _prepared(
        self, images: Iterable[tuple[T, NDArray[np.uint8]]], name: Callable[[T], str]
    ) -> Iterator[tuple[T, NDArray[np.uint8], Example]]:
        for what, image in images:
            try:
                with timed(self.summary, "loading"):
                    example = self.predictor.example(image)
            except (ValueError, RuntimeError, MemoryError) as error:  # a shape that cannot be brought to the size
                _fail(self.summary, name(what), _reason(error))
                continue
            yield what, image, example

    def _forward(self, examples: list[Example]) -> list[Any]:
        if not self._optimized:
            self._optimize(examples)
        with inference_context(self._model), torch.no_grad(), timed(self.summary, "network"):
            outputs = list(self._model(examples))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        self.summary.pictures += len(examples)
        return outputs

    def _optimize(self, examples: list[Example]) -> None:
        try:
            fast, done = self._run.task.optimize(self._model, examples)
        except ValueError as error:
            raise ConfigError(f"MODEL.OPTIMIZE_FOR_INFERENCE: {error}") from error
        self._model = tested(self._run, fast)
        _say(f"optimised for inference: {done}")
        self._optimized = True


def same_size_batches(items: Iterable[T], batch: int, size_of: Callable[[T], tuple[int, ...]]) -> Iterator[list[T]]:
    """Group what has the same size, so that nothing is padded to the size of its neighbours.

    A padded picture is another input to the network, and its prediction would depend on its batch.

    Args:
        items: in any order; at most ``4 * batch`` of them wait for others of their size.
        batch: the most in a group.
        size_of: the size of an item.
    """
    waiting: dict[tuple[int, ...], list[T]] = {}
    for item in items:
        size = size_of(item)
        group = waiting.setdefault(size, [])
        group.append(item)
        if len(group) == batch:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= 4 * batch:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def read_ahead(
    pool: ThreadPoolExecutor, paths: Mapping[T, Path], count: int
) -> Iterator[tuple[T, Future[NDArray[np.uint8]]]]:
    """Read pictures (RGB) in another thread while the network works; at most ``count`` wait to be taken."""
    reading: deque[tuple[T, Future[NDArray[np.uint8]]]] = deque()
    for key, path in paths.items():
        reading.append((key, pool.submit(read_image, path, "RGB")))
        if len(reading) > count:
            yield reading.popleft()
    yield from reading


@contextlib.contextmanager
def timed(summary: Summary, what: str) -> Iterator[None]:
    """Add the time spent in a context to the summary."""
    began = time.perf_counter()
    try:
        yield
    finally:
        summary.seconds[what] += time.perf_counter() - began


def _inputs(given: Sequence[str], summary: Summary) -> tuple[Input, ...]:
    """What there is to predict on; what is not there is named and counted as failed."""
    found = find_inputs(given, skip=(DRAWN, FILE, PARTIAL))
    if not found.inputs:
        problems = " ".join(f"{path} {problem}" for path, problem in found.problems)
        raise ConfigError(f"there is nothing to predict on. {problems} Give pictures, folders or videos.")
    for path, problem in found.problems:
        _fail(summary, path, problem)
    return found.inputs


def _pictures(
    folder: Path, items: dict[str, Input], drawn: dict[str, Path], network: Network, kept: Predictions
) -> None:
    predictor, summary, taken = network.predictor, network.summary, set(drawn.values())
    with ThreadPoolExecutor(1) as pool, tqdm(total=len(items), unit="picture", disable=None if items else True) as bar:

        def read() -> Iterator[tuple[str, NDArray[np.uint8]]]:
            for key, reading in read_ahead(pool, {key: item.path for key, item in items.items()}, network.batch):
                try:
                    with timed(summary, "loading"):
                        image = reading.result()
                except Exception as error:  # whatever a broken file makes its reader raise, the others go on
                    _fail(summary, str(items[key].path), _reason(error))
                    bar.update()
                    continue
                yield key, image

        for key, image, output in network.outputs(read(), lambda key: str(items[key].path)):
            item = items[key]
            with timed(summary, "drawing"):
                try:
                    records = predictor.records(output)
                except FloatingPointError as error:
                    _fail(summary, str(item.path), _reason(error))
                    bar.update()
                    continue
                entry = {
                    "file_name": item.name.as_posix(),
                    "width": image.shape[1],
                    "height": image.shape[0],
                    "path": str(item.path),
                }
                try:
                    path = write_picture(drawn[key], predictor.draw(image, output), taken)
                    entry["drawn"] = path.relative_to(folder).as_posix()
                except Exception as error:  # what was found is more than its drawing
                    if getattr(error, "errno", None) in _FULL:
                        raise
                    _fail(summary, str(item.path), f"is not drawn ({_reason(error)})", done="predicted")
                kept.add(key, entry, records)
                if words := predictor.words(output):
                    _say(f"{item.path}: {words}")
            bar.update()


def _video(folder: Path, key: str, item: Input, drawn: Path, network: Network, kept: Predictions) -> None:
    """Frame by frame, in constant memory. A stop leaves a video of the frames until then."""
    lines = frames_path(folder, item)
    frames, stopped, predictor, summary = 0, False, network.predictor, network.summary
    try:
        with (
            VideoReader(item.path) as reader,
            whole(drawn) as video_file,
            whole(lines) as lines_file,
            VideoWriter(video_file, rate=reader.rate) as writer,
            lines_file.open("w", encoding="utf-8") as out,
            tqdm(total=reader.expected or None, unit="frame", desc=item.path.name, disable=None) as bar,
        ):
            try:
                images = ((frame, frame.image) for frame in _timed_frames(reader, summary))
                for frame, image, output in network.outputs(images, lambda f: f"{item.path}, frame {f.index}"):
                    with timed(summary, "drawing"):
                        writer.write(predictor.draw(image, output), frame.time)
                        line = {"frame": frame.index, "time": round(frame.time, 6)}
                        out.write(json.dumps({**line, "annotations": predictor.records(output)}) + "\n")
                    frames += 1
                    bar.update()
            except KeyboardInterrupt:
                stopped = True
            if not frames:
                raise VideoError(reader.problem or "stopped before its first frame.")
    except (VideoError, OSError, FloatingPointError) as error:
        _fail(summary, str(item.path), _reason(error))
    else:
        if not stopped:
            if reader.problem:
                _fail(summary, str(item.path), reader.problem, done="done in part")
            entry = {"file_name": item.name.as_posix(), "path": str(item.path), "frames": frames}
            entry |= {"rate": float(reader.rate), "width": image.shape[1], "height": image.shape[0]}
            entry |= {"drawn": drawn.relative_to(folder).as_posix(), "records": lines.relative_to(folder).as_posix()}
            kept.add(key, entry)
    if stopped:
        raise KeyboardInterrupt


def _timed_frames(reader: VideoReader, summary: Summary) -> Iterator[Any]:
    frames = iter(reader)
    while True:
        with timed(summary, "loading"):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _use_a_device(cfg: CfgNode) -> None:
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        _say(f"MODEL.DEVICE is {cfg.MODEL.DEVICE} and there is no GPU here; computing on the CPU.")
        cfg.MODEL.DEVICE = "cpu"


def _settings(cfg: CfgNode, weights: str) -> str:
    """What predictions depend on, in a few letters."""
    file = Path(weights)
    stamp = (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else ()
    return hashlib.sha256(f"{cfg.dump()}\n{weights} {stamp}".encode(errors="surrogateescape")).hexdigest()[:16]


def _key(item: Input, drawn: Path) -> str:
    """A file as it is now, and the names under which it is written."""
    try:
        stat = item.path.stat()
    except OSError:  # reading it will say what is wrong
        return f"{item.path.absolute()} {drawn.name}"
    return f"{item.path.absolute()} {stat.st_size} {stat.st_mtime_ns} {item.name} {drawn.name}"


def _fail(summary: Summary, path: str, reason: str, done: str = "skipped") -> None:
    reason = reason.removeprefix(f"{path} ")
    summary.failed.append((path, reason))
    _say(f"{done}: {path} {reason}")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)
