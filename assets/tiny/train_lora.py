"""Trains a LoRA that makes the small FLUX draw pixel art, and saves it in the words of two trainers. Usage: train_lora.py MODEL_DIR FLUX_TINY.safetensors CPU_SECONDS OUT   (after prepare.py and pack.py)
MODEL_DIR gives the modules and tokenizers, the single file the weights. Writes OUT-lora.safetensors (Kohya's names), OUT-lora-diffusers.safetensors (diffusers' names, the same change) and OUT.png (without, with).
The pictures are the training pictures as 16 x 16 big pixels of few colours: 8 x 8 blocks, which is the autoencoder's grid; smaller ones come out of its decoder blurred. Pairs of rank RANK (7)
for attention and MLP of the image's stream and of the single blocks; text encoders, text stream and modulation stay as they are. With MEASURE=1 nothing is trained: the two files are read, drawn and measured."""
import json, math, os, random, re, sys, time
import numpy as np
import torch
import torch.nn.functional as F
import pack as single
from diffusers import FluxPipeline
from names import table
from PIL import Image
from safetensors.torch import load_file
from train_flux import COLOURS, NAMES, caption, encode, pack, times, velocity

RANK, BLOCK, LEVELS = int(os.environ.get('RANK', 7)), 8, 6
ALPHA = 2 * RANK
TARGETS = re.compile(r'(double_blocks\.\d+\.img_(attn\.(qkv|proj)|mlp\.[02])|single_blocks\.\d+\.linear[12])\.weight')
PALETTE = torch.tensor(list(COLOURS.values())) / 255

def enlarge(x): return F.interpolate(x, scale_factor=BLOCK, mode='nearest')
def blocks(x): return F.avg_pool2d(x, BLOCK)

def pixel_art(rgba, ground):
    """Pictures [n, 4, h, w] on ground colours [n, 3], as big pixels. A block shows the ground or the thing, whichever has more of it; its colour leans to what stands out
    from the surroundings (eyes, stripes), as a person would choose it, and is one of LEVELS ** 3."""
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    share = blocks(alpha)
    around = F.avg_pool2d(blocks(rgb * alpha), 3, 1, 1) / F.avg_pool2d(share, 3, 1, 1).clamp(min=1e-3)
    weight = alpha * ((rgb - enlarge(around)).norm(dim=1, keepdim=True) + 0.02) ** 2
    colour = blocks(rgb * weight) / blocks(weight).clamp(min=1e-6)
    colour = (colour * (LEVELS - 1)).round() / (LEVELS - 1)
    return enlarge(torch.where(share > 0.45, colour, ground[:, :, None, None]))

@torch.no_grad()
def latents(vae):
    """Every picture on three grounds (the three pictures of a thing share the nine out), styled and encoded, once: (Z [N, 3, 16, 16, 16], colours [N, 3])."""
    if not os.path.exists('lora_latents.pt'):
        A = torch.from_numpy(np.load('rgba.npy'))
        colours = torch.stack([torch.randperm(len(NAMES)) for _ in range(math.ceil(len(A) / 3))]).view(-1, 3)[:len(A)]
        Z = torch.empty(len(A), 3, 16, 16, 16)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            for i, a in enumerate(A):
                x = pixel_art((a.float() / 255).permute(2, 0, 1)[None].expand(3, -1, -1, -1), PALETTE[colours[i]])
                Z[i] = vae.encode(x * 2 - 1).latent_dist.mode().float()
        torch.save((Z, colours), 'lora_latents.pt')
    return torch.load('lora_latents.pt')

class Pair(torch.nn.Module):
    """A linear layer with some rows of a pair beside it; the parts of a fused layer (q, k, v) share their A."""
    def __init__(self, base, a, b, rows):
        super().__init__(); self.base, self.rows = base, rows; self.pair = [a, b]  # a list, so that the parameters are nobody's
    def forward(self, x): a, b = self.pair; return self.base(x) + F.linear(F.linear(x, a), b[self.rows]) * (ALPHA / RANK)

def attach(dit):
    """{BFL's layer: (A, B, [(diffusers' module, rows)])}, each beside its layer."""
    c, out = dit.config, {}
    width = c.num_attention_heads * c.attention_head_dim
    for name, parts, sizes in table(c.num_layers, c.num_single_layers, 4 * width, width):
        if not TARGETS.fullmatch(name): continue
        parts = [p.removesuffix('.weight') for p in parts]; bases = [dit.get_submodule(p) for p in parts]
        a = torch.nn.Parameter(torch.randn(RANK, bases[0].in_features) / bases[0].in_features ** 0.5)
        b = torch.nn.Parameter(torch.zeros(sum(l.out_features for l in bases), RANK)); ends = np.cumsum([0] + [l.out_features for l in bases]).tolist()
        rows = [slice(i, j) for i, j in zip(ends, ends[1:])]
        for p, base, r in zip(parts, bases, rows):
            parent, _, last = p.rpartition('.'); setattr(dit.get_submodule(parent), last, Pair(base, a, b, r))
        out[name.removesuffix('.weight')] = (a, b, list(zip(parts, rows)))
    return out

def kohya(name): return 'lora_unet_' + name.replace('.', '_')

