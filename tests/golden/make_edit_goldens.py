"""Reference values of editing images, computed with diffusers on the small geometries of the other scripts.

    python make_edit_goldens.py OUT_DIR

Writes into OUT_DIR, each with a picture, the final latents and what they decode to:
- `inpaint_a_dev`, `inpaint_c_dev`, `inpaint_klein_distilled`, `inpaint_klein_base`: a part of the picture is repainted, with its mask. `decoded`
  is what the decoder gives, before the picture is put back around the mask.
- `fill_a_dev`, `fill_c_dev`: the same by FLUX.1 Fill; `control_a_dev`: FLUX.1 Depth with the picture as its control image.
- `kontext_a_dev`, `kontext_b_dev`: FLUX.1 Kontext with the picture as its reference, which is encoded in float64: at a million pixels the
  latents of torch's float32 encoder differ from those by 3e-3 and 6e-3, and the final ones by 1.6e-4 and 5e-4.
- `canny`: pictures, their edges by OpenCV, and two other sizes of them by Pillow.
Some of these pipelines would draw a sample of the autoencoder's distribution: here they take the mean, as this project does.
Needs opencv-python-headless besides what make_goldens.py needs.
"""
import copy
import json
import os
import sys

import cv2
import diffusers
import make_flux2_goldens as two
import make_goldens as base
import numpy as np
import PIL.Image
import torch
from diffusers import Flux2KleinInpaintPipeline, FluxControlPipeline, FluxFillPipeline, FluxInpaintPipeline, FluxKontextPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean


