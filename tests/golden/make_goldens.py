"""Reference values for the tests, computed with diffusers and transformers on three small FLUX geometries.

    python make_goldens.py OUT_DIR

Writes `{a,b,c}_{dev,schnell}.safetensors`, `schedule.json`, `noise.json` and `README.md` into OUT_DIR. Everything is float32 on the CPU, on one
thread. No weight is stored: both this script and the Rust tests derive every weight from its name and a seed (see `synthetic`).
Needs numpy, torch, diffusers, transformers and accelerate; no network, no download, no tokenizer files.
"""
import json
import math
import os
import platform
import sys

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

torch.set_grad_enabled(False)
torch.set_num_threads(1)  # one order of summation, whatever the machine
torch.set_default_dtype(torch.float32)
torch.backends.mkldnn.enabled = False  # oneDNN may pick Winograd or reduced precision; the plain kernels do neither
diffusers.utils.logging.set_verbosity_error()

# ---------------------------------------------------------------------------------------------------------------- synthetic weights

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
TABLES = ('shared.weight', 'token_embedding.weight', 'position_embedding.weight', 'relative_attention_bias.weight', 'controlnet_mode_embedder.weight')


def fnv1a(data):
    """FNV-1a, 64 bits, of bytes."""
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def synthetic(component, name, shape, seed):
    """The weight `name` of `component` (flux, t5, clip, vae): SplitMix64 at positions 1..n of a stream that the name and the seed start,
    the top 24 bits mapped to [-1, 1). Matrices get variance 1/fan_in, so that activations keep their size from layer to layer."""
    start = fnv1a(f'{component}/{name}'.encode()) ^ ((seed * GOLDEN) & MASK)
    n = math.prod(shape)
    z = np.uint64(start) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    if len(shape) == 1:
        u = np.float32(0.1) * u if name.endswith('bias') else np.float32(1) + np.float32(0.2) * u
    elif not name.endswith(TABLES):
        gain = 1 / math.sqrt(8) if name.endswith('SelfAttention.q.weight') else 1.0
        u = np.float32(gain * math.sqrt(3 / math.prod(shape[1:]))) * u
    return torch.from_numpy(u.reshape(shape))


# ----------------------------------------------------------------------------------------------------- canonical names and shapes


def linear(out, name, rows, cols):
    out[name + '.weight'], out[name + '.bias'] = [rows, cols], [rows]


def flux_shapes(c):
    """BFL's names for the transformer of config `c` (diffusers keys)."""
    s, hd = {}, c['attention_head_dim']
    h = hd * c['num_attention_heads']
    linear(s, 'img_in', h, c['in_channels'])
    embedders = [('time_in', 256), ('vector_in', c['pooled_projection_dim'])] + [('guidance_in', 256)] * c['guidance_embeds']
    for name, width in embedders:
        linear(s, name + '.in_layer', h, width)
        linear(s, name + '.out_layer', h, h)
    linear(s, 'txt_in', h, c['joint_attention_dim'])
    for i in range(c['num_layers']):
        for stream in ('img', 'txt'):
            p = f'double_blocks.{i}.{stream}_'
            linear(s, p + 'mod.lin', 6 * h, h)
            linear(s, p + 'attn.qkv', 3 * h, h)
            s[p + 'attn.norm.query_norm.scale'] = s[p + 'attn.norm.key_norm.scale'] = [hd]
            linear(s, p + 'attn.proj', h, h)
            linear(s, p + 'mlp.0', 4 * h, h)
            linear(s, p + 'mlp.2', h, 4 * h)
    for i in range(c['num_single_layers']):
        p = f'single_blocks.{i}.'
        linear(s, p + 'linear1', 7 * h, h)
        linear(s, p + 'linear2', h, 5 * h)
        s[p + 'norm.query_norm.scale'] = s[p + 'norm.key_norm.scale'] = [hd]
        linear(s, p + 'modulation.lin', 3 * h, h)
    linear(s, 'final_layer.linear', c['in_channels'], h)
    linear(s, 'final_layer.adaLN_modulation.1', 2 * h, h)
    return s


def t5_shapes(c):
    d, inner = c['d_model'], c['num_heads'] * c['d_kv']
    s = {'shared.weight': [c['vocab_size'], d]}
    for i in range(c['num_layers']):
        p = f'encoder.block.{i}.layer.'
        for x in 'qkv':
            s[f'{p}0.SelfAttention.{x}.weight'] = [inner, d]
        s[p + '0.SelfAttention.o.weight'] = [d, inner]
        if i == 0:
            s[p + '0.SelfAttention.relative_attention_bias.weight'] = [c['relative_attention_num_buckets'], c['num_heads']]
        s[p + '0.layer_norm.weight'] = [d]
        s[p + '1.DenseReluDense.wi_0.weight'] = s[p + '1.DenseReluDense.wi_1.weight'] = [c['d_ff'], d]
        s[p + '1.DenseReluDense.wo.weight'] = [d, c['d_ff']]
        s[p + '1.layer_norm.weight'] = [d]
    s['encoder.final_layer_norm.weight'] = [d]
    return s