def save(out, pairs, info):
    """Both files, in F16: Kohya's with alpha, diffusers' with alpha / rank multiplied into B (a power of two, so that both make the very same change)."""
    one, two = {}, {}
    for name, (a, b, parts) in pairs.items():
        a, b = a.detach().half(), b.detach().half()
        one[kohya(name) + '.lora_down.weight'], one[kohya(name) + '.lora_up.weight'], one[kohya(name) + '.alpha'] = a, b, torch.tensor(float(ALPHA)).half()
        for module, rows in parts: two[f'transformer.{module}.lora_A.weight'], two[f'transformer.{module}.lora_B.weight'] = a, b[rows] * (ALPHA / RANK)
    about = {'modelspec.title': 'flux-tiny, pixel art', 'modelspec.description': 'Draws in 16 x 16 big pixels; for the embedded model flux-tiny alone', 'modelspec.resolution': '128x128'}
    header = {'ss_network_module': 'networks.lora_flux', 'ss_network_dim': str(RANK), 'ss_network_alpha': f'{ALPHA:.1f}', 'ss_base_model_version': 'flux1', 'modelspec.architecture': 'flux-1-dev/lora'}
    sizes = [single.write(f'{out}-lora.safetensors', one, about | header | info), single.write(f'{out}-lora-diffusers.safetensors', two, {'format': 'pt'} | about)]
    print('files of', *sizes, 'bytes')

def read(out, pairs):
    """The saved values back into the pairs, from the one file; the other one has to say the same."""
    one, two = load_file(f'{out}-lora.safetensors'), load_file(f'{out}-lora-diffusers.safetensors')
    with torch.no_grad():
        for name, (a, b, parts) in pairs.items():
            a.copy_(one[kohya(name) + '.lora_down.weight']); b.copy_(one[kohya(name) + '.lora_up.weight'])
            for module, rows in parts:
                assert torch.equal(two[f'transformer.{module}.lora_A.weight'].float(), a) and torch.equal(two[f'transformer.{module}.lora_B.weight'].float(), b[rows] * (ALPHA / RANK))

def blocky(x): return -10 * torch.log10(((x - enlarge(blocks(x))) ** 2).mean((1, 2, 3)).clamp(min=1e-10))

def measure(pipe, pairs, out, steps=16, guidance=4):
    """The twelve prompts of pack.py without and with it, same noise; how near each picture is to its own block averages."""
    draw = lambda: torch.from_numpy(single.draw(pipe, single.PROMPTS, steps, guidance)).permute(0, 3, 1, 2)
    kept = [b.detach().clone() for _, b, _ in pairs.values()]
    after = draw()
    for _, b, _ in pairs.values(): b.data.zero_()
    before = draw()
    for (_, b, _), w in zip(pairs.values(), kept): b.data.copy_(w)
    for name, x in (('without', before), ('with', after)): print(f'{name}: PSNR of {len(x)} pictures against their averages over {BLOCK} x {BLOCK}: mean {blocky(x).mean():.1f} dB  ({" ".join(f"{p:.1f}" for p in blocky(x))})')
    sheet = torch.cat([torch.cat([torch.cat(list(x[k:k + 6]), 2) for x in (before, after)], 1) for k in (0, 6)], 1)
    Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy()).save(out + '.png')

if __name__ == '__main__':
    torch.manual_seed(9); random.seed(9)
    folder, file, budget, out = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
    _, back, shape = single.collect(folder)
    pipe = single.unpack_into(FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32), file, back, shape); pipe.set_progress_bar_config(disable=True)
    for part in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae): part.requires_grad_(False)
    m, pairs = dict(dit=pipe.transformer, t5=pipe.text_encoder_2, clip=pipe.text_encoder), attach(pipe.transformer)
    if os.environ.get('MEASURE') != '1':
        meta, (Z, colours), n, cpu, step, log = json.load(open('meta.json')), latents(pipe.vae), int(os.environ.get('BATCH', 16)), time.process_time(), 0, []
        shift, scale = pipe.vae.config.shift_factor, pipe.vae.config.scaling_factor
        empty = [x.expand(n, *x.shape[1:]) for x in encode(m, [''])]
        rate = float(os.environ.get('LR', 2e-3)); opt = torch.optim.AdamW([w for a, b, _ in pairs.values() for w in (a, b)], lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        while (fraction := (time.process_time() - cpu) / budget) < 1:
            for g in opt.param_groups: g['lr'] = rate * min(1, (step + 1) / 50) * min(1, 1.5 * (1 - fraction))
            i, c = torch.randint(0, len(Z), (n,)), torch.randint(0, 3, (n,))
            captions = ['' if random.random() < 0.08 else caption(meta[a], NAMES[colours[a, b]]) for a, b in zip(i.tolist(), c.tolist())]
            x0 = pack((Z[i, c] - shift) * scale); noise = torch.randn_like(x0); t = times(n)
            x = (1 - t)[:, None, None] * x0 + t[:, None, None] * noise
            # As in train_flux.py: what an answer at guidance w says about guidance 1 is compared with the data; the ground is this model's own answer to the empty caption.
            w = torch.tensor([1.0 if not s or random.random() < 0.4 else random.uniform(1, 5) for s in captions]); guided = (w > 1).nonzero()[:, 0]
            with torch.autocast('cpu', dtype=torch.bfloat16):
                v = velocity(m, x, *encode(m, captions), t, w).float()
                if len(guided):
                    with torch.no_grad(): u = velocity(m, x[guided], *(e[guided] for e in empty), t[guided], torch.ones(len(guided))).float()
                    v = v.index_put((guided,), u + (v[guided] - u) / w[guided, None, None])
            each = ((v - (noise - x0)) ** 2).mean((1, 2)); (w * each).mean().backward()
            torch.nn.utils.clip_grad_norm_([p for g in opt.param_groups for p in g['params']], 1.0)
            opt.step(); opt.zero_grad(); log.append(each.mean().item()); step += 1
            if step % 50 == 0: print(step, f'cpu {time.process_time() - cpu:.0f} s, loss {np.mean(log[-50:]):.4f}', flush=True)
        save(out, pairs, {'ss_steps': str(step)})
    read(out, pairs)
    measure(pipe, pairs, out)
