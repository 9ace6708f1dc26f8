"""tools/demo.py with videos, cameras, label maps and chosen classes."""

import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from offseg_d2.data import DataFileError
from offseg_d2.inference import video
from offseg_d2.inference.demo import draw_files, draw_frame, draw_video
from offseg_d2.inference.video import BrokenOffError, VideoReader, VideoWriter
from offseg_d2.visualization.drawing import DrawOptions, choose_classes, palette_png

METADATA = Metadata(stuff_classes=["dark", "bright"], stuff_colors=[(10, 20, 30), (200, 100, 50)])


class Brightness:
    """Predicts class 1 where an image is bright."""

    metadata = METADATA

    def label_map(self, image: np.ndarray) -> np.ndarray:
        return (image.mean(axis=2) > 127).astype(np.int64)

    def label_maps(self, images) -> list[np.ndarray]:
        return [self.label_map(image) for image in images]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


class InBatches(Brightness):
    """The same in batches, of which it remembers the sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def label_maps(self, images) -> list[np.ndarray]:
        self.batches.append(len(images))
        assert len({image.shape for image in images}) == 1
        return super().label_maps(images)


def frames(number: int = 6, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A bright bar that wanders to the right."""
    pictures = []
    for index in range(number):
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        picture[:, 8 * index : 8 * index + 16] = 255
        pictures.append(picture)
    return pictures


def write_film(path: Path, pictures: list[np.ndarray]) -> str:
    with VideoWriter(str(path), 10.0) as writer:
        for picture in pictures:
            writer.write(picture)
    return str(path)


def read_film(path: Path) -> list[np.ndarray]:
    return list(VideoReader(str(path)))


def test_video_is_drawn_frame_by_frame_at_its_rate(tmp_path):
    source = write_film(tmp_path / "bar.mp4", frames())
    target = tmp_path / "drawn.mp4"
    assert draw_video(Brightness(), source, str(target), DrawOptions(opacity=1.0)) == 6
    drawn = read_film(target)
    assert VideoReader(str(target)).rate == pytest.approx(10.0)
    assert len(drawn) == 6
    for index, frame in enumerate(drawn):  # BGR; compression changes colours a little
        assert np.abs(frame[24, 8 * index + 8].astype(int) - (50, 100, 200)).max() < 40
        assert np.abs(frame[24, (8 * index + 40) % 64].astype(int) - (30, 20, 10)).max() < 40


@pytest.mark.parametrize(("size", "batches"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (9, [6])])
def test_frames_of_a_batch_keep_their_order(tmp_path, size, batches):
    source = write_film(tmp_path / "bar.mp4", frames())
    draw_video(Brightness(), source, str(tmp_path / "one.mp4"), DrawOptions(opacity=1.0))
    predictor, target = InBatches(), str(tmp_path / "many.mp4")
    options = DrawOptions(opacity=1.0)
    assert draw_video(predictor, source, target, options, batch_size=size) == 6
    assert predictor.batches == batches
    assert np.array_equal(read_film(tmp_path / "one.mp4"), read_film(tmp_path / "many.mp4"))


