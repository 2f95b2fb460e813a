"""`jaxkd shards`: killed anywhere and continued, what it refuses, and what it prints."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import noisy_classes

from jaxkd import shards
from jaxkd.data import open_source

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def images(tmp_path):
    """A folder of 2 classes with 6 training and 2 validation images each."""
    return noisy_classes(tmp_path / "images", train=6, val=2)


def argv(images, out, *more: str) -> list[str]:
    return [f"--in={images}", f"--out={out}", "--shard-size=0.004", *more]  # three images or so in a shard


def files(root) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def complaint(complaint_of):
    """`complaint(argv)` -> the one line that the command prints."""

    def run(arguments: list[str]) -> str:
        text = complaint_of(shards.main, arguments)
        assert "\n" not in text
        return text

    return run


def test_what_it_prints(images, tmp_path, capsys):
    (images / "train" / "cat" / "bad.jpg").write_bytes(b"no image")
    assert shards.main(argv(images, tmp_path / "out", "--resize=10")) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("train: 13 images of 2 classes in ") and " tar shards, " in lines[0]
    assert lines[1] == "  1 files could not be decoded and are kept as they are: cat/bad.jpg"
    train, val = json.loads(lines[-1])
    assert train["images"] == 13 and val["images"] == 4 and train["unreadable"] == ["cat/bad.jpg"]
    assert min(open_source(str(tmp_path / "out"), "val").image(0).size) == 10
    assert shards.main([f"--verify={tmp_path / 'out'}"]) == 0
    assert "verified" in capsys.readouterr().out


def test_a_finished_conversion_is_left_alone(images, tmp_path):
    out = tmp_path / "out"
    shards.main(argv(images, out))
    before = files(out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert shards.main(argv(images, out)) == 0
    assert files(out) == before and {p: p.stat().st_mtime_ns for p in out.rglob("*")} == times


# Kills a forked copy of itself before and after each renaming, and before each record that is written; then continues.
KILLER = """
import os, signal, shutil, sys
from pathlib import Path
from jaxkd import shards
from jaxkd.data.sources import shards as formats

images, work, form, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
arguments = lambda out: [f"--in={images}", f"--out={out}", "--shard-size=0.004", f"--format={form}", "--split=val"]
writer = formats.FORMATS[form][0]
real = {"replace": os.replace, "remove": os.remove, "add": writer.add}

def convert(out, kill_at):
    '''Exit status of a conversion that kills itself at the event of that number.'''
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.fsync = lambda handle: None  # is for power cuts, which a test cannot make
        events = 0
        def event():
            nonlocal events
            events += 1
            if events == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        def around(name, also_after):
            def run(*args):
                event()
                result = real[name](*args)
                if also_after:
                    event()
                return result
            return run
        os.replace, os.remove = around("replace", True), around("remove", False)
        writer.add = around("add", False)
        os._exit(shards.main(arguments(out)))
    return os.waitpid(child, 0)[1]

shards.main(arguments(work / "warm"))  # here, so that the copies need not import again what it imports
shutil.rmtree(work / "warm")
out = work / "killed"
print()
for count in range(1, 1000):
    killed = 1 + (count - 1) * step
    status = convert(out, killed)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, (killed, status)
    if count % 3 == 0:  # and killed again, soon after, before it is left to finish
        convert(out, 3)
    assert convert(out, 0) == 0, killed
    shutil.move(out, work / f"after_{killed:03d}")