def clip_shapes(c):
    w, p = c['hidden_size'], 'text_model.'
    s = {p + 'embeddings.token_embedding.weight': [c['vocab_size'], w],
         p + 'embeddings.position_embedding.weight': [c['max_position_embeddings'], w]}
    for i in range(c['num_hidden_layers']):
        q = f'{p}encoder.layers.{i}.'
        for x in ('k_proj', 'v_proj', 'q_proj', 'out_proj'):
            linear(s, q + 'self_attn.' + x, w, w)
        linear(s, q + 'mlp.fc1', c['intermediate_size'], w)
        linear(s, q + 'mlp.fc2', w, c['intermediate_size'])
        for x in ('layer_norm1', 'layer_norm2'):
            s[q + x + '.weight'] = s[q + x + '.bias'] = [w]
    s[p + 'final_layer_norm.weight'] = s[p + 'final_layer_norm.bias'] = [w]
    return s


def vae_shapes(c):
    """BFL's names for the autoencoder: levels are numbered from the full resolution in the encoder and in the decoder alike."""
    ch, n, z, s = c['block_out_channels'], c['layers_per_block'], c['latent_channels'], {}
    top = len(ch) - 1

    def conv(name, o, i, k=3):
        s[name + '.weight'], s[name + '.bias'] = [o, i, k, k], [o]

    def norm(name, o):
        s[name + '.weight'] = s[name + '.bias'] = [o]

    def res(name, i, o):
        norm(name + '.norm1', i)
        conv(name + '.conv1', o, i)
        norm(name + '.norm2', o)
        conv(name + '.conv2', o, o)
        if i != o:
            conv(name + '.nin_shortcut', o, i, 1)

    def mid(name, o):
        res(name + '.block_1', o, o)
        norm(name + '.attn_1.norm', o)
        for x in ('q', 'k', 'v', 'proj_out'):
            conv(f'{name}.attn_1.{x}', o, o, 1)
        res(name + '.block_2', o, o)

    conv('encoder.conv_in', ch[0], 3)
    for i, o in enumerate(ch):
        for j in range(n):
            res(f'encoder.down.{i}.block.{j}', (ch[max(i - 1, 0)] if j == 0 else o), o)
        if i < top:
            conv(f'encoder.down.{i}.downsample.conv', o, o)
    mid('encoder.mid', ch[top])
    norm('encoder.norm_out', ch[top])
    conv('encoder.conv_out', 2 * z, ch[top])
    conv('decoder.conv_in', ch[top], z)
    mid('decoder.mid', ch[top])
    for i in range(top, -1, -1):
        for j in range(n + 1):
            res(f'decoder.up.{i}.block.{j}', (ch[min(i + 1, top)] if j == 0 else ch[i]), ch[i])
        if i > 0:
            conv(f'decoder.up.{i}.upsample.conv', ch[i], ch[i])
    norm('decoder.norm_out', ch[0])
    conv('decoder.conv_out', 3, ch[0])
    return s


def weights(component, shapes, seed):
    return {name: synthetic(component, name, shape, seed) for name, shape in shapes.items()}


# ------------------------------------------------------------------------------------ canonical names to the libraries' state dicts


