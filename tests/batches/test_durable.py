"""Files are there whole or not at all, and what the system refuses is said in one line."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
from pathlib import Path

import pytest

from kn_lens.batches.storage.durable import canonical, is_temporary, sha256_of, stage, temporary_name, write_durably
from kn_lens.errors import OutputError
from tests.batches.faults import child, mounted, remount

NOBODY = 65534

WRITE = """
import os, sys
from pathlib import Path
from kn_lens.batches.storage.durable import write_durably
from kn_lens.errors import OutputError
if sys.argv[3:]:  # Python itself may lie where that user cannot start it
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
try:
    write_durably(Path(sys.argv[1]), lambda file: file.write(b"x" * int(sys.argv[2])))
    print("written")
except OutputError as error:
    print(error)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_and_its_record(tmp_path):
    blocks = [b"a" * 10, b"b" * 100_000, b"", b"c" * 3_000_000]

    def write(file):
        for block in blocks:
            file.write(block)

    record = write_durably(tmp_path / "file", write)
    wanted = b"".join(blocks)
    assert (tmp_path / "file").read_bytes() == wanted
    assert (record.bytes, record.sha256) == (len(wanted), hashlib.sha256(wanted).hexdigest())
    assert sha256_of(tmp_path / "file") == record.sha256
    assert names(tmp_path) == ["file"]


def test_one_inside_another(tmp_path):
    def outer(file):
        file.write(b"1")
        write_durably(tmp_path / "b", lambda other: other.write(b"2"))
        file.write(b"3")

    write_durably(tmp_path / "a", outer)
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"13", b"2")


@pytest.mark.parametrize(
    "error", [KeyError("x"), KeyboardInterrupt(), FileNotFoundError(2, "No such data"), OSError(28, "x")]
)
def test_what_the_writer_raises_passes_and_leaves_the_old_file(tmp_path, error):
    """An OSError of something else, say of the data that are copied, is not taken for one of the file."""
    (tmp_path / "file").write_bytes(b"old")

    def write(file):
        file.write(b"new" * 10_000)
        raise error

    with pytest.raises(type(error)) as caught:
        write_durably(tmp_path / "file", write)
    assert caught.value is error
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_temporary_names():
    name = temporary_name("part-00042.parquet")
    assert name.startswith(".part-00042.parquet.")
    assert f"-{os.getpid()}-x" in name
    assert is_temporary(name)
    assert len({temporary_name("a") for _ in range(50)}) == 50
    assert not any(map(is_temporary, [".gitignore", "part-00042.parquet", ".nfs0000-12", ".a.b", name[1:]]))


def test_tidied_up_while_it_is_written(tmp_path):
    def write(file):
        file.write(b"x")
        for path in tmp_path.iterdir():
            path.unlink()

    with pytest.raises(OutputError, match="another process tidied up"):
        write_durably(tmp_path / "file", write)
    assert not stage(tmp_path / "file", write).place()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1.5, True, None]}, '{"a":[1.5,true,null],"b":1}'),
        ({"é": "→\n"}, '{"é":"→\\n"}'),
        (1e22, "1e+22"),
        (-0.0, "-0.0"),
    ],
)
def test_canonical(value, text):
    assert canonical(value) == text.encode()


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("inf")]}])
def test_canonical_has_no_word_for_nan(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(value)


def test_disk_full(tmp_path):
    with mounted(tmp_path / "small", "size=64k") as folder:
        write_durably(folder / "old", lambda file: file.write(b"old"))
        write_durably(folder / "file", lambda file: file.write(b"x" * 40_000))
        with pytest.raises(OutputError) as caught:
            write_durably(folder / "other", lambda file: file.write(b"x" * 40_000))
        assert str(caught.value) == (
            f"cannot write {folder}/other: No space left on device; what is finished is kept: free some space and run "
            f"`kn-lens resume {folder}`"
        )
        assert names(folder) == ["file", "old"]
        write_durably(folder / "small", lambda file: file.write(b"small"))  # nothing of what failed takes up space


def test_disk_full_below_pyarrow(tmp_path):
    """The error comes through libraries that write into the file, and not once more when they close it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with mounted(tmp_path / "small", "size=64k") as folder:
        numbers = random.Random(0)
        table = pa.table({"x": [numbers.random() for _ in range(40_000)]})

        def write(file):
            with pq.ParquetWriter(file, table.schema) as writer:
                for at in range(0, 40_000, 1000):
                    writer.write_table(table.slice(at, 1000))

        with pytest.raises(OutputError, match=r"No space left on device; .* free some space and run"):
            write_durably(folder / "table", write)
        assert names(folder) == []


def test_quota(tmp_path):
    with mounted(tmp_path / "small", "size=1m,usrquota,usrquota_block_hardlimit=16k") as folder:
        folder.chmod(0o777)
        said = child(WRITE, folder / "file", 100_000, NOBODY)
        assert said == (
            f"cannot write {folder}/file: {os.strerror(errno.EDQUOT)}; what is finished is kept: free some space "
            f"and run `kn-lens resume {folder}`"
        )
        assert names(folder) == []


def test_read_only_file_system(tmp_path):
    with mounted(tmp_path / "small", "size=64k") as folder:
        remount(folder, "ro")
        with pytest.raises(OutputError) as caught:
            write_durably(folder / "file", lambda file: file.write(b"x"))
        assert str(caught.value) == (
            f"cannot write {folder}/file: Read-only file system; what is finished is kept: make it writable and run "
            f"`kn-lens resume {folder}`"
        )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a child as someone else")
def test_folder_of_someone_else(tmp_path):
    folder = Path(
        child("import tempfile; print(tempfile.mkdtemp())")
    )  # pytest's own folders can be entered by no one else
    try:
        folder.chmod(0o755)
        said = child(WRITE, folder / "file", 10, NOBODY)
        assert said == (
            f"cannot write {folder}/file: Permission denied; what is finished is kept: make it writable and run "
            f"`kn-lens resume {folder}`"
        )
    finally:
        folder.rmdir()


def test_file_too_large(tmp_path):
    said = child(
        WRITE, tmp_path / "a file", 100_000, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    )
    assert said == (
        f"cannot write {tmp_path}/a file: File too large; what is finished is kept: allow larger files (ulimit -f, or "
        f"another file system) and run `kn-lens resume {tmp_path}`"
    )
    assert names(tmp_path) == []


def test_no_folder(tmp_path):
    with pytest.raises(
        OutputError, match=f"cannot write {tmp_path}/no/file: No such file or directory; .* once it can"
    ):
        write_durably(tmp_path / "no/file", lambda file: file.write(b"x"))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from kn_lens.batches.storage.durable import write_durably
path = Path(sys.argv[1])
chance = random.Random(0)
for turn in range(int(sys.argv[2])):
    child = os.fork()
    size = turn
    while child == 0:
        size += 1
        write_durably(path, lambda file: [file.write(bytes([size % 256]) * size) for _ in range(300)])
    while not path.exists():
        time.sleep(0.001)
    time.sleep(chance.random() * 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raw = path.read_bytes()
    print(len(raw), raw == bytes([len(raw) // 300 % 256]) * len(raw))
"""


def test_killed_while_it_writes(tmp_path):
    """Whenever a process dies, the file is one that it had written in full."""
    lines = child(KILLED, tmp_path / "file", 20).splitlines()
    sizes = {int(line.split()[0]) for line in lines}
    assert [line.split()[1] for line in lines] == ["True"] * 20
    assert all(size % 300 == 0 for size in sizes)
    assert len(sizes) > 1
    assert all(is_temporary(name) for name in names(tmp_path) if name != "file")
