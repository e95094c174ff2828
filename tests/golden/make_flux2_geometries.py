"""FLUX.2's transformer at geometries that no published model has, computed with diffusers.

    python make_flux2_geometries.py OUT_DIR

Writes `flux2_geometries.safetensors` into OUT_DIR: for each geometry its inputs and the velocity, without and with references. Everything is float32 on
the CPU, on one thread; weights are those of make_goldens.py. Needs what make_goldens.py needs.
"""
import json
import os
import sys

import make_flux2_goldens as flux2
import make_goldens as base
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

# Guidance embedding and uneven axes; no double block, heads of 128; no single block, 12 latent channels, many narrow heads.
GEOMETRIES = {
    'guided': dict(heads=4, axes=[2, 6, 8, 8], double=1, single=1, ratio=1.5, channels=32, context=36, guidance=True, grid=(3, 1), txt=5),
    'single': dict(heads=1, axes=[32, 32, 32, 32], double=0, single=2, ratio=3.0, channels=16, context=24, guidance=False, grid=(1, 7), txt=1,
                   theta=10000),
    'double': dict(heads=5, axes=[8, 0, 4, 4], double=2, single=0, ratio=2.0, channels=12, context=48, guidance=False, grid=(5, 3), txt=9),
}
SEED = 21


def config(g):
    return dict(_class_name='Flux2Transformer2DModel', attention_head_dim=sum(g['axes']), axes_dims_rope=g['axes'], guidance_embeds=g['guidance'],
                in_channels=g['channels'], joint_attention_dim=g['context'], mlp_ratio=g['ratio'], num_attention_heads=g['heads'],
                num_layers=g['double'], num_single_layers=g['single'], patch_size=1, rope_theta=g.get('theta', 2000),
                timestep_guidance_channels=256)


def build(c):
    shapes = flux2.flux2_shapes(c)
    h = c['attention_head_dim'] * c['num_attention_heads']
    if c['guidance_embeds']:
        flux2.linear(shapes, 'guidance_in.in_layer', h, 256)
        flux2.linear(shapes, 'guidance_in.out_layer', h, h)
    w = base.weights('flux2', shapes, SEED)
    state = flux2.flux2_state(w, c)
    if c['guidance_embeds']:
        for n, layer in (('1', 'in_layer'), ('2', 'out_layer')):
            state[f'time_guidance_embed.guidance_embedder.linear_{n}.weight'] = w[f'guidance_in.{layer}.weight']
    return base.load(Flux2Transformer2DModel(**{k: v for k, v in c.items() if not k.startswith('_')}), state)


def main(folder):
    out, configs = {}, {}
    for name, g in GEOMETRIES.items():
        c = configs[name] = config(g)
        t, r = build(c), torch.Generator().manual_seed(31)
        rows, cols = g['grid']
        img = torch.randn(1, rows * cols, g['channels'], generator=r)
        text = torch.randn(1, g['txt'], g['context'], generator=r)
        grids = [(1, 2)]
        refs = [torch.randn(1, g['channels'], *grid, generator=r) for grid in grids]
        ids = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, rows, cols))
        ref_ids = Flux2KleinPipeline._prepare_image_ids(refs)
        packed = torch.cat([x.flatten(2).transpose(1, 2) for x in refs], 1)
        timestep, guidance = torch.tensor([0.625]), torch.tensor([3.5]) if g['guidance'] else None
        velocity = lambda x, ids: t(hidden_states=x, encoder_hidden_states=text, timestep=timestep, img_ids=ids,
                                    txt_ids=Flux2KleinPipeline._prepare_text_ids(text), guidance=guidance,
                                    return_dict=False)[0][0, :rows * cols]
        more = {'img': img[0], 'txt': text[0], 'timestep': timestep, 'grid': torch.tensor([rows, cols]), 'references': packed[0],
                'reference_grids': torch.tensor(grids), 'velocity': velocity(img, ids),
                'reference_velocity': velocity(torch.cat([img, packed], 1), torch.cat([ids, ref_ids], 1))}
        if g['guidance']:
            more['guidance'] = guidance
        out |= {f'{name}.{k}': v.contiguous() for k, v in more.items()}
    for key, t in out.items():
        assert not t.is_floating_point() or torch.isfinite(t).all(), key
    base.save(os.path.join(folder, 'flux2_geometries.safetensors'), out, dict(config=json.dumps(configs), pipeline='{}', seed=str(SEED)))


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main(sys.argv[1])
