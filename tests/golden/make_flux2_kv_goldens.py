"""Reference values of FLUX.2 [klein] 9B-kv, which computes the keys and values of reference images once: `Flux2KleinKVPipeline` of diffusers on the
small geometries of make_flux2_goldens.py, after one and two references, and after two with two images.

    python make_flux2_kv_goldens.py OUT_DIR
"""
import json
import os
import sys

import diffusers
import make_flux2_goldens as two
import make_goldens as base
import PIL.Image
import torch
import transformers
from diffusers import Flux2KleinKVPipeline


def main(folder):
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__)
    for name, g in two.GEOMETRIES.items():
        c = two.configs(g)
        _, m = two.build(c, g['seed'])
        pipe = Flux2KleinKVPipeline(tokenizer=None, **m)
        pipe.set_progress_bar_config(disable=True)
        text = two.encode(m, g['prompt'], 512)[1]
        pictures = [base.pattern(70, 100), base.pattern(88, 64).flip(2)]
        images, out, seen = [PIL.Image.fromarray(p.numpy()) for p in pictures], {}, {}

        def keep(pipe, step, t, values):
            seen['latents'] = values['latents']
            return values

        for key, n, count in (('reference.1', 1, 1), ('reference.2', 2, 1), ('batch', 2, 2)):
            clean = pipe(prompt_embeds=text, image=images[:n], width=g['width'], height=g['height'], num_inference_steps=g['steps'],
                         num_images_per_prompt=count, generator=torch.Generator().manual_seed(42), output_type='latent',
                         callback_on_step_end=keep).images
            out[f'{key}.latents'] = seen['latents'].clone() if count > 1 else seen['latents'][0].clone()
            if count == 1:
                out |= {f'{key}.picture': pictures[n - 1].contiguous(), f'{key}.decoded': m['vae'].decode(clean, return_dict=False)[0][0]}
        facts = dict(prompt=g['prompt'], seed=42, steps=g['steps'], width=g['width'], height=g['height'], cfg_scale=1.0)
        base.save(os.path.join(folder, name + '_kv.safetensors'), out,
                  dict(config=json.dumps(c), pipeline=json.dumps(facts), seed=str(g['seed']), versions=json.dumps(versions)))


if __name__ == '__main__':
    main(sys.argv[1])
