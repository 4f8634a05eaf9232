"""Builds the compiled library, fastlstm/_C.abi3.so. The package's metadata is in pyproject.toml.

The library uses LibTorch's stable ABI and no Python symbol: one build serves every Python >= 3.10
and torch >= 2.10. It is loaded by torch.ops.load_library, never imported.

The kernels of the CPU include nothing of torch's. They have a ninja file of their own, so that ./run
compiles them while pip brings torch: `python setup.py kernels` runs it, and so does build_ext.

Environment:
  FASTLSTM_CPP         auto (default): compile if there is a C++ compiler, else pure Python;
                       1: fail if there is none; 0: pure Python
  FASTLSTM_CUDA        the same for nvcc and csrc/cuda; auto, outside a wheel, only where there is
                       an NVIDIA GPU too
  FASTLSTM_AVX512      the kernels of AVX-512 and AMX; auto: in a wheel, and where this processor
                       has AVX-512
  FASTLSTM_CUDA_ARCHS  GPU architectures, default "80;90a;100a"
  FASTLSTM_TRAP_HANGS  1: a CUDA kernel that waits in vain for another block ends with an error
                       after two seconds, not never: ./run gpu builds so
  FASTLSTM_EMULATE_AVX512
                       1: kernels of AVX-512 that a machine with AVX2 runs, slowly, where
                       FASTLSTM_CPU_ISA names them: for tests, never in a wheel; GCC only
  CXX, MAX_JOBS        the compiler, and how many run at once
"""

import filecmp
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

import setuptools

KERNELS = os.path.join("build", "kernels.ninja")
LINK_MAP = os.path.join("build", "library.map")
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]


def say(line):
    print(f"fastlstm: {line}", flush=True)


def switch(name):
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"fastlstm: {name}={value!r}: expected auto, 0 or 1")
    return value


def check_setuptools():
    """Those of fresh environments of Python 3.10 and 3.11 are too old, and pip without build
    isolation does not look."""
    found = setuptools.__version__
    if [int(number) for number in re.findall(r"\d+", found)[:2]] < [70, 1]:
        raise SystemExit(
            f"fastlstm: setuptools {found} cannot make a wheel by itself: pip install 'setuptools>=70.1' ninja"
        )


def wanted(name, tool, found, without):
    """Whether to build the part that `tool` compiles; says so where it is left out."""
    mode = switch(name)
    if mode == "1" and not found:
        raise SystemExit(f"fastlstm: {name}=1, but no {tool} was found on PATH")
    if mode == "0":
        say(f"{name}=0: {without}")
    elif not found:
        say(f"no {tool} found: {without}")
    return mode != "0" and bool(found)


