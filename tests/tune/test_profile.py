"""Profiles of devices are read strictly, and every number in them has a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleepc.errors import SleepcError, UsageError
from sleepc.tune.profile import FOLDER, find_profile, profiles, read_profile

H100 = (FOLDER / "h100.toml").read_text()


@pytest.mark.parametrize("name", profiles())
def test_all_that_are_known(name: str) -> None:
    it = find_profile(name)
    facts = [it.memory, it.bandwidth, it.launch, *it.flops.values()]
    assert it.kind == "cuda"
    assert it.target
    assert it.shared is not None
    for fact in (*facts, it.shared):
        assert fact.source.strip()
    assert it.flops_in("bf16") > it.flops_in("f32") == it.flops_in("i64")
    assert 1e10 < it.memory.value < it.bandwidth.value < it.flops_in("f32")


def test_devices_are_not_each_other() -> None:
    assert {"a100", "b200", "h100", "h200", "l4", "mi300x", "rtx4090"} <= set(profiles())
    speeds = [
        find_profile(name).bandwidth.value for name in ("l4", "rtx4090", "a100", "h100", "h200", "mi300x", "b200")
    ]
    assert speeds == sorted(set(speeds))


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown device 'h1000'") as caught:
        find_profile("h1000")
    assert "Did you mean h100?" in caught.value.fix
    assert ", ".join(profiles()) in caught.value.fix
    for odd in ("../profile", "H100", "", "h100.toml"):
        with pytest.raises(UsageError, match="unknown device"):
            find_profile(odd)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[memory]", "[memory]\nsauce = 1", "memory.sauce: Extra inputs"),
        ("[memory]", "[memories]", "memory: Field required"),
        ('kind = "cuda"', 'kind = "tpu"', "kind: Input should be"),
        ("value = 80e9", 'value = "80e9"', "memory.value"),
        ("value = 80e9", "value = true", "memory.value"),
        ("value = 80e9", "value = -1", "memory.value"),
        ("value = 80e9", "value = inf", "memory.value"),
        ("value = 80e9", "value = 80e9\nvalue = 1", "Cannot overwrite a value"),
        ("[flops.f32]", "[flops.f4]", "flops.f4"),
        ("value = 80e9\nsource", "value = 80e9\n#", "memory.source: Field required"),
        ('target = "sm_90"', 'target = "sm 90; x"', "target"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in H100
    path = tmp_path / "device.toml"
    path.write_text(H100.replace(old, new, 1))
    with pytest.raises(SleepcError, match="not a device profile") as caught:
        read_profile(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "device.toml", tmp_path / "absent.toml"):
        with pytest.raises(SleepcError, match="not a device profile"):
            read_profile(path)