def flux_state(w, c):
    h = c['attention_head_dim'] * c['num_attention_heads']
    out = {}

    def put(source, *targets, sizes=None):
        """Copy the linear layer `source`, cut along its rows where it has several targets."""
        for kind in ('weight', 'bias'):
            parts = w[f'{source}.{kind}'].split(sizes or h) if len(targets) > 1 else [w[f'{source}.{kind}']]
            assert len(parts) == len(targets)
            for part, target in zip(parts, targets):
                out[f'{target}.{kind}'] = part

    put('img_in', 'x_embedder')
    put('txt_in', 'context_embedder')
    put('final_layer.linear', 'proj_out')
    for bfl, name in (('time_in', 'timestep'), ('guidance_in', 'guidance'), ('vector_in', 'text')):
        if bfl + '.in_layer.weight' in w:
            put(bfl + '.in_layer', f'time_text_embed.{name}_embedder.linear_1')
            put(bfl + '.out_layer', f'time_text_embed.{name}_embedder.linear_2')
    for kind in ('weight', 'bias'):  # BFL: shift, then scale; diffusers: scale, then shift
        shift, scale = w[f'final_layer.adaLN_modulation.1.{kind}'].chunk(2)
        out[f'norm_out.linear.{kind}'] = torch.cat([scale, shift])
    for i in range(c['num_layers']):
        b, d = f'double_blocks.{i}.', f'transformer_blocks.{i}.'
        put(b + 'img_mod.lin', d + 'norm1.linear')
        put(b + 'txt_mod.lin', d + 'norm1_context.linear')
        put(b + 'img_attn.qkv', *(d + f'attn.to_{x}' for x in 'qkv'))
        put(b + 'txt_attn.qkv', *(d + f'attn.add_{x}_proj' for x in 'qkv'))
        put(b + 'img_attn.proj', d + 'attn.to_out.0')
        put(b + 'txt_attn.proj', d + 'attn.to_add_out')
        for x, name in (('q', 'query'), ('k', 'key')):
            out[f'{d}attn.norm_{x}.weight'] = w[f'{b}img_attn.norm.{name}_norm.scale']
            out[f'{d}attn.norm_added_{x}.weight'] = w[f'{b}txt_attn.norm.{name}_norm.scale']
        for bfl, name in (('img_mlp', 'ff'), ('txt_mlp', 'ff_context')):
            put(f'{b}{bfl}.0', f'{d}{name}.net.0.proj')
            put(f'{b}{bfl}.2', f'{d}{name}.net.2')
    for i in range(c['num_single_layers']):
        b, d = f'single_blocks.{i}.', f'single_transformer_blocks.{i}.'
        put(b + 'modulation.lin', d + 'norm.linear')
        put(b + 'linear1', *(d + f'attn.to_{x}' for x in 'qkv'), d + 'proj_mlp', sizes=[h, h, h, 4 * h])
        put(b + 'linear2', d + 'proj_out')
        for x, name in (('q', 'query'), ('k', 'key')):
            out[f'{d}attn.norm_{x}.weight'] = w[f'{b}norm.{name}_norm.scale']
    return out


def vae_state(w, levels):
    out = {}
    for name, t in w.items():
        part = name.split('.')
        side, section = part[0], part[1]
        if section in ('down', 'up'):
            level = int(part[2]) if section == 'down' else levels - 1 - int(part[2])
            block = ['resnets', part[4]] + part[5:] if part[3] == 'block' else [part[3] + 'rs', '0'] + part[4:]
            part = [side, section + '_blocks', str(level)] + block
            if part[3] in ('downsamplers', 'upsamplers') or part[3] == 'resnets':
                part = ['conv_shortcut' if x == 'nin_shortcut' else x for x in part]
        elif section == 'mid' and part[2].startswith('block_'):
            part = [side, 'mid_block', 'resnets', str(int(part[2][-1]) - 1)] + part[3:]
        elif section == 'mid':
            inner = {'norm': ['group_norm'], 'q': ['to_q'], 'k': ['to_k'], 'v': ['to_v'], 'proj_out': ['to_out', '0']}[part[3]]
            t = t[:, :, 0, 0] if t.ndim == 4 else t  # a 1x1 convolution is a linear layer
            part = [side, 'mid_block', 'attentions', '0'] + inner + part[4:]
        elif section == 'norm_out':
            part[1] = 'conv_norm_out'
        out['.'.join(part)] = t
    return out


def load(model, state):
    """Strict but for T5's second name of its embedding table, which is the same parameter."""
    have = set(model.state_dict())
    if 'encoder.embed_tokens.weight' in have:
        state = state | {'encoder.embed_tokens.weight': state['shared.weight']}
    if model.__class__ is CLIPTextModel and not any(k.startswith('text_model.') for k in have):
        state = {k.removeprefix('text_model.'): v for k, v in state.items()}  # transformers 5 dropped the prefix in memory
    model.load_state_dict(state, strict=True)
    return model.eval()


# --------------------------------------------------------------------------------------------------------------------- the geometries

# T5 and CLIP ids as the real tokenizers give them, end of text included. (Hard-coded so that no tokenizer file is needed here.)
PROMPTS = {
    'A cat holding a sign that says hello world':
        ([71, 1712, 3609, 3, 9, 1320, 24, 845, 21820, 296, 1],
         [49406, 320, 2368, 5050, 320, 2292, 682, 1563, 3306, 1002, 49407]),
    'A lighthouse on a cliff at dusk, oil painting, warm light':
        ([71, 659, 1840, 30, 3, 9, 3, 12591, 44, 146, 7, 157, 6, 1043, 3924, 6, 1978, 659, 1],
         [49406, 320, 13717, 525, 320, 10625, 536, 19708, 267, 2870, 3086, 267, 3616, 1395, 49407]),
    'blurry, low quality': ([16810, 651, 6, 731, 463, 1], [49406, 21977, 267, 1042, 3027, 49407]),
}
CAT, LIGHTHOUSE, BLURRY = PROMPTS

