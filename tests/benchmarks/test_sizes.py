"""The sizes of the library's parts, from a linker's map."""

from benchmarks import sizes

MAP = """
Discarded input sections

 .text          0x0000000000000000       0x10 build/temp/csrc/cpu/team.o

Linker script and memory map

 .text          0x0000000000001000      0x100 build/temp/csrc/cpu/isa/avx2.o
 .text._ZN8fastlstm4avx27forwardERKNS_11ForwardArgsE
                0x0000000000001100      0x300 build/temp/csrc/cpu/isa/avx2.o
 .rodata        0x0000000000002000       0x20 /elsewhere/csrc/torch/step.o
 .text          0x0000000000003000       0x40 build/temp/csrc/torch/stack.o
 .comment       0x0000000000000000       0x27 build/temp/csrc/torch/stack.o
 .text          0x0000000000004000        0x8 /usr/lib/libcudart_static.a(cuda.o)
"""


def test_bytes_by_object_and_part():
    found = sizes.sizes(MAP)
    assert found == {
        "cpu/isa/avx2": 0x400,
        "torch/step": 0x20,
        "torch/stack": 0x40,
        "(libraries linked in) libcudart_static.a": 8,
    }
    parts = sizes.by_part(found)
    assert parts == {"cpu/isa/avx2": 0x400, "torch": 0x60, "(libraries linked in)": 8}
    assert sizes.table(parts).splitlines()[2] == "| cpu/isa/avx2 | 1.0 | 90.8% |"


def test_without_a_map(tmp_path, capsys):
    assert sizes.main([str(tmp_path / "library.map")]) == 1
    assert "not there" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    (tmp_path / "library.map").write_text(MAP)
    assert sizes.main([str(tmp_path / "library.map"), "--all"]) == 0
    assert "torch/stack" in capsys.readouterr().out
