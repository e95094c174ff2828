"""LoRA files of FLUX.2 in the names of every trainer, for the small geometry of `klein_base`, and what the model answers with them.

    python make_flux2_lora_goldens.py OUT_DIR

Writes `klein_NAME.lora.safetensors` and `klein_expected.safetensors` into OUT_DIR. Reads klein_base.safetensors from the folder above. Needs what
make_lora_goldens.py needs. Everything is float32 on the CPU, on one thread.

Each answer is that of diffusers (`Flux2LoraLoaderMixin.load_lora_weights`), compared here with merged weights. LoHa and DoRA are of merged weights
alone, by the formulas of LyCORIS: diffusers cannot read them for FLUX.2.
"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..'))

import diffusers
import peft
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from make_flux2_goldens import build, flux2_shapes, flux2_state
from make_goldens import load
from make_lora_goldens import DTYPES, save
from safetensors import safe_open
from safetensors.torch import load_file

RANK = 4
AGREE = 5e-6  # two orders of summation in f32, relative to the largest value


def modules(config):
    """{diffusers' module: (BFL's layer, the row of it that each row of the module is)}."""
    shapes = flux2_shapes(config)
    names = sorted(shapes)
    sent = {n: (100_000 * i + torch.arange(shapes[n][0]))[:, None] for i, n in enumerate(names)}
    out = {}
    for module, rows in flux2_state(sent, config).items():
        if 'norm_q' not in module and 'norm_k' not in module and 'norm_added' not in module:
            out[module.removesuffix('.weight')] = (names[int(rows[0, 0]) // 100_000].removesuffix('.weight'), rows[:, 0] % 100_000)
    return out


class File:
    """A file in the making; `changes` maps the weights by name to the changed ones (f64)."""

    def __init__(self, name, dtype, seed, metadata=()):
        self.name, self.dtype, self.metadata = name, DTYPES[dtype], {'format': 'pt'} | dict(metadata)
        self.tensors, self.changes, self.draw = {}, [], torch.Generator().manual_seed(seed)

    def random(self, *shape, gain=1.0):
        return (torch.randn(*shape, generator=self.draw) * gain).to(self.dtype)

    def store(self, key, t):
        self.tensors[key] = t.contiguous()
        return t.double()

    def pair(self, layer, cols, rows, key, suffixes, alpha=None, gain=0.15):
        a = self.store(key + suffixes[0], self.random(RANK, cols, gain=cols**-0.5))
        b = self.store(key + suffixes[1], self.random(len(rows), RANK, gain=gain / RANK**0.5 / (1 if alpha is None else alpha / RANK)))
        factor = 1.0
        if alpha is not None:
            factor = self.store(key + '.alpha', torch.tensor(float(alpha), dtype=self.dtype)).item() / RANK
        delta = factor * (b @ a)
        self.change(layer, rows, lambda w, s: w + s * delta)

    def change(self, layer, rows, how):
        self.changes.append((layer + '.weight', rows, how))

    def merged(self, w, strength):
        w = {k: t.double().clone() for k, t in w.items()}
        for name, rows, how in self.changes:
            w[name][rows] = how(w[name][rows], strength)
        return {k: t.float() for k, t in w.items()}


def files(config):
    shapes = {n.removesuffix('.weight'): s for n, s in flux2_shapes(config).items() if len(s) == 2}
    theirs = modules(config)
    every = lambda layer: torch.arange(shapes[layer][0])
    flat = lambda name: name.replace('.', '_')
    kohya, lora = ('.lora_down.weight', '.lora_up.weight'), ('.lora_A.weight', '.lora_B.weight')
    blocks = [n for n in shapes if 'blocks.' in n]
    out = []

    def new(*args, **more):
        out.append(File(*args, seed=200 + len(out), **more))
        return out[-1]

    # musubi-tuner and Kohya: BFL's names with underscores.
    x = new('klein_kohya', 'F16', metadata={'ss_network_module': 'networks.lora_flux_2', 'ss_network_dim': str(RANK)})
    for n in blocks + ['img_in', 'txt_in', 'time_in.in_layer', 'time_in.out_layer', 'final_layer.linear']:
        x.pair(n, shapes[n][1], every(n), 'lora_unet_' + flat(n), kohya, alpha=2)

    # ai-toolkit: BFL's names in PEFT's words. diffusers does not swap the halves of final_layer.adaLN_modulation.1, which it must.
    x = new('klein_aitoolkit', 'BF16', metadata={'software': json.dumps(dict(name='ai-toolkit'))})
    for n in [n for n in shapes if 'adaLN' not in n]:
        x.pair(n, shapes[n][1], every(n), 'diffusion_model.' + n, lora)

    # diffusers: q, k and v apart in the double blocks, `to_qkv_mlp_proj` fused in the single ones.
    x = new('klein_diffusers', 'BF16')
    for module, (layer, rows) in theirs.items():
        x.pair(layer, shapes[layer][1], rows, 'transformer.' + module, lora)

    # Only some of q, k, v; diffusers' names behind ai-toolkit's prefix; PEFT's own prefix with BFL's names.
    x = new('klein_uneven', 'F32')
    for module in ('transformer_blocks.0.attn.to_q', 'transformer_blocks.0.attn.to_v', 'transformer_blocks.1.attn.add_k_proj',
                   'single_transformer_blocks.0.attn.to_out'):
        layer, rows = theirs[module]
        x.pair(layer, shapes[layer][1], rows, 'diffusion_model.' + module, lora, gain=0.4)
    x = new('klein_base_model', 'F16')
    for n in [n for n in blocks if 'mlp' not in n]:
        x.pair(n, shapes[n][1], every(n), 'base_model.model.' + n, lora, gain=0.4)

    # The header has alpha, which diffusers passes on to PEFT.
    attention = [m for m in theirs if '.attn.' in m]
    header = peft.LoraConfig(r=RANK, lora_alpha=10, target_modules=attention, use_rslora=True).to_dict()
    header = {f'transformer.{k}': sorted(v) if isinstance(v, set) else getattr(v, 'value', v) for k, v in header.items()}
    x = new('klein_config', 'BF16', metadata={'lora_adapter_metadata': json.dumps(header, sort_keys=True)})
    for module in attention:
        layer, rows = theirs[module]
        a = x.store(f'transformer.{module}.lora_A.weight', x.random(RANK, shapes[layer][1], gain=shapes[layer][1]**-0.5))
        b = x.store(f'transformer.{module}.lora_B.weight', x.random(len(rows), RANK, gain=0.04))
        x.change(layer, rows, lambda w, s, d=10 / RANK**0.5 * (b @ a): w + s * d)

    # LoKr of ai-toolkit on fused layers, and of LyCORIS on diffusers' modules: factors whole and decomposed.
    def kron(x, layer, rows, key, outer, rank, alpha):
        o, i = outer
        inner = (len(rows) // o, shapes[layer][1] // i)
        w1 = x.store(key + '.lokr_w1', x.random(o, i, gain=0.3))
        if rank is None:
            w2 = x.store(key + '.lokr_w2', x.random(*inner, gain=0.06))
            factor = 1.0
        else:
            w2 = x.store(key + '.lokr_w2_a', x.random(inner[0], rank, gain=0.3)) @ x.store(key + '.lokr_w2_b', x.random(rank, inner[1], gain=0.15))
            factor = alpha / rank
        x.store(key + '.alpha', torch.tensor(float(alpha), dtype=x.dtype))
        delta = factor * torch.kron(w1, w2)
        x.change(layer, rows, lambda w, s: w + s * delta)

    x = new('klein_lokr', 'F32')
    for n in blocks:
        kron(x, n, every(n), 'diffusion_model.' + n, (4, 4), 3 if 'qkv' in n or 'linear1' in n else None, 2)
    x = new('klein_lokr_lycoris', 'F32')
    for module in ('transformer_blocks.0.attn.to_q', 'transformer_blocks.1.attn.add_v_proj', 'transformer_blocks.1.ff_context.linear_in',
                   'single_transformer_blocks.0.attn.to_qkv_mlp_proj', 'single_transformer_blocks.0.attn.to_out'):
        layer, rows = theirs[module]
        kron(x, layer, rows, 'lycoris_' + flat(module), (2, 2), 5, 4)

    # LoHa and DoRA, merged here.
    x = new('klein_loha', 'F32')
    for n in blocks:
        (r, c), key, alpha = shapes[n], 'lora_unet_' + flat(n), 2
        parts = [x.store(f'{key}.hada_w{s}', x.random(*shape, gain=0.3))
                 for s, shape in (('1_a', (r, RANK)), ('1_b', (RANK, c)), ('2_a', (r, RANK)), ('2_b', (RANK, c)))]
        x.store(key + '.alpha', torch.tensor(float(alpha)))
        delta = alpha / RANK * (parts[0] @ parts[1]) * (parts[2] @ parts[3])
        x.change(n, every(n), lambda w, s, d=delta: w + s * d)
    x = new('klein_dora', 'F32')
    for n in [n for n in blocks if 'mlp' not in n]:
        (r, c), key = shapes[n], 'diffusion_model.' + n
        a, b = x.store(key + '.lora_A.weight', x.random(RANK, c, gain=c**-0.5)), x.store(key + '.lora_B.weight', x.random(r, RANK, gain=0.1))
        m = x.store(key + '.lora_magnitude_vector', 1 + 0.6 * torch.rand(r, generator=x.draw))
        x.change(n, every(n), lambda w, s, d=b @ a, m=m: w + s * (m[:, None] / (w + d).norm(dim=1, keepdim=True) * (w + d) - w))
    return out


public = lambda d: {k: v for k, v in d.items() if not k.startswith('_')}


def velocity(transformer, given):
    rows, cols = given['flux2.grid'].tolist()
    ids = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, rows, cols))
    text = given['flux2.txt'][None]
    return transformer(hidden_states=given['flux2.img'][None], encoder_hidden_states=text, timestep=given['flux2.timestep'], img_ids=ids,
                       txt_ids=Flux2KleinPipeline._prepare_text_ids(text), guidance=None, return_dict=False)[0][0]


def by_diffusers(c, seed, file, folder, given, strength):
    pipe = Flux2KleinPipeline(tokenizer=None, **build(c, seed)[1])
    path = os.path.join(folder, file.name + '.lora.safetensors')
    if 'lora_adapter_metadata' in file.metadata:
        pipe.load_lora_weights(folder, weight_name=os.path.basename(path), adapter_name='x')
    else:  # in f32: diffusers multiplies by alpha in the type of the file
        pipe.load_lora_weights({k: t.float() for k, t in load_file(path).items()}, adapter_name='x')
    pipe.transformer.set_adapters(['x'], [strength])
    return velocity(pipe.transformer, given)


def main(folder):
    os.makedirs(folder, exist_ok=True)
    source = os.path.join(HERE, '..', 'klein_base.safetensors')
    with safe_open(source, 'pt') as f:
        c, seed = json.loads(f.metadata()['config']), int(f.metadata()['seed'])
    given = load_file(source)
    w, m = build(c, seed)
    base = velocity(m['transformer'], given)
    off = lambda x, y: ((x - y).abs().max() / y.abs().max()).item()
    assert off(base, given['flux2.velocity']) < 1e-6
    out, facts = {}, {}
    for file in files(c['transformer']):
        size = save(os.path.join(folder, file.name + '.lora.safetensors'), file.tensors, file.metadata)
        for strength in (1.0, 0.6) if file.name in ('klein_diffusers', 'klein_dora') else (1.0,):
            state = flux2_state(file.merged(w['flux2'], strength), c['transformer'])
            mine = velocity(load(Flux2Transformer2DModel(**public(c['transformer'])), state), given)
            key = file.name + ('' if strength == 1 else f'_at_{strength}')
            if file.name in ('klein_loha', 'klein_dora'):
                facts[key] = 'merged weights'
            else:
                theirs = by_diffusers(c, seed, file, folder, given, strength)
                facts[key] = f'diffusers; merged weights differ by {off(theirs, mine):.1e}'
                assert off(theirs, mine) < AGREE, (key, facts[key])
                mine = theirs
            changed = ((mine - base).norm() / base.norm()).item()
            assert 0.05 < changed < 0.8, (key, changed)
            facts[key] += f'; changes the velocity by {changed:.0%}; {len(file.changes)} layers'
            out[key] = mine
            print(key, size, facts[key], flush=True)
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, peft=peft.__version__)
    save(os.path.join(folder, 'klein_expected.safetensors'), out, facts | versions)


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main(sys.argv[1])