# width, height: pixels. grid: rows and columns of tokens in the transformer's own test. latent: rows and columns in the VAE's own test.
GEOMETRIES = {
    'a': dict(seed=1, heads=2, head_dim=128, axes=[16, 56, 56], double=1, single=2, context=64, pooled=64, t5=(2, 2, 64, 160), clip=(2, 256),
              vae=([32, 64, 64, 64], 1, 16, 0.3611, 0.1159), prompt=CAT, length=24, width=96, height=64, grid=(3, 5), latent=(6, 10)),
    'b': dict(seed=0x123456789ABCDEF0, heads=3, head_dim=64, axes=[8, 28, 28], double=2, single=1, context=96, pooled=128, t5=(3, 1, 64, 200),
              clip=(2, 320), vae=([32, 32, 64, 96], 2, 16, 0.5, -0.25), prompt=LIGHTHOUSE, length=32, width=48, height=80, grid=(5, 2),
              latent=(4, 6)),
    'c': dict(seed=MASK - 2, heads=4, head_dim=32, axes=[4, 14, 14], double=1, single=1, context=80, pooled=64, t5=(2, 3, 32, 136), clip=(3, 192),
              vae=([32, 64, 64], 1, 8, 0.7, 0.3), prompt=CAT, length=28, width=56, height=40, grid=(4, 3), latent=(10, 6)),
}


def configs(g, dev):
    layers, heads, d_kv, d_ff = g['t5']
    ch, per_block, z, scaling, shift = g['vae']
    scheduler = dict(_class_name='FlowMatchEulerDiscreteScheduler', num_train_timesteps=1000, base_image_seq_len=256, max_image_seq_len=4096,
                     base_shift=0.5, max_shift=1.15, shift=3.0 if dev else 1.0, use_dynamic_shifting=dev)  # as FLUX.1's repositories have it
    return dict(
        transformer=dict(_class_name='FluxTransformer2DModel', attention_head_dim=g['head_dim'], axes_dims_rope=g['axes'], guidance_embeds=dev,
                         in_channels=4 * z, joint_attention_dim=g['context'], num_attention_heads=g['heads'], num_layers=g['double'],
                         num_single_layers=g['single'], patch_size=1, pooled_projection_dim=g['pooled']),
        text_encoder=dict(architectures=['CLIPTextModel'], model_type='clip_text_model', attention_dropout=0.0, bos_token_id=49406,
                          eos_token_id=49407, pad_token_id=49407, hidden_act='quick_gelu', hidden_size=g['pooled'], intermediate_size=g['clip'][1],
                          layer_norm_eps=1e-5, max_position_embeddings=77, num_attention_heads=g['pooled'] // 64, num_hidden_layers=g['clip'][0],
                          projection_dim=g['pooled'], vocab_size=49408),
        text_encoder_2=dict(architectures=['T5EncoderModel'], model_type='t5', d_model=g['context'], d_kv=d_kv, d_ff=d_ff, num_layers=layers,
                            num_heads=heads, feed_forward_proj='gated-gelu', layer_norm_epsilon=1e-6, relative_attention_max_distance=128,
                            relative_attention_num_buckets=32, dropout_rate=0.0, vocab_size=32128, eos_token_id=1, pad_token_id=0,
                            tie_word_embeddings=False),
        vae=dict(_class_name='AutoencoderKL', act_fn='silu', block_out_channels=ch, in_channels=3, out_channels=3, latent_channels=z,
                 layers_per_block=per_block, norm_num_groups=32, scaling_factor=scaling, shift_factor=shift, use_quant_conv=False,
                 use_post_quant_conv=False, mid_block_add_attention=True, force_upcast=True, sample_size=1024,
                 down_block_types=['DownEncoderBlock2D'] * len(ch), up_block_types=['UpDecoderBlock2D'] * len(ch)),
        scheduler=scheduler)


