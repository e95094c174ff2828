"""LoRA files in every trainer's words for the small geometry of `b_dev`, and what the model answers with them.

    python make_lora_goldens.py OUT_DIR

Writes `NAME.lora.safetensors`, `expected.safetensors` and `README.md` into OUT_DIR. Reads make_goldens.py and b_dev.safetensors, whose weights, inputs and token
ids it uses, from the folder above, and the lists of real keys in tests/data/lora-keys, against which what is written is held.
Needs numpy, torch, diffusers, transformers, accelerate and peft. Everything is float32 on the CPU, on one thread.

Each answer is computed twice: by diffusers, which reads the file and keeps A and B beside the weights, and by this script, which adds
alpha / rank * B A to the rows of BFL's weights that it had in mind when it wrote the file. The two have to agree; what is stored is diffusers' answer,
for T5 that of peft's layers.
"""
import inspect
import json
import os
import platform
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..'))

import diffusers
import numpy as np
import peft
import torch
import transformers
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from make_goldens import build, clip_shapes, flux_shapes, flux_state, load, t5_shapes
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

RANK = 4
DTYPES = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}
AGREE = 5e-6  # two orders of summation in f32, relative to the largest value
LINEAR = {'flux': flux_shapes, 'clip': clip_shapes, 't5': t5_shapes}

# ------------------------------------------------------------------------------------------------------------------- layers and rows


def linears(component, config):
    """{layer: [rows, columns]} of all matrices that are layers; BFL's names for the transformer."""
    tables = ('embedding', 'shared', 'relative_attention_bias')
    shapes = LINEAR[component](config)
    return {n.removesuffix('.weight'): s for n, s in shapes.items() if len(s) == 2 and not any(t in n for t in tables)}


