"""A disk that fills up, is lost, or may not be written: the build says so, claims nothing too much, and goes on."""

import os
import subprocess
import sys
from pathlib import Path

from geokr.dataset import layout
from tests.build.conftest import Built
from tests.build.test_runs import digests_of

# Mounts of its own, which end with the process; whoever is not root becomes so in there.
OWN_MOUNTS = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]

SCRIPT = """
set -u
mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99
shift 1
out=$1; copies=$2; shift 2
"$@"; echo "first: $?" >&2
cp -r "$out" "$copies/full"
mount -o remount,size=1g "$out"
"$@"; echo "second: $?" >&2
cp -r "$out" "$copies/resumed"
"""


def test_a_disk_that_fills_up(built: Built, tmp_path: Path) -> None:
    whole = sum(path.stat().st_size for path in built.dataset.rglob("*") if path.is_file())
    out, copies = tmp_path / "dataset", tmp_path / "copies"
    out.mkdir()
    copies.mkdir()
    build = [sys.executable, "-m", "pipeline.build_levir_kr", *built.arguments, "--out", str(out), "--workers", "1"]
    script = ["sh", "-c", SCRIPT, "sh", str(whole // 2), str(out), str(copies), *build]
    done = subprocess.run([*OWN_MOUNTS, *script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.split("first: ")
    assert first.count("\nerror: ") == 1, done.stderr
    assert "No space left on device" in first
    assert "Traceback" not in done.stderr
    assert first.rstrip().splitlines()[-1].startswith("error: ")
    assert (second.splitlines()[0], second.rstrip().splitlines()[-1]) == ("2", "second: 0")

    # What a full disk left: some blocks, and of each that is marked as done all its bytes.
    full = copies / "full"
    marked = [path.relative_to(full) for path in full.glob(f"{layout.TILES}/*/status/c/*/*") if path.suffix == ""]
    blocks = list(built.dataset.glob(f"{layout.TILES}/*/status/c/*/*"))
    assert len(marked) < len(blocks)
    for path in marked:
        scene, i, j = path.parts[1], path.parts[-2], path.parts[-1]
        for file in (path, Path(layout.TILES, scene, "image", "c", i, j, "0", "0", "0")):
            before = built.dataset / file
            assert (full / file).exists() == before.exists()
            assert not before.exists() or (full / file).read_bytes() == before.read_bytes()
    assert not (full / "index.parquet").exists()
    assert digests_of(copies / "resumed") == digests_of(built.dataset)


LOST = """
set -u
mount -t tmpfs -o size=1g tmpfs "$1" || exit 99
mkdir "$1/dataset"
mount --bind "$1/dataset" "$2"
disk=$1; out=$2; copies=$3; shift 3
{ "$@"; echo $? > "$copies/ended"; } &
until [ "$(find "$out" -path '*/tiles.zarr/*/status/c/*' -type f | wc -l)" -gt 4 ]; do
  [ -e "$copies/ended" ] && exit 98
  sleep 0.02
done
umount -l "$out"
wait; echo "first: $(cat "$copies/ended")" >&2
echo "left: $(ls -A "$out")" >&2
mount --bind "$disk/dataset" "$out"
"$@"; echo "second: $?" >&2
cp -r "$out" "$copies/resumed"
mount -o remount,bind,ro "$out"
"$@"; echo "third: $?" >&2
"""


def test_a_disk_that_is_lost_and_one_that_may_not_be_written(built: Built, tmp_path: Path) -> None:
    disk, out, copies = (tmp_path / name for name in ("disk", "dataset", "copies"))
    for directory in (disk, out, copies):
        directory.mkdir()
    build = [sys.executable, "-m", "pipeline.build_levir_kr", *built.arguments, "--out", str(out), "--workers", "1"]
    script = ["sh", "-c", LOST, "sh", str(disk), str(out), str(copies), *build]
    done = subprocess.run([*OWN_MOUNTS, *script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    first, second, third = done.stderr.replace("first: 2", "|").replace("second: 0", "|").split("|")
    (said,) = [line for line in first.splitlines() if line.startswith("error: ")]
    assert "no such scene in the store" in said or "cannot be written" in said
    assert "left: \n" in second
    assert "Read-only file system" in third
    assert third.rstrip().endswith("third: 2")
    assert digests_of(copies / "resumed") == digests_of(built.dataset)