def build(c, seed):
    public = lambda d: {k: v for k, v in d.items() if not k.startswith('_') and k != 'architectures'}
    shapes = dict(flux=flux_shapes(c['transformer']), t5=t5_shapes(c['text_encoder_2']), clip=clip_shapes(c['text_encoder']),
                  vae=vae_shapes(c['vae']))
    w = {component: weights(component, s, seed) for component, s in shapes.items()}
    return w, dict(
        transformer=load(FluxTransformer2DModel(**public(c['transformer'])), flux_state(w['flux'], c['transformer'])),
        text_encoder=load(CLIPTextModel(CLIPTextConfig(**public(c['text_encoder']))), w['clip']),
        text_encoder_2=load(T5EncoderModel(T5Config(**public(c['text_encoder_2']))), w['t5']),
        vae=load(AutoencoderKL(**public(c['vae'])), vae_state(w['vae'], len(c['vae']['block_out_channels']))),
        scheduler=FlowMatchEulerDiscreteScheduler(**public(c['scheduler'])))


# ---------------------------------------------------------------------------------------------------------------------------- goldens


def pad(ids, length, value):
    assert len(ids) <= length
    return torch.tensor([ids + [value] * (length - len(ids))])


def encode(m, prompt, length):
    """(T5 ids, T5 output, CLIP ids, pooled), each with a leading batch of one. No attention mask: padding is attended to, as FLUX does."""
    t5_ids, clip_ids = pad(PROMPTS[prompt][0], length, 0), pad(PROMPTS[prompt][1], 77, 49407)
    return t5_ids, m['text_encoder_2'](t5_ids)[0], clip_ids, m['text_encoder'](clip_ids).pooler_output


