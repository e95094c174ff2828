"""model/ (a diffusers folder) -> flux-tiny.safetensors: one file with everything, named as ComfyUI names it, and a check that its 8-bit weights still draw the same pictures.
Usage: pack.py MODEL_DIR OUT.safetensors [--steps N] [--guidance G] [--check]

Matrices of the transformer, T5 and CLIP are F8_E4M3 with one F32 scale each (`X.weight`, `X.weight_scale`, `X.comfy_quant`), the scale being the one of a few with the least squared error;
with --rows PREFIX... the matrices so named have one scale a row; with --keep PREFIX... they stay F16. Embeddings, norms, biases and the autoencoder are F16.
The data start on a multiple of 64 bytes; tensors come in order of use, those whose size is no multiple of 64 bytes at the end, then the scales, then the marks."""
import argparse, json, os, re
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from names import from_bfl, geometry, to_bfl

DIT, T5, CLIP, VAE = 'model.diffusion_model.', 'text_encoders.t5xxl.transformer.', 'text_encoders.clip_l.transformer.', 'vae.'
MARK = torch.tensor(list(b'{"format":"float8_e4m3fn"}'), dtype=torch.uint8)
TYPES = {torch.float8_e4m3fn: 'F8_E4M3', torch.float16: 'F16', torch.float32: 'F32', torch.uint8: 'U8'}
EMBEDDINGS = ('shared', 'relative_attention_bias', 'token_embedding', 'position_embedding')

def vae_name(k, up):
    """diffusers' autoencoder names -> BFL's; `up` is the index of the last up block."""
    k = re.sub(r'down_blocks\.(\d+)\.resnets', r'down.\1.block', k)
    k = re.sub(r'down_blocks\.(\d+)\.downsamplers\.0', r'down.\1.downsample', k)
    k = re.sub(r'up_blocks\.(\d+)\.resnets', lambda m: f'up.{up - int(m[1])}.block', k)
    k = re.sub(r'up_blocks\.(\d+)\.upsamplers\.0', lambda m: f'up.{up - int(m[1])}.upsample', k)
    k = re.sub(r'mid_block\.resnets\.(\d)', lambda m: f'mid.block_{int(m[1]) + 1}', k)
    for a, b in (('mid_block.attentions.0', 'mid.attn_1'), ('group_norm', 'norm'), ('to_q', 'q'), ('to_k', 'k'), ('to_v', 'v'), ('to_out.0', 'proj_out'), ('conv_shortcut', 'nin_shortcut'), ('conv_norm_out', 'norm_out')): k = k.replace(a, b)
    return k

