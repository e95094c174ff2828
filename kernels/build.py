#!/usr/bin/env python3
"""Compiles kernels/*.cu to kernels/ptx/*.ptx according to kernels/manifest.txt, with pinned
compilers. No GPU is needed.

  build.py                 compile, write the PTX, registers.txt and sass.txt
  build.py --check         compile in memory, compare with the committed files, assemble for every
                           card with ptxas of several ages, and fail if a kernel spills registers
  build.py --only NAME     compile only this source (may be given several times), for development

The compilers are downloaded from PyPI, checked with the hashes in requirements.txt, and kept in
$CUDA_TOOLS, or else in $XDG_CACHE_HOME/flux-fast/cuda-tools, or else in
~/.cache/flux-fast/cuda-tools. Needs Python 3.9, pip, and Linux on x86-64 or aarch64.

Exit codes: 0 success; 1 a kernel does not compile, spills, or differs from the committed file;
2 wrong arguments, or the manifest and the files disagree; 3 the compilers are not available."""
import argparse
import collections
import concurrent.futures
import ctypes
import fcntl
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

import sass

HERE = pathlib.Path(__file__).resolve().parent
PTX = HERE / 'ptx'
REGISTERS = HERE / 'registers.txt'
SASS = HERE / 'sass.txt'
REBUILD = 'run `python3 kernels/build.py`, check the difference and commit it'

NVRTC, HEADERS = 'nvidia-cuda-nvrtc-cu12==12.8.93', 'nvidia-cuda-runtime-cu12==12.8.90'
NVDISASM = 'nvidia-cuda-nvdisasm==13.2.51'
# Version of ptxas -> its package, its path in the package, the newest PTX version that it reads,
# and those of our targets that it supports.
PTXAS = {
    '11.8': ('nvidia-cuda-nvcc-cu11==11.8.89', 'nvidia/cuda_nvcc/bin/ptxas', '7.8',
             '80 86 89 90'.split()),
    '12.4': ('nvidia-cuda-nvcc-cu12==12.4.131', 'nvidia/cuda_nvcc/bin/ptxas', '8.4',
             '80 86 89 90 90a'.split()),
    '12.8': ('nvidia-cuda-nvcc-cu12==12.8.93', 'nvidia/cuda_nvcc/bin/ptxas', '8.7',
             '80 86 89 90 90a 100 120'.split()),
    '13.0': ('nvidia-cuda-nvcc==13.0.88', 'nvidia/cu13/bin/ptxas', '9.0',
             '80 86 89 90 90a 100 120'.split()),
    '13.5': ('nvidia-cuda-nvcc==13.5.37', 'nvidia/cu13/bin/ptxas', '9.5',
             '80 86 89 90 90a 100 120'.split()),
}
# Assembles for every card; registers.txt and sass.txt are what it makes.
NEWEST = '13.0'
# The compiler within a driver is the ptxas of its age. These assemble each module for one card.
AGES = ('12.8', '13.5')

# A line of the manifest. `name` is the stem of the PTX file, such as linear.sm80.
class Module(collections.namedtuple('Module', 'name source arch version gate targets')):
    @property
    def counted(self):
        """The card whose machine code is counted, and for which every age of ptxas assembles."""
        return next(t for t in ('86', '89', '90a') if t in self.targets)


# What ptxas reports about a kernel on one target: registers per thread, static shared memory per
# block, stack and spills per thread in bytes.
Usage = collections.namedtuple('Usage', 'registers shared stack spills')