def pattern(height, width):
    """An 8-bit RGB picture [height, width, 3] with smooth and sharp parts, from integer arithmetic alone."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([(255 * x) // (width - 1), (255 * y) // (height - 1), 255 * ((x // 7 + y // 5) % 2)], -1)
    disc = (2 * x - width) ** 2 + (2 * y - height) ** 2 < min(width, height) ** 2 // 2
    rgb[disc] = [230, 120, 40]
    return torch.from_numpy(rgb.astype(np.uint8))


def flux_goldens(m, c, g, out):
    t, rows, cols, txt = m['transformer'], *g['grid'], 7
    r = torch.Generator().manual_seed(11)
    img = torch.randn(2, rows * cols, c['transformer']['in_channels'], generator=r)
    text = torch.randn(2, txt, g['context'], generator=r)
    pooled = torch.randn(2, g['pooled'], generator=r)
    timestep, guidance = torch.tensor([0.875, 0.3]), torch.tensor([3.5, 1.0])
    seen = {}

    def keep(name):
        return lambda module, args, output: seen.__setitem__(name, output)

    hooks = [t.time_text_embed.register_forward_hook(keep('vec')), t.transformer_blocks[-1].register_forward_hook(keep('double')),
             t.single_transformer_blocks[-1].register_forward_hook(keep('single'))]
    ids = FluxPipeline._prepare_latent_image_ids(1, rows, cols, 'cpu', torch.float32)
    velocity = t(hidden_states=img, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep, img_ids=ids,
                 txt_ids=torch.zeros(txt, 3), guidance=guidance if c['transformer']['guidance_embeds'] else None, return_dict=False)[0]
    for h in hooks:
        h.remove()
    out |= {'flux.img': img, 'flux.txt': text, 'flux.pooled': pooled, 'flux.timestep': timestep, 'flux.grid': torch.tensor([rows, cols]),
            'flux.vec': seen['vec'], 'flux.double.txt': seen['double'][0], 'flux.double.img': seen['double'][1],
            'flux.single': torch.cat(seen['single'], 1), 'flux.velocity': velocity}
    if c['transformer']['guidance_embeds']:
        out['flux.guidance'] = guidance


def vae_goldens(m, g, out):
    scale = 2 ** (len(g['vae'][0]) - 1)
    rows, cols = g['latent']
    latent = torch.randn(1, g['vae'][2], rows, cols, generator=torch.Generator().manual_seed(12))
    pixels = pattern(scale * cols, scale * rows).permute(2, 0, 1).float()[None] / 127.5 - 1  # the other orientation
    out |= {'vae.latent': latent[0], 'vae.image': m['vae'].decode(latent, return_dict=False)[0][0], 'vae.pixels': pixels[0],
            'vae.mean': m['vae'].encode(pixels).latent_dist.mean[0]}


def pipeline_goldens(m, c, g, dev, out):
    width, height, length = g['width'], g['height'], g['length']
    z, factor = c['vae']['latent_channels'], 2 ** (len(c['vae']['block_out_channels']) - 1)
    rows, cols = height // factor, width // factor
    steps, guidance, seed, strength, cfg = (6, 3.5, 42, 0.6, 3.0) if dev else (4, 0.0, 42, None, None)
    pipe = FluxPipeline(tokenizer=None, tokenizer_2=None, **m)
    pipe.set_progress_bar_config(disable=True)
    text, pooled = (encode(m, g['prompt'], length)[i] for i in (1, 3))

    def decode(packed):
        latent = FluxPipeline._unpack_latents(packed, height, width, factor) / c['vae']['scaling_factor'] + c['vae']['shift_factor']
        return m['vae'].decode(latent, return_dict=False)[0]

    def run(**more):
        call = dict(prompt_embeds=text, pooled_prompt_embeds=pooled, width=width, height=height, num_inference_steps=steps,
                    guidance_scale=guidance, generator=torch.Generator().manual_seed(seed), max_sequence_length=length) | more
        return pipe(**call).images

    # ComfyUI's noise: one f32 stream for the whole batch. diffusers draws the same where its embeddings are f32.
    noise = torch.randn(1, z, rows, cols, generator=torch.Generator().manual_seed(seed))
    packed = FluxPipeline._pack_latents(noise, 1, z, rows, cols)
    latents = run(output_type='latent')
    assert torch.equal(latents, run(output_type='latent', latents=packed, generator=None))
    image = run(output_type='pt')
    decoded = decode(latents)
    assert torch.equal(image, (decoded / 2 + 0.5).clamp(0, 1))
    out |= {'pipe.noise': packed[0], 'pipe.sigmas': m['scheduler'].sigmas.clone(), 'pipe.latents': latents[0], 'pipe.decoded': decoded[0],
            'pipe.image': image[0]}
    facts = dict(prompt=g['prompt'], seed=seed, steps=steps, width=width, height=height, guidance=guidance, t5_length=length)
    if not dev:
        return facts

    _, neg_text, _, neg_pooled = encode(m, BLURRY, length)
    latents = run(output_type='latent', true_cfg_scale=cfg, negative_prompt_embeds=neg_text, negative_pooled_prompt_embeds=neg_pooled)
    out |= {'cfg.latents': latents[0], 'cfg.decoded': decode(latents)[0]}

    latents = run(output_type='latent', num_images_per_prompt=2)
    both = torch.randn(2, z, rows, cols, generator=torch.Generator().manual_seed(seed))
    out |= {'batch.noise': FluxPipeline._pack_latents(both, 2, z, rows, cols), 'batch.latents': latents, 'batch.decoded': decode(latents)}

    # Image to image: the distribution's mean (diffusers would draw a sample), the schedule entered where the strength says.
    picture = pattern(height, width)
    mean = m['vae'].encode(picture.permute(2, 0, 1).float()[None] / 127.5 - 1).latent_dist.mean
    clean = (mean - c['vae']['shift_factor']) * c['vae']['scaling_factor']
    s, tokens = m['scheduler'], (rows // 2) * (cols // 2)
    s.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens))
    first = first_step(steps, strength)
    s.set_begin_index(first)
    x = FluxPipeline._pack_latents(s.sigmas[first] * noise + (1 - s.sigmas[first]) * clean, 1, z, rows, cols)
    out |= {'img2img.picture': picture, 'img2img.clean': FluxPipeline._pack_latents(clean, 1, z, rows, cols)[0], 'img2img.start': x[0]}
    ids = FluxPipeline._prepare_latent_image_ids(1, rows // 2, cols // 2, 'cpu', torch.float32)
    for t in s.timesteps[first:]:
        v = m['transformer'](hidden_states=x, timestep=t.expand(1) / 1000, guidance=torch.tensor([guidance]), pooled_projections=pooled,
                             encoder_hidden_states=text, txt_ids=torch.zeros(length, 3), img_ids=ids, return_dict=False)[0]
        x = s.step(v, t, x, return_dict=False)[0]
    out |= {'img2img.latents': x[0], 'img2img.decoded': decode(x)[0]}
    return facts | dict(negative_prompt=BLURRY, true_cfg_scale=cfg, strength=strength, first_step=first)


def check_values(w, out):
    """The first eight values of a few weights: tells a wrong weight from a wrong model."""
    for component, names in dict(
            flux=['img_in.weight', 'img_in.bias', 'double_blocks.0.img_attn.qkv.weight', 'single_blocks.0.norm.query_norm.scale',
                  'final_layer.adaLN_modulation.1.weight'],
            t5=['shared.weight', 'encoder.block.0.layer.0.SelfAttention.q.weight', 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
                'encoder.final_layer_norm.weight'],
            clip=['text_model.embeddings.position_embedding.weight', 'text_model.final_layer_norm.bias'],
            vae=['decoder.conv_in.weight', 'decoder.mid.attn_1.q.weight', 'encoder.norm_out.weight']).items():
        for name in names:
            out[f'weight.{component}/{name}'] = w[component][name].flatten()[:8].clone()


def sane(name, out):
    for key, t in out.items():
        if t.is_floating_point():
            assert torch.isfinite(t).all(), (name, key)
            assert t.numel() < 32 or 0.02 < t.std() < 20, (name, key, t.std())
    clipped = ((out['pipe.image'] == 0) | (out['pipe.image'] == 1)).float().mean().item()
    assert clipped < 0.25, (name, clipped)
    for other in ('cfg', 'img2img'):
        if other + '.latents' in out:  # a run that equals the plain one would test nothing
            assert (out[other + '.latents'] - out['pipe.latents']).abs().max() > 0.05, (name, other)


# --------------------------------------------------------------------------------------------------------------------------- schedule


def first_step(steps, strength):
    """diffusers' FluxImg2ImgPipeline.get_timesteps: the index of the first sigma that is used, in double precision as Python has it."""
    return int(max(steps - min(steps * strength, steps), 0))