print(count)
"""


# The order of files is the same for both formats, so that a third of the moments is enough for one of them.
@pytest.mark.parametrize(("form", "step"), [("tar", 1), ("arrayrecord", 3)])
def test_killed_anywhere_and_continued_it_writes_the_same_bytes(images, tmp_path, form, step):
    if form == "arrayrecord":
        pytest.importorskip("array_record", reason="needs the extra `shards`")
    assert shards.main(argv(images, tmp_path / "whole", f"--format={form}", "--split=val")) == 0
    whole = files(tmp_path / "whole")
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(images), str(work), form, str(step)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = sorted(work.iterdir())
    assert int(done.stdout.split()[-1]) == len(results) and len(results) > 20 // step
    for result in results:
        assert files(result) == whole, result.name


def test_a_deleted_shard_is_written_again(images, tmp_path, complaint):
    out = tmp_path / "out"
    shards.main(argv(images, out))
    whole = files(out)
    (out / "train" / "train-00001.tar").unlink()
    assert "1 of 6 files" in complaint([f"--verify={out}"])
    assert shards.main(argv(images, out)) == 0
    assert files(out) == whole
    (out / "train" / "train-00001.tar").unlink()
    path = images / "train" / "cat" / "4.jpg"  # other content of the same size
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "cannot be written again as it was" in complaint(argv(images, out))


def test_a_shard_that_was_damaged_before_the_end(images, tmp_path, complaint):
    out = tmp_path / "out"
    shards.main(argv(images, out))
    whole = files(out)
    unfinish(out / "train")
    path = out / "train" / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert f'The shard "{path}" is not what it was when it was finished' in complaint(argv(images, out))
    path.unlink()
    assert shards.main(argv(images, out)) == 0
    assert files(out) == whole


def unfinish(folder) -> None:
    """Makes of a finished conversion one that was killed before its index was written."""
    manifest = json.loads((folder / "manifest.json").read_text())
    records = np.load(folder / "records.npy")
    first = 0
    for i, shard in enumerate(manifest["shards"]):
        own = records[first : first + shard["records"]]
        rows = [[int(r[k]) for k in ("label", "offset", "size", "crc32")] for r in own]
        notes = {"file": shard["file"], "first": first, "records": rows, "unreadable": []}
        notes |= {k: shard[k] for k in ("bytes", "sha256")}
        (folder / f"done-{i:05d}.json").write_text(json.dumps(notes))
        first += shard["records"]
    content = {k: manifest[k] for k in ("kind", "version", "split", "source")}
    (folder / "conversion.json").write_text(json.dumps(content))
    for name in ("manifest.json", "records.npy", "names.bin"):
        (folder / name).unlink()


def test_an_unfinished_conversion_is_not_read(images, tmp_path):
    from jaxkd.errors import DataError

    shards.main(argv(images, tmp_path / "out"))
    unfinish(tmp_path / "out" / "train")
    with pytest.raises(DataError, match="is not finished.*Run the same jaxkd shards command again"):
        open_source(str(tmp_path / "out"), "train")


def test_other_images_or_options_are_another_conversion(images, tmp_path, complaint):
    out = tmp_path / "out"
    shards.main(argv(images, out))
    before = files(out)
    assert "resize was 0 and is now 8" in complaint(argv(images, out, "--resize=8"))
    with (images / "train" / "cat" / "0.jpg").open("ab") as file:
        file.write(b"more")
    assert 'train" holds another conversion: fingerprint was' in complaint(argv(images, out))
    shutil.copy(images / "train" / "cat" / "0.jpg", images / "train" / "cat" / "new.jpg")
    assert "fingerprint was" in complaint(argv(images, out)) and "fingerprint" in complaint(argv(images, out))
    assert files(out) == before
    unfinish(out / "train")
    assert "images was 12 and is now 13" in complaint(argv(images, out))


def test_folders_that_hold_something_else(images, tmp_path, complaint):
    before = files(images)
    assert f'--out="{images}" holds "train"' in complaint(argv(images, images))
    assert "lies inside" in complaint(argv(images, images / "train" / "shards"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    assert 'holds "thesis.tex"' in complaint(argv(images, other))
    mixed = tmp_path / "mixed" / "train"
    mixed.mkdir(parents=True)
    (mixed / "train-00000.tar").write_bytes(b"somebody else's")
    assert 'holds "train-00000.tar"' in complaint(argv(images, mixed.parent))
    assert (mixed / "train-00000.tar").read_bytes() == b"somebody else's"
    (tmp_path / "file").write_text("")
    assert "is a file" in complaint(argv(images, tmp_path / "file"))
    assert files(images) == before


def test_two_conversions_into_one_folder(images, tmp_path, complaint):
    import fcntl

    (tmp_path / "out" / "train").mkdir(parents=True)
    handle = os.open(tmp_path / "out" / "train", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "Another process is writing" in complaint(argv(images, tmp_path / "out"))
    os.close(handle)
    assert shards.main(argv(images, tmp_path / "out")) == 0


@pytest.mark.parametrize("form", ["tar", "arrayrecord"])
def test_a_full_disk(images, tmp_path, form):
    """A limit on the size of files stands for it; afterwards the same command continues."""
    if form == "arrayrecord":
        pytest.importorskip("array_record", reason="needs the extra `shards`")
    command = [sys.executable, "-m", "jaxkd.shards", *argv(images, tmp_path / "out", f"--format={form}")]

    def limit():
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "cannot be read or written" in done.stderr and "it continues" in done.stderr
    assert shards.main(argv(images, tmp_path / "out", f"--format={form}")) == 0
    assert shards.main([f"--verify={tmp_path / 'out'}"]) == 0


def test_only_one_split(images, tmp_path):
    shutil.rmtree(images / "train")
    assert shards.main(argv(images, tmp_path / "out")) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["val"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--in is missing"),
        (["--in=x"], "--out is missing"),
        (["--in=nowhere", "--out=x"], 'The data folder "nowhere" does not exist'),
        (["--in=x", "--out=y", "--format=zip"], "invalid choice: 'zip'"),
        (["--in=x", "--out=y", "--quality=101"], "--quality=101 is out of range"),
        (["--in=x", "--out=y", "--shard-size=0"], "--shard-size=0.0 is out of range"),
        (["--in=x", "--out=y", "--resize=-1"], "--resize=-1 is out of range"),
        (["--verify=nowhere"], "holds no shards"),
        (["--verify=x", "--out=y"], "came with --in or --out"),
    ],
)
def test_a_mistyped_command(complaint, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in complaint(arguments)
    assert not list(tmp_path.iterdir())
