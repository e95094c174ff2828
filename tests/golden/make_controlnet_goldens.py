"""Reference values of ControlNets for FLUX.1, computed with diffusers on deeper variants of the small geometries of make_goldens.py.

    python make_controlnet_goldens.py OUT_DIR

Writes into OUT_DIR, each with the control images, the final latents and what they decode to:
- `controlnet_plain`: 3 double blocks for 5, in a part of the steps (InstantX, Shakker-Labs Union-Pro 2.0, jasperai); `controlnet_step`: its first step.
- `controlnet_modes`: 2 double and 2 single blocks for 4 and 5, with a mode and true CFG (InstantX Union).
- `controlnet_two`: two of them, with two images and another part of the steps each.
- `controlnet_pixels`: 2 double blocks that are repeated, and convolutions over the pixels (XLabs).
- `controlnet_masked`: the control image has a hole, of which the mask is an input, too (alimama; `prepare_image_with_mask` of its authors' pipeline).
- `controlnet_inpaint`: a part of a picture is repainted (FluxControlNetInpaintPipeline).
The autoencoder's distribution is replaced by its mean, as in make_edit_goldens.py.
"""
import json
import os
import sys

import diffusers
import make_edit_goldens as edit
import make_goldens as base
import PIL.Image
import torch
from diffusers import FluxControlNetInpaintPipeline, FluxControlNetModel, FluxControlNetPipeline

# Blocks of the transformer, and what each ControlNet is and does.
CASES = {
    'plain': dict(geometry='a', double=5, single=2, nets=[dict(double=3, single=0, strength=0.7, end=0.8)]),
    'step': dict(geometry='a', double=5, single=2, steps=1, nets=[dict(double=3, single=0, strength=0.7)]),
    'modes': dict(geometry='b', double=4, single=5, cfg=3.0, nets=[dict(double=2, single=2, modes=10, mode=4, strength=0.6)]),
    'two': dict(geometry='c', double=3, single=3, images=2, nets=[dict(double=2, single=1, strength=0.5, start=0.3),
                                                                  dict(double=2, single=1, strength=1.0, end=0.6)]),
    'pixels': dict(geometry='a', double=5, single=1, nets=[dict(double=2, single=0, pixels=16, strength=0.8)]),
    'masked': dict(geometry='a', double=3, single=1, nets=[dict(double=2, single=0, masked=True, strength=0.9)]),
    'inpaint': dict(geometry='c', double=3, single=2, inpaint=0.8, nets=[dict(double=2, single=0, strength=0.7)]),
}


