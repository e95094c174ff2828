"""Reference values of FLUX.1 Redux, computed with transformers and diffusers on the small geometries of make_goldens.py.

    python make_redux_goldens.py OUT_DIR

Writes `redux_a_dev`, `redux_b_schnell` and `redux_c_dev` into OUT_DIR, each with pictures, the pixels that SigLIP reads, its last hidden state
and the tokens of the adapter (one after another for several pictures), the final latents and what they decode to. The first one is
`FluxPriorReduxPipeline` and `FluxPipeline` as they are. The second one has two pictures, whose tokens are multiplied with a strength each and
are appended one after the other, as by ComfyUI's `StyleModelApply`. The third one has a negative prompt, with the same tokens behind it.
Pictures are resized by the image processor that uses Pillow: the one for torch tensors differs from it by a level here and there.
"""
import json
import os
import sys

import diffusers
import make_goldens as base
import PIL.Image
import torch
import transformers
from diffusers import FluxPipeline, FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

# hidden, heads, MLP, layers, pixels of a picture and of a patch; inner width of the adapter; pictures (height, width) and their strengths
TOWERS = {
    'a': dict(tower=(144, 2, 200, 2, 76, 14), inner=96, pictures=[(70, 90)], strengths=[1.0]),
    'b': dict(tower=(64, 4, 96, 3, 37, 8), inner=80, pictures=[(41, 120), (30, 33)], strengths=[0.6, 1.5]),
    'c': dict(tower=(144, 2, 136, 1, 84, 14), inner=72, pictures=[(84, 84)], strengths=[0.8]),
}


