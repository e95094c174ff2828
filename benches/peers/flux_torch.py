"""What torch reaches on this GPU at FLUX.1's shapes, in one run: the yardstick for the CUDA kernels. Self-contained: PyPI torch, and diffusers for the
autoencoder and the whole step. Random weights; nothing is downloaded.

  python flux_torch.py                              everything that fits this GPU
  python flux_torch.py --only 'linear.*' --only 'attention.*'
  python flux_torch.py --ours ours.jsonl            beside those of FLUX_FAST_BENCH_JSON=ours.jsonl cargo bench --bench ops -- --device cuda
  python flux_torch.py --device cpu --tiny          smoke run of the script itself; its figures mean nothing

Prints a JSON line per case on stdout and a table on stderr. What cannot run says why. Exit code 0, also when there is no GPU or no torch ("SKIPPED: ...");
2 for bad arguments.

How it is measured: by CUDA events after a warm-up. Kernels as the engine's bench does it: many calls back to back between two events, and "seconds" is that of
the best group ("median" stands beside it); with --cold one call at a time, after the L2 cache was overwritten. Decoding and steps: "seconds" is the median.
Products of e4m3 weights: "rowwise" and "tensorwise" multiply in FP8 with activations that are in FP8 already, "to_bf16" converts the weights in each call."""
import argparse
import fnmatch
import gc
import json
import statistics
import sys
import time
import warnings

GIB = 2**30


class Sizes:
    """FLUX.1 at 1024x1024."""
    label, pixels = '1024', 1024
    image, texts = 4096, {'dev': 512, 'schnell': 256}
    heads, head_dim, context, pooled, double, single = 24, 128, 4096, 768, 19, 38
    t5_rows, t5_hidden, t5_mlp = 512, 4096, 10240
    vae_channels, copy_bytes = (128, 256, 512, 512), GIB // 4
    # Rows, K, N of CLIP's MLP, and of the modulation for 28 steps and for one.
    others = [(77, 768, 3072), (28, 3072, 18432), (1, 3072, 18432)]
    # Tokens, heads, head dimension of T5 and of the autoencoder.
    attentions = [(512, 64, 64), (16384, 1, 512)]
    # Input height, channels in and out, whether it is enlarged first: the decoder's.
    convolutions = [(128, 16, 512, False), (128, 512, 512, False), (128, 512, 512, True), (256, 512, 512, False), (512, 512, 256, False),
                    (512, 256, 256, False), (512, 256, 256, True), (1024, 256, 128, False), (1024, 128, 128, False), (1024, 128, 3, False)]
    norms = [(1024, 128), (512, 256), (256, 512)]  # side, channels

    @property
    def hidden(self):
        return self.heads * self.head_dim

    def linears(self):
        """(rows, K, N), each once: single blocks of dev and schnell (the image rows of a double block are nearly as many), text rows, T5, the others."""
        h = self.hidden
        shapes = [(h, 3 * h), (h, h), (h, 4 * h), (4 * h, h), (5 * h, h), (h, 7 * h)]
        rows = [self.image + text for text in self.texts.values()] + [self.texts['dev']]
        t5 = [(self.t5_hidden, self.t5_hidden), (self.t5_hidden, self.t5_mlp), (self.t5_mlp, self.t5_hidden)]
        return [(m, k, n) for m in rows for k, n in shapes] + [(self.t5_rows, k, n) for k, n in t5] + self.others

    def step_flops(self, text):
        """Without modulation, which is done once per picture."""
        h, tokens = self.hidden, self.image + text
        double, single = 2 * tokens * h * 12 * h, 2 * tokens * h * 12 * h
        ends = 2 * h * (text * self.context + 2 * self.image * 64)
        return self.double * double + self.single * single + ends + (self.double + self.single) * 4 * tokens * tokens * h


class Tiny(Sizes):
    label, pixels = 'tiny', 64
    image, texts = 16, {'dev': 8, 'schnell': 4}
    heads, context, pooled, double, single = 2, 64, 32, 1, 1
    t5_rows, t5_hidden, t5_mlp = 8, 64, 160
    vae_channels, copy_bytes = (32, 32, 64, 64), 2**20
    others, attentions, convolutions, norms = [(1, 64, 96)], [(16, 1, 512)], [(8, 16, 32, False), (8, 16, 32, True)], [(8, 32)]


