"""Atomic writes and locked folders."""

import os

import pytest

from jaxkd.data.files import atomic_file, claim_folder, remove_partial_files, write_atomic
from jaxkd.errors import DataError


def test_content_appears_under_its_name_at_the_end_only(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"first")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_bytes() == b"first" and os.listdir(path.parent) == ["a.bin"]
    write_atomic(path, "héé")
    assert path.read_text(encoding="utf-8") == "héé" and os.listdir(path.parent) == ["a.bin"]


def test_a_failure_leaves_the_old_content_and_no_temporary_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_place_that_cannot_be_written_is_an_os_error_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), atomic_file(tmp_path / "file" / "a.txt"):
        pytest.fail("the block must not run")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "folder", b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / "a.partial", tmp_path / ".hidden", tmp_path / "b" / "c.png"]
    (tmp_path / "b").mkdir()
    for path in [*kept, tmp_path / ".a.txt.1.partial", tmp_path / "b" / ".c.png.77.partial"]:
        path.touch()
    remove_partial_files(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_one_claim_at_a_time(tmp_path):
    folder = tmp_path / "a" / "b"
    busy = pytest.raises(DataError, match="Another process is writing into .*b")
    with claim_folder(folder), busy, claim_folder(folder):
        pass
    with claim_folder(folder):
        pass
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="is a file, or lies in one"), claim_folder(path):
            pass