def siglip_shapes(c):
    h, p = c['hidden_size'], 'vision_model.'
    s = {p + 'embeddings.patch_embedding.weight': [h, 3, c['patch_size'], c['patch_size']], p + 'embeddings.patch_embedding.bias': [h],
         p + 'embeddings.position_embedding.weight': [(c['image_size'] // c['patch_size']) ** 2, h]}
    for i in range(c['num_hidden_layers']):
        q = f'{p}encoder.layers.{i}.'
        for x in ('k_proj', 'v_proj', 'q_proj', 'out_proj'):
            base.linear(s, q + 'self_attn.' + x, h, h)
        base.linear(s, q + 'mlp.fc1', c['intermediate_size'], h)
        base.linear(s, q + 'mlp.fc2', h, c['intermediate_size'])
        for x in ('layer_norm1', 'layer_norm2'):
            s[q + x + '.weight'] = s[q + x + '.bias'] = [h]
    s[p + 'post_layernorm.weight'] = s[p + 'post_layernorm.bias'] = [h]
    return s


def redux_shapes(hidden, inner, context):
    s = {}
    base.linear(s, 'redux_up', inner, hidden)
    base.linear(s, 'redux_down', context, inner)
    return s


def load_tower(config, w):
    """The tower without the head that pools the tokens, which Redux does not read."""
    model = SiglipVisionModel(SiglipVisionConfig(**config))
    have = set(model.state_dict())
    if not any(k.startswith('vision_model.') for k in have):
        w = {k.removeprefix('vision_model.'): v for k, v in w.items()}
    missing, unexpected = model.load_state_dict(w, strict=False)
    assert not unexpected and all('head.' in k for k in missing), (missing, unexpected)
    for key in missing:
        model.state_dict()[key].zero_()
    return model.eval()


def redux(name, dev):
    g, t = base.GEOMETRIES[name], TOWERS[name]
    c = base.configs(g, dev)
    _, m = base.build(c, g['seed'])
    hidden, heads, ff, layers, size, patch = t['tower']
    tower = dict(hidden_size=hidden, num_attention_heads=heads, intermediate_size=ff, num_hidden_layers=layers, image_size=size, patch_size=patch,
                 hidden_act='gelu_pytorch_tanh', layer_norm_eps=1e-6, num_channels=3, attention_dropout=0.0)
    c['image_encoder'] = dict(architectures=['SiglipVisionModel'], model_type='siglip_vision_model') | tower
    c['image_embedder'] = dict(_class_name='ReduxImageEncoder', redux_dim=hidden, txt_in_features=g['context'])
    encoder = load_tower(tower, base.weights('siglip', siglip_shapes(tower), g['seed']))
    # The inner width is three times that of the text in diffusers, and not a parameter.
    embedder = ReduxImageEncoder(redux_dim=hidden, txt_in_features=g['context'])
    embedder.redux_up = torch.nn.Linear(hidden, t['inner'])
    embedder.redux_down = torch.nn.Linear(t['inner'], g['context'])
    embedder = base.load(embedder, base.weights('redux', redux_shapes(hidden, t['inner'], g['context']), g['seed']))
    processor = SiglipImageProcessorPil(size=dict(height=size, width=size), image_mean=[0.5] * 3, image_std=[0.5] * 3)
    prior = FluxPriorReduxPipeline(image_encoder=encoder, feature_extractor=processor, image_embedder=embedder,
                                   text_encoder=m['text_encoder'], text_encoder_2=m['text_encoder_2'])
    prior.set_progress_bar_config(disable=True)
    _, text, _, pooled = base.encode(m, g['prompt'], g['length'])
    out, tokens, all_tokens, pixels, states = {}, [], [], [], []
    for i, ((height, width), strength) in enumerate(zip(t['pictures'], t['strengths'])):
        picture = base.pattern(height, width)
        out[f'picture.{i}'] = picture.contiguous()
        image = PIL.Image.fromarray(picture.numpy())
        embeds = prior(image, prompt_embeds=text.clone(), pooled_prompt_embeds=pooled.clone()).prompt_embeds
        assert torch.equal(embeds[:, :g['length']], text)
        tokens.append(embeds[0, g['length']:] * strength)
        all_tokens.append(embeds[0, g['length']:])
        pixels.append(processor.preprocess(images=[image], do_convert_rgb=True, return_tensors='pt')['pixel_values'][0])
        states.append(encoder(pixels[-1][None]).last_hidden_state[0])
    out |= {'siglip.pixels': torch.stack(pixels), 'siglip.out': torch.cat(states), 'redux.out': torch.cat(all_tokens)}
    behind = lambda embeds: torch.cat([embeds, torch.cat(tokens)[None]], 1)
    pipe = FluxPipeline(tokenizer=None, tokenizer_2=None, **m)
    pipe.set_progress_bar_config(disable=True)
    steps, guidance, more, facts = (6, 3.5, {}, {}) if dev else (4, 0.0, {}, {})
    if name == 'c':
        _, negative, _, negative_pooled = base.encode(m, base.BLURRY, g['length'])
        more = dict(negative_prompt_embeds=behind(negative), negative_pooled_prompt_embeds=negative_pooled, true_cfg_scale=3.0)
        facts = dict(negative=base.BLURRY, cfg_scale=3.0)
    width, height, factor = g['width'], g['height'], 2 ** (len(g['vae'][0]) - 1)
    latents = pipe(prompt_embeds=behind(text), pooled_prompt_embeds=pooled, width=width, height=height, num_inference_steps=steps,
                   guidance_scale=guidance, generator=torch.Generator().manual_seed(42), output_type='latent', **more).images
    latent = pipe._unpack_latents(latents, height, width, factor) / m['vae'].config.scaling_factor + m['vae'].config.shift_factor
    out |= dict(latents=latents[0], decoded=m['vae'].decode(latent, return_dict=False)[0][0])
    facts |= dict(prompt=g['prompt'], seed=42, steps=steps, guidance=guidance, width=width, height=height, t5_length=g['length'],
                  strengths=t['strengths'], inner=t['inner'])
    return c, g['seed'], facts, out


def main(folder):
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__, pillow=PIL.__version__)
    for name, dev in (('a', True), ('b', False), ('c', True)):
        c, seed, facts, out = redux(name, dev)
        for key, t in out.items():
            assert not t.is_floating_point() or torch.isfinite(t).all(), (name, key)
        base.save(os.path.join(folder, f'redux_{name}_{"dev" if dev else "schnell"}.safetensors'), out,
                  dict(config=json.dumps(c), pipeline=json.dumps(facts), seed=str(seed), versions=json.dumps(versions)))


if __name__ == '__main__':
    main(sys.argv[1])