class Skip(Exception):
    """Why a case does not run here."""


class Device:
    def __init__(self, torch, kind, tiny, cold):
        self.torch, self.kind, self.cold = torch, kind, cold
        self.cuda = kind == 'cuda'
        self.seconds = 0.02 if tiny else 1.0
        self.flush = torch.empty(GIB // 4, dtype=torch.uint8, device=kind) if self.cuda and cold else None

    def sync(self):
        if self.cuda:
            self.torch.cuda.synchronize()

    def clean(self):
        self.torch.compiler.reset()  # compiled code may hold on to its model
        gc.collect()
        if self.cuda:
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def free(self):
        return self.torch.cuda.mem_get_info()[0] if self.cuda else host_free()

    def peak(self):
        """Bytes of tensors at the worst moment, without our own buffer."""
        return self.torch.cuda.max_memory_allocated() - (self.flush.numel() if self.cold else 0)

    def wall(self, run):
        self.sync()
        start = time.perf_counter()
        run()
        self.sync()
        return time.perf_counter() - start

    def measure(self, run, kernel):
        """Seconds of a call, several times."""
        self.wall(run)  # compiles, and lets libraries choose their algorithms
        once = self.wall(run)
        for _ in range(min(50, int(self.seconds / 3 / once))):
            run()
        calls = max(1, min(1000, int(self.seconds / 40 / once))) if kernel and not self.cold else 1
        repeats = max(5, min(40, int(self.seconds / once / calls)))
        samples = []
        for _ in range(repeats):
            if not self.cuda:
                samples.append(self.wall(lambda: [run() for _ in range(calls)]) / calls)
                continue
            if kernel and self.cold:
                self.flush.zero_()
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) / 1e3 / calls)
        return samples


def host_free():
    try:
        with open('/proc/meminfo') as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable'))
    except (OSError, StopIteration):
        return 0


class Case:
    """`make()` returns what is timed. `work`: ('tflops', operations) or ('gbps', bytes), or a function that tells it."""

    def __init__(self, name, variant, work, make, kernel=True):
        self.name, self.variant, self.work, self.make, self.kernel = name, variant, work, make, kernel


def copies(device, sizes):
    torch = device.torch

    def make(pinned):
        host = torch.ones(sizes.copy_bytes, dtype=torch.uint8)
        host = host.pin_memory() if pinned else host
        there = torch.empty_like(host, device=device.kind)
        return lambda: there.copy_(host, non_blocking=pinned)

    work = ('gbps', sizes.copy_bytes)
    if device.cuda:
        yield Case('h2d.pinned', 'copy_', work, lambda: make(True))
    yield Case('h2d.pageable', 'copy_', work, lambda: make(False))


def linears(device, sizes):
    torch = device.torch
    bf16, e4m3 = torch.bfloat16, torch.float8_e4m3fn
    linear = torch.nn.functional.linear

    def random(*shape):
        return torch.randn(*shape, device=device.kind).to(bf16)

    def make(m, k, n, variant):
        x, w, bias = random(m, k), random(n, k), random(n)
        if variant == 'F.linear':
            return lambda: linear(x, w, bias)
        w = w.to(e4m3)
        if variant == 'to_bf16':
            return lambda: linear(x, w.to(bf16), bias)
        if device.cuda and torch.cuda.get_device_capability() < (8, 9):
            raise Skip('FP8 products need compute capability 8.9')
        x, one = x.to(e4m3), torch.ones((), device=device.kind)
        scales = (one.repeat(m, 1), one.repeat(1, n)) if variant == 'rowwise' else (one, one)
        return lambda: torch._scaled_mm(x, w.t(), *scales, bias=bias, out_dtype=bf16, use_fast_accum=device.cuda)

    for m, k, n in sizes.linears():
        for kind, variant in (('bf16', 'F.linear'), ('e4m3', 'rowwise'), ('e4m3', 'tensorwise'), ('e4m3', 'to_bf16')):
            yield Case(f'linear.{m}x{k}x{n}.{kind}', variant, ('tflops', 2 * m * k * n), lambda a=(m, k, n, variant): make(*a))