def diffusers_rows(config):
    """{diffusers' module: (BFL's layer, the row of it that each row of the module is)}, found by sending numbered rows through the renaming."""
    shapes = flux_shapes(config)
    names = sorted(shapes)
    number = {n: 100_000 * i for i, n in enumerate(names)}
    sent = {n: (number[n] + torch.arange(s[0]))[:, None] if len(s) == 2 else torch.zeros(s[0], 1) for n, s in shapes.items()}
    out = {}
    for module, rows in flux_state(sent, config).items():
        if module.endswith('.weight') and 'attn.norm' not in module:
            out[module.removesuffix('.weight')] = (names[int(rows[0, 0]) // 100_000].removesuffix('.weight'), rows[:, 0] % 100_000)
    return out


# -------------------------------------------------------------------------------------------------------------------------- a LoRA


class Lora:
    """A LoRA file in the making, and what it has to do: `pieces` are (component, layer, rows, factor, B, A)."""

    def __init__(self, name, about, spelling, dtype, gain, alpha=None, metadata=(), like=None, by='diffusers', seed=0):
        self.name, self.about, self.spelling, self.dtype, self.gain, self.alpha = name, about, spelling, dtype, gain, alpha
        self.metadata, self.like, self.by = dict(metadata), like, by
        self.tensors, self.pieces, self.draw = {}, [], torch.Generator().manual_seed(seed)

    def add(self, component, layer, shape, key, rows=None, rank=RANK, alpha=None, factor=None, gain=None):
        """A random pair for `rows` (all, unless given) of a layer; A has rows of about length one, so that B alone sets the size of the change."""
        cols, rows = shape[1], torch.arange(shape[0]) if rows is None else rows
        alpha = self.alpha if alpha is None else alpha
        dtype = DTYPES[self.dtype]
        a = (torch.randn(rank, cols, generator=self.draw) / cols**0.5).to(dtype)
        b = (torch.randn(len(rows), rank, generator=self.draw) * ((gain or self.gain) / (1 if alpha is None else alpha / rank) / rank**0.5)).to(dtype)
        down, up = {'kohya': ('.lora_down.weight', '.lora_up.weight'), 'peft': ('.lora_A.weight', '.lora_B.weight'), 'xlabs': ('.down.weight', '.up.weight')}[self.spelling]
        self.tensors[key + down], self.tensors[key + up] = a, b
        if self.spelling == 'kohya' and alpha is not None:
            self.tensors[key + '.alpha'] = torch.tensor(float(alpha), dtype=dtype)
        factor = factor if factor is not None else alpha / rank if alpha is not None else 1.0
        self.pieces.append((component, layer, rows, factor, b.double(), a.double()))

    def merge_into(self, w, component, weight=1.0):
        """Adds its changes to the weights `w` (as make_goldens has them), in f64."""
        for c, layer, rows, factor, b, a in self.pieces:
            if c == component:
                full = w[layer + '.weight'] = w[layer + '.weight'].double()
                full[rows] += weight * factor * (b @ a)

    def has(self, component):
        return any(p[0] == component for p in self.pieces)


def peft_config(prefix, layers, **more):
    """peft's LoraConfig as diffusers keeps it in a file's header."""
    config = peft.LoraConfig(r=RANK, target_modules=sorted({n.split('.')[-1] for n in layers}), **more).to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else getattr(v, 'value', v) for k, v in config.items()}
    return {f'{prefix}.{k}': v for k, v in plain.items()}


def adapters(c):
    """Every dialect's LoRA for the configs `c`."""
    flux, clip, t5 = linears('flux', c['transformer']), linears('clip', c['text_encoder']), linears('t5', c['text_encoder_2'])
    modules = diffusers_rows(c['transformer'])
    h = c['transformer']['attention_head_dim'] * c['transformer']['num_attention_heads']
    blocks = [n for n in flux if n.startswith(('double', 'single'))]
    flat = lambda name: name.replace('.', '_')
    is_attention = re.compile(r'\.attn\.(to|add)_').search
    all_loras = []

    def new(*args, **more):
        all_loras.append(Lora(*args, seed=100 + len(all_loras), **more))
        return all_loras[-1]

    def put(lora, layers, prefix='', spell=lambda n: n):
        for n in layers:
            lora.add('flux', n, flux[n], prefix + spell(n))

    def put_modules(lora, names, prefix='transformer.', spell=lambda n: n, **more):
        for n in names:
            layer, rows = modules[n]
            lora.add('flux', layer, [len(rows), flux[layer][1]], prefix + spell(n), rows=rows, **more)

    def put_text(lora, component, names, prefix, spell=flat, **more):
        shapes = clip if component == 'clip' else t5
        for n in names:
            lora.add(component, n, shapes[n], prefix + spell(n), **more)

    kohya = {'ss_network_module': 'networks.lora_flux', 'ss_network_dim': str(RANK), 'ss_base_model_version': 'flux1', 'modelspec.sai_model_spec': '1.0.0',
             'modelspec.architecture': 'flux-1-dev/lora', 'modelspec.implementation': 'https://github.com/black-forest-labs/flux'}
    x = new('kohya', 'Kohya sd-scripts, all layers of the blocks, modulation included', 'kohya', 'F16', 0.2, alpha=2, like='flux_lora_kohya',
            metadata=kohya | {'ss_network_alpha': '2.0'}, by='diffusers, its fixed width of 3072 replaced')
    put(x, blocks, 'lora_unet_', flat)

    x = new('kohya_te1', 'Kohya sd-scripts, attention and linear1, the embedders (in_dims), and CLIP', 'kohya', 'BF16', 0.14, alpha=3,
            like='flux_lora_kohya_with_te1', metadata=kohya | {'ss_network_alpha': '3.0'}, by='diffusers, its fixed width of 3072 replaced and the lacking prefix of the embedders added')
    put(x, [n for n in blocks if 'attn' in n or 'linear1' in n] + [n for n in flux if '_in' in n and n not in blocks], 'lora_unet_', flat)
    put_text(x, 'clip', clip, 'lora_te1_')

    x = new('kohya_t5', 'Kohya sd-scripts with T5 (lora_te3_); of the transformer one layer', 'kohya', 'F16', 0.6, alpha=1,
            metadata=kohya | {'ss_network_alpha': '1.0'}, by='diffusers; T5, for which it has no LoRA, with peft\'s layers')
    put(x, ['double_blocks.1.img_mlp.0'], 'lora_unet_', flat)
    put_text(x, 't5', t5, 'lora_te3_', gain=0.03)

    x = new('aitoolkit', 'ai-toolkit, BFL names in PEFT words, no alpha', 'peft', 'BF16', 0.2, like='flux_lora_aitoolkit',
            metadata={'format': 'pt', 'software': json.dumps(dict(name='ai-toolkit')), 'ss_base_model_version': 'flux1'},
            by='diffusers, lora_A and lora_B renamed to lora_down and lora_up (it passes over diffusion_model...lora_A), its fixed width of 3072 replaced')
    put(x, [n for n in blocks if 'mod' not in n], 'diffusion_model.')

    x = new('diffusers', 'diffusers, all layers of the blocks; q, k, v and proj_mlp have an A each', 'peft', 'BF16', 0.2, like='flux_lora_diffusers', metadata={'format': 'pt'})
    put_modules(x, [n for n in modules if 'blocks.' in n])

    x = new('diffusers_no_proj_mlp', 'diffusers without proj_mlp, proj_out and modulation', 'peft', 'F16', 0.25, like='flux_lora_diffusers_no_proj_mlp', metadata={'format': 'pt'})
    put_modules(x, [n for n in modules if is_attention(n) or '.ff' in n])

    x = new('diffusers_uneven', 'diffusers, q, k, v covered unequally: here q and v, there k alone; ranks 4 and 2', 'peft', 'F32', 0.5, metadata={'format': 'pt'})
    put_modules(x, ['transformer_blocks.0.attn.to_q', 'transformer_blocks.0.attn.to_v', 'transformer_blocks.1.attn.add_k_proj', 'single_transformer_blocks.0.attn.to_k',
                    'single_transformer_blocks.0.proj_mlp'])
    put_modules(x, ['transformer_blocks.0.attn.add_q_proj', 'transformer_blocks.1.attn.to_v', 'single_transformer_blocks.0.attn.to_q'], rank=2)

    x = new('diffusers_ends', 'diffusers, what lies outside of the blocks: embedders, norm_out (its halves swapped in BFL\'s words), proj_out', 'peft', 'F16', 0.13, metadata={'format': 'pt'})
    put_modules(x, [n for n in modules if 'blocks.' not in n])

    special = 'transformer_blocks.1.attn.to_v'
    attention = [f'{b}.attn.to_{n}' for b in ('transformer_blocks.1', 'single_transformer_blocks.0') for n in 'qkv']
    in_clip = [n for n in clip if 'self_attn' in n]
    header = peft_config('transformer', attention, lora_alpha=8, alpha_pattern={special: 2}) | peft_config('text_encoder', in_clip, lora_alpha=6, use_rslora=True)
    x = new('diffusers_config', 'diffusers, alpha in the header (lora_adapter_metadata): 8 for the transformer but 2 for one layer; CLIP 6 by rslora', 'peft', 'BF16', 0.8,
            metadata={'format': 'pt', 'lora_adapter_metadata': json.dumps(header, indent=2, sort_keys=True)})
    put_modules(x, [n for n in attention if n != special], alpha=8)
    put_modules(x, [special], alpha=2)
    put_text(x, 'clip', in_clip, 'text_encoder.', spell=lambda n: n, factor=6 / RANK**0.5, gain=0.06)

    x = new('base_model', 'PEFT with its own prefix base_model.model., diffusers\' names, proj_out', 'peft', 'F16', 0.2, like='flux_lora_diffusers_base_model', metadata={'format': 'pt'},
            by='diffusers, load_lora_adapter with prefix="base_model.model"')
    put_modules(x, [n for n in modules if n == 'proj_out' or 'blocks.' in n and ('attn' in n or n.endswith(('net.0.proj', 'proj_mlp', 'proj_out')))], 'base_model.model.')

    x = new('xlabs', 'XLabs: processor.qkv_lora1 image, 2 text; single blocks: q, k and v of linear1, linear2', 'xlabs', 'F32', 0.35, like='flux_lora_xlabs', metadata={'format': 'pt'})
    for n in blocks:
        p = n.split('.')
        if p[-1] in ('qkv', 'proj'):
            x.add('flux', n, flux[n], f'double_blocks.{p[1]}.processor.{p[-1]}_lora{1 if p[2] == "img_attn" else 2}')
        elif p[-1] == 'linear1':
            x.add('flux', n, flux[n], f'single_blocks.{p[1]}.processor.qkv_lora', rows=torch.arange(3 * h))
        elif p[-1] == 'linear2':
            x.add('flux', n, flux[n], f'single_blocks.{p[1]}.processor.proj_lora')

    x = new('onetrainer', 'OneTrainer: attention, CLIP (te1), T5 (te2)', 'kohya', 'F16', 0.35, alpha=1, like='flux_dora_onetrainer',
            metadata={'modelspec.architecture': 'Flux.1-dev/lora', 'modelspec.sai_model_spec': '1.0.0'}, by='diffusers without the keys of T5, which it refuses; T5 with peft\'s layers')
    put_modules(x, [n for n in modules if is_attention(n)], 'lora_transformer_', flat)
    put_text(x, 'clip', [n for n in clip if 'layers.1.' in n], 'lora_te1_', gain=0.2)
    put_text(x, 't5', [n for n in t5 if 'block.2.' in n], 'lora_te2_', gain=0.12)
    return {x.name: x for x in all_loras}


def real(lora, folder):
    """Every key has to be one of the list of a real file, but for its block's number; lists of files that cover less say so by `known`."""
    known = {'kohya_te1': r'lora_unet_(img|txt|time|vector|guidance)_in', 'xlabs': r'single_blocks\.\d+\.processor\.(qkv|proj)_lora\.'}
    with open(os.path.join(folder, lora.like + '.txt')) as f:
        lists = [r'\d+'.join(re.escape(part) for part in re.split(r'\{\d+-\d+\}', line.split()[0])) for line in f]
    listed = re.compile('|'.join(lists))
    for key in lora.tensors:
        assert listed.fullmatch(key) or lora.name in known and re.match(known[lora.name], key), (lora.name, key)


# ------------------------------------------------------------------------------------------------------------------------- answers


def velocity(transformer, given):
    rows, cols = given['flux.grid'].tolist()
    ids = FluxPipeline._prepare_latent_image_ids(1, rows, cols, 'cpu', torch.float32)
    return transformer(hidden_states=given['flux.img'], encoder_hidden_states=given['flux.txt'], pooled_projections=given['flux.pooled'], timestep=given['flux.timestep'],
                       img_ids=ids, txt_ids=torch.zeros(given['flux.txt'].shape[1], 3), guidance=given['flux.guidance'], return_dict=False)[0]


def clip_pooled(m, given):
    return m(given['clip.ids'][None]).pooler_output[0]


def t5_out(m, given):
    return m(given['t5.ids'][None])[0][0]


public = lambda d: {k: v for k, v in d.items() if not k.startswith('_') and k != 'architectures'}
ANSWERS = {'flux': ('velocity', velocity), 'clip': ('clip.pooled', clip_pooled), 't5': ('t5.out', t5_out)}


def merged(component, w, c, loras, given):
    """The answer after adding what `loras` (each with a weight) change."""
    w = {k: t.clone() for k, t in w[component].items()}
    for lora, weight in loras:
        lora.merge_into(w, component, weight)
    w = {k: t.float() for k, t in w.items()}
    if component == 'flux':
        m = load(FluxTransformer2DModel(**public(c['transformer'])), flux_state(w, c['transformer']))
    elif component == 'clip':
        m = load(CLIPTextModel(CLIPTextConfig(**public(c['text_encoder']))), w)
    else:
        m = load(T5EncoderModel(T5Config(**public(c['text_encoder_2']))), w)
    return ANSWERS[component][1](m, given)


def mend_diffusers(c):
    """diffusers' reader of Kohya's files, with this geometry's width where it has FLUX.1's written into it, and with the prefix that it forgets to give the embedders,
    so that they are lost without a word."""
    h = c['transformer']['attention_head_dim'] * c['transformer']['num_attention_heads']
    source = inspect.getsource(lora_conversion_utils._convert_kohya_flux_lora_to_diffusers)
    assert source.count('dims=[3072, 3072, 3072, 12288]') == 1
    exec(source.replace('dims=[3072, 3072, 3072, 12288]', f'dims=[{h}, {h}, {h}, {4 * h}]'), vars(lora_conversion_utils))
    convert = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
    prefixed = lambda k: k if k.startswith(('transformer.', 'text_encoder.')) else 'transformer.' + k
    lora_pipeline._convert_kohya_flux_lora_to_diffusers = lambda state: {prefixed(k): t for k, t in convert(state).items()}


def read_by_diffusers(pipe, lora, path):
    """Puts a file beside the pipeline's weights as diffusers does it. In f32: diffusers multiplies by alpha in the file's type and would round."""
    tensors = {k: t.float() for k, t in load_file(path).items()}
    if lora.name == 'aitoolkit':  # the same names in Kohya's spelling of A and B, which is what ComfyUI writes
        tensors = {k.replace('lora_A', 'lora_down').replace('lora_B', 'lora_up'): t for k, t in tensors.items()}
    if lora.name == 'onetrainer':
        tensors = {k: t for k, t in tensors.items() if not k.startswith('lora_te2_')}
    if lora.name == 'kohya_t5':
        tensors = {k: t for k, t in tensors.items() if not k.startswith('lora_te3_')}
    if lora.name == 'base_model':
        pipe.transformer.load_lora_adapter(tensors, prefix='base_model.model', adapter_name=lora.name)
    elif 'lora_adapter_metadata' in lora.metadata:  # the header matters: from the file
        pipe.load_lora_weights(os.path.dirname(path), weight_name=os.path.basename(path), adapter_name=lora.name)
    else:
        pipe.load_lora_weights(tensors, adapter_name=lora.name)


def by_diffusers(c, seed, loras, folder, given):
    """The answers of the transformer and of CLIP with `loras`, each with a weight, beside the weights. A fresh model each time."""
    m = build(c, seed)[1]
    pipe = FluxPipeline(tokenizer=None, tokenizer_2=None, **m)
    for lora, _ in loras:
        read_by_diffusers(pipe, lora, os.path.join(folder, lora.name + '.lora.safetensors'))
    names, weights = [x.name for x, _ in loras], [w for _, w in loras]
    pipe.transformer.set_adapters(names, weights)
    out = {'flux': velocity(pipe.transformer, given)}
    if any(x.has('clip') for x, _ in loras):
        # The pipeline passes the weight for text encoders on; there is nothing but 1.0 among them here.
        assert weights == [1.0] and getattr(pipe.text_encoder, 'peft_config', None)
        out['clip'] = clip_pooled(pipe.text_encoder, given)
    return out


def t5_by_peft(w, c, lora, given):
    """T5 with peft's own layers: the file's pairs put into them by name."""
    m = load(T5EncoderModel(T5Config(**public(c['text_encoder_2']))), w['t5'])
    pieces = [p for p in lora.pieces if p[0] == 't5']
    config = peft.LoraConfig(r=RANK, lora_alpha=lora.alpha, target_modules=[p[1] for p in pieces])
    m = peft.inject_adapter_in_model(config, m)
    for _, layer, _, _, b, a in pieces:
        one = m.get_submodule(layer)
        one.lora_A['default'].weight.copy_(a)
        one.lora_B['default'].weight.copy_(b)
    return t5_out(m.eval(), given)


# --------------------------------------------------------------------------------------------------------------------------- files


def save(path, tensors, metadata):
    """A safetensors file whose bytes depend on its contents alone."""
    types = {torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16', torch.int64: 'I64'}
    header, blobs, at = {'__metadata__': metadata}, [], 0
    for name in sorted(tensors, key=lambda k: (-tensors[k].element_size(), tensors[k].ndim == 0, k)):
        t = tensors[name].contiguous()
        blob = t.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = dict(dtype=types[t.dtype], shape=list(t.shape), data_offsets=[at, at + len(blob)])
        blobs.append(blob)
        at += len(blob)
    head = json.dumps(header, separators=(',', ':')).encode()
    head += b' ' * (-len(head) % 8)
    with open(path, 'wb') as f:
        f.write(len(head).to_bytes(8, 'little') + head + b''.join(blobs))
    return 8 + len(head) + at


README = '''# LoRA files and what the model answers with them
Made by `python make_lora_goldens.py OUT_DIR` with {versions}. Nothing here is needed to build or to run; the tests read it.

The model is that of `../b_dev.safetensors`: its `config`, its `seed` (weights are a function of their names), its `flux.*` inputs, `t5.ids` and `clip.ids`.
Two double blocks and one single block, width {width}; f32 throughout. Each `NAME.lora.safetensors` is a file as a trainer would save it, of random values, rank {rank} where
nothing else is said; its names are those of real files (held against the lists in `tests/data/lora-keys` where there is one). A file's change is weight * alpha / rank * B A, weight * B A without alpha.

| file | type | alpha | bytes | change of the velocity | what is in it |
|---|---|---|---|---|---|
{files}

`expected.safetensors`, all F32; `change` above is the length of (velocity - base) over the length of base:

| tensor | shape | |
|---|---|---|
| `base.velocity`, `base.clip.pooled`, `base.t5.out` | | without a LoRA; equal to those of `b_dev` |
| `NAME.velocity` | as `flux.velocity` | weight 1.0 |
| `NAME.clip.pooled`, `NAME.t5.out` | as in `b_dev` | where the file has pairs for CLIP, for T5 |
{weighted}

Its metadata say for each of these how it was come by (`NAME.how`), the largest difference between diffusers' answer and that of the merged weights, relative to the largest
value (`NAME.velocity.agrees` and so on; for T5 between peft's layers and the merged weights), and for sums of files which and how much (`NAME.loras`). The worst is {worst:.1e}.

Found on the way: diffusers has FLUX.1's width written into its reader of Kohya's files and there loses the embedders (`lora_unet_img_in` and so on), passes over
`diffusion_model....lora_A` without an error, refuses OneTrainer's files that have T5, takes `base_model.model.` for one trainer's names of BFL's layers alone, and
knows no LoRA for T5. What was done instead is in `how`.
'''


def main(folder):
    os.makedirs(folder, exist_ok=True)
    source = os.path.join(HERE, '..', 'b_dev.safetensors')
    with safe_open(source, 'pt') as f:
        c, seed = json.loads(f.metadata()['config']), int(f.metadata()['seed'])
    given = load_file(source)
    mend_diffusers(c)
    w, m = build(c, seed)
    base = {'flux': velocity(m['transformer'], given), 'clip': clip_pooled(m['text_encoder'], given), 't5': t5_out(m['text_encoder_2'], given)}
    off = lambda x, y: ((x - y).abs().max() / y.abs().max()).item()
    for component, name in (('flux', 'flux.velocity'), ('clip', 'clip.pooled'), ('t5', 't5.out')):
        assert off(base[component], given[name]) < 1e-6, name
    out = {f'base.{ANSWERS[k][0]}': v for k, v in base.items()}
    facts, lines, worst = {}, [], 0.0
    change = lambda x, component: ((x - base[component]).norm() / base[component].norm()).item()

    def check(name, component, x, y):
        nonlocal worst
        d = off(x, y)
        assert d < AGREE, (name, component, d)
        worst = max(worst, d)
        key = f'{name}.{ANSWERS[component][0]}'
        out[key] = x
        facts[key + '.agrees'] = f'{d:.1e}'
        return change(x, component)

    loras = adapters(c)
    for name, lora in loras.items():
        if lora.like:
            real(lora, os.path.join(HERE, '..', '..', 'data', 'lora-keys'))
        size = save(os.path.join(folder, name + '.lora.safetensors'), lora.tensors, lora.metadata)
        theirs = by_diffusers(c, seed, [(lora, 1.0)], folder, given)
        facts[name + '.how'] = lora.by
        changes = {}
        for component in ('flux', 'clip', 't5'):
            if lora.has(component):
                mine = merged(component, w, c, [(lora, 1.0)], given)
                changes[component] = check(name, component, t5_by_peft(w, c, lora, given) if component == 't5' else theirs[component], mine)
        assert all(0.1 < x < 0.5 for x in changes.values()), (name, changes)
        alpha = 'header' if 'lora_adapter_metadata' in lora.metadata else lora.alpha or 'none'
        more = ''.join(f', {k.upper()} {x:.0%}' for k, x in changes.items() if k != 'flux')
        lines.append(f'| `{name}` | {lora.dtype} | {alpha} | {size:,} | {changes["flux"]:.0%}{more} | {lora.about}; {len(lora.pieces)} pairs |')
        print(lines[-1], {k: v for k, v in facts.items() if k.startswith(name + '.') and k.endswith('agrees')}, flush=True)

    weighted = []
    for name, parts in (('diffusers_at_0.6', [('diffusers', 0.6)]), ('kohya_0.8_diffusers_-0.5', [('kohya', 0.8), ('diffusers', -0.5)])):
        these = [(loras[n], x) for n, x in parts]
        d = check(name, 'flux', by_diffusers(c, seed, these, folder, given)['flux'], merged('flux', w, c, these, given))
        facts[name + '.loras'], facts[name + '.how'] = json.dumps(parts), 'diffusers, set_adapters'
        words = ' and '.join(f'`{n}` at {x}' for n, x in parts)
        weighted.append(f'| `{name}.velocity` | as `flux.velocity` | {words}{" together" if len(parts) > 1 else ""}; change {d:.0%} |')
        print(weighted[-1], facts[f'{name}.velocity.agrees'])
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__, peft=peft.__version__, numpy=np.__version__,
                    python=platform.python_version())
    print(save(os.path.join(folder, 'expected.safetensors'), out, facts | versions), 'bytes of expected values; worst', worst)
    with open(os.path.join(folder, 'README.md'), 'w') as f:
        h = c['transformer']['attention_head_dim'] * c['transformer']['num_attention_heads']
        f.write(README.format(versions=', '.join(f'{k} {v}' for k, v in versions.items()), width=h, rank=RANK, files='\n'.join(lines), weighted='\n'.join(weighted), worst=worst))


if __name__ == '__main__':
    main(sys.argv[1])
