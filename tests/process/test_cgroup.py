"""A process that the kernel has killed for memory is called that, with the limit."""

from pathlib import Path

import pytest

from pipeline.process.cgroup import MemoryCgroup

V1 = {"limit": "memory/memory.limit_in_bytes", "kills": "memory/memory.oom_control", "none": f"{(1 << 63) - 4096}"}
V2 = {"limit": "memory.max", "kills": "memory.events", "none": "max"}
EVENTS = "low 0\noom 7\noom_kill_disable 0\nunder_oom 0\noom_kill {}\noom_group_kill 0\n"


def shows(groups: Path, files: dict[str, str], kills: int, limit: str) -> None:
    for name, text in ((files["kills"], EVENTS.format(kills)), (files["limit"], f"{limit}\n")):
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_a_kill_is_said_once_with_the_limit(tmp_path: Path, files: dict[str, str]) -> None:
    shows(tmp_path, files, 3, str(1500 << 20))
    memory = MemoryCgroup(tmp_path)
    assert memory.limit() == 1500 << 20
    assert memory.new_kills() == "", "those were killed before"
    shows(tmp_path, files, 5, str(1500 << 20))
    assert memory.new_kills() == "killed for memory: the limit here is 1500 MB"
    assert memory.new_kills() == ""


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_without_a_limit_none_is_said(tmp_path: Path, files: dict[str, str]) -> None:
    shows(tmp_path, files, 0, files["none"])
    memory = MemoryCgroup(tmp_path)
    shows(tmp_path, files, 1, files["none"])
    assert memory.limit() is None
    assert memory.new_kills() == "killed for memory"


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(("machine", "free"), [(4000, 600), (500, 500)], ids=["container", "machine"])
def test_what_is_free_is_the_less_of_container_and_machine(
    tmp_path: Path, files: dict[str, str], machine: int, free: int
) -> None:
    shows(tmp_path, files, 0, str(1000 << 20))
    usage = "memory.current" if files is V2 else "memory/memory.usage_in_bytes"
    (tmp_path / usage).write_text(f"{400 << 20}\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {machine << 10} kB\n")
    assert MemoryCgroup(tmp_path, tmp_path / "meminfo").free() == free << 20


def test_where_nothing_is_shown_nothing_is_said(tmp_path: Path) -> None:
    assert MemoryCgroup(tmp_path).new_kills() == ""
    assert MemoryCgroup(tmp_path).limit() is None
    (tmp_path / "memory.max").write_bytes(b"\xff\x00")
    assert MemoryCgroup(tmp_path).limit() is None
    assert MemoryCgroup(tmp_path, tmp_path / "meminfo").free() is None
    assert MemoryCgroup().new_kills() == ""
    assert (MemoryCgroup().free() or 0) > 0


@pytest.mark.parametrize(
    ("files", "root", "line"),
    [(V1, "memory", "4:cpu,memory:/job/step"), (V1, "memory", "4:memory:/job/step"), (V2, "", "0::/job/step")],
)
def test_a_kill_in_a_group_within_the_container_is_said_with_the_limit_around_it(
    tmp_path: Path, files: dict[str, str], root: str, line: str
) -> None:
    (tmp_path / "self").write_text(f"9:pids:/job\n{line}\n")
    own = Path(root, "job", "step")
    inner = {name: str(own / Path(file).name) for name, file in files.items()}
    outer = {name: str(own.parent / Path(file).name) for name, file in files.items()}
    shows(tmp_path, files, 0, files["none"])
    shows(tmp_path, outer, 7, str(800 << 20))
    shows(tmp_path, inner, 0, files["none"])
    memory = MemoryCgroup(tmp_path, membership=tmp_path / "self")
    shows(tmp_path, outer, 8, str(800 << 20))
    assert memory.new_kills() == "", "of another step"
    shows(tmp_path, inner, 1, files["none"])
    assert memory.new_kills() == "killed for memory: the limit here is 800 MB"
