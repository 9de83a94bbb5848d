"""Whatever mirrors, networks and other processes do, a download ends in the published file or in one clear line."""

import gzip
import hashlib
import os
import socket
import tempfile
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import warm
from conftest import Command, result_in
from hypothesis import given, settings
from hypothesis import strategies as st
from mirrors import (
    PACKED,
    PIXELS,
    PUBLISHED,
    SOON,
    WITHOUT_PROXY,
    Behaviour,
    Mirror,
    Request,
    archive,
    cut,
    drip,
    drip_headers,
    endless,
    got,
    hang,
    hang_in_the_middle,
    login_page,
    no_http,
    other_range,
    redirect_to,
    status,
    tampered,
    whole,
    without_length,
    without_ranges,
)
from some import some

from mnist_lab.data import Archive, DataUnavailableError, fetch
from mnist_lab.data.download import Limits
from mnist_lab.errors import UserError


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WITHOUT_PROXY.items():
        monkeypatch.setenv(name, value)


BAD: dict[str, tuple[Behaviour, str]] = {
    "404": (status(404), "HTTP 404 Not Found"),
    "416": (status(416), "HTTP 416"),
    "500": (status(500), "HTTP 500"),
    "cut short": (cut(5000), "broke off after 10,000 of"),
    "nothing": (cut(0), "broke off after 0 of"),
    "tampered with": (tampered, "not the published"),
    "a login page": (login_page, "not the published"),
    "hanging": (hang, "nothing came for 0.5 s"),
    "hanging in the middle": (hang_in_the_middle, "nothing came for 0.5 s"),
    "dripping": (drip, "sent only"),
    "dripping headers": (drip_headers, "no answer for 1 s"),
    "endless": (endless, "more than 1,000,000 bytes"),
    "going round": (redirect_to("/a.gz"), "HTTP 302"),
    "redirecting to a local file": (redirect_to("file:///etc/hostname"), "HTTP 302"),
    "redirecting to ftp": (redirect_to("ftp://127.0.0.1/a.gz"), "unknown url type: ftp"),
    "speaking another language": (no_http, "SSH-2.0"),
}


SLOW = ("hanging in the middle", "dripping", "dripping headers")


