"""Reference values of a control LoRA in the form of BFL's (FLUX.1 Canny and Depth as LoRAs), computed with diffusers and PEFT.

    python make_control_lora_goldens.py OUT_DIR

Writes `lora/control.lora.safetensors`, a LoRA of every layer of geometry `a` of make_goldens.py with the names of
`flux1-depth-dev-lora.safetensors` (`img_in` has twice as many inputs, the gains of the norms are whole), and `control_lora_a_dev`: the final
latents of `FluxControlPipeline` after `load_lora_weights` at strength 1, and at strength 0.6 (`half.latents`), which does not apply to the gains.
Needs peft besides what make_goldens.py needs. diffusers' own conversion of these names is for the published sizes only, so it is done here.
"""
import json
import os
import sys

import diffusers
import make_goldens as base
import peft
import PIL.Image
import torch
from diffusers import FluxControlPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file

DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean

RANK, SEED = 4, 77


def lora(c):
    """The LoRA under BFL's names: A and B with a bias for every layer, and all gains."""
    shapes = base.flux_shapes(c)
    out = {}
    for name, shape in shapes.items():
        if name.endswith('.scale'):
            out[name] = base.synthetic('control', name, shape, SEED)
        elif name.endswith('.weight'):
            layer, (rows, cols) = name.removesuffix('.weight'), shape
            cols = 2 * cols if layer == 'img_in' else cols
            rank = min(RANK, rows)
            out[layer + '.lora_A.weight'] = base.synthetic('control', layer + '.lora_A.weight', [rank, cols], SEED)
            out[layer + '.lora_B.weight'] = 0.2 * base.synthetic('control', layer + '.lora_B.weight', [rows, rank], SEED)
            out[layer + '.lora_B.bias'] = 0.2 * base.synthetic('control', layer + '.lora_B.bias', [rows], SEED)
    return out


def for_diffusers(w, c):
    """The same under diffusers' names, by the table that converts whole weights."""
    layers = {k.removesuffix('.lora_A.weight'): None for k in w if k.endswith('.lora_A.weight')}
    gains = {k: t for k, t in w.items() if k.endswith('.scale')}
    b = gains | {f'{n}.{kind}': w[f'{n}.lora_B.{kind}'] for n in layers for kind in ('weight', 'bias')}
    state = base.flux_state(b, c)
    # Which layer of BFL each layer of diffusers is a part of: the same table, with numbers as weights.
    numbers = {name: float(i) for i, name in enumerate(layers)}
    marks = gains | {f'{n}.{kind}': torch.full_like(w[f'{n}.lora_B.{kind}'], numbers[n]) for n in layers for kind in ('weight', 'bias')}
    names = list(layers)
    out = {}
    for key, mark in base.flux_state(marks, c).items():
        layer, _, kind = key.rpartition('.')
        if '.norm_q.' in key or '.norm_k.' in key or '.norm_added_' in key:
            out[f'transformer.{key}'] = state[key].clone()
            continue
        source = names[int(mark.flatten()[0])]
        out[f'transformer.{layer}.lora_B.{kind}'] = state[key].contiguous()
        out[f'transformer.{layer}.lora_A.weight'] = w[f'{source}.lora_A.weight'].contiguous()
    return out


def main(folder):
    g = base.GEOMETRIES['a']
    c = base.configs(g, True)
    adapter = lora(c['transformer'])
    adapter = {k: t.to(torch.bfloat16).float() for k, t in adapter.items()}
    save_file({k: t.to(torch.bfloat16).contiguous() for k, t in adapter.items()}, os.path.join(folder, 'lora/control.lora.safetensors'))
    converted = for_diffusers(adapter, c['transformer'])
    picture = base.pattern(g['height'], g['width'])
    out = dict(picture=picture.contiguous())
    for prefix, strength in (('', 1.0), ('half.', 0.6)):
        _, m = base.build(c, g['seed'])
        pipe = FluxControlPipeline(tokenizer=None, tokenizer_2=None, **m)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_lora_weights(dict(converted), adapter_name='control')
        pipe.set_adapters(['control'], [strength])
        assert pipe.transformer.config.in_channels == 2 * c['transformer']['in_channels']
        _, text, _, pooled = base.encode(m, g['prompt'], g['length'])
        latents = pipe(prompt_embeds=text, pooled_prompt_embeds=pooled, control_image=PIL.Image.fromarray(picture.numpy()), width=g['width'],
                       height=g['height'], num_inference_steps=6, guidance_scale=3.5, generator=torch.Generator().manual_seed(42),
                       max_sequence_length=g['length'], output_type='latent').images
        out[prefix + 'latents'] = latents[0]
        factor = 2 ** (len(g['vae'][0]) - 1)
        latent = pipe._unpack_latents(latents, g['height'], g['width'], factor) / m['vae'].config.scaling_factor + m['vae'].config.shift_factor
        out[prefix + 'decoded'] = m['vae'].decode(latent, return_dict=False)[0][0]
    facts = dict(prompt=g['prompt'], seed=42, steps=6, guidance=3.5, width=g['width'], height=g['height'], t5_length=g['length'])
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, peft=peft.__version__)
    for key, t in out.items():
        assert not t.is_floating_point() or torch.isfinite(t).all(), key
    base.save(os.path.join(folder, 'control_lora_a_dev.safetensors'), out,
              dict(config=json.dumps(c), pipeline=json.dumps(facts), seed=str(g['seed']), versions=json.dumps(versions)))


if __name__ == '__main__':
    main(sys.argv[1])