def test_images_of_one_size_are_a_batch_and_unreadable_ones_do_not_break_it(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pictures = [*frames(3), *frames(2, 40, 64), *frames(2)]
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{index}.png"), picture)
    (folder / "1.png").write_bytes(b"no picture")
    predictor = InBatches()
    written, unreadable = draw_files(
        predictor, [str(folder)], str(tmp_path / "out"), DrawOptions(), batch_size=4
    )
    assert predictor.batches == [4, 2]
    assert [Path(path).stem for path in written] == ["0", "2", "3", "4", "5", "6"]
    assert [Path(file.path).name for file in unreadable] == ["1.png"]
    draw_files(Brightness(), [str(folder)], str(tmp_path / "alone"), DrawOptions())
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_all_frames_have_one_size_whatever_is_in_them():
    options = DrawOptions("side-by-side")
    sizes = {draw_frame(Brightness(), frame, options).shape for frame in frames()}
    dark = np.zeros((48, 64, 3), dtype=np.uint8)
    assert {draw_frame(Brightness(), dark, options).shape} == sizes
    assert next(iter(sizes))[1] > 2 * 64


def test_files_of_both_kinds_are_drawn_and_broken_ones_reported(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_film(folder / "bar.mp4", frames())
    (folder / "broken.avi").write_bytes(b"no film")
    cv2.imwrite(str(folder / "one.png"), frames()[0])
    written, unreadable = draw_files(
        Brightness(), [str(folder)], str(tmp_path / "out"), DrawOptions()
    )
    assert sorted(Path(path).name for path in written) == ["bar.mp4", "one.png"]
    assert [Path(file.path).name for file in unreadable] == ["broken.avi"]
    assert "cannot be decoded" in unreadable[0].reason
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bar.mp4", "one.png"]


def test_video_is_never_drawn_over_itself(tmp_path):
    write_film(tmp_path / "bar.mp4", frames())
    before = (tmp_path / "bar.mp4").read_bytes()
    with pytest.raises(ValueError, match="no image is overwritten"):
        draw_files(Brightness(), [str(tmp_path / "bar.mp4")], str(tmp_path), DrawOptions())
    assert (tmp_path / "bar.mp4").read_bytes() == before


def test_failed_or_interrupted_video_leaves_nothing_but_a_camera_what_was_filmed(
    tmp_path, monkeypatch
):
    source = write_film(tmp_path / "bar.mp4", frames())

    class Failing(Brightness):
        error: type[BaseException] = RuntimeError

        def label_map(self, image):
            if image[24, 40, 0] > 127:
                raise self.error
            return super().label_map(image)

    predictor = Failing()
    with pytest.raises(RuntimeError):
        draw_video(predictor, source, str(tmp_path / "out.mp4"), DrawOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["bar.mp4"]
    predictor.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):  # goes on to no other file
        draw_files(predictor, [source], str(tmp_path / "out"), DrawOptions())
    assert list((tmp_path / "out").iterdir()) == []
    open_capture = cv2.VideoCapture
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda number: open_capture(source))
    number = draw_video(predictor, 0, str(tmp_path / "out.mp4"), DrawOptions())
    monkeypatch.undo()
    assert 0 < number < 6
    assert len(read_film(tmp_path / "out.mp4")) == number


def test_label_map_is_a_palette_png_of_class_ids(tmp_path):
    cv2.imwrite(str(tmp_path / "one.jpg"), frames()[2])
    draw_files(Brightness(), [str(tmp_path / "one.jpg")], str(tmp_path / "out"),
               DrawOptions("label-map"))  # fmt: skip
    picture = Image.open(tmp_path / "out" / "one.png")
    assert picture.mode == "P"
    labels = np.asarray(picture)
    assert labels[24, 24] == 1 and labels[24, 60] == 0
    assert tuple(np.asarray(picture.convert("RGB"))[24, 24]) == (200, 100, 50)


def test_videos_have_no_label_maps(tmp_path):
    write_film(tmp_path / "bar.mp4", frames())
    with pytest.raises(ValueError, match="`--draw` must be overlay or side-by-side for videos"):
        draw_files(Brightness(), [str(tmp_path)], str(tmp_path / "o"), DrawOptions("label-map"))


def test_only_chosen_classes_are_drawn():
    labels = np.array([[0, 1]])
    assert choose_classes(labels, ("bright",), METADATA).tolist() == [[255, 1]]
    assert choose_classes(labels, (), METADATA).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"`--classes` must be among .* but 'brigth' is not"):
        choose_classes(labels, ("brigth",), METADATA)
    black = np.frombuffer(palette_png(labels, METADATA)[:8], dtype=np.uint8)
    assert black.tobytes() == b"\x89PNG\r\n\x1a\n"


def test_missing_video_and_camera_are_named(tmp_path):
    with pytest.raises(DataFileError, match=r"Video file '.*absent\.mp4' does not exist"):
        VideoReader(str(tmp_path / "absent.mp4"))
    with pytest.raises(ValueError, match="`--webcam` must be the number of a camera, but is 97"):
        VideoReader(97)


def test_camera_is_filmed_until_the_asked_number_of_frames(tmp_path, monkeypatch):
    source = write_film(tmp_path / "bar.mp4", frames())
    capture = cv2.VideoCapture
    target = tmp_path / "webcam.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(video.cv2, "VideoCapture", lambda number: capture(source))
        assert draw_video(Brightness(), 0, str(target), DrawOptions(), frames=4) == 4
    assert len(read_film(target)) == 4