@pytest.mark.parametrize("kind", some(BAD, lambda kind: kind not in SLOW))
def test_a_failing_mirror_is_followed_by_the_next_or_named_with_the_reason(kind: str, tmp_path: Path) -> None:
    behaviour, reason = BAD[kind]
    limits = Limits(0.5, 1000.0, (0.0,), 1_000_000)
    with Mirror(PACKED, behaviour) as bad, Mirror(PACKED, whole) as good:
        assert got(tmp_path / "both", bad.url, good.url, limits=limits) == PIXELS
        assert bad.asked and good.asked
        with pytest.raises(DataUnavailableError) as raised:
            fetch("set", [archive(tmp_path / "one", bad.url)], tmp_path / "one", True, limits)
    line = str(raised.value)
    assert "a.gz" in line and bad.url.removesuffix("a.gz") in line and reason in line and "\n" not in line
    left = [p.name for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert left in ([], ["a.gz.part"]), "only what can be gone on with"
    if reason == "not the published":
        assert not (tmp_path / "one").exists()


def test_a_mirror_that_never_ends_is_given_up(tmp_path: Path) -> None:
    limits = Limits(patience=5, longest=0.5)
    with Mirror(PACKED, drip) as slow, pytest.raises(DataUnavailableError, match=r"sent only \d+ bytes in [01] s"):
        fetch("set", [archive(tmp_path, slow.url)], tmp_path, True, limits)
    assert len(slow.asked) == 1


def test_every_mirror_is_named_where_all_fail(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9/a.gz"
    with Mirror(PACKED, status(404)) as one, Mirror(PACKED, tampered) as two, pytest.raises(DataUnavailableError) as e:
        fetch("set", [archive(tmp_path, one.url, two.url, nobody, "ftp://127.0.0.1/a.gz")], tmp_path, True, SOON)
    line = str(e.value)
    for part in (one.url[:-4], "404", two.url[:-4], "MD5", nobody[:-4], "Connection refused", "unknown url type: ftp"):
        assert part in line


def test_only_temporary_errors_are_retried_with_growing_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(
        time, "sleep", lambda s: slept.append(s) if threading.current_thread() is threading.main_thread() else None
    )
    with Mirror(PACKED, status(503)) as busy, Mirror(PACKED, status(404)) as gone:
        with pytest.raises(DataUnavailableError):
            fetch("set", [archive(tmp_path, busy.url, gone.url)], tmp_path, True)
        assert (len(busy.asked), len(gone.asked)) == (4, 1)
        assert slept == [1, 3, 9]
        with pytest.raises(DataUnavailableError):
            fetch("set", [archive(tmp_path, gone.url, "http://127.0.0.1:9/a.gz")], tmp_path, True)
        with pytest.raises(DataUnavailableError, match=r"nowhere\.invalid"):
            fetch("set", [archive(tmp_path, "http://nowhere.invalid/a.gz")], tmp_path, True)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        url = f"http://127.0.0.1:{full.getsockname()[1]}/a.gz"  # nothing answers, as behind a firewall
        with pytest.raises(DataUnavailableError, match="timed out"):
            fetch("set", [archive(tmp_path, url)], tmp_path, True, Limits(patience=0.3))
    assert slept == [1, 3, 9], "without a network, nobody waits"


def test_downloaded_bytes_are_not_fetched_again(tmp_path: Path) -> None:
    with Mirror(PACKED, cut(50_000), whole) as mirror:
        assert got(tmp_path, mirror.url) == PIXELS
        assert [asked for _, asked in mirror.asked] == ["", "bytes=50000-"]
        assert mirror.sent == len(PACKED)
        assert got(tmp_path, mirror.url) == PIXELS and len(mirror.asked) == 2
        (tmp_path / "Set/raw/a").unlink()
        assert got(tmp_path, mirror.url) == PIXELS and len(mirror.asked) == 2, "unpacked again"


def test_a_download_continues_on_the_next_mirror(tmp_path: Path) -> None:
    with Mirror(PACKED, cut(50_000)) as first, Mirror(PACKED, whole) as second:
        assert got(tmp_path, first.url, second.url) == PIXELS
        assert second.asked == [("/a.gz", "bytes=50000-")]


def test_the_next_command_continues_a_broken_download(tmp_path: Path) -> None:
    with Mirror(PACKED, cut(50_000), status(404), whole) as mirror:
        with pytest.raises(DataUnavailableError, match="404"):
            fetch("set", [archive(tmp_path, mirror.url)], tmp_path, True, SOON)
        assert got(tmp_path, mirror.url) == PIXELS
        assert mirror.asked[-1] == ("/a.gz", "bytes=50000-")


def test_a_connection_that_breaks_often_succeeds_while_it_makes_progress(tmp_path: Path) -> None:
    packed = gzip.compress(os.urandom(10 * 2**20), 0)
    with Mirror(packed, cut(3 * 2**19)) as mirror:
        fetch("set", [archive(tmp_path, mirror.url, packed=packed)], tmp_path, True, SOON)
        assert len(mirror.asked) == 7 and mirror.sent == len(packed)


@pytest.mark.parametrize("behaviour", [without_ranges, other_range, without_length])
@pytest.mark.parametrize("left", [PACKED[:500], b"something else", PACKED + b"more", PACKED])
def test_a_server_without_ranges_or_a_wrong_part_starts_the_download_anew(
    behaviour: Behaviour, left: bytes, tmp_path: Path
) -> None:
    (tmp_path / "Set/raw").mkdir(parents=True)
    (tmp_path / "Set/raw/a.gz.part").write_bytes(left)
    with Mirror(PACKED, behaviour, whole) as mirror:
        assert got(tmp_path, mirror.url) == PIXELS


@pytest.mark.slow
@settings(max_examples=60)
@given(
    content=st.binary(max_size=3000),
    cuts=st.lists(st.integers(0, 3000), max_size=4),
    left=st.binary(max_size=50) | st.integers(0, 3000),
)
def test_a_download_that_is_cut_anywhere_ends_in_the_whole_file(
    content: bytes, cuts: list[int], left: bytes | int
) -> None:
    packed = gzip.compress(content, 0, mtime=0)
    with tempfile.TemporaryDirectory() as name, Mirror(packed, *map(cut, cuts), whole) as mirror:
        raw = Path(name) / "Set/raw"
        raw.mkdir(parents=True)
        (raw / "a.gz.part").write_bytes(packed[:left] if isinstance(left, int) else left)
        limits = Limits(pauses=(0.0,) * 7)
        fetch("set", [archive(Path(name), mirror.url, packed=packed)], Path(name), True, limits)
        assert (raw / "a").read_bytes() == content
        assert sorted(p.name for p in raw.iterdir()) == ["a", "a.gz"]


def test_the_files_of_a_data_set_appear_together_or_not_at_all(tmp_path: Path) -> None:
    """What stands in for a data set that broke off in the middle would not be noticed as such by the next run."""
    with Mirror(PACKED, whole, status(404)) as mirror:
        folder = tmp_path / "Set/raw"
        archives = [Archive(folder / f"{n}.gz", [mirror.url], archive(tmp_path).md5, {n: folder / n}) for n in "ab"]
        for _ in range(2):
            with pytest.raises(DataUnavailableError, match=r"set is not in .*: b\.gz from"):
                fetch("set", archives, tmp_path, True, SOON)
            assert [p.name for p in folder.iterdir()] == ["a.gz"]


def test_a_damaged_archive_is_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "Set/raw").mkdir(parents=True)
    path = tmp_path / "Set/raw/a.gz"
    path.write_bytes(b"half a downl")
    with Mirror(PACKED, status(404), whole) as mirror:
        with pytest.raises(UserError, match=r"a\.gz, the download of set, is damaged or incomplete, .*404"):
            fetch("set", [archive(tmp_path, mirror.url)], tmp_path, True, SOON)
        assert path.read_bytes() == b"half a downl"
        assert got(tmp_path, mirror.url) == PIXELS


def test_a_data_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "Set").write_text("a file")
    with pytest.raises(UserError, match=r"can't be written to: .*data\.root=DIR"):
        fetch("set", [archive(tmp_path, "http://127.0.0.1:9/a.gz")], tmp_path, True, SOON)