def schedule():
    kinds = dict(dev=dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096),
                 schnell=dict(shift=1.0, use_dynamic_shifting=False),
                 static3=dict(shift=3.0, use_dynamic_shifting=False),
                 odd=dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.3, max_shift=2.0, base_image_seq_len=64, max_image_seq_len=1024))
    cases = []
    for kind, config in kinds.items():
        s = FlowMatchEulerDiscreteScheduler(**config)
        sizes = (1, 24, 256, 1024, 2816, 4096, 16384) if config['use_dynamic_shifting'] else (1024,)
        for steps in (1, 2, 3, 4, 6, 8, 20, 28, 50):
            for tokens in sizes if steps in (4, 28, 50) else sizes[-3:]:
                get = s.config.get
                mu = calculate_shift(tokens, get('base_image_seq_len'), get('max_image_seq_len'), get('base_shift'), get('max_shift'))
                s.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
                cases.append(dict(config=kind, steps=steps, image_tokens=tokens, sigmas=[float(f'{x:.9g}') for x in s.sigmas.tolist()]))
    strengths = [[steps, k, first_step(steps, k / 100)] for steps in (1, 2, 3, 4, 6, 7, 10, 20, 28, 50) for k in range(0, 101)]
    return dict(configs=kinds, cases=cases, first_step_of_steps_and_percent=strengths)


# ------------------------------------------------------------------------------------------------------------------------------ noise


def noise():
    """torch.randn on the CPU: bits of whole vectors for small sizes, FNV-1a of the little-endian bytes for the others."""
    capability = torch.backends.cpu.get_cpu_capability()
    assert capability in ('AVX2', 'AVX512'), capability  # torch's scalar path rounds differently

    def draw(generator, n):
        return torch.randn(n, generator=generator).numpy().astype('<f4')

    def start(seed):
        return torch.Generator().manual_seed(seed)

    def hashed(*vectors):
        return f'{fnv1a(b"".join(v.tobytes() for v in vectors)):016x}'

    seeds = [0, 1, 2, 3, 7, 42, 123, 1234, 5489, 31337, 99999, 20260101, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 42, 0xDEADBEEF,
             1125899906842624, 0x123456789ABCDEF0, 2**63 - 1, 2**63, 2**64 - 1]
    calls = [5, 100, 3, 16, 1, 17, 2, 0, 15, 640, 7, 4096, 1]
    cases = []
    for i, seed in enumerate(seeds):
        sizes = [4096, 65535, 65536] if i % 4 == 0 else [4096]
        sizes += [1048576] * (i % 11 == 5)
        g = start(seed)
        cases.append(dict(seed=str(seed), sizes_1_to_300=hashed(*(draw(start(seed), n) for n in range(1, 301))),
                          sizes_1023_to_1030=hashed(*(draw(start(seed), n) for n in range(1023, 1031))),
                          sizes={str(n): hashed(draw(start(seed), n)) for n in sizes}, calls=[hashed(draw(g, n)) for n in calls]))
    whole = [dict(seed=str(seed), bits=draw(start(seed), n).view('<u4').tolist()) for seed in (0, 42, 2**63) for n in (1, 2, 3, 15, 16, 17, 32, 33, 47)]
    return dict(torch=torch.__version__, whole=whole, calls=calls, cases=cases)


