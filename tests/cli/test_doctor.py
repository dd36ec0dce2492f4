"""What `embedkit doctor` says of a machine; machines with cards are made up, since few tests run on one."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace

import pytest
import torch

from embedkit.cli import doctor
from embedkit.models import varlen_attention
from embedkit.models.native import linear

ALL = {"torch.nn.attention.varlen", "flash_attn", "triton"}
CODE = ("sm_80", "sm_90", "compute_90")


def capability_of(facts):
    return facts.major, facts.minor


@pytest.fixture
def machine(monkeypatch, embedkit_cli):
    """Returns a machine with these cards, as `embedkit doctor` tells of it: what is there, and what is missing."""

    def told(
        cards=(), *, cuda="13.0", driver="13.0", there=ALL, code=("sm_80", "sm_90", "compute_90"), shown=None
    ):
        facts = [
            SimpleNamespace(name=name, major=major, minor=minor, total_memory=gib << 30)
            for name, major, minor, gib in cards
        ]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(facts))
        monkeypatch.setattr(torch.cuda, "get_device_properties", facts.__getitem__)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability_of(facts[device.index]))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(code))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(doctor, "_driver", lambda: driver)
        monkeypatch.setattr(doctor, "_NVIDIA", SimpleNamespace(exists=lambda: False))
        monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
        for module in (doctor, varlen_attention):
            monkeypatch.setattr(module, "find_spec", lambda name: name in there or None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if shown is not None:
            monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", shown)
        ran = embedkit_cli("doctor")
        assert (ran.code, ran.err) == (0, "")
        has, _, lacks = ran.out.partition("\nhub cache")[0].partition("\nmissing for full speed:\n")
        return has, lacks

    return told


H200 = ("NVIDIA H200", 9, 0, 140)


def test_a_gpu_with_all_packages_lacks_nothing(machine):
    has, lacks = machine([H200, ("NVIDIA A10G", 8, 6, 22)], there={*ALL, "flash_attn_interface"})
    assert "cuda:0     NVIDIA H200, compute capability 9.0, 140 GiB, bf16\n" in has
    assert "cuda:1     NVIDIA A10G, compute capability 8.6, 22 GiB, bf16\n" in has
    # Version 3 is for Hopper alone.
    assert re.findall("packed attention by (.*)", has) == ["flash-attn 3", "torch.nn.attention.varlen"]
    assert "torch is built for CUDA 13.0, the driver supports 13.0\n" in has
    assert lacks == ""


def test_without_a_gpu_nothing_is_missing(machine):
    has, lacks = machine(cuda=None, driver=None)
    assert "no GPU: --device auto means cpu" in has
    assert lacks == ""


@pytest.mark.parametrize(
    ("asked", "what", "way_out"),
    [
        ({"cuda": None, "driver": "12.8"}, "is built without CUDA", "for CUDA 12.8 or older"),
        ({"cuda": "13.0", "driver": "12.8"}, "the NVIDIA driver supports 12.8 at most", "built for CUDA 12"),
        ({"shown": ""}, "CUDA_VISIBLE_DEVICES='' hides", "unset it"),
        ({}, "torch finds no GPU", "nvidia-smi"),
    ],
)
def test_it_explains_why_torch_finds_no_gpu_despite_a_driver(machine, asked, what, way_out):
    has, lacks = machine(**asked)
    assert "no GPU" in has
    found, out = lacks.splitlines()
    assert what in found
    assert way_out in out


@pytest.mark.parametrize(
    ("asked", "what", "way_out"),
    [
        ({"there": {"triton"}}, "no variable-length attention", "torch 2.11 or newer"),
        ({"there": ALL - {"triton"}}, "Triton is not installed", "install triton"),
        ({"cards": [("Tesla V100", 7, 0, 16)], "code": ["sm_70"]}, "neither bf16 nor flash", "fp16"),
        ({"code": ["sm_80", "sm_86"]}, "not built for cuda:0 (it supports sm_80, sm_86)", "that supports it"),
        ({"cards": [("B200", 10, 0, 180)], "code": ["sm_90a"]}, "not built for cuda:0", "newer one"),
    ],
)
def test_it_lists_what_a_gpu_lacks(machine, asked, what, way_out):
    _, lacks = machine(**{"cards": [H200], **asked})
    found, out = lacks.splitlines()
    assert what in found
    assert way_out in out


def test_a_later_gpu_runs_code_that_the_driver_compiles(machine):
    assert machine([("B200", 10, 0, 180)], code=["sm_80", "compute_90"])[1] == ""


def test_the_features_of_the_cpu_are_shown(machine, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(linear, "load_int8_products", lambda: SimpleNamespace(instructions="AVX9"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(linear, "load_bf16_products", lambda: SimpleNamespace(instructions="AVX512-BF9"))
    has, _ = machine(cuda=None, driver=None)
    assert ": no VNNI, " in has
    assert ", AMX\n" in has
    assert "--dtype int8: supported, with AVX9\n" in has
    monkeypatch.setattr(linear, "load_int8_products", lambda: None)
    for compiler, why in (
        (None, "there is no C++ compiler"),
        ("/usr/bin/c++", "embedkit's products cannot be built by the C++ compiler, or give wrong numbers"),
    ):
        monkeypatch.setattr("embedkit.models.select_backend.find_compiler", lambda found=compiler: found)
        lacks = f"--dtype int8: not supported: this CPU has no AVX-512 VNNI, and {why}"
        assert lacks in machine(cuda=None, driver=None)[0]
    assert "--dtype bf16 on the CPU: by embedkit, with AVX512-BF9\n" in has
    monkeypatch.setattr(linear, "load_bf16_products", lambda: None)
    assert "--dtype bf16 on the CPU: by transformers\n" in machine(cuda=None, driver=None)[0]
    for kernels, form in ((SimpleNamespace(bf16_attention=object()), "bf16"), (None, "fp32")):
        monkeypatch.setattr("embedkit.models.native.kernels.kernels_for", lambda _, found=kernels: found)
        assert f"attention of int8 and bf16 on the CPU: in {form}\n" in machine(cuda=None, driver=None)[0]
    monkeypatch.setattr("embedkit.models.native.kernels.load_kernels", lambda: None)
    for compiler, why in (
        (None, "there is no C++ compiler"),
        ("/usr/bin/c++", "embedkit's kernels cannot be built"),
    ):
        monkeypatch.setattr("embedkit.models.native.kernels.find_compiler", lambda found=compiler: found)
        assert f"kernels    none: {why}" in machine(cuda=None, driver=None)[0]
    monkeypatch.setattr("embedkit.models.native.kernels.load_kernels", object)
    assert "kernels    compiled for this CPU" in machine(cuda=None, driver=None)[0]