FETCH = """
import os, sys
from pathlib import Path
from mnist_lab.data import Archive, fetch

url, md5, processes = sys.argv[1:]
others = 0
while others < int(processes) - 1 and os.fork():
    others += 1
os.dup2(os.open(f"{os.getpid()}.err", os.O_WRONLY | os.O_CREAT), 2)
raw = Path("data/Set/raw")
fetch("set", [Archive(raw / "a.gz", [url], md5, {"a": raw / "a"})], Path("data"), True)
Path(f"{os.getpid()}.got").write_bytes((raw / "a").read_bytes())
if others < int(processes) - 1:
    os._exit(0)
for _ in range(others):
    os.wait()
"""


def fetching(folder: Path, url: str, processes: int = 1) -> BaseProcess:
    """Starts processes that all fetch the same at once: the one that is returned, and others that it has forked."""
    (folder / "fetching.py").write_text(FETCH)
    words = [url, hashlib.md5(PACKED).hexdigest(), str(processes)]
    return warm.start(words, folder, folder / "shown", module="fetching")


@pytest.mark.slow
def test_one_of_ten_processes_downloads_and_the_others_wait(tmp_path: Path) -> None:
    def when_all_wait(request: Request, content: bytes) -> None:
        for _ in range(100):
            if sum(path.stat().st_size > 0 for path in tmp_path.glob("[0-9]*.err")) == 9:
                break
            time.sleep(0.05)
        whole(request, content)

    with Mirror(PACKED, when_all_wait) as mirror:
        process = fetching(tmp_path, mirror.url, 10)
        process.join(120)
        assert process.exitcode == 0
        assert len(mirror.asked) == 1 and mirror.sent == len(PACKED)
    assert [path.read_bytes() == PIXELS for path in tmp_path.glob("*.got")] == [True] * 10
    told = sorted(path.read_text() for path in tmp_path.glob("[0-9]*.err"))
    assert told == ["", *["waiting for another process, which is downloading set to data/Set/raw\n"] * 9]
    assert sorted(p.name for p in (tmp_path / "data/Set/raw").iterdir()) == ["a", "a.gz"]


@pytest.mark.slow
def test_a_killed_download_is_continued_by_the_next_process(tmp_path: Path) -> None:
    def half(request: Request, content: bytes) -> None:
        request.answer(200, len(content))
        request.wfile.write(content[:70_000])
        time.sleep(10)

    part = tmp_path / "data/Set/raw/a.gz.part"
    with Mirror(PACKED, half, whole) as mirror:
        process = fetching(tmp_path, mirror.url)
        while not (part.exists() and part.stat().st_size):
            assert process.is_alive()
            time.sleep(0.02)
        process.kill()
        process.join(10)
        came = part.stat().st_size
        assert not (part.parent / "a").exists() and 0 < came <= 70_000
        assert got(tmp_path / "data", mirror.url) == PIXELS
        assert mirror.asked[1:] == [("/a.gz", f"bytes={came}-")]