def save(path, tensors, metadata):
    """A safetensors file whose bytes depend on its contents alone (the library writes metadata in a random order)."""
    types = {torch.float32: 'F32', torch.int64: 'I64', torch.uint8: 'U8'}
    header, blobs, at = {'__metadata__': metadata}, [], 0
    for name in sorted(tensors, key=lambda k: (-tensors[k].element_size(), k)):  # wide elements first keeps every tensor aligned
        t = tensors[name].contiguous()
        blob = t.numpy().astype(t.numpy().dtype.newbyteorder('<')).tobytes()
        header[name] = dict(dtype=types[t.dtype], shape=list(t.shape), data_offsets=[at, at + len(blob)])
        blobs.append(blob)
        at += len(blob)
    head = json.dumps(header, separators=(',', ':')).encode()
    head += b' ' * (-len(head) % 8)
    with open(path, 'wb') as f:
        f.write(len(head).to_bytes(8, 'little') + head + b''.join(blobs))


README = '''# Reference values
Made by `python make_goldens.py OUT_DIR` with {versions}. Nothing here is needed to build or to run; the tests read it.

`a_dev` ... `c_schnell`: three small geometries, with and without guidance embedding, f32 throughout. Weights are synthetic and not stored: each
is a function of its name, shape and the metadata's `seed` (`synthetic` in the script). Metadata: `config` (diffusers' config files as
JSON, by component), `seed` (u64, decimal), `pipeline` (the run's arguments, JSON), versions.

| tensor | shape | |
|---|---|---|
| `weight.COMPONENT/NAME` | 8 | first values of some weights |
| `t5.ids` -> `t5.out` | L -> L, d | padded with 0, padding attended to |
| `clip.ids` -> `clip.pooled` | 77 -> width | padded with 49407 |
| `flux.img, txt, pooled, timestep, guidance, grid` -> `flux.velocity` | batch 2 | grid: rows, columns; text positions zero; `guidance` in dev only |
| `flux.vec`, `flux.double.img`, `flux.double.txt`, `flux.single` | | sum of embeddings; after the last double block; after the last single block, text first |
| `vae.latent` -> `vae.image`, `vae.pixels` -> `vae.mean` | C,h,w; 3,H,W in -1..1 | no scaling or shift applied on either side |
| `pipe.noise, sigmas, latents, decoded, image` | tokens, 4C; 3,H,W | latents packed; decoded before `x/2 + 1/2` and clamping |
| `cfg.*` | | dev: `negative_prompt`, `true_cfg_scale` |
| `batch.*` | 2, ... | dev: two images, their noise one stream |
| `img2img.picture, clean, start, latents, decoded` | picture: H,W,3 u8 | dev: mean latents, noise as `pipe.noise`, entered at `first_step` |

`schedule.json`: sigmas of diffusers' FlowMatchEulerDiscreteScheduler called as FluxPipeline calls it, and the first step for a strength
(`[steps, strength in percent, first step]`).

`noise.json`: `torch.randn` on an x86-64 CPU with AVX2. `whole`: bits of f32 values. `cases`: FNV-1a 64 of the little-endian bytes, for each size
from 1 to 300 (the vectors one after another), 1023 to 1030, and single sizes; `calls`: the hash of each of a series of calls on one generator.
'''


def main(folder):
    os.makedirs(folder, exist_ok=True)
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__, numpy=np.__version__,
                    python=platform.python_version())
    for name, g in GEOMETRIES.items():
        for dev in (True, False):
            c = configs(g, dev)
            w, m = build(c, g['seed'])
            out = {}
            check_values(w, out)
            t5_ids, t5_out, clip_ids, pooled = encode(m, g['prompt'], g['length'])
            out |= {'t5.ids': t5_ids[0], 't5.out': t5_out[0], 'clip.ids': clip_ids[0], 'clip.pooled': pooled[0]}
            flux_goldens(m, c, g, out)
            vae_goldens(m, g, out)
            facts = pipeline_goldens(m, c, g, dev, out)
            full = f'{name}_{"dev" if dev else "schnell"}'
            sane(full, out)
            meta = dict(config=json.dumps(c), seed=str(g['seed']), pipeline=json.dumps(facts)) | versions
            save(os.path.join(folder, full + '.safetensors'), out, meta)
            print(full, os.path.getsize(os.path.join(folder, full + '.safetensors')),
                  {k: round(out[k].float().std().item(), 3) for k in ('t5.out', 'clip.pooled', 'flux.velocity', 'vae.image', 'pipe.decoded', 'pipe.image')})
    for name, contents in dict(schedule=schedule(), noise=noise()).items():
        with open(os.path.join(folder, name + '.json'), 'w') as f:
            json.dump(contents, f, separators=(',', ':'))
            f.write('\n')
    with open(os.path.join(folder, 'README.md'), 'w') as f:
        f.write(README.format(versions=', '.join(f'{k} {v}' for k, v in versions.items())))


if __name__ == '__main__':
    main(sys.argv[1])