class Refusal(Exception):
    """An error with its exit code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def say(*words):
    print(*words, flush=True)


# The manifest

def read_manifest():
    modules = []
    for number, line in enumerate((HERE / 'manifest.txt').read_text().splitlines(), 1):
        if not line.strip() or line.startswith('#'):
            continue

        def refuse(why):
            raise Refusal(2, f'kernels/manifest.txt:{number}: {why}')

        fields = line.split()
        if len(fields) != 5:
            refuse('a line has five fields: source, arch, .version, gate, targets')
        stem, arch, version, gate, targets = fields
        targets = targets.split(',')
        if not re.fullmatch(r'compute_\d+a?', arch):
            refuse(f'{arch} is not a virtual architecture such as compute_80')
        if gate not in PTXAS or PTXAS[gate][2] != version:
            known = ', '.join(f'{v[2]} with {k}' for k, v in PTXAS.items())
            refuse(f'the gate of PTX {version} cannot be {gate} ({known}); if necessary, pin '
                   'another ptxas in requirements.txt and build.py')
        if unknown := [t for t in targets if t not in PTXAS[NEWEST][3]]:
            refuse(f'unknown targets {unknown}')
        if arch.endswith('a') and targets != [arch[8:]]:
            refuse(f'{arch} is not forward compatible: its only target is {arch[8:]}')
        if not set(targets) & set(PTXAS[gate][3]):
            refuse(f'ptxas {gate} supports none of these targets')
        modules.append(Module(f'{stem}.sm{arch[8:]}', f'{stem}.cu', arch, version, gate, targets))
    names = [m.name for m in modules]
    if double := sorted({n for n in names if names.count(n) > 1}):
        raise Refusal(2, f'kernels/manifest.txt: {", ".join(double)} is listed twice')
    return modules


def compare_with_files(modules):
    """Raises a Refusal for sources that are not in the manifest, lines without a source, and PTX
    files without a line."""
    here, listed = {p.name for p in HERE.glob('*.cu')}, {m.source for m in modules}
    wrong = [f'kernels/{s} is not in kernels/manifest.txt: add a line'
             for s in sorted(here - listed)]
    wrong += [f'kernels/manifest.txt lists {s}, which does not exist'
              for s in sorted(listed - here)]
    made = {f'{m.name}.ptx' for m in modules}
    wrong += [f'kernels/ptx/{p.name} belongs to no line of kernels/manifest.txt: delete it'
              for p in sorted(PTX.glob('*.ptx')) if p.name not in made]
    if wrong:
        raise Refusal(2, '\n'.join(wrong))


# The compilers

def pins():
    """Package with its version -> its block of requirements.txt."""
    text = (HERE / 'requirements.txt').read_text()
    pattern = r'(?m)^(([a-z0-9-]+)==([0-9.]+)(?: \\\n +--hash=sha256:[0-9a-f]{64})+)$'
    blocks = re.findall(pattern, text)
    return {f'{name}=={version}': block for block, name, version in blocks}


def tools_folder(given):
    if given or os.environ.get('CUDA_TOOLS'):
        return pathlib.Path(given or os.environ['CUDA_TOOLS']).expanduser().resolve()
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return (pathlib.Path(cache).expanduser() / 'flux-fast/cuda-tools').resolve()


def install(root, packages):
    """Package -> its folder. Downloads missing packages; a folder is either complete or absent."""
    pinned = pins()
    if missing := [p for p in packages if p not in pinned]:
        raise Refusal(2, f'kernels/requirements.txt does not pin {missing[0]}')
    folders = {p: root / p.replace('==', '-') for p in packages}
    if all(f.is_dir() for f in folders.values()):
        return folders
    if sys.platform != 'linux' or platform.machine() not in ('x86_64', 'aarch64'):
        raise Refusal(3, 'the compilers are pinned for Linux on x86-64 and aarch64, but this is '
                         f'{sys.platform} on {platform.machine()}')
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / '.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for package, folder in folders.items():
                if not folder.is_dir():
                    say(f'installing {folder.name} into {root}')
                    fetch(pinned[package], folder)
    except OSError as e:
        raise Refusal(3, f'cannot write to {root}: {e}\n'
                         'set another folder with --tools or CUDA_TOOLS')
    return folders


def fetch(requirement, folder):
    """Installs one package with pip, which checks its hash. No dependencies, no build steps."""
    part = folder.with_name(folder.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        file.write(requirement + '\n')
        file.flush()
        command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-input', '--no-deps',
                   '--only-binary=:all:', '--no-compile', '--require-hashes',
                   '--target', str(part), '-r', file.name]
        quiet = {**os.environ, 'PIP_ROOT_USER_ACTION': 'ignore',
                 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
        done = subprocess.run(command, env=quiet, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        shutil.rmtree(part, ignore_errors=True)
        raise Refusal(3, f'pip could not install {folder.name}:\n{done.stdout.strip()}\n'
                         'without a network, copy a filled cache folder to this machine and set '
                         '--tools or CUDA_TOOLS to it')
    part.rename(folder)


# Jobs. Each runs in its own process, because the compilers take most of the time and use one core.

def compile_ptx(module, nvrtc_folder, headers_folder):
    """(PTX or None, the output of the compiler)."""
    nvrtc = ctypes.CDLL(str(nvrtc_folder / 'nvidia/cuda_nvrtc/lib/libnvrtc.so.12'))
    headers = sorted(HERE.glob('*.cuh'))
    strings = lambda items: (ctypes.c_char_p * len(items))(*items)
    program = ctypes.c_void_p()

    def text(size_of, get):
        size = ctypes.c_size_t()
        size_of(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(max(size.value, 1))
        get(program, buffer)
        return buffer.value.decode()

    # Our sources are passed by name, not by path, so that the PTX does not depend on the folder.
    code = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), (HERE / module.source).read_bytes(), module.source.encode(),
        len(headers), strings([h.read_bytes() for h in headers]),
        strings([h.name.encode() for h in headers]))
    if code:
        return None, f'nvrtcCreateProgram: error {code}'
    include = headers_folder / 'nvidia/cuda_runtime/include'
    options = [f'--gpu-architecture={module.arch}', f'-I{include}', '--std=c++17',
               '-default-device']
    code = nvrtc.nvrtcCompileProgram(program, len(options), strings([o.encode() for o in options]))
    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).strip()
    ptx = None if code else text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if ptx is None:
        return None, log or f'nvrtcCompileProgram: error {code}'
    # NVRTC begins the PTX with comments about itself, and writes its own PTX version. Both are
    # replaced, so that the text depends only on what the source needs.
    ptx = re.sub(r'(?m)^//.*\n', '', ptx)
    ptx, stamped = re.subn(r'(?m)^\.version .*$', f'.version {module.version}', ptx)
    assert stamped == 1, module.name
    if any(str(p) in ptx for p in (HERE, include)):
        return None, 'the PTX contains a path of this machine (assert, __FILE__ or printf?)'
    return ptx.strip() + '\n', log


def assemble(file, ptxas, target, to=os.devnull):
    """(kernel -> Usage, complaints). The machine code is written to the file `to`."""
    command = [str(ptxas), f'-arch=sm_{target}', '-v', '--warn-on-spills', str(file),
               '-o', str(to)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    if done.returncode:
        return {}, ['is rejected:\n    ' + '\n    '.join(done.stdout.strip().splitlines()[:8])]
    usage, complaints, kernel, stack, spills = {}, [], None, 0, 0
    for line in done.stdout.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = m[1]
        elif m := re.search(r'(\d+) bytes stack frame, (\d+) bytes spill stores, '
                            r'(\d+) bytes spill loads', line):
            stack, spills = int(m[1]), int(m[2]) + int(m[3])
        elif m := re.search(r'Used (\d+) registers', line):
            shared = re.search(r'(\d+)(?:\+\d+)? bytes smem', line)
            usage[kernel] = Usage(int(m[1]), int(shared[1]) if shared else 0, stack, spills)
            if spills:
                complaints.append(
                    f'kernel {kernel} spills {spills} bytes per thread with {m[1]} registers: make '
                    'its tile smaller, keep fewer values at the same time, or set fewer blocks in '
                    '__launch_bounds__')
        elif (re.search(r'warning|performance loss', line, re.I)
              and not re.search('spill', line, re.I)):
            complaints.append(line.strip())
    return usage, complaints


def disassemble(file, ptxas, nvdisasm, name, target):
    """(lines of sass.txt, complaints)."""
    code = file.with_suffix('.cubin')
    _, complaints = assemble(file, ptxas, target, code)
    if complaints:
        return [], complaints
    done = subprocess.run([str(nvdisasm), '-c', str(code)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        return [], [f'nvdisasm failed:\n    {done.stdout.strip()[:400]}']
    return sass.section(name, target, done.stdout)


# registers.txt and sass.txt

def section(module, usages):
    """The lines of one module; `usages`: target -> kernel -> Usage."""
    kernels = sorted(usages[module.targets[0]])
    columns = ''.join(f'{"sm_" + t:>7}' for t in module.targets)
    lines = [f'{module.name:47}{columns}  shared  stack']
    for kernel in kernels:
        each = [usages[t][kernel] for t in module.targets]
        numbers = ''.join(f'{u.registers:7}' for u in each)
        shared, stack = max(u.shared for u in each), max(u.stack for u in each)
        lines.append(f'  {kernel:45}{numbers}{shared:8}{stack:7}')
    return lines


def read_sections(file):
    sections, name = {}, None
    for line in file.read_text().splitlines() if file.exists() else []:
        if line and not line.startswith('#'):
            if not line.startswith(' '):
                name = line.split()[0]
                sections[name] = []
            if name:
                sections[name].append(line)
    return sections


HEADS = {
    REGISTERS: ['# Written by kernels/build.py from the output of ptxas 13.0.88: registers per thread',
                '# for each target, static shared memory per block and stack per thread in bytes',
                '# (the largest of all targets). Committed so that reviews show growth. Spills are',
                '# never accepted.'],
    SASS: ['# Written by kernels/build.py from the machine code of ptxas 13.0.88 for one card:',
           '# instructions of a kernel and how many of them multiply matrices, then the same of its',
           '# main loop. Committed so that reviews show growth. Accesses to local memory are never',
           '# accepted.'],
}


def write_sections(file, modules, sections):
    body = [line for m in modules if m.name in sections for line in ['', *sections[m.name]]]
    file.write_text('\n'.join(HEADS[file] + body) + '\n')


def compare_sections(file, module, was, now):
    if not was:
        return [f'kernels/{file.name} has no {module.name}: {REBUILD}']
    if was[0] != now[0]:
        return [f'kernels/{file.name}: other columns for {module.name}: {REBUILD}']
    before, after = ({line.split()[0]: ' '.join(line.split()[1:]) for line in s[1:]}
                     for s in (was, now))
    columns = ' '.join(was[0].split()[1:])
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    return [f'{module.name}: {k}: {file.name} has ({before.get(k, "nothing")}), now it is '
            f'({after.get(k, "nothing")}) for {columns}: if that is intended, {REBUILD}'
            for k in changed]


# The work

def run(args):
    started = time.time()
    manifest = read_manifest()
    modules = manifest
    if args.only:
        wanted = {pathlib.Path(o).name.split('.')[0] for o in args.only}
        modules = [m for m in manifest if m.source[:-3] in wanted]
        if strange := sorted(wanted - {m.source[:-3] for m in modules}):
            raise Refusal(2, f'kernels/manifest.txt has no {strange[0]}')
        if absent := [m.source for m in modules if not (HERE / m.source).exists()]:
            raise Refusal(2, f'kernels/{absent[0]} does not exist')
    else:
        compare_with_files(manifest)
    versions = sorted({m.gate for m in modules} | {NEWEST, *AGES})
    root = tools_folder(args.tools)
    folders = install(root, [NVRTC, HEADERS, NVDISASM] + [PTXAS[v][0] for v in versions])
    nvdisasm = folders[NVDISASM] / 'nvidia/cu13/bin/nvdisasm'
    ptxas = {v: folders[PTXAS[v][0]] / PTXAS[v][1] for v in versions}

    complaints, usages, refused = [], {m.name: {} for m in modules}, set()
    machine_code = {}
    PTX.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, \
            concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        compiling = {pool.submit(compile_ptx, m, folders[NVRTC], folders[HEADERS]): m
                     for m in modules}
        assembling, disassembling = {}, {}
        for job in concurrent.futures.as_completed(compiling):
            module = compiling[job]
            text, log = job.result()
            if log:
                say(log)
            if text is None:
                complaints.append(f'kernels/{module.source} does not compile for {module.arch}')
                refused.add(module.name)
                continue
            committed = PTX / f'{module.name}.ptx'
            if not args.check:
                committed.write_text(text)
            elif not committed.exists():
                complaints.append(f'kernels/ptx/{committed.name} is missing: {REBUILD}')
            elif committed.read_bytes() != text.encode():
                complaints.append(f'kernels/ptx/{committed.name} differs from what '
                                  f'kernels/{module.source} compiles to: {REBUILD}')
            file = pathlib.Path(scratch) / committed.name
            file.write_text(text)
            job = pool.submit(disassemble, file, ptxas[NEWEST], nvdisasm, module.name,
                              module.counted)
            disassembling[job] = module
            for version in (module.gate, NEWEST, *AGES):
                targets = module.targets if version not in AGES else [module.counted]
                for target in [t for t in targets if t in PTXAS[version][3]]:
                    job = pool.submit(assemble, file, ptxas[version], target)
                    assembling[job] = (module, version, target)
        for job in concurrent.futures.as_completed(assembling):
            module, version, target = assembling[job]
            usage, said = job.result()
            complaints += [f'{module.name} on sm_{target} with ptxas {version}: {s}' for s in said]
            if version == NEWEST:
                usages[module.name][target] = usage
            if not usage:
                refused.add(module.name)
        for job in concurrent.futures.as_completed(disassembling):
            module = disassembling[job]
            machine_code[module.name], said = job.result()
            complaints += [f'{module.name} on sm_{module.counted}: {s}' for s in said]

    names = {m.name for m in manifest}
    before, before_code = read_sections(REGISTERS), read_sections(SASS)
    after = {name: lines for name, lines in before.items() if name in names}
    after_code = {name: lines for name, lines in before_code.items() if name in names}
    for module in modules:
        if module.name in refused:
            continue
        after[module.name] = section(module, usages[module.name])
        after_code[module.name] = machine_code[module.name]
        if args.check:
            for file, was, now in [(REGISTERS, before, after), (SASS, before_code, after_code)]:
                complaints += compare_sections(file, module, was.get(module.name),
                                               now[module.name])
        most = max((u.registers for t in usages[module.name].values() for u in t.values()),
                   default=0)
        kernels = len(usages[module.name][module.targets[0]])
        say(f'{module.name:24} {kernels:3} kernels, at most {most:3} registers')
    if not args.check:
        write_sections(REGISTERS, manifest, after)
        write_sections(SASS, manifest, after_code)
    elif gone := sorted(set(before) - set(after)):
        complaints.append(f'kernels/registers.txt lists {", ".join(gone)}, which the manifest does '
                          f'not have: {REBUILD}')
    for complaint in sorted(complaints):
        say(f'error: {complaint}')
    word = 'checked' if args.check else 'built'
    say(f'{word} {len(modules)} PTX files, {len(assembling)} runs of ptxas, '
        f'{len(complaints)} errors, {time.time() - started:.1f} s')
    return 1 if complaints else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true',
                        help='write nothing; fail if anything differs from the committed files')
    parser.add_argument('--only', action='append', metavar='NAME',
                        help='only this source, such as linear; may be given several times')
    parser.add_argument('--tools', metavar='FOLDER', help='the folder for the compilers')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1, metavar='N',
                        help='how many compilers run at the same time')
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error('--jobs must be at least 1')
    try:
        return run(args)
    except Refusal as e:
        print(f'error: {e}', file=sys.stderr)
        return e.code


if __name__ == '__main__':
    sys.exit(main())
