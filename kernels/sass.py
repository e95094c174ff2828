"""What ptxas made of a kernel, counted in the machine code that nvdisasm prints."""
import collections
import re

# One kernel: instructions, how many of them multiply matrices, the same for its main loop (the one
# with the most such instructions, the smallest of several), and accesses to local memory, which
# are spilled registers.
Count = collections.namedtuple('Count', 'instructions mma loop loop_mma local')

WAIT = re.compile(r'\bWARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)')


def instructions(text):
    """The mnemonics of a function, and its loops: (first, last) of each branch backwards."""
    words, labels, branches = [], {}, []
    for line in text.splitlines():
        if label := re.match(r'\s*(\.L_x_\d+):', line):
            labels[label[1]] = len(words)
        elif code := re.search(r'/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*);', line):
            if to := re.search(r'`\((\.L_x_\d+)\)', code[2]):
                branches.append((to[1], len(words), code[1]))
            words.append(code[1].split('.')[0])
    # CALL and the branches of WARPSYNC's slow paths go to code that is not a loop.
    loops = [(labels[to], at) for to, at, word in branches
             if word.startswith('BRA') and labels.get(to, at + 1) <= at]
    return words, loops


def count(function):
    words, loops = instructions(function)
    multiplies = lambda some: sum(word.endswith('MMA') for word in some)
    local = sum(word in ('LDL', 'STL') for word in words)
    best = (0, 0)
    for first, last in loops:
        body = words[first:last + 1]
        if (mma := multiplies(body)) and (mma > best[1] or mma == best[1] and len(body) < best[0]):
            best = (len(body), mma)
    return Count(len(words), multiplies(words), *best, local)


def overlapped(function):
    """How many of the exponentials between the starts of two products are computed while an earlier product runs: between
    the wait that leaves one product running and the wait for that one. None without such a wait."""
    found = None
    for line in function.splitlines():
        if wait := WAIT.search(line):
            if wait[1] == '1':
                found = running = 0
            elif found == 0:
                found = running
        elif found is not None and 'MUFU.EX2' in line:
            running += 1
    return found


def functions(text):
    """Kernel -> its part of the output of `nvdisasm -c`."""
    parts = re.split(r'\n\t\.section\t\.text\.', text)[1:]
    return {re.match(r'\w+', part)[0]: part for part in parts}


def section(module, target, text):
    """The lines of one module, for the table, and complaints about it."""
    lines = [f'{module:47}{"sm_" + target:>13}    mma   loop    mma  per mma']
    complaints = []
    for kernel, part in sorted(functions(text).items()):
        c = count(part)
        loop = f'{c.loop:7}{c.loop_mma:7}{c.loop / c.loop_mma:9.2f}' if c.loop_mma else ''
        hidden = overlapped(part)
        during = f'{hidden:5} ex2 during a product' if hidden else ''
        lines.append(f'  {kernel:45}{c.instructions:13}{c.mma:7}{loop}{during}')
        if c.local:
            complaints.append(f'kernel {kernel} accesses local memory {c.local} times')
    return lines, complaints