@pytest.mark.parametrize("place", ["Set/raw/a.gz", "a.gz"])
def test_a_mirror_of_ones_own_is_tried_first(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder that is served as it is, or a folder with nothing but the files."""
    path = tmp_path / "served" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(PACKED)
    monkeypatch.setenv("MNIST_LAB_MIRROR", (tmp_path / "served").as_uri() + "/")
    with Mirror(PACKED, whole) as mirror:
        assert got(tmp_path / "one", mirror.url) == PIXELS and not mirror.asked
        path.write_bytes(b"something else")
        assert got(tmp_path / "two", mirror.url) == PIXELS and mirror.asked


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/", "/media/usb", "data:,x", "C:\\data"])
def test_a_mirror_that_is_no_address_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_LAB_MIRROR", address)
    with pytest.raises(UserError, match="must begin with http://, https:// or file://"):
        fetch("set", [archive(tmp_path, "http://127.0.0.1:9/a.gz")], tmp_path, True, SOON)
    assert list(tmp_path.iterdir()) == []


OWN = """
import torch
from pathlib import Path
from mnist_lab.data import Archive, ImageSet, fetch

def load(root, download, url, md5):
    folder = Path(root) / "Set/raw"
    fetch("own", [Archive(folder / "a.gz", [url], md5, {"a": folder / "a"})], Path(root), download)
    labels = torch.arange(40) % 2
    pixels = torch.frombuffer(bytearray((folder / "a").read_bytes()), dtype=torch.uint8)[:640].reshape(40, 1, 4, 4)
    return ImageSet("own", pixels, labels, pixels, labels, ("even", "odd"), {})
"""


@pytest.mark.slow
def test_a_data_source_of_ones_own_can_download(tmp_path: Path, lab: Command) -> None:
    (tmp_path / "own.py").write_text(OWN)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with Mirror(PACKED, cut(70_000), whole) as mirror:
        source = f"{{_target_:own.load,_partial_:true,url:'{mirror.url}',md5:'{hashlib.md5(PACKED).hexdigest()}'}}"
        words = ["data=mnist", "data.fallback=null", "~data.source", f"+data.source={source}", "data.num_classes=2"]
        words += ["data.shape=[1,4,4]", "data.val=none", "data.root=data", "trainer=debug", "report=false"]
        done = lab("model=mlp", *words, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert result_in(tmp_path / "outputs").data["name"] == "own"


@pytest.mark.slow
def test_a_download_with_a_wrong_digest_ends_the_command_and_leaves_nothing(tmp_path: Path, lab: Command) -> None:
    nobody = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    with Mirror(PACKED, tampered) as mirror:
        done = lab("data.fallback=null", "data.root=data", MNIST_LAB_MIRROR=mirror.url, **nobody)
    assert done.returncode == 2
    assert len(done.stderr[done.stderr.index("error: ") :].splitlines()) == 2
    for part in (
        "train-images-idx3-ubyte.gz from",
        mirror.url,
        "not the published",
        "Connection refused",
        "Three ways",
    ):
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published archives of MNIST are not in MNIST_LAB_DATA/mirror")
def test_mnist_is_downloaded_as_published_and_trained_on(tmp_path: Path, lab: Command) -> None:
    files = {path.name: path.read_bytes() for path in PUBLISHED.iterdir()}

    def serve(request: Request, _: bytes) -> None:
        behave = cut(5_000_000) if len(request.server.asked) == 1 else whole
        behave(request, files[request.path.removeprefix("/MNIST/raw/")])

    with Mirror(b"", serve) as mirror:
        address = mirror.url.removesuffix("/a.gz")
        done = lab("trainer=debug", "data.fallback=null", "data.root=data", "report=false", MNIST_LAB_MIRROR=address)
        assert done.returncode == 0, done.stderr
        assert mirror.sent == sum(map(len, files.values())), "no byte came twice"
    assert result_in(tmp_path / "outputs").data["name"] == "mnist"
