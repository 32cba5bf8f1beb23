"""Cgroups of both versions, read."""

from zenml_ext.memory.cgroup import MemoryCgroup, MemoryReading


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_cgroup_of_version_1_is_read(tmp_path):
    write(
        tmp_path / "memory",
        memory__limit_in_bytes="1000\n",
        memory__usage_in_bytes="900\n",
        memory__stat="total_rss 300\ntotal_shmem 50\ntotal_inactive_file 400\ntotal_active_file 100\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )
    found = MemoryCgroup.own(tmp_path, tmp_path / "none").read()
    assert found == MemoryReading(limit=1000, used=400, oom_kills=2)


def test_a_cgroup_of_version_2_is_read(tmp_path):
    write(
        tmp_path,
        memory__max="max\n",
        memory__current="900\n",
        memory__stat="anon 300\nshmem 50\ninactive_file 400\nactive_file 100\n",
        memory__events="low 0\noom 1\noom_kill 2\n",
    )
    found = MemoryCgroup.own(tmp_path, tmp_path / "none").read()
    assert found == MemoryReading(limit=None, used=400, oom_kills=2)


def test_where_there_is_no_memory_cgroup_there_is_none(tmp_path):
    assert MemoryCgroup.own(tmp_path, tmp_path / "none") is None