@pytest.mark.parametrize(("size", "keep"), [(1, 0.5), (4, 0.5), (4, 0.2)])
def test_broken_off_video_is_drawn_as_far_as_it_goes_and_reported(tmp_path, size, keep):
    noise = np.random.default_rng(0)
    code = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), code, 25, (64, 48))
    for _ in range(60):
        writer.write(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: int(keep * len(content))])
    inputs = [str(tmp_path / name) for name in ("whole.avi", "cut.avi")]
    written, faults = draw_files(
        Brightness(), inputs, str(tmp_path / "out"), DrawOptions(), batch_size=size
    )
    assert [Path(path).name for path in written] == ["whole.mp4", "cut.mp4"]
    (fault,) = faults
    number = len(read_film(tmp_path / "out/cut.mp4"))
    assert 0 < number < 60 and f"{number} of 60 frames of video file" in fault.reason


@pytest.mark.parametrize(("stated", "is_whole"), [(60, True), (62, True), (70, False)])
def test_estimated_number_of_frames_is_no_error(tmp_path, monkeypatch, stated, is_whole):
    reader = VideoReader(write_film(tmp_path / "bar.mp4", frames(60, width=640)))
    reader.length = stated
    if is_whole:
        assert len(list(reader)) == 60
    else:
        with pytest.raises(BrokenOffError, match="60 of 70 frames"):
            list(reader)


# ------------------------------------------------------------------ codecs


class FakeAv:
    """PyAV with some encoders, as far as it is used; notes what is asked of it."""

    def __init__(self, *encoders: str) -> None:
        self.encoders, self.calls = encoders, []
        self.codec_context = self
        self.VideoFrame = self

    def open(self, path: str = "", mode: str = "", options: object = None) -> "FakeAv":
        if path:
            Path(path).write_bytes(b"")
        self.calls.append(("open", mode) if path else ("opened", self.pix_fmt))
        return self

    def add_stream(self, name: str, rate: Fraction) -> "FakeAv":
        if name not in self.encoders:
            raise ValueError(name)  # as PyAV's UnknownCodecError is
        self.calls.append((name, rate))
        return self

    def from_ndarray(self, frame: np.ndarray, format: str) -> str:
        return f"{format} {frame.shape}"

    def encode(self, picture: str = "end") -> str:
        return picture

    def mux(self, packets: str) -> None:
        self.calls.append(("mux", packets))

    def close(self) -> None:
        self.calls.append(("close", ""))


@pytest.mark.parametrize(
    ("encoders", "chosen"),
    [
        (("libx264", "libopenh264"), "H.264 (libx264)"),
        (("libopenh264",), "H.264 (libopenh264)"),
        ((), "MPEG-4"),
        (None, "MPEG-4"),
    ],
)
def test_videos_are_h264_if_pyav_has_an_encoder(tmp_path, monkeypatch, caplog, encoders, chosen):
    av = None if encoders is None else FakeAv(*encoders)
    monkeypatch.setitem(sys.modules, "av", av)  # None: the import fails
    with caplog.at_level("INFO"), VideoWriter(str(tmp_path / "a.mp4"), 12.5) as writer:
        writer.write(np.zeros((31, 40, 3), np.uint8))
    (record,) = [r for r in caplog.records if r.name == "offseg_d2.inference.video"]
    assert record.getMessage().startswith(f"Writing {tmp_path / 'a.mp4'} as {chosen}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    if encoders:
        assert av.calls[-5:] == [
            (encoders[0], Fraction(25, 2)),
            ("opened", "yuv420p"),
            *(("mux", "rgb24 (30, 40, 3)"), ("mux", "end"), ("close", "")),
        ]


def test_pyav_writes_what_can_be_read_again(tmp_path):
    pytest.importorskip("av")
    with VideoWriter(str(tmp_path / "a.mp4"), 10.0) as writer:
        for grey in (40, 120, 200):
            writer.write(np.full((31, 41, 3), (grey, 60, 90), np.uint8))
    reader = VideoReader(str(tmp_path / "a.mp4"))
    frames = list(reader)
    assert reader.rate == pytest.approx(10.0) and len(frames) == 3
    for frame, grey in zip(frames, (40, 120, 200), strict=True):
        assert frame.shape == (30, 40, 3)
        assert np.abs(frame.astype(int) - (90, 60, grey)).max() < 12
    assert b"avc1" in (tmp_path / "a.mp4").read_bytes()  # H.264 in MP4
