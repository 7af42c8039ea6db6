"""What files hold is remembered for as long as nothing tells that they changed, and read again when something does."""

import json
import os
import subprocess
import sys

import pytest

from retro.base.artifacts import sha256
from retro.corpus.readings import Contents, stamp

OLD = (1.5e9, 1.5e9)


@pytest.fixture
def files(tmp_path):
    """Three files that nothing wrote to lately, as far as their times tell."""
    found = []
    for number in range(3):
        path = tmp_path / f"part-{number}.jsonl"
        path.write_text(f"{number}\n", encoding="utf-8")
        found.append(str(path))
    return found


def remembering(path, files, text="remembered"):
    """A file that remembers something else of these files than they hold: who reads them says otherwise."""
    known = {os.path.abspath(file): {"stamp": stamp(file), "sha256": f"{text} {n}"} for n, file in enumerate(files)}
    path.write_text(json.dumps(known), encoding="utf-8")
    return Contents(path)


def test_what_is_remembered_of_a_file_with_the_same_stamp_is_not_read_again(files, tmp_path):
    found = remembering(tmp_path / "known.json", files).hashes(files)
    assert list(found.values()) == ["remembered 0", "remembered 1", "remembered 2"]


def rewritten(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2"))
    os.utime(path, OLD)


def replaced(path):
    other = path.with_suffix(".new")
    other.write_bytes(b"3\n")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


def appended(path):
    with open(path, "a", encoding="utf-8") as file:
        file.write("more\n")


@pytest.mark.parametrize("change", [rewritten, replaced, appended, os.utime])
def test_a_file_that_may_have_changed_is_read_again(files, tmp_path, change):
    contents = remembering(tmp_path / "known.json", files)
    change(tmp_path / "part-1.jsonl")
    found = contents.hashes(files)
    assert found[files[1]] == sha256(files[1]) and found[files[0]] == "remembered 0"


def test_a_file_written_to_a_moment_ago_is_not_remembered(files, tmp_path):
    """Within one tick of the file system's clock it could be written to again, with the same size and time."""
    Contents(tmp_path / "known.json").hashes(files)
    assert not (tmp_path / "known.json").exists()


def test_a_file_at_rest_is_remembered_with_what_it_holds(files, tmp_path, monkeypatch):
    monkeypatch.setattr("retro.corpus.readings.YOUNG", -1)
    Contents(tmp_path / "known.json").hashes(files[:2])
    Contents(tmp_path / "known.json").hashes(files[1:])
    known = json.loads((tmp_path / "known.json").read_text())
    assert {path: each["sha256"] for path, each in known.items()} == {file: sha256(file) for file in files}
    assert all(each["stamp"] == stamp(path) for path, each in known.items())


def test_the_digest_follows_contents_and_their_order_alone(files, tmp_path):
    def digest(given):
        return Contents(tmp_path / "known.json").digest(given)

    before = digest(files)
    for file in files:
        os.utime(file)
    assert digest(files) == before != digest(files[::-1])
    appended(tmp_path / "part-2.jsonl")
    assert digest(files) != before


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"a": 1}', '{"a": {"stamp": 3}}', "\x00"])
def test_a_damaged_memory_costs_time_only(files, tmp_path, text):
    (tmp_path / "known.json").write_text(text, encoding="utf-8")
    assert Contents(tmp_path / "known.json").hashes(files) == {file: sha256(file) for file in files}


def test_where_nothing_can_be_remembered_files_are_read(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("retro.corpus.readings.YOUNG", -1)
    (tmp_path / "taken").write_text("a file, where a folder would have to be")
    assert Contents(tmp_path / "taken/known.json").hashes(files) == {file: sha256(file) for file in files}
    assert "files are read again next time" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told_from_one_that_is(files, tmp_path):
    contents = Contents(tmp_path / "known.json")
    assert contents.hashes([str(tmp_path / "none")]) == {str(tmp_path / "none"): "No such file or directory"}


def test_much_to_read_is_said_before(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("retro.corpus.readings.LARGE", 5)
    Contents(tmp_path / "known.json").hashes(files)
    assert "of 3 files to know their content; " in capsys.readouterr().err


@pytest.mark.slow
def test_processes_side_by_side_all_find_what_files_hold(files, tmp_path):
    code = "import sys; from pathlib import Path; from retro.corpus import readings; readings.YOUNG = -1\n"
    code += "print(readings.Contents(Path(sys.argv[1])).digest(sys.argv[2:]))"
    lines = [[sys.executable, "-c", code, str(tmp_path / "known.json"), *files[n % 2 :]] for n in range(4)]
    started = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for line in lines]
    said = [process.communicate()[0].strip() for process in started]
    assert said == [Contents(tmp_path / "none.json").digest(files[n % 2 :]) for n in range(4)]
    known = json.loads((tmp_path / "known.json").read_text())
    assert all(each["sha256"] == sha256(path) for path, each in known.items())