def attentions(device, sizes):
    torch = device.torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def make(tokens, heads, dim, backend):
        q, k, v = (torch.randn(1, tokens, heads, dim, device=device.kind).to(torch.bfloat16).transpose(1, 2) for _ in range(3))

        def run():
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return run

    joint = [(sizes.image + text, sizes.heads, sizes.head_dim) for text in sizes.texts.values()]
    for tokens, heads, dim in joint + sizes.attentions:
        work = ('tflops', 4 * tokens * tokens * heads * dim)
        for variant in ('FLASH_ATTENTION', 'CUDNN_ATTENTION', 'EFFICIENT_ATTENTION') + (('MATH',) if dim > 256 else ()):
            backend = getattr(SDPBackend, variant)
            yield Case(f'attention.{tokens}x{heads}x{dim}', variant.split('_')[0].lower(), work, lambda a=(tokens, heads, dim, backend): make(*a))


def convolutions(device, sizes):
    torch = device.torch
    F = torch.nn.functional

    def make(size, inside, outside, up):
        def random(*shape):
            return torch.randn(*shape, device=device.kind).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        x, w, bias = random(1, inside, size, size), random(outside, inside, 3, 3), torch.randn(outside, device=device.kind).to(torch.bfloat16)
        if up:
            return lambda: F.conv2d(F.interpolate(x, scale_factor=2.0, mode='nearest'), w, bias, padding=1)
        return lambda: F.conv2d(x, w, bias, padding=1)

    for size, inside, outside, up in sizes.convolutions:
        out = 2 * size if up else size
        name = f'conv2d.{out}x{out}.{inside}->{outside}{".up2" if up else ""}'
        yield Case(name, 'channels_last', ('tflops', 2 * out * out * 9 * inside * outside), lambda a=(size, inside, outside, up): make(*a))