def has_gpu():
    """Whether NVIDIA's driver shows a GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return bool(glob("/dev/nvidia[0-9]*"))
    return subprocess.run([smi, "-L"], capture_output=True, check=False).returncode == 0


def has_avx512():
    """Whether this processor may have AVX-512: unknown counts as yes."""
    try:
        with open("/proc/cpuinfo") as file:
            return "avx512f" in file.read()
    except OSError:
        return True


def left_out(name, here, without):
    """Whether auto leaves a part out: an in-place build is for this machine, a wheel for all."""
    leave = switch(name) == "auto" and "bdist_wheel" not in sys.argv and not here()
    if leave:
        say(f"{without} ({name}=1 builds it)")
    return leave


def find_cxx():
    """The C++ compiler as the user gave it, else the first usual name that exists."""
    if os.environ.get("CXX"):
        return os.environ["CXX"]
    return next((cxx for cxx in ("g++", "c++", "clang++") if shutil.which(cxx)), None)


def find_cuda_home():
    """Root of the toolkit, as nvcc reports it: the nvcc on PATH may be a wrapper script."""
    nvcc = shutil.which("nvcc")
    if nvcc is None and os.environ.get("CUDA_HOME"):
        nvcc = shutil.which(os.path.join(os.environ["CUDA_HOME"], "bin", "nvcc"))
    if nvcc is None:
        return None
    dryrun = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    here = re.search(r"^#\$ _HERE_=(.+)$", dryrun.stderr, re.MULTILINE)
    return os.path.dirname(here.group(1)) if here else None


def cuda_options(home):
    """Compiler and linker options of the .cu sources; these include no torch header."""
    nvcc = ["-O3", "-std=c++17", "--threads=2", "-Xptxas=-v", "-Xcompiler=-fvisibility=hidden"]
    # torch passes the opposite -D's; the kernels use these operators and conversions.
    undone = ["HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    nvcc += [f"-U__CUDA_NO_{name}__" for name in undone]
    if os.environ.get("FASTLSTM_TRAP_HANGS") == "1":
        nvcc.append("-DFASTLSTM_TRAP_HANGS")
    archs = os.environ.get("FASTLSTM_CUDA_ARCHS", "80;90a;100a").split(";")
    for arch in archs:
        # Code for "90a" runs there alone; for "80" there is PTX too, which later GPUs take.
        for kind in ("sm",) if arch.endswith("a") else ("sm", "compute"):
            nvcc.append(f"-gencode=arch=compute_{arch},code={kind}_{arch}")
    return {
        "archs": archs,
        "nvcc": nvcc,
        "libraries": ["cudart_static", "rt", "dl", "pthread"],
        "library_dirs": [f"{home}/lib64", f"{home}/lib", *glob(f"{home}/targets/*/lib")],
    }


def files(part, ending):
    """The files of a part of csrc (torch, cpu, cuda, core), those in its folders too."""
    return sorted(glob(f"csrc/{part}/**/*{ending}", recursive=True))


def forget_outdated(build):
    """Delete the objects of .cu sources that are older than a header. Under a torch without CUDA
    ninja is not told which headers they include."""
    newest = max(map(os.path.getmtime, files("cuda", ".h") + files("core", ".h")))
    for source in files("cuda", ".cu"):
        compiled = os.path.join(build, os.path.splitext(source)[0] + ".o")
        if os.path.exists(compiled) and os.path.getmtime(compiled) < newest:
            os.remove(compiled)


def cpu_part():
    """Sources of the CPU's kernels, and the flags of all C++; None where nothing is compiled."""
    emulate = switch("FASTLSTM_EMULATE_AVX512") == "1"
    if emulate and "bdist_wheel" in sys.argv:
        raise SystemExit(
            "fastlstm: FASTLSTM_EMULATE_AVX512=1 is for tests, and a wheel would bring its slow "
            "kernels to machines that have AVX-512: unset it, or build with build_ext --inplace"
        )
    cxx = find_cxx()
    if not wanted("FASTLSTM_CPP", "C++ compiler", cxx, "nothing is compiled, pure Python only"):
        return None
    os.environ["CXX"] = cxx  # ninja's rule and the link step would each guess on their own
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")  # ninja, venv not activated
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno"]
    flags += ["-ffp-contract=fast", "-Wall", "-g0"]  # with -g, many times larger
    if emulate:
        flags += ["-DFASTLSTM_EMULATE_AVX512", "-Wno-psabi"]  # no vector leaves its source
    sources = files("cpu", ".cpp")
    no_avx512 = "building without the kernels of AVX-512"
    if not emulate and (
        switch("FASTLSTM_AVX512") == "0"
        or left_out("FASTLSTM_AVX512", has_avx512, f"this processor has no AVX-512: {no_avx512}")
    ):
        sources = [s for s in sources if not re.search("avx512|amx", s)]
        flags.append("-DFASTLSTM_WITHOUT_AVX512")
    return sources, flags


def kernel_objects(build, sources):
    """Where the objects of these sources lie: where setuptools would put them."""
    return [os.path.abspath(os.path.join(build, os.path.splitext(source)[0] + ".o")) for source in sources]