def net_shapes(c, net):
    """Canonical names: BFL's where the transformer has the tensor, XLabs' for the others."""
    s = {name: shape for name, shape in base.flux_shapes(c).items() if not name.startswith('final_layer.')}
    h = c['attention_head_dim'] * c['num_attention_heads']
    base.linear(s, 'pos_embed_input', h, c['in_channels'] + (4 if net.get('masked') else 0))
    for i in range(net['double']):
        base.linear(s, f'controlnet_blocks.{i}', h, h)
    for i in range(net['single']):
        base.linear(s, f'controlnet_single_blocks.{i}', h, h)
    if 'modes' in net:
        s['controlnet_mode_embedder.weight'] = [net['modes'], h]
    if 'pixels' in net:
        n = net['pixels']
        for i in range(8):
            name = f'input_hint_block.{2 * i}'
            s[name + '.weight'], s[name + '.bias'] = [c['in_channels'] // 4 if i == 7 else n, 3 if i == 0 else n, 3, 3], [c['in_channels'] // 4 if i == 7 else n]
    return s


def net_state(w, c):
    """diffusers' names."""
    h = c['attention_head_dim'] * c['num_attention_heads']
    final = {f'final_layer.{layer}.{kind}': torch.zeros(2 * h) for layer in ('linear', 'adaLN_modulation.1') for kind in ('weight', 'bias')}
    out = base.flux_state(w | final, c)
    for name in [n for n in out if n.startswith(('proj_out.', 'norm_out.'))]:
        del out[name]
    for name, t in w.items():
        first, *rest = name.split('.')
        if first == 'pos_embed_input':
            out['controlnet_x_embedder.' + rest[0]] = t
        elif first == 'input_hint_block':
            i = int(rest[0]) // 2
            layer = {0: 'conv_in', 7: 'conv_out'}.get(i, f'blocks.{i - 1}')
            out[f'input_hint_block.{layer}.{rest[1]}'] = t
        elif first.startswith('controlnet_'):
            out[name] = t
    return out


def build_net(c, net, seed):
    own = {k: v for k, v in c.items() if not k.startswith('_')} | dict(num_layers=net['double'], num_single_layers=net['single'])
    config = own | dict(num_mode=net.get('modes'))
    if 'pixels' in net:
        # The hint has a sixteenth of the sides when it is packed.
        config |= dict(conditioning_embedding_channels=c['in_channels'] // 4, patch_size=2)
    model = FluxControlNetModel(**config)
    if net.get('masked'):
        model.controlnet_x_embedder = torch.nn.Linear(c['in_channels'] + 4, model.inner_dim)
    return base.load(model, net_state(base.weights('controlnet', net_shapes(own, net), seed), own))


def with_mask(pipe, picture, white):
    """What alimama's `prepare_image_with_mask` does, at the places where diffusers' pipeline prepares an image and packs its latents."""
    hole = torch.from_numpy(white)[None, None].float() / 255
    pixels = picture.permute(2, 0, 1).float()[None] / 127.5 - 1
    pixels[(hole > 0.5).repeat(1, 3, 1, 1)] = -1
    pack, calls = pipe._pack_latents, []

    def packed(latents, batch, channels, height, width):
        calls.append(latents)
        if len(calls) == 1:  # the control image comes first
            kept = 1 - torch.nn.functional.interpolate(hole, size=(height, width))
            return pack(torch.cat([latents, kept], 1), batch, channels + 1, height, width)
        return pack(latents, batch, channels, height, width)

    pipe.prepare_image, pipe._pack_latents = (lambda **_: pixels), packed


def case(name):
    own = CASES[name]
    g = base.GEOMETRIES[own['geometry']] | dict(double=own['double'], single=own['single'])
    c = base.configs(g, True)
    _, m = base.build(c, g['seed'])
    nets = own['nets']
    seeds = [(g['seed'] + 1 + i) % 2**64 for i in range(len(nets))]
    models = [build_net(c['transformer'], net, seed) for net, seed in zip(nets, seeds)]
    kind = FluxControlNetInpaintPipeline if 'inpaint' in own else FluxControlNetPipeline
    several = len(nets) > 1
    pipe = kind(tokenizer=None, tokenizer_2=None, controlnet=models if several else models[0], **m)
    pipe.set_progress_bar_config(disable=True)
    width, height, length, steps, images = g['width'], g['height'], g['length'], own.get('steps', 6), own.get('images', 1)
    z, factor = c['vae']['latent_channels'], 2 ** (len(c['vae']['block_out_channels']) - 1)
    _, text, _, pooled = base.encode(m, g['prompt'], length)
    pictures = [base.pattern(height, width), 255 - base.pattern(height, width).flip(0, 1)][:len(nets)]
    white = edit.mask(height, width)
    pil = [PIL.Image.fromarray(p.numpy()) for p in pictures]
    one = lambda values: list(values) if several else values[0]
    call = dict(prompt_embeds=text, pooled_prompt_embeds=pooled, control_image=one(pil), width=width, height=height, num_inference_steps=steps,
                guidance_scale=3.5, generator=torch.Generator().manual_seed(42), max_sequence_length=length, output_type='latent',
                num_images_per_prompt=images, controlnet_conditioning_scale=one([n['strength'] for n in nets]),
                control_guidance_start=one([n.get('start', 0.0) for n in nets]), control_guidance_end=one([n.get('end', 1.0) for n in nets]))
    if 'mode' in nets[0]:
        call['control_mode'] = nets[0]['mode']
    out = {f'control.{i}': p.contiguous() for i, p in enumerate(pictures)}
    facts = dict(prompt=g['prompt'], seed=42, steps=steps, guidance=3.5, width=width, height=height, t5_length=length, images=images,
                 nets=[net | dict(seed=str(seed)) for net, seed in zip(nets, seeds)])
    if 'cfg' in own:
        _, neg_text, _, neg_pooled = base.encode(m, base.BLURRY, length)
        call |= dict(true_cfg_scale=own['cfg'], negative_prompt_embeds=neg_text, negative_pooled_prompt_embeds=neg_pooled)
        facts |= dict(cfg_scale=own['cfg'], negative=base.BLURRY)
    if nets[0].get('masked'):
        with_mask(pipe, pictures[0], white)
        out['mask'] = torch.from_numpy(white)
    seen = {}
    if 'inpaint' in own:
        photo = base.pattern(height, width).flip(1)
        call |= dict(image=PIL.Image.fromarray(photo.numpy()), mask_image=PIL.Image.fromarray(white), strength=own['inpaint'],
                     callback_on_step_end=edit.keep(seen))
        out |= dict(picture=photo.contiguous(), mask=torch.from_numpy(white))
        facts['strength'] = own['inpaint']
    latents = pipe(**call).images
    latents = seen.get('latents', latents)
    latent = FluxControlNetPipeline._unpack_latents(latents, height, width, factor) / c['vae']['scaling_factor'] + c['vae']['shift_factor']
    out |= dict(latents=latents.contiguous(), decoded=m['vae'].decode(latent, return_dict=False)[0])
    return c, g['seed'], facts, out


def main(folder):
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__)
    for name in CASES:
        c, seed, facts, out = case(name)
        for key, t in out.items():
            assert not t.is_floating_point() or torch.isfinite(t).all(), (name, key)
        base.save(os.path.join(folder, f'controlnet_{name}.safetensors'), out,
                  dict(config=json.dumps(c), pipeline=json.dumps(facts), seed=str(seed), versions=json.dumps(versions)))
        print(name, {k: list(v.shape) for k, v in out.items()}, float(out['latents'].std()))


if __name__ == '__main__':
    main(sys.argv[1])