def elementwise(device, sizes):
    """What memory limits: bytes are those of one reading and one writing."""
    torch = device.torch
    F = torch.nn.functional
    h, tokens, head = sizes.hidden, sizes.image + sizes.texts['dev'], sizes.head_dim

    def random(*shape):
        return torch.randn(*shape, device=device.kind).to(torch.bfloat16)

    def modulated(x, shift, scale):
        return F.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1 + scale) + shift

    def normed_and_turned(qkv, q_gain, k_gain, cos, sin):
        parts = qkv.view(tokens, 3, sizes.heads, head).unbind(1)
        turned = []
        for x, gain in zip(parts, (q_gain, k_gain)):
            x0, x1 = F.rms_norm(x, (head,), gain, eps=1e-6).float().unflatten(-1, (-1, 2)).unbind(-1)
            turned.append(torch.stack((cos * x0 - sin * x1, sin * x0 + cos * x1), -1).flatten(-2).to(x.dtype))
        return torch.stack((*turned, parts[2]), 1)

    def angles():
        return torch.randn(tokens, 1, head // 2, device=device.kind)

    def pixels(side, channels):
        return random(1, channels, side, side).contiguous(memory_format=torch.channels_last)

    rows, wide, narrow = sizes.t5_rows, sizes.t5_mlp, sizes.t5_hidden
    cases = [
        (f'layer_norm_modulate.{sizes.image}x{h}', 4 * sizes.image * h, modulated, lambda: (random(sizes.image, h), random(1, h), random(1, h))),
        (f'qk_norm_rope.{tokens}x{3 * h}', 12 * tokens * h + 4 * tokens * head, normed_and_turned,
         lambda: (random(tokens, 3 * h), random(head), random(head), angles(), angles())),
        (f'gelu_mul.{rows}x{wide}', 6 * rows * wide, lambda gate, up: F.gelu(gate, approximate='tanh') * up, lambda: (random(rows, wide), random(rows, wide))),
        (f'rms_norm.{rows}x{narrow}', 4 * rows * narrow, lambda x, w: F.rms_norm(x, (narrow,), w, eps=1e-6), lambda: (random(rows, narrow), random(narrow))),
    ]
    cases += [(f'group_norm.{side * side}x{c}', 4 * side * side * c, lambda x, w, b: F.silu(F.group_norm(x, 32, w, b, 1e-6)),
               lambda side=side, c=c: (pixels(side, c), random(c), random(c))) for side, c in sizes.norms]

    def make(function, operands, variant):
        given = operands()
        called = torch.compile(function, dynamic=False) if variant == 'compile' else function
        return lambda: called(*given)

    for name, size, function, operands in cases:
        for variant in ('eager', 'compile'):
            yield Case(name, variant, ('gbps', size), lambda a=(function, operands, variant): make(*a))


def autoencoders(device, sizes):
    torch = device.torch

    def model(kind):
        try:
            from diffusers import AutoencoderKL
        except ImportError as e:
            raise Skip(f'diffusers: {e}') from e
        levels = len(sizes.vae_channels)
        with torch.device(kind):
            return AutoencoderKL(in_channels=3, out_channels=3, latent_channels=16, block_out_channels=sizes.vae_channels, layers_per_block=2,
                                 down_block_types=('DownEncoderBlock2D',) * levels, up_block_types=('UpDecoderBlock2D',) * levels, sample_size=1024,
                                 scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False).eval()

    def latents(kind):
        return torch.randn(1, 16, sizes.pixels // 8, sizes.pixels // 8, device=kind)

    def flops():
        from torch.utils.flop_counter import FlopCounterMode
        with FlopCounterMode(display=False) as counter:
            model('meta').decode(latents('meta'))
        return counter.get_total_flops()

    def make(compiled):
        vae = model(device.kind).to(torch.bfloat16).to(memory_format=torch.channels_last)
        z = latents(device.kind).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        decode = torch.compile(vae.decoder, dynamic=False) if compiled else vae.decoder
        return lambda: decode(z)

    for variant in ('eager', 'compile'):
        yield Case(f'vae.decode.{sizes.label}', variant, lambda: ('tflops', flops()), lambda v=variant: make(v == 'compile'), False)


def steps(device, sizes):
    """One step of the transformer. One model serves dev and schnell: they differ in one small embedder and in their number of text tokens."""
    torch = device.torch
    kept = {}

    def model(kind):
        try:
            from diffusers import FluxTransformer2DModel
        except ImportError as e:
            raise Skip(f'diffusers: {e}') from e
        with torch.device('meta'):
            flux = FluxTransformer2DModel(in_channels=64, num_layers=sizes.double, num_single_layers=sizes.single, attention_head_dim=sizes.head_dim,
                                          num_attention_heads=sizes.heads, joint_attention_dim=sizes.context, pooled_projection_dim=sizes.pooled,
                                          guidance_embeds=True).to(torch.bfloat16).eval()
        if buffers := [name for name, _ in flux.named_buffers()]:
            raise Skip(f'this diffusers keeps buffers that random numbers would spoil: {buffers}')
        size = sum(p.numel() * 2 for p in flux.parameters())
        free, where = (device.free(), 'on the device') if kind == device.kind else (host_free(), 'in host memory')
        if size * 1.15 > free:
            raise Skip(f'{size / GIB:.1f} GiB of weights, {free / GIB:.1f} GiB free {where}')
        flux = flux.to_empty(device=kind)
        noise = (torch.randn(2**24, device=kind) * 0.02).to(torch.bfloat16)  # drawn once: 12 billion draws take a CPU minutes
        for parameter in flux.parameters():
            flat = parameter.view(-1)
            for part in flat.split(noise.numel()):
                part.copy_(noise[:part.numel()])
        return flux

    def offloaded(variant):
        if not device.cuda:
            raise Skip('group offload needs a GPU')
        flux = model('cpu')
        if not hasattr(flux, 'enable_group_offload'):
            raise Skip('this diffusers has no group offload')
        # With a stream diffusers keeps a pinned copy of every weight.
        if sum(p.numel() * 2 for p in flux.parameters()) * 1.1 > host_free():
            raise Skip('host memory has no room for the pinned copy')
        blocks = {'offload_type': 'block_level', 'num_blocks_per_group': 1} if variant.endswith('block') else {'offload_type': 'leaf_level'}
        flux.enable_group_offload(onload_device=torch.device('cuda'), offload_device=torch.device('cpu'), use_stream=True, record_stream=True, **blocks)
        return flux

    def inputs(text):
        side = int(sizes.image**0.5)
        ids = torch.zeros(sizes.image, 3, device=device.kind)
        ids[:, 1], ids[:, 2] = (torch.arange(sizes.image, device=device.kind) // side, torch.arange(sizes.image, device=device.kind) % side)

        def random(*shape):
            return torch.randn(*shape, device=device.kind).to(torch.bfloat16)
        half = torch.tensor([0.5], device=device.kind).to(torch.bfloat16)
        return dict(hidden_states=random(1, sizes.image, 64), encoder_hidden_states=random(1, text, sizes.context), pooled_projections=random(1, sizes.pooled),
                    timestep=half, guidance=half * 7, img_ids=ids, txt_ids=torch.zeros(text, 3, device=device.kind), return_dict=False)

    def make(variant, text):
        given = inputs(text)
        kind = variant if variant.startswith('group_offload') else 'resident'
        if kind not in kept:
            kept.clear()  # there may not be room for two
            device.clean()
            kept[kind] = model(device.kind) if kind == 'resident' else offloaded(kind)
        flux = kept[kind]
        if variant == 'compile':
            flux = torch.compile(flux, dynamic=False)
        return lambda: flux(**given)

    for variant in ('eager', 'compile', 'group_offload_block', 'group_offload_leaf'):
        for name, text in sizes.texts.items():
            full = f'step.{name}.{sizes.label}' + ('.offload' if variant.startswith('group_offload') else '')
            yield Case(full, variant, ('tflops', sizes.step_flops(text)), lambda v=variant, t=text: make(v, t), False)


def perform(device, case):
    result = {'name': case.name, 'variant': case.variant}
    device.clean()
    try:
        run = case.make()
        samples = device.measure(run, case.kernel)
        best, median = min(samples), statistics.median(samples)
        result.update(seconds=best if case.kernel else median, best=best, median=median, samples=len(samples))
        unit, amount = case.work() if callable(case.work) else case.work
        result[unit] = amount / result['seconds'] / (1e12 if unit == 'tflops' else 1e9)
        if device.cuda:
            result['peak_bytes'] = device.peak()
    except Exception as e:  # a missing kernel, package or gigabyte shall not end the run; it is said in the line and again at the end
        result['skipped'] = ' '.join(f'{type(e).__name__}: {e}'.split())[:200] if not isinstance(e, Skip) else str(e)
    return result


def read_ours(path):
    """Name -> the engine's line with that name; the last one where a file was appended to."""
    ours = {}
    with open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.startswith('{'):
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as e:
                raise ValueError(f'{path}:{number}: {e}') from e
            measures = [entry[key] for key in ('seconds', 'tflops', 'gbps') if key in entry]
            if 'name' in entry and measures:
                if not all(isinstance(m, (int, float)) and m >= 0 for m in measures) or entry.get('seconds', 1) == 0:
                    raise ValueError(f'{path}:{number}: seconds, tflops and gbps must be positive numbers')
                ours[entry['name']] = entry
    if not ours:
        raise ValueError(f'{path}: no line with "name" and "seconds", "tflops" or "gbps"')
    return ours


def speed(ours, theirs):
    """How many times as fast ours is."""
    if 'seconds' in ours:
        return theirs['seconds'] / ours['seconds']
    return next((ours[unit] / theirs[unit] for unit in ('tflops', 'gbps') if unit in ours and unit in theirs), None)


def pairs(results, ours):
    """(our name, ours, theirs) of the same name; what is offloaded there stands against every budget here: step.dev.1024.8G and its like."""
    for r in results:
        if 'seconds' in r:
            budgets = r['name'][:-len('offload')] if r['name'].endswith('.offload') else None
            for name, entry in ours.items():
                if (name == r['name'] or budgets and name.startswith(budgets)) and speed(entry, r) is not None:
                    yield name, entry, r


def table(results, ours):
    lines = [f'{"case":34} {"variant":20} {"ms":>10} {"median ms":>10} {"rate":>14} {"peak GiB":>9}']
    for r in results:
        line = f'{r["name"]:34} {r["variant"]:20} '
        if 'skipped' in r:
            lines.append(line + f'SKIPPED: {r["skipped"]}')
            continue
        rate = f'{r["tflops"]:.4g} TFLOPS' if 'tflops' in r else f'{r["gbps"]:.4g} GB/s'
        peak = f'{r["peak_bytes"] / GIB:.2f}' if 'peak_bytes' in r else '-'
        lines.append(line + f'{r["seconds"] * 1e3:10.3f} {r["median"] * 1e3:10.3f} {rate:>14} {peak:>9}')
    if skipped := sum('skipped' in r for r in results):
        lines.append(f'SKIPPED: {skipped} of {len(results)} cases, for the reasons above')
    if ours:
        lines += ['', f'{"ours":34} {"beside":20} {"ours ms":>10} {"theirs ms":>10} {"speed ours/theirs":>18}']
        worst = {}
        for name, entry, r in pairs(results, ours):
            times = speed(entry, r)
            worst[name] = min(worst.get(name, times), times)
            mine = f'{entry["seconds"] * 1e3:10.3f}' if 'seconds' in entry else f'{"-":>10}'
            lines.append(f'{name:34} {r["variant"]:20} {mine} {r["seconds"] * 1e3:10.3f} {times:18.2f}')
        behind = [f'{name} {times:.2f}' for name, times in worst.items() if times < 1]
        lines.append(f'ours behind the best variant: {", ".join(behind) or "nowhere"}')
        if alone := sorted(set(ours) - set(worst)):
            lines.append(f'ours without a peer here: {", ".join(alone)}')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--tiny', action='store_true', help='a small model: a test of this script')
    parser.add_argument('--cold', action='store_true', help='overwrite the L2 cache before each call of a kernel')
    parser.add_argument('--only', action='append', metavar='PATTERN', help='cases whose name matches, such as linear.*; may be given again')
    parser.add_argument('--ours', metavar='FILE', help="the engine's JSON lines, to compare with")
    args = parser.parse_args()
    if args.device == 'cpu' and not args.tiny:
        parser.error('--device cpu is for --tiny: FLUX at full size would take hours')
    ours = {}
    if args.ours:
        try:
            ours = read_ours(args.ours)
        except (OSError, ValueError) as e:
            parser.error(str(e))
    try:
        import torch
    except ImportError as e:
        print(f'SKIPPED: torch cannot be imported ({e})')
        return 0
    if args.device == 'cuda' and not torch.cuda.is_available():
        print(f'SKIPPED: torch {torch.__version__} finds no CUDA device (built for CUDA {torch.version.cuda})')
        return 0
    warnings.filterwarnings('ignore', module=r'torch\._dynamo')
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    context = {'torch': torch.__version__, 'device': args.device, 'tiny': args.tiny, 'cold': args.cold}
    try:
        import diffusers
        diffusers.utils.logging.set_verbosity_error()
        context['diffusers'] = diffusers.__version__
    except ImportError:
        pass
    if args.device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        context.update(device=properties.name, capability=[properties.major, properties.minor], processors=properties.multi_processor_count,
                       memory_bytes=properties.total_memory, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    print(json.dumps({'context': context}), flush=True)

    device, sizes = Device(torch, args.device, args.tiny, args.cold), Tiny() if args.tiny else Sizes()
    results = []
    for family in (copies, linears, attentions, convolutions, elementwise, autoencoders, steps):
        for case in family(device, sizes):
            if not args.only or any(fnmatch.fnmatch(case.name, pattern) for pattern in args.only):
                results.append(perform(device, case))
                print(json.dumps(results[-1]), flush=True)
    if not results:
        parser.error(f'no case is named like {", ".join(args.only)}')
    print(table(results, ours), file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