def mask(height, width):
    """White where the image is repainted: an ellipse and a bar, at no multiple of anything."""
    y, x = np.mgrid[0:height, 0:width]
    ellipse = ((x - 0.36 * width) / (0.27 * width)) ** 2 + ((y - 0.61 * height) / (0.31 * height)) ** 2 < 1
    bar = (y > 0.05 * height) & (y < 0.05 * height + 11) & (x > width // 3)
    return np.where(ellipse | bar, 255, 0).astype(np.uint8)


def images(g):
    picture, white = base.pattern(g['height'], g['width']), mask(g['height'], g['width'])
    return picture, torch.from_numpy(white), dict(image=PIL.Image.fromarray(picture.numpy()), mask_image=PIL.Image.fromarray(white))


def keep(seen):
    def callback(pipe, step, t, values):
        seen['latents'] = values['latents']
        return values
    return callback


def wide(transformer, extra):
    """The configuration of a transformer with `extra` inputs for each token, and the shapes of its tensors."""
    out = transformer['in_channels']
    c = transformer | dict(in_channels=out + extra, out_channels=out)
    shapes = base.flux_shapes(transformer)
    shapes['img_in.weight'] = [shapes['img_in.weight'][0], out + extra]
    return c, shapes


def flux1(kind, name, **own):
    g = base.GEOMETRIES[name]
    c = base.configs(g, True)
    z, factor = c['vae']['latent_channels'], 2 ** (len(c['vae']['block_out_channels']) - 1)
    c['transformer'], shapes = wide(c['transformer'], dict(fill=4 * z + 4 * factor * factor, control=4 * z).get(kind, 0))
    plain, base.flux_shapes = base.flux_shapes, lambda _: shapes
    _, m = base.build(c, g['seed'])
    base.flux_shapes = plain
    classes = dict(inpaint=FluxInpaintPipeline, fill=FluxFillPipeline, control=FluxControlPipeline, kontext=FluxKontextPipeline)
    pipe = classes[kind](tokenizer=None, tokenizer_2=None, **m)
    pipe.set_progress_bar_config(disable=True)
    vae = m['vae']
    _, text, _, pooled = base.encode(m, g['prompt'], g['length'])
    picture, white, both = images(g)
    width, height, guidance = g['width'], g['height'], own.pop('guidance', 3.5)
    strength = dict(strength=own.pop('strength')) if 'strength' in own else {}
    image = dict(inpaint=both, fill=both, control=dict(control_image=both['image']), kontext=dict(image=both['image']))[kind]
    if kind == 'kontext':
        picture = base.pattern(70, 90)
        image = dict(image=PIL.Image.fromarray(picture.numpy()))
        encoder = copy.deepcopy(vae).double()
        pipe._encode_vae_image = lambda image, generator: (
            (encoder.encode(image.double()).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor).float()
        # It would scale any size to a million pixels.
        own |= dict(max_area=width * height)
    seen = {}
    pipe(prompt_embeds=text, pooled_prompt_embeds=pooled, width=width, height=height, num_inference_steps=6, guidance_scale=guidance,
         generator=torch.Generator().manual_seed(42), max_sequence_length=g['length'], output_type='latent', callback_on_step_end=keep(seen),
         **strength, **own, **image)
    facts = dict(prompt=g['prompt'], seed=42, steps=6, guidance=guidance, width=width, height=height, t5_length=g['length'], **strength)
    latent = pipe._unpack_latents(seen['latents'], height, width, factor) / vae.config.scaling_factor + vae.config.shift_factor
    out = dict(picture=picture.contiguous(), latents=seen['latents'][0], decoded=vae.decode(latent, return_dict=False)[0][0])
    return c, g['seed'], facts, out | (dict(mask=white) if 'mask_image' in image else {})


def flux2(name):
    g = two.GEOMETRIES[name]
    c = two.configs(g)
    _, m = two.build(c, g['seed'])
    pipe = Flux2KleinInpaintPipeline(tokenizer=None, is_distilled=g['scale'] == 1, **m)
    pipe.set_progress_bar_config(disable=True)
    text, nothing = (two.encode(m, p, 512)[1] for p in (g['prompt'], two.NOTHING))
    # There is no tokenizer: the only prompt that is not given as embeddings is the negative one.
    pipe.encode_prompt = lambda prompt=None, **_: (nothing if prompt == '' else text, pipe._prepare_text_ids(text))
    picture, white, both = images(g)
    seen = {}
    facts = dict(prompt=g['prompt'], seed=42, steps=g['steps'], strength=0.8, cfg_scale=g['scale'], width=g['width'], height=g['height'])
    clean = pipe(prompt_embeds=text, num_inference_steps=g['steps'], strength=0.8, guidance_scale=g['scale'],
                 generator=torch.Generator().manual_seed(42), output_type='latent', callback_on_step_end=keep(seen), **both).images
    return c, g['seed'], facts, dict(picture=picture, mask=white, latents=seen['latents'][0], decoded=m['vae'].decode(clean, return_dict=False)[0][0])


def canny():
    out, r = {}, np.random.default_rng(5)
    pictures = [base.pattern(60, 90).numpy(), r.integers(0, 256, (33, 47, 3), dtype=np.uint8),
                cv2.GaussianBlur(r.integers(0, 256, (64, 64, 3), dtype=np.uint8), (7, 7), 0)]
    for i, picture in enumerate(pictures):
        out |= {f'{i}.picture': torch.from_numpy(picture.copy()), f'{i}.edges': torch.from_numpy(cv2.Canny(picture, 50, 200))}
        for name, size in dict(larger=(100, 71), smaller=(29, 40)).items():
            resized = PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.LANCZOS)
            out[f'{i}.{name}'] = torch.from_numpy(np.array(resized))
    return out


def main(folder):
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, opencv=cv2.__version__)
    for name, (c, seed, facts, out) in {
        'inpaint_a_dev': flux1('inpaint', 'a', strength=0.8), 'inpaint_c_dev': flux1('inpaint', 'c', strength=0.8),
        'inpaint_klein_distilled': flux2('klein_distilled'), 'inpaint_klein_base': flux2('klein_base'),
        'fill_a_dev': flux1('fill', 'a', guidance=30.0), 'fill_c_dev': flux1('fill', 'c', guidance=30.0, strength=0.7),
        'control_a_dev': flux1('control', 'a', guidance=10.0), 'kontext_a_dev': flux1('kontext', 'a', guidance=2.5),
        'kontext_b_dev': flux1('kontext', 'b', guidance=2.5),
    }.items():
        for key, t in out.items():
            assert not t.is_floating_point() or torch.isfinite(t).all(), (name, key)
        base.save(os.path.join(folder, name + '.safetensors'), out,
                  dict(config=json.dumps(c), pipeline=json.dumps(facts), seed=str(seed), versions=json.dumps(versions)))
    base.save(os.path.join(folder, 'canny.safetensors'), canny(), dict(versions=json.dumps(versions)))


if __name__ == '__main__':
    main(sys.argv[1])