def collect(folder):
    """Every tensor of the folder under its name in the single file, in order of use, and the diffusers names to go back by."""
    read = lambda part, name='model': {k: w.float() for k, w in load_file(f'{folder}/{part}/{name}.safetensors').items()}
    order = lambda k: [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', k)]
    rank = lambda k: next((i for i, p in enumerate(('embed', 'shared', 'encoder.block', 'encoder.layers', 'text_model.encoder.layers')) if p in k), 9)
    out, back = {}, {}
    t5 = {k: w for k, w in read('text_encoder_2').items() if 'embed_tokens' not in k}
    sub = lambda k: next((i for i, p in enumerate(('layer.0.layer_norm', 'layer_norm1', '.q', '.k', '.v', 'relative', '.o.', 'out_proj', 'layer.1.layer_norm', 'layer_norm2', 'wi_0', 'wi_1', 'fc1', 'wo', 'fc2')) if p in k), 99)
    key = lambda k: ({0: 0, 1: 0, 9: 2}.get(rank(k), 1), int((re.search(r'(?:block|layers)\.(\d+)', k) or [0, 0])[1]), sub(k), order(k).__repr__())
    for k in sorted(t5, key=key): out[T5 + k] = t5[k]; back[T5 + k] = ('text_encoder_2', k)
    clip = read('text_encoder'); full = lambda k: k if k.startswith('text_model.') else 'text_model.' + k
    for k in sorted(clip, key=key): out[CLIP + full(k)] = clip[k]; back[CLIP + full(k)] = ('text_encoder', k)
    dit = read('transformer', 'diffusion_pytorch_model')
    for k, w in to_bfl(dit).items(): out[DIT + k] = w
    vae = read('vae', 'diffusion_pytorch_model'); up = max(int(m[1]) for k in vae if (m := re.search(r'up_blocks\.(\d+)', k)))
    part = lambda k: (k.startswith('encoder'), next(i for i, p in enumerate(('conv_in', 'down_blocks', 'mid_block', 'up_blocks', 'conv_norm_out', 'conv_out')) if p in k) if 'decoder' not in k else next(i for i, p in enumerate(('conv_in', 'mid_block', 'up_blocks', 'conv_norm_out', 'conv_out')) if p in k), [x if isinstance(x, str) else f'{x:03}' for x in order(k)])
    for k in sorted(vae, key=part):
        w = vae[k]; n = VAE + vae_name(k, up); back[n] = ('vae', k)
        out[n] = w[:, :, None, None] if 'mid_block.attentions' in k and w.ndim == 2 else w
    return out, back, geometry(dit)

def quantise(w, rows=False):
    """(F8 weight, F32 scale): the scale of the least squared error among a few, for the whole matrix or for each row."""
    amax = w.abs().amax(1, keepdim=True) if rows else w.abs().amax()
    base = (amax / 448).clamp(min=1e-12); best = None
    for f in [2 ** (-j / 8) for j in range(-8, 13)]:
        s = base * f; q = (w / s).clamp(-448, 448).to(torch.float8_e4m3fn)
        e = (q.float() * s - w).pow(2); e = e.sum(1, keepdim=True) if rows else e.sum()
        if best is None: best = [e, s.clone(), q.clone()]
        elif rows:
            better = e < best[0]
            best = [torch.where(better, e, best[0]), torch.where(better, s, best[1]), torch.where(better, q.float(), best[2].float()).to(torch.float8_e4m3fn)]
        elif e < best[0]: best = [e, s, q]
    return best[2], best[1].reshape(-1) if rows else best[1].reshape(())

def shrink(tensors, rows=(), keep=()):
    out = {}
    for k, w in tensors.items():
        linear = w.ndim == 2 and k.endswith('.weight') and not k.startswith(VAE) and not any(e in k for e in EMBEDDINGS)
        if linear and not any(p in k for p in keep):
            out[k], scale = quantise(w, any(p in k for p in rows))
            out[k + '_scale'] = scale.float(); out[k.removesuffix('weight') + 'comfy_quant'] = MARK
        else: out[k] = w.half()
    return out

def write(path, tensors, metadata):
    size = lambda w: w.numel() * w.element_size()
    names = sorted(tensors, key=lambda k: 3 if k.endswith('comfy_quant') else 2 if k.endswith('weight_scale') else int(size(tensors[k]) % 64 != 0))
    header, at = {'__metadata__': metadata}, 0
    for k in names:
        w = tensors[k]; header[k] = dict(dtype=TYPES[w.dtype], shape=list(w.shape), data_offsets=[at, at + size(w)]); at += size(w)
    text = json.dumps(header, separators=(',', ':')).encode(); text += b' ' * (-(len(text) + 8) % 64)
    with open(path, 'wb') as f:
        f.write(len(text).to_bytes(8, 'little')); f.write(text)
        for k in names: f.write(tensors[k].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return at + len(text) + 8

def configs(folder, steps, guidance):
    read = lambda part: {k: v for k, v in json.load(open(f'{folder}/{part}')).items() if k != '_name_or_path'}
    return dict(transformer=read('transformer/config.json'), text_encoder=read('text_encoder/config.json'), text_encoder_2=read('text_encoder_2/config.json'), vae=read('vae/config.json'),
                scheduler=read('scheduler/scheduler_config.json'), tokenizer_2=dict(model_max_length=24), generation=dict(num_inference_steps=steps, guidance_scale=guidance, height=128, width=128), name='flux-tiny')

def unpack_into(pipe, path, back, shape):
    """Loads the single file, dequantised, into a diffusers pipeline."""
    raw, t = load_file(path), {}
    for k, w in raw.items():
        if k.endswith(('weight_scale', 'comfy_quant')): continue
        w = w.float()
        if k + '_scale' in raw: s = raw[k + '_scale']; w = w * (s[:, None] if s.ndim else s)
        t[k] = w
    states = {'text_encoder': {}, 'text_encoder_2': {}, 'vae': {}}
    for k, (part, name) in back.items():
        w = t[k]; target = getattr(pipe, part).state_dict()
        name = name if name in target else name.removeprefix('text_model.') if name.removeprefix('text_model.') in target else 'text_model.' + name
        states[part][name] = w.reshape(target[name].shape)
    states['text_encoder_2']['encoder.embed_tokens.weight'] = states['text_encoder_2']['shared.weight']
    for part, s in states.items(): getattr(pipe, part).load_state_dict(s)
    pipe.transformer.load_state_dict(from_bfl({k.removeprefix(DIT): w for k, w in t.items() if k.startswith(DIT)}, shape))
    return pipe

PROMPTS = ['a fox, 3D style, on a blue background', 'a banana, flat style, on a red background', 'a penguin, classic style, on a white background', 'pizza, flat style, on a yellow background',
           'a cat face, 3D style, on a green background', 'strawberry, flat style, on a pink background', 'a dragon, classic style, on a black background', 'a hamburger, 3D style, on a purple background',
           'an octopus in classic style on an orange background', 'a butterfly, 3D style, on a white background', 'flat mushroom, blue background', 'a rooster, classic style, on a pink background']

def draw(pipe, prompts, steps, guidance):
    noise = torch.randn(len(prompts), 64, 64, generator=torch.Generator().manual_seed(11))
    return pipe(prompts, height=128, width=128, num_inference_steps=steps, guidance_scale=guidance, latents=noise, max_sequence_length=24, output_type='np').images

def check(folder, path, back, shape, steps, guidance):
    from diffusers import FluxPipeline
    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32); pipe.set_progress_bar_config(disable=True)
    a = draw(pipe, PROMPTS, steps, guidance); b = draw(unpack_into(pipe, path, back, shape), PROMPTS, steps, guidance)
    psnr = -10 * np.log10(((a - b) ** 2).mean((1, 2, 3)))
    print(f'8-bit against f32, {len(psnr)} pictures, {steps} steps, guidance {guidance}: PSNR mean {psnr.mean():.1f} dB, least {psnr.min():.1f} dB  ({" ".join(f"{p:.1f}" for p in psnr)})')
    return psnr

if __name__ == '__main__':
    a = argparse.ArgumentParser(); a.add_argument('model'); a.add_argument('out'); a.add_argument('--steps', type=int, default=20); a.add_argument('--guidance', type=float, default=3.5)
    a.add_argument('--rows', nargs='*', default=[]); a.add_argument('--keep', nargs='*', default=[]); a.add_argument('--check', action='store_true'); a = a.parse_args()
    tensors, back, shape = collect(a.model)
    n = write(a.out + '.tmp', shrink(tensors, a.rows, a.keep), {'format': 'pt', 'config': json.dumps(configs(a.model, a.steps, a.guidance), separators=(',', ':'))})
    os.replace(a.out + '.tmp', a.out)
    with safe_open(a.out, 'pt') as f: print(f'{a.out}: {len(list(f.keys()))} tensors, {n:,} bytes')
    if a.check: check(a.model, a.out, back, shape, a.steps, a.guidance)