def write_kernels(build, sources, flags):
    """The ninja file that compiles these sources, as setuptools would."""
    from distutils.ccompiler import new_compiler  # setuptools' own, which its import puts there
    from distutils.sysconfig import customize_compiler

    def quoted(path):
        return re.sub(r"([ :$])", r"$\1", path)

    compiler = new_compiler()
    customize_compiler(compiler)
    cxx = os.environ["CXX"]
    words = [cxx] if shutil.which(cxx) else shlex.split(cxx)  # such as "ccache g++"
    command = [*words, *compiler.compiler_so[1:], "-I" + os.path.abspath("csrc"), *flags]
    lines = [
        f"builddir = {quoted(os.path.abspath(os.path.join(build, 'kernels')))}",  # where ninja's log is
        "rule compile",
        f"  command = {shlex.join(command).replace('$', '$$')} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    # Those of a whole instruction set take the longest, and begin first.
    for source in sorted(sources, key=lambda source: "isa/kernels.h" not in Path(source).read_text()):
        (target,) = kernel_objects(build, [source])
        lines.append(f"build {quoted(target)}: compile {quoted(os.path.abspath(source))}")
    os.makedirs("build", exist_ok=True)
    with open(KERNELS, "w") as file:
        file.write("\n".join([*lines, ""]))


def ninja():
    """The command that compiles the kernels, None without ninja. Another ninja would compile them again:
    what its log says of a command depends on its version."""
    found = shutil.which("ninja") if os.name == "posix" else None
    jobs = os.environ.get("MAX_JOBS")
    return found and [found, "-f", KERNELS, *(["-j", jobs] if jobs else [])]


def compile_kernels():
    """python setup.py kernels: compiles them, without torch. The process becomes ninja."""
    part = cpu_part()
    if part and ninja():
        build_ext = setuptools.Distribution().get_command_obj("build_ext")
        build_ext.ensure_finalized()
        write_kernels(build_ext.build_temp, *part)
        os.execv(ninja()[0], ninja())


def library():
    """The extension and its build command, as keyword arguments of setup()."""
    part = cpu_part()
    if part is None:
        return {}
    kernels, cxx_flags = part
    try:
        import torch.utils.cpp_extension as cpp_extension
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"fastlstm: the build needs torch ({error}). Install torch >= 2.10, setuptools >= 70.1 "
            "and ninja, then this with pip's --no-build-isolation; FASTLSTM_CPP=0 installs pure "
            "Python without torch"
        ) from error

    sources = files("torch", ".cpp")
    torch_flags = [*cxx_flags, *STABLE_ABI]
    cuda = {"nvcc": [], "libraries": [], "library_dirs": []}
    if not left_out("FASTLSTM_CUDA", has_gpu, "no NVIDIA GPU found: building without CUDA") and wanted(
        "FASTLSTM_CUDA", "nvcc", cuda_home := find_cuda_home(), "building without CUDA"
    ):
        cpp_extension.CUDA_HOME = cuda_home  # None under a torch without CUDA
        cuda = cuda_options(cuda_home)
        sources += files("cuda", ".cu")
        torch_flags.append(f"-DFASTLSTM_WITH_CUDA={','.join(cuda['archs'])}")
    if not ninja():
        sources += kernels  # as setuptools compiles, one after the other

    class BuildExt(cpp_extension.BuildExtension):
        def build_extensions(self):
            forget_outdated(self.build_temp)
            try:
                if ninja():
                    self.build_beside_kernels()
                else:
                    super().build_extensions()
            except RuntimeError as error:  # its traceback would bury the compiler's message
                raise SystemExit(f"fastlstm: {error}") from None

        def build_beside_kernels(self):
            """The kernels and the rest compile at the same time; linking waits for both."""
            write_kernels(self.build_temp, kernels, cxx_flags)
            self.extensions[0].extra_objects = kernel_objects(self.build_temp, kernels)
            compiling = subprocess.Popen(ninja())

            def finished():
                if compiling.wait() != 0:
                    raise RuntimeError("csrc/cpu does not compile: see above")

            link = self.compiler.link_shared_object

            def link_both(*args, **kwargs):
                finished()
                return link(*args, **kwargs)

            self.compiler.link_shared_object = link_both
            try:
                if "MAX_JOBS" in os.environ:
                    finished()  # as many at once as asked for, and no more
                super().build_extensions()
            finally:
                compiling.terminate()

        def copy_file(self, infile, outfile, *args, **kwargs):
            """Replace the library in one step and only if it changed: others may be loading it."""
            if os.path.exists(outfile) and filecmp.cmp(infile, outfile, shallow=False):
                return outfile, 0
            partial = f"{outfile}.{os.getpid()}"
            shutil.copy2(infile, partial)
            os.replace(partial, outfile)
            return outfile, 1

    # libtorch.so brings in libtorch_cuda.so; some linkers would drop it as unused. glibc before
    # 2.34, as in the image of manylinux_2_28, has dlopen in libdl.
    link = ["-Wl,--no-as-needed", "-ltorch", "-ldl"] if sys.platform == "linux" else []
    if "bdist_wheel" in sys.argv:  # names of functions are for profilers, of a build in place
        link.append("-s" if sys.platform == "linux" else "-Wl,-x")
    if sys.platform == "linux":
        os.makedirs("build", exist_ok=True)
        link.append(f"-Wl,-Map={os.path.abspath(LINK_MAP)}")  # what ./run sizes reads

    extension = cpp_extension.CppExtension(
        "fastlstm._C",
        sources,
        include_dirs=[os.path.abspath("csrc")],
        depends=[*kernels, *files("*", ".h")],  # ninja finds these itself
        py_limited_api=True,
        extra_compile_args={"cxx": torch_flags, "nvcc": cuda["nvcc"]},
        libraries=cuda["libraries"],
        library_dirs=cuda["library_dirs"],
        extra_link_args=link,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExt},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


check_setuptools()
# The licence stands here: no spelling of it in pyproject.toml suits both old and new setuptools.
if sys.argv[1:] == ["kernels"]:
    compile_kernels()
else:
    setuptools.setup(license="BSD-3-Clause", **library())
